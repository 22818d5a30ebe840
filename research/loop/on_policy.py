"""Answers that the student writes itself, in place of the data's (on-policy distillation).

Agarwal et al. 2023 (GKD, arXiv:2306.13649, algorithm 1): for a share of the batches the student
writes after the data's prompts, and learns what its teacher says of that.

B rows, S tokens of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research import generation
from research.core import config as config_lib
from research.core import sharding
from research.data import packing
from research.data import settings as data_settings
from research.data.examples import Example

Batch = dict[str, np.ndarray]
_STREAM = 0x6F6E  # apart from the data's and the step's random numbers
_NUMBER = "number"  # of a row in the whole batch


@dataclasses.dataclass(frozen=True)
class OnPolicy:
  """How much the student writes, and how.

  share: of batches, from 0 to 1 (GKD's lambda).
  max_new_tokens: of an answer, which a row's length also ends.
  temperature: at which answers are drawn; 0 takes the likeliest tokens.
  """

  share: float = 0.5
  max_new_tokens: int = 128
  temperature: float = 1.0

  def __post_init__(self) -> None:
    if not 0 < self.share <= 1:
      raise ValueError(f"share is that of batches, above 0 and at most 1, not {self.share}")
    if self.max_new_tokens < 1 or self.temperature < 0:
      raise ValueError(
        f"max_new_tokens {self.max_new_tokens} starts at 1, temperature {self.temperature} at 0"
      )

  def numbers(self, seed: int, step: int) -> tuple[bool, int]:
    """Whether the student writes the batch of `step`, and the seed of its draws."""
    rng = np.random.default_rng([seed, _STREAM, step])
    return bool(rng.random() < self.share), int(rng.integers(2**31))


@dataclasses.dataclass(frozen=True)
class Writer:
  """Puts the student's answers into batches; a function of the seed, the step and the student."""

  settings: OnPolicy
  model: Any
  tokenizer: Any
  seed: int

  def __call__(self, step: int, variables: Callable[[], Any], batch: Batch) -> Batch:
    """The batch of `step`, its answers written anew if it is one of the share.

    Args:
      variables: gives the student's, if they are needed.
      batch: rows of one document each (docs/architecture.md). What follows on the first answer is
        left out; rows without an answer, or without room for one, stay.
    """
    due, seed = self.settings.numbers(self.seed, step)
    prompts = prompts_of(batch) if due else {}
    if not prompts:
      return batch
    student = {name: part for name, part in variables().items() if name in ("params", "adapters")}
    length = batch["tokens"].shape[1]
    written = generation.generate(
      self.model,
      student,
      list(prompts.values()),
      generation.Sampler(self.settings.temperature),
      max_new_tokens=min(self.settings.max_new_tokens, length - 1),
      room=[length - len(prompt) for prompt in prompts.values()],
      eos_ids=self.tokenizer.eos_ids,
      pad_id=self.tokenizer.pad_id or 0,
      seed=seed,
      batch_size=len(batch["tokens"]),
    )
    rows: list[list[Example]] = [[] for _ in batch["tokens"]]
    for (row, prompt), completion in zip(prompts.items(), written, strict=True):
      tokens = np.array(prompt + completion.tokens, np.int32)
      rows[row] = [Example(tokens, np.arange(len(tokens)) >= len(prompt))]
    new = packing.assemble(rows, length, self.tokenizer.pad_id or 0)
    theirs = np.isin(np.arange(len(rows)), list(prompts))[:, None]
    return batch | {name: np.where(theirs, new[name], batch[name]) for name in new}


@dataclasses.dataclass(frozen=True)
class Shared:
  """A writer in a run of several processes: each has a share of a batch, and all write all of it.

  So a row's answer is what it would be in one process, where rows have the same numbers.

  unit: rows that belong together, as of `data.settings.share`.
  """

  writer: Writer
  mesh: jax.sharding.Mesh
  unit: int

  def __call__(self, step: int, variables: Callable[[], Any], batch: Batch) -> Batch:
    """See `Writer`; batch: this process's share."""
    if not self.writer.settings.numbers(self.writer.seed, step)[0]:
      return batch
    shard = sharding.share_of_process(self.mesh)
    size = shard[1] * len(batch["tokens"])
    own = np.arange(size)[data_settings.share(size, shard, self.unit)]
    whole = sharding.fetched(sharding.place({**batch, _NUMBER: own}, self.mesh))
    order = np.argsort(whole.pop(_NUMBER))
    new = self.writer(step, variables, {name: rows[order] for name, rows in whole.items()})
    return {name: rows[own] for name, rows in new.items()}


def prompts_of(batch: Mapping[str, np.ndarray]) -> dict[int, list[int]]:
  """The tokens before the first answer of each row that has one with room for it, by row."""
  found = {}
  for row, (tokens, weights) in enumerate(zip(batch["tokens"], batch["weights"], strict=True)):
    learnt = np.flatnonzero(weights)
    # The weight of an answer's first token stands at the prompt's last one.
    if len(learnt) and learnt[0] + 1 < len(tokens):
      found[row] = [int(token) for token in tokens[: learnt[0] + 1]]
  return found


def build(
  config: config_lib.Config,
  model: Any,
  tokenizer: Any,
  running: bool,
  mesh: jax.sharding.Mesh,
) -> Writer | Shared | None:
  """What `config.train.on_policy` describes, or None where it is empty.

  Args:
    running: whether a teacher runs beside the student.
    mesh: whose rows processes share.

  Raises:
    ConfigError: the run cannot be one.
  """
  section = config.train.on_policy
  if not section:
    return None
  with config_lib.blaming("train.on_policy"):
    chosen = {"name": "on_policy", **section.take()}
    settings = config_lib.call({"on_policy": OnPolicy}, chosen)
    if not running:
      raise ValueError(
        "what the student writes needs a teacher that runs: the objective 'distillation', and"
        " config.teacher without keep_tokens"
      )
    if config.data.train.packing != "none" or not config.data.train.completion_only:
      raise ValueError(
        "the student writes after the prompt of each row: data.train.packing='none' and"
        " completion_only=True"
      )
  writer = Writer(settings, model, tokenizer, config.seed)
  if jax.process_count() == 1:
    return writer
  return Shared(writer, mesh, config.train.meta.get("rows_per_task", 0))
