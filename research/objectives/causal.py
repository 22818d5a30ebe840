"""Next-token prediction: pre-training, and supervised fine-tuning by the batch's weights."""

from collections.abc import Sequence

from research.models import DecoderConfig
from research.objectives import tokens
from research.objectives.tokens import Loss


def causal(*, tasks: Sequence[str] = (), chunk_tokens: int = 256) -> Loss:
  """The loss `sum over t of weights[t] * -log p(targets[t] | tokens[..t])`, in nats.

  What counts (all tokens, or completions alone) is in the batch's weights.

  Args:
    tasks: names of the numbers in the batch's `task`; each has its own `loss/NAME` and
      `accuracy/NAME`.
    chunk_tokens: tokens whose logits exist at one time, over the whole batch.
  """

  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model("causal", model, DecoderConfig, "decoders")
    tokens.require("causal", batch, "targets", "rows of text without a label")
    return tokens.predict(
      model,
      variables,
      batch,
      batch["targets"],
      rng,
      inputs=("prefix",),
      tasks=tasks,
      chunk_tokens=chunk_tokens,
    )

  return loss
