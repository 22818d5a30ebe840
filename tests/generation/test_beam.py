"""Beam search against transformers': the same tokens, in float32, on a tiny random llama."""

import numpy as np
import pytest
import torch

from research.generation import beam_search, generate, score

PROMPTS = [[5, 17, 8], [9] * 20, [60, 3, 3, 90, 41]]
NEW = 12


def _theirs(theirs, prompt, eos_ids, **arguments):
  with torch.no_grad():
    found = theirs.generate(
      torch.tensor([prompt]),
      attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
      do_sample=False,
      max_new_tokens=NEW,
      eos_token_id=list(eos_ids),
      pad_token_id=96,
      return_dict_in_generate=True,
      output_scores=True,
      **arguments,
    )
  return found.sequences[:, len(prompt) :].tolist(), found.sequences_scores.tolist()


@pytest.mark.parametrize(
  ("num_beams", "length_penalty", "early_stopping"),
  [(2, 1.0, False), (4, 0.0, True), (3, -1.5, "never"), (4, 2.0, "never"), (3, 2.0, False)],
)
def test_tokens_are_those_of_transformers(pair, num_beams, length_penalty, early_stopping):
  theirs, ours = pair
  arguments = {
    "num_beams": num_beams,
    "length_penalty": length_penalty,
    "early_stopping": early_stopping,
  }
  eos_ids = tuple(range(0, 90, 9))  # often drawn, so that completions end at many lengths
  found = beam_search(
    *ours, PROMPTS, max_new_tokens=NEW, eos_ids=eos_ids, samples=2, batch_size=8, **arguments
  )
  for i, prompt in enumerate(PROMPTS):
    sequences, scores = _theirs(theirs, prompt, eos_ids, num_return_sequences=2, **arguments)
    for j, (expected, value) in enumerate(zip(sequences, scores, strict=True)):
      completion = found[2 * i + j]
      assert (completion.prompt, completion.sample) == (i, j)
      length = len(completion.tokens)
      assert completion.tokens == expected[:length]
      assert set(expected[length:]) <= {96}
      assert completion.finished == (expected[length - 1] in eos_ids)
      total = sum(completion.log_probs) / length**length_penalty
      np.testing.assert_allclose(total, value, rtol=1e-4)


def test_one_beam_is_greedy_and_log_probs_are_scores(pair):
  _, ours = pair
  expected = generate(*ours, PROMPTS, max_new_tokens=NEW, eos_ids=())
  found = beam_search(*ours, PROMPTS, num_beams=1, max_new_tokens=NEW, eos_ids=())
  assert [c.tokens for c in found] == [c.tokens for c in expected]
  scores = score(*ours, PROMPTS, [c.tokens for c in found])
  np.testing.assert_allclose([c.log_probs for c in found], scores, atol=1e-4)


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    ({"num_beams": 0}, "num_beams is 0"),
    ({"samples": 3}, "samples is 3, more than the 2 of num_beams"),
    ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
    ({"length_penalty": float("nan")}, "length_penalty is nan"),
  ],
)
def test_what_cannot_be_searched(pair, changes, told):
  arguments = {"num_beams": 2, "max_new_tokens": 3, "eos_ids": (), **changes}
  with pytest.raises(ValueError, match=told):
    beam_search(*pair[1], [[1]], **arguments)
