"""A target after its source: translation, T5's span corruption, any task as text to text."""

from collections.abc import Sequence

from research.objectives import tokens
from research.objectives.tokens import Loss


def seq2seq(*, tasks: Sequence[str] = (), chunk_tokens: int = 256) -> Loss:
  """The loss `sum over t of weights[t] * -log p(targets[t] | source, tokens[..t])`, in nats.

  The batch has the sources, too (docs/architecture.md). The arguments are those of `causal`.

  Raises:
    ValueError: when it first meets a model that is no encoder-decoder.
  """

  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model("seq2seq", model)
    rngs = None if rng is None else {"dropout": rng}
    hidden = model.apply(
      variables,
      batch["tokens"],
      segments=batch["segments"],
      source_tokens=batch["source_tokens"],
      source_segments=batch["source_segments"],
      method="hidden",
      rngs=rngs,
    )
    return tokens.of_hidden(
      model,
      variables,
      batch,
      batch["targets"],
      hidden,
      rngs,
      tasks=tasks,
      chunk_tokens=chunk_tokens,
    )

  return loss
