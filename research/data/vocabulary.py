"""Vocabularies learnt from text, for models that are trained from random weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tokenizers
from tokenizers import (
  AddedToken,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

from research.core import tree
from research.data.tokenizer import Tokenizer

KINDS = ("unigram", "bpe")
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def train(
  texts: Iterable[str], *, size: int, kind: str = "unigram", sentinels: int = 100
) -> Tokenizer:
  """A vocabulary of `size` tokens, of pieces with T5's conventions or of bytes.

  `<pad>`, `</s>` and, of a "unigram", `<unk>` come first, and every text ends with `</s>`. The
  last tokens are the sentinels `<extra_id_0>` (the very last), `<extra_id_1>`, ...

  Args:
    texts: what it is learnt from. From the same texts "bpe" is always the same; the scores of a
      "unigram" vary in their last digits.
    size: tokens, sentinels included.
    kind: "unigram", the likeliest pieces of NFKC text (Kudo 2018, SentencePiece), or "bpe", pairs
      of bytes merged, which knows every text (Sennrich et al. 2016; Radford et al. 2019).
    sentinels: how many.

  Raises:
    ValueError: the kind is unknown, or the texts are too few for the size.
  """
  if kind not in KINDS:
    raise ValueError(
      f"a vocabulary is one of {', '.join(KINDS)}, not {kind!r}{tree.nearest(kind, KINDS)}"
    )
  special = dict(_SPECIAL)
  if kind == "bpe":
    del special["unk_token"]  # all bytes are known
  learnt = size - sentinels
  settings: dict[str, Any] = {"show_progress": False, "special_tokens": list(special.values())}
  trainer: Any
  if kind == "unigram":
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
      [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=learnt, unk_token="<unk>", **settings)
  else:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=learnt, initial_alphabet=alphabet, **settings)
  backend.train_from_iterator(texts, trainer)
  found = backend.get_vocab_size()
  if found != learnt:
    raise ValueError(
      f"the texts have {found} tokens, not {learnt} (with {sentinels} sentinels, {size}); a smaller"
      " size, or more texts"
    )
  backend.add_special_tokens(
    [AddedToken(f"<extra_id_{i}>", normalized=False) for i in reversed(range(sentinels))]
  )
  backend.post_processor = processors.TemplateProcessing(
    single="$A </s>",
    pair="$A </s> $B </s>",
    special_tokens=[("</s>", backend.token_to_id("</s>"))],
  )
  return Tokenizer(backend, special)
