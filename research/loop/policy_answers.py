"""Answers to prompts, written by a policy, judged, and laid out for the objective to learn from.

P prompts of a batch, G answers of each, N = P G rows, neighbours of one prompt, S sequence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import generation
from research.core import config as config_lib
from research.core import sharding
from research.data import packing, prompts
from research.data.examples import Example
from research.loop import rewards as rewards_lib
from research.losses import advantages
from research.objectives import answers
from research.objectives.policy import (
  ADVANTAGES,
  OLD,
  RETURNS,
  TOLD,
  VALUES,
  PolicyLoss,
  values_of,
)

Batch = dict[str, np.ndarray]
_STREAM = 0x726F  # apart from the data's and the step's random numbers
_CHUNK_TOKENS = 256  # whose logits exist at one time
UNFINISHED = ("judge", "zero", "leave_out")


@dataclasses.dataclass(frozen=True)
class Gae:
  """Advantages of tokens by the objective's critic; see `losses.advantages.generalized`.

  whiten: they have mean 0 and variance 1 over a batch.
  """

  gamma: float = 1.0
  lam: float = 0.95
  whiten: bool = True

  def __post_init__(self) -> None:
    if not (0 <= self.gamma <= 1 and 0 <= self.lam <= 1):
      raise ValueError(f"gamma {self.gamma} and lam {self.lam} are from 0 to 1")


@dataclasses.dataclass(frozen=True)
class Rollout:
  """How answers are written and judged, and how often they are learnt from.

  rewards: sections of `loop.rewards`, each with a `weight` and a `label`.
  samples: G, of each prompt.
  max_new_tokens: of an answer, which a row's length also ends.
  advantage: a section of `losses.advantages`, or {"name": "gae"} with a critic.
  batches: of prompts that are answered at one time. epochs: how often each is learnt from; so many
    steps, their product, go by one rollout.
  unfinished: answers that were cut off are judged as far as they got ("judge"), earn 0 ("zero"), or
    are compared and not learnt from ("leave_out").
  batch_size: answers that are written at a time, at most.
  """

  rewards: Sequence[Mapping[str, Any]]
  samples: int = 8
  max_new_tokens: int = 256
  advantage: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"name": "group"})
  batches: int = 1
  epochs: int = 1
  unfinished: str = "judge"
  batch_size: int = 64

  def __post_init__(self) -> None:
    least = {"max_new_tokens": 1, "batches": 1, "epochs": 1, "samples": 1, "batch_size": 1}
    if self.advantage.get("name") != "gae":
      least["samples"] = 2  # an answer is compared with others
    for name, lowest in least.items():
      if getattr(self, name) < lowest:
        raise ValueError(f"{name} is {getattr(self, name)}; it is at least {lowest}")
    if self.unfinished not in UNFINISHED:
      raise ValueError(f"unfinished is {self.unfinished!r}; there are {', '.join(UNFINISHED)}")

  @property
  def steps(self) -> int:
    """That learn from one rollout."""
    return self.batches * self.epochs


@dataclasses.dataclass(frozen=True)
class Writer:
  """Answers prompts, judges the answers and lays them out.

  problems: the source of the prompts, for those who judge.
  length, buckets: of rows; see `data.pipeline`.
  """

  settings: Rollout
  objective: PolicyLoss
  model: Any
  tokenizer: Any
  problems: Any
  rewards: rewards_lib.Rewards
  length: int
  buckets: Sequence[int]
  seed: int

  def __call__(
    self, step: int, variables: Any, asked: Sequence[Sequence[tuple[int, list[int]]]]
  ) -> list[Batch]:
    """A batch of N rows for each batch of P prompts: its row in the source, and its tokens.

    Virtual tokens of the adapters are the first of a prompt's, and of its rows'.
    What is drawn depends on the seed, the step and the prompt's number alone.

    Raises:
      ConfigError: a row cannot be judged, or an answer to it.
    """
    every = [prompt for prompts_ in asked for prompt in prompts_]
    for row, _ in every:
      if row >= 0:
        self.check(row)
    policy = {name: variables[name] for name in ("params", "adapters") if name in variables}
    there = [tokens for row, tokens in every if row >= 0]
    if not there:
      raise ValueError("a batch without a prompt: are all rows of the data dropped?")
    written = generation.generate(
      self.model,
      policy,
      [[token for token in tokens if token >= 0] for tokens in there],  # it leads them itself
      generation.Sampler(self.objective.temperature),
      max_new_tokens=self.settings.max_new_tokens,
      room=[self.length - len(tokens) for tokens in there],
      eos_ids=self.tokenizer.eos_ids,
      pad_id=self.tokenizer.pad_id or 0,
      samples=self.settings.samples,
      seed=int(np.random.default_rng([self.seed, _STREAM, step]).integers(2**31)),
      batch_size=self.settings.batch_size,
    )
    found = ((completion.tokens, completion.finished) for completion in written)
    rows = [
      _Row(row, tokens, *(next(found) if row >= 0 else ([], False)))
      for row, tokens in every
      for _ in range(self.settings.samples)
    ]
    rewards, told = self._judged(rows)
    size = len(asked[0]) * self.settings.samples
    return [
      self._batch(
        variables,
        rows[at : at + size],
        rewards[at : at + size],
        {name: values[at : at + size] for name, values in told.items()},
      )
      for at in range(0, len(rows), size)
    ]

  def check(self, row: int) -> None:
    """Raises ConfigError if a row of the source lacks what answers to it are judged by."""
    try:
      self.rewards.check(self.problems[row])
    except ValueError as error:
      where = f"{self.problems.name} row {self.problems.origin(row)}"
      raise config_lib.ConfigError(f"config.train.rollout.rewards: {where}: {error}") from error

  def _judged(self, rows: Sequence[_Row]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The reward of each row, `[N]`, and what the metrics are told; 0 in rows without a prompt."""
    there = [number for number, row in enumerate(rows) if row.number >= 0]
    judged = []
    for number in there:
      row = rows[number]
      problem = self.problems[row.number]
      text = self.tokenizer.decode(row.tokens)
      asked = prompts.prompt_of(problem)
      judged.append(rewards_lib.Answer(problem, asked, text, len(row.tokens), row.finished))
    try:
      found = self.rewards(judged)
    except ValueError as error:
      raise config_lib.ConfigError(f"config.train.rollout.rewards: {error}") from error
    total = self.rewards.total(found)
    finished = np.array([answer.finished for answer in judged])
    if self.settings.unfinished == "zero":
      total = np.where(finished, total, 0.0).astype(np.float32)
    samples = self.settings.samples
    # Not by a deviation of 0: that of equal numbers is one of rounding.
    equal = np.ptp(total.reshape(-1, samples), axis=1) == 0
    each = {
      "reward": total,
      # Of all that were written at one time, whatever advantages go by, as TRL's.
      "reward_std": np.full(len(total), total.std(ddof=int(len(total) > 1))),
      "frac_reward_zero_std": np.repeat(equal, samples),
      **{f"rewards/{label}/mean": values for label, values in found.items()},
      "completions/mean_length": [answer.length for answer in judged],
      "completions/clipped_ratio": ~finished,
    }
    told = {name: np.zeros(len(rows), np.float32) for name in each}
    for name, values in each.items():
      told[name][there] = np.asarray(values, np.float32)
    return told["reward"], told

  def _batch(
    self, variables: Any, rows: Sequence[_Row], rewards: np.ndarray, told: Mapping[str, np.ndarray]
  ) -> Batch:
    longest = max(len(row.prompt) + len(row.tokens) for row in rows)
    width = packing.bucket(longest, [*(b for b in self.buckets if b < self.length), self.length])
    batch: dict[str, Any] = packing.assemble(
      [row.examples() for row in rows], width, self.tokenizer.pad_id or 0
    )
    batch["row"] = np.array([row.number for row in rows], np.int32)
    said = {}
    if self._asks:
      said = sharding.fetched(_said(self.model, self.objective, variables, batch))
    batch |= self._advantages(batch, rewards, said)
    if self.settings.steps > 1:
      batch[OLD] = said["old"]
    told = dict(told)
    if "reference" in said:
      # Of all answers, as their rewards have paid it: also of those that are left out next.
      told["objective/kl"] = ((said["old"] - said["reference"]) * batch["weights"]).sum(axis=1)
    if self.settings.unfinished == "leave_out":
      finished = np.array([row.finished for row in rows])
      batch["weights"] = batch["weights"] * finished[:, None].astype(np.float32)
    return batch | {f"{TOLD}{name}": values for name, values in told.items()}

  @property
  def _asks(self) -> bool:
    """Whether the model says something of answers once they are written."""
    return self.settings.steps > 1 or bool(self.objective.reward_kl or self.objective.width)

  def _advantages(
    self, batch: Batch, rewards: np.ndarray, said: Mapping[str, np.ndarray]
  ) -> dict[str, np.ndarray]:
    """What the objective reads of how good each token was, `[N, S]`."""
    mask = batch["weights"]
    cost = np.zeros_like(mask)
    if self.objective.reward_kl:
      cost = self.objective.reward_kl * (said["old"] - said["reference"]) * mask
    section = self.settings.advantage
    if section["name"] != "gae":
      of = advantages.build(section)
      found = np.asarray(of(jnp.asarray(rewards - cost.sum(axis=1)), self.settings.samples))
      return {ADVANTAGES: found[:, None] * mask}
    one = gae_of(section)
    last = mask * (np.cumsum(mask, axis=1) == mask.sum(axis=1, keepdims=True))
    earned, there = jnp.asarray(rewards[:, None] * last - cost), jnp.asarray(mask)
    better, returns = advantages.generalized(
      earned, jnp.asarray(said["values"]), there, gamma=one.gamma, lam=one.lam
    )
    if one.whiten:
      better = advantages.whitened(better, there)
    return {
      ADVANTAGES: np.asarray(better),
      RETURNS: np.asarray(returns),
      VALUES: said["values"],
    }


