"""What objectives of judged answers share: log-probabilities, references, and what they ask for.

B rows of the batch, N examples of two rows each (`data.preferences`), S sequence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.core import tree
from research.core.config import ConfigError
from research.losses import log_probs as chunked
from research.losses import pairs
from research.losses.pairs import Sums
from research.objectives import tokens

Tree = Any
Batch = Mapping[str, jax.Array]

REFERENCES = ("base", "copy", "kept", "none")
COLLECTION = "reference"  # of variables: what of the model trains, as the run began
KEPT = "reference"  # of a batch: log-probabilities of its rows, float32 `[B]`


@dataclasses.dataclass(frozen=True)
class AnswerLoss:
  """A loss of judged answers.

  reference: what the answers' log-probabilities are compared with. "base" is the model without its
    adapters, "copy" the model as the run began, "kept" what the batch tells, "none" nothing.
  ld_alpha: see `losses.pairs.completion_log_probs`; what is kept is counted so, too.
  """

  loss: Callable[..., tuple[jax.Array, jax.Array, Sums]]
  reference: str = "none"
  ld_alpha: float | None = None

  def __call__(self, *args: Any) -> tuple[jax.Array, jax.Array, Sums]:
    return self.loss(*args)

  @property
  def asks_reference(self) -> bool:
    """Whether the loss has the reference read the batch, and is not told what it says."""
    return self.reference in ("base", "copy")


def require_reference(name: str, reference: str, possible: Sequence[str]) -> None:
  """Raises ConfigError if `reference` is not among those that the loss `name` can be taken with."""
  if reference not in REFERENCES:
    raise ConfigError(
      f"config.objective.reference is {reference!r}{tree.nearest(reference, REFERENCES)}; there are"
      f" {', '.join(REFERENCES)}"
    )
  if reference not in possible:
    why = "has no reference" if possible == ("none",) else "compares with a reference"
    raise ConfigError(
      f"config.objective.reference is {reference!r}; {name} {why}: {', '.join(possible)}"
    )


def require_no_tasks(name: str, tasks: Sequence[str]) -> None:
  """Raises ValueError if the data name tasks, of which these objectives have no metrics."""
  if tasks:
    raise ValueError(f"the objective {name!r} has no metrics of tasks; name none in the mixture")


def log_probs(
  model: Any,
  variables: Tree,
  batch: Batch,
  rngs: Mapping[str, jax.Array] | None,
  chunk_tokens: int,
  temperature: float = 1.0,
) -> jax.Array:
  """The log-probability of every token of each answer, float32 `[B, S]`, 0 elsewhere.

  Args:
    variables: of the policy or of a reference; other collections than the model's are left out.
    chunk_tokens: tokens whose logits exist at one time.
    temperature: of the distribution.
  """
  states = hidden(model, variables, batch, rngs)
  return of_hidden(model, variables, batch, states, rngs, chunk_tokens, temperature)


def hidden(
  model: Any, variables: Tree, batch: Batch, rngs: Mapping[str, jax.Array] | None
) -> jax.Array:
  """The model's last hidden states, `[B, S, D]`."""
  return model.apply(
    _of_model(variables),
    batch["tokens"],
    batch["positions"],
    batch["segments"],
    method="hidden",
    rngs=rngs,
  )


def of_hidden(
  model: Any,
  variables: Tree,
  batch: Batch,
  states: jax.Array,
  rngs: Mapping[str, jax.Array] | None,
  chunk_tokens: int,
  temperature: float = 1.0,
) -> jax.Array:
  """`log_probs`, of hidden states that are at hand."""
  head, own = tokens.head_of(model, _of_model(variables), rngs)

  def cooled(values: Tree, at: jax.Array) -> jax.Array:
    return head(values, at) / temperature

  return chunked.of_targets(
    head if temperature == 1.0 else cooled,
    own,
    states,
    batch["targets"],
    batch["weights"],
    chunk_tokens=chunk_tokens,
  )


def _of_model(variables: Tree) -> Tree:
  return {name: variables[name] for name in ("params", "adapters") if name in variables}


def reference_variables(variables: Tree, reference: str) -> Tree:
  """The variables of the reference, "base" or "copy", of those of the step; a constant."""
  if reference == "base":
    return {"params": jax.lax.stop_gradient(variables["params"]), "adapters": {}}
  copied = variables[COLLECTION]
  params = jax.tree.map(
    lambda kept, own: own if kept is None else kept,
    copied["params"],
    variables["params"],
    is_leaf=lambda node: node is None,
  )
  return jax.lax.stop_gradient({"params": params, "adapters": copied["adapters"]})


def reference_sums(
  model: Any,
  variables: Tree,
  batch: Batch,
  reference: str,
  ld_alpha: float | None,
  chunk_tokens: int,
) -> jax.Array | None:
  """The reference's log-probability of each row's answer, `[B]`; None if there is no reference."""
  if reference == "none":
    return None
  if reference == "kept":
    return batch[KEPT]
  theirs = reference_variables(variables, reference)
  return row_sums(log_probs(model, theirs, batch, None, chunk_tokens), batch, ld_alpha)


def with_prompts(batch: Batch) -> jax.Array:
  """`weights` of the batch, `[B, S]`, and 1 in each example's first row at prompts, too.

  That is wherever a real token of the same document is next.
  """
  tokens, segments = batch["tokens"], batch["segments"]
  same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0) & (tokens[:, 1:] >= 0)
  whole = jnp.pad(same.astype(jnp.float32), ((0, 0), (0, 1)))
  first = jnp.arange(len(tokens)) % 2 == 0
  return jnp.where(first[:, None], whole, batch["weights"])


def row_sums(each: jax.Array, batch: Batch, ld_alpha: float | None) -> jax.Array:
  """The log-probability of each row's answer, `[B]`, of those of its tokens, `[B, S]`."""
  sums = pairs.completion_log_probs(apart(each), apart(batch["weights"]), ld_alpha=ld_alpha)
  return together(sums)


def apart(rows: jax.Array) -> jax.Array:
  """`[2N, ...]` of neighbours -> the first row of each example, then the second of each."""
  return rows.reshape(-1, 2, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def together(rows: jax.Array) -> jax.Array:
  """The inverse of `apart`."""
  return rows.reshape(2, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


def change(policy: jax.Array, reference: jax.Array, weights: jax.Array) -> Sums:
  """The metric `logps/chosen_change`, beside TRL's: how far answers have become likelier, in nats.

  Args:
    policy, reference: log-probabilities of chosen or desirable answers, `[N]`. weights: `[N]`.
  """
  found = jax.lax.stop_gradient(policy - reference)
  return {"logps/chosen_change": (jnp.sum(weights * found), weights.sum())}
