"""Where a model's attention goes: how it is spread, to the first token, and heads that do nothing.

L layers, H heads, B windows of a batch, S tokens of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import tree
from research.evals import bootstrap, rolling
from research.evals.result import Result
from research.generation import decode
from research.models import attended
from research.peft.adapter import is_adapter

_FIGURES = ("entropy", "relative_entropy", "first_token")


@dataclasses.dataclass(frozen=True)
class Attention:
  """Entropy of attention, `-sum A log A`, of each layer and head over plain text.

  Metrics, means over tokens, layers and heads: `entropy` in nats, `relative_entropy`, its share of
  the most possible (the logarithm of how many tokens the query sees), and `first_token`, the weight
  on the row's first token, the sink (Xiao et al. 2023, arXiv:2309.17453); `uniform_heads` and
  `single_heads`, how many have collapsed: their relative entropy is `uniform` or more, or `single`
  or less; `heads` and `tokens`. Queries that see one token are left out, and a window's first also
  where an adapter's virtual tokens come before it: so the same ones count with and without.
  Intervals are over windows, and a record is one. The table `heads` has a row a head; `samples`
  name the collapsed.

  data: the config of a source whose rows have `text` (`research.data.sources`).
  length: tokens that a window shows; by default 1024, or all the positions of a smaller model.
  batch_size: windows at a time; a layer's weights of all of them are held at once.
  bos: a document begins with BOS (EOS where the tokenizer has no BOS).
  uniform, single: relative entropies, see above.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int | None = None
  batch_size: int = 1
  bos: bool = True
  uniform: float = 0.95
  single: float = 0.05
  label: str = "attention"

  def __post_init__(self):
    if not 0 <= self.single < self.uniform <= 1:
      raise ValueError(
        f"{self.label}: single {self.single} and uniform {self.uniform} are shares, the first less"
      )

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Reads all documents, in windows that follow each other.

    Raises:
      ValueError: the model is no decoder, or has fewer positions; an adapter puts keys in front of
        rows; a row has no `text`, or there is no token.
    """
    length = rolling.length_of(model, variables, self.length, self.label)
    adapters = tree.flatten(variables.get("adapters", {}), is_leaf=is_adapter)
    if attended.SITE in adapters:
      raise ValueError(f"{self.label} is read without a prefix, whose keys it would leave out")
    documents = rolling.read(self.data, tokenizer, bos=self.bos, label=self.label)
    jobs = rolling.jobs_of(documents, length, 1, self.label)
    sums = np.zeros((len(jobs), len(_FIGURES), model.config.num_layers, model.config.num_heads))
    tokens = np.zeros(len(jobs), int)
    for i, found in rolling.each(
      partial(_spread, model, variables),
      documents.tokens,
      jobs,
      batch_size=self.batch_size,
      length=length,
      lead=decode.ahead(variables)[0],
      label=self.label,
    ):
      sums[i] = found[:-1].sum(axis=-1, dtype=np.float64)
      tokens[i] = int(found[-1, 0, 0].sum())
    if not tokens.sum():
      raise ValueError(f"{self.label}: no token sees another in {len(documents.tokens)} documents")
    ids = [rolling.job_id(documents, job) for job in jobs]
    return self._result(ids, sums, tokens)

  def _result(self, ids: Sequence[str], sums: np.ndarray, tokens: np.ndarray) -> Result:
    of_windows = sums.mean(axis=(2, 3)).T  # [figures, windows]
    of_heads = sums.sum(axis=0) / tokens.sum()  # [figures, L, H]
    records: list[dict[str, Any]] = [
      {"id": name, "tokens": int(count)} for name, count in zip(ids, tokens, strict=True)
    ]
    metrics, intervals = {}, {}
    means: dict[str, tuple[str, str | None]] = {}
    for name, values in zip(_FIGURES, of_windows, strict=True):
      metrics[name] = float(values.sum() / tokens.sum())
      means[name] = (name, "tokens")
      for record, value in zip(records, values, strict=True):
        record[name] = float(value)
      if len(ids) > 1:
        intervals[name] = bootstrap.interval(values.tolist(), tokens.tolist())
    rows = [
      {"layer": layer, "head": head}
      | {name: float(of_heads[i, layer, head]) for i, name in enumerate(_FIGURES)}
      for layer, head in np.ndindex(*of_heads.shape[1:])
    ]
    samples = []
    collapsed = {
      "uniform": [row for row in rows if row["relative_entropy"] >= self.uniform],
      "single": [row for row in rows if row["relative_entropy"] <= self.single],
    }
    for name, found in collapsed.items():
      metrics[f"{name}_heads"] = len(found)
      if found:
        listed = ", ".join(f"{row['layer']}.{row['head']}" for row in found)
        samples.append(f"{self.label}: {name} heads, as LAYER.HEAD: {listed}")
    metrics |= {"heads": len(rows), "tokens": int(tokens.sum())}
    return Result(self.label, metrics, records, means, intervals, samples, {"heads": rows})


@partial(jax.jit, static_argnums=0)
def _spread(model, variables, tokens, targets, segments):
  """Figures of queries, and whether they count, `[figures + 1, L, H, B, S]`."""
  del targets
  found = attended.spread(model, variables, tokens, segments)
  of_queries = jnp.stack([found.entropy, found.share, found.first, found.counts])
  later = jnp.cumsum(tokens >= 0, axis=1) > 1  # [B, S], the text's tokens but the first
  return of_queries.swapaxes(2, 3) * later
