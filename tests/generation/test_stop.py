"""Stop strings against the plain way: decode every prefix, and cut the first that holds one."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.generation import Sampler, StopStrings, generate

PROMPTS = [[5, 17, 8], [9] * 40, [70, 71]]


def _plain(tokenizer, tokens, strings):
  """The text before the first stop string, and the tokens with which it is complete."""
  for count in range(1, len(tokens) + 1):
    text = tokenizer.decode(tokens[:count])
    places = [text.index(string) for string in strings if string in text]
    if places:
      return text[: min(places)], count
  return tokenizer.decode(tokens), len(tokens)


@settings(max_examples=200, deadline=None)
@given(
  text=st.text("ab\u00e9\U0001f600", max_size=20),
  strings=st.lists(st.text("ab\u00e9\U0001f600", min_size=1, max_size=4), max_size=3),
)
def test_reader_gives_the_text_before_a_stop_string(byte_tokenizer, text, strings):
  """A token is a byte: strings span tokens, and characters do, too."""
  stop = StopStrings(byte_tokenizer, tuple(strings))
  tokens = byte_tokenizer.encode(text)
  expected, count = _plain(byte_tokenizer, tokens, strings)
  reader, given_out = stop.reader(), ""
  for token in tokens:
    given_out += reader.push(token)
    assert expected.startswith(given_out)  # at no time any part of a stop string
    if reader.stopped:
      break
  assert given_out + reader.flush() == expected
  assert reader.tokens == count
  assert stop.text(tokens[:count]) == expected


def test_what_cannot_begin_a_stop_string_is_not_held_back(byte_tokenizer):
  reader = StopStrings(byte_tokenizer, ("###", "ab")).reader()
  pieces = [reader.push(token) for token in byte_tokenizer.encode("x##y#a#")]
  assert pieces == ["x", "", "", "##y", "", "#", "a"]
  assert reader.flush() == "#" and not reader.stopped


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.5, repetition_penalty=1.1)])
def test_completions_end_with_the_token_that_completes_one(toy, byte_tokenizer, sampler):
  new, samples = 40, 2  # more tokens than are written between two looks
  arguments = {"max_new_tokens": new, "eos_ids": (), "samples": samples}
  plain = generate(*toy, PROMPTS, sampler, **arguments)
  texts = [byte_tokenizer.decode(completion.tokens) for completion in plain]
  # Of ASCII, which half a character decodes to by no chance.
  strings = tuple(re.findall("[!-~]{2}|[!-~]", text[18:])[0] for text in texts[::3])
  stop = StopStrings(byte_tokenizer, strings)
  found = generate(*toy, PROMPTS, sampler, **arguments, stop=stop, batch_size=4)
  for whole, completion in zip(plain, found, strict=True):
    expected, count = _plain(byte_tokenizer, whole.tokens, strings)
    assert completion.tokens == whole.tokens[:count]
    np.testing.assert_allclose(completion.log_probs, whole.log_probs[:count], atol=1e-5)
    assert completion.finished == (expected != byte_tokenizer.decode(whole.tokens))
    assert stop.text(completion.tokens) == expected
  assert found[0].finished and len({len(completion.tokens) for completion in found}) > 1


def test_the_first_token_may_stop(toy, byte_tokenizer):
  prompts = [[token] for token in range(8)]
  plain = generate(*toy, prompts, max_new_tokens=1, eos_ids=())
  i = next(i for i, completion in enumerate(plain) if completion.tokens[0] < 94)  # ASCII
  stop = StopStrings(byte_tokenizer, (byte_tokenizer.decode(plain[i].tokens),))
  found = generate(*toy, prompts, max_new_tokens=1, eos_ids=(), stop=stop)
  assert found[i].finished and stop.text(found[i].tokens) == ""


def test_an_empty_string_stops_nothing(byte_tokenizer):
  with pytest.raises(ValueError, match="a stop string is empty"):
    StopStrings(byte_tokenizer, ("x", ""))
