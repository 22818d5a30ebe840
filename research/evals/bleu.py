"""How near translations, or other texts written after a source, are to their references."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from research import generation
from research.core import distributed, tree
from research.data import sources
from research.evals import progress
from research.evals.result import Result, item_id

_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Bleu:
  """Corpus BLEU (Papineni et al. 2002) of one reference each, as sacrebleu computes it (Post 2018).

  Metrics: `bleu`, of 100, by sacrebleu's own tokenization ("13a") and smoothing ("exp");
  `length_ratio`, words written by words of the references; `unfinished`, the share cut off at
  `max_new_tokens`; `pairs`. BLEU's interval is a percentile bootstrap over pairs. BLEU is no mean
  over pairs: two results are compared in the other metrics only. A record is a pair.

  data: the config of a source (`research.data.sources`) whose rows have `prompt` and `completion`.
  max_new_tokens: of a translation.
  num_beams: beams that are searched; 1 takes the most probable token.
  batch_size: pairs, or beams, at a time.
  shown: how many pairs the result's `samples` spell out.
  label: the result's name.
  """

  data: Mapping[str, Any]
  max_new_tokens: int = 128
  num_beams: int = 1
  batch_size: int = 32
  shown: int = 3
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
    with distributed.alike(f"what {self.label} reads") as told:
      rows = _rows(sources.build(self.data))
      told["pairs"] = [[row["prompt"], row["completion"]] for row in rows]
    prompts = [tokenizer.encode(row["prompt"]) for row in rows]
    with progress.bar(len(rows), self.label, "pair") as bar:
      # One beam needs none of the copies that a search makes.
      search: Callable[..., Any] = generation.generate
      if self.num_beams > 1:
        search = partial(generation.beam_search, num_beams=self.num_beams)
      written = search(
        model,
        variables,
        prompts,
        max_new_tokens=self.max_new_tokens,
        eos_ids=tokenizer.eos_ids,
        batch_size=self.batch_size,
        progress=bar.update,
      )
    records = []
    for index, (row, completion) in enumerate(zip(rows, written, strict=True)):
      text = tokenizer.decode(completion.tokens)
      score = sacrebleu.sentence_bleu(text, [row["completion"]])
      asked = json.dumps([row["prompt"], row["completion"]])
      records.append(
        {
          "id": item_id(index, asked),
          "completion": text,
          "reference": row["completion"],
          "matches": score.counts,
          "ngrams": score.totals,
          "words": score.sys_len,
          "reference_words": score.ref_len,
          "unfinished": int(not completion.finished),
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
    draws = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), _RESAMPLES) @ counts
    low, high = np.percentile([bleu(sums) for sums in draws], [2.5, 97.5])
    sums = counts.sum(axis=0)
    metrics = {
      "bleu": bleu(sums),
      "length_ratio": float(sums[8] / sums[9]),
      "unfinished": sum(r["unfinished"] for r in records) / len(records),
      "pairs": len(records),
    }
    means = {"length_ratio": ("words", "reference_words"), "unfinished": ("unfinished", None)}
    samples = [
      f"> {row['prompt']}\n{record['completion']}\n[reference: {row['completion']}]"
      for row, record in zip(rows[: self.shown], records, strict=False)
    ]
    return Result(self.label, metrics, records, means, {"bleu": (float(low), float(high))}, samples)


def _rows(source: Any) -> list[dict[str, str]]:
  rows = [source[index] for index in range(len(source))]
  for index, row in enumerate(rows):
    for name in ("prompt", "completion"):
      if not isinstance(row.get(name), str):
        raise ValueError(
          f"{source.name}: row {source.origin(index)} has no text {name!r}{tree.nearest(name, row)}"
        )
  if not rows:
    raise ValueError(f"{source.name} has no rows")
  return rows
