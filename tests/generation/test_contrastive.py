"""Contrastive search against the paper's formula, token by token over transformers' hidden states.

transformers itself no longer ships it.
"""

import numpy as np
import pytest
import torch

from research.generation import contrastive_search

PROMPTS = [[5, 17, 8], [9] * 20, [60, 3, 3, 90, 41]]
NEW = 12


def _plain(theirs, prompt, alpha, count):
  """Tokens and log-probabilities, with a whole forward pass for every candidate."""
  tokens, log_probs = list(prompt), []

  def states(ids):
    with torch.no_grad():
      out = theirs(torch.tensor([ids]), output_hidden_states=True)
    return torch.nn.functional.normalize(out.hidden_states[-1][0], dim=-1), out.logits[0, -1]

  for _ in range(NEW):
    logits = states(tokens)[1]
    probability, candidates = logits.softmax(-1).topk(count)
    scores = []
    for p, candidate in zip(probability, candidates, strict=True):
      seen = states([*tokens, int(candidate)])[0]
      scores.append(float((1 - alpha) * p - alpha * (seen[:-1] @ seen[-1]).max()))
    tokens.append(int(candidates[int(np.argmax(scores))]))
    log_probs.append(float(logits.log_softmax(-1)[tokens[-1]]))
  return tokens[len(prompt) :], log_probs


@pytest.mark.parametrize(("alpha", "top_k"), [(0.6, 5)])
def test_tokens_are_those_of_the_formula(pair, alpha, top_k):
  theirs, ours = pair
  expected = [_plain(theirs, prompt, alpha, top_k) for prompt in PROMPTS]
  eos = (expected[0][0][6],)
  found = contrastive_search(
    *ours, PROMPTS, penalty_alpha=alpha, top_k=top_k, max_new_tokens=NEW, eos_ids=eos
  )
  greedy = [_plain(theirs, prompt, 0.0, 1)[0] for prompt in PROMPTS]
  for completion, (tokens, log_probs) in zip(found, expected, strict=True):
    length = tokens.index(eos[0]) + 1 if eos[0] in tokens else NEW
    assert completion.tokens == tokens[:length]
    assert completion.finished == (eos[0] in tokens)
    np.testing.assert_allclose(completion.log_probs, log_probs[:length], atol=1e-4)
  assert [tokens for tokens, _ in expected] != greedy
  # Without the penalty it is the most probable token; the programs are the same.
  plain = contrastive_search(
    *ours, PROMPTS, penalty_alpha=0.0, top_k=top_k, max_new_tokens=NEW, eos_ids=eos
  )
  for completion, tokens in zip(plain, greedy, strict=True):
    length = tokens.index(eos[0]) + 1 if eos[0] in tokens else NEW
    assert completion.tokens == tokens[:length]


@pytest.mark.parametrize(
  ("changes", "told"), [({"top_k": 0}, "top_k is 0"), ({"penalty_alpha": 1.5}, "is 1.5; it is")]
)
def test_what_cannot_be_searched(pair, changes, told):
  arguments = {"penalty_alpha": 0.5, "top_k": 2, "max_new_tokens": 3, "eos_ids": (), **changes}
  with pytest.raises(ValueError, match=told):
    contrastive_search(*pair[1], [[1]], **arguments)
