"""Position schemes of any decoder: ALiBi against transformers' MPT, sinusoids against a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models
from research.core import tree
from research.generation import generate

LENGTH, WIDTH, HEADS = 14, 36, 6
SHAPE = {
  "model_type": "plain_decoder",
  "vocab_size": 53,
  "num_layers": 2,
  "hidden_size": WIDTH,
  "mlp_size": 4 * WIDTH,
  "num_heads": HEADS,
  "max_positions": 32,
  "norm": "layer",
  "norm_eps": 1e-5,
  "activation": "gelu",
  "gated_mlp": False,
}
TOKENS = np.random.default_rng(0).integers(0, 53, (2, LENGTH)).astype(np.int32)


@pytest.fixture(scope="module")
def mpt():
  """`(theirs, ours, params)`: an MPT whose heads are no power of two, and ours with its weights."""
  torch.manual_seed(0)
  config = transformers.MptConfig(
    vocab_size=53, d_model=WIDTH, n_heads=HEADS, n_layers=2, max_seq_len=32
  )
  theirs = transformers.MptForCausalLM(config).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  model = models.build({**SHAPE, "positions": "alibi"}, unroll=1)
  state = {name: value.numpy() for name, value in theirs.state_dict().items()}
  flat = {}
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
  names = {"attention_norm": "norm_1", "mlp_norm": "norm_2", "attention/o_proj": "attn.out_proj"}
  names |= {f"mlp/{name}_proj": f"ffn.{name}_proj" for name in ("up", "down")}
  for path, leaf in tree.flatten(shapes).items():
    module, _, kind = path.removeprefix("layers/").rpartition("/")
    if kind == "bias":  # of norms; MPT's have none
      flat[path] = np.zeros(leaf.shape, np.float32)
    elif path.startswith("layers/"):
      layers = []
      for i in range(2):
        if module[-6:] in ("q_proj", "k_proj", "v_proj"):
          at = "qkv".index(module[-6]) * WIDTH
          value = state[f"transformer.blocks.{i}.attn.Wqkv.weight"][at : at + WIDTH]
        else:
          value = state[f"transformer.blocks.{i}.{names[module]}.weight"]
        layers.append(value.T)
      flat[path] = np.stack(layers)
    else:
      flat[path] = state[
        {"embed": "transformer.wte.weight"}.get(module, "transformer.norm_f.weight")
      ]
  return theirs, model, tree.unflatten(flat)


def _reference(theirs, tokens):
  with torch.no_grad():
    return theirs(torch.tensor(tokens.astype(np.int64))).logits.numpy()


def test_alibi_is_mpts(mpt):
  theirs, model, params = mpt
  ours = jax.jit(model.apply)({"params": params}, TOKENS)
  np.testing.assert_allclose(ours, _reference(theirs, TOKENS), atol=1e-4)


def test_alibi_of_packed_documents_and_through_the_cache(mpt):
  theirs, model, params = mpt
  segments = np.repeat([1, 2], [5, LENGTH - 5])[None]
  positions = np.concatenate([np.arange(5), np.arange(LENGTH - 5)])[None]
  ours = jax.jit(model.apply)({"params": params}, TOKENS[:1], positions, segments)
  for part in (slice(0, 5), slice(5, None)):
    want = _reference(theirs, TOKENS[:1, part])
    np.testing.assert_allclose(ours[:, part], want, atol=1e-4)
  step = jax.jit(lambda t, p, c: model.apply({"params": params}, t, p, cache=c))
  cache = model.init_cache(1, LENGTH + 4)
  padded = np.concatenate([[[0] * 3], TOKENS[:1]], axis=1).astype(np.int32)
  places = np.arange(-3, LENGTH)[None].clip(-1)
  found = []
  for i in range(LENGTH + 3):
    logits, cache = step(padded[:, i : i + 1], places[:, i : i + 1], cache)
    found.append(logits)
  found = np.concatenate(found[3:], axis=1)
  np.testing.assert_allclose(found, _reference(theirs, TOKENS[:1]), atol=1e-4)


def test_alibi_in_generation(mpt):
  """Layer by layer and query by query; prompts of unequal lengths."""
  theirs, model, params = mpt
  prompts = [TOKENS[0, :7].tolist(), TOKENS[1, :4].tolist()]
  found = generate(model, {"params": params}, prompts, max_new_tokens=5, eos_ids=(), unrolled=True)
  for prompt, completion in zip(prompts, found, strict=True):
    logits = _reference(theirs, np.array([prompt + completion.tokens]))[0]
    assert completion.tokens == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_sinusoids_are_a_table_that_nobody_learns(tmp_path):
  learned = models.build({**SHAPE, "positions": "learned"}, unroll=1)
  params = jax.jit(learned.init)(jax.random.key(0), TOKENS)["params"]
  i = np.arange(WIDTH) // 2 * 2
  angles = np.arange(32)[:, None] / 10_000 ** (i / WIDTH)
  table = np.where(np.arange(WIDTH) % 2 == 0, np.sin(angles), np.cos(angles))
  params["positions"] = {"embedding": jnp.asarray(table, jnp.float32)}
  ours = learned.clone(config=dataclasses.replace(learned.config, positions="sinusoidal"))
  others = {name: part for name, part in params.items() if name != "positions"}
  want = learned.apply({"params": params}, TOKENS)
  np.testing.assert_allclose(ours.apply({"params": others}, TOKENS), want, atol=1e-5)
  models.save(tmp_path, ours, others)
  again, back, _ = models.load(tmp_path)
  assert again.config == ours.config
  jax.tree.map(np.testing.assert_array_equal, others, back)


def test_what_cannot_be():
  with pytest.raises(ValueError, match="did you mean 'sinusoidal'"):
    models.build({**SHAPE, "positions": "sinusoid"})
  with pytest.raises(ValueError, match="a model with rope has no alibi positions"):
    models.build({**SHAPE, "positions": "alibi", "rope": {"theta": 1e4}})
  with pytest.raises(ValueError, match="has no 'num_head'; did you mean 'num_heads'"):
    models.build({**SHAPE, "num_head": 3})
  with pytest.raises(ValueError, match="lacks 'mlp_size'"):
    models.build({key: SHAPE[key] for key in SHAPE if key != "mlp_size"})
