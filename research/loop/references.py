"""What the answers of a run are compared with: a copy of the model, or what it once said of them.

R rows of the data, B rows of the batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from research import peft
from research.core import cache, matrix, tree
from research.data import pipeline
from research.loop.learner import Learner
from research.objectives import answers
from research.objectives.answers import COLLECTION, KEPT, AnswerLoss

_LAYOUT = 1  # Part of the hash: raise it when what is kept changes.
_SAVED_EVERY = 64  # batches: what a pass that is killed does again, at most
_CHUNK_TOKENS = 256  # whose logits exist at one time

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reference:
  """The reference of a run.

  variables: the collection that the objective reads, if it reads one.
  keep: `(data section) -> [R, 2]`, of references that are precomputed.
  """

  variables: dict[str, Any] = dataclasses.field(default_factory=dict)
  keep: Any = None

  def of_batches(self, batches: Any, section: Any) -> Any:
    """The batches of a data section, with what is kept of their rows, if anything is."""
    return batches if self.keep is None else Kept(batches, self.keep(section))


def build(objective: Any, learner: Learner, batch_size: int, rows: Mapping[str, Any]) -> Reference:
  """What `objective` compares with, of the model as the run begins.

  A run that goes on builds the same: a copy is made again, and what was kept is read.

  Args:
    batch_size: examples in a batch. rows: how `data.pipeline` is to read them.

  Raises:
    ValueError: the model without its adapters is not what the run begins with.
  """
  if not isinstance(objective, AnswerLoss):
    return Reference()
  if objective.reference == "base" and (why := learner.base_obstacle()):
    raise ValueError(
      f"reference 'base' is the model without adapters, and {why}; take 'copy' or 'kept'"
    )
  if objective.reference == "copy":
    return Reference({COLLECTION: copied(learner)})
  if objective.reference == "kept":

    def keep_section(section: Any) -> np.ndarray:
      batches = pipeline.eval_batches(section, learner.tokenizer, batch_size=batch_size, **rows)
      return keep(learner, batches, objective.ld_alpha)

    return Reference(keep=keep_section)
  return Reference()


def _adapters(learner: Learner) -> Any:
  """Adapters as models take them."""
  return peft.materialize(learner.variables["adapters"])


def copied(learner: Learner) -> dict[str, Any]:
  """What of the model trains, as it begins, and its adapters; None for what is frozen anyway.

  Matrices have the type of activations, in which they act.
  """
  dtype = learner.model.dtype
  params = learner.variables["params"]
  whole = {path for path, leaf in matrix.flatten(params).items() if isinstance(leaf, jax.Array)}

  def copy(path: str, leaf: Any) -> Any:
    # Only of what is more precise than it acts; norms act in float32.
    acts = path in whole and path.endswith(("kernel", "embedding"))
    return jnp.array(leaf, dtype=dtype if acts else leaf.dtype, copy=True)

  trained, _ = tree.partition({"params": params}, learner.trains)
  return {
    "params": tree.map_with_path(copy, trained["params"]),
    "adapters": jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), _adapters(learner)),
  }


class Kept:
  """Batches with the reference's log-probabilities of their rows, under `answers.KEPT`.

  Both the endless ones of training (`loop.problem.Batches`) and finite ones.
  """

  def __init__(self, batches: Any, table: np.ndarray):
    """table: `[R, 2]`, as `keep` gives it."""
    self._batches = batches
    self._table = table
    self.tasks = batches.tasks
    self.report = batches.report

  def __next__(self) -> Batch:
    return self._with(next(self._batches))

  def __iter__(self) -> Iterator[Batch]:
    return map(self._with, self._batches)

  def get_state(self) -> dict[str, Any]:
    """See `Batches`."""
    return self._batches.get_state()

  def set_state(self, state: dict[str, Any]) -> None:
    """See `Batches`."""
    self._batches.set_state(state)

  def description(self) -> str:
    """See `Batches`."""
    return self._batches.description()

  def _with(self, batch: Batch) -> Batch:
    rows = batch["row"]
    found = self._table[rows, np.arange(len(rows)) % 2]
    if bad := [int(row) for row in rows[(rows >= 0) & np.isnan(found)]]:
      raise ValueError(f"row {bad[0]} of the data has no kept log-probability; was it dropped?")
    return {**batch, KEPT: np.where(rows >= 0, found, 0).astype(np.float32)}


def keep(learner: Learner, batches: pipeline.EvalBatches, ld_alpha: float | None) -> np.ndarray:
  """The log-probability of each row's answers by the model as it begins, float32 `[R, 2]`.

  A file in `references/` of the cache has them, by a hash of data, model, tokenizer and settings. A
  pass that was killed goes on where it last saved. Rows that cannot be used have NaN.
  """
  variables = {"params": learner.variables["params"], "adapters": _adapters(learner)}
  file = cache.directory() / "references" / f"{_key(learner, variables, batches, ld_alpha)}.npz"
  table, done, complete = np.full((batches.rows, 2), np.nan, np.float32), 0, False
  if file.exists():
    with np.load(file) as saved:
      table, done, complete = saved["table"], int(saved["done"]), bool(saved["complete"])
  if complete:
    return table
  model = learner.model

  @jax.jit
  def sums(variables: Any, batch: Any) -> jax.Array:
    each = answers.log_probs(model, variables, batch, None, _CHUNK_TOKENS)
    return answers.row_sums(each, batch, ld_alpha)

  bar = tqdm.tqdm(total=batches.rows, desc="reference", unit=" rows", leave=False, delay=2)
  with bar:
    for number, batch in enumerate(batches):
      rows = batch["row"][::2]
      if number >= done:
        table[rows[rows >= 0]] = np.asarray(sums(variables, batch)).reshape(-1, 2)[rows >= 0]
        done = number + 1
        if done % _SAVED_EVERY == 0:
          _save(file, table, done, False)
      bar.update(int((rows >= 0).sum()))
  _save(file, table, done, True)
  return table


def _key(
  learner: Learner, variables: Any, batches: pipeline.EvalBatches, ld_alpha: float | None
) -> str:
  tokenizer = learner.tokenizer
  told = [
    _LAYOUT,
    batches.settings,
    tokenizer.backend.to_str(),
    tokenizer.chat_template,
    sorted(tokenizer.special_tokens.items()),
    repr(learner.model.config),
    str(jnp.dtype(learner.model.dtype)),
    ld_alpha,
  ]
  digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
  for path, leaf in tree.flatten(variables).items():
    array = np.asarray(leaf)
    digest.update(f"{path} {array.dtype} {array.shape}".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()[:32]


def _save(file: Path, table: np.ndarray, done: int, complete: bool) -> None:
  """Replaces the file as a whole."""
  file.parent.mkdir(parents=True, exist_ok=True)
  content = io.BytesIO()
  np.savez(content, table=table, done=done, complete=complete)
  with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as scratch:
    scratch.write(content.getvalue())
  Path(scratch.name).replace(file)
