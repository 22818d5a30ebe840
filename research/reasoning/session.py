"""A model at work on problems: all of them in one batch, each with draws and a count of its own."""

from __future__ import annotations

import collections
import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from research import generation, models
from research.generation import checks, decode
from research.generation.judge import reads_once
from research.quant import CacheScheme
from research.reasoning.outcome import Cost, Reader, Sample
from research.reasoning.prompts import Ask


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked about a problem.

  problem: its number. written: what there is of the answer, by default what `ask` begins with.
  number: by which draws know it, different for all requests of a call and, so that they do not
    depend on other problems, a function of the problem's.
  """

  problem: int
  ask: Ask
  written: str | None = None
  number: int | None = None

  @property
  def begun(self) -> str:
    """What there is of the answer."""
    return self.ask.begin if self.written is None else self.written


@dataclasses.dataclass(frozen=True)
class Written:
  """A completion: `text` up to the stop string, and whether it came there.

  tokens: how many were written. log_probs: of those that begin in `text` or `stop`.
  ended: by the model's own EOS. finished: by that or by a stop string.
  stop: what stays of the stop string, empty where none came: all but the spaces at its end. Those
    begin the next word's token, and after a text that ends with one a model goes on as it never
    learnt to.
  """

  text: str
  tokens: int
  log_probs: tuple[float, ...]
  finished: bool
  ended: bool
  stop: str = ""


@dataclasses.dataclass
class Session:
  """A model, how it writes, and what each problem has cost so far.

  max_new_tokens: of an answer. sampler, seed: of all draws.
  progress: called with the number of completions that a batch has added.
  """

  model: Any
  variables: Any
  tokenizer: Any
  sampler: generation.Sampler
  max_new_tokens: int
  batch_size: int = 32
  seed: int = 0
  cache: CacheScheme | None = None
  progress: Callable[[int], object] | None = None
  costs: dict[int, Cost] = dataclasses.field(default_factory=lambda: collections.defaultdict(Cost))

  def write(
    self,
    requests: Sequence[Request],
    *,
    samples: int = 1,
    stage: str = "",
    stop: str = "",
    max_new_tokens: int | None = None,
  ) -> list[list[Written]]:
    """Goes on with each request `samples` times.

    Args:
      stage: what the draws are for; draws of other stages are others.
      stop: a string that ends a completion; empty: none. max_new_tokens: by default an answer's.

    Raises:
      ValueError: as `generation.generate`; or an answer is begun, and the model is an
        encoder-decoder, to which a prompt is the source.
    """
    if not requests:
      return []
    if isinstance(self.model, models.EncoderDecoder) and any(each.begun for each in requests):
      checks.decoder(self.model, "going on with a begun answer")
    prompts = [request.ask.ids(self.tokenizer, request.written) for request in requests]
    found = generation.generate(
      self.model,
      self.variables,
      prompts,
      self.sampler,
      max_new_tokens=max_new_tokens or self.max_new_tokens,
      eos_ids=self.tokenizer.eos_ids,
      stop=generation.StopStrings(self.tokenizer, (stop,)) if stop else None,
      samples=samples,
      seed=self._seed(stage),
      numbers=[r.problem if r.number is None else r.number for r in requests],
      batch_size=self.batch_size,
      cache=self.cache,
      progress=self.progress,
    )
    passes = math.ceil(samples / min(samples, self.batch_size))
    for request, prompt in zip(requests, prompts, strict=True):
      self.costs[request.problem].read += passes * (self._lead + len(prompt))
    self._called(request.problem for request in requests)
    rows: list[list[Written]] = [[] for _ in requests]
    for each in found:
      self.costs[requests[each.prompt].problem].written += len(each.tokens)
      rows[each.prompt].append(self._written(requests[each.prompt].begun, each, stop))
    return rows

  def answers(self, asks: Sequence[Ask], reader: Reader, *, samples: int = 1) -> list[list[Sample]]:
    """Whole answers to each problem, `samples` of each; `asks` are of problems 0, 1, …"""
    return self.ends([Request(i, ask) for i, ask in enumerate(asks)], reader, samples=samples)

  def ends(
    self, requests: Sequence[Request], reader: Reader, *, samples: int = 1, stage: str = ""
  ) -> list[list[Sample]]:
    """Each request's answer to its end, with what was there of it before."""
    rows = self.write(requests, samples=samples, stage=stage)
    found = []
    for request, row in zip(requests, rows, strict=True):
      before = request.begun
      found.append(
        [
          Sample(
            before + each.text,
            reader.read(before + each.text),
            each.tokens,
            each.log_probs,
            each.finished,
          )
          for each in row
        ]
      )
    return found

  def choose(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[float]]:
    """The probability of each choice as what follows a request, given that it is one of them.

    Equal requests of a problem are asked, and counted, once.

    Raises:
      ValueError: as `generation.choose`.
    """
    if not requests:
      return []
    ids = [self.tokenizer.encode(choice, add_special=False) for choice in choices]
    keys = [(r.problem, tuple(r.ask.ids(self.tokenizer, r.written))) for r in requests]
    asked = list(dict.fromkeys(keys))
    found = generation.choose(
      self.model,
      self.variables,
      [prompt for _, prompt in asked],
      [ids] * len(asked),
      batch_size=self.batch_size,
    )
    for problem, prompt in asked:
      once = reads_once(self.model, prompt)
      passes = math.ceil(len(ids) / self.batch_size) if once else len(ids)
      # The prompt but for its last token, and that with all but the last of each choice.
      self.costs[problem].read += passes * (self._lead + len(prompt) - 1) + sum(map(len, ids))
    self._called(problem for problem, _ in asked)
    shares = dict(zip(asked, [_shares(choice.scores) for choice in found], strict=True))
    return [shares[key] for key in keys]

  def charge(self, problems: Sequence[int], read: Sequence[int]) -> None:
    """Counts a call in which so many tokens were read about these problems, by another model."""
    for problem, tokens in zip(problems, read, strict=True):
      self.costs[problem].read += tokens
    self._called(problems)

  def _written(self, begun: str, completion: generation.Completion, stop: str) -> Written:
    """A completion of `begun`, cut before the stop string if it is there."""
    tokens = completion.tokens
    text, stays, count = self._continued(begun, tokens), "", len(tokens)
    if stop and stop in text:
      text, stays = text[: text.find(stop)], stop.rstrip(" ") or stop
      while self._continued(begun, tokens[: count - 1]).startswith(text + stays):
        count -= 1
    return Written(
      text,
      len(tokens),
      tuple(completion.log_probs[:count]),
      completion.finished,
      tokens[-1] in self.tokenizer.eos_ids,
      stays,
    )

  def _continued(self, begun: str, tokens: Sequence[int]) -> str:
    """What `tokens` add to `begun`: some tokenizers drop a space where a text begins."""
    if begun:
      before = self.tokenizer.encode(begun, add_special=False)
      start, whole = map(self.tokenizer.decode, (before, [*before, *tokens]))
      if whole.startswith(start):
        return whole[len(start) :]
    return self.tokenizer.decode(tokens)

  @property
  def _lead(self) -> int:
    return len(decode.ahead(self.variables)[0])

  def _called(self, problems: Any) -> None:
    for problem in set(problems):
      self.costs[problem].calls += 1

  def _seed(self, stage: str) -> int:
    """`seed` itself where answers begin, so that strategies share their first draws."""
    return zlib.crc32(f"{self.seed}/{stage}".encode()) >> 1 if stage else self.seed


def _shares(scores: Sequence[float]) -> list[float]:
  """Log-probabilities as shares that sum to 1."""
  best = max(scores)
  shares = [math.exp(score - best) for score in scores]
  return [share / sum(shares) for share in shares]