@dataclasses.dataclass(frozen=True)
class _Row:
  """An answer of a prompt; of a row of the batch without one, the number is -1."""

  number: int
  prompt: list[int]
  tokens: list[int]
  finished: bool

  def examples(self) -> list[Example]:
    if self.number < 0:
      return []
    tokens = np.array(self.prompt + self.tokens, np.int32)
    return [Example(tokens, np.arange(len(tokens)) >= len(self.prompt))]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _said(model: Any, objective: PolicyLoss, variables: Any, batch: Any) -> dict[str, jax.Array]:
  """Log-probabilities of the batch's answers by the policy and its reference, and the critic's."""
  hidden = answers.hidden(model, variables, batch, None)
  found = {
    "old": answers.of_hidden(
      model, variables, batch, hidden, None, _CHUNK_TOKENS, objective.temperature
    )
  }
  if objective.reward_kl:
    theirs = answers.reference_variables(variables, objective.reference)
    found["reference"] = answers.log_probs(
      model, theirs, batch, None, _CHUNK_TOKENS, objective.temperature
    )
  if objective.width:
    found["values"] = values_of(variables, hidden)
  return found


def gae_of(section: Mapping[str, Any]) -> Gae:
  """The settings of the advantage "gae"; ConfigError where it takes no such key."""
  return config_lib.call({"gae": Gae}, section)
