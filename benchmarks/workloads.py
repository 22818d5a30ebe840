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
FORWARD_BATCH, FORWARD_TOKENS = 4, 512
SFT_BATCH = 8
PAIRS, PAIR_PROMPT_TOKENS, BETA = 4, 128, 0.1  # of preferences; rows have STEP_TOKENS
VIRTUAL_TOKENS = 20  # of a prompt or prefix
STUDENT_LAYERS, KEPT_TOKENS = 15, 64  # of a distillation, and what is kept of its teacher's logits
PROMPT_TOKENS, NEW_TOKENS = 64, 128

# MiniLM: texts of log-uniform lengths in words, and the tokens of a training step.
TEXTS, TEXT_WORDS, ENCODER_BATCH, ENCODER_TOKENS = 256, (8, 120), 32, 128
# In every layer: query, key, value, and the outputs of attention and of the feed-forward's parts.
ENCODER_MODULES = ("query", "key", "value", "output.dense", "intermediate.dense")

# A queue of requests: prompts and completions of unequal lengths, each drawn log-uniformly.
QUEUE_REQUESTS, QUEUE_ROWS = 96, 16
QUEUE_PROMPT_TOKENS, QUEUE_NEW_TOKENS = (8, 128), (8, 256)
CHOICE_ITEMS = 100
_WORDS = "the of a man woman then takes puts on water and in up down his her to with it is"

# Speculation: the model without four layers of its middle, which foresees two tokens of three of
# this answer (0.67 accepted in a run; 0.74 agree where it reads the model's own text).
DRAFTED_PROMPT = "Count from 1 to 60, with a comma after each number."
DRAFT_LAYERS, DRAFT_TOKENS = (*range(16), *range(20, 30)), 1

# SmolLM2 keeps ids 0-16 for special tokens, none of which belongs inside a text.
FIRST_ORDINARY_ID, VOCABULARY = 17, 49152


def random_tokens(batch: int, length: int) -> np.ndarray:
  """Ordinary token ids `[batch, length]`, int32, the same on every call and on every side."""
  generator = np.random.default_rng(0)
  return generator.integers(FIRST_ORDINARY_ID, VOCABULARY, (batch, length), dtype=np.int32)


def pairs() -> np.ndarray:
  """Token ids of pairs, `[8, 256]`: a chosen row and a rejected one, which begin alike, of each."""
  tokens = random_tokens(2 * PAIRS, STEP_TOKENS)
  tokens[1::2, :PAIR_PROMPT_TOKENS] = tokens[::2, :PAIR_PROMPT_TOKENS]
  return tokens


def encoder_rows() -> tuple[np.ndarray, np.ndarray]:
  """Ordinary token ids of MiniLM `[32, 128]` and classes 0 and 1 `[32]`, int32."""
  generator = np.random.default_rng(0)
  # BERT's vocabulary keeps ids below 1,000 for what is special or unused.
  tokens = generator.integers(1000, 30522, (ENCODER_BATCH, ENCODER_TOKENS), dtype=np.int32)
  return tokens, np.arange(ENCODER_BATCH, dtype=np.int32) % 2


def texts() -> list[str]:
  """Texts of unequal lengths, the same on every call and on every side."""
  generator = np.random.default_rng(0)
  words = _WORDS.split()
  return [
    " ".join(generator.choice(words, length)) for length in _lengths(generator, TEXT_WORDS, TEXTS)
  ]


def queue() -> list[tuple[list[int], int]]:
  """Prompts and the new tokens that each wants, the same on every call and on every side."""
  generator = np.random.default_rng(0)
  prompts = _lengths(generator, QUEUE_PROMPT_TOKENS, QUEUE_REQUESTS)
  wanted = _lengths(generator, QUEUE_NEW_TOKENS, QUEUE_REQUESTS)
  return [
    (generator.integers(FIRST_ORDINARY_ID, VOCABULARY, length).tolist(), new)
    for length, new in zip(prompts, wanted, strict=True)
  ]


def _lengths(generator: np.random.Generator, bounds: tuple[int, int], count: int) -> list[int]:
  """Log-uniform within `bounds`."""
  return np.exp(generator.uniform(*np.log(bounds), count)).astype(int).tolist()


def choice_task(directory: Path) -> str:
  """Writes a multiple-choice task for lm-evaluation-harness; the path of its file.

  A context of 30 to 70 words and four endings of 10 to 35, about as HellaSwag's are.
  """
  generator = np.random.default_rng(0)

  def text(least: int, most: int) -> str:
    return " ".join(generator.choice(_WORDS.split(), generator.integers(least, most)))

  rows = [
    {"context": text(30, 70), "endings": [text(10, 35) for _ in range(4)], "label": n % 4}
    for n in range(CHOICE_ITEMS)
  ]
  data = directory / "choices.jsonl"
  data.write_text("".join(json.dumps(row) + "\n" for row in rows))
  task = {
    "task": "choices",
    "dataset_path": "json",
    "dataset_kwargs": {
      "data_files": {"validation": str(data)},
      "cache_dir": str(directory / "cache"),
    },
    "validation_split": "validation",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "{{endings}}",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
  }
  file = directory / "choices.yaml"
  file.write_text(json.dumps(task))  # JSON is YAML
  return str(file)


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
