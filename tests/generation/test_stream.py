"""A stream against `generate`, from an empty cache and from one that holds earlier turns."""

import itertools

import pytest

from research.generation import Sampler, Stream, generate

PROMPT = [5, 17, 8, 44]
PENALIZING = Sampler(0.8, repetition_penalty=1.3, frequency_penalty=1.0)


@pytest.fixture(scope="module")
def stream(toy):
  return Stream(*toy)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(1.2, top_k=50), PENALIZING])
@pytest.mark.parametrize("unrolled", [True, False])
def test_tokens_are_those_of_generate(toy, sampler, unrolled):
  arguments = {"max_new_tokens": 10, "eos_ids": (), "seed": 3}
  (expected,) = generate(*toy, [PROMPT], sampler, **arguments)
  assert list(Stream(*toy, unrolled=unrolled)(PROMPT, sampler, **arguments)) == expected.tokens


def test_ends_with_eos(toy, stream):
  whole = list(stream(PROMPT, max_new_tokens=10, eos_ids=()))
  eos = whole[6]
  expected = whole[: whole.index(eos) + 1]
  assert list(stream(PROMPT, max_new_tokens=10, eos_ids=(299, eos))) == expected


def test_turns_go_on_from_the_cache_and_write_the_same(toy, stream, monkeypatch):
  """Each next prompt extends, shortens, changes or repeats the last one."""
  first = list(stream(PROMPT, max_new_tokens=6, eos_ids=()))
  turns = [
    PROMPT + first + [9, 10, 11],
    PROMPT + first + [9, 10, 11],
    PROMPT + first[:3],
    PROMPT[:2] + [100, 101],
    [200],
    PROMPT * 80,  # beyond the slots that it starts with
    PROMPT * 80 + [1, 2, 3],
  ]
  for prompt in turns:
    (expected,) = generate(*toy, [prompt], max_new_tokens=6, eos_ids=())
    assert list(stream(prompt, max_new_tokens=6, eos_ids=())) == expected.tokens


def test_an_extended_prompt_is_read_from_where_it_differs(toy, stream, monkeypatch):
  read = []
  from research.generation import stream as module

  real = module._advance

  def counted(variables, cache, tokens, positions, start, count, *, model):
    read.append((start, count))
    return real(variables, cache, tokens, positions, start, count, model=model)

  monkeypatch.setattr(module, "_advance", counted)
  fresh = Stream(*toy)
  answer = list(fresh(PROMPT, max_new_tokens=3, eos_ids=()))
  list(fresh([*PROMPT, *answer, 7, 8], max_new_tokens=1, eos_ids=()))
  # The answer's last token was drawn, not read.
  assert read == [(0, 4), (4, 1), (5, 1), (6, 3)]


def test_left_early_it_goes_on_right(toy, stream):
  started = stream(PROMPT, max_new_tokens=20, eos_ids=())
  some = list(itertools.islice(started, 4))
  started.close()
  prompt = [*PROMPT, *some, 12]
  (expected,) = generate(*toy, [prompt], max_new_tokens=5, eos_ids=())
  assert list(stream(prompt, max_new_tokens=5, eos_ids=())) == expected.tokens


def test_interrupted_while_it_reads_it_starts_afresh(toy, monkeypatch):
  from research.generation import stream as module

  fresh = Stream(*toy)
  list(fresh(PROMPT, max_new_tokens=3, eos_ids=()))
  real = module._advance

  def interrupted(*arguments, **named):
    real(*arguments, **named)  # the old cache is gone
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(module, "_advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
      list(fresh([*PROMPT, 1], max_new_tokens=3, eos_ids=()))
  (expected,) = generate(*toy, [[*PROMPT, 1]], max_new_tokens=3, eos_ids=())
  assert list(fresh([*PROMPT, 1], max_new_tokens=3, eos_ids=())) == expected.tokens


def test_a_prompt_that_cannot_be_read_is_told_at_once(stream):
  with pytest.raises(ValueError, match="the prompt is empty"):
    stream([], max_new_tokens=3, eos_ids=())
