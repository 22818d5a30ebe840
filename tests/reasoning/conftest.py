"""A toy decoder that writes, problems, and a reader of its letters."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from research import generation, models, reasoning

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
  "max_position_embeddings": 512,
  "tie_word_embeddings": True,
}


@dataclasses.dataclass(frozen=True)
class FirstLetter:
  """Reads the first letter of a text, in whatever case; a text without one says nothing."""

  def read(self, text):
    return next((letter.lower() for letter in text if letter.isalpha()), None)

  def show(self, value):
    return value


@pytest.fixture(scope="session")
def reader():
  return FirstLetter()


@pytest.fixture(scope="session")
def toy():
  """`(model, variables)` in float32, whose tokens differ by what is before them."""
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  return model, {"params": jax.tree.map(lambda x: x * 12 if x.ndim > 1 else x, params)}


@pytest.fixture(scope="session")
def session(toy, byte_tokenizer):
  """`session(**settings)` at temperature 1."""

  def make(**settings):
    settings = {"sampler": generation.Sampler(temperature=1.0), "max_new_tokens": 8} | settings
    return reasoning.Session(*toy, byte_tokenizer, **settings)

  return make


@pytest.fixture(scope="session")
def asks():
  """Three problems of different lengths, the second of messages."""
  problems = ["one", [{"role": "user", "content": "two and more"}], "three, the longest of all"]
  return reasoning.PROMPTS["plain"]()(problems)
