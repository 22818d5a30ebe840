"""Evaluators of pairs against plain computations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft
from research.data import preferences
from research.evals import ReferenceKL
from research.evals.reward import Reward, calibration_error

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
ROWS = [
  {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " five, I think"},
  {"prompt": "a longer prompt", "chosen": " and a longer answer", "rejected": " no"},
  {"prompt": "x", "chosen": "yes.", "rejected": "yet"},
]


def test_calibration_error_is_how_far_confidence_is_from_being_right():
  # Sure to 0.75 and right in three of four: calibrated. Sure to 0.95 and half right: off by 0.45.
  margin = lambda p: np.log(p / (1 - p))  # noqa: E731
  calm, bold = margin(0.75), margin(0.951)
  assert calibration_error(np.array([calm, calm, calm, -calm])) == pytest.approx(0, abs=1e-12)
  assert calibration_error(np.array([bold, -bold])) == pytest.approx(0.451)
  both = np.array([calm, calm, calm, -calm, bold, -bold])
  assert calibration_error(both) == pytest.approx(0.451 * 2 / 6)


def test_kl_of_whole_distributions(tmp_path, byte_tokenizer):
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
  data = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "cache": str(tmp_path / "cache")}
  model = models.build(LLAMA, unroll=1)
  params = jax.tree.map(lambda x: x * 4, models.initialize(model, jax.random.key(0)))
  rules = [{"target": "layers/.*_proj/kernel|lm_head/kernel", "name": "lora", "rank": 2}]
  adapters = peft.attach(rules, params, jax.random.key(0))
  adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
  variables = {"params": params, "adapters": adapters}
  evaluator = ReferenceKL(data, length=48, batch_size=2)
  found = evaluator(model, variables, byte_tokenizer)

  logits = jax.jit(lambda values, tokens: model.apply(values, tokens))
  sums, counts = np.zeros((3, 2)), np.zeros((3, 2))
  gained, own = np.zeros((3, 2)), np.zeros((3, 2))
  for i, row in enumerate(ROWS):
    pair = preferences.tokenize_pair(row, byte_tokenizer)
    for j, one in enumerate((pair, pair.rival)):
      tokens = np.zeros((1, 48), np.int32)
      tokens[0, : len(one)] = one.tokens
      ours, theirs = (
        jax.nn.log_softmax(logits(values, jnp.asarray(tokens)))[0]
        for values in (variables, {"params": params})
      )
      each = jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)
      first = preferences.prompt_length(one) - 1
      sums[i, j], counts[i, j] = each[first : len(one) - 1].sum(), len(one) - 1 - first
      for t in range(first, len(one) - 1):
        own[i, j] += ours[t, one.tokens[t + 1]]
        gained[i, j] += ours[t, one.tokens[t + 1]] - theirs[t, one.tokens[t + 1]]
  np.testing.assert_allclose(found.metrics["kl"], sums.sum() / counts.sum(), rtol=1e-3)
  np.testing.assert_allclose(
    found.metrics["kl_chosen"], sums[:, 0].sum() / counts[:, 0].sum(), rtol=1e-3
  )
  assert found.metrics["tokens"] == counts.sum()
  margins, per_token = gained[:, 0] - gained[:, 1], own / counts
  np.testing.assert_allclose(found.metrics["margin"], margins.mean(), rtol=1e-3)
  assert found.metrics["accuracy"] == np.mean(margins > 0)
  assert found.metrics["accuracy_per_token"] == np.mean(per_token[:, 0] > per_token[:, 1])
  with pytest.raises(ValueError, match="without adapters, and it has none"):
    evaluator(model, {"params": params}, byte_tokenizer)
  with pytest.raises(ValueError, match="config.model.head"):
    Reward(data)(model, variables, byte_tokenizer)


def test_a_row_that_is_no_pair_is_named(tmp_path, byte_tokenizer):
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [ROWS[0], {"prompt": "a"}])))
  data = {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "cache": str(tmp_path / "cache")}
  model = models.build(LLAMA)
  with pytest.raises(ValueError, match="reference_kl: .*rows.jsonl row 1 is .* no 'chosen'"):
    ReferenceKL(data)(model, {"params": {}, "adapters": {"x": 0}}, byte_tokenizer)
