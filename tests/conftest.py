"""What tests share."""

import os
from pathlib import Path

# Before JAX is imported anywhere: tests run on the CPU, whatever the machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402
import tokenizers  # noqa: E402

from research.data.tokenizer import Tokenizer  # noqa: E402
from research.models import named  # noqa: E402


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
  """The GGUF file of SmolLM2-135M-Instruct: a real pretrained model with its tokenizer."""
  try:
    return named.fetch("smollm2-135m-instruct")
  except RuntimeError as error:  # a machine without a network that never fetched it
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
  """A token a byte, `<bos>` and `<eos>` (256 and 257), and a chat template."""
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[])
  )
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(["<bos>", "<eos>"])
  template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
  return Tokenizer(backend, {"bos_token": "<bos>", "eos_token": "<eos>"}, (), template)
