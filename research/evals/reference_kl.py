"""How far adapters have moved a model from its base, on answers that are given.

P pairs, two rows each, S sequence, s tokens of a row in one chunk, D model, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from research import peft
from research.evals import answers, bootstrap
from research.evals.result import Result
from research.losses import chunks
from research.models import DecoderConfig

_CHUNK_TOKENS = 256  # whose logits exist at one time
_NAMES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class ReferenceKL:
  """`KL(model || model without its adapters)`, a token of given answers, in nats.

  That of next tokens' whole distributions, after each token of the answers and not of answers that
  the model writes. Metrics: `kl`, the mean over tokens, `kl_chosen` and `kl_rejected`, and the
  count `tokens`. A record is a pair.

  data: the config of a source whose rows have chosen and rejected answers.
  length: tokens of a row; longer answers lose their end.
  batch_size: pairs at a time.
  label: the result's name.
  """

  data: Mapping[str, Any]
  length: int = 1024
  batch_size: int = 4
  label: str = "reference_kl"

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Measures all pairs.

    Raises:
      ValueError: the model is no decoder that writes or has no adapters, or a row is no pair.
    """
    if not isinstance(model.config, DecoderConfig) or model.config.head:
      raise ValueError(f"{self.label} is of decoders that tell the next token")
    if not variables.get("adapters"):
      raise ValueError(f"{self.label} compares with the model without adapters, and it has none")
    if peft.virtual_ids(variables["adapters"]) or peft.starts(variables["adapters"]):
      raise ValueError(
        f"{self.label} compares with the model without adapters, which these cannot be left out of:"
        " prompts, and LoRAs that begin as a part of it"
      )
    examples, ids = answers.read(
      self.data, tokenizer, variables, length=self.length, label=self.label
    )
    sums, counts = np.zeros((len(examples), 2)), np.zeros((len(examples), 2))
    with tqdm.tqdm(total=len(examples), desc=self.label, unit="pair", leave=False) as progress:
      for chosen, batch in answers.batches(
        examples, self.batch_size, self.length, tokenizer.pad_id or 0
      ):
        found = np.asarray(_of_rows(model, variables, batch)).reshape(-1, 2)
        sums[chosen] = found[: len(chosen)]
        counts[chosen] = batch["weights"].sum(axis=1).reshape(-1, 2)[: len(chosen)]
        progress.update(len(chosen))
    records: list[dict[str, Any]] = []
    for name, total, count in zip(ids, sums, counts, strict=True):
      record: dict[str, Any] = {"id": name, "kl": total.sum(), "tokens": int(count.sum())}
      for side, part, size in zip(_NAMES, total, count, strict=True):
        record |= {f"kl_{side}": float(part), f"tokens_{side}": int(size)}
      records.append(record)
    means = {"kl": ("kl", "tokens")}
    means |= {f"kl_{side}": (f"kl_{side}", f"tokens_{side}") for side in _NAMES}
    columns = {key: [record[key] for record in records] for pair in means.values() for key in pair}
    metrics, intervals = {}, {}
    for name, (value, weight) in means.items():
      metrics[name] = float(sum(columns[value]) / sum(columns[weight]))
      if len(records) > 1:
        intervals[name] = bootstrap.interval(columns[value], columns[weight])
    return Result(self.label, metrics | {"tokens": int(counts.sum())}, records, means, intervals)


@partial(jax.jit, static_argnums=0)
def _of_rows(model, variables, batch):
  """The sum over the tokens of each row's answer, float32 `[2P]`."""
  args = (batch["tokens"], batch["positions"], batch["segments"])
  own = {name: variables[name] for name in ("params", "adapters")}
  base = {"params": variables["params"]}
  states = [model.apply(values, *args, method="hidden") for values in (own, base)]

  def divergences(_, hidden, other):
    ours, theirs = (
      jax.nn.log_softmax(model.apply(values, x, method="head"))
      for values, x in ((own, hidden), (base, other))
    )
    return (jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1),)

  weights = batch["weights"]
  told = chunks.weighted_sum(
    divergences, {}, states[0], (states[1],), weights, chunk_tokens=_CHUNK_TOKENS
  )[1]
  return told[0].sum(axis=1)
