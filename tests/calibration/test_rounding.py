"""Rounding a model a layer at a time."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import calibration, models, quant
from research.calibration.folds import folds
from research.calibration.walk import Walk
from research.core import matrix, tree
from research.core.moments import Moments
from research.quant.scheme import Scheme

SHAPES = {
  "llama": {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
  },
  "gemma2": {
    "model_type": "gemma2",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "sliding_window": 4,
  },
  "gpt2": {
    "model_type": "gpt2",
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
  },
}
RULES = ({"target": "layers/.*_proj/kernel", "kind": "int3", "group": 16},)
RNG = np.random.default_rng(0)


def _batch(rows=4, length=24):
  segments = np.ones((rows, length), np.int32)
  segments[0, -6:] = 0
  return {
    "tokens": jnp.asarray(RNG.integers(0, 61, (rows, length)), jnp.int32),
    "positions": jnp.broadcast_to(jnp.arange(length), (rows, length)),
    "segments": jnp.asarray(segments),
  }


BATCHES = [_batch(), _batch()]


def _built(name):
  model = models.build(SHAPES[name]).clone(unroll=1)
  params = jax.jit(model.init)(jax.random.key(0), BATCHES[0]["tokens"])["params"]
  noise = lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)  # noqa: E731
  return model, jax.tree.map(noise, params)


@pytest.fixture(params=SHAPES, scope="module")
def built(request):
  return _built(request.param)


@partial(jax.jit, static_argnums=0)
def _outputs(model, params, batch):
  rows = batch["tokens"], batch["positions"], batch["segments"]
  return model.apply({"params": params}, *rows, method="hidden")


def _hidden(model, params, batch):
  return np.asarray(_outputs(model, params, batch))[np.asarray(batch["segments"]) > 0]


def test_a_layer_is_measured_behind_layers_as_they_will_be(built):
  """Against a pass through the whole model, whose first layer is rounded."""
  model, params = built
  walk = Walk(model, params, BATCHES)
  first = walk.params()
  rounded = jax.tree.map(lambda leaf: jnp.round(leaf * 8) / 8, first)
  walk.advance(rounded)
  seen = walk.moments(walk.params())
  changed = jax.tree.map(lambda stack, leaf: stack.at[0].set(leaf), params["layers"], rounded)
  paths = [p for p in tree.flatten(params) if p.startswith("layers/") and p.endswith("kernel")]
  wanted = models.watched(
    model, {"params": {**params, "layers": changed}}, paths, BATCHES, Moments.none
  )
  for path, moments in seen.items():
    other = wanted[f"layers/{path}"]
    for part in ("count", "total", "products", "sizes", "peaks"):
      found, expected = getattr(moments, part), getattr(other, part)[1]
      scale = float(jnp.max(jnp.abs(expected)))
      np.testing.assert_allclose(found, expected, atol=1e-4 * scale, err_msg=f"{path} {part}")


def test_scales_and_their_inverse_change_nothing(built):
  model, params = built
  before = _hidden(model, params, BATCHES[0])
  each = []
  for number in range(2):
    layer = matrix.flatten(jax.tree.map(lambda leaf, i=number: leaf[i], params["layers"]))
    found = folds(model.config, layer)
    assert len(found) == (3 if model.config.family == "gpt2" else 4)
    for fold in found:
      inputs = layer[fold.readers[0]].shape[0]
      scales = fold.tied(jnp.asarray(RNG.uniform(0.5, 2, inputs), jnp.float32))
      layer = fold.apply(layer, scales, model.config.norm)
    each.append(tree.unflatten(layer))
  layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
  after = _hidden(model, {**params, "layers": layers}, BATCHES[0])
  np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_smoothing_hands_peaks_over(built):
  """Peaks and kernels meet half way; without rounding nothing would have changed."""
  model, params = built
  if model.config.family != "llama":
    pytest.skip("the same for every family")
  rules = ({"target": "layers/mlp/.*_proj/kernel", "kind": "int8", "activations": "int8"},)
  held = calibration.quantize(model, params, rules, calibration.SmoothQuant(), BATCHES)
  walk = Walk(model, quant.dequantize(held), BATCHES)
  seen = walk.moments(walk.params())["mlp/down_proj/kernel"]
  kernel = held["layers"]["mlp"]["down_proj"]["kernel"].astype(jnp.float32)[0]
  np.testing.assert_allclose(seen.peaks, jnp.max(jnp.abs(kernel), axis=1), rtol=0.1)
  scale = float(np.abs(_hidden(model, params, BATCHES[0])).max())
  np.testing.assert_allclose(
    _hidden(model, held, BATCHES[0]), _hidden(model, params, BATCHES[0]), atol=0.05 * scale
  )


def test_activations_get_one_scale_of_what_is_read_behind_rounded_layers(built):
  """The largest number of each layer, found again by a walk through what was made."""
  model, params = built
  if model.config.family != "llama":
    pytest.skip("the same for every family")
  rule = {"target": "layers/mlp/down_proj/kernel", "kind": "int8", "activations": "int8"}
  static = ({**rule, "range": "absmax"},)
  held = calibration.quantize(model, params, static, calibration.Nearest(), BATCHES)
  scales = held["layers"]["mlp"]["down_proj"]["kernel"].inputs
  walk = Walk(model, held, BATCHES)
  for scale in scales:
    layer = walk.params()
    peaks = walk.moments(layer)["mlp/down_proj/kernel"].peaks
    np.testing.assert_allclose(scale, jnp.max(peaks) / 127, rtol=1e-6)
    walk.advance(layer)
  assert walk.done and scales[0] != scales[1]
  free = calibration.quantize(model, params, (rule,), calibration.Nearest())
  assert 0 < _error(model, params, free) < 3 * _error(model, params, held)
  by_gptq = calibration.quantize(model, params, static, calibration.GPTQ(), BATCHES)
  assert by_gptq["layers"]["mlp"]["down_proj"]["kernel"].inputs.shape == (2,)
  for path, method in (("layers/.*", calibration.Nearest()), ("embed/.*", calibration.GPTQ())):
    batches = [] if path.startswith("layers") else BATCHES
    told = "no batches" if path.startswith("layers") else "'embed/embedding': range 'absmax'"
    with pytest.raises(ValueError, match=told):
      calibration.quantize(model, params, ({**static[0], "target": path},), method, batches)
  with pytest.raises(ValueError, match="calibrated by text.* range 'row' needs none"):
    quant.quantize(params, static)
  # What trains waits for its scales to be measured.
  waiting = quant.ranged(quant.train(params, static))
  assert waiting and all(np.isnan(kernel.inputs).all() for kernel in waiting.values())


def _error(model, params, held):
  pairs = [(_hidden(model, params, b), _hidden(model, held, b)) for b in BATCHES]
  return sum(float(((a - b) ** 2).sum()) for a, b in pairs)


def test_calibrated_rounding_harms_less(built):
  model, params = built
  if model.config.family != "llama":
    pytest.skip("the same for every family")
  methods = (calibration.Nearest(), calibration.GPTQ(), calibration.AWQ())
  errors = []
  for method in methods:
    held = calibration.quantize(model, params, RULES, method, BATCHES)
    kernel = held["layers"]["attention"]["q_proj"]["kernel"]
    assert isinstance(kernel, quant.QArray)
    assert kernel.shape == params["layers"]["attention"]["q_proj"]["kernel"].shape
    errors.append(_error(model, params, held))
  nearest, gptq, awq = errors
  assert gptq < 0.8 * nearest
  assert awq < 0.95 * nearest


def test_it_goes_on_after_the_last_layer_that_was_kept(built, tmp_path):
  model, params = built
  if model.config.family != "llama":
    pytest.skip("the same for every family")
  method, heard = calibration.GPTQ(), []

  def stop(layer, layers):
    heard.append((layer, layers))
    if len(heard) == 1:
      raise KeyboardInterrupt

  whole = calibration.quantize(model, params, RULES, method, BATCHES)
  with pytest.raises(KeyboardInterrupt):
    calibration.quantize(model, params, RULES, method, BATCHES, keep=tmp_path, told=stop)
  file = tmp_path / "layer_000.safetensors"
  written = file.stat().st_mtime_ns
  again = calibration.quantize(model, params, RULES, method, BATCHES, keep=tmp_path, told=stop)
  assert file.stat().st_mtime_ns == written
  assert heard == [(1, 2), (1, 2), (2, 2)]
  jax.tree.map(np.testing.assert_array_equal, again, whole)
  rope = dataclasses.replace(model.config.rope, theta=1e6)
  turned = model.clone(config=dataclasses.replace(model.config, rope=rope))
  for changed, other, batches in (
    (model, calibration.AWQ(), BATCHES),
    (model, method, BATCHES[::-1]),
    (model.clone(dtype=jnp.bfloat16), method, BATCHES),
    (turned, method, BATCHES),
  ):
    with pytest.raises(
      ValueError, match="is of another model, type of act.*, rule, method or text"
    ):
      calibration.quantize(changed, params, RULES, other, batches, keep=tmp_path)


def test_only_a_decoder_is_calibrated():
  """And not an encoder-decoder, none of whose projections is at a decoder's paths."""
  sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
  model = models.build({"model_type": "t5", "vocab_size": 61, **sizes})
  params = {"encoder": {"layers": {"mlp": {"up_proj": {"kernel": jnp.ones((1, 16, 32))}}}}}
  rules = ({"target": ".*_proj/kernel", "kind": "int8"},)
  with pytest.raises(ValueError, match="of a decoder, which this model is not"):
    calibration.quantize(model, params, rules, calibration.GPTQ(), BATCHES)


