"""What generation cannot be asked for, each an error of one line."""

from __future__ import annotations

from collections.abc import Sequence

from research.models import Decoder, EncoderDecoder


def positive(**numbers: int) -> None:
  """Raises ValueError if one of them is below 1."""
  for name, number in numbers.items():
    if number < 1:
      raise ValueError(f"{name} is {number}; it must be at least 1")


def decoder(model: Decoder | EncoderDecoder, what: str) -> None:
  """Raises ValueError if the model is none: `what` goes on with a text, and has no source."""
  if not isinstance(model, Decoder):
    raise ValueError(f"{what} is for decoders; a {model.config.family} writes by generate or beams")
  writes(model, what)


def writes(model: Decoder | EncoderDecoder, what: str) -> None:
  """Raises ValueError if the model tells no next token, as one that gives a score does not."""
  if isinstance(model, Decoder) and model.config.head is not None:
    raise ValueError(f"{what} is for models that write; this one gives a score")


def tokens(model: Decoder | EncoderDecoder, ids: Sequence[int], name: str) -> None:
  """Raises ValueError if `ids` are none, or not the model's."""
  if not len(ids):
    raise ValueError(f"{name} is empty; a model needs at least one token, BOS perhaps")
  vocabulary = model.config.vocab_size
  if min(ids) < 0 or max(ids) >= vocabulary:
    wrong = next(token for token in ids if not 0 <= token < vocabulary)
    raise ValueError(f"{name} holds token {wrong}; the model has 0 to {vocabulary - 1}")


def prompt(
  model: Decoder | EncoderDecoder,
  ids: Sequence[int],
  max_new_tokens: int,
  name: str = "the prompt",
  *,
  before: int = 0,
) -> None:
  """Raises ValueError if the model cannot take `ids` and as many new tokens.

  before: positions that adapters take ahead of them.
  """
  tokens(model, ids, name)
  if isinstance(model, EncoderDecoder):
    return  # its positions are relative and have no end
  if before + len(ids) + max_new_tokens > model.config.max_positions:
    adapters = f" and the adapters' {before} positions" if before else ""
    raise ValueError(
      f"{name} has {len(ids)} tokens, which with max_new_tokens {max_new_tokens}{adapters} exceeds "
      f"the model's {model.config.max_positions} positions"
    )
