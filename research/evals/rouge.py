"""How much of reference summaries is in what a model writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.evals import bootstrap, pairs
from research.evals.result import Result

_KINDS = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


@dataclasses.dataclass(frozen=True)
class Rouge:
  """ROUGE-1, -2 and -L (Lin 2004) against one reference each, as Google's rouge-score has them.

  Metrics: `rouge_1`, `rouge_2` and `rouge_l`, means over pairs of F-measures, 0 to 1, in which the
  whole text is one sequence to ROUGE-L; `unfinished`, the share cut off at `max_new_tokens`;
  `pairs`. Intervals are percentile bootstraps over pairs. A record is a pair.

  data, max_new_tokens, num_beams, batch_size: see `Bleu`.
  stemmer: words count by their stems (Porter's, for English), as in most published figures.
  shown: how many pairs the result's `samples` spell out.
  label: the result's name.
  """

  data: Mapping[str, Any]
  max_new_tokens: int = 128
  num_beams: int = 1
  batch_size: int = 32
  stemmer: bool = True
  shown: int = 3
  label: str = "rouge"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Writes and scores all of them.

    Raises:
      ValueError: rouge-score is not installed, or a row lacks a column.
    """
    try:
      from rouge_score import rouge_scorer
    except ImportError as error:
      raise ValueError(
        f"{self.label} needs rouge-score ({error}); pip install 'research[summaries]'"
      ) from error
    written = pairs.write(
      model,
      variables,
      tokenizer,
      self.data,
      max_new_tokens=self.max_new_tokens,
      num_beams=self.num_beams,
      batch_size=self.batch_size,
      label=self.label,
    )
    scorer = rouge_scorer.RougeScorer(list(_KINDS), use_stemmer=self.stemmer)
    records: list[dict[str, Any]] = []
    for pair in written:
      scores = scorer.score(pair.reference, pair.text)
      records.append(
        {
          "id": pair.id,
          "completion": pair.text,
          "reference": pair.reference,
          **{name: scores[kind].fmeasure for kind, name in _KINDS.items()},
          "unfinished": int(not pair.finished),
        }
      )
    metrics, intervals = {}, {}
    for name in (*_KINDS.values(), "unfinished"):
      values = [record[name] for record in records]
      metrics[name] = sum(values) / len(values)
      if len(values) > 1:
        intervals[name] = bootstrap.interval(values)
    count = sum(record["unfinished"] for record in records)
    intervals["unfinished"] = bootstrap.wilson(count, len(records))
    means = {name: (name, None) for name in metrics}
    metrics["pairs"] = len(records)
    samples = [pair.shown() for pair in written[: self.shown]]
    return Result(self.label, metrics, records, means, intervals, samples)
