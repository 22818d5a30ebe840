"""A teacher that is asked once, before the run, and kept on disk in place of running beside it.

B rows of a batch, S tokens of a row, K tokens that are kept of each.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import objectives
from research.core import config as config_lib
from research.core import distributed
from research.data import kept, packing, prepare
from research.data.examples import Example
from research.data.windows import Planner
from research.loop import teacher as teachers
from research.loop.learner import Learner
from research.losses import distillation
from research.models import named
from research.objectives import tokens

_LOOK_SECONDS = 1.0  # between two looks for what another process writes
_FAILED = "failed"  # the file by which the first process says that it gave up
_LAYOUT = 1  # part of the hash: raise it when what is kept changes


def build(config: config_lib.Config, learner: Learner, data: config_lib.Config) -> kept.Kept | None:
  """What `config.teacher` says of `data`, a section of `config.data`, at the loss's temperature.

  It is found by a hash of the teacher's files, the data and how both are read; what is missing is
  asked for now, and the teacher leaves memory again. Of several processes the first one asks, and
  the others wait for what it writes.

  Returns:
    None where `config.teacher.keep_tokens` is 0 and the teacher runs beside the student.

  Raises:
    ConfigError: the teacher cannot be, its data are made anew each epoch, the temperature changes,
      whose softmax cannot be told from another's, or processes have no cache in common.
  """
  count = config.teacher.keep_tokens
  if not count:
    return None
  with config_lib.blaming("objective"):
    objectives.require_model("distillation", learner.model)
    temperature = objectives.constant_temperature(config.objective)
  with config_lib.blaming("teacher"):
    if config.teacher.source == teachers.BASE:
      raise ValueError("keep_tokens is of another model; the base is in memory anyhow")
    if not 0 < count <= learner.model.config.vocab_size:
      raise ValueError(f"keep_tokens is {count} of {learner.model.config.vocab_size} tokens")
    if data.corruption:
      raise ValueError("keep_tokens is of fixed texts, and data.corruption makes them anew")
    with distributed.alike("what a teacher is asked") as told:
      planner = Planner(data, learner.tokenizer, batch_size=1, shard=(0, 1), seed=None)
      fingerprint = _fingerprint(config, learner, planner)
      told |= {"rows": planner.epoch_rows, "hash": fingerprint}
    directory = prepare.cache_directory() / f"teacher-{fingerprint}"
    parts = [_Examples(part) for part in planner.parts]
    ask = _Asked(config, learner, data.length, count, temperature)
    _require_whole(directory, lambda: kept.write(directory, parts, count, ask))
  return kept.Kept(directory)


def _require_whole(directory: Path, write: Callable[[], None]) -> None:
  """Lets the first process write what is not in `directory` yet, and all go on when it is there.

  Raises:
    ValueError: other processes do not see the directory, or the first could not write.
  """
  first, failed = jax.process_index() == 0, directory / _FAILED
  if first:
    directory.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
  distributed.everywhere(True)  # the first has been there
  if not distributed.everywhere(directory.exists()):
    raise ValueError(
      f"the first process keeps what the teacher says in {directory.parent}, which others do not"
      " see; RESEARCH_CACHE has to name a directory of all"
    )
  if first and not kept.is_whole(directory):
    try:
      write()
    finally:
      if not kept.is_whole(directory):
        failed.touch()
  # Not in a collective, which may take too long a wait for a failure.
  while not kept.is_whole(directory):
    if failed.exists():
      raise ValueError("the first process could not ask the teacher, and says why")
    time.sleep(_LOOK_SECONDS)


class _Examples(Sequence[tuple[Example, ...]]):
  """The examples of each row of a part."""

  def __init__(self, rows: Any):
    self._rows = rows

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: Any) -> Any:
    return self._rows[index].examples


class _Asked:
  """The teacher over packed rows, loaded when it is first asked."""

  def __init__(
    self, config: config_lib.Config, learner: Learner, length: int, count: int, temperature: float
  ):
    self._config = config
    self._learner = learner
    self._length = length
    self._program: Any = None
    self._count, self._temperature = count, temperature

  def __call__(self, examples: Sequence[Example]) -> list[tuple[np.ndarray, np.ndarray]]:
    if not examples:
      return []
    if self._program is None:
      self._program = self._compiled()
    rows = packing.best_fit([len(example) for example in examples], self._length)
    size = self._config.train.batch_size
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for start in range(0, len(rows), size):
      here = rows[start : start + size]
      filled = [[examples[i] for i in row] for row in here] + [[]] * (size - len(here))
      batch = packing.assemble(filled, self._length, self._learner.tokenizer.pad_id or 0)
      ids, logs = jax.device_get(self._program(batch))
      for r, row in enumerate(here):
        at = 0
        for i in row:
          end = at + len(examples[i])
          found[i] = ids[r, at:end], logs[r, at:end]
          at = end
    return [found[i] for i in range(len(examples))]

  def _compiled(self) -> Any:
    teacher = teachers.build(self._config, self._learner)
    if teacher is None:
      raise ValueError("keep_tokens is of a teacher, and there is no source and no run")
    objectives.require_model("distillation", teacher.model)
    distillation.require_one_vocabulary(
      self._learner.model.config.vocab_size, teacher.model.config.vocab_size
    )
    model, variables = teacher.model, teacher.variables

    @jax.jit
    def run(variables: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
      args = (batch["tokens"], batch["positions"], batch["segments"])
      hidden = model.apply(variables, *args, method="hidden")
      head, needed = tokens.head_of(model, variables)
      told = distillation.keep(head, needed, hidden, self._count, temperature=self._temperature)
      return told.ids, told.log_probs.astype(jnp.float16)

    return lambda batch: run(variables, batch)


def _fingerprint(config: config_lib.Config, learner: Learner, planner: Planner) -> str:
  """16 hex digits of the teacher's files, the data, and how both are read."""
  section = config.teacher
  names = ("source", "length", "completion_only", "on_long_row")
  digest = hashlib.sha256()
  vocabulary = sorted(learner.tokenizer.backend.get_vocab().items())
  told = [
    _LAYOUT,
    section.take()["quantize"],
    section.keep_tokens,
    section.dtype or config.model.dtype,
    objectives.constant_temperature(config.objective),
    [planner.settings[name] for name in names],
    [len(part) for part in planner.parts],
    vocabulary,
  ]
  digest.update(json.dumps(told, sort_keys=True).encode())
  for file in _files(config):
    with file.open("rb") as opened:
      digest.update(hashlib.file_digest(opened, "sha256").digest())
  return digest.hexdigest()[:16]


def _files(config: config_lib.Config) -> list[Path]:
  """The files that the teacher is made of."""
  section = config.teacher
  paths = [path for path in (section.source, section.adapter, section.run) if path]
  found: list[Path] = []
  for name in paths:
    path = Path(name) if Path(name).exists() else named.fetch(name)
    if name == section.run:
      result = [path / part for part in ("adapter", "model") if (path / part).is_dir()]
      found += [file for part in result for file in sorted(part.rglob("*")) if file.is_file()]
      found.append(path / "config.json")  # which names an adapter's base
    else:
      found += sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
  return found
