"""How fast a model writes: latency as a reader sees it, token by token, and throughput.

Prompts are random tokens, and nothing ends a completion before its number of tokens. Programs are
compiled, and run once, before the clock starts.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from research.core import memory
from research.generation import checks, continuous, decode, engine, layout, speculative
from research.generation.continuous import Request
from research.generation.draft import Draft
from research.generation.samplers import Sampler
from research.generation.speculative import Speculation
from research.models.decoder import Decoder
from research.quant.cache import CacheScheme

_SPREAD = 16  # of the longest completion to the shortest, where they are unequal


@dataclasses.dataclass(frozen=True)
class Report:
  """Seconds, bytes and rates.

  batch_size, prompt_tokens, new_tokens, requests: what was measured; of unequal completions,
    new_tokens is the longest.
  time_to_first_token: median over requests, from when a row takes the prompt.
  between_tokens: median, p95 and p99 over tokens. Of tokens that come together, as from a draft,
    the first one has waited for all of them, and the others not at all.
  tokens_per_second: new tokens over the whole time, prompts included.
  cache_bytes_per_token: of one token in one row, of the draft too.
  acceptance, tokens_per_pass: see `speculative.Speculation`; None without a draft.
  """

  batch_size: int
  prompt_tokens: int
  new_tokens: int
  requests: int
  time_to_first_token: float
  between_tokens: dict[str, float]
  tokens_per_second: float
  requests_per_second: float
  peak_bytes: int
  cache_bytes_per_token: int
  acceptance: float | None = None
  tokens_per_pass: float | None = None

  def table(self) -> str:
    """A line a figure."""
    rows = [
      ("requests", f"{self.requests}, {self.batch_size} at a time"),
      ("tokens of a prompt", f"{self.prompt_tokens}"),
      ("new tokens", f"{self.new_tokens}"),
      ("time to first token", f"{1e3 * self.time_to_first_token:.1f} ms"),
      *(
        (f"time between tokens, {name}", f"{1e3 * value:.1f} ms")
        for name, value in self.between_tokens.items()
      ),
      ("tokens/s", f"{self.tokens_per_second:.1f}"),
      ("requests/s", f"{self.requests_per_second:.3f}"),
      ("peak memory", f"{self.peak_bytes / 1e9:.2f} GB"),
      ("cache of a token", f"{self.cache_bytes_per_token:,} bytes"),
    ]
    if self.acceptance is not None:
      rows.append(("drafted tokens that stay", f"{self.acceptance:.1%}"))
      rows.append(("tokens of a pass", f"{self.tokens_per_pass:.2f}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def measure(
  model: Decoder,
  variables: Any,
  sampler: Sampler | None = None,
  *,
  batch_size: int,
  prompt_tokens: int,
  new_tokens: int,
  requests: int,
  draft: Draft | None = None,
  draft_tokens: int = 4,
  continuous: bool = False,
  cache: CacheScheme | None = None,
  seed: int = 0,
) -> Report:
  """Measures one method: plain batches, batches with a draft, or a queue.

  Args:
    sampler: by default takes the most probable token.
    draft, draft_tokens: see `research.generation.speculate`.
    continuous: finished rows take the next request at once (`research.generation.serve`);
      completions are then of unequal lengths, drawn log-uniformly from a sixteenth of `new_tokens`
      up to all of it.
    cache: see `research.generation.generate`; of plain batches.

  Raises:
    ValueError: as `research.generation.generate` and `speculate`.
  """
  checks.decoder(model, "the benchmark")
  checks.positive(
    batch_size=batch_size, prompt_tokens=prompt_tokens, new_tokens=new_tokens, requests=requests
  )
  random = np.random.default_rng(seed)
  shape = (requests, prompt_tokens)
  prompts = random.integers(0, model.config.vocab_size, shape).tolist()
  prompts = decode.led(model, variables, prompts, new_tokens)
  low, high = np.log([max(1, new_tokens / _SPREAD), new_tokens])
  lengths = np.exp(random.uniform(low, high, requests)).astype(int) if continuous else [new_tokens]
  queue = [Request(prompt, int(lengths[i % len(lengths)])) for i, prompt in enumerate(prompts)]
  if cache is not None and (draft or continuous):
    raise ValueError("a cache in few bits is for plain batches, without a draft or a queue")
  runner = _Runner(
    model, variables, sampler or Sampler(), batch_size, seed, draft, draft_tokens, cache
  )
  run = runner.queue if continuous else runner.drafted if draft else runner.plain
  run(queue[: 2 * batch_size], _Watch())  # compiles
  watch = _Watch()
  started = time.perf_counter()
  told = run(queue, watch)
  seconds = time.perf_counter() - started
  gaps = np.percentile(watch.gaps, [50, 95, 99]) if watch.gaps else np.zeros(3)
  return Report(
    batch_size=batch_size,
    prompt_tokens=prompt_tokens,
    new_tokens=new_tokens,
    requests=requests,
    time_to_first_token=float(np.median(watch.first)),
    between_tokens=dict(zip(("median", "p95", "p99"), gaps.tolist(), strict=True)),
    tokens_per_second=(len(watch.first) + len(watch.gaps)) / seconds,
    requests_per_second=requests / seconds,
    peak_bytes=memory.peak_bytes(),
    cache_bytes_per_token=runner.cache_bytes(prompt_tokens + new_tokens),
    acceptance=told.acceptance if told else None,
    tokens_per_pass=told.tokens_per_pass if told else None,
  )


class _Watch:
  """When tokens came. first: seconds to each request's first. gaps: seconds to each other one."""

  def __init__(self) -> None:
    self.first: list[float] = []
    self.gaps: list[float] = []
    self._since: dict[int, float] = {}
    self._written: dict[int, int] = {}

  def taken(self, requests: Iterable[int]) -> None:
    """These begin now."""
    for request in requests:
      self._since[request], self._written[request] = time.perf_counter(), 0

  def written(self, lengths: Mapping[int, int]) -> None:
    """So many tokens of these are there now."""
    now = time.perf_counter()
    for request, length in lengths.items():
      new = length - self._written[request]
      if not new:
        continue
      times = self.gaps if self._written[request] else self.first
      times.append(now - self._since[request])
      self.gaps += [0.0] * (new - 1)
      self._since[request], self._written[request] = now, length


