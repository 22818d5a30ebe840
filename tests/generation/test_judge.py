"""Shared prompts read once, against each prompt with its completion as a row of its own."""

import numpy as np
import torch

from research.generation import judge

PROMPTS = [[5, 17, 8], [9] * 21, [5, 17, 8], [60, 3, 3, 90], [9] * 21, [7], [7]]
COMPLETIONS = [[4], [11, 12, 13], [1, 2, 3, 4], [5], [88] * 9, [5, 17], [30, 31]]


def test_prompts_that_are_shared_and_prompts_that_are_not(pair):
  theirs, ours = pair
  best = [list(c) for c in COMPLETIONS]
  with torch.no_grad():  # one completion that the model would write itself, one but for its end
    for i in (4, 0):
      tokens = list(PROMPTS[i])
      for _ in range(5):
        tokens.append(int(theirs(torch.tensor([tokens])).logits[0, -1].argmax()))
      best[i] = tokens[len(PROMPTS[i]) :]
  best[0][-1] = (best[0][-1] + 1) % 97
  counts = []
  found = judge(*ours, PROMPTS, best, batch_size=4, pad_id=50, progress=counts.append)
  assert sum(counts) == len(PROMPTS)
  for prompt, completion, judgement in zip(PROMPTS, best, found, strict=True):
    with torch.no_grad():
      logits = theirs(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).numpy()[np.arange(len(completion)), completion]
    np.testing.assert_allclose(judgement.log_probs, expected, atol=1e-4)
    assert judgement.greedy == (logits.argmax(-1).tolist() == completion)
  assert found[4].greedy and not found[0].greedy
