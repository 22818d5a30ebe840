"""What of a data config can be, told before anything is read."""

from __future__ import annotations

from typing import Any

from research.core import tree
from research.data import formats


def share(batch_size: int, shard: tuple[int, int], unit: int) -> slice:
  """The rows of a batch that are this host's.

  Args:
    shard: the host's number and how many there are.
    unit: so many rows belong together and stay so; 0: none do.

  Raises:
    ValueError: there is no such share.
  """
  index, count = shard
  if not 0 <= index < count or batch_size % count:
    raise ValueError(
      f"shard {index} of {count} of a batch of {batch_size}: the shard is from 0 to below the "
      "count, and the count divides the batch"
    )
  if not unit:
    return slice(index, batch_size, count)
  share = batch_size // count
  if share % unit:
    raise ValueError(
      f"{share} rows of a batch are no whole groups of {unit} rows; "
      f"batch_size is a multiple of {unit * count}"
    )
  return slice(index * share, (index + 1) * share)


def require_answers(
  config: Any, answers: str, batch_size: int, start_id: int | None, rows_per_task: int
) -> None:
  """Raises ValueError where rows about answers cannot be read so.

  Args:
    answers: a key of `answers.KINDS`.
    batch_size: in examples.
    start_id: of an encoder-decoder's decoder.
  """
  if start_id is not None:
    raise ValueError("rows about answers are for decoders, and the model has an encoder")
  if config.packing != "none":
    raise ValueError(
      f"rows about answers need data.packing='none', not {config.packing!r}: each answer is a row"
      " of the batch"
    )
  if config.corruption or not config.completion_only:
    raise ValueError("of these rows the answers count: no corruption, and completion_only=True")
  if config.on_long_row == "split":
    raise ValueError(
      "data.on_long_row 'split' is for documents; answers are dropped, or lose their end"
      " ('truncate') or the beginning of the prompt ('truncate_start')"
    )
  if rows_per_task:
    raise ValueError("rows about answers have no tasks to learn a start for: leave train.meta out")
  if answers == "prompts" and config.on_long_row == "truncate":
    raise ValueError(
      "data.on_long_row 'truncate' would take the end of a question away; prompts are dropped, or"
      " lose their beginning ('truncate_start')"
    )
  if answers == "judged" and batch_size < 2:
    raise ValueError("judged answers are compared with another one's: batch_size is at least 2")


def require(config: Any, pairs: bool, virtual_tokens: int, answers: str | None) -> None:
  """Raises ValueError for a data section that cannot be.

  Args:
    pairs: whether rows are an encoder-decoder's.
    virtual_tokens: in front of each document.
    answers: a key of `answers.KINDS`, or None.
  """
  choices = {
    "packing": ("best_fit", "none"),
    "on_bad_row": ("drop", "stop"),
    "on_long_row": formats.ON_LONG_ROW,
  }
  for key, known in choices.items():
    value = getattr(config, key)
    if value not in known:
      raise ValueError(
        f"data.{key} {value!r} is none of {', '.join(known)}{tree.nearest(str(value), known)}"
      )
  if config.on_long_row == "truncate_start" and not answers:
    raise ValueError(
      "data.on_long_row 'truncate_start' is for rows about answers, whose prompts it cuts"
    )
  if config.target_length and not pairs:
    raise ValueError(
      f"data.target_length {config.target_length} is of encoder-decoders; 0 for a decoder"
    )
  if pairs and not config.corruption and config.on_long_row == "split":
    raise ValueError("data.on_long_row 'split' is for documents; pairs are truncated or dropped")
  if config.length < 2 or config.window < 1:
    raise ValueError(
      f"data.length is at least 2 and data.window at least 1, not {config.length}, {config.window}"
    )
  if virtual_tokens and config.length - virtual_tokens < 2:
    raise ValueError(
      f"data.length {config.length} leaves no room beside {virtual_tokens} virtual tokens"
    )
  if any(not 1 < bucket <= max(config.length, config.target_length) for bucket in config.buckets):
    raise ValueError(f"data.buckets {config.buckets} are not all from 2 to {config.length}")
