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
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from research.core import config as config_lib
from research.data import corruption, masking
from research.data.examples import BadRow, Example

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


def _check_learnt(example: Example, least: int) -> None:
  if not example.weights_mask[1:].all():
    raise BadRow("with a prompt", "only documents that are learnt whole can be corrupted")
  if len(example) < least:
    raise BadRow("too short to corrupt", f"it has {len(example)} tokens of at least {least}")


@dataclasses.dataclass(frozen=True)
class _Prefix:
  """See `prefix`."""

  words: ClassVar[bool] = False
  split: str
  rate: float | None
  mode: tuple[int, ...]
  bos_id: int | None
  bidirectional: bool

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    # Each side of a pair has a token less than the document at most, and one more, EOS or start.
    most = length - len(self.mode)
    return most if target_length is None else min(most, target_length)

  def check(self, example: Example) -> None:
    if self.split == "random":
      _check_learnt(example, 2)
    elif example.weights_mask.all():
      raise BadRow("without a prompt", "the corruption's split is 'prompt'; 'random' needs none")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    if self.split == "random":
      cut = corruption.prefix_length(len(example), rng, rate=self.rate)
    else:
      cut = 1 + int(np.argmax(example.weights_mask[1:]))
    learnt = example.weights_mask & (np.arange(len(example)) >= cut)
    at = int(example.tokens[0] == self.bos_id)
    cut += len(self.mode)
    return dataclasses.replace(
      example,
      tokens=np.insert(example.tokens, [at] * len(self.mode), self.mode).astype(np.int32),
      weights_mask=np.insert(learnt, [at] * len(self.mode), False),
      prefix=cut if self.bidirectional else 0,
    )


def prefix(
  tokenizer: Tokenizer,
  *,
  split: str = "random",
  rate: float | None = None,
  mode: str = "",
  bidirectional: bool = True,
) -> Denoiser:
  """Prefix language modelling (Raffel et al. 2020; Tay et al. 2022): what follows is learnt.

  Args:
    split: `random`, as `corruption.prefix_length`, or `prompt`: what comes before the first
      token of the completion or of the assistant.
    rate: the mean share of the tokens that are learnt; by default any split is as likely.
    mode: a token that begins the document, after BOS.
    bidirectional: tokens of the prefix see each other both ways.
  """
  if split not in ("random", "prompt"):
    raise ValueError(f"corruption.split {split!r} is neither 'random' nor 'prompt'")
  if rate is not None and (split == "prompt" or not 0 < rate <= 0.5):
    raise ValueError(f"corruption.rate {rate} of split {split!r}: a random split's, at most 0.5")
  return _Prefix(split, rate, _ids(tokenizer, mode), tokenizer.bos_id, bidirectional)


@dataclasses.dataclass(frozen=True)
class _Spans:
  """See `spans`."""

  words: ClassVar[bool] = False
  rate: float
  mean_span: float
  sentinels: np.ndarray
  mode: tuple[int, ...]
  separator: tuple[int, ...]
  bos_id: int | None
  eos_ids: tuple[int, ...]
  bidirectional: bool

  def raw_length(self, length: int, target_length: int | None = None) -> int:
    frame = len(self.mode) + len(self.separator) + (self.bos_id is not None) + 1
    for tokens in range(length + (target_length or 0), 1, -1):
      noise, spans = corruption.span_counts(tokens, self.rate, self.mean_span)
      if target_length is None:
        fits = tokens + 2 * spans + frame <= length
      else:
        fits = tokens - noise + spans + frame <= length and noise + spans + 2 <= target_length
      if fits:
        if spans > len(self.sentinels):
          raise ValueError(
            f"rows of {length} tokens have up to {spans} spans, and there are "
            f"{len(self.sentinels)} sentinels"
          )
        return tokens
    raise ValueError(f"no document with a span fits rows of {length} tokens")

  def check(self, example: Example) -> None:
    begin, end = self._body(example)
    _check_learnt(example, 2 + len(example) - (end - begin))

  def _body(self, example: Example) -> tuple[int, int]:
    """Where BOS is over and EOS begins."""
    begin = int(example.tokens[0] == self.bos_id)
    return begin, len(example) - int(example.tokens[-1] in self.eos_ids)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    begin, end = self._body(example)
    body = example.tokens[begin:end]
    noise = corruption.noise_spans(len(body), rng, rate=self.rate, mean_span=self.mean_span)
    inputs, targets = corruption.drop_spans(body, noise, self.sentinels)
    asked = np.concatenate([example.tokens[:begin], self.mode, inputs, self.separator])
    tokens = np.concatenate([asked, targets, self.eos_ids[:1]]).astype(np.int32)
    return dataclasses.replace(
      example,
      tokens=tokens,
      weights_mask=np.arange(len(tokens)) >= len(asked),
      prefix=len(asked) if self.bidirectional else 0,
    )


def spans(
  tokenizer: Tokenizer,
  *,
  rate: float = 0.15,
  mean_span: float = 3.0,
  sentinels: int = 0,
  separator: str = "",
  mode: str = "",
  bidirectional: bool = True,
) -> Denoiser:
  """Span corruption in one document: inputs, separator, targets, EOS; the targets are learnt.

  Args:
    rate, mean_span: see `corruption.noise_spans`.
    sentinels: so many of the vocabulary's last tokens; 0 is those named `<extra_id_0>`, ...
    separator: a token between inputs and targets; the first sentinel again says as much.
    mode: a token that begins the document, after BOS.
    bidirectional: tokens of the inputs see each other both ways.
  """
  corruption.span_counts(2, rate, mean_span)
  return _Spans(
    rate,
    mean_span,
    corruption.sentinel_ids(tokenizer, sentinels),
    _ids(tokenizer, mode),
    _ids(tokenizer, separator),
    tokenizer.bos_id,
    tokenizer.eos_ids,
    bidirectional,
  )


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
    sentinels, separator, bidirectional: see `spans`.
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
  "prefix": prefix,
  "spans": spans,
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


def _ids(tokenizer: Tokenizer, token: str) -> tuple[int, ...]:
  return (tokenizer.token_id(token),) if token else ()
