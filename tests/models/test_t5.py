"""T5 1.0 and 1.1 against `transformers`, float32, tiny and random."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel

from research import models, peft
from research.core import tree
from research.io import safetensors
from research.models import families

VOCAB, SOURCE, TARGET = 61, 21, 13


def _t5(**changes):
  config = transformers.T5Config(
    vocab_size=VOCAB,
    d_model=32,
    d_kv=12,
    d_ff=48,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    decoder_start_token_id=0,
    **changes,
  )
  theirs = transformers.T5ForConditionalGeneration(config).eval()
  if not config.scale_decoder_outputs:  # transformers ties what version 1.1 has apart
    theirs.lm_head.weight = torch.nn.Parameter(torch.empty_like(theirs.shared.weight))
  torch.manual_seed(0)
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  return theirs


MAKERS = {
  "1.0": _t5,
  "1.1": lambda: _t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def _pair(name, directory):
  theirs = MAKERS[name]()
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory, unroll=1)
  return theirs, model, params, jax.jit(model.apply), directory


@pytest.fixture(scope="module", params=MAKERS)
def pair(request, tmp_path_factory):
  return _pair(request.param, tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
  return _pair("1.1", tmp_path_factory.mktemp("gated"))


def _rows(seed=0):
  """Sources and targets, the second pair of them shorter, as tokens and what of them is real."""
  rng = np.random.default_rng(seed)
  source = rng.integers(1, VOCAB, (2, SOURCE)).astype(np.int32)
  target = rng.integers(1, VOCAB, (2, TARGET)).astype(np.int32)
  target[:, 0] = 0
  real_source, real_target = np.ones_like(source), np.ones_like(target)
  real_source[1, 15:] = 0
  real_target[1, 9:] = 0
  return source, target, real_source, real_target


def _reference(theirs, source, target, real_source, real_target):
  def long(x):
    return torch.tensor(x.astype(np.int64))

  return theirs(
    input_ids=long(source),
    attention_mask=long(real_source),
    decoder_input_ids=long(target),
    decoder_attention_mask=long(real_target),
  ).logits


def test_logits_agree_with_padding_on_both_sides(pair):
  theirs, _, params, apply, _ = pair
  source, target, real_source, real_target = rows = _rows()
  ours = apply(
    {"params": params},
    target,
    segments=real_target,
    source_tokens=source,
    source_segments=real_source,
  )
  want = _reference(theirs, *rows).detach().numpy()
  np.testing.assert_allclose(ours[real_target == 1], want[real_target == 1], atol=1e-4)


def test_packed_pairs_do_not_see_each_other(pair):
  theirs, _, params, apply, _ = pair
  source, target, *_ = _rows()
  source_segments = np.broadcast_to(np.repeat([1, 2, 0], [9, 10, 2]), source.shape)
  segments = np.broadcast_to(np.repeat([1, 2, 0], [5, 6, 2]), target.shape)
  ours = apply(
    {"params": params},
    target,
    segments=segments,
    source_tokens=source,
    source_segments=source_segments,
  )
  for at, of in ((slice(0, 5), slice(0, 9)), (slice(5, 11), slice(9, 19))):
    alone = target[:, at], np.ones_like(target[:, at])
    want = _reference(theirs, source[:, of], alone[0], np.ones_like(source[:, of]), alone[1])
    np.testing.assert_allclose(ours[:, at], want.detach().numpy(), atol=1e-4)


def test_token_by_token_through_the_cache(pair):
  theirs, model, params, _, _ = pair
  source, target, real_source, real_target = _rows()
  real_target[:] = 1
  # Padding of the source on the left, as generation has it: places differ as they did.
  turned = np.stack([np.roll(row, SOURCE - n) for row, n in zip(source, (21, 15), strict=True)])
  real = np.sort(real_source, axis=1)
  step = jax.jit(lambda t, c, **s: model.apply({"params": params}, t, cache=c, **s))
  cache = model.init_cache(2, TARGET + 3, source_slots=SOURCE)
  logits, cache = step(target[:, :2], cache, source_tokens=turned, source_segments=real)
  found = [logits]
  for i in range(2, TARGET):
    logits, cache = step(target[:, i : i + 1], cache)
    found.append(logits)
  want = _reference(theirs, source, target, real_source, real_target).detach().numpy()
  np.testing.assert_allclose(np.concatenate(found, axis=1), want, atol=1e-4)


def test_gradients_agree(pair):
  """Of everything, tables of relative positions among it, with each layer recomputed or not."""
  theirs, model, params, _, directory = pair
  source, target, real_source, real_target = rows = _rows()
  theirs.zero_grad()
  (_reference(theirs, *rows)[torch.tensor(real_target) == 1] ** 2).mean().backward()
  named = {n: p.grad.numpy() for n, p in theirs.named_parameters()}

  def loss(model, params):
    logits = model.apply(
      {"params": params},
      target,
      segments=real_target,
      source_tokens=source,
      source_segments=real_source,
    )
    return jnp.sum(logits**2 * real_target[..., None]) / (real_target.sum() * VOCAB)

  gradients = jax.jit(jax.grad(loss, 1), static_argnums=0)(model.clone(remat="attention"), params)
  models.save(directory / "grads", model, gradients)
  ours = safetensors.read(directory / "grads")
  assert set(named) == set(ours)
  assert "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" in ours
  for name, gradient in named.items():
    np.testing.assert_allclose(ours[name], gradient, rtol=1e-3, atol=1e-4, err_msg=name)


def test_saved_directory_is_loaded_by_transformers(pair, tmp_path):
  theirs, model, params, _, _ = pair
  models.save(tmp_path, model, params)
  again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
  rows = _rows()
  with torch.no_grad():
    np.testing.assert_array_equal(_reference(again, *rows), _reference(theirs, *rows))
  loaded, back, _ = models.load(tmp_path)
  assert loaded.config == model.config
  jax.tree.map(np.testing.assert_array_equal, params, back)


def test_adapters_of_both_sides_are_pefts(gated, tmp_path):
  theirs, model, params, _, _ = gated
  rule = {"target": ".*(cross_attention/[kv]_proj|q_proj|mlp/.*)/kernel", "name": "lora", "rank": 2}
  rules = [{**rule, "rank_pattern": {"decoder/layers/1/.*": 1}}]
  adapters = peft.attach(rules, params, jax.random.key(0))
  # What makes up for a lower rank stays 0.
  adapters = jax.tree.map(lambda x: jnp.where(x == 0, 0, x + 0.1), adapters)
  adapters = tree.map_with_path(
    lambda path, x: x + 0.1 * (jnp.arange(x.shape[1]) < 1)[:, None] if path.endswith("/b") else x,
    adapters,
  )
  source, target, real_source, real_target = rows = _rows()

  @jax.jit
  def apply(params, adapters):
    return model.apply(
      {"params": params, "adapters": adapters},
      target,
      segments=real_target,
      source_tokens=source,
      source_segments=real_source,
    )

  ours = apply(params, adapters)
  peft.save(tmp_path, adapters, families.find("t5").modules(model.config))
  adapted = PeftModel.from_pretrained(copy.deepcopy(theirs), tmp_path).eval()
  with torch.no_grad():
    want = _reference(adapted, *rows).numpy()
  assert np.abs(want - _reference(theirs, *rows).detach().numpy()).max() > 0.02
  np.testing.assert_allclose(ours[real_target == 1], want[real_target == 1], atol=1e-4)


def test_what_cannot_be(gated):
  theirs, model, params, _, _ = gated
  token = np.zeros((1, 1), np.int32)
  with pytest.raises(ValueError, match="needs source_tokens"):
    model.apply({"params": params}, token)
  config = theirs.config.to_dict()
  with pytest.raises(ValueError, match="only an activation, or 'gated-' and an activation"):
    models.build(config | {"feed_forward_proj": "twice-relu"})
