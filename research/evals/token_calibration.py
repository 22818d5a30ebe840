"""Whether the probabilities of next tokens are as right as they are sure.

B windows of a batch, S tokens of a window, s tokens of a chunk, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from research.evals import bootstrap, reliability, rolling
from research.evals.result import Result
from research.generation import checks, decode
from research.losses import chunks

_COLDEST, _HOTTEST = 0.05, 20.0  # temperatures
_CLOSE = 1e-4  # by which share the temperature's inverse is known
_PASSES = 20


class Judged(NamedTuple):
  """What is found of tokens, float32 of one shape.

  nll: nats. confidence: the top token's probability. right: whether that is the target, or ties.
  brier: the sum over the vocabulary of squared differences from what came (Brier 1950), 0 to 2.
  slope, curvature: derivatives of the nats by the inverse temperature.
  """

  nll: Any
  confidence: Any
  right: Any
  brier: Any
  slope: Any
  curvature: Any


@dataclasses.dataclass(frozen=True)
class TokenCalibration:
  """Expected calibration error, Brier score and best temperature of next-token probabilities.

  Metrics: `accuracy` and `confidence` of the top token, `calibration_error` (Guo et al. 2017,
  arXiv:1706.04599, eq. 3), `brier` (0 to 2), `nll_per_token`, and `tokens`. `temperature` is that
  which makes the nats of every other window least (their section 4.2), and `held_out/...` tells
  `nll_before` and `nll_after` (at temperature 1, and at this one) and `calibration_error_before`
  and `calibration_error_after` of the windows between. Windows are what intervals draw again; an
  error of bins is no mean over them and has none. A record is a window. The table `reliability`
  has the bins.

  Text is read a few times: each step of the search for the temperature is a pass over half of it.

  data: the config of a source whose rows have `text` (`research.data.sources`).
  length, context, batch_size, bos: see `Perplexity`.
  bins: of confidence, of equal width.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int | None = None
  context: int | None = None
  batch_size: int = 4
  bos: bool = True
  bins: int = 15
  label: str = "token_calibration"

  def __post_init__(self):
    if self.bins < 1:
      raise ValueError(f"{self.label}: bins is {self.bins}; there is at least one")

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Judges all tokens.

    Raises:
      ValueError: as `Perplexity`; or there are fewer than two windows, which cannot be halved.
    """
    length = rolling.length_of(model, variables, self.length, self.label)
    checks.writes(model, self.label)
    context = rolling.context_of(self.context, length, self.label)
    documents = rolling.read(self.data, tokenizer, bos=self.bos, label=self.label)
    jobs = rolling.jobs_of(documents, length, context, self.label)
    if len(jobs) < 2:
      raise ValueError(f"{self.label}: a temperature takes two windows; set a shorter length")
    lead = decode.ahead(variables)[0]

    def judge(which: Sequence[int], inverse: float) -> list[Judged]:
      found: dict[int, Judged] = {}
      for i, told in rolling.each(
        partial(_judge, model, variables, np.float32(inverse)),
        documents.tokens,
        [jobs[i] for i in which],
        batch_size=self.batch_size,
        length=length,
        lead=lead,
        label=self.label,
      ):
        found[i] = Judged(*told)
      return [found[i] for i in range(len(which))]

    everything = range(len(jobs))
    fitted, held_out = everything[::2], everything[1::2]
    plain = judge(everything, 1.0)
    inverse = _best([plain[i] for i in fitted], partial(judge, fitted))
    scaled = judge(held_out, inverse)

    records: list[dict[str, Any]] = [
      {
        "id": rolling.job_id(documents, job),
        "tokens": job.window.stop - job.window.first,
        **{name: _sum(getattr(judged, name)) for name in ("nll", "brier", "right", "confidence")},
      }
      for job, judged in zip(jobs, plain, strict=True)
    ]
    for i, judged in zip(held_out, scaled, strict=True):
      records[i] |= {"nll_before": records[i]["nll"], "nll_after": _sum(judged.nll)}
    return self._result(records, plain, [plain[i] for i in held_out], scaled, 1 / inverse)

  def _result(
    self,
    records: list[dict[str, Any]],
    plain: Sequence[Judged],
    before: Sequence[Judged],
    after: Sequence[Judged],
    temperature: float,
  ) -> Result:
    means: dict[str, tuple[str, str | None]] = {
      "accuracy": ("right", "tokens"),
      "confidence": ("confidence", "tokens"),
      "brier": ("brier", "tokens"),
      "nll_per_token": ("nll", "tokens"),
      "held_out/nll_before": ("nll_before", "tokens"),
      "held_out/nll_after": ("nll_after", "tokens"),
    }
    metrics, intervals = {}, {}
    for name, (field, _) in means.items():
      values = [record[field] for record in records if field in record]
      over = [record["tokens"] for record in records if field in record]
      metrics[name] = math.fsum(values) / sum(over)
      if len(values) > 1:
        intervals[name] = bootstrap.interval(values, over)
    bins = self._bins(plain)
    metrics["calibration_error"] = reliability.calibration_error(bins)
    for name, judged in (("before", before), ("after", after)):
      error = reliability.calibration_error(self._bins(judged))
      metrics[f"held_out/calibration_error_{name}"] = error
    metrics["temperature"] = temperature
    metrics["tokens"] = sum(record["tokens"] for record in records)
    return Result(self.label, metrics, records, means, intervals, tables={"reliability": bins})

  def _bins(self, judged: Sequence[Judged]) -> reliability.Table:
    confidence = np.concatenate([each.confidence for each in judged])
    right = np.concatenate([each.right for each in judged])
    return reliability.table(confidence, right, bins=self.bins)


def _best(plain: Sequence[Judged], judge: Any) -> float:
  """The inverse temperature of the least nats, of tokens that are `plain` at 1.

  The nats are convex in it: Newton's steps, kept between the ends within which the slope changes
  sign.

  Args:
    judge: of the same tokens at an inverse temperature.
  """
  low, high = 1 / _HOTTEST, 1 / _COLDEST
  inverse, judged = 1.0, plain
  for _ in range(_PASSES):
    slope = math.fsum(_sum(each.slope) for each in judged)
    curvature = math.fsum(_sum(each.curvature) for each in judged)
    low, high = (low, inverse) if slope > 0 else (inverse, high)
    following = inverse - slope / curvature if curvature > 0 else low
    if not low < following < high:
      following = math.sqrt(low * high)
    if abs(following - inverse) <= _CLOSE * inverse:
      return following
    inverse = following
    judged = judge(inverse)
  return inverse


def _sum(values: np.ndarray) -> float:
  return float(values.sum(dtype=np.float64))


@partial(jax.jit, static_argnums=0)
def _judge(model, variables, scale, tokens, targets, segments):
  """`Judged` of `targets [B, S]` at the inverse temperature `scale`, as float32 `[6, B, S]`."""
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")  # [B, S, D]

  def of_chunk(hidden, targets):
    logits = model.apply(variables, hidden, method="head").astype(jnp.float32)  # [s, V]
    log_p = jax.nn.log_softmax(logits * scale)
    p = jnp.exp(log_p)
    chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    chosen_log_p = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    # About the target's logit, where numbers are small enough to be squared.
    apart = logits - chosen[:, None]
    slope = jnp.sum(p * apart, axis=-1)
    return Judged(
      nll=-chosen_log_p,
      confidence=jnp.max(p, axis=-1),
      right=(chosen >= jnp.max(logits, axis=-1)).astype(jnp.float32),
      brier=jnp.sum(p * p, axis=-1) - 2 * jnp.exp(chosen_log_p) + 1,
      slope=slope,
      curvature=jnp.sum(p * jnp.square(apart - slope[:, None]), axis=-1),
    )

  return jnp.stack(chunks.told(of_chunk, hidden, targets, chunk_tokens=512))
