"""What a classifier says of each row: texts that nobody should read, or that are not worth it.

A general step: the model and its label tell what is looked for (toxic, of low quality, off topic).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.core import tree
from research.curation import checkpoint
from research.curation.step import Ledger, Rows, Step

_BATCHES = 8  # that are judged between two writings
_OVERLAP = 4  # neighbouring windows share this part of one: a fourth


@dataclasses.dataclass(frozen=True)
class Classifier(Step):
  """Takes rows away by the probability that a classifier gives a label.

  A text that is longer than `length` is read in windows of it, of which neighbours share a fourth,
  so that what an edge cuts is whole in the next one. Its worst window counts: the largest
  probability with `most`, the smallest with `least`. So no bad end of a good text is missed.

  Probabilities are those of transformers' pipeline: shares of the labels, which sum to 1, or one of
  each label by itself where `config.json` says "multi_label_classification" or has a single label.
  After an interruption the step goes on behind the rows that are done.

  model: see `checkpoint.find`; an encoder with a head of the kind "sequence".
  label: its name or its number, from 0.
  most: rows of a larger probability go. least: rows of a smaller one. Exactly one is given.
  length: tokens of a window, special ones included; None: all the positions that the model has.
  batch_size: windows at a time. dtype: of parameters and activations; "bfloat16" moves a
    probability by about a hundredth.
  column: keeps the probability under this name, for `column` and curricula; empty: nowhere.
  """

  model: str
  label: str | int
  most: float | None = None
  least: float | None = None
  length: int | None = None
  batch_size: int = 32
  dtype: str = "bfloat16"
  column: str = ""

  def __post_init__(self) -> None:
    if (self.most is None) == (self.least is None):
      raise ValueError("classifier takes one of most and least: which probability a row may have")
    if not 0 <= self._limit <= 1:
      raise ValueError(f"classifier: a probability is from 0 to 1, not {self._limit}")
    if self.batch_size < 1:
      raise ValueError(f"classifier.batch_size is at least 1, not {self.batch_size}")
    self._opened()  # What the checkpoint lacks is told before other steps have taken hours.

  def reads(self) -> Any:
    return checkpoint.digests(checkpoint.find(self.model))

  def judge(self, rows: Rows, ledger: Ledger) -> None:
    found = ledger.numbers("probabilities", lambda done: self._judge(rows, done))
    if self.column:
      ledger.columns[self.column] = found
    if not len(found):
      return
    ledger.figures["at percentiles"] = {
      str(percent): float(np.percentile(found, percent)) for percent in (0, 25, 50, 75, 100)
    }
    goes = found < self._limit if self.most is None else found > self._limit
    rule = f"{self._named()} {'below' if self.most is None else 'above'} {self._limit:.4g}"
    for position in np.flatnonzero(goes):
      ledger.drop(int(position), rule, f"{found[position]:.4g}", rows.text(int(position)))

  @property
  def _limit(self) -> float:
    """That of `most` and `least` which is given."""
    limit = self.least if self.most is None else self.most
    assert limit is not None
    return limit

  def _opened(self) -> tuple[Path, int, bool, int]:
    """The model's directory, the label's number, whether labels stand alone, and the length.

    Raises:
      ValueError: it is no classifier of documents, has no such label, or too few positions.
      FileNotFoundError, RuntimeError: as `checkpoint.find`.
    """
    from research import models  # JAX takes a second or two to import.

    path = checkpoint.find(self.model)
    file = path / "config.json"
    if not file.is_file():
      raise ValueError(f"{self.model} is no classifier: that is a directory with a config.json")
    told = json.loads(file.read_text())
    config = models.build(told).config
    if not isinstance(config, models.EncoderConfig) or config.head != "sequence":
      raise ValueError(
        f"{self.model} is no classifier of documents, which is an encoder with a 'sequence' head,"
        f" but a {config.family} with head {getattr(config, 'head', None)!r}"
      )
    kind = told.get("problem_type")
    if kind == "regression":
      raise ValueError(f"{self.model} has a regression's scores, which are no probabilities")
    alone = kind == "multi_label_classification" or len(config.labels) == 1
    length = config.max_positions if self.length is None else self.length
    if not 0 < length <= config.max_positions:
      raise ValueError(
        f"classifier.length {length} is not within 1 and the model's {config.max_positions}"
        " positions"
      )
    return path, self._number(config.labels), alone, length

  def _number(self, labels: Sequence[str]) -> int:
    """The number of `label`."""
    if self.label in labels:
      return labels.index(str(self.label))
    if isinstance(self.label, int) and 0 <= self.label < len(labels):
      return self.label
    known = ", ".join(f"{number} {name!r}" for number, name in enumerate(labels))
    raise ValueError(
      f"{self.model} has no label {self.label!r}; it has {known}"
      f"{tree.nearest(str(self.label), labels)}"
    )

  def _named(self) -> str:
    return self.label if isinstance(self.label, str) else f"label {self.label}"

  def _judge(self, rows: Rows, done: int) -> Iterator[list[float]]:
    """The worst window's probability of each row from `done` on, some rows at a time."""
    import jax.numpy as jnp

    from research import models
    from research.models import embeddings

    path, number, alone, length = self._opened()
    model, params, tokenizer = models.load(path, dtype=jnp.dtype(self.dtype))
    if tokenizer is None:
      raise ValueError(f"{self.model} has no tokenizer")
    classify = _classifier(model, alone)
    worst = min if self.most is None else max
    waiting: list[list[list[int]]] = []
    for position in rows.positions("classifier"):
      if position < done:
        continue
      waiting.append(windows(tokenizer, rows.text(position), length))
      if len(waiting) == _BATCHES * self.batch_size or position == len(rows) - 1:
        given = [window for row in waiting for window in row]
        found = np.zeros(len(given))
        for chosen, tokens, segments in embeddings.batches(given, self.batch_size, length):
          told = np.asarray(classify(params, tokens, segments))  # [batch_size, C]
          found[chosen] = told[: len(chosen), number]
        ends = np.cumsum([len(row) for row in waiting])[:-1]
        yield [float(worst(row)) for row in np.split(found, ends)]
        waiting = []


