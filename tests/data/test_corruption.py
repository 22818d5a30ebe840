"""Exact properties of every corruption, and the rates of `transformers`' collator."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import corruption
from research.data.tokenizer import Tokenizer

# The machine may be busy: no test here is about time.
settings.register_profile("corruption", deadline=None)
settings.load_profile("corruption")

SENTINELS = np.arange(10_000, 9_000, -1)
TEXT = "the cat sat on the mats, and the dogs sat on the cats"


@pytest.fixture(scope="module")
def wordpiece():
  """BERT's kind of tokenizer, in which `mats` is two pieces."""
  words = ["the", "cat", "sat", "on", "mat", "and", "dog", "##s", ","]
  vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
  ids = {word: i for i, word in enumerate(vocabulary)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
  )
  return Tokenizer(backend, {"unk_token": "[UNK]", "pad_token": "[PAD]"})


def _masked(count=4000, seed=0, **changes):
  """Inputs, choice and original of rows of 60 tokens whose ends are special."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(200, 1000, (count, 60)).astype(np.int32)
  special = np.zeros(60, bool)
  special[[0, -1]] = True
  settings = {"mask_id": 103, "vocab_size": 1000, "special": special, **changes}
  found = [corruption.mask_tokens(row, rng, **settings) for row in tokens]
  inputs, chosen = (np.stack(column) for column in zip(*found, strict=True))
  return inputs, chosen, tokens


def _within(count, total, p, sigmas=4.5):
  """Whether a binomial count is where it is in all but one of 10^5 draws."""
  assert abs(count - total * p) < sigmas * np.sqrt(total * p * (1 - p)), (count, total * p)


def _fates(inputs, chosen, tokens, mask_id=103):
  """How many chosen tokens are masked, changed otherwise, and kept."""
  masked = inputs[chosen] == mask_id
  kept = inputs[chosen] == tokens[chosen]
  return masked.sum(), (~masked & ~kept).sum(), kept.sum()


def test_masking_keeps_its_rates_and_leaves_the_rest():
  inputs, chosen, tokens = _masked()
  assert not chosen[:, [0, -1]].any()
  np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
  _within(chosen.sum(), chosen[:, 1:-1].size, 0.15)
  # A random token is the token itself once in 1000, and the mask token as often.
  chance = 0.1 / 1000
  shares = (0.8 + chance, 0.1 - 2 * chance, 0.1 + chance)
  for count, share in zip(_fates(inputs, chosen, tokens), shares, strict=True):
    _within(count, chosen.sum(), share)
  # Each position by itself: neighbours are chosen together no more often than by chance.
  _within((chosen[:, 1:-2] & chosen[:, 2:-1]).sum(), chosen[:, 1:-2].size, 0.15**2)
  drawn = inputs[chosen & (inputs != tokens) & (inputs != 103)]
  assert drawn.min() < 20 and drawn.max() > 980
  again = _masked()
  np.testing.assert_array_equal(inputs, again[0])


def test_shares_of_nothing_and_of_all():
  inputs, chosen, tokens = _masked(50, rate=1.0, masked=1.0, random=0.0)
  assert chosen[:, 1:-1].all() and (inputs[chosen] == 103).all()
  assert not _masked(50, rate=0.0)[1].any()
  kept, chosen, tokens = _masked(50, masked=0.0, random=0.0)
  np.testing.assert_array_equal(kept, tokens)
  assert chosen.any()
  with pytest.raises(ValueError, match="at most 1 together, not 0.15, 0.8, 0.3"):
    _masked(1, random=0.3)


def test_whole_words_are_chosen_whole():
  words = np.repeat(np.arange(30), 2)
  words[[0, -1]] = -1
  inputs, chosen, tokens = _masked(words=words)
  assert not chosen[:, [0, -1]].any()
  np.testing.assert_array_equal(chosen[:, 2:-2:2], chosen[:, 3:-2:2])
  _within(chosen[:, 2:-2:2].sum(), chosen[:, 2:-2:2].size, 0.15)
  # What becomes of a token is its own affair.
  masked = (inputs == 103)[:, 2:-2].reshape(len(inputs), -1, 2)
  pairs = chosen[:, 2:-2:2]
  _within((masked[pairs].sum(-1) == 1).sum(), pairs.sum(), 2 * 0.8 * 0.2)


def test_words_are_the_tokenizers(wordpiece, byte_tokenizer):
  ids, words = wordpiece.encode_words("the mats, dogs")
  assert [wordpiece.backend.id_to_token(i) for i in ids] == (
    ["[CLS]", "the", "mat", "##s", ",", "dog", "##s", "[SEP]"]
  )
  assert words == [-1, 0, 1, 1, 2, 3, 3, -1]
  assert byte_tokenizer.encode_words("ab c")[1] == [0, 0, 1, 1]
  bare = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")), {})
  with pytest.raises(ValueError, match="no pre-tokenizer"):
    bare.encode_words("a")


def _collator(wordpiece, **settings):
  from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

  fast = PreTrainedTokenizerFast(
    tokenizer_object=wordpiece.backend,
    pad_token="[PAD]",
    unk_token="[UNK]",
    cls_token="[CLS]",
    sep_token="[SEP]",
    mask_token="[MASK]",
  )
  return fast, DataCollatorForLanguageModeling(fast, return_tensors="np", seed=1, **settings)


@pytest.mark.parametrize("whole_word", [False, True])
def test_rates_are_those_of_transformers(wordpiece, whole_word):
  # Its whole-word masking knows no random tokens.
  shares = {"masked": 1.0, "random": 0.0} if whole_word else {}
  theirs = {"mask_replace_prob": 1.0, "random_replace_prob": 0.0} if whole_word else {}
  fast, collator = _collator(wordpiece, whole_word_mask=whole_word, **theirs)
  count = 3000
  # Without the comma, which it joins to the word before: words are gaps in its offsets.
  text = TEXT.replace(",", "")
  row = fast(text, return_special_tokens_mask=True, return_offsets_mapping=whole_word)
  batch = collator([dict(row) for _ in range(count)])
  labels, their_inputs = np.asarray(batch["labels"]), np.asarray(batch["input_ids"])
  ids, words = wordpiece.encode_words(text)
  assert ids == row["input_ids"]
  tokens, words = np.asarray(ids, np.int32), np.asarray(words)
  rng = np.random.default_rng(0)
  settings = {"mask_id": 4, "vocab_size": wordpiece.vocab_size, "special": words < 0, **shares}
  settings["words"] = words if whole_word else None
  found = [corruption.mask_tokens(tokens, rng, **settings) for _ in range(count)]
  inputs, chosen = (np.stack(column) for column in zip(*found, strict=True))
  their_chosen = labels != -100
  whole = np.broadcast_to(tokens, inputs.shape)

  def close(ours, other, totals):
    p = (ours + other) / sum(totals)
    sigma = np.sqrt(p * (1 - p) * sum(1 / total for total in totals))
    assert abs(ours / totals[0] - other / totals[1]) <= 4.5 * sigma

  for at in range(len(tokens)):  # position by position
    close(chosen[:, at].sum(), their_chosen[:, at].sum(), (count, count))
  for at in range(len(tokens) - 1):  # and neighbours together
    both = [(c[:, at] & c[:, at + 1]).sum() for c in (chosen, their_chosen)]
    close(*both, (count, count))
  fates = zip(
    _fates(inputs, chosen, whole, 4), _fates(their_inputs, their_chosen, whole, 4), strict=True
  )
  for ours, other in fates:
    close(ours, other, (chosen.sum(), their_chosen.sum()))


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.floats(1.0, 70.0), st.integers(0, 2**32 - 1))
def test_noise_has_exact_counts_and_comes_back(length, rate, mean_span, seed):
  noise = corruption.noise_spans(
    length, np.random.default_rng(seed), rate=rate, mean_span=mean_span
  )
  tokens = np.arange(length, dtype=np.int32)
  count, spans = corruption.span_counts(length, rate, mean_span)
  assert noise.shape == (length,) and noise.sum() == count
  assert not noise[0] and noise[-1]
  assert (np.diff(noise.astype(int)) == 1).sum() == spans
  inputs, targets = corruption.drop_spans(tokens, noise, SENTINELS)
  assert inputs.dtype == targets.dtype == np.int32
  assert len(inputs) == length - count + spans and len(targets) == count + spans
  # A sentinel a span, in order, in both.
  for side in (inputs, targets):
    assert side[side > 9000].tolist() == SENTINELS[:spans].tolist()
  assert targets[0] == SENTINELS[0]
  assert _restored(inputs, targets).tolist() == tokens.tolist()


def _restored(inputs, targets):
  """The document: each sentinel of the inputs replaced by what follows it in the targets."""
  spans = {int(part[0]): part[1:] for part in _split(targets)}
  pieces = [spans.pop(int(t)) if t > 9000 else [t] for t in inputs]
  assert not spans
  return np.concatenate(pieces)


def _split(targets):
  return np.split(targets, np.flatnonzero(targets > 9000)[1:])


def test_the_paper_s_sentence():
  words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
  tokens = np.arange(10, dtype=np.int32)
  noise = np.array([word in ("for", "inviting", "last") for word in words])
  inputs, targets = corruption.drop_spans(tokens, noise, np.array([99, 98, 97]))
  assert inputs.tolist() == [0, 1, 99, 4, 5, 6, 7, 98, 9]
  assert targets.tolist() == [99, 2, 3, 98, 8]
  # Any mask, also one that begins with noise and ends without.
  inputs, targets = corruption.drop_spans(tokens[:4], np.array([1, 0, 1, 0], bool), [99, 98])
  assert inputs.tolist() == [99, 1, 98, 3] and targets.tolist() == [99, 0, 98, 2]
  with pytest.raises(ValueError, match="2 spans need as many sentinels, and there are 1"):
    corruption.drop_spans(tokens, noise, np.array([99]))


def test_t5_counts():
  assert corruption.span_counts(568, 0.15, 3.0) == (85, 28)
  assert corruption.span_counts(3, 0.9, 1.0) == (2, 1)  # no more spans than gaps between them


def test_every_composition_is_equally_likely():
  rng = np.random.default_rng(0)
  masks = [corruption.noise_spans(7, rng, rate=3 / 7, mean_span=1.5) for _ in range(6000)]
  kinds, counts = np.unique(np.stack(masks), axis=0, return_counts=True)
  assert len(kinds) == 3 * 2  # 4 = 1+3 = 2+2 = 3+1 and 3 = 1+2 = 2+1
  for count in counts:
    _within(count, 6000, 1 / 6)


@pytest.mark.parametrize("settings", [(1, 0.15, 3.0), (9, 1.0, 3.0), (9, 0.0, 3.0), (9, 0.5, 0.5)])
def test_spans_that_cannot_be(settings):
  with pytest.raises(ValueError, match="spans need 2 tokens"):
    corruption.span_counts(*settings)


def test_sentinels(wordpiece):
  assert corruption.sentinel_ids(wordpiece, last=3).tolist() == [13, 12, 11]
  with pytest.raises(ValueError, match="15 sentinels of a vocabulary of 14"):
    corruption.sentinel_ids(wordpiece, last=15)
  with pytest.raises(ValueError, match="no <extra_id_0>; sentinels=100"):
    corruption.sentinel_ids(wordpiece)
  vocabulary = {"a": 0, "<extra_id_1>": 1, "<extra_id_0>": 2, "<extra_id_3>": 3}
  t5 = Tokenizer(tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "a")), {})
  assert corruption.sentinel_ids(t5).tolist() == [2, 1]


def test_prefixes():
  rng = np.random.default_rng(0)
  drawn = [corruption.prefix_length(9, rng) for _ in range(8000)]
  counts = np.bincount(drawn)
  assert len(counts) == 9 and counts[0] == 0
  for count in counts[1:]:
    _within(count, 8000, 1 / 8)
  suffix = 200 - np.array([corruption.prefix_length(200, rng, rate=0.25) for _ in range(4000)])
  assert suffix.min() >= 1 and suffix.max() == 100
  assert abs(suffix.mean() / 200 - 0.25) < 0.01
  assert corruption.prefix_length(2, rng, rate=0.01) == 1
  for length, rate in ((1, None), (9, 0.0), (9, 0.6)):
    with pytest.raises(ValueError, match="a prefix needs 2 tokens and a rate"):
      corruption.prefix_length(length, rng, rate=rate)
