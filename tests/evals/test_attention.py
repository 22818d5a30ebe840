"""Entropy of attention against whole maps, and in closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import peft
from research.evals import build, compare
from research.models import watch
from research.models.decoder import Decoder

TEXT = "The quick brown fox jumps over the lazy dog; " * 3


@pytest.fixture(scope="module")
def section(tmp_path_factory):
  root = tmp_path_factory.mktemp("attention")
  (root / "text.txt").write_text(TEXT)
  data = {"name": "text", "path": str(root / "text.txt"), "cache": str(root / "cache")}
  return {"name": "attention", "data": data, "length": 48, "batch_size": 2}


def silenced(variables):
  """Queries that are all 0: attention knows no content."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf * 0 if any("q_proj" in str(key) for key in path) else leaf, variables
  )


def test_against_whole_maps(section, model, variables, tokenizer):
  model = Decoder(
    dataclasses.replace(model.config, attention_softcap=2.0, windows=(0, 8), num_kv_heads=1)
  )
  result = build([section])[0](model, variables, tokenizer)
  tokens = np.array([tokenizer.bos_id, *tokenizer.encode(TEXT, add_special=False)])
  sums, count = np.zeros((2, 2, 3)), 0
  # Windows of 48 that follow each other; the last one reaches back, and its new queries count.
  for start, first in ((0, 0), (48, 48), (len(tokens) - 49, 96)):
    row = jnp.asarray(tokens[None, start : start + 48])
    batch = {"tokens": row, "positions": jnp.arange(48)[None], "segments": row * 0 + 1}
    watched = watch.watch(model, variables, batch, hidden=False, attention=True)
    new = slice(max(first - start, 1), 48)  # the first query of a row sees itself alone
    count += new.stop - new.start
    for layer in range(2):
      scores, mask = watched.scores(layer)
      p = np.where(mask[:, None], np.exp(np.asarray(scores, np.float64)), 0)
      p = (p / p.sum(axis=-1, keepdims=True))[0, :, new]  # [H, queries, T]
      entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
      share = entropy / np.log(np.asarray(mask)[0, new].sum(axis=-1))
      sums[layer] += np.stack([entropy, share, p[..., 0]], axis=-1).sum(axis=1)
  table = result.tables["heads"]
  names = ("entropy", "relative_entropy", "first_token")
  found = np.array([[row[name] for name in names] for row in table]).reshape(2, 2, 3)
  np.testing.assert_allclose(found, sums / count, rtol=1e-4)
  assert [(row["layer"], row["head"]) for row in table] == [(0, 0), (0, 1), (1, 0), (1, 1)]
  assert result.metrics["tokens"] == count and result.metrics["heads"] == 4
  for i, name in enumerate(names):
    assert result.metrics[name] == pytest.approx(sums[..., i].mean() / count, rel=1e-4)
    total = sum(record[name] for record in result.records)
    assert total / sum(r["tokens"] for r in result.records) == pytest.approx(result.metrics[name])
    low, high = result.intervals[name]
    assert low < result.metrics[name] < high
  # Thresholds between the heads' figures name one of them.
  shares = np.sort(found[..., 1].ravel())
  limits = {"single": float(shares[:2].mean()), "uniform": float(shares[2:].mean())}
  collapsed = build([{**section, **limits}])[0](model, variables, tokenizer)
  assert collapsed.metrics["uniform_heads"] == collapsed.metrics["single_heads"] == 1
  layer, head = divmod(int(found[..., 1].argmin()), 2)
  assert collapsed.samples[1] == f"attention: single heads, as LAYER.HEAD: {layer}.{head}"


def test_queries_of_zero_attend_by_distance_alone(section, model, variables, tokenizer):
  plain = build([{**section, "length": 96}])[0](model, silenced(variables), tokenizer)
  assert plain.metrics["relative_entropy"] == pytest.approx(1, abs=1e-5)
  assert plain.metrics["uniform_heads"] == 4
  config = dataclasses.replace(model.config, rope=None, positions="alibi")
  biased = build([{**section, "length": 96}])[0](Decoder(config), silenced(variables), tokenizer)
  seen = np.arange(96)
  tokens = len(TEXT) + 1
  entropies = []
  for slope in (2**-4, 2**-8):  # ALiBi's of two heads
    of_place = []
    for place in (*seen[1:], *seen[96 - (tokens - 1 - 96) :]):  # the last window reaches back
      p = np.exp(-slope * seen[: place + 1])
      p /= p.sum()
      of_place.append(-(p * np.log(p)).sum())
    entropies.append(np.mean(of_place))
  found = [row["entropy"] for row in biased.tables["heads"]]
  assert found == pytest.approx(entropies * 2, rel=1e-4)


def test_the_same_queries_count_behind_virtual_tokens(section, model, variables, tokenizer):
  """Those of the plain model: with and without an adapter's tokens windows compare."""
  plain = build([section])[0](model, variables, tokenizer)
  rules = [{"name": "prompt", "tokens": 3}]
  adapters = peft.attach(rules, variables["params"], jax.random.key(0))
  led = build([section])[0](model, {**variables, "adapters": adapters}, tokenizer)
  assert [r["tokens"] for r in led.records] == [r["tokens"] for r in plain.records]
  assert {d.metric for d in compare(led, plain)} == set(plain.means)


def test_of_a_model_that_gives_a_score(section, model, variables, tokenizer):
  """Attention has no need of a next token; what judges one refuses such a model."""
  scoring = Decoder(dataclasses.replace(model.config, head="score"))
  found = build([section])[0](scoring, variables, tokenizer)  # whose parameters have no score
  assert found.metrics == build([section])[0](model, variables, tokenizer).metrics
  data = section["data"]
  for other in (
    {"name": "perplexity"},
    {"name": "token_calibration"},
    {"name": "lengths", "lengths": (16, 32), "last": 8},
  ):
    with pytest.raises(ValueError, match=f"{other['name']} is for models that write"):
      build([{**other, "data": data}])[0](scoring, variables, tokenizer)


def test_errors(section, model, variables, tokenizer):
  with pytest.raises(ValueError, match="are shares, the first less"):
    build([{**section, "uniform": 0.0}])
  adapters = peft.attach([{"name": "prefix", "tokens": 2}], variables["params"], jax.random.key(0))
  prefixed = {"params": variables["params"], "adapters": adapters}
  with pytest.raises(ValueError, match="attention is read without a prefix"):
    build([section])[0](model, prefixed, tokenizer)
