"""Rewards of written answers, each by what it says it is."""

import json

import jax
import numpy as np
import pytest

from configs import base
from research import generation, models
from research.core.config import Config, ConfigError
from research.data import chat, sources
from research.loop import rewards, run
from research.loop.rewards import Answer
from research.models import scored

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 256,
}


def answer(text, length=1, **problem):
  return Answer({"prompt": "q", **problem}, "q", text, length, True)


def test_a_known_answer_is_right_wrong_or_none():
  reward = rewards.Scorer(unparsable=-1.0)
  told = [answer("so 7", answer=7), answer("8", answer="7"), answer("no", answer="7")]
  assert reward(told).tolist() == [1.0, 0.0, -1.0]
  with pytest.raises(ValueError, match="there is no 'answer'; did you mean 'answr'"):
    reward([answer("7", answr="7")])
  built = rewards.build(({"name": "pattern", "regex": "a"}, {"name": "scorer", "label": "mine"}))
  with pytest.raises(ValueError, match="for the reward 'mine' there is no 'answer'"):
    built.check({"prompt": "q", "answer": None})
  built.check({"prompt": "q", "answer": 7})


def test_a_task_judges_without_a_reference():
  tasks = [{"name": "graph_color"}]
  row = sources.build({"name": "reasoning_gym", "tasks": tasks, "size": 1})[0]
  assert row["answer"] is None
  told = [json.dumps(row["metadata"]["possible_answer"]), "None"]
  found = rewards.Scorer("reasoning_gym")([Answer(row, "q", text, 1, True) for text in told])
  assert found.tolist() == [1.0, 0.0]


def test_a_pattern_is_there_or_not():
  assert rewards.Pattern("(?s)^<b>.*</b>")([answer("<b>\n</b>"), answer("x<b></b>")]).tolist() == [
    1.0,
    0.0,
  ]


def test_consistency_is_the_share_of_a_prompts_answers_that_come_to_the_same():
  chat = [{"role": "user", "content": "q"}]
  read = [("a", "so 7"), ("a", "7.0"), ("a", "8"), ("a", "none"), (chat, "7"), (chat, "it is 7")]
  told = [Answer({}, prompt, text, 1, True) for prompt, text in read]
  (reward,) = (each for _, each in rewards.build(({"name": "consistency"},)).each.values())
  assert reward(told).tolist() == [0.5, 0.5, 0.25, 0.0, 1.0, 1.0]
  assert rewards.Consistency("exact")(told).tolist() == [0.25] * 4 + [0.5] * 2
  with pytest.raises(ValueError, match="no scorer 'last'; did you mean 'last_number'"):
    rewards.build(({"name": "consistency", "scorer": "last"},))


def test_length_costs_in_a_line():
  found = rewards.Length(10, 4)([answer("", length) for length in (1, 6, 8, 10, 20)])
  np.testing.assert_allclose(found, [0, 0, -0.5, -1, -1])


def test_rewards_are_weighed_and_named():
  built = rewards.build(
    (
      {"name": "pattern", "regex": "a", "label": "a"},
      {"name": "length", "most": 2, "buffer": 2, "weight": 0.5},
    )
  )
  found = built([answer("a", 1), answer("b", 2)])
  assert {label: values.tolist() for label, values in found.items()} == {
    "a": [1.0, 0.0],
    "length": [-0.5, -1.0],
  }
  assert built.total(found).tolist() == [0.75, -0.5]
  with pytest.raises(ConfigError, match="takes no 'regx'"):
    rewards.build(({"name": "pattern", "regx": "a"},))


def test_what_is_not_finite_is_told():
  bad = rewards.Rewards({"mine": (1.0, lambda answers: np.array([np.nan]))})
  with pytest.raises(FloatingPointError, match="the reward 'mine' of an answer is not finite"):
    bad([answer("a")])


@pytest.fixture(scope="module")
def judge(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("judge")
  model = models.build(LLAMA)
  params = jax.tree.map(lambda x: x * 4, models.initialize(model, jax.random.key(0)))
  models.save(root, model, params, byte_tokenizer)
  return root


def test_a_judge_says_yes_or_no(judge, byte_tokenizer):
  told = [
    Answer({}, [{"role": "user", "content": "{answer}?"}], text, 1, True) for text in ("ab", "c")
  ]
  question = "Is {answer} good for {prompt}"
  found = rewards.Judge(question, str(judge), dtype="float32", yes="y", no="n")(told)
  model, params, _ = models.load(judge, dtype="float32")
  for one, share in zip(told, found, strict=True):
    asked = [{"role": "user", "content": f"Is {one.text} good for {{answer}}?"}]
    prompt = chat.encode_prompt(byte_tokenizer, asked)
    words = [byte_tokenizer.encode(word, add_special=False) for word in "yn"]
    yes, no = generation.score(model, {"params": params}, [prompt] * 2, words)
    np.testing.assert_allclose(share, 1 / (1 + np.exp(no[0] - yes[0])), rtol=1e-5)
  assert abs(found[0] - found[1]) > 1e-4
  with pytest.raises(ValueError, match="lacks {answer}"):
    rewards.Judge("is it good?", str(judge))
  with pytest.raises(ValueError, match="give one of source, a checkpoint, and run"):
    rewards.Judge("{answer}", str(judge), str(judge))


def test_a_reward_model_scores_what_was_written(judge, byte_tokenizer, monkeypatch, tmp_path):
  """As the run left it that trained it, whatever the batch."""
  monkeypatch.chdir(tmp_path)
  pairs = [{"prompt": "q", "chosen": "a" * (1 + i), "rejected": "b"} for i in range(4)]
  (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
  config = base.get_config()
  config.directory = "scores"
  config.compilation_cache = "off"
  config.model.source = str(judge)
  config.model.dtype = "float32"
  config.model.head = {"name": "score"}
  config.adapters = ({"target": "layers/.*q_proj/kernel", "name": "lora", "rank": 2},)
  config.objective = {"name": "reward"}
  config.data.train.source = {"name": "jsonl", "path": "pairs.jsonl", "cache": "cache"}
  config.data.train.length = 16
  config.data.train.packing = "none"
  config.train.steps = 1
  config.train.batch_size = 4
  config.log.tensorboard = False
  run.run(Config(config.to_dict()))
  reward = rewards.build(({"name": "model", "run": "scores", "dtype": "float32"},))
  texts = ["a", "bcd", "ef"]
  found = reward([answer(text) for text in texts])["model"]
  subject = reward.each["model"][1]._subject
  for text, score in zip(texts, found, strict=True):
    tokens = np.array([chat.encode_joined(byte_tokenizer, "q", text)[0]], np.int32)
    batch = {
      "tokens": tokens,
      "positions": np.arange(tokens.size, dtype=np.int32)[None],
      "segments": np.ones_like(tokens),
    }
    np.testing.assert_allclose(
      score, scored.scores(subject.model, subject.variables, batch)[0], rtol=1e-4, atol=1e-5
    )
  assert len(set(found.tolist())) == 3
  with pytest.raises(ValueError, match="has no head for scores"):
    rewards.build(({"name": "model", "source": str(judge)},))
