"""Text to token ids and back, from Hugging Face directories and from GGUF vocabularies.

A thin wrapper over `tokenizers.Tokenizer` that also knows what the rest of the laboratory
asks of a vocabulary: which token begins a text, which ones end it, which one pads, and the
chat template. That EOS and padding are one token is ordinary (SmolLM2's chat model) and
kept; nothing here or downstream may take `token == pad_id` to mean padding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, processors

from research.core.tree import nearest
from research.data import gguf_vocabulary, gguf_vocabulary_write

_ENCODERS = ("cls_token", "sep_token", "mask_token")
# The names under which chat templates and `tokenizer_config.json` know special tokens.
_SPECIAL = (
  "bos_token",
  "eos_token",
  "unk_token",
  "pad_token",
  *_ENCODERS,
)


class Tokenizer:
  """A vocabulary and its conventions.

  Invariant: every token of `special_tokens` is in the vocabulary; `eos_ids[0]`, when there
  is one, is the id of `special_tokens["eos_token"]`.

  Attributes:
    backend: the `tokenizers.Tokenizer`.
    vocab_size: the number of tokens, added ones included.
    special_tokens: `bos_token`, `eos_token`, `unk_token`, `pad_token`, `cls_token`, `sep_token`,
      `mask_token` where the tokenizer has them, as its chat template sees them.
    bos_id, pad_id: ids, or None.
    eos_ids: every token that ends a text; the first is the one to append.
    chat_template: Jinja source, or None.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    special_tokens: Mapping[str, str],
    extra_eos_ids: Iterable[int] = (),
    chat_template: str | None = None,
  ):
    self.backend = backend
    # A truncating or padding tokenizer.json is meant for one program's batches, not for ours.
    backend.no_truncation()
    backend.no_padding()
    self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
    self.special_tokens = dict(special_tokens)
    self.chat_template = chat_template
    ids = {name: self.token_id(token) for name, token in special_tokens.items()}
    self.bos_id = ids.get("bos_token")
    self.pad_id = ids.get("pad_token")
    eos = [ids["eos_token"]] if "eos_token" in ids else []
    self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys([*eos, *extra_eos_ids]))
    eos_tokens = [_token(backend, token_id) for token_id in self.eos_ids]
    if eos_tokens:
      self.special_tokens["eos_token"] = eos_tokens[0]
    # Named tokens are matched whole, also by files that forgot to list them as added tokens; of
    # an encoder's own, those that are listed stay as they are (RoBERTa's mask takes a space along).
    listed = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_special_tokens(
      [
        AddedToken(token, normalized=False)
        for name, token in self.special_tokens.items()
        if name not in _ENCODERS or token not in listed
      ]
    )

  @classmethod
  def from_directory(cls, path: str | os.PathLike[str]) -> Tokenizer:
    """Reads a Hugging Face directory.

    `tokenizer.json` is required. `tokenizer_config.json`, `special_tokens_map.json`,
    `chat_template.jinja` and `generation_config.json` (whose EOS ids join the tokenizer's)
    are read where they stand; `config.json` for BOS and EOS that none of them names.

    Raises:
      FileNotFoundError: no `tokenizer.json`.
      ValueError: a special token that the vocabulary lacks, or named chat templates of which
        none is the default.
    """
    path = Path(path)
    if not (path / "tokenizer.json").is_file():
      raise FileNotFoundError(f"{path} has no tokenizer.json")
    config = {**_json(path / "special_tokens_map.json"), **_json(path / "tokenizer_config.json")}
    generation = _json(path / "generation_config.json")
    backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))

    special: dict[str, str] = {}
    for name in _SPECIAL:
      token = config.get(name)
      if token is not None:  # a string, or an AddedToken spelled out
        special[name] = token if isinstance(token, str) else token["content"]
    eos_ids = _listed(generation.get("eos_token_id"))
    # GPT-2's directory names its tokens by id only, in the model's configuration.
    model = {**_json(path / "config.json"), **generation}
    if "bos_token" not in special and isinstance(model.get("bos_token_id"), int):
      special["bos_token"] = _token(backend, model["bos_token_id"])
    if "eos_token" not in special and not eos_ids:
      eos_ids = _listed(model.get("eos_token_id"))

    # The post-processor of tokenizer.json frames texts, whatever the configuration says of
    # add_bos_token: so does transformers.
    return cls(backend, special, eos_ids, _chat_template(path, config))

  @classmethod
  def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
    """Builds the tokenizer that a GGUF file's metadata describes.

    Raises:
      ValueError: a missing key, or an unknown model or pre-tokenizer.
    """
    vocabulary = gguf_vocabulary.read(metadata)
    tokenizer = cls(
      vocabulary.backend,
      vocabulary.special_tokens,
      vocabulary.eos_ids,
      metadata.get("tokenizer.chat_template"),
    )
    tokenizer._frame(vocabulary.add_bos, vocabulary.add_eos)
    return tokenizer

  def to_gguf(self, vocab_size: int) -> dict[str, Any]:
    """The metadata of a GGUF file of which `from_gguf` makes the same tokenizer.

    Args:
      vocab_size: of the model, which may have more rows than there are tokens.

    Raises:
      ValueError: GGUF has no name for this kind of tokenizer, or no place for a part of it.
    """
    found = gguf_vocabulary_write.write(
      self.backend, self.special_tokens, self.eos_ids, vocab_size=vocab_size
    )
    if self.chat_template is not None:
      found["tokenizer.chat_template"] = self.chat_template
    return found

  def _frame(self, add_bos: bool, add_eos: bool) -> None:
    """Makes the post-processor put BOS before and EOS after a text, as far as there are any."""
    bos = self.special_tokens.get("bos_token") if add_bos else None
    eos = self.special_tokens.get("eos_token") if add_eos else None
    # The list form, because a token may hold the spaces and colons of the template language.
    frame = [token for token in dict.fromkeys((bos, eos)) if token is not None]
    single = [token for token in (bos, "$A", eos) if token is not None]
    pair = single + [token for token in (bos, "$B:1", eos) if token is not None]
    self.backend.post_processor = processors.TemplateProcessing(
      single=single,
      pair=pair,
      special_tokens=[(token, self.token_id(token)) for token in frame],
    )

  def save(self, directory: str | os.PathLike[str]) -> None:
    """Writes files that `transformers.AutoTokenizer` and `from_directory` read back the same.

    `generation_config.json` gets the EOS ids when there are several, for no tokenizer file has
    a place for them; its other keys stay.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self.backend.save(str(directory / "tokenizer.json"))
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "clean_up_tokenization_spaces": False,
      **self.special_tokens,
    }
    _write_json(directory / "tokenizer_config.json", config)
    if self.chat_template is not None:
      (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
    if len(self.eos_ids) > 1:
      path = directory / "generation_config.json"
      _write_json(path, {**_json(path), "eos_token_id": list(self.eos_ids)})

  def encode(self, text: str, add_special: bool = True) -> list[int]:
    """The ids of `text`, framed by BOS or EOS as the tokenizer does if `add_special`."""
    return self.backend.encode(text, add_special_tokens=add_special).ids

  def encode_batch(self, texts: Sequence[str], add_special: bool = True) -> list[list[int]]:
    """`encode` of each text, in parallel."""
    encodings = self.backend.encode_batch_fast(texts, add_special_tokens=add_special)
    return [encoding.ids for encoding in encodings]

  def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of `text`, unframed, and of each the half-open range of characters it covers."""
    encoding = self.backend.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets

  def encode_words(self, text: str) -> tuple[list[int], list[int]]:
    """The ids of `text`, framed, and of each the number of its word; -1 at the frame.

    Words are what the vocabulary's pre-tokenizer cuts the text into.

    Raises:
      ValueError: it has none.
    """
    if self.backend.pre_tokenizer is None:
      raise ValueError("the tokenizer has no pre-tokenizer, which tells where words begin")
    encoding = self.backend.encode(text)
    return encoding.ids, [-1 if word is None else word for word in encoding.word_ids]

  def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
    """The text of `ids`; special tokens are left out unless told otherwise."""
    return self.backend.decode(ids, skip_special_tokens=skip_special)

  def token_id(self, token: str) -> int:
    """The id of one token.

    Raises:
      ValueError: the vocabulary lacks it.
    """
    token_id = self.backend.token_to_id(token)
    if token_id is None:
      close = nearest(token, self.backend.get_vocab())
      raise ValueError(f"the vocabulary of {self.vocab_size} tokens lacks {token!r}{close}")
    return token_id


