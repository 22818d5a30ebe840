"""Decoders with a scalar head, as transformers' classes for sequence classification with one label.

`LlamaForSequenceClassification` and its like: `score.weight [1, D]` in place of the head. They read
it at the last token that is no padding token; ours is read at the last token of each document. The
two differ where a text ends with the token that pads.

N, B rows, S sequence, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.core import sharding
from research.models import families
from research.models.config import DecoderConfig, StackConfig
from research.models.families.weights import Weight

KERNEL = "score/kernel"
_NARROWEST = 6  # the power of two that a batch of rows is at least as wide as
_CAUSAL, _SCORED = "ForCausalLM", "ForSequenceClassification"
_MODULE = ("score", (0, 1, 1))  # as `families.*.modules` have them


def read(config: StackConfig, hf: Mapping[str, Any]) -> StackConfig:
  """The config of a checkpoint, with its scalar head if `config.json` tells of one.

  Raises:
    ValueError: it tells of a head of several labels.
  """
  names = hf.get("architectures") or [""]
  if not isinstance(config, DecoderConfig) or not names[0].endswith(_SCORED):
    return config
  labels = hf.get("num_labels") or len(hf.get("id2label") or {0: "", 1: ""})
  if labels != 1:
    raise ValueError(f"{names[0]} has {labels} labels; of decoders a head of one is known, a score")
  return dataclasses.replace(config, head="score")


def written(config: StackConfig, hf: Mapping[str, Any]) -> dict[str, Any]:
  """`config.json` of a model, with its scalar head if it has one; the inverse of `read`."""
  if not _has_score(config):
    return dict(hf)
  names = [name.replace(_CAUSAL, _SCORED) for name in hf["architectures"]]
  label = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
  return {**hf, "architectures": names, **label}


def table(config: StackConfig, weights: Sequence[Weight]) -> list[Weight]:
  """The family's map of weights, with a scalar head in place of the head if there is one."""
  if not _has_score(config):
    return list(weights)
  kept = [weight for weight in weights if not weight.path.startswith("lm_head/")]
  return [*kept, Weight(KERNEL, "score.weight", transposed=True)]


def modules(config: StackConfig) -> dict[str, Any]:
  """The family's map of PEFT's modules, and the scalar head's if there is one."""
  found = families.find(config.family).modules(config)
  return found | {KERNEL: _MODULE} if _has_score(config) else found


def task_type(config: StackConfig) -> str | None:
  """What PEFT calls models of this kind."""
  return "SEQ_CLS" if _has_score(config) else config.task_type


def scores(
  model: Any,
  variables: Any,
  batch: Mapping[str, jax.Array],
  rngs: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
  """The score at the last token of each row's document, float32 `[B]`."""
  hidden = model.apply(
    variables,
    batch["tokens"],
    batch["positions"],
    batch["segments"],
    method="hidden",
    rngs=rngs,
  )  # [B, S, D]
  last = jnp.maximum(jnp.sum(batch["segments"] > 0, axis=1) - 1, 0)
  at_last = jnp.take_along_axis(hidden, last[:, None, None], axis=1)  # [B, 1, D]
  return model.apply(variables, at_last, method="head", rngs=rngs)[:, 0, 0]


def of_rows(
  model: Any, variables: Any, rows: Sequence[Sequence[int]], *, batch_size: int
) -> np.ndarray:
  """The score of each row of tokens, one document, float64 `[N]`.

  Rows of like length share a batch, whose width is a power of two.
  """
  found = np.zeros(len(rows))
  order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
  for at in range(0, len(order), batch_size):
    some = order[at : at + batch_size]
    shape = (batch_size, 1 << max(_NARROWEST, (len(rows[some[0]]) - 1).bit_length()))
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    for place, i in enumerate(some):
      length = len(rows[i])
      batch["tokens"][place, :length] = rows[i]
      batch["positions"][place, :length] = np.arange(length)
      batch["segments"][place, :length] = 1
    found[some] = sharding.fetched(_of_batch(model, variables, batch))[: len(some)]
  return found


@partial(jax.jit, static_argnums=0)
def _of_batch(model, variables, batch):
  return scores(model, variables, batch)


def _has_score(config: StackConfig) -> bool:
  return isinstance(config, DecoderConfig) and config.head == "score"
