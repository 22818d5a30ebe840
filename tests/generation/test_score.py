"""Scores against `transformers`' log-softmax on a tiny random llama, prompt after prompt."""

import numpy as np
import pytest
import torch

from research.generation import choose, generate, score

PROMPTS = [[5, 17, 8], [9] * 40, [7], [60, 3, 3, 90, 41], [1, 2]]
COMPLETIONS = [[4], [11, 12, 13, 14], [88] * 30, [5, 17], list(range(1, 20))]


def _reference(theirs, prompt, completion):
  with torch.no_grad():
    log_probs = theirs(torch.tensor([prompt + completion])).logits[0].log_softmax(-1).numpy()
  return log_probs[np.arange(len(prompt) - 1, len(prompt + completion) - 1), completion]


def test_scores_are_those_of_transformers(pair):
  theirs, ours = pair
  for arguments in ({}, {"batch_size": 2, "pad_id": 50}):
    found = score(*ours, PROMPTS, COMPLETIONS, **arguments)
    for prompt, completion, log_probs in zip(PROMPTS, COMPLETIONS, found, strict=True):
      assert len(log_probs) == len(completion)
      np.testing.assert_allclose(log_probs, _reference(theirs, prompt, completion), atol=1e-4)


def test_what_was_generated_scores_as_it_was_told(pair):
  _, ours = pair
  written = generate(*ours, PROMPTS[:1], max_new_tokens=9, eos_ids=())
  (found,) = score(*ours, PROMPTS[:1], [written[0].tokens])
  np.testing.assert_allclose(found, written[0].log_probs, atol=1e-4)


def test_choices_by_sum_and_by_mean(pair):
  """A short choice and a long one that is likelier a token: the two ways differ."""
  theirs, ours = pair
  prompts = [[5, 17, 8], [2]]
  (best,) = generate(*ours, prompts[:1], max_new_tokens=6, eos_ids=())
  rare = int(np.argsort([_reference(theirs, prompts[0], [token])[0] for token in range(97)])[40])
  choices = [[[rare], best.tokens * 4, [3, 4]], [[1], [1]]]
  sums = [
    [_reference(theirs, prompt, choice).sum() for choice in some]
    for prompt, some in zip(prompts, choices, strict=True)
  ]
  means = [
    [total / len(choice) for total, choice in zip(totals, some, strict=True)]
    for totals, some in zip(sums, choices, strict=True)
  ]
  for by, expected in (("sum", sums), ("mean", means)):
    found = choose(*ours, prompts, choices, by=by)
    for choice, scores in zip(found, expected, strict=True):
      np.testing.assert_allclose(choice.scores, scores, atol=1e-3)
      assert choice.best == int(np.argmax(scores))
    assert [len(each) for each in found[0].log_probs] == [1, 24, 2]
  assert np.argmax(sums[0]) != np.argmax(means[0])


@pytest.mark.parametrize(
  ("prompts", "completions", "told"),
  [
    ([[1], []], [[1], [1]], "prompt 1 is empty"),
    ([[1]], [[]], "completion 0 is empty"),
    ([[1]], [[97]], "completion 0 holds token 97; the model has 0 to 96"),
    ([[1] * 60], [[1] * 6], "prompt and completion 0 take 65 positions; the model has 64"),
    ([[1]], [[1], [2]], "1 prompts for 2 completions"),
  ],
)
def test_what_cannot_be_scored(pair, prompts, completions, told):
  with pytest.raises(ValueError, match=told):
    score(*pair[1], prompts, completions)


def test_what_cannot_be_chosen(pair):
  with pytest.raises(ValueError, match="prompt 0 has no choices"):
    choose(*pair[1], [[1]], [[]])
  with pytest.raises(ValueError, match="by is 'best'"):
    choose(*pair[1], [[1]], [[[1]]], by="best")
