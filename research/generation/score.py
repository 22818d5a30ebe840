"""How probable given completions are, and which of several is most."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from research.generation.judge import judge
from research.models.decoder import Decoder


def score(
  model: Decoder,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  completions: Sequence[Sequence[int]],
  *,
  pad_id: int = 0,
  batch_size: int = 32,
  which: Sequence[int] | None = None,
) -> list[list[float]]:
  """The log-probability of every token of `completions[i]` after `prompts[i]`, in nats.

  They are the model's own, at temperature 1 and unfiltered. Args and errors: see
  `research.generation.judge`.
  """
  found = judge(
    model, variables, prompts, completions, pad_id=pad_id, batch_size=batch_size, which=which
  )
  return [judgement.log_probs for judgement in found]


@dataclasses.dataclass(frozen=True)
class Choice:
  """What a model finds most probable among given completions of a prompt.

  best: the number of the one with the highest score, the first of equals.
  scores: of all of them. log_probs: of all of their tokens.
  """

  best: int
  scores: list[float]
  log_probs: list[list[float]]


def choose(
  model: Decoder,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  choices: Sequence[Sequence[Sequence[int]]],
  *,
  by: str = "sum",
  pad_id: int = 0,
  batch_size: int = 32,
  which: Sequence[int] | None = None,
) -> list[Choice]:
  """The best of `choices[i]` after `prompts[i]`, for every prompt.

  Args:
    by: a choice's score, "sum" of its tokens' log-probabilities or their "mean", which does not
      favour short ones. which: of each prompt. The others: see `score`.

  Raises:
    ValueError: as `score`; a prompt has no choices; `by` is another word.
  """
  if by not in ("sum", "mean"):
    raise ValueError(f"by is {by!r}; it is 'sum' or 'mean'")
  if len(prompts) != len(choices):
    raise ValueError(f"there are {len(prompts)} prompts for {len(choices)} lists of choices")
  for i, some in enumerate(choices):
    if not len(some):
      raise ValueError(f"prompt {i} has no choices")
  pairs = [(p, c) for p, some in zip(prompts, choices, strict=True) for c in some]
  if which is not None:
    if len(which) != len(prompts):
      raise ValueError(f"there are {len(which)} adapters' slots for {len(prompts)} prompts")
    which = [slot for slot, some in zip(which, choices, strict=True) for _ in some]
  flat = iter(
    score(
      model,
      variables,
      [prompt for prompt, _ in pairs],
      [choice for _, choice in pairs],
      pad_id=pad_id,
      batch_size=batch_size,
      which=which,
    )
  )
  found = []
  for some in choices:
    log_probs = [next(flat) for _ in some]
    scores = [sum(each) / (len(each) if by == "mean" else 1) for each in log_probs]
    found.append(Choice(scores.index(max(scores)), scores, log_probs))
  return found
