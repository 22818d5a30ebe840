"""How far adapters have moved a model from its base, on answers that are given, and which way.

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

from research import peft
from research.core import sharding
from research.evals import answers, bootstrap, progress
from research.evals.result import Result
from research.losses import chunks
from research.models import DecoderConfig

_CHUNK_TOKENS = 256  # whose logits exist at one time
_NAMES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class ReferenceKL:
  """`KL(model || model without its adapters)`, a token of given answers, and what they have gained.

  The KL, in nats, is that of next tokens' whole distributions, after each token of the answers and
  not of answers that the model writes. Metrics: `kl`, the mean over tokens, `kl_chosen` and
  `kl_rejected`; of pairs `accuracy`, the share whose chosen answer has gained more log-probability
  than the rejected one, which is DPO's implicit reward, `margin`, by how much, the mean in nats,
  and `accuracy_per_token`, the share whose chosen answer has the larger log-probability a token,
  which is the reward of SimPO and ORPO; and the count `tokens`. A record is a pair.

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
    sums, counts = np.zeros((3, len(examples), 2)), np.zeros((len(examples), 2))
    with progress.bar(len(examples), self.label, "pair") as bar:
      for chosen, batch in answers.batches(
        examples, self.batch_size, self.length, tokenizer.pad_id or 0
      ):
        found = sharding.fetched(_of_rows(model, variables, batch)).reshape(3, -1, 2)
        sums[:, chosen] = found[:, : len(chosen)]
        counts[chosen] = batch["weights"].sum(axis=1).reshape(-1, 2)[: len(chosen)]
        bar.update(len(chosen))
    records: list[dict[str, Any]] = []
    kl, gained, own = sums
    margins = gained[:, 0] - gained[:, 1]
    per_token = own / np.maximum(counts, 1)
    likelier = (per_token[:, 0] > per_token[:, 1]).astype(int)
    for name, total, count, margin, better in zip(ids, kl, counts, margins, likelier, strict=True):
      record: dict[str, Any] = {"id": name, "kl": float(total.sum()), "tokens": int(count.sum())}
      record |= {"margin": float(margin), "correct": int(margin > 0), "likelier": int(better)}
      for side, part, size in zip(_NAMES, total, count, strict=True):
        record |= {f"kl_{side}": float(part), f"tokens_{side}": int(size)}
      records.append(record)
    means: dict[str, tuple[str, str | None]] = {"kl": ("kl", "tokens")}
    means |= {f"kl_{side}": (f"kl_{side}", f"tokens_{side}") for side in _NAMES}
    means |= {"accuracy": ("correct", None), "margin": ("margin", None)}
    means["accuracy_per_token"] = ("likelier", None)
    metrics, intervals = {}, {}
    for name, (value, weight) in means.items():
      values = [record[value] for record in records]
      weights = [1.0 if weight is None else record[weight] for record in records]
      metrics[name] = float(sum(values) / sum(weights))
      if len(records) > 1:
        intervals[name] = bootstrap.interval(values, weights)
    return Result(self.label, metrics | {"tokens": int(counts.sum())}, records, means, intervals)


@partial(jax.jit, static_argnums=0)
def _of_rows(model, variables, batch):
  """Sums over the tokens of each row's answer, float32 `[3, 2P]`.

  Of the divergence, of what the tokens' log-probabilities have gained, and of those themselves.
  """
  args = (batch["tokens"], batch["positions"], batch["segments"])
  own = {name: variables[name] for name in ("params", "adapters")}
  base = {"params": variables["params"]}
  states = [model.apply(values, *args, method="hidden") for values in (own, base)]

  def compare(_, hidden, other, targets):
    ours, theirs = (
      jax.nn.log_softmax(model.apply(values, x, method="head"))
      for values, x in ((own, hidden), (base, other))
    )
    far = jnp.sum(jnp.exp(ours) * (ours - theirs), axis=-1)
    likely, before = (
      jnp.take_along_axis(each, targets[..., None], axis=-1)[..., 0] for each in (ours, theirs)
    )
    return far, likely - before, likely

  weights = batch["weights"]
  told = chunks.weighted_sum(
    compare, {}, states[0], (states[1], batch["targets"]), weights, chunk_tokens=_CHUNK_TOKENS
  )[1]
  return told.sum(axis=2)
