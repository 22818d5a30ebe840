"""Policies that learn from what they write: the real loop, killed and resumed to the bit."""

import json
import signal

import jax
import numpy as np
import pytest

from configs import base
from research import models, peft
from research.core.config import Config, ConfigError
from research.data import sources
from research.loop import policy_answers, problem, rewards, run
from research.loop.interrupt import Interrupted
from research.objectives.policy import ADVANTAGES, OLD, TOLD

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 64,
}
LORA = ({"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4},)
LETTERS = {"name": "pattern", "label": "letters", "regex": "[a-m]"}
SHORT = {"name": "length", "most": 5, "buffer": 4, "weight": 0.1}
GRPO = {"name": "policy", "loss": {"name": "clipped"}, "average": "answers", "kl": 0.01}
PPO = {"name": "policy", "loss": {"name": "clipped"}, "critic": {}, "reward_kl": 0.05}
WRITES = {"rewards": (LETTERS, SHORT), "samples": 4, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def world(tmp_path_factory, byte_tokenizer):
  root = tmp_path_factory.mktemp("policy")
  model = models.build(LLAMA)
  params = models.initialize(model, jax.random.key(0))
  models.save(root / "model", model, params, byte_tokenizer)
  rows = [{"prompt": "q" * (1 + i % 5), "answer": str(i)} for i in range(12)]
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  return root


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
  monkeypatch.chdir(world)
  monkeypatch.setenv("RESEARCH_CACHE", str(world / "home"))


def _config(directory, section=GRPO, steps=4, rate=1e-2, writes=WRITES, whole=False):
  config = base.get_config()
  config.compilation_cache = "compiled"
  config.directory = directory
  config.model.source = "model"
  config.model.dtype = "float32"
  config.model.unroll = 1
  config.adapters = () if whole else LORA
  config.trainable = ("all",) if whole else ("adapters",)
  config.objective = section
  config.data.train.source = {"name": "jsonl", "path": "rows.jsonl", "cache": "cache"}
  config.data.train.length = 16
  config.data.train.packing = "none"
  config.data.train.on_long_row = "drop"
  config.optimizer.learning_rate = rate
  config.optimizer.schedule = {"name": "constant"}
  config.train.steps = steps
  config.train.batch_size = 4
  config.train.rollout = writes
  config.checkpoint.every_steps = 0
  config.log.tensorboard = False
  config.log.peak_flops = 1e11
  return Config(config.to_dict())


def _lines(directory):
  text = (directory / "metrics.jsonl").read_text()
  return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def _same(line):
  """What of a step does not depend on the clock."""
  return {k: v for k, v in line.items() if "second" not in k and "utilization" not in k}


def test_what_is_rewarded_becomes_likelier(world):
  run.run(_config("learns", {**GRPO, "reference": "copy"}, steps=20, rate=3e-2, whole=True))
  lines = _lines(world / "learns")
  rewards = [line["rewards/letters/mean"] for line in lines]
  assert np.mean(rewards[:5]) < 0.6 and np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2
  first = lines[0]
  assert first["clip_ratio/region_mean"] == 0 and abs(first["kl"]) < 1e-6 < lines[-1]["kl"]
  told = first["rewards/letters/mean"] + 0.1 * first["rewards/length/mean"]
  np.testing.assert_allclose(first["reward"], told, rtol=1e-5)
  assert 1 <= first["completions/mean_length"] <= 6
  assert (world / "learns" / "model").is_dir()


@pytest.mark.parametrize(
  ("name", "section", "writes"),
  [
    ("grpo", GRPO, {"batches": 2, "epochs": 2}),
    ("ppo", PPO, {"epochs": 3, "samples": 1, "advantage": {"name": "gae"}}),
  ],
)
def test_a_run_that_stops_within_a_rollout_goes_on_to_the_bit(world, name, section, writes):
  steps, writes = 6, WRITES | writes
  run.run(_config(f"{name}_whole", section, steps=steps, writes=writes))

  def stops(config):
    """The problem, whose batches end after two steps, in the midst of a rollout."""
    found = problem.assemble(config)
    batches, left = found.batches, [None] * 2

    class Batches:
      def __getattr__(self, name):
        return getattr(batches, name)

      def __next__(self):
        if not left:
          raise Interrupted(signal.SIGTERM)
        left.pop()
        return next(batches)

    found.batches = Batches()
    return found

  stopping = _config(f"{name}_parts", section, steps=steps, writes=writes)
  with pytest.raises(Interrupted):
    run.run(stopping, assemble=stops)
  run.run(stopping)
  whole, parts = (_lines(world / f"{name}_{kind}") for kind in ("whole", "parts"))
  assert [_same(line) for line in whole] == [_same(line) for line in parts]
  if name == "ppo":
    # Epochs learn the same answers again, and the ratios leave 1.
    assert whole[0]["reward"] == whole[1]["reward"] == whole[2]["reward"]
    assert len({line["entropy"] for line in whole}) == steps
    assert whole[0]["clip_ratio/region_mean"] == 0 and "loss/value_avg" in whole[0]
    assert whole[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert whole[2]["loss/value_avg"] < whole[0]["loss/value_avg"]


def test_rows_that_no_reward_can_judge_are_told_before_they_are_answered(world):
  """The first ones before the run."""
  rows = [{"prompt": "q", "answer": "7"}, {"prompt": "q", "answer": "3/4"}]
  (world / "fractions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  data = {"name": "jsonl", "path": "fractions.jsonl", "cache": "cache"}
  writes = WRITES | {"rewards": ({"name": "scorer"},)}
  values = _config("fractions", writes=writes).to_dict()
  values["data"]["train"]["source"] = data
  told = "rollout.rewards: .* row 1: for the reward 'scorer' the answer '3/4' is not one number"
  with pytest.raises(ConfigError, match=told):
    problem.assemble(Config(values))
  judges = rewards.build(writes["rewards"])
  writer = policy_answers.Writer(
    policy_answers.Rollout(**writes), None, None, None, sources.build(data), judges, 16, (), 0
  )
  with pytest.raises(ConfigError, match=told):
    writer(0, {}, [[(0, [5]), (1, [5])]])


def test_an_error_of_a_judge_is_one_of_the_run(written, monkeypatch):
  task, _ = written

  def judge(self, answers):
    raise ValueError("prompt 0 exceeds the model's 64 positions")

  monkeypatch.setattr(rewards.Pattern, "__call__", judge)
  with pytest.raises(ConfigError, match="config.train.rollout.rewards: prompt 0 exceeds"):
    task.rewrite(3, lambda: task.variables, next(task.batches))


def test_slices_hold_whole_groups(world):
  told = []
  for slices in (1, 2):
    values = _config(f"slices {slices}", {**GRPO, "average": "tokens"}, steps=1).to_dict()
    values["train"]["accumulate_steps"] = slices
    run.run(Config(values))
    told.append(_lines(world / f"slices {slices}")[0])
  for name in ("loss", "gradient_norm", "reward", "reward_std", "entropy"):
    np.testing.assert_allclose(told[0][name], told[1][name], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def written(world):
  """A problem of PPO whose prompts are answered, and the batch."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(world)
    writes = WRITES | {"advantage": {"name": "gae", "whiten": False}, "unfinished": "leave_out"}
    task = problem.assemble(_config("written", {**PPO, "temperature": 0.7}, writes=writes))
    batch = task.rewrite(3, lambda: task.variables, next(task.batches))
  return task, batch


def test_rows_are_answers_of_their_prompts_and_what_was_said_of_them(written, byte_tokenizer):
  task, batch = written
  assert len(batch["row"]) == 16
  for first in range(0, 16, 4):  # neighbours are of one prompt
    assert len(set(batch["row"][first : first + 4].tolist())) == 1
  logits = task.model.apply(
    {name: task.variables[name] for name in ("params", "adapters")},
    batch["tokens"],
    batch["positions"],
    batch["segments"],
  )
  log_probs = jax.nn.log_softmax(logits / 0.7)
  for row, number in enumerate(batch["row"]):
    prompt = 1 + int(number) % 5
    end = int((batch["segments"][row] > 0).sum())
    text = byte_tokenizer.decode(batch["tokens"][row, prompt:end].tolist())
    assert batch[f"{TOLD}completions/mean_length"][row] == end - prompt
    letters = float(any(letter in text for letter in "abcdefghijklm"))
    assert batch[f"{TOLD}rewards/letters/mean"][row] == letters
    total = letters + 0.1 * batch[f"{TOLD}rewards/length/mean"][row]
    np.testing.assert_allclose(batch[f"{TOLD}reward"][row], total, rtol=1e-6)
    finished = int(batch["tokens"][row, end - 1]) == byte_tokenizer.eos_ids[0]
    assert batch[f"{TOLD}completions/clipped_ratio"][row] == (not finished)
    learnt = np.flatnonzero(batch["weights"][row]).tolist()
    assert learnt == (list(range(prompt - 1, end - 1)) if finished else [])
    for at in learnt:
      said = log_probs[row, at, batch["tokens"][row, at + 1]]
      np.testing.assert_allclose(batch[OLD][row, at], said, atol=1e-5)
    # The critic begins with 0, and the reference is the policy yet: all tokens earn the reward.
    mask = np.zeros(batch["tokens"].shape[1])
    mask[prompt - 1 : end - 1] = 1
    expected = total * mask * 0.95 ** np.maximum(end - 2 - np.arange(len(mask)), 0)
    np.testing.assert_allclose(batch[ADVANTAGES][row], expected, atol=1e-5)


def test_a_kl_is_taken_from_the_rewards_that_groups_compare(world):
  section = {**GRPO, "kl": 0.0, "reward_kl": 0.5}
  writes = WRITES | {"epochs": 2, "unfinished": "leave_out"}
  task = problem.assemble(_config("costs", section, writes=writes))
  moved = jax.tree.map(lambda x: x + 0.3, task.variables["adapters"])
  batch = task.rewrite(0, lambda: task.variables | {"adapters": moved}, next(task.batches))
  apart = batch[f"{TOLD}objective/kl"]
  assert np.abs(apart).max() > 0.01
  net = (batch[f"{TOLD}reward"] - 0.5 * apart).reshape(-1, 4)
  better = (net - net.mean(1, keepdims=True)) / (net.std(1, ddof=1, keepdims=True) + 1e-4)
  # Rewards pay for answers that are cut off, too, of which nothing is learnt.
  answers = (batch["positions"] >= batch["row"][:, None] % 5) & (batch["segments"] > 0)
  mask = answers & np.roll(answers, -1, axis=1)
  finished = batch[f"{TOLD}completions/clipped_ratio"] == 0
  np.testing.assert_array_equal(batch["weights"], mask * finished[:, None])
  assert (~finished).sum() > 1
  np.testing.assert_allclose(batch[ADVANTAGES], better.reshape(-1, 1) * mask, rtol=1e-3, atol=1e-4)
  # It is the log-probability less that of the model without its adapter.
  variables = {"params": task.variables["params"]}
  rows = [batch[name] for name in ("tokens", "positions", "segments")]
  said = jax.nn.log_softmax(task.model.apply(variables, *rows))
  theirs = np.take_along_axis(np.asarray(said), batch["targets"][..., None], -1)[..., 0]
  gaps = (batch[OLD] - theirs) * mask
  np.testing.assert_allclose(apart, gaps.sum(1), rtol=1e-3, atol=1e-4)
  # The loss is a mean over them all, but for rows without a prompt.
  batch["row"][-4:] = -1
  weight = jax.jit(lambda batch: task.objective(task.model, task.variables, batch, None, 0)[1])
  assert weight(batch) == 12


def test_figures_of_rewards_are_those_of_trl(byte_tokenizer):
  """The deviation is that of all rewards, divided by one less than there are (TRL's `nanstd`)."""
  settings = policy_answers.Rollout(({**LETTERS, "weight": 0.9},), samples=6)
  problems, judges = [{"prompt": "q"}] * 4, rewards.build(settings.rewards)
  writer = policy_answers.Writer(settings, None, None, byte_tokenizer, problems, judges, 16, (), 0)
  rows = [
    policy_answers._Row(number, [0], byte_tokenizer.encode(text), True)
    for number, texts in ((0, "aaaaaa"), (1, "zzzzzz"), (-1, " " * 6), (2, "aazzzz"), (3, "zaaaaa"))
    for text in texts
  ]
  total, told = writer._judged(rows)
  there = np.array([row.number >= 0 for row in rows])
  deviation = np.std(total[there].astype(np.float64), ddof=1)
  np.testing.assert_allclose(told["reward_std"], there * deviation, rtol=1e-5)
  # Deviations of six times 0.9 are not 0 in float32.
  assert told["frac_reward_zero_std"].reshape(5, 6).tolist() == [[x] * 6 for x in (1, 1, 0, 0, 0)]


def test_rows_begin_with_virtual_tokens_and_fill_the_positions_of_the_model(world):
  writes = WRITES | {"epochs": 2, "max_new_tokens": 62}
  values = _config("virtual", {**GRPO, "kl": 0.0}, writes=writes).to_dict()
  values["adapters"] = ({"name": "p_tuning", "tokens": 2},)
  values["data"]["train"]["length"] = LLAMA["max_position_embeddings"]
  task = problem.assemble(Config(values))
  variables = peft.materialize(task.variables)
  batch = task.rewrite(0, lambda: variables, next(task.batches))
  assert (batch["tokens"][:, :2] == [-1, -2]).all() and (batch["tokens"][:, 2:] >= 0).all()
  prompts = 3 + batch["row"] % 5
  lengths = (batch["segments"] > 0).sum(1)
  cut = batch[f"{TOLD}completions/clipped_ratio"] == 1
  assert len(set(prompts.tolist())) > 1 and cut.any()
  # No prompt leaves room for 62 tokens: answers that are not finished end where the model does.
  assert (lengths[cut] == 64).all() and lengths.min() < 64
  learnt = np.arange(64) >= prompts[:, None] - 1
  np.testing.assert_array_equal(batch["weights"], learnt & (np.arange(64) < lengths[:, None] - 1))
  rows = [batch[name] for name in ("tokens", "positions", "segments")]
  said = jax.nn.log_softmax(jax.jit(task.model.apply)(variables, *rows))
  found = np.take_along_axis(np.asarray(said), batch["targets"][..., None], -1)[..., 0]
  np.testing.assert_allclose(batch[OLD], found * batch["weights"], atol=1e-5)


def test_rows_have_no_more_positions_than_the_model(world):
  values = _config("long").to_dict()
  values["data"]["train"]["length"] = 65
  with pytest.raises(ConfigError, match="rows of 65 tokens exceed the model's 64 positions"):
    problem.assemble(Config(values))


def test_draws_go_by_the_seed_and_the_step(written, byte_tokenizer):
  task, batch = written
  # A prompt is all "q", of which the tokenizer has one token.
  (letter,) = byte_tokenizer.encode("q")
  asked = [{name: batch[name][::4] for name in ("row", "tokens")}]
  prompts = np.arange(batch["tokens"].shape[1]) < 1 + asked[0]["row"][:, None] % 5
  asked[0]["segments"] = prompts.astype(np.int32)
  assert (asked[0]["tokens"][prompts] == letter).all()
  same, again, later = (task.rewrite(step, lambda: task.variables, asked) for step in (3, 3, 4))
  np.testing.assert_array_equal(same["tokens"], again["tokens"])
  np.testing.assert_array_equal(same["tokens"], batch["tokens"])
  assert not np.array_equal(same["tokens"], later["tokens"])


@pytest.mark.parametrize(
  ("section", "writes", "told"),
  [
    (GRPO, {}, "give its rewards"),
    ({"name": "causal"}, WRITES, "is learnt by the objective 'policy'"),
    (GRPO, WRITES | {"samples": 1}, "samples is 1; it is at least 2"),
    (GRPO, WRITES | {"unfinished": "drop"}, "there are judge, zero, leave_out"),
    (GRPO, WRITES | {"max_new_tokens": 16}, "leaves rows of 16 tokens no prompt"),
    (GRPO, WRITES | {"advantage": {"name": "gae"}}, "are given together"),
    (PPO, WRITES, "are given together"),
    (GRPO, WRITES | {"rewards": ()}, "a reward is one of scorer, pattern"),
    (GRPO, WRITES | {"rewards": (LETTERS, LETTERS)}, "two rewards are 'letters'"),
    (GRPO, WRITES | {"rewards": ({"name": "pattern", "regex": "("},)}, "cannot be read"),
    (GRPO, WRITES | {"rewards": ({"name": "scorer", "scorer": "last"},)}, "no scorer 'last'"),
    ({**GRPO, "kl": 0.0, "reference": "base"}, WRITES, "a policy without kl has no reference"),
    ({**PPO, "average": "answers"}, WRITES, "average is 'tokens'"),
    ({**GRPO, "loss": {"name": "reinforce"}}, WRITES | {"epochs": 2}, "or take 'clipped'"),
  ],
)
def test_what_cannot_be(section, writes, told):
  with pytest.raises(ConfigError, match=told):
    problem.assemble(_config("wrong", section, writes=writes))


@pytest.mark.parametrize(("changes", "passes"), [({}, 1), ({"kl": 0.0, "reward_kl": 0.1}, 0)])
def test_a_step_counts_the_passes_of_a_reference_that_it_asks(changes, passes):
  """Where rewards pay the KL, those who write have asked it."""
  assert problem.assemble(_config("passes", GRPO | changes)).forward_passes == passes


def test_a_curriculum_goes_by_batches_of_prompts(world):
  values = _config("easy first").to_dict()
  phases = ({"until": 0.5, "share": 0.3}, {"until": 1})
  values["data"]["train"]["curriculum"] = {"name": "phases", "by": "length", "phases": phases}
  values["train"]["rollout"]["batches"] = 2
  asked = problem.assemble(Config(values)).batches
  first, second = next(asked), next(asked)
  shortest = [0, 5, 10, 1]  # of twelve, by length and then by number
  assert {*np.concatenate([batch["row"] for batch in first]).tolist()} == {*shortest}
  assert not {*np.concatenate([batch["row"] for batch in second]).tolist()} <= {*shortest}
  values["train"]["rollout"]["epochs"] = 2
  with pytest.raises(ConfigError, match="train.rollout: epochs is 2.*goes by steps; take 1"):
    problem.assemble(Config(values))
