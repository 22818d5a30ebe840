"""Documents of text as problems for an encoder: some tokens are hidden, and predicted in place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from research.data import corruption
from research.data.examples import BadRow, Example

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class _Mask:
  """See `mask`."""

  bidirectional: ClassVar[bool] = False  # No prefix: an encoder sees everything anyway.
  settings: Mapping[str, Any]
  special: np.ndarray
  words: bool

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    if target_length is not None:
      raise ValueError("the corruption 'mask' is for encoders; an encoder-decoder has 'spans'")
    return length

  def check(self, example: Example) -> None:
    if example.form != ("targets",):
      raise BadRow("with labels", "the corruption 'mask' makes problems of texts alone")
    if np.isin(example.tokens, self.special).all():
      raise BadRow("too short to corrupt", f"its {len(example)} tokens are special ones")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    tokens, chosen = corruption.mask_tokens(
      example.tokens,
      rng,
      special=np.isin(example.tokens, self.special),
      words=example.words,
      **self.settings,
    )
    labels = np.where(chosen, example.tokens, 0)
    return dataclasses.replace(example, tokens=tokens, labels=labels, weights_mask=chosen)


def mask(
  tokenizer: Tokenizer,
  *,
  rate: float = 0.15,
  masked: float = 0.8,
  random: float = 0.1,
  whole_words: bool = False,
) -> _Mask:
  """BERT's masked language modelling, drawn anew each epoch (Liu et al. 2019, section 4.1).

  Args:
    rate, masked, random: see `corruption.mask_tokens`.
    whole_words: choose words, by what the tokenizer's pre-tokenizer cuts texts into.
  """
  if "mask_token" not in tokenizer.special_tokens:
    raise ValueError("the tokenizer has no mask token, which the corruption 'mask' needs")
  settings: dict[str, Any] = {
    "mask_id": tokenizer.token_id(tokenizer.special_tokens["mask_token"]),
    "vocab_size": tokenizer.vocab_size,
    "rate": rate,
    "masked": masked,
    "random": random,
  }
  nothing = np.zeros(0, np.int32)
  corruption.mask_tokens(
    nothing, np.random.default_rng(0), special=nothing.astype(bool), **settings
  )  # which judges the shares
  ids = (tokenizer.token_id(token) for token in tokenizer.special_tokens.values())
  return _Mask(settings, np.asarray(sorted(ids)), whole_words)
