"""Generation by an encoder-decoder against transformers': a tiny random T5, in float32."""

import numpy as np
import pytest
import torch
import transformers

from research import models
from research.generation import (
  Draft,
  Request,
  Sampler,
  Stream,
  beam_search,
  contrastive_search,
  generate,
  score,
  serve,
  speculate,
)

SOURCES = [[5, 17, 8], [9] * 20, [60, 3, 3, 90, 41]]
NEW = 12
EOS = tuple(range(1, 90, 9))  # often drawn, so that completions end at many lengths


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=97,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_heads=4,
    decoder_start_token_id=0,
    eos_token_id=None,
  )
  theirs = transformers.T5ForConditionalGeneration(config).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.6)
  directory = tmp_path_factory.mktemp("t5")
  theirs.save_pretrained(directory)
  model, params, _ = models.load(directory)
  return theirs, (model, {"params": params})


def _theirs(theirs, source, **arguments):
  with torch.no_grad():
    found = theirs.generate(
      torch.tensor([source]),
      attention_mask=torch.ones(1, len(source), dtype=torch.long),
      do_sample=False,
      max_new_tokens=NEW,
      eos_token_id=list(EOS),
      pad_token_id=96,
      return_dict_in_generate=True,
      output_scores=True,
      **arguments,
    )
  return found.sequences[:, 1:].tolist()  # without the start token


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_greedy_tokens_are_those_of_transformers(t5, penalty):
  theirs, ours = t5
  sampler = Sampler(repetition_penalty=penalty)
  found = generate(*ours, SOURCES, sampler, max_new_tokens=NEW, eos_ids=EOS)
  for source, completion in zip(SOURCES, found, strict=True):
    expected = _theirs(theirs, source, repetition_penalty=penalty)[0]
    assert completion.tokens == expected[: len(completion.tokens)]
    assert completion.finished == (len(completion.tokens) < NEW or expected[-1] in EOS)


def test_beams_are_those_of_transformers(t5):
  theirs, ours = t5
  found = beam_search(*ours, SOURCES, num_beams=3, max_new_tokens=NEW, eos_ids=EOS, samples=2)
  for i, source in enumerate(SOURCES):
    expected = _theirs(theirs, source, num_beams=3, num_return_sequences=2)
    for j in range(2):
      tokens = found[2 * i + j].tokens
      assert tokens == expected[j][: len(tokens)]
      assert set(expected[j][len(tokens) :]) <= {96}


def test_samples_follow_the_models_distribution(t5):
  """4,000 draws of the first token against its probabilities, at 5 standard deviations."""
  theirs, ours = t5
  sampler = Sampler(temperature=1.5)
  count = 4000
  found = generate(
    *ours, SOURCES[:1], sampler, max_new_tokens=1, eos_ids=(), samples=count, batch_size=count
  )
  with torch.no_grad():
    logits = theirs(torch.tensor(SOURCES[:1]), decoder_input_ids=torch.tensor([[0]])).logits[0, -1]
  expected = torch.softmax(logits / 1.5, -1).numpy()
  seen = np.bincount([c.tokens[0] for c in found], minlength=97) / count
  assert np.all(np.abs(seen - expected) < 5 * np.sqrt(expected * (1 - expected) / count) + 1e-6)


def test_what_goes_on_with_a_text_says_that_it_cannot(t5):
  _, (model, variables) = t5
  how = {"max_new_tokens": 2, "eos_ids": EOS}
  for call in (
    lambda: list(serve(model, variables, [Request([5], 2)], eos_ids=EOS)),
    lambda: speculate(model, variables, [[5]], draft=Draft(model, variables), **how),
    lambda: contrastive_search(model, variables, [[5]], penalty_alpha=0.5, top_k=2, **how),
    lambda: score(model, variables, [[5]], [[6]]),
    lambda: Stream(model, variables),
  ):
    with pytest.raises(ValueError, match="for decoders; a t5 writes by generate or beams"):
      call()
