"""Documents of text as problems: masked tokens; a prefix, dropped spans, a mixture of both.

A config's section `corruption` names one of `DENOISERS`:

  {"name": "mask", "rate": 0.15}
  {"name": "prefix", "split": "random"}
  {"name": "spans", "rate": 0.15, "mean_span": 3.0}
  {"name": "ul2", "regular": "[NLU]", "sequential": "[S2S]", "extreme": "[NLG]"}
  {"name": "mixture", "denoisers": [{"weight": 2, "name": "spans"}, {"name": "prefix"}]}

`mask` is for encoders. For a decoder the problem and its solution are one document, of which only
the solution is learnt; tokens of the problem see each other both ways. For an encoder-decoder they
are a source and a target, as T5 has them: each ends with EOS, and the target begins with the
decoder's start token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from research.core import config as config_lib
from research.data import masking, prefixes
from research.data.examples import Example

if TYPE_CHECKING:
  from research.data.tokenizer import Tokenizer


class Denoiser(Protocol):
  """Makes a problem of a document."""

  @property
  def bidirectional(self) -> bool:
    """Whether some of its problems have a prefix."""
    ...

  @property
  def words(self) -> bool:
    """Whether it needs the numbers of words."""
    ...

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    """The most tokens of a document whose problem has at most `length`.

    Args:
      target_length: of a pair's target, `length` being that of its source; None is one document.

    Raises:
      ValueError: no document is so short, or long ones cannot be made a problem.
    """
    ...

  def check(self, example: Example) -> None:
    """Raises BadRow for a document that it cannot make a problem of."""
    ...

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """The problem, which is a function of the document and of `rng`."""
    ...


@dataclasses.dataclass(frozen=True)
class _Mixture:
  """Each document takes one of the parts, by their shares, which sum to 1."""

  parts: tuple[Denoiser, ...]
  shares: np.ndarray

  @property
  def bidirectional(self) -> bool:
    return any(part.bidirectional for part in self.parts)

  @property
  def words(self) -> bool:
    return any(part.words for part in self.parts)

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    return min(part.raw_length(length, target_length) for part in self.parts)

  def check(self, example: Example) -> None:
    for part in self.parts:
      part.check(example)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    return self.parts[rng.choice(len(self.parts), p=self.shares)](example, rng)


def mixture(tokenizer: Tokenizer, *, denoisers: Sequence[Mapping[str, Any]]) -> Denoiser:
  """A denoiser a document, drawn by weight.

  Args:
    denoisers: sections like `corruption` itself, each with its `weight` (by default 1).
  """
  if not denoisers:
    raise ValueError("corruption.denoisers is empty; a mixture needs one")
  weights = np.array([section.get("weight", 1) for section in denoisers], np.float64)
  if weights.min() <= 0:
    raise ValueError(f"the weights of corruption.denoisers are above 0, not {weights.tolist()}")
  sections = [{key: part[key] for key in part if key != "weight"} for part in denoisers]
  parts = tuple(config_lib.call(DENOISERS, part, tokenizer=tokenizer) for part in sections)
  return _Mixture(parts, weights / weights.sum())


def ul2(
  tokenizer: Tokenizer,
  *,
  regular: str = "",
  sequential: str = "",
  extreme: str = "",
  sentinels: int = 0,
  separator: str = "",
  bidirectional: bool = True,
) -> Denoiser:
  """UL2's seven denoisers, equally often (Tay et al. 2022, table 1).

  Args:
    regular, sequential, extreme: the mode tokens of the R-, S- and X-denoisers.
    sentinels, separator, bidirectional: see `prefixes.spans`.
  """
  settings = {"bidirectional": bidirectional}
  dropped = {"name": "spans", "sentinels": sentinels, "separator": separator, **settings}
  kinds = [(regular, 0.15, 3.0), (regular, 0.15, 8.0)]
  kinds += [(extreme, 0.5, 3.0), (extreme, 0.5, 8.0), (extreme, 0.15, 64.0), (extreme, 0.5, 64.0)]
  denoisers: list[dict[str, Any]] = [
    {**dropped, "mode": mode, "rate": rate, "mean_span": span} for mode, rate, span in kinds
  ]
  denoisers.append({"name": "prefix", "mode": sequential, "rate": 0.25, **settings})
  return mixture(tokenizer, denoisers=denoisers)


@dataclasses.dataclass(frozen=True)
class _Paired:
  """What `denoiser` makes, cut into a source and a target where the solution begins."""

  denoiser: Denoiser
  start_id: int
  eos_ids: tuple[int, ...]
  bidirectional: bool = False
  words: bool = False

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    return self.denoiser.raw_length(length, target_length)

  def check(self, example: Example) -> None:
    self.denoiser.check(example)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    whole = self.denoiser(example, rng)
    cut = int(np.argmax(whole.weights_mask))
    tokens = np.insert(whole.tokens[cut:], 0, self.start_id).astype(np.int32)
    source = np.concatenate([whole.tokens[:cut], self.eos_ids[:1]]).astype(np.int32)
    mask = np.insert(whole.weights_mask[cut:], 0, False)
    return dataclasses.replace(whole, tokens=tokens, weights_mask=mask, prefix=0, source=source)


DENOISERS: dict[str, Callable[..., Denoiser]] = {
  "mask": masking.mask,
  "prefix": prefixes.prefix,
  "spans": prefixes.spans,
  "mixture": mixture,
  "ul2": ul2,
}


def build(
  section: Mapping[str, Any], tokenizer: Tokenizer, start_id: int | None = None
) -> Denoiser | None:
  """What a `corruption` section names, None for an empty one.

  Args:
    start_id: the token that an encoder-decoder's decoder begins with; problems then are pairs.

  Raises:
    ValueError: the section is wrong, or asks for tokens that the vocabulary lacks.
  """
  if not section:
    return None
  denoiser = config_lib.call(DENOISERS, section, tokenizer=tokenizer)
  return denoiser if start_id is None else _Paired(denoiser, start_id, tokenizer.eos_ids)
