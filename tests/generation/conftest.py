"""A toy decoder whose most probable tokens are far from ties, and one that transformers has."""

import jax
import jax.numpy as jnp
import pytest
import torch
import transformers

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
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  # Weights five times as large: the most probable token stands out by far more than rounding.
  return model, {"params": jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params)}


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
  """`(theirs, (model, variables))`: a tiny random llama of transformers', and ours of its files."""
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=97,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
  )
  theirs = transformers.LlamaForCausalLM(config).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  directory = tmp_path_factory.mktemp("pair")
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  return theirs, (model, {"params": params})
