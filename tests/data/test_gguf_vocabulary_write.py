"""Tokenizers to GGUF metadata and back, from metadata and from Hugging Face's kinds of backend."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from research.data import gguf_vocabulary, vocabulary
from research.data.tokenizer import Tokenizer
from research.io.gguf import read

LLAMA3 = gguf_vocabulary.PRE_TOKENIZERS["llama-bpe"].patterns[0]
QWEN2 = gguf_vocabulary.PRE_TOKENIZERS["qwen2"].patterns[0]
TEXTS = (
  "The year 1984 isn't 2024; they'll say.\r\n\r\n1. naïve café",
  "def f(r):\n    return 3.14 * r ** 2\n\n# 日本語 🐎\t\t ",
  "<s>ab<|note|> the the</s>",
  "",
)


@pytest.fixture(scope="module")
def learnt():
  """A vocabulary of bytes with merges, as JSON that tests change; texts end with `</s>`."""
  return json.loads(vocabulary.train(TEXTS * 4, size=300, kind="bpe", sentinels=2).backend.to_str())


def _backend(state, **parts):
  backend = tokenizers.Tokenizer.from_str(json.dumps(state))
  for name, part in parts.items():
    setattr(backend, name, part)
  return backend


def _same(tokenizer, keys):
  found = Tokenizer.from_gguf(keys)
  for text in TEXTS:
    ids = tokenizer.encode(text)
    assert found.encode(text) == ids
    assert found.decode(ids, skip_special=False) == tokenizer.decode(ids, skip_special=False)
  for name in ("bos_id", "eos_ids", "pad_id", "chat_template"):
    assert getattr(found, name) == getattr(tokenizer, name), name


def test_smollm2_is_what_the_file_said(smollm2_path):
  metadata = read(smollm2_path).metadata
  keys = Tokenizer.from_gguf(metadata).to_gguf(49152)
  assert keys.pop("tokenizer.ggml.add_eos_token") is False  # the default
  assert {key: metadata[key] for key in keys} == keys
  left = {key for key in metadata if key.startswith("tokenizer.")} - set(keys)
  assert left == {"tokenizer.ggml.add_space_prefix"}  # which byte-level vocabularies do not read


def _sequence(*splits, use_regex=False):
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
  return pre_tokenizers.Sequence([*splits, to_bytes])


def _cut(pattern):
  return pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


HF = {
  "gpt-2": ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)}, False),
  "smollm": (
    {"pre_tokenizer": _sequence(pre_tokenizers.Digits(individual_digits=True), use_regex=True)},
    False,
  ),
  "llama-bpe": ({"pre_tokenizer": _sequence(_cut(LLAMA3))}, True),
  "qwen2": ({"pre_tokenizer": _sequence(_cut(QWEN2)), "normalizer": normalizers.NFC()}, False),
}


@pytest.mark.parametrize("name", HF)
def test_backends_as_hugging_face_has_them(learnt, name):
  parts, ignore_merges = HF[name]
  state = {**learnt, "model": {**learnt["model"], "ignore_merges": ignore_merges}}
  backend = _backend(state, **parts)
  backend.add_special_tokens(["<s>"])
  backend.add_tokens([AddedToken("<|note|>", special=False, normalized=False)])
  tokenizer = Tokenizer(
    backend, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}, (0,), "{{ x }}"
  )
  tokenizer._frame(True, name == "qwen2")
  keys = tokenizer.to_gguf(tokenizer.vocab_size + 3)
  get = {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items()}
  assert (get["model"], get["pre"]) == ("gpt2", name)
  assert (get["add_bos_token"], get["add_eos_token"]) == (True, name == "qwen2")
  at = tokenizer.vocab_size
  assert get["tokens"][at:] == [f"[PAD{at + i}]" for i in range(3)]
  assert get["token_type"][at:] == [5, 5, 5]
  assert get["token_type"][tokenizer.token_id("<|note|>")] == 4
  assert get["token_type"][tokenizer.bos_id] == 3
  assert (get["eos_token_id"], get["eot_token_id"]) == tokenizer.eos_ids
  _same(tokenizer, keys)


PIECES = [*"▁abcehlo", "▁h", "he", "el", "ll", "lo", "▁he", "hel", "llo", "▁hel", "▁hello", "hello"]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(tmp_path, prefix):
  tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<end>"]
  scores = [0.0] * 259 + [-float((7 * i) % len(PIECES)) for i in range(len(PIECES))] + [0.0]
  metadata = {
    "model": "llama",
    "tokens": tokens,
    "token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [4],
    "scores": scores,
    "add_space_prefix": prefix,
  }
  tokenizer = Tokenizer.from_gguf({f"tokenizer.ggml.{k}": v for k, v in metadata.items()})
  keys = tokenizer.to_gguf(len(tokens))
  assert keys["tokenizer.ggml.token_type"] == metadata["token_type"]
  _same(tokenizer, keys)
  for text in ("hello  hello<end> he llo 🐎", " hello"):
    assert Tokenizer.from_gguf(keys).encode(text) == tokenizer.encode(text)
  # Scores rank the tokens that merges make as the scores of the file did.
  made = [i for i, token in enumerate(tokens) if len(token) > 1 and token in PIECES]
  found = keys["tokenizer.ggml.scores"]
  assert sorted(made, key=lambda i: -found[i]) == sorted(made, key=lambda i: -scores[i])
  tokenizer.save(tmp_path)  # and by way of a Hugging Face directory
  assert Tokenizer.from_directory(tmp_path).to_gguf(len(tokens)) == keys
  state = json.loads(tokenizer.backend.to_str())
  state["model"]["merges"].reverse()
  with pytest.raises(ValueError, match="merges are not all .* of a SentencePiece vocabulary"):
    Tokenizer(_backend(state), tokenizer.special_tokens).to_gguf(len(tokens))


def _wrong(learnt):
  """What is wrong -> a backend, and what is said of it."""
  metaspace = pre_tokenizers.Metaspace()
  model = learnt["model"]
  unigram = tokenizers.Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], 0))
  pair = processors.TemplateProcessing(
    single="<extra_id_0> $A", special_tokens=[("<extra_id_0>", 299)]
  )
  spaced = _backend(learnt)
  spaced.add_special_tokens([AddedToken("<mask>", lstrip=True)])
  return {
    "kind": (unigram, "hold BPE vocabularies, and this one is Unigram"),
    "pre-tokenizer": (_backend(learnt, pre_tokenizer=metaspace), "none that GGUF files .*smollm"),
    "pattern": (_backend(learnt, pre_tokenizer=_sequence(_cut("x+"))), "have a name for: gpt-2"),
    "normalizer": (_backend(learnt, normalizer=normalizers.NFKC()), "have a name for: gpt-2"),
    "merges": (_backend({**learnt, "model": {**model, "merges": []}}), "has no merges"),
    "suffix": (
      _backend({**learnt, "model": {**model, "end_of_word_suffix": "</w>"}}),
      "end_of_word_suffix, '</w>', which GGUF has no place",
    ),
    "frame": (
      _backend(learnt, post_processor=pair),
      r"around a text, \[299, .*other than BOS None",
    ),
    "spaces": (spaced, "'<mask>' takes the spaces beside it along"),
    "rows": (_backend(learnt), r"tokens up to 299, and the model's table 100 rows"),
    "spm": (
      _backend(
        {**learnt, "model": {**model, "byte_fallback": True}}, decoder=decoders.ByteFallback()
      ),
      "none of SentencePiece's that GGUF has a place for",
    ),
  }


@pytest.mark.parametrize(
  "case",
  ["kind", "pre-tokenizer", "pattern", "normalizer", "merges", "suffix", "frame", "spaces", "rows"]
  + ["spm"],
)
def test_what_has_no_place(learnt, case):
  backend, message = _wrong(learnt)[case]
  special = {} if case == "kind" else {"eos_token": "</s>"}
  with pytest.raises(ValueError, match=message) as caught:
    Tokenizer(backend, special).to_gguf(100 if case == "rows" else 400)
  assert "\n" not in str(caught.value)


def test_too_many_ends_of_a_text(learnt):
  with pytest.raises(ValueError, match="4 tokens end a text; GGUF has places for 3"):
    Tokenizer(_backend(learnt), {"eos_token": "</s>"}, (3, 4, 5)).to_gguf(300)
