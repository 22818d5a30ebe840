"""A toy decoder whose most probable tokens are far from ties."""

import jax
import jax.numpy as jnp
import pytest

from research import models

LLAMA = {
  "model_type": "llama",
  "vocab_size": 300,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 512,
}


@pytest.fixture(scope="session")
def toy():
  """`(model, variables)` in float32."""
  model = models.build(LLAMA)
  params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  # Weights five times as large: the most probable token stands out by far more than rounding.
  return model, {"params": jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)}
