"""The work that each benchmark asks of every side: one source of shapes, tokens and rows.

Imports only the standard library and NumPy, which every peer's environment has.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

LORA_RANK = 16
LORA_ALPHA = 32
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE = 1e-4
MAX_GRADIENT_NORM = 1.0

STEP_BATCH, STEP_TOKENS = 4, 256
SFT_BATCH = 8
PROMPT_TOKENS, NEW_TOKENS = 64, 128

# SmolLM2 keeps ids 0-16 for special tokens, none of which belongs inside a text.
FIRST_ORDINARY_ID, VOCABULARY = 17, 49152


def random_tokens(batch: int, length: int) -> np.ndarray:
  """Ordinary token ids `[batch, length]`, int32, the same on every call and on every side."""
  generator = np.random.default_rng(0)
  return generator.integers(FIRST_ORDINARY_ID, VOCABULARY, (batch, length), dtype=np.int32)


def startup_rows() -> list[dict[str, str]]:
  """A few rows to start training on, where what they say does not matter."""
  return [
    {"prompt": f"Count on from {n}.", "completion": " ".join(map(str, range(n + 1, n + 40)))}
    for n in range(64)
  ]


def gsm8k_count(steps: int) -> int:
  """How many problems a run of so many steps of supervised fine-tuning gets."""
  return steps * SFT_BATCH


def gsm8k_rows(path: Path, count: int) -> list[dict[str, list[dict[str, str]]]]:
  """The first `count` problems as chat rows with the columns `prompt` and `completion`."""
  lines = path.read_text(encoding="utf-8").splitlines()
  if len(lines) < count:
    raise ValueError(f"{path} has {len(lines)} rows, but the benchmark needs {count}: fewer steps?")
  rows = [json.loads(line) for line in lines[:count]]
  return [
    {
      "prompt": [{"role": "user", "content": row["question"]}],
      "completion": [{"role": "assistant", "content": row["answer"]}],
    }
    for row in rows
  ]
