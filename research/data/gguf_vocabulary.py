"""The vocabulary in a GGUF file's metadata as a `tokenizers.Tokenizer`.

GGUF names a model ("gpt2": byte-level BPE; "llama": SentencePiece BPE) and, for the first, a
pre-tokenizer by the name that llama.cpp gave it. What a name means is defined by the
Hugging Face tokenizer it was converted from, which is what is rebuilt here; where a file
leaves a key out, llama.cpp's default holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from research.core.tree import nearest

# `tokenizer.ggml.token_type`: what a token is.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's space

# Patterns that `tokenizers` also knows by another name.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclasses.dataclass(frozen=True)
class _PreTokenizer:
  """How text is cut before merges apply: by each pattern in turn, every match its own piece."""

  patterns: tuple[str, ...]
  nfc: bool = False  # text is brought into Unicode's composed form first
  ignore_merges: bool = False  # a piece that is a token is taken whole, whatever the merges say
  add_bos: bool = False  # the default of `tokenizer.ggml.add_bos_token`


_DIGITS = _PreTokenizer((DIGIT, GPT2))
_LLAMA = _PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
PRE_TOKENIZERS: dict[str, _PreTokenizer] = {
  "gpt-2": _PreTokenizer((GPT2,)),
  "smollm": _DIGITS,
  "starcoder": _DIGITS,
  "refact": _DIGITS,
  "llama-bpe": _LLAMA,
  "llama3": _LLAMA,
  "llama-v3": _LLAMA,
  "qwen2": _PreTokenizer((_QWEN2,), nfc=True),
  # What llama.cpp falls back on for files older than `tokenizer.ggml.pre`.
  "default": _PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """A tokenizer without its frame, and what the metadata says about special tokens.

  `special_tokens` maps `bos_token`, `eos_token`, `unk_token`, `pad_token` to tokens;
  `eos_ids` are further ids that end a text; `add_bos` and `add_eos` say how texts are framed.
  """

  backend: tokenizers.Tokenizer
  special_tokens: dict[str, str]
  eos_ids: tuple[int, ...]
  add_bos: bool
  add_eos: bool


def read(metadata: Mapping[str, Any]) -> Vocabulary:
  """The vocabulary that `metadata` (of `research.io.gguf.read`) describes.

  Control and unknown tokens become special tokens, user-defined ones plain added tokens.

  Raises:
    ValueError: a missing key, an unknown model or pre-tokenizer, ids outside the vocabulary,
      a token that is listed twice.
  """
  model = _require(metadata, "model")
  tokens = _require(metadata, "tokens")
  get = _getter(metadata)
  if model == "gpt2":
    name = get("pre", "default")
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
      raise ValueError(
        f"GGUF pre-tokenizer {name!r} is not one of {', '.join(PRE_TOKENIZERS)}"
        f"{nearest(name, PRE_TOKENIZERS)}"
      )
    backend, add_bos = _byte_level(tokens, _require(metadata, "merges"), pre), pre.add_bos
    ids: dict[str, int | None] = dict.fromkeys(("bos", "eos", "unknown", "padding"))
  elif model == "llama":
    types = get("token_type", [NORMAL] * len(tokens))
    tokens = [
      # llama.cpp matches user-defined tokens in raw text, where a space is a space.
      token.replace(SPACE, " ") if kind == USER_DEFINED else token
      for token, kind in zip(tokens, types, strict=True)
    ]
    backend, add_bos = _sentencepiece(tokens, types, metadata), True
    ids = {"bos": 1, "eos": 2, "unknown": 0, "padding": None}
  else:
    raise ValueError(f"GGUF tokenizer model {model!r} is not one of 'gpt2', 'llama'")
  _add_tokens(backend, tokens, get("token_type", []))

  special: dict[str, str] = {}
  short = {"unknown": "unk_token", "padding": "pad_token"}
  for name, default in ids.items():
    token_id = get(f"{name}_token_id", default)
    if token_id is None:
      continue
    if not 0 <= token_id < len(tokens):
      raise ValueError(f"GGUF {name}_token_id {token_id} is outside the {len(tokens)} tokens")
    special[short.get(name, f"{name}_token")] = tokens[token_id]
  # Chat models may also end a turn, or hand over to a tool, with tokens of their own.
  ends = (get("eot_token_id", None), get("eom_token_id", None))
  return Vocabulary(
    backend=backend,
    special_tokens=special,
    eos_ids=tuple(token_id for token_id in ends if token_id is not None),
    add_bos=get("add_bos_token", add_bos),
    add_eos=get("add_eos_token", False),
  )


def _require(metadata: Mapping[str, Any], key: str) -> Any:
  if f"tokenizer.ggml.{key}" not in metadata:
    raise ValueError(f"the GGUF metadata lacks 'tokenizer.ggml.{key}'")
  return metadata[f"tokenizer.ggml.{key}"]


def _getter(metadata: Mapping[str, Any]) -> Callable[[str, Any], Any]:
  return lambda key, default: metadata.get(f"tokenizer.ggml.{key}", default)


def _index(tokens: Sequence[str]) -> dict[str, int]:
  ids = {token: i for i, token in enumerate(tokens)}
  if len(ids) < len(tokens):
    first = next(token for i, token in enumerate(tokens) if ids[token] != i)
    raise ValueError(f"the GGUF vocabulary lists {first!r} twice")
  return ids


def _byte_level(
  tokens: Sequence[str], merges: Sequence[str], pre: _PreTokenizer
) -> tokenizers.Tokenizer:
  pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=_index(tokens), merges=pairs, ignore_merges=pre.ignore_merges)
  )
  if pre.nfc:
    backend.normalizer = normalizers.NFC()
  cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
  backend.decoder = decoders.ByteLevel()
  return backend


def _sentencepiece(
  tokens: Sequence[str], types: Sequence[int], metadata: Mapping[str, Any]
) -> tokenizers.Tokenizer:
  """SentencePiece BPE: always the adjacent pair whose joint token scores highest is merged.

  The pairs that make up each token, ordered by that token's score, are the merges of the
  usual BPE.
  """
  scores = _require(metadata, "scores")
  ids = _index(tokens)
  mergeable = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
  merges = [
    (scores[ids[token]], token[:cut], token[cut:])
    for token in mergeable
    for cut in range(1, len(token))
    if token[:cut] in mergeable and token[cut:] in mergeable
  ]
  # The ids make the order independent of the set's.
  merges.sort(key=lambda merge: (-merge[0], ids[merge[1]], ids[merge[2]]))
  get = _getter(metadata)
  backend = tokenizers.Tokenizer(
    models.BPE(
      vocab=ids,
      merges=[(left, right) for _, left, right in merges],
      unk_token=tokens[get("unknown_token_id", 0)],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  steps: list[Any] = [normalizers.Replace(" ", SPACE)]
  back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  if get("add_space_prefix", True):
    steps.insert(0, normalizers.Prepend(SPACE))
    back.append(decoders.Strip(" ", 1, 0))
  backend.normalizer = normalizers.Sequence(steps)
  backend.decoder = decoders.Sequence(back)
  return backend


def _add_tokens(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
  """Tokens that are matched whole, before anything else; they keep their ids."""
  special, plain = [], []
  for token, kind in zip(tokens, types, strict=bool(types)):
    if kind in (UNKNOWN, CONTROL):
      special.append(AddedToken(token, normalized=False, special=True))
    elif kind == USER_DEFINED:
      plain.append(AddedToken(token, normalized=False, special=False))
  backend.add_special_tokens(special)
  backend.add_tokens(plain)