class _Runner:
  """Each method, a step of it at a time; `models` are those that it runs.

  Their functions return what a draft was worth, without completions; None without a draft.
  """

  def __init__(self, model, variables, sampler, batch_size, seed, draft, draft_tokens, cache):
    pairs = [(model, variables)] + ([tuple(draft)] if draft else [])
    prepared = [decode.prepare(*pair, None) for pair in pairs]
    self.models = tuple(model for model, _ in prepared)
    self._variables = tuple(variables for _, variables in prepared)
    self._sampler, self._batch_size, self._seed = sampler, batch_size, seed
    self._draft_tokens, self._cache = draft_tokens, cache

  def cache_bytes(self, slots: int) -> int:
    """Of a token in one row of so many slots."""

    def empty(model):
      cache = model.init_cache(1, layout.slots(slots))
      return cache.compress(self._cache, 1, slots) if self._cache else cache

    found = [jax.eval_shape(lambda model=model: empty(model)) for model in self.models]
    return sum(
      leaf.size * leaf.dtype.itemsize // cache.positions.shape[1]
      for cache in found
      for leaf in jax.tree.leaves(cache.layers)
    )

  def plain(self, requests: Sequence[Request], watch: _Watch) -> Speculation | None:
    count = requests[0].max_new_tokens
    same = {"model": self.models[0], "sampler": self._sampler, "eos_ids": ()}
    for batch, arguments in self._batches(requests, watch):
      state, keys = engine.start(
        self._variables[0],
        *arguments,
        samples=1,
        max_new_tokens=count,
        scheme=self._cache,
        **same,
      )
      watch.written(_lengths(batch, state.written))
      for step in range(2, count + 1):
        state = engine.go_on(self._variables[0], state, keys, np.int32(step), **same)
        watch.written(_lengths(batch, state.written))
    return None

  def drafted(self, requests: Sequence[Request], watch: _Watch) -> Speculation | None:
    count = requests[0].max_new_tokens
    same = {"models": self.models, "sampler": self._sampler, "eos_ids": ()}
    same["draft_tokens"] = self._draft_tokens
    counts = np.zeros((4,), np.int64)
    for batch, arguments in self._batches(requests, watch):
      state, keys = speculative.start(
        self._variables, *arguments, samples=1, max_new_tokens=count, **same
      )
      lengths = _lengths(batch, state.written)
      watch.written(lengths)
      while min(lengths.values()) < count:
        state = speculative.go_on(self._variables, state, keys, np.int32(1), **same)
        lengths = _lengths(batch, state.written)
        watch.written(lengths)
      counts += np.asarray(state.counts)
    return Speculation([], *counts.tolist())

  def queue(self, requests: Sequence[Request], watch: _Watch) -> Speculation | None:
    slots = max(len(request.prompt) + request.max_new_tokens for request in requests)
    rows = continuous.Rows(
      self.models[0],
      self._variables[0],
      self._sampler,
      (),
      shape=(self._batch_size, slots),
      numbers=(self._seed, 0, 0),
    )
    waiting = list(enumerate(requests))
    while waiting or rows.occupied:
      newcomers, waiting = waiting[: rows.free], waiting[rows.free :]
      watch.taken(number for number, _ in newcomers)
      rows.admit(newcomers)
      rows.advance(0 if newcomers else 1)
      watch.written(rows.lengths)
    return None

  def _batches(self, requests, watch):
    prompts = [request.prompt for request in requests]
    for batch in layout.batches(prompts, samples=1, batch_size=self._batch_size, pad_id=0):
      watch.taken(int(i) for i in batch.prompt if i >= 0)
      yield (
        batch,
        (batch.tokens, batch.positions, batch.prompt, batch.first_sample, self._seed, 0),
      )


def _lengths(batch: layout.Batch, written: engine.Written) -> dict[int, int]:
  """Of each request of the batch; waits until they are known."""
  pairs = zip(batch.prompt, np.asarray(written.length), strict=True)
  return {int(i): int(length) for i, length in pairs if i >= 0}
