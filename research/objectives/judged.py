"""Answers that are good or bad, each on its own: KTO.

N answers, each with a row of its own and one of another answer after the same prompt; S sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from research.core.config import ConfigError
from research.losses import kto as losses
from research.objectives import answers, tokens
from research.objectives.answers import AnswerLoss


def kto(
  *,
  tasks: Sequence[str] = (),
  beta: float = 0.1,
  desirable_weight: float = 1.0,
  undesirable_weight: float = 1.0,
  reference: str = "base",
  chunk_tokens: int = 256,
) -> AnswerLoss:
  """Kahneman-Tversky optimization (`losses.kto`), with TRL's metrics.

  What good and bad answers are compared with is how much likelier the batch's answers became after
  prompts that are not theirs. That is of the whole batch, or of each slice where gradients
  accumulate.

  Args:
    tasks: not supported.
    beta, desirable_weight, undesirable_weight: see `losses.kto`.
    reference: "base" or "copy". Nothing can be kept: the mismatched answer of a row is that of its
      neighbour in the batch, and batches are others in each epoch. Of R rows there are R * R such
      pairs, which a run hardly meets twice, so that a table of them would cost what it saves.
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.
  """
  answers.require_no_tasks("kto", tasks)
  if reference == "kept":
    raise ConfigError(
      "config.objective.reference is 'kept'; kto compares with the mismatched answers of each"
      " step's own batch: base, copy"
    )
  answers.require_reference("the objective 'kto'", reference, ("base", "copy"))
  of_each = losses.kto(
    beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight
  )

  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model("kto", model)
    tokens.require("kto", batch, "label", "rows of prompt, completion and label")
    own, others = ({name: rows[at::2] for name, rows in batch.items()} for at in (0, 1))
    constant = jax.lax.stop_gradient(variables)

    def sums(values, rows, rngs=None):
      return answers.log_probs(model, values, rows, rngs, chunk_tokens).sum(axis=1)

    theirs = answers.reference_variables(variables, reference)
    there = [jnp.any(rows["weights"] > 0, axis=1).astype(jnp.float32) for rows in (own, others)]
    kl = losses.mismatched_kl(sums(constant, others), sums(theirs, others), there[1])
    judged = losses.Judged(
      sums(variables, own, None if rng is None else {"dropout": rng}),
      sums(theirs, own),
      own["label"] > 0,
      there[0],
    )
    total = jnp.sum(jnp.where(there[0] > 0, of_each(judged, kl), 0.0))
    metrics = losses.metrics(judged, kl, beta=beta)
    desirable = there[0] * judged.desirable
    metrics |= answers.change(judged.log_probs, judged.reference, desirable)
    return total, there[0].sum(), metrics

  return AnswerLoss(loss, reference)
