"""Objectives of encoders with a head: hidden tokens, classes of documents, classes of tokens."""

from collections.abc import Sequence

from research.objectives import tokens
from research.objectives.tokens import Loss


def masked(*, tasks: Sequence[str] = (), chunk_tokens: int = 256) -> Loss:
  """Masked language modelling (Devlin et al. 2018): what was at the hidden tokens.

  The data's `corruption` "mask" hides them.

  Args:
    tasks, chunk_tokens: see `causal`.
  """
  return _labelled("masked", ("masked",), "the data's corruption 'mask'", tasks, chunk_tokens)


def classification(*, tasks: Sequence[str] = (), chunk_tokens: int = 256) -> Loss:
  """Cross-entropy of the class of each document, or of each word.

  Args:
    tasks, chunk_tokens: see `causal`.
  """
  rows = "rows of text and label, or of tokens and labels"
  return _labelled("classification", ("sequence", "token"), rows, tasks, chunk_tokens)


def _labelled(name, heads, rows, tasks, chunk_tokens) -> Loss:
  def loss(model, variables, batch, rng, step):
    del step
    tokens.require_model(name, model)
    tokens.require(name, batch, "labels", rows)
    if model.config.head not in heads:
      wanted = " or ".join(f"{{'name': {head!r}, ...}}" for head in heads)
      raise ValueError(
        f"the objective {name!r} needs config.model.head = {wanted}; the model's head is"
        f" {model.config.head!r}"
      )
    rngs = None if rng is None else {"dropout": rng}
    hidden = model.apply(
      variables,
      batch["tokens"],
      batch["positions"],
      batch["segments"],
      batch.get("types"),
      method="hidden",
      rngs=rngs,
    )
    return tokens.of_hidden(
      model,
      variables,
      batch,
      batch["labels"],
      hidden,
      rngs,
      tasks=tasks,
      chunk_tokens=chunk_tokens,
    )

  return loss
