"""How often a classifier is right: accuracy, F1 and Matthews correlation.

B rows of a batch, S tokens of a row, C classes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import distributed, sharding
from research.data import formats, packing, sources
from research.data.examples import BadRow, Example
from research.evals import bootstrap, progress
from research.evals.result import Result, item_id
from research.models import EncoderConfig

_BUCKETS = (16, 32, 64, 128, 256)  # tokens that a batch is padded to, besides the length


@dataclasses.dataclass(frozen=True)
class Classification:
  """Predicts the class of every document, or of every word, by the largest logit.

  Metrics: `accuracy`; of two classes `f1` of class 1, of more `macro_f1`, its plain mean over the
  classes that are there or predicted; `matthews`, the correlation of Matthews (1975) as Gorodkin
  (2004) has it for any number of classes; and the counts `documents` and `labels`. A record is a
  document: how many of its `labels` are `correct`, what was `expected` and `predicted`.

  data: the config of a source whose rows have `text` and `label`, or `tokens` and `labels`.
  length: tokens that the model is shown of a document, which is cut to it.
  batch_size: documents at a time.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int = 128
  batch_size: int = 64
  label: str = "classification"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Classifies all documents.

    Raises:
      ValueError: the model does not classify, or has fewer positions than the length; a row
        cannot be read, or has a class that the model lacks.
    """
    config = model.config
    if not isinstance(config, EncoderConfig) or not config.labels:
      raise ValueError(f"{self.label} needs an encoder with classes; config.model.head gives them")
    if not 2 <= self.length <= config.max_positions:
      raise ValueError(
        f"{self.label}: length {self.length} is not within 2 and the model's"
        f" {config.max_positions} positions"
      )
    with distributed.alike(f"what {self.label} reads") as told:
      examples, ids = self._examples(tokenizer, len(config.labels))
      told["documents"] = ids
    predicted = self._predict(model, variables, examples, tokenizer.pad_id or 0)
    records = []
    for name, example, classes in zip(ids, examples, predicted, strict=True):
      assert example.labels is not None
      expected = example.labels[example.weights_mask]
      records.append(
        {
          "id": name,
          "correct": int((expected == classes).sum()),
          "labels": len(expected),
          "expected": expected.tolist(),
          "predicted": classes.tolist(),
        }
      )
    return self._result(records, len(config.labels))

  def _examples(self, tokenizer: Any, classes: int) -> tuple[list[Example], list[str]]:
    """Documents of at most `length` tokens, and their ids."""
    source = sources.build(self.data)
    if source.report:
      logging.warning("%s", source.report)
    examples, ids = [], []
    for index in range(len(source)):
      row = source[index]
      try:
        example = formats.tokenize(row, tokenizer, completion_only=False)
        if example.labels is None:
          raise BadRow("without a label", f"it has {', '.join(sorted(row))}")
        if example.labels.max() >= classes:
          raise BadRow("of an unknown class", f"{example.labels.max()}, and there are {classes}")
        (example,) = formats.fit(example, self.length, "truncate")
      except BadRow as error:
        where = f"{source.name} row {source.origin(index)}"
        raise ValueError(f"{self.label}: {where} is {error}") from error
      examples.append(example)
      told = json.dumps(row, sort_keys=True, default=str)
      ids.append(item_id(index, told))
    if not examples:
      raise ValueError(f"{self.label}: {source.name} has no rows")
    return examples, ids

  def _predict(
    self, model: Any, variables: Any, examples: list[Example], pad_id: int
  ) -> list[np.ndarray]:
    """The classes of each document's labelled tokens."""
    found: list[np.ndarray] = [np.zeros(0, np.int32)] * len(examples)
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i]))
    buckets = sorted({*(b for b in _BUCKETS if b < self.length), self.length})
    with progress.bar(len(examples), self.label, "row") as bar:
      for at in range(0, len(order), self.batch_size):
        chosen = order[at : at + self.batch_size]
        rows = [[examples[i]] for i in chosen]
        width = packing.bucket(len(examples[chosen[0]]), buckets)
        rows += [[]] * (self.batch_size - len(rows))
        batch = packing.assemble(rows, width, pad_id, form=packing.form_of(rows))
        classes = sharding.fetched(_classes(model, variables, batch))
        for row, i in enumerate(chosen):
          learnt = np.flatnonzero(examples[i].weights_mask)  # of a document: its first token
          found[i] = classes[row, learnt]
        bar.update(len(chosen))
    return found

  def _result(self, records: list[dict[str, Any]], classes: int) -> Result:
    counts = np.stack([_counts(record, classes) for record in records], axis=-1)  # [3, C, items]
    total = counts.sum(axis=-1)
    rights, labels = ([record[key] for record in records] for key in ("correct", "labels"))
    figures = {"f1" if classes == 2 else "macro_f1": _f1, "matthews": _matthews}
    metrics = {"accuracy": sum(rights) / sum(labels)}
    metrics |= {name: float(figure(total[..., None])[0]) for name, figure in figures.items()}
    intervals = {}
    if len(records) > 1:
      intervals["accuracy"] = bootstrap.interval(rights, labels)
      for name, figure in figures.items():
        intervals[name] = bootstrap.interval_of(
          partial(_of_draws, figure), counts.reshape(3 * classes, -1)
        )
    metrics |= {"documents": len(records), "labels": sum(labels)}
    return Result(self.label, metrics, records, {"accuracy": ("correct", "labels")}, intervals)


