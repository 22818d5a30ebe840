"""How much of reference summaries is in what a model writes."""

from __future__ import annotations

import dataclasses
from typing import Any

from research.evals.pairs import Pairs
from research.evals.result import Result

_KINDS = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}


@dataclasses.dataclass(frozen=True)
class Rouge(Pairs):
  """ROUGE-1, -2 and -L (Lin 2004) against one reference each, as Google's rouge-score has them.

  Metrics: `rouge_1`, `rouge_2` and `rouge_l`, means over pairs of F-measures, 0 to 1, in which the
  whole text is one sequence to ROUGE-L; `unfinished`, the share cut off at `max_new_tokens`;
  `pairs`. Intervals are percentile bootstraps over pairs. A record is a pair.

  stemmer: words count by their stems (Porter's, for English), as in most published figures.
  The rest: see `Pairs`.
  """

  stemmer: bool = True
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
    written = self.write(model, variables, tokenizer)
    scorer = rouge_scorer.RougeScorer(list(_KINDS), use_stemmer=self.stemmer)
    scores = [scorer.score(pair.reference, pair.text) for pair in written]
    return self.means(
      written, [{name: own[kind].fmeasure for kind, name in _KINDS.items()} for own in scores]
    )
