"""How well a model predicts each row: a column that a later step, or a curriculum, goes by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from research.curation import checkpoint
from research.curation.step import Ledger, Rows, Step

_BATCHES = 8  # that are judged between two writings


@dataclasses.dataclass(frozen=True)
class Perplexity(Step):
  """Adds a column, the exponential of the mean nats that a token of the row's text takes.

  No row goes: `column` takes them by what this step finds. After an interruption it goes on behind
  the rows that are done.

  model: see `checkpoint.find`; a decoder.
  length: tokens of a text that are read at most, from its first, after BOS (or EOS, or its first
    token, where there is no such).
  batch_size: texts at a time. dtype: of parameters and activations.
  column: its name.
  """

  model: str
  length: int = 512
  batch_size: int = 8
  dtype: str = "bfloat16"
  column: str = "perplexity"

  def __post_init__(self) -> None:
    if self.length < 1 or self.batch_size < 1:
      raise ValueError(
        f"perplexity has a length and a batch_size of at least 1, not {self.length} and"
        f" {self.batch_size}"
      )

  def reads(self) -> Any:
    return checkpoint.digests(checkpoint.find(self.model))

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    ledger.columns[self.column] = ledger.numbers(
      "perplexities", lambda done: self._judge(rows, done)
    )

  def _judge(self, rows: Rows, done: int) -> Iterator[np.ndarray]:
    """What the rows from `done` on take, some at a time."""
    import jax.numpy as jnp  # JAX takes a second or two to import.

    from research import generation, models

    model, params, tokenizer = models.load(checkpoint.find(self.model), dtype=jnp.dtype(self.dtype))
    if tokenizer is None:
      raise ValueError(f"{self.model} has no tokenizer")
    bos = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    begin = [*bos, *tokenizer.eos_ids][:1]
    waiting: list[list[int]] = []
    for position in rows.positions("perplexity"):
      if position < done:
        continue
      waiting.append(self._tokens(rows, position, tokenizer, begin))
      if len(waiting) == _BATCHES * self.batch_size or position == len(rows) - 1:
        nats = generation.score(
          model,
          {"params": params},
          [tokens[:1] for tokens in waiting],
          [tokens[1:] for tokens in waiting],
          pad_id=tokenizer.pad_id or 0,
          batch_size=self.batch_size,
        )
        yield np.exp([-np.mean(each) for each in nats])
        waiting = []

  def _tokens(self, rows: Rows, position: int, tokenizer: Any, begin: list[int]) -> list[int]:
    tokens = begin + tokenizer.encode(rows.text(position), add_special=False)[: self.length]
    if len(tokens) < 2:
      raise ValueError(
        f"{rows.source.name} row {rows.origin(position)} has no token to predict; drop short rows"
        " by the step 'length' first"
      )
    return tokens
