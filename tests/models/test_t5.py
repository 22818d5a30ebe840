"""T5 1.0 and 1.1 against `transformers`, float32, tiny and random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models, peft
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


@pytest.fixture(scope="module", params=MAKERS)
def pair(request, tmp_path_factory):
  theirs = MAKERS[request.param]()
  directory = tmp_path_factory.mktemp("t5")
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  return theirs, model, params, jax.jit(model.apply), directory


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