class StreamDecoder:
  """Text of tokens that arrive one by one, never half a character.

  A token's text depends on its neighbours (bytes of one character, SentencePiece's leading
  space), so what is decoded is a window: the tokens printed last and those still held back.
  The window moves on with every whole character, so the work is linear in the tokens.
  """

  # A character has at most four bytes, so this many tokens that end within one are no text.
  _LONGEST_HOLD = 32

  def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
    self._tokenizer = tokenizer
    self._skipped = set()
    if skip_special:
      added = tokenizer.backend.get_added_tokens_decoder()
      self._skipped = {token_id for token_id, token in added.items() if token.special}
    self._printed: list[int] = []
    self._held: list[int] = []

  def push(self, token_id: int) -> str:
    """The text that `token_id` completes; empty while a character is incomplete."""
    if token_id in self._skipped:
      return ""
    self._held.append(token_id)
    text = self._pending()
    # U+FFFD stands for bytes that are not (yet) a character.
    if text.endswith("\N{REPLACEMENT CHARACTER}") and len(self._held) < self._LONGEST_HOLD:
      return ""
    self._printed, self._held = self._held, []
    return text

  def flush(self) -> str:
    """What is held back, at the end of the stream; the decoder then starts anew."""
    text = self._pending()
    self._printed, self._held = [], []
    return text

  def _pending(self) -> str:
    decode = self._tokenizer.decode
    before = decode(self._printed, skip_special=False)
    return decode(self._printed + self._held, skip_special=False)[len(before) :]


def _json(path: Path) -> dict[str, Any]:
  """The object in a JSON file, empty when there is no such file."""
  return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
  """The template file's text, else the configuration's template or its default one."""
  file = path / "chat_template.jinja"
  if file.is_file():
    return file.read_text(encoding="utf-8")
  template = config.get("chat_template")
  if not isinstance(template, list):
    return template
  named = {entry["name"]: entry["template"] for entry in template}
  if "default" not in named:
    raise ValueError(f"{path} has no chat template 'default', only {', '.join(named)}")
  return named["default"]


def _token(backend: tokenizers.Tokenizer, token_id: int) -> str:
  token = backend.id_to_token(token_id)
  if token is None:
    raise ValueError(f"special token {token_id} is not one of {backend.get_vocab_size()} tokens")
  return token


def _listed(ids: int | list[int] | None) -> list[int]:
  """A field that may hold no id, one id or several."""
  if ids is None:
    return []
  return [ids] if isinstance(ids, int) else ids


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
