"""How near translations, or other texts written after a source, are to their references."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from research.evals.pairs import Pairs
from research.evals.result import Result

_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Bleu(Pairs):
  """Corpus BLEU (Papineni et al. 2002) of one reference each, as sacrebleu computes it (Post 2018).

  Metrics: `bleu`, of 100, by sacrebleu's own tokenization ("13a") and smoothing ("exp");
  `length_ratio`, words written by words of the references; `unfinished`, the share cut off at
  `max_new_tokens`; `pairs`. BLEU's interval is a percentile bootstrap over pairs. BLEU is no mean
  over pairs: two results are compared in the other metrics only. A record is a pair.

  Arguments: see `Pairs`.
  """

  label: str = "bleu"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Writes and scores all of them.

    Raises:
      ValueError: sacrebleu is not installed, or a row lacks a column.
    """
    try:
      import sacrebleu
    except ImportError as error:
      raise ValueError(
        f"{self.label} needs sacrebleu ({error}); pip install 'research[translation]'"
      ) from error
    written = self.write(model, variables, tokenizer)
    records: list[dict[str, Any]] = []
    for pair in written:
      score = sacrebleu.sentence_bleu(pair.text, [pair.reference])
      records.append(
        {
          "id": pair.id,
          "completion": pair.text,
          "reference": pair.reference,
          "matches": score.counts,
          "ngrams": score.totals,
          "words": score.sys_len,
          "reference_words": score.ref_len,
          "unfinished": int(not pair.finished),
        }
      )
    # A column a figure: what of n-grams of 1 to 4 words matches, how many there are, lengths.
    counts = np.array(
      [[*r["matches"], *r["ngrams"], r["words"], r["reference_words"]] for r in records]
    )

    def bleu(sums: np.ndarray) -> float:
      match, total = sums[:4].tolist(), sums[4:8].tolist()
      lengths = int(sums[8]), int(sums[9])
      return float(sacrebleu.BLEU.compute_bleu(match, total, *lengths, smooth_method="exp").score)

    rng = np.random.default_rng(0)
    size = len(records)
    draws = rng.multinomial(size, np.full(size, 1 / size), _RESAMPLES) @ counts
    low, high = np.percentile([bleu(sums) for sums in draws], [2.5, 97.5])
    sums = counts.sum(axis=0)
    metrics = {
      "bleu": bleu(sums),
      "length_ratio": float(sums[8] / sums[9]),
      "unfinished": sum(r["unfinished"] for r in records) / len(records),
      "pairs": len(records),
    }
    means = {"length_ratio": ("words", "reference_words"), "unfinished": ("unfinished", None)}
    samples = [pair.shown() for pair in written[: self.shown]]
    return Result(self.label, metrics, records, means, {"bleu": (float(low), float(high))}, samples)
