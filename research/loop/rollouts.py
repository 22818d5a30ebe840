"""Answers that a policy writes and learns from: written, judged, and told the objective in batches.

One rollout has the prompts of some batches, all answered by the model as it is then; the steps that
follow learn from it, once or several times. What is left of one is saved with the data's place, so
that a run that is killed between goes on with the same bits.

P prompts of a batch, G answers of each, N = P G rows, neighbours of one prompt, S sequence.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from research.core import config as config_lib
from research.core import distributed, sharding
from research.data import settings as data_settings
from research.data import sources
from research.data.answers import KINDS
from research.loop import rewards as rewards_lib
from research.loop.policy_answers import Batch, Rollout, Writer, gae_of
from research.losses import advantages
from research.objectives import PolicyLoss

# Rows that are looked at before the run, whether they can be judged; the others before each is
# answered.
_CHECKED = 64


class Rollouts:
  """Batches of what a policy wrote: `loop.problem.Batches` and `Problem.rewrite` in one.

  Every process writes and judges all of it, and has its share of each batch.
  """

  def __init__(
    self,
    settings: Rollout,
    batches: Any,
    writer: Writer,
    share: tuple[int, int],
  ):
    """batches: of prompts, this process's `share` (which, of how many)."""
    self._settings = settings
    self._batches = batches
    self._writer = writer
    self._share = share
    self._done = 0  # steps that the rollout at hand was learnt from
    self._left: list[Batch] = []
    self.tasks = batches.tasks
    self.report = batches.report

  def __next__(self) -> Any:
    """The prompts that are to be answered, or nothing while a rollout is at hand."""
    if self._left:
      return []
    return [next(self._batches) for _ in range(self._settings.batches)]

  def rewrite(self, step: int, variables: Callable[[], Any], asked: Any) -> Batch:
    """This process's share of the batch that `step` learns from.

    Args:
      variables: gives the model's, if they are needed.
      asked: what `__next__` gave.
    """
    if asked:
      rows = [self._whole(batch) for batch in asked]
      self._left, self._done = self._writer(step, variables(), rows), 0
    batch = self._left[self._done % len(self._left)]
    self._done += 1
    if self._done == self._settings.steps:
      self._left = []
    size = len(batch["row"])
    own = data_settings.share(size, self._share, self._settings.samples)
    return {name: values[own] for name, values in batch.items()}

  def get_state(self) -> dict[str, Any]:
    """See `Batches`; with what is left of a rollout."""
    state = {"data": self._batches.get_state()}
    if self._left:
      state["rollout"] = {"done": self._done, "batches": [_told(batch) for batch in self._left]}
    return state

  def set_state(self, state: dict[str, Any]) -> None:
    """See `Batches`."""
    self._batches.set_state(state["data"])
    left = state.get("rollout", {"done": 0, "batches": []})
    self._done, self._left = left["done"], [_read(batch) for batch in left["batches"]]

  def description(self) -> str:
    """See `Batches`."""
    one = self._settings
    told = f"{self._batches.description()}; answers to a prompt: {one.samples}"
    if one.steps > 1:
      told += f", batches of a rollout: {one.batches}, steps that learn from each: {one.epochs}"
    return told

  def _whole(self, batch: Mapping[str, np.ndarray]) -> list[tuple[int, list[int]]]:
    """The row number and the tokens of each prompt of the batch, those of all processes."""
    own = [
      (int(row), tokens[segments > 0].tolist())
      for row, tokens, segments in zip(
        batch["row"], batch["tokens"], batch["segments"], strict=True
      )
    ]
    return [(row, tokens) for each in distributed.of_each(own) for row, tokens in each]


def build(
  config: config_lib.Config,
  objective: Any,
  model: Any,
  tokenizer: Any,
  batches: Any,
  mesh: jax.sharding.Mesh,
) -> Rollouts | None:
  """What `config.train.rollout` describes, of batches of prompts; None for other objectives.

  Raises:
    ConfigError: the run cannot be one.
  """
  section = config.train.rollout
  with config_lib.blaming("train.rollout"):
    if not isinstance(objective, PolicyLoss):
      if section:
        raise ValueError("what the model writes is learnt by the objective 'policy'")
      return None
    if not section:
      raise ValueError("the objective 'policy' learns from what it writes: give its rewards")
    settings = settings_of(section)
    gae = settings.advantage.get("name") == "gae"
    gae_of(settings.advantage) if gae else advantages.build(settings.advantage)
    if gae != bool(objective.width):
      raise ValueError("the advantage 'gae' and objective.critic are given together")
    if settings.steps > 1 and config.objective.loss.get("name") == "reinforce":
      raise ValueError(
        "the loss 'reinforce' is for answers of the model as it is: batches and epochs are 1, or"
        " take 'clipped'"
      )
    data = config.data.train
    if config.data.eval:
      raise ValueError(
        "a policy has no held-out loss; leave data.eval out, and use eval.evaluators"
      )
    if settings.epochs > 1 and getattr(data, "curriculum", None):
      raise ValueError(
        f"epochs is {settings.epochs}, so that a batch of prompts lasts several steps, and"
        " data.train.curriculum goes by steps; take 1"
      )
    if settings.max_new_tokens >= data.length:
      raise ValueError(
        f"max_new_tokens {settings.max_new_tokens} leaves rows of {data.length} tokens no prompt"
      )
    writer = Writer(
      settings,
      objective,
      model,
      tokenizer,
      sources.build(data.source),
      rewards_lib.build(settings.rewards, mesh),
      data.length,
      tuple(sorted(data.buckets)),
      config.seed,
    )
    for row in range(min(len(writer.problems), _CHECKED)):
      writer.check(row)
  return Rollouts(settings, batches, writer, sharding.share_of_process(mesh))


def rows_per_example(config: config_lib.Config, kind: str | None) -> int:
  """Neighbouring rows of a batch that belong together.

  kind: of rows about answers (`data.answers.KINDS`), or None.
  """
  if kind == "prompts":
    return config.train.rollout.get("samples", Rollout.samples)
  return KINDS[kind].rows if kind else 1


def settings_of(section: config_lib.Config) -> Rollout:
  """What `config.train.rollout` says; ConfigError where it cannot be."""
  return config_lib.call({"rollout": Rollout}, {"name": "rollout", **section.take()})


def _told(batch: Batch) -> str:
  """A batch for JSON, to the bit."""
  content = io.BytesIO()
  np.savez_compressed(content, allow_pickle=False, **batch)
  return base64.b64encode(content.getvalue()).decode()


def _read(told: str) -> Batch:
  """The inverse of `_told`."""
  with np.load(io.BytesIO(base64.b64decode(told))) as saved:
    return dict(saved)