@partial(jax.jit, static_argnums=0)
def _classes(model, variables, batch):
  """The class of each token, int32 `[B, S]`; of documents, `[B, 1]`."""
  types = {"types": batch["types"]} if "types" in batch else {}
  args = (batch["tokens"], batch["positions"], batch["segments"])
  hidden = model.apply(variables, *args, **types, method="hidden")
  if model.config.head == "sequence":
    hidden = hidden[:, :1]
  return jnp.argmax(model.apply(variables, hidden, method="head"), axis=-1)


def _counts(record: Mapping[str, Any], classes: int) -> np.ndarray:
  """A document's labels by class, `[3, C]`: rightly predicted, predicted, expected."""
  expected, predicted = (np.asarray(record[key], int) for key in ("expected", "predicted"))
  kinds = (expected[expected == predicted], predicted, expected)
  return np.stack([np.bincount(kind, minlength=classes) for kind in kinds])


def _of_draws(figure: Callable[[np.ndarray], np.ndarray], drawn: np.ndarray) -> np.ndarray:
  """`figure` of counts by class that lie flat, `[3 * C, draws]`."""
  return figure(drawn.reshape(3, -1, drawn.shape[-1]))


def _f1(counts: np.ndarray) -> np.ndarray:
  """Of class 1 of two, else the mean over classes: `[3, C, draws]` -> `[draws]`.

  A class that is neither there nor predicted has none, and counts for nothing.
  """
  right, predicted, expected = counts
  both = predicted + expected
  each = np.divide(2 * right, both, out=np.zeros_like(both, float), where=both > 0)  # [C, draws]
  if len(each) == 2:
    return each[1]
  return each.sum(axis=0) / (both > 0).sum(axis=0)


def _matthews(counts: np.ndarray) -> np.ndarray:
  """`[3, C, draws]` -> `[draws]`; 0 where there is but one class, or but one is predicted."""
  right, predicted, expected = counts.astype(float)
  total = expected.sum(axis=0)
  covariance = right.sum(axis=0) * total - (predicted * expected).sum(axis=0)
  spread = (total**2 - (predicted**2).sum(axis=0)) * (total**2 - (expected**2).sum(axis=0))
  # Shares of a draw sum to 1 up to rounding, so that 0 is not exactly 0.
  some = spread > 1e-12 * total**4
  return np.divide(covariance, np.sqrt(np.abs(spread)), out=np.zeros_like(total), where=some)
