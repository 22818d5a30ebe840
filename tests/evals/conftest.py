"""A model and a tokenizer that cost nothing."""

import json

import jax
import jax.numpy as jnp
import pytest
import tokenizers

from research import generation
from research.data.tokenizer import Tokenizer
from research.evals import pairs
from research.models.config import DecoderConfig
from research.models.decoder import Decoder
from research.nn.positions import Rope


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
  """A token a byte, BOS, EOS, and a chat template of roles in brackets."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(["<bos>", "<eos>"])
  template = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
  )
  return Tokenizer(backend, {"bos_token": "<bos>", "eos_token": "<eos>"}, (), template)


@pytest.fixture(scope="session")
def model(tokenizer) -> Decoder:
  """Two layers and 96 positions, in float32."""
  config = DecoderConfig(
    family="llama",
    vocab_size=tokenizer.vocab_size,
    num_layers=2,
    hidden_size=16,
    mlp_size=32,
    num_heads=2,
    num_kv_heads=1,
    head_size=8,
    max_positions=96,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated_mlp=True,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    tied_head=True,
    rope=Rope(),
  )
  return Decoder(config)


@pytest.fixture(scope="session")
def variables(model):
  """Parameters large enough that positions and context matter."""
  drawn = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  return jax.tree.map(lambda leaf: leaf * (1 if leaf.ndim < 2 else 12), drawn)


@pytest.fixture
def writing(tmp_path, monkeypatch, tokenizer):
  """`(texts, references) -> config of a source`, of whose pairs a model writes these texts.

  The first of them is cut off.
  """

  def arranged(texts, references):
    rows = [{"prompt": text, "completion": text} for text in references]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def write(model, variables, prompts, *, eos_ids, **_):
      return [
        generation.Completion(i, 0, tokenizer.encode(text) + [*eos_ids][:i], [], i > 0)
        for i, text in enumerate(texts)
      ]

    monkeypatch.setattr(pairs.generation, "generate", write)
    path, cache = tmp_path / "rows.jsonl", tmp_path / "cache"
    return {"name": "jsonl", "path": str(path), "cache": str(cache)}

  return arranged
