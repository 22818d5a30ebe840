"""Answers that the student writes: what generation gives, in the form of the data's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from research import generation, models
from research.core.config import Config, ConfigError
from research.data import packing
from research.data.examples import Example
from research.loop import on_policy
from research.loop.on_policy import OnPolicy, Writer

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 16,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "max_position_embeddings": 12,
}
LENGTH = LLAMA["max_position_embeddings"]


@pytest.fixture(scope="module")
def student():
  model = models.build(LLAMA)
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  return model, {"params": jax.tree.map(lambda x: x * 8, params), "teacher": None}


@pytest.fixture(scope="module")
def batch():
  """A prompt of 3 tokens, an empty row, one that is all prompt, and one without room."""

  def row(prompt, answer):
    tokens = np.arange(prompt + answer, dtype=np.int32) + 40
    return [Example(tokens, np.arange(len(tokens)) >= prompt)]

  rows = [row(3, 4), [], row(5, 0), row(LENGTH - 1, 1), row(6, 2)]
  return packing.assemble(rows, LENGTH, 0)


def test_rows_hold_what_is_written_after_their_prompts(student, batch, byte_tokenizer):
  model, variables = student
  settings = OnPolicy(share=1.0, max_new_tokens=5, temperature=0.7)
  new = Writer(settings, model, byte_tokenizer, seed=3)(7, lambda: variables, batch)
  prompts = [batch["tokens"][0, :3].tolist(), batch["tokens"][3, : LENGTH - 1].tolist()]
  prompts.append(batch["tokens"][4, :6].tolist())
  _, seed = settings.numbers(3, 7)
  same = {"max_new_tokens": 5, "eos_ids": byte_tokenizer.eos_ids, "seed": seed}
  same["room"] = [LENGTH - len(prompt) for prompt in prompts]
  written = generation.generate(
    model, {"params": variables["params"]}, prompts, generation.Sampler(0.7), **same
  )
  for row, prompt, completion in zip((0, 3, 4), prompts, written, strict=True):
    whole = prompt + completion.tokens
    assert len(completion.tokens) == min(5, LENGTH - len(prompt))  # none has drawn EOS
    assert new["tokens"][row, : len(whole)].tolist() == whole
    assert new["targets"][row, : len(whole) - 1].tolist() == whole[1:]
    learnt = np.flatnonzero(new["weights"][row])
    assert learnt.tolist() == list(range(len(prompt) - 1, len(whole) - 1))
    assert (new["segments"][row] > 0).sum() == len(whole)
  for row in (1, 2):
    for name, rows in batch.items():
      np.testing.assert_array_equal(new[name][row], rows[row], err_msg=name)
  assert {name: rows.dtype for name, rows in new.items()} == {
    name: rows.dtype for name, rows in batch.items()
  }


def test_a_share_of_the_batches_by_seed_and_step(student, batch, byte_tokenizer):
  settings = OnPolicy(share=0.3)
  due = [settings.numbers(0, step)[0] for step in range(2000)]
  assert abs(np.mean(due) - 0.3) < 0.04
  assert due != [settings.numbers(1, step)[0] for step in range(2000)]
  step = due.index(False)
  never = None  # the student is not asked
  assert Writer(settings, student[0], byte_tokenizer, 0)(step, never, batch) is batch


@pytest.mark.parametrize(
  ("section", "change", "running", "told"),
  [
    ({"share": 0.0}, {}, True, "above 0 and at most 1, not 0.0"),
    ({"max_new_tokens": 0}, {}, True, "max_new_tokens 0 starts at 1"),
    ({"shares": 0.5}, {}, True, "shares"),
    ({"share": 0.5}, {}, False, "needs a teacher that runs"),
    ({"share": 0.5}, {"packing": "best_fit"}, True, "packing='none'"),
    ({"share": 0.5}, {"completion_only": False}, True, "completion_only=True"),
  ],
)
def test_what_cannot_be(section, change, running, told):
  config = base.get_config().unlock()
  config.train.on_policy = section
  config.data.train.packing = "none"
  config.data.train.update(change)
  with pytest.raises(ConfigError, match=f"on_policy.*{told}"):
    on_policy.build(Config(config.to_dict()), None, None, running, None)


def test_no_section_is_no_writer():
  assert on_policy.build(Config(base.get_config().to_dict()), None, None, True, None) is None
