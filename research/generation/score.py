"""How probable given completions are, and which of several is most.

B rows, S tokens, C completion tokens, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.generation import checks, layout
from research.losses import cross_entropy
from research.models.decoder import Decoder


def score(
  model: Decoder,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  completions: Sequence[Sequence[int]],
  *,
  pad_id: int = 0,
  batch_size: int = 32,
) -> list[list[float]]:
  """The log-probability of every token of `completions[i]` after `prompts[i]`, in nats.

  They are the model's own, at temperature 1 and unfiltered. Prompts cost no logits, and those of
  completions are never held all at once.

  Args:
    model: a decoder. variables: its `params`, and `adapters` if it has any.
    prompts, completions: token ids; as many of the one as of the other.
    pad_id: what stands at padding; no result depends on it.
    batch_size: rows at a time at most.

  Raises:
    ValueError: a prompt or a completion is empty, they are too long for the model's positions, or
      hold a token that it has not; or they are not equally many.
  """
  if len(prompts) != len(completions):
    raise ValueError(f"there are {len(prompts)} prompts for {len(completions)} completions")
  checks.positive(batch_size=batch_size)
  for i, pair in enumerate(zip(prompts, completions, strict=True)):
    _check(model, *pair, i)
  found: list[list[float]] = [[] for _ in prompts]
  lengths = [len(p) + len(c) - 1 for p, c in zip(prompts, completions, strict=True)]
  # Like lengths share a batch, so that few tokens are padding.
  order = sorted(range(len(prompts)), key=lambda i: -lengths[i])
  for start in range(0, len(order), batch_size):
    chosen = order[start : start + batch_size]
    rows = min(batch_size, layout.bucket(len(chosen), shortest=1))
    longest = max(len(completions[i]) for i in chosen)
    tokens = np.full((rows, layout.bucket(lengths[chosen[0]])), pad_id, np.int32)
    segments = np.zeros_like(tokens)
    first = np.zeros((rows,), np.int32)
    targets = np.zeros((rows, layout.bucket(longest, shortest=1)), np.int32)
    for row, i in enumerate(chosen):
      tokens[row, : lengths[i]] = [*prompts[i], *completions[i]][:-1]
      segments[row, : lengths[i]] = 1
      first[row] = len(prompts[i]) - 1
      targets[row, : len(completions[i])] = completions[i]
    log_probs = np.asarray(_log_probs(model, variables, tokens, segments, first, targets))
    for row, i in enumerate(chosen):
      found[i] = log_probs[row, : len(completions[i])].tolist()
  return found


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
) -> list[Choice]:
  """The best of `choices[i]` after `prompts[i]`, for every prompt.

  Args:
    by: a choice's score, "sum" of its tokens' log-probabilities or their "mean", which does not
      favour short ones. The others: see `score`.

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
  flat = iter(
    score(
      model,
      variables,
      [prompt for prompt, _ in pairs],
      [choice for _, choice in pairs],
      pad_id=pad_id,
      batch_size=batch_size,
    )
  )
  found = []
  for some in choices:
    log_probs = [next(flat) for _ in some]
    scores = [sum(each) / (len(each) if by == "mean" else 1) for each in log_probs]
    found.append(Choice(scores.index(max(scores)), scores, log_probs))
  return found


def _check(model: Decoder, prompt: Sequence[int], completion: Sequence[int], i: int) -> None:
  checks.tokens(model, prompt, f"prompt {i}")
  checks.tokens(model, completion, f"completion {i}")
  length = len(prompt) + len(completion) - 1  # the last token is not read
  limit = model.config.max_positions
  if length > limit:
    raise ValueError(f"prompt and completion {i} take {length} positions; the model has {limit}")


@partial(jax.jit, static_argnums=0)
def _log_probs(model, variables, tokens, segments, first, targets):
  """Of `targets [B, C]`, of which row `b`'s first follows token `first[b]` of `tokens [B, S]`."""
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")  # [B, S, D]
  index = jnp.minimum(first[:, None] + jnp.arange(targets.shape[1]), tokens.shape[1] - 1)
  hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)  # [B, C, D]

  def head(variables, hidden):
    return model.apply(variables, hidden, method="head")

  return -cross_entropy.of_tokens(head, variables, hidden, targets)
