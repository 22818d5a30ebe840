"""Next-token prediction: pre-training, and supervised fine-tuning by the batch's weights.

T tasks, B batch, S sequence.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from research.core.config import ConfigError
from research.losses import routing
from research.nn.moe import ROUTING
from research.objectives import tokens
from research.objectives import weighting as weightings
from research.objectives.tokens import Loss


def causal(
  *,
  tasks: Sequence[str] = (),
  chunk_tokens: int = 256,
  weighting: Mapping[str, Any] | None = None,
  router_balance: float = 0.0,
  router_z: float = 0.0,
) -> Loss:
  """The loss `sum over t of weights[t] * -log p(targets[t] | tokens[..t])`, in nats.

  What counts (all tokens, or completions alone) is in the batch's weights. In training, tasks may
  be weighted and a router's losses be added; in evaluation the loss is what stands above.

  Args:
    tasks: names of the numbers in the batch's `task`; each has its own `loss/NAME` and
      `accuracy/NAME`.
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.
    weighting: a section of `objectives.weighting`.
    router_balance, router_z: weights of `losses.routing` in the mean loss of a token, for a
      mixture of experts, which has the metrics `router/balance` and `router/z`. Balance is over
      all real tokens that the loss is given at once: the whole batch, over all devices, or each of
      its slices; it is no sum over tokens, so the slices' mean is not the whole's. `router/z`
      counts tokens as the loss does, and is exact however the batch is cut.
  """

  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model("causal", model)
    tokens.require("causal", batch, "targets", "rows of text without a label")
    training = rng is not None
    rngs = {"dropout": rng} if training else None
    hidden, router_logits = _hidden(model, variables, batch, rngs)
    terms, factors, learnt = None, None, variables.get("objective", {})
    if weighting and training:
      terms = weightings.build(weighting, tasks)(learnt)
      factors = jax.lax.stop_gradient(terms.factors)[batch["task"]]
    total, plain, metrics = tokens.of_hidden(
      model,
      variables,
      batch,
      batch["targets"],
      hidden,
      rngs,
      tasks=tasks,
      chunk_tokens=chunk_tokens,
      factors=factors,
    )
    weight = plain
    if terms is not None:
      added, weight = _weighted(terms, [metrics[f"loss/{name}"] for name in tasks])
      total = total + added
      for name, value in learnt.get("log_variance", {}).items():
        metrics[f"log_variance/{name}"] = (value, jnp.ones(()))
    if router_logits is not None:
      real = batch["segments"] > 0
      balance = routing.balance(router_logits, model.config.experts_per_token, real)
      metrics["router/balance"] = (balance * plain, plain)
      metrics["router/z"] = (routing.z_sum(router_logits, batch["weights"]), plain)
      if training:
        for name, share in (("balance", router_balance), ("z", router_z)):
          # Of the mean loss, whatever the tasks' weights have made of its divisor.
          term = metrics[f"router/{name}"][0]
          total = total + share * term * (weight / jnp.where(plain == 0, 1.0, plain))
    elif router_balance or router_z:
      raise ConfigError("config.objective.router_balance and router_z need a mixture of experts")
    return total, weight, metrics

  if weighting:
    return weightings.LearningLoss(loss, lambda: weightings.build(weighting, tasks).initial())
  return loss


def _hidden(model, variables, batch, rngs):
  """The model's output `[B, S, D]`; of a mixture of experts the logits `[L, B, S, E]`, or None."""
  experts = model.config.num_experts
  out = model.apply(
    variables,
    batch["tokens"],
    batch["positions"],
    batch["segments"],
    prefix=batch.get("prefix"),
    method="hidden",
    rngs=rngs,
    mutable=[ROUTING] if experts else False,
  )
  return (out[0], out[1][ROUTING]["layers"]["mlp"]["logits"]) if experts else (out, None)


def _weighted(terms, sums):
  """What `terms` add to the sum of losses times `factors`, and the weight of the whole.

  The sum holds the factors as constants. Their own derivative is that of the first line, whose
  value is 0.
  """
  losses = jax.lax.stop_gradient(jnp.stack([loss for loss, _ in sums]))
  weights = jnp.stack([weight for _, weight in sums])
  learnt = jnp.sum((terms.factors - jax.lax.stop_gradient(terms.factors)) * losses)
  return learnt + jnp.sum(terms.offsets * weights), jnp.sum(terms.shares * weights)
