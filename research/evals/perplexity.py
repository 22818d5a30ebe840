"""How well a model predicts text, every token of it once.

B windows of a batch, S tokens of a window, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from research.evals import bootstrap, few_bits, rolling
from research.evals.result import Result
from research.generation import checks, decode
from research.losses import cross_entropy
from research.quant import CacheScheme


@dataclasses.dataclass(frozen=True)
class Perplexity:
  """Negative log-likelihood of documents, in rolling windows.

  Metrics: `nll_per_token` (nats), `perplexity` (its exponential), `bits_per_byte` (of UTF-8;
  comparable across tokenizers), and the counts `tokens` (scored), `bytes`, `documents`. A record
  is a window: its `nll` and `tokens`.

  data: the config of a source whose rows have `text` (`research.data.sources`).
  length: tokens that a window shows; by default 1024, or all the positions of a smaller model.
  context: tokens before each scored token, at least, where there are as many; by default half of
    the length.
  batch_size: windows at a time.
  bos: a document begins with BOS (EOS where the tokenizer has no BOS), which is not scored, so
    that all of its tokens are. Without it the first token is shown and not scored.
  cache: a `quant.CacheScheme` as a dict: tokens see the ones before them as through a cache in few
    bits; empty: as they are.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int | None = None
  context: int | None = None
  batch_size: int = 4
  bos: bool = True
  cache: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  label: str = "perplexity"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Scores all documents.

    Raises:
      ValueError: the model is no decoder that writes; a window is longer than the model's
        positions, or the context is longer than it; a row has no `text`, or there is no token to
        score.
    """
    length = rolling.length_of(model, variables, self.length, self.label)
    checks.writes(model, self.label)
    context = rolling.context_of(self.context, length, self.label)
    documents = rolling.read(self.data, tokenizer, bos=self.bos, label=self.label)
    jobs = rolling.jobs_of(documents, length, context, self.label)
    if self.cache:
      variables = few_bits.remembering(CacheScheme(**self.cache), variables, model.config)
    sums = [0.0] * len(jobs)
    for i, losses in rolling.each(
      partial(token_losses, model, variables),
      documents.tokens,
      jobs,
      batch_size=self.batch_size,
      length=length,
      lead=decode.ahead(variables)[0],
      label=self.label,
    ):
      sums[i] = float(losses.sum(dtype=np.float64))
    records = [
      {
        "id": rolling.job_id(documents, job),
        "nll": nll,
        "tokens": job.window.stop - job.window.first,
      }
      for job, nll in zip(jobs, sums, strict=True)
    ]
    return self._result(records, documents.size, len(documents.tokens))

  def _result(self, records: list[dict[str, Any]], size: int, documents: int) -> Result:
    nats = [record["nll"] for record in records]
    counts = [record["tokens"] for record in records]
    total, tokens = math.fsum(nats), sum(counts)
    metrics = {
      "nll_per_token": total / tokens,
      "perplexity": math.exp(total / tokens),
      "bits_per_byte": total / math.log(2) / size,
      "tokens": tokens,
      "bytes": size,
      "documents": documents,
    }
    intervals = {}
    if len(records) > 1:
      low, high = bootstrap.interval(nats, counts)
      intervals["nll_per_token"] = (low, high)
      intervals["perplexity"] = (math.exp(low), math.exp(high))
    means = {"nll_per_token": ("nll", "tokens")}
    return Result(self.label, metrics, records, means, intervals)


@partial(jax.jit, static_argnums=0)
def token_losses(model, variables, tokens, targets, segments):
  """Nats of `targets [B, S]` after `tokens [B, S]` -> float32 `[B, S]`."""
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")  # [B, S, D]

  def head(variables, hidden):
    return model.apply(variables, hidden, method="head")

  return cross_entropy.of_tokens(head, variables, hidden, targets)
