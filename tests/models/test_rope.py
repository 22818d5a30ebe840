"""Rotary settings against `transformers`: frequencies, what multiplies them, and their spelling."""

import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from research.models.families import rope

HEAD, POSITIONS = 16, 64
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.5, 3.0, 9.0, 20.0]}
CASES = {
  "linear": {"rope_type": "linear", "factor": 4.0},
  "dynamic": {"rope_type": "dynamic", "factor": 4.0},
  "llama3": {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
  },
  "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
  "yarn, told in full": {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "truncate": False,
    "mscale": 0.7,
    "mscale_all_dim": 0.4,
  },
  "yarn, told its attention": {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.3,
  },
  "longrope": {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 16,
    **FACTORS,
  },
}


@pytest.mark.parametrize("length", [10, 40, 100])
@pytest.mark.parametrize("name", CASES)
def test_frequencies_agree(name, length):
  found = {"rope_theta": 500.0, **CASES[name]}
  config = transformers.LlamaConfig(
    hidden_size=4 * HEAD,
    num_attention_heads=4,
    max_position_embeddings=POSITIONS,
    rope_parameters=dict(found),
  )
  theirs, magnitude = ROPE_INIT_FUNCTIONS[found["rope_type"]](config, torch.device("cpu"), length)
  ours = rope.read(found, POSITIONS)
  frequencies = np.broadcast_to(ours.frequencies(HEAD, np.array([[length]])), (1, 1, len(theirs)))
  np.testing.assert_allclose(frequencies[0, 0], theirs.numpy(), rtol=2e-6)
  np.testing.assert_allclose(ours.magnitude, magnitude, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_written_and_read_is_the_same(name):
  ours = rope.read({"rope_theta": 500.0, **CASES[name]}, POSITIONS)
  assert rope.read(rope.write(ours), POSITIONS) == ours


def test_longrope_of_another_size():
  with pytest.raises(ValueError, match="4 short and 4 long factors; .* 16 features turn need 8"):
    rope.read({"rope_type": "longrope", **FACTORS}, 64).frequencies(HEAD, np.array([[3]]))
