"""A `tokenizers.Tokenizer` as the vocabulary of a GGUF file's metadata.

The inverse of `gguf_vocabulary`, also for tokenizers that come from Hugging Face's files. GGUF has
names for kinds of tokenizers and no place for their parts: a backend is taken apart, and what is
not exactly one of those kinds is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from research.data import gguf_vocabulary
from research.data.gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

_NAMES = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
# Further tokens that end a text, in this order.
_ENDS = ("eot_token_id", "eom_token_id")


def write(
  backend: tokenizers.Tokenizer,
  special_tokens: Mapping[str, str],
  eos_ids: Sequence[int],
  *,
  vocab_size: int,
) -> dict[str, Any]:
  """The keys `tokenizer.ggml.*` that `gguf_vocabulary.read` makes the same tokenizer of.

  Args:
    backend: with its frame, from which it is told whether texts begin with BOS and end with EOS.
    special_tokens: `bos_token`, `eos_token`, `unk_token`, `pad_token` as far as there are any;
      GGUF has no place for a decoder's others.
    eos_ids: what ends a text; the first is `eos_token`.
    vocab_size: of the model; numbers without a token are filled up, as llama.cpp asks for.

  Raises:
    ValueError: GGUF has no name for this kind of tokenizer, or no place for a part of it.
  """
  state = json.loads(backend.to_str())
  model = state["model"]
  if model["type"] != "BPE":
    raise ValueError(f"GGUF files of ours hold BPE vocabularies, and this one is {model['type']}")
  for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
    if model[name]:
      raise ValueError(f"the tokenizer has a {name}, {model[name]!r}, which GGUF has no place for")
  found = _sentencepiece(state) if model["byte_fallback"] else _byte_level(state)
  tokens, types = _tokens(state, vocab_size)
  found |= {"tokens": tokens, "token_type": types}
  if model["byte_fallback"]:
    found["scores"] = _scores(model["merges"], tokens)
  ids = {token: i for i, token in enumerate(tokens)}
  for name, key in _NAMES.items():
    if name in special_tokens:
      found[key] = ids[special_tokens[name]]
    elif model["byte_fallback"] and name != "pad_token":
      raise ValueError(f"a SentencePiece vocabulary in GGUF has a {name}, and this one has none")
  if len(eos_ids) > 1 + len(_ENDS):
    raise ValueError(f"{len(eos_ids)} tokens end a text; GGUF has places for {1 + len(_ENDS)}")
  found |= dict(zip(_ENDS, eos_ids[1:], strict=False))
  bos, eos = (ids.get(special_tokens.get(name, "")) for name in ("bos_token", "eos_token"))
  found["add_bos_token"], found["add_eos_token"] = _frame(backend, bos, eos)
  keys = {f"tokenizer.ggml.{key}": value for key, value in found.items()}
  if model["byte_fallback"]:
    _require_merges(keys, model["merges"])
  return keys


def _byte_level(state: Mapping[str, Any]) -> dict[str, Any]:
  """Model and pre-tokenizer, by what the reader makes of each name."""
  model = state["model"]
  merges = [" ".join(pair) for pair in model["merges"]]
  if not merges:
    raise ValueError("the tokenizer has no merges, and a GGUF file must have some")
  cuts = _cuts(state["pre_tokenizer"])
  nfc = state["normalizer"] is not None
  kind = (cuts, nfc, bool(model["ignore_merges"]))
  plain = state["normalizer"] in (None, {"type": "NFC"})
  for name, pre in gguf_vocabulary.PRE_TOKENIZERS.items():
    if plain and kind == (pre.patterns, pre.nfc, pre.ignore_merges):
      return {"model": "gpt2", "pre": name, "merges": merges}
  raise ValueError(
    "the tokenizer's normalizer and pre-tokenizer are none that GGUF files of ours have a name for:"
    f" {', '.join(gguf_vocabulary.PRE_TOKENIZERS)}"
  )


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
  """The patterns by which text is cut before its bytes are taken, None if it is otherwise."""
  steps = [pre_tokenizer or {"type": "none"}]
  if steps[0]["type"] == "Sequence":
    steps = steps[0]["pretokenizers"]
  *splits, to_bytes = steps
  if to_bytes["type"] != "ByteLevel" or to_bytes["add_prefix_space"]:
    return None
  patterns = []
  for step in splits:
    if step["type"] == "Digits" and step["individual_digits"]:
      patterns.append(gguf_vocabulary.DIGIT)
    elif (
      step["type"] == "Split"
      and (step["behavior"], step["invert"]) == ("Isolated", False)
      and "Regex" in step["pattern"]
    ):
      patterns.append(step["pattern"]["Regex"])
    else:
      return None
  if to_bytes["use_regex"]:
    patterns.append(gguf_vocabulary.GPT2)
  return tuple(patterns)


def _sentencepiece(state: Mapping[str, Any]) -> dict[str, Any]:
  """Whether a space is put before a text, which is all that GGUF says of normalization."""
  replace = {
    "type": "Replace",
    "pattern": {"String": " "},
    "content": gguf_vocabulary.SPACE,
  }
  prepend = {"type": "Prepend", "prepend": gguf_vocabulary.SPACE}
  normalizer = state["normalizer"] or {"type": "none"}
  steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
  # Gemma's cut at spaces finds none: the normalizer has replaced them.
  idle = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
  }
  if steps not in ([replace], [prepend, replace]) or state["pre_tokenizer"] not in (None, idle):
    raise ValueError(
      "the tokenizer is none of SentencePiece's that GGUF has a place for: the normalizer puts"
      f" {gguf_vocabulary.SPACE!r} for spaces, with or without one before the text, and nothing"
      " else cuts or changes it"
    )
  return {"model": "llama", "add_space_prefix": len(steps) == 2}


def _tokens(state: Mapping[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
  """Every token by its number, and what it is."""
  model = state["model"]
  by_id = {i: (token, NORMAL) for token, i in model["vocab"].items()}
  if model["byte_fallback"]:
    for byte in range(256):
      name = f"<0x{byte:02X}>"
      if name in model["vocab"]:
        by_id[model["vocab"][name]] = (name, BYTE)
  for added in state["added_tokens"]:
    token = added["content"]
    if added["lstrip"] or added["rstrip"] or added["single_word"]:
      raise ValueError(
        f"the token {token!r} takes the spaces beside it along or stands for whole words alone, for"
        " which GGUF has no place"
      )
    by_id[added["id"]] = (token, CONTROL if added["special"] else USER_DEFINED)
  if model["byte_fallback"] and model["unk_token"] is not None:
    by_id[model["vocab"][model["unk_token"]]] = (model["unk_token"], UNKNOWN)
  if max(by_id) >= vocab_size:
    raise ValueError(
      f"the tokenizer has tokens up to {max(by_id)}, and the model's table {vocab_size} rows"
    )
  filled = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(vocab_size)]
  return [token for token, _ in filled], [kind for _, kind in filled]


def _scores(merges: Sequence[Sequence[str]], tokens: Sequence[str]) -> list[float]:
  """SentencePiece's: the sooner a token is merged, the higher; what is never merged is last."""
  rank: dict[str, int] = {}
  for left, right in merges:
    rank.setdefault(left + right, len(rank))
  return [-float(rank.get(token, len(rank))) for token in tokens]


def _require_merges(keys: Mapping[str, Any], merges: Sequence[Sequence[str]]) -> None:
  """Raises ValueError if scores say another order of merges than the tokenizer has."""
  read = json.loads(gguf_vocabulary.read(keys).backend.to_str())["model"]["merges"]
  if read != [list(pair) for pair in merges]:
    raise ValueError(
      f"the tokenizer's {len(merges)} merges are not all {len(read)} of a SentencePiece vocabulary,"
      " in the order of their tokens' scores; GGUF holds no others"
    )


def _frame(backend: tokenizers.Tokenizer, bos: int | None, eos: int | None) -> tuple[bool, bool]:
  """Whether a text gets BOS before it and EOS after it."""
  text = "a"
  inside, framed = backend.encode(text, add_special_tokens=False).ids, backend.encode(text).ids
  for add_bos in (False, True):
    for add_eos in (False, True):
      before, after = [bos] if add_bos else [], [eos] if add_eos else []
      if None not in (before + after) and framed == before + inside + after:
        return add_bos, add_eos
  raise ValueError(
    f"the tokenizer puts tokens around a text, {framed} for {inside}, other than BOS {bos} and EOS"
    f" {eos}, for which GGUF has no place"
  )
