"""What tests share."""

import os
from pathlib import Path

# Before JAX is imported anywhere: tests run on the CPU, whatever the machine has.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402

from research.models import named  # noqa: E402


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
  """The GGUF file of SmolLM2-135M-Instruct: a real pretrained model with its tokenizer."""
  try:
    return named.fetch("smollm2-135m-instruct")
  except RuntimeError as error:  # a machine without a network that never fetched it
    pytest.skip(str(error))
