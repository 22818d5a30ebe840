"""What the model wrote itself becomes likelier as far as it was good: PPO, GRPO and their kin.

The answers, and how much better than expected they were, are in the batch:
`loop.policy_answers` writes and judges them.

N rows of the batch, S sequence, D model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.core import config as config_lib
from research.losses import policy as losses
from research.objectives import answers, tokens
from research.objectives.answers import AnswerLoss, Batch, Tree

ADVANTAGES = "advantages"  # of a batch: of each token, float32 `[N, S]`
OLD = "old_log_probs"  # `[N, S]`, as they were when the tokens were written; or it is not there
VALUES, RETURNS = "values", "returns"  # `[N, S]`, by the critic when they were written
TOLD = "told/"  # begins what a batch tells of each row's answer, `[N]`, for its metrics


@dataclasses.dataclass(frozen=True)
class Critic:
  """A head that expects, at each token, what the answer is going to earn (PPO).

  It is a matrix `[D, 1]` on the policy's own hidden states, beginning with zeros.

  coefficient: what its loss counts beside the policy's.
  clip: see `losses.policy.value_loss`.
  """

  coefficient: float = 0.1
  clip: float = 0.2

  def __post_init__(self) -> None:
    if self.coefficient <= 0 or self.clip <= 0:
      raise ValueError(f"coefficient {self.coefficient} and clip {self.clip} are above 0")


@dataclasses.dataclass(frozen=True)
class PolicyLoss(AnswerLoss):
  """A loss of answers that the policy wrote, and what those who write and judge them go by.

  temperature: of the distribution that answers are drawn from, whose log-probabilities these are.
  kl: what a nat of KL from the reference counts in the loss.
  reward_kl: what a nat of KL from the reference takes from the reward.
  width: D, of a model with a critic; else 0.
  """

  temperature: float = 1.0
  kl: float = 0.0
  reward_kl: float = 0.0
  width: int = 0

  @property
  def asks_reference(self) -> bool:
    """See `AnswerLoss`; what rewards pay is read before, where answers are written."""
    return self.kl > 0

  def initial(self) -> Tree:
    """The critic before the first step, the collection `objective`."""
    if not self.width:
      return {}
    return {"value": {"kernel": jnp.zeros((self.width, 1)), "bias": jnp.zeros(1)}}


def policy(
  *,
  loss: Mapping[str, Any],
  model: Any,
  tasks: Sequence[str] = (),
  reference: str | None = None,
  temperature: float = 1.0,
  average: str = "tokens",
  length: int = 1,
  kl: float = 0.0,
  reward_kl: float = 0.0,
  critic: Mapping[str, Any] | None = None,
  chunk_tokens: int = 256,
) -> PolicyLoss:
  """A loss of each token of an answer by its advantage, with TRL's metrics.

  Beside those that the batch tells of its answers: `entropy`, minus the mean log-probability of
  what was drawn, `kl` from the reference, and with a critic `loss/value_avg` and
  `val/clipfrac_avg`.

  Args:
    loss: a section of `losses.policy`: `{"name": "clipped", "epsilon": 0.2}`.
    model: whose hidden states a critic reads.
    tasks: not supported.
    reference: "base" or "copy" (`answers.REFERENCES`), for a KL; by default "base" if there is one.
    temperature: at which answers are drawn.
    average, length: see `losses.policy.weights`.
    kl: what a nat of KL from the reference counts in the loss, by `losses.policy.divergence`.
    reward_kl: what it takes from rewards, by the difference of log-probabilities.
    critic: a section of `Critic`, for PPO; by default there is none.
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.

  Raises:
    ConfigError: the loss is unknown or takes no such setting, or one of the others cannot be.
  """
  answers.require_no_tasks("policy", tasks)
  judged = losses.build(loss)
  if average not in losses.AVERAGES or length < 1 or temperature <= 0 or min(kl, reward_kl) < 0:
    raise ValueError(
      f"average is one of {', '.join(losses.AVERAGES)}, length from 1, temperature above 0, and kl"
      f" and reward_kl not below 0: {average!r}, {length}, {temperature}, {kl}, {reward_kl}"
    )
  possible = ("base", "copy") if kl or reward_kl else ("none",)
  reference = possible[0] if reference is None else reference
  told = "a policy's kl" if kl or reward_kl else "a policy without kl"
  answers.require_reference(told, reference, possible)
  judge = None
  if critic is not None:
    judge = config_lib.call({"critic": Critic}, {"name": "critic", **critic})
    if average != "tokens":
      raise ValueError("a critic's loss is a mean over tokens: average is 'tokens'")

  def of_batch(model, variables, batch, rng, step):
    del step
    tokens.require_model("policy", model)
    tokens.require("policy", batch, ADVANTAGES, "answers that the run writes (train.rollout)")
    rngs = None if rng is None else {"dropout": rng}
    hidden = answers.hidden(model, variables, batch, rngs)
    each = answers.of_hidden(model, variables, batch, hidden, rngs, chunk_tokens, temperature)
    mask = batch["weights"]
    old = batch.get(OLD, jax.lax.stop_gradient(each))
    found, metrics = judged(each, old, batch[ADVANTAGES], mask)
    metrics["entropy"] = (-jnp.sum(each * mask), mask.sum())
    if kl:
      theirs = answers.reference_variables(variables, reference)
      theirs = answers.log_probs(model, theirs, batch, None, chunk_tokens, temperature)
      apart = losses.divergence(each, theirs)
      found = found + kl * apart
      metrics["kl"] = (jnp.sum(apart * mask), mask.sum())
    if judge:
      values = values_of(variables, hidden)
      errors, held = losses.value_loss(values, batch[VALUES], batch[RETURNS], clip=judge.clip)
      found = found + judge.coefficient * errors
      metrics["loss/value_avg"] = (jnp.sum(errors * mask), mask.sum())
      metrics["val/clipfrac_avg"] = (jnp.sum(held * mask), mask.sum())
    counted, weight = losses.weights(mask, average, length, _answered(batch))
    total = jnp.sum(jnp.where(counted > 0, counted * found, 0.0))
    return total, weight, jax.lax.stop_gradient(metrics) | _told(batch)

  width = model.config.hidden_size if judge else 0
  return PolicyLoss(
    of_batch, reference, temperature=temperature, kl=kl, reward_kl=reward_kl, width=width
  )


def values_of(variables: Tree, hidden: jax.Array) -> jax.Array:
  """What the critic expects at each token, float32 `[N, S]`, of hidden states `[N, S, D]`."""
  head = variables["objective"]["value"]
  found = jnp.einsum("nsd,dk->nsk", hidden.astype(jnp.float32), head["kernel"])
  return found[..., 0] + head["bias"]


def _answered(batch: Batch) -> jax.Array:
  """1 in rows with an answer, `[N]`; the others fill the batch."""
  return (batch["row"] >= 0).astype(jnp.float32)


def _told(batch: Batch) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Means over answers of what the batch tells of them."""
  there = _answered(batch)
  return {
    name.removeprefix(TOLD): (jnp.sum(there * batch[name]), there.sum())
    for name in batch
    if name.startswith(TOLD)
  }
