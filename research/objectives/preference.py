"""Of two answers the better one shall be the likelier: DPO and its kin.

P pairs, two rows each, S sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from research.losses import pairs, preference
from research.objectives import answers, tokens
from research.objectives.answers import AnswerLoss


def pair_loss(
  *,
  loss: Mapping[str, Any],
  tasks: Sequence[str] = (),
  reference: str | None = None,
  ld_alpha: float | None = None,
  chunk_tokens: int = 256,
) -> AnswerLoss:
  """A loss of each pair by the log-probabilities of its answers, and TRL's metrics.

  Beside those, with a reference, `logps/chosen_change`, the chosen answers' log-ratio in nats.

  Args:
    loss: a section of `losses.preference`: `{"name": "sigmoid", "beta": 0.1}`.
    tasks: not supported.
    reference: one of `answers.REFERENCES`. By default "base" for a loss that needs one.
    ld_alpha: of the longer answer, what a token beyond the other's length counts (LD-DPO).
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.

  Raises:
    ConfigError: the loss is unknown, takes no such setting, or cannot go with the reference.
  """
  answers.require_no_tasks("preference", tasks)
  judged = preference.build(loss)
  possible = ("base", "copy", "kept") if judged.reference else ("none",)
  reference = possible[0] if reference is None else reference
  answers.require_reference(f"the loss {loss['name']!r}", reference, possible)
  if ld_alpha is not None and not 0 <= ld_alpha <= 1:
    raise ValueError(f"objective.ld_alpha is from 0 to 1, not {ld_alpha}")

  def of_batch(model, variables, batch, rng, step):
    del step
    tokens.require_model("preference", model)
    tokens.require("preference", batch, "margin", "rows of chosen and rejected answers")
    rngs = None if rng is None else {"dropout": rng}
    theirs = answers.reference_sums(model, variables, batch, reference, ld_alpha, chunk_tokens)
    learnt = answers.with_prompts(batch) if judged.prompts else batch["weights"]
    asked = {**batch, "weights": learnt}
    each = answers.log_probs(model, variables, asked, rngs, chunk_tokens)
    found = pairs.gather(
      answers.apart(each),
      answers.apart(batch["weights"]),
      None if theirs is None else answers.apart(theirs),
      ld_alpha=ld_alpha,
      imitated=jnp.split(answers.apart(learnt), 2)[0],
    )
    metrics = judged.metrics(found)
    if found.reference_chosen is not None:
      metrics |= answers.change(found.chosen, found.reference_chosen, found.weights)
    # Not a product alone: what a row without a pair gives need not be finite.
    losses = jnp.where(found.weights > 0, found.weights * judged(found), 0.0)
    return jnp.sum(losses), found.weights.sum(), metrics

  return AnswerLoss(of_batch, reference, ld_alpha)
