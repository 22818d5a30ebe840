"""A reward model as the judge, against its own score of each text alone."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from research import models, reasoning
from research.data import chat
from research.models import scored
from research.models.decoder import Decoder

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def judge_directory(tmp_path_factory, byte_tokenizer):
  directory = tmp_path_factory.mktemp("judge")
  plain = models.build(LLAMA)
  model = Decoder(dataclasses.replace(plain.config, head="score"))
  params = jax.tree.map(lambda x: x * 8, models.initialize(model, jax.random.key(0)))
  models.save(directory / "reward", model, params, byte_tokenizer)
  models.save(directory / "plain", plain, models.initialize(plain, jax.random.key(0)), None)
  return directory


def test_the_best_by_its_score(judge_directory, session, asks, reader, byte_tokenizer):
  directory = str(judge_directory / "reward")
  section = {"name": "best_of_n", "samples": 3, "judge": {"name": "reward", "model": directory}}
  bound = session()
  found = reasoning.build(section, bound.sampler)(bound, [asks[0], asks[2]], reader)
  model, params, _ = models.load(directory)
  forward = jax.jit(lambda batch: scored.scores(model, {"params": params}, batch))
  for ask, outcome in zip((asks[0], asks[2]), found, strict=True):
    read = len(ask.ids(byte_tokenizer))
    for sample, value in zip(outcome.samples, outcome.trace["values"], strict=True):
      ids, _ = chat.encode_joined(byte_tokenizer, ask.problem, sample.text)
      batch = {"tokens": ids, "positions": range(len(ids)), "segments": [1] * len(ids)}
      (score,) = forward({name: np.array([list(row)]) for name, row in batch.items()})
      assert value == pytest.approx(1 / (1 + math.exp(-score)), abs=1e-5)
      read += len(ids)
    assert outcome.cost.read == read
    assert outcome.cost.calls == 2
    assert outcome.answer == outcome.samples[int(np.argmax(outcome.trace["values"]))]


def test_an_answer_has_a_place_in_it(judge_directory, session, asks, reader):
  bound = session(max_new_tokens=60)
  judge = {"name": "reward", "model": str(judge_directory / "reward")}
  strategy = reasoning.build({"name": "best_of_n", "samples": 2, "judge": judge}, bound.sampler)
  with pytest.raises(ValueError, match="reward has 64 positions, and an answer takes"):
    strategy(bound, asks[2:], reader)


@pytest.mark.parametrize(
  "section",
  [
    {"name": "best_of_n", "samples": 2, "judge": {}},
    {"name": "self_consistency", "samples": 2, "weights": {}},
    {"name": "tree_of_thoughts", "judge": {}},
  ],
)
def test_a_model_that_cannot_judge_is_told_before_there_is_an_answer(
  judge_directory, session, asks, reader, section
):
  bound = session()
  for name, error, told in (
    ("plain", ValueError, "plain gives no score"),
    ("nowhere", FileNotFoundError, "no model at .*nowhere"),
  ):
    judge = {"name": "reward", "model": str(judge_directory / name)}
    own = {key: judge if value == {} else value for key, value in section.items()}
    with pytest.raises(error, match=told):
      reasoning.build(own, bound.sampler)(bound, asks, reader)
  assert not bound.costs
