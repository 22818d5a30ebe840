"""Documents made into problems: masked tokens, dropped spans, a prefix.

Each function is one of token ids, a generator and settings, and of nothing else.

Axis legend: T tokens of a document, W words.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


def mask_tokens(
  tokens: np.ndarray,
  rng: np.random.Generator,
  *,
  mask_id: int,
  vocab_size: int,
  special: np.ndarray,
  words: np.ndarray | None = None,
  rate: float = 0.15,
  masked: float = 0.8,
  random: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
  """BERT's masking (Devlin et al. 2018), each token by itself or each word.

  A token is chosen with probability `rate`. Of the chosen a share `masked` becomes `mask_id`, a
  share `random` any token of the vocabulary, and the rest stays; that is drawn token by token
  also where words are chosen whole.

  Args:
    tokens: int32 `[T]`.
    mask_id: the mask token.
    vocab_size: random tokens are below it.
    special: bool `[T]`: tokens that are never chosen.
    words: int `[T]`, equal for neighbours of one word (`Tokenizer.encode_words`), to choose
      whole words; by default every token is a word.

  Returns:
    What the model sees, int32 `[T]`, and bool `[T]`, the chosen tokens, which it predicts.

  Raises:
    ValueError: a share that is not within 0 and 1, or two that are more than 1.
  """
  if not (0 <= rate <= 1 and min(masked, random) >= 0 and masked + random <= 1):
    raise ValueError(
      "rate, masked and random are shares, the last two at most 1 together, not "
      f"{rate}, {masked}, {random}"
    )
  if words is None:
    words = np.arange(len(tokens))
  word = np.cumsum(np.diff(words, prepend=words[:1]) != 0)  # [T], from 0
  chosen = (rng.random(len(tokens)) < rate)[word] & ~special
  fate = rng.random(len(tokens))
  drawn = rng.integers(vocab_size, size=len(tokens), dtype=tokens.dtype)
  inputs = np.where(fate < masked, mask_id, np.where(fate < masked + random, drawn, tokens))
  return np.where(chosen, inputs, tokens).astype(tokens.dtype), chosen


def span_counts(length: int, rate: float, mean_span: float) -> tuple[int, int]:
  """The numbers of noise tokens and of noise spans in `length` tokens.

  Raises:
    ValueError: fewer than 2 tokens, a rate that is not between 0 and 1, or a span below 1.
  """
  if length < 2 or not 0 < rate < 1 or mean_span < 1:
    raise ValueError(
      "spans need 2 tokens, a rate between 0 and 1 and a mean of 1 token, not "
      f"{length}, {rate}, {mean_span}"
    )
  noise = min(max(round(length * rate), 1), length - 1)
  spans = min(max(round(noise / mean_span), 1), noise, length - noise)
  return noise, spans


def noise_spans(
  length: int, rng: np.random.Generator, *, rate: float = 0.15, mean_span: float = 3.0
) -> np.ndarray:
  """Which tokens are noise: exactly `span_counts` of them and of spans (Raffel et al. 2020).

  The lengths of the noise spans, and of what is between them, are each a random composition of
  their sum, all equally likely. The first token is not noise and the last one is.

  Returns:
    bool `[T]`.

  Raises:
    ValueError: as `span_counts`.
  """
  noise, spans = span_counts(length, rate, mean_span)
  lengths = np.empty(2 * spans, np.int64)
  lengths[0::2] = _composition(length - noise, spans, rng)
  lengths[1::2] = _composition(noise, spans, rng)
  return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
  """`parts` lengths of at least 1 that sum to `total`."""
  cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
  return np.diff(cuts, prepend=0, append=total)


def drop_spans(
  tokens: np.ndarray, noise: np.ndarray, sentinels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """T5's inputs and targets, without EOS (Raffel et al. 2020, section 3.1.4).

  In the inputs the n-th noise span is replaced by the n-th sentinel; the targets are each span
  after its sentinel. No sentinel ends them: like T5's data, and unlike the figure in its paper.

  Args:
    tokens: int32 `[T]`.
    noise: bool `[T]`.
    sentinels: ids, at least as many as there are spans.

  Raises:
    ValueError: there are too few sentinels.
  """
  first = noise & ~np.concatenate([[False], noise[:-1]])
  spans = int(first.sum())
  if spans > len(sentinels):
    raise ValueError(f"{spans} spans need as many sentinels, and there are {len(sentinels)}")
  used = np.asarray(sentinels[:spans], tokens.dtype)
  inputs = tokens.copy()
  inputs[first] = used
  starts = (np.cumsum(noise) - 1)[first]
  return inputs[first | ~noise], np.insert(tokens[noise], starts, used)


def sentinel_ids(tokenizer: Tokenizer, last: int = 0) -> np.ndarray:
  """The ids that stand for spans, the first span's first.

  Args:
    last: so many ids of the end of the vocabulary, the highest first; 0 is the tokens named
      `<extra_id_0>`, `<extra_id_1>`, ...

  Raises:
    ValueError: there are none of that name, or the vocabulary is smaller.
  """
  if last:
    if not 0 < last <= tokenizer.vocab_size:
      raise ValueError(f"{last} sentinels of a vocabulary of {tokenizer.vocab_size} tokens")
    return np.arange(tokenizer.vocab_size - 1, tokenizer.vocab_size - 1 - last, -1)
  named = (tokenizer.backend.token_to_id(f"<extra_id_{i}>") for i in itertools.count())
  ids = list(itertools.takewhile(lambda token: token is not None, named))
  if not ids:
    raise ValueError(
      "the vocabulary has no <extra_id_0>; sentinels=100 takes the last 100 tokens instead"
    )
  return np.asarray(ids)


def prefix_length(length: int, rng: np.random.Generator, *, rate: float | None = None) -> int:
  """How many of `length` tokens are the prefix, at least one and not all.

  Args:
    rate: the mean share of what is not prefix, about which it is uniform; by default any split
      is equally likely.

  Raises:
    ValueError: fewer than 2 tokens, or a rate that is not above 0 and at most 1/2.
  """
  if length < 2 or not (rate is None or 0 < rate <= 0.5):
    raise ValueError(
      f"a prefix needs 2 tokens and a rate above 0 and at most 0.5, not {length}, {rate}"
    )
  most = length - 1 if rate is None else max(1, min(length - 1, round(2 * rate * length)))
  return length - int(rng.integers(1, most, endpoint=True))