def windows(tokenizer: Any, text: str, length: int) -> list[list[int]]:
  """Tokens of a text in windows of at most `length`, each framed as the tokenizer frames a text.

  Neighbours share a fourth of what a window holds of the text; the last window reaches back until
  it is full.

  Raises:
    ValueError: the frame leaves no room for a token of the text.
  """
  encoding = tokenizer.backend.encode(text)
  ids, framing = encoding.ids, encoding.special_tokens_mask
  first = framing.index(0) if 0 in framing else len(ids)
  last = len(ids) - framing[::-1].index(0) if 0 in framing else len(ids)
  opening, own, closing = ids[:first], ids[first:last], ids[last:]
  room = length - len(opening) - len(closing)
  if room < 1:
    raise ValueError(
      f"classifier.length {length} leaves no room for a text beside {length - room} special tokens"
    )
  stride = room - room // _OVERLAP
  starts = [*range(0, len(own) - room, stride), max(0, len(own) - room)]
  return [[*opening, *own[start : start + room], *closing] for start in starts]


def _classifier(model: Any, alone: bool) -> Any:
  """`(params, tokens, segments) -> probabilities [B, C]`, compiled. alone: labels are."""
  import jax

  @jax.jit
  def classify(params: Any, tokens: Any, segments: Any) -> Any:
    hidden = model.apply({"params": params}, tokens, segments=segments, method="hidden")
    logits = model.apply({"params": params}, hidden[:, 0], method="head")
    return jax.nn.sigmoid(logits) if alone else jax.nn.softmax(logits)

  return classify
