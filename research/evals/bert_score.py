"""How near what a model writes is to references in meaning, by an encoder's hidden states.

B batch, S sequence, D model; T, R tokens of a text and of its reference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from research import models
from research.evals.pairs import Pairs
from research.evals.result import Result
from research.models import embeddings

_FIGURES = ("precision", "recall", "f1")


@dataclasses.dataclass(frozen=True)
class BertScore(Pairs):
  """BERTScore (Zhang et al. 2020, arXiv:1904.09675, section 3) against one reference each.

  Each token of a text is matched with the reference's whose hidden state has the largest cosine to
  its own: the mean over the text's tokens is `precision`, over the reference's, matched with the
  text's, `recall`, and their harmonic mean `f1`. As the paper's own package has it without weights
  of rarity (idf) and without rescaling by a baseline: tokens that open and close a text can be
  matched with and do not count. A text without tokens has 0.

  Metrics: those three, means over pairs; `unfinished`, the share cut off at `max_new_tokens`;
  `pairs`. Intervals are percentile bootstraps over pairs. A record is a pair. Figures depend on the
  encoder, and are to be compared by the same one alone.

  encoder: a known name or a directory, as of `models.load`.
  layer: whose hidden states, from 1; 0 is the last one.
  length: the most tokens of a text; longer ones are cut to their first.
  The rest: see `Pairs`.
  """

  encoder: str = "all-minilm-l6-v2"
  layer: int = 0
  length: int = 256
  label: str = "bert_score"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Writes and scores all of them.

    Raises:
      ValueError: a row lacks a column; the encoder is none, has fewer layers, or fewer positions
        than `length`.
    """
    scorer = Scorer(self.encoder, self.layer, self.length, self.batch_size)
    written = self.write(model, variables, tokenizer)
    scores = scorer([pair.text for pair in written], [pair.reference for pair in written])
    return self.means(
      written, [dict(zip(_FIGURES, map(float, score), strict=True)) for score in scores]
    )


class Scorer:
  """Texts against references, by the hidden states of one layer of an encoder."""

  def __init__(self, encoder: str, layer: int = 0, length: int = 256, batch_size: int = 32):
    """Args: see `BertScore`.

    Raises:
      ValueError: see `BertScore`.
    """
    model, params, tokenizer = models.load(encoder, dtype="float32")
    if not isinstance(model, models.Encoder):
      raise ValueError(f"{encoder} is no encoder, whose hidden states texts are compared by")
    embeddings.require_length(model, length)
    layers = model.config.num_layers
    if not 0 <= layer <= layers:
      raise ValueError(
        f"layer {layer} is not one of the {layers} of {encoder}, from 1; 0: the last"
      )
    if layer and layer < layers:
      model = model.clone(config=dataclasses.replace(model.config, num_layers=layer))
      kept = jax.tree.map(lambda leaf: leaf[:layer], params["layers"])
      params = {**params, "layers": kept}
    self._model, self._variables, self._tokenizer = model, {"params": params}, tokenizer
    self._length, self._batch_size = length, batch_size
    special = tokenizer.special_tokens
    self._around = [
      tokenizer.token_id(special[name]) for name in ("cls_token", "sep_token") if name in special
    ]

  def __call__(self, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Precision, recall and F1, float64 `[len(texts), 3]`."""
    both = [self._states(side) for side in (texts, references)]
    return np.stack([_score(*text, *reference) for text, reference in zip(*both, strict=True)])

  def _states(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each text the hidden states `[T, D]`, of unit length, and which count `[T]`."""
    ids = embeddings.encoded(self._model, self._tokenizer, texts, self._length)
    found: list[Any] = [None] * len(ids)
    for chosen, tokens, segments in embeddings.batches(ids, self._batch_size, self._length):
      states = np.asarray(_unit(self._model, self._variables, tokens, segments), np.float64)
      for row, i in enumerate(chosen):
        own = np.asarray(ids[i])
        found[i] = (states[row, : len(own)], ~np.isin(own, self._around))
    return found


@partial(jax.jit, static_argnums=0)
def _unit(model, variables, tokens, segments):
  hidden = model.apply(variables, tokens, segments=segments, method="hidden")
  return embeddings.normalize(hidden.astype("float32"))


def _score(text, counts, reference, reference_counts):
  """Precision, recall and F1 of states `[T, D]` and `[R, D]`, by tokens that count."""
  if not (counts.any() and reference_counts.any()):
    return np.zeros(3)
  cosines = text @ reference.T
  precision = cosines.max(axis=1)[counts].mean()
  recall = cosines.max(axis=0)[reference_counts].mean()
  return np.array([precision, recall, 2 * precision * recall / (precision + recall)])
