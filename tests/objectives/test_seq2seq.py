"""The objective of pairs against transformers' loss, packed as well."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models, objectives

LOSS = objectives.build({"name": "seq2seq", "chunk_tokens": 7})


def test_loss_is_transformers(tmp_path):
  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=37, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0
  )
  theirs = transformers.T5ForConditionalGeneration(config).eval()
  theirs.save_pretrained(tmp_path)
  model, params, _ = models.load(tmp_path)
  rng = np.random.default_rng(0)
  pairs = [(rng.integers(1, 37, s), rng.integers(1, 37, t)) for s, t in ((5, 4), (7, 3))]
  expected = []
  for source, labels in pairs:  # labels end with EOS; transformers shifts them
    with torch.no_grad():
      out = theirs(input_ids=torch.tensor(source[None]), labels=torch.tensor(labels[None]))
    expected.append(out.loss.item() * len(labels))
  # Both pairs in one row, with padding after them.
  ours = [np.concatenate([[0], labels]) for _, labels in pairs]
  tokens = np.concatenate([*ours, [0, 0]]).astype(np.int32)[None]
  segments = np.repeat([1, 2, 0], [5, 4, 2])[None]
  targets, weights = np.roll(tokens, -1, axis=1), (segments > 0).astype(np.float32)
  weights[0, [4, 8]] = 0
  batch = {
    "tokens": tokens,
    "targets": targets,
    "weights": weights,
    "segments": segments,
    "positions": np.zeros_like(tokens),
    "source_tokens": np.concatenate([*(s for s, _ in pairs), [0]]).astype(np.int32)[None],
    "source_segments": np.repeat([1, 2, 0], [5, 7, 1])[None],
    "source_positions": np.zeros((1, 13), np.int32),
  }
  total, weight, metrics = jax.jit(LOSS, static_argnums=0)(
    model, {"params": params}, batch, None, 0
  )
  assert weight == 7 and metrics["loss"] == (total, weight)
  np.testing.assert_allclose(total, sum(expected), rtol=1e-5)


def test_a_decoder_has_no_source():
  llama = {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8}
  model = models.build({**llama, "num_hidden_layers": 1, "num_attention_heads": 1})
  with pytest.raises(ValueError, match="trains encoder-decoders, not a llama, which has causal"):
    LOSS(model, {}, {"tokens": jnp.zeros((1, 1), jnp.int32)}, None, 0)
