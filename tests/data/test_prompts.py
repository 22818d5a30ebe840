"""Rows that ask: what of them is a prompt, and which cannot be."""

import numpy as np
import pytest

from research.data import chat, prompts
from research.data.examples import BadRow

ASKED = [{"role": "user", "content": "why?"}]


def test_a_prompt_is_all_of_the_example_and_nothing_is_learnt(byte_tokenizer):
  for row in ({"prompt": ASKED, "answer": "x"}, {"messages": ASKED}):
    example = prompts.tokenize(row, byte_tokenizer)
    assert example.tokens.tolist() == chat.encode_prompt(byte_tokenizer, ASKED)
    assert not example.learns and len(example.weights_mask) == len(example)
  text = prompts.tokenize({"prompt": "why?", "completion": "x"}, byte_tokenizer)
  assert byte_tokenizer.decode(text.tokens.tolist()) == "why?"


def test_a_text_begins_with_bos_once(framing_tokenizer):
  """As the prompt of supervised tuning, preferences and reward models does."""
  for text in ("why?", "<bos>why?"):
    found = prompts.encode(framing_tokenizer, text)
    assert framing_tokenizer.decode(found, False) == "<bos>why?"
    joined, start = chat.encode_joined(framing_tokenizer, text, "so")
    assert joined[:start] == found


@pytest.mark.parametrize(
  ("row", "told"),
  [
    ({"question": "why?"}, "no 'prompt' and no 'messages'"),
    (
      {"prompt": [*ASKED, {"role": "assistant", "content": "so"}]},
      "leave the last one of 'prompt' out",
    ),
    ({"prompt": 3}, "is not a list of messages"),
    ({"prompt": ""}, "has no tokens"),
  ],
)
def test_what_asks_nothing(byte_tokenizer, row, told):
  with pytest.raises(BadRow, match=told):
    prompts.tokenize(row, byte_tokenizer)


def test_there_is_room_for_an_answer(byte_tokenizer):
  example = prompts.tokenize({"prompt": "abcdef"}, byte_tokenizer)
  assert prompts.fit(example, 7, "drop") is example
  with pytest.raises(BadRow, match="it has 6"):
    prompts.fit(example, 6, "drop")
  kept = prompts.fit(example, 4, "truncate_start")
  np.testing.assert_array_equal(kept.tokens, example.tokens[3:])
