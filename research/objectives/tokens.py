"""The loss of predicting something at each token that has weight; what, is in the batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.losses import cross_entropy
from research.models import DecoderConfig, EncoderConfig, EncoderDecoderConfig

Tree = Any
Sums = Mapping[str, tuple[jax.Array, jax.Array]]
Loss = Callable[..., tuple[jax.Array, jax.Array, Sums]]

# What each objective trains: the type of the model's config, and what such models are called.
TRAINS: Mapping[str, tuple[type, str]] = {
  "causal": (DecoderConfig, "decoders"),
  "distillation": (DecoderConfig, "decoders"),
  "masked": (EncoderConfig, "encoders"),
  "classification": (EncoderConfig, "encoders"),
  "embedding": (EncoderConfig, "encoders"),
  "seq2seq": (EncoderDecoderConfig, "encoder-decoders"),
  "preference": (DecoderConfig, "decoders"),
  "kto": (DecoderConfig, "decoders"),
  "reward": (DecoderConfig, "decoders"),
  "policy": (DecoderConfig, "decoders"),
}


def of_hidden(
  model: Any,
  variables: Tree,
  batch: Mapping[str, jax.Array],
  targets: jax.Array,
  hidden: jax.Array,
  rngs: Mapping[str, jax.Array] | None,
  *,
  tasks: Sequence[str],
  chunk_tokens: int,
  factors: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
  """`sum over t of weights[t] * -log p(targets[t])` by the model's head, in nats.

  Args:
    targets: int32 `[B, S]`.
    hidden: `[B, S, D]`, the model's last output.
    tasks: names of the numbers in the batch's `task`; each has its own `loss/NAME` and
      `accuracy/NAME`.
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.
    factors: `[B, S]`, of each token's loss in the sum; weights and metrics are without them.
  """
  weights = batch["weights"]
  total, losses, right = cross_entropy.chunked(
    *head_of(model, variables, rngs),
    hidden,
    targets,
    weights if factors is None else weights * factors,
    chunk_tokens=chunk_tokens,
  )
  plain = total
  if factors is not None:
    losses, right = losses / factors, right / factors
    plain = losses.sum()
  weight = weights.sum()
  metrics = {"loss": (plain, weight), "accuracy": (right.sum(), weight)}
  told = {"loss": losses, "accuracy": right}
  return total, weight, metrics | of_tasks(told, batch, tasks)


def head_of(
  model: Any, variables: Tree, rngs: Mapping[str, jax.Array] | None = None
) -> tuple[cross_entropy.Head, Tree]:
  """The model's head as a function `(variables, hidden [..., D]) -> logits`, and its variables."""
  own = {
    collection: {name: tree[name] for name in model.head_names if name in tree}
    for collection, tree in variables.items()
  }
  return lambda v, h: model.apply(v, h, method="head", rngs=rngs), own


def of_tasks(
  told: Mapping[str, jax.Array], batch: Mapping[str, jax.Array], tasks: Sequence[str]
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Metrics `NAME/TASK` of what is told of each token, `[B, S]`, times its weight."""
  metrics: dict[str, tuple[jax.Array, jax.Array]] = {}
  for number, task in enumerate(tasks):
    here = batch["task"] == number
    count = jnp.sum(batch["weights"], where=here)
    metrics |= {f"{name}/{task}": (jnp.sum(x, where=here), count) for name, x in told.items()}
  return metrics


def require(name: str, batch: Mapping[str, jax.Array], key: str, rows: str) -> None:
  """Raises ValueError if the batch lacks what the objective `name` predicts.

  Args:
    key: of the batch. rows: what rows have it.
  """
  if key not in batch:
    kinds = {"targets", "labels", "roles", "margin", "label"} & set(batch)
    raise ValueError(
      f"the objective {name!r} needs {rows}; these rows have {', '.join(kinds)} and no {key}"
    )


def require_model(name: str, model: Any) -> None:
  """Raises ValueError if the objective `name` cannot train a model of this kind."""
  kind, what = TRAINS[name]
  if not isinstance(model.config, kind):
    fitting = [other for other, (kind, _) in TRAINS.items() if isinstance(model.config, kind)]
    raise ValueError(
      f"the objective {name!r} trains {what}, not a {model.config.family}, which has"
      f" {', '.join(fitting)}"
    )
  if isinstance(model.config, DecoderConfig) and (model.config.head == "score") != (
    name == "reward"
  ):
    needs = "config.model.head = {'name': 'score'}" if name == "reward" else "no head for scores"
    raise ValueError(f"the objective {name!r} needs {needs}; the model's is {model.config.head!r}")
