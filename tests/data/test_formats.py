"""Row formats on a byte tokenizer, whose ids a reader can check by hand."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from research.data import formats
from research.data.examples import BadRow, Example, Report
from research.data.tokenizer import Tokenizer

TEMPLATE = (
  "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
  "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def byte_tokenizer(chat_template=TEMPLATE):
  """A token a byte, and `</s>`."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {char: i for i, char in enumerate(alphabet)}
  backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(["</s>"])
  special = {"eos_token": "</s>", "pad_token": "</s>"}
  return Tokenizer(backend, special, chat_template=chat_template)


TOKENIZER = byte_tokenizer()


def spelled(example):
  """The document, and the part of it that is learnt, as text."""
  decode = TOKENIZER.backend.decode
  learnt = example.tokens[example.weights_mask]
  return (
    decode(example.tokens.tolist(), skip_special_tokens=False),
    decode(learnt.tolist(), skip_special_tokens=False),
  )


USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}


@pytest.mark.parametrize(
  ("row", "document", "learnt"),
  [
    ({"text": "one"}, "one</s>", "one</s>"),
    ({"text": "one</s>"}, "one</s>", "one</s>"),
    ({"messages": [USER, ASSISTANT]}, "[user]2+2?</s>[assistant]4</s>", "4</s>"),
    ({"prompt": "2+2=", "completion": "4"}, "2+2=4</s>", "4</s>"),
    (
      {"prompt": [USER], "completion": [ASSISTANT], "answer": "4"},
      "[user]2+2?</s>[assistant]4</s>",
      "4</s>",
    ),
    # As TFDS hands a sequence of features.
    (
      {"messages": {"role": ["user", "assistant"], "content": ["2+2?", "4"]}},
      "[user]2+2?</s>[assistant]4</s>",
      "4</s>",
    ),
    # A null is a column that is not there.
    ({"messages": None, "text": "one"}, "one</s>", "one</s>"),
  ],
)
def test_formats(row, document, learnt):
  assert spelled(formats.tokenize(row, TOKENIZER, completion_only=True)) == (document, learnt)
  whole = formats.tokenize(row, TOKENIZER, completion_only=False)
  assert spelled(whole) == (document, document)
  assert whole.tokens.dtype == np.int32


@pytest.mark.parametrize(
  ("row", "reason", "detail"),
  [
    ({"promt": "a", "completion": "b"}, "without its columns", "did you mean 'prompt'"),
    (
      {"a": 1},
      "without its columns",
      r"columns \['a'\] fit no format of messages \| prompt \+ completion \| .* \| text$",
    ),
    ({"text": 3}, "of the wrong type", "'text' is int"),
    ({"prompt": "a", "completion": [ASSISTANT]}, "of the wrong type", "'completion' is list"),
    ({"messages": []}, "of the wrong type", "'messages' is not a list of messages"),
    ({"messages": [{"content": "x"}]}, "of the wrong type", "a message has role and content"),
    ({"messages": [{"role": "usr", "content": "x"}]}, "refused by the chat template", "'usr'"),
    ({"text": ""}, "with nothing to learn", "none of its 1 tokens"),
    ({"messages": [USER]}, "with nothing to learn", "is a target"),
  ],
)
def test_bad_rows(row, reason, detail):
  with pytest.raises(BadRow, match=detail) as caught:
    formats.tokenize(row, TOKENIZER, completion_only=True)
  assert caught.value.reason == reason
  assert "\n" not in str(caught.value)


def test_a_missing_chat_template_is_not_the_fault_of_the_row():
  with pytest.raises(ValueError, match="need a chat template") as caught:
    formats.tokenize({"messages": [USER]}, byte_tokenizer(None), completion_only=True)
  assert not isinstance(caught.value, BadRow)


def example(size, prompt=0):
  return Example(np.arange(size, dtype=np.int32), np.arange(size) >= prompt)


def test_fit():
  assert formats.fit(example(4), 4, "drop")[0].tokens.tolist() == [0, 1, 2, 3]
  (cut,) = formats.fit(example(9), 4, "truncate")
  assert cut.tokens.tolist() == [0, 1, 2, 3]
  for on_long_row in ("drop", "stop"):
    with pytest.raises(BadRow, match="longer than 4 tokens: it has 9"):
      formats.fit(example(9), 4, on_long_row)
  with pytest.raises(BadRow, match="its first 4 tokens are all prompt"):
    formats.fit(example(9, prompt=5), 4, "truncate")


@pytest.mark.parametrize("size", range(5, 20))
def test_split_predicts_every_token_once(size):
  pieces = formats.fit(example(size), 4, "split")
  assert all(2 <= len(piece) <= 4 for piece in pieces)
  pairs = [(int(a), int(b)) for p in pieces for a, b in zip(p.tokens, p.tokens[1:], strict=False)]
  assert pairs == [(t, t + 1) for t in range(size - 1)]


def test_split_leaves_out_pieces_of_prompt():
  pieces = formats.fit(example(10, prompt=5), 4, "split")
  assert [piece.tokens.tolist() for piece in pieces] == [[3, 4, 5, 6], [6, 7, 8, 9]]


def test_report_counts_a_row_once_and_survives_json():
  report = Report()
  assert not report and str(report) == ""
  for index in (9, 3, 9, 12, 4, 5, 6):
    report.add("a.jsonl", "not JSON", index, f"case {index}")
  report.add("b.jsonl", "not UTF-8", 0, "a byte")
  again = Report.from_json(report.to_json())
  again.merge(report)
  for each in (report, again):
    assert (each.count(), each.count("not JSON")) == (7, 6)
    assert str(each) == (
      "a.jsonl: 6 rows not JSON (rows 3, 4, 5, 6, 9, …): case 3\n"
      "b.jsonl: 1 row not UTF-8 (row 0): a byte"
    )