def test_what_cannot_be_calibrated_is_told(built):
  model, params = built
  if model.config.family != "llama":
    pytest.skip("the same for every family")
  method = calibration.GPTQ()
  few = [_batch(1, 8)]
  with pytest.raises(ValueError, match=r"has 2 tokens, and .* 32 inputs"):
    calibration.quantize(model, params, RULES, method, few)
  with pytest.raises(ValueError, match="no batches"):
    calibration.quantize(model, params, RULES, method, [])
  with pytest.raises(ValueError, match="GPTQ rounds to integers"):
    calibration.quantize(model, params, ({**RULES[0], "kind": "e4m3"},), method, BATCHES)


@pytest.mark.parametrize("method", ["gptq", "nearest"])
def test_layers_have_their_own_schemes(method):
  """Against a layer rounded by itself, behind one that is left as it is."""
  model, params = _built("llama")
  method = calibration.METHODS[method]()
  layers = quant.schemes(({**RULES[0], "target": "layers/1/mlp/.*"},), params)
  found = matrix.flatten(calibration.quantize(model, params, layers, method, BATCHES))
  walk = Walk(model, params, BATCHES)
  walk.advance(walk.params())
  layer = walk.params()
  seen = walk.moments(layer) if method.calibrated else {}
  own = {f"mlp/{name}_proj/kernel": Scheme("int3", group=16) for name in ("gate", "up", "down")}
  rounded = method(model.config, matrix.flatten(layer), own, seen)
  for path, leaf in tree.flatten(params).items():
    within = path.removeprefix("layers/")
    if within not in own:
      np.testing.assert_array_equal(found[path], leaf)
      continue
    assert found[path].schemes == (None, own[within])
    np.testing.assert_array_equal(found[path].each[0], leaf[0])
    jax.tree.map(np.testing.assert_array_equal, found[path].each[1], rounded[within])
