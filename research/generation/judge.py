"""How a model finds given completions: their tokens' log-probabilities, and whether it would have
written them itself.

Completions of one prompt share one pass over it: the prompts are read into a cache, and the
completions, each with the last token of its prompt, through it.

R prompts, K completions of each, B = R * K rows, P prompt slots, S tokens, N tokens to judge, D
model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from research.core import sharding
from research.generation import checks, decode, layout
from research.losses import cross_entropy
from research.models.decoder import Decoder

_SHORTEST = 16


class Judgement(NamedTuple):
  """log_probs: of a completion's tokens, in nats. greedy: whether each was the most probable."""

  log_probs: list[float]
  greedy: bool


def judge(
  model: Decoder,
  variables: Any,
  prompts: Sequence[Sequence[int]],
  completions: Sequence[Sequence[int]],
  *,
  pad_id: int = 0,
  batch_size: int = 32,
  which: Sequence[int] | None = None,
  progress: Callable[[int], object] | None = None,
) -> list[Judgement]:
  """What the model makes of `completions[i]` after `prompts[i]`, for every pair.

  Prompts cost no logits, and those of completions are never held all at once.

  Args:
    model: a decoder. variables: its `params`, and `adapters` if it has any.
    prompts, completions: token ids; as many of the one as of the other. Equal prompts are read
      once for up to `batch_size` completions.
    pad_id: what stands at padding; no result depends on it.
    batch_size: completions at a time at most.
    which: where the adapters are a bank (`peft.bank`), the slot of each pair's, -1 for none.
    progress: called with the number of completions that a batch has added.

  Raises:
    ValueError: a prompt or a completion is empty, they are too long for the model's positions, or
      hold a token that it has not; they are not equally many; or `which` is not of a bank.
  """
  if len(prompts) != len(completions):
    raise ValueError(f"there are {len(prompts)} prompts for {len(completions)} completions")
  checks.decoder(model, "scoring completions")
  checks.positive(batch_size=batch_size)
  lead, before = decode.ahead(variables)
  slots = decode.slots(variables, which, len(prompts))
  groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
  for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
    _check(model, prompt, completion, i, before)
    own = tuple(prompt) if reads_once(model, prompt) else (-1, i)
    groups.setdefault((-1 if slots is None else int(slots[i]), own), []).append(i)
  prompts = [[*lead, *prompt] for prompt in prompts]
  parts = [
    tuple(group[start : start + batch_size])
    for group in groups.values()
    for start in range(0, len(group), batch_size)
  ]

  def key(part: tuple[int, ...]) -> tuple[int, int]:
    # Like lengths share a batch, the longest first, so that few tokens are padding.
    return -len(part), -len(prompts[part[0]]) - (len(completions[part[0]]) if len(part) == 1 else 0)

  found: dict[int, Judgement] = {}
  for copies, same in itertools.groupby(sorted(parts, key=key), len):
    for some in _chunks(list(same), max(1, batch_size // copies)):
      chosen = [i for part in some for i in part]
      pairs = [(list(prompts[i]), list(completions[i])) for i in chosen]
      rows = min(max(1, batch_size // copies), layout.bucket(len(some), shortest=1))
      run = _alone if copies == 1 else partial(_shared, copies=copies)
      first = np.array([part[0] for part in some] + [-1] * (rows - len(some)))
      told = decode.route(variables, slots, first)
      log_probs, best = sharding.fetched(run(model, told, pairs, rows, pad_id))
      end = 0
      for i in chosen:
        start, end = end, end + len(completions[i])
        found[i] = Judgement(log_probs[start:end].tolist(), bool(best[start:end].all()))
      if progress is not None:
        progress(len(chosen))
  return [found[i] for i in range(len(prompts))]


def _check(
  model: Decoder, prompt: Sequence[int], completion: Sequence[int], i: int, before: int
) -> None:
  checks.tokens(model, prompt, f"prompt {i}")
  checks.tokens(model, completion, f"completion {i}")
  length = before + len(prompt) + len(completion) - 1  # the last token is not read
  limit = model.config.max_positions
  if length > limit:
    raise ValueError(f"prompt and completion {i} take {length} positions; the model has {limit}")


def reads_once(model: Decoder, prompt: Sequence[int]) -> bool:
  """Whether `judge` reads this prompt apart from what follows it, once for all its completions."""
  ropes = (model.config.rope, model.config.local_rope)
  return len(prompt) > 1 and not any(rope is not None and rope.by_length for rope in ropes)


def _chunks(parts: list[Any], size: int) -> Iterator[list[Any]]:
  return (parts[start : start + size] for start in range(0, len(parts), size))


def _alone(model, variables, pairs, rows, pad_id):
  """Each prompt with its completion as one row."""
  tokens, filled = _padded(
    [[*prompt, *completion][:-1] for prompt, completion in pairs], rows, pad_id
  )
  places, targets = _targets([len(prompt) - 1 for prompt, _ in pairs], [c for _, c in pairs])
  return _read(model, variables, tokens, filled, places, targets)


def _shared(model, variables, pairs, rows, pad_id, *, copies):
  """Prompts without their last token, and rows of that token and a completion."""
  before, filled = _padded([prompt[:-1] for prompt, _ in pairs[::copies]], rows, pad_id)
  tokens, follow = _padded([[p[-1], *c][:-1] for p, c in pairs], rows * copies, pad_id)
  lengths = np.repeat(filled.sum(axis=1, dtype=np.int32), copies)
  places, targets = _targets([0] * len(pairs), [c for _, c in pairs])
  return _read_shared(
    model,
    variables,
    (before, np.where(filled, np.arange(before.shape[1], dtype=np.int32), -1)),
    (tokens, np.where(follow, lengths[:, None] + np.arange(tokens.shape[1], dtype=np.int32), -1)),
    places,
    targets,
  )


def _size(length: int) -> int:
  """A power of two or one and a half, at least `length`: few shapes, and little padding."""
  size = layout.bucket(length, _SHORTEST)
  return size * 3 // 4 if length <= size * 3 // 4 else size


def _padded(texts, rows, pad_id):
  """`texts` as the first of so many rows, int32 `[rows, S]`, and 1 where they have a token."""
  tokens = np.full((rows, _size(max(map(len, texts)))), pad_id, np.int32)
  filled = np.zeros_like(tokens)
  for row, text in enumerate(texts):
    tokens[row, : len(text)] = text
    filled[row, : len(text)] = 1
  return tokens, filled


def _targets(first, completions):
  """Rows and columns of the tokens before those to judge, int32 `[2, N]`, and these, `[N]`.

  first: the column before the first token of each row's completion.
  """
  count = sum(map(len, completions))
  places, targets = np.zeros((2, _size(count)), np.int32), np.zeros((_size(count),), np.int32)
  places[0, :count] = np.repeat(np.arange(len(completions)), list(map(len, completions)))
  columns = [
    at + np.arange(len(completion)) for at, completion in zip(first, completions, strict=True)
  ]
  places[1, :count] = np.concatenate(columns)
  targets[:count] = np.concatenate(completions)
  return places, targets


@partial(jax.jit, static_argnums=0)
def _read(model, variables, tokens, segments, places, targets):
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")  # [B, S, D]
  return _judge(model, variables, hidden, places, targets)


@partial(jax.jit, static_argnums=0)
def _read_shared(model, variables, before, after, places, targets):
  """before: tokens and positions `[R, P]`. after: tokens and positions `[B, S]`."""
  rows, length = before[0].shape
  _, cache = model.apply(variables, *before, cache=model.init_cache(rows, length), method="hidden")
  cache = cache.expand(after[0].shape[0] // rows, length + after[0].shape[1])
  hidden, _ = model.apply(variables, *after, cache=cache, method="hidden")  # [B, S, D]
  return _judge(model, variables, hidden, places, targets)


def _judge(model, variables, hidden, places, targets):
  """The log-probability of each target, float32 `[N]`, and whether it is the best, bool `[N]`."""

  def head(variables, hidden):
    return model.apply(variables, hidden, method="head")

  chosen = hidden[places[0], places[1]][None]  # [1, N, D]
  losses, best = cross_entropy.judge_tokens(head, variables, chosen, targets[None])
  return -losses[0], best[0]
