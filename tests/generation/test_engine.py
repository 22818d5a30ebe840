"""Generation against the plain way: the whole forward pass, without a cache, for every token."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft
from research.generation import Sampler, generate

PROMPTS = [[5, 17, 8], [9] * 40, list(range(20, 31)), [7], [250, 3, 3, 90, 41]]
NEW = 12


@partial(jax.jit, static_argnums=0)
def _forward(model, variables, tokens):
  return model.apply(variables, tokens)


def _logits(model, variables, tokens):
  """`[len(tokens), V]`: of the token after each; the row is filled up, so that one shape is all."""
  row = np.zeros((1, 64), np.int32)
  row[0, : len(tokens)] = tokens
  return np.asarray(_forward(model, variables, row))[0, : len(tokens)]


def _log_probs(model, variables, tokens):
  """As `_logits`."""
  return np.asarray(jax.nn.log_softmax(_logits(model, variables, tokens)))


def _plain(model, variables, prompt, count):
  """The most probable continuation and its log-probabilities, token by token."""
  tokens, chosen = list(prompt), []
  for _ in range(count):
    following = _log_probs(model, variables, tokens)[-1]
    tokens.append(int(following.argmax()))
    chosen.append(following[tokens[-1]])
  return tokens[len(prompt) :], chosen


@pytest.mark.parametrize("unrolled", [True, False])
def test_greedy_is_the_argmax_of_the_whole_forward_pass(toy, unrolled):
  found = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=(), unrolled=unrolled)
  for prompt, completion in zip(PROMPTS, found, strict=True):
    tokens, log_probs = _plain(*toy, prompt, NEW)
    assert completion.tokens == tokens
    np.testing.assert_allclose(completion.log_probs, log_probs, atol=1e-5)
    assert not completion.finished
  assert len({token for completion in found for token in completion.tokens}) > 10


def test_learned_positions():
  """GPT-2's family: positions come from a table, also behind padding."""
  model = models.build(
    {"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4,
     "n_positions": 64}
  )  # fmt: skip
  params = jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 1), jnp.int32))["params"]
  variables = {"params": jax.tree.map(lambda x: x * 5, params)}
  prompts = [[1, 2, 3], [4] * 9]
  found = generate(model, variables, prompts, max_new_tokens=8, eos_ids=())
  for prompt, completion in zip(prompts, found, strict=True):
    assert completion.tokens == _plain(model, variables, prompt, 8)[0]


def test_order_batches_and_padding_change_nothing(toy):
  together = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=(), pad_id=0)
  for batch_size, order in ((1, [0, 1, 2, 3, 4]), (2, [4, 3, 2, 1, 0]), (3, [2, 0, 4, 1, 3])):
    found = generate(
      *toy,
      [PROMPTS[i] for i in order],
      max_new_tokens=NEW,
      eos_ids=(),
      pad_id=99,
      batch_size=batch_size,
    )
    assert [c.prompt for c in found] == [0, 1, 2, 3, 4]
    for i, completion in zip(order, found, strict=True):
      assert completion.tokens == together[i].tokens
      np.testing.assert_allclose(completion.log_probs, together[i].log_probs, atol=1e-5)


def test_a_draw_depends_on_its_prompt_and_sample_only(toy):
  arguments = {"max_new_tokens": NEW, "eos_ids": (), "samples": 3, "seed": 5}
  sampler = Sampler(1.5)
  whole = generate(*toy, PROMPTS, sampler, **arguments)
  assert [(c.prompt, c.sample) for c in whole] == [(i, j) for i in range(5) for j in range(3)]
  assert len({tuple(c.tokens) for c in whole}) == 15  # all differ
  found = generate(*toy, PROMPTS, sampler, **arguments, batch_size=7)  # two prompts at a time
  assert [c.tokens for c in found] == [c.tokens for c in whole]
  part = generate(*toy, PROMPTS[2:4], sampler, **arguments, first_prompt=2)
  assert [c.tokens for c in part] == [c.tokens for c in whole[6:12]]
  mixed = generate(*toy, [PROMPTS[3], PROMPTS[0]], sampler, **arguments, numbers=[3, 0])
  assert [c.tokens for c in mixed] == [c.tokens for c in whole[9:12] + whole[:3]]
  with pytest.raises(ValueError, match="there are 1 numbers for 5 prompts"):
    generate(*toy, PROMPTS, sampler, **arguments, numbers=[3])
  one = generate(*toy, PROMPTS, sampler, **{**arguments, "samples": 1})
  assert [c.tokens for c in one] == [c.tokens for c in whole[::3]]
  other = generate(*toy, PROMPTS, sampler, **{**arguments, "seed": 6})
  assert all(a.tokens != b.tokens for a, b in zip(other, whole, strict=True))


def test_log_probs_are_of_the_model_itself(toy):
  """Whatever the sampler: at temperature 1, unfiltered."""
  found = generate(
    *toy, PROMPTS, Sampler(2.0, top_k=20, top_p=0.9), max_new_tokens=NEW, eos_ids=(), samples=2
  )
  for completion in found:
    prompt = PROMPTS[completion.prompt]
    every = _log_probs(*toy, prompt + completion.tokens)[len(prompt) - 1 : -1]
    expected = every[np.arange(NEW), completion.tokens]
    np.testing.assert_allclose(completion.log_probs, expected, atol=1e-5)
    ranks = (every > expected[:, None]).sum(axis=-1)
    assert (ranks < 20).all()


def test_penalties_go_by_the_tokens_before(toy):
  """Each token is the best after penalties that are counted anew for it."""
  sampler = Sampler(repetition_penalty=1.5, frequency_penalty=2.0, presence_penalty=3.0)
  found = generate(*toy, PROMPTS, sampler, max_new_tokens=NEW, eos_ids=(), samples=2)
  plain = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=())
  for completion in found:
    prompt, tokens = PROMPTS[completion.prompt], completion.tokens
    logits = _logits(*toy, prompt + tokens)[len(prompt) - 1 : -1].copy()
    for step, row in enumerate(logits):
      for token in {*prompt, *tokens[:step]}:
        row[token] = row[token] * 1.5 if row[token] < 0 else row[token] / 1.5
      for token in set(tokens[:step]):
        row[token] -= 3 + 2 * tokens[:step].count(token)
    assert tokens == logits.argmax(axis=-1).tolist()
  assert [c.tokens for c in found[::2]] != [c.tokens for c in plain]


def test_any_eos_token_ends_a_completion(toy):
  plain = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=())
  eos = (plain[0].tokens[4], plain[1].tokens[2])
  found = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=eos)
  for whole, completion in zip(plain, found, strict=True):
    ends = [i for i, token in enumerate(whole.tokens) if token in eos]
    length = ends[0] + 1 if ends else NEW
    assert completion.tokens == whole.tokens[:length]
    assert len(completion.log_probs) == length
    assert completion.finished == bool(ends)
  assert found[0].finished and found[1].finished
  # EOS as the very last token allowed is an end, too.
  last = generate(*toy, PROMPTS[:1], max_new_tokens=len(found[0].tokens), eos_ids=eos)
  assert last[0].tokens == found[0].tokens and last[0].finished


def test_rows_end_at_their_own_length(toy):
  plain = generate(*toy, PROMPTS, max_new_tokens=NEW, eos_ids=())
  room = [99, 5, 3, 1, NEW]
  eos = plain[1].tokens[4]  # the last that its row has room for
  found = generate(*toy, PROMPTS, max_new_tokens=NEW, room=room, eos_ids=(eos,))
  for whole, completion, most in zip(plain, found, room, strict=True):
    ends = [i + 1 for i, token in enumerate(whole.tokens[:most]) if token == eos]
    length = ends[0] if ends else min(most, NEW)
    assert completion.tokens == whole.tokens[:length] and completion.finished == bool(ends)
    np.testing.assert_allclose(completion.log_probs, whole.log_probs[:length], atol=1e-5)
  assert found[1].finished and not found[2].finished and not found[3].finished


def test_one_new_token(toy):
  found = generate(*toy, PROMPTS, max_new_tokens=1, eos_ids=())
  assert [c.tokens for c in found] == [_plain(*toy, prompt, 1)[0] for prompt in PROMPTS]


def test_adapters_bound_are_adapters_merged(toy):
  model, variables = toy
  rules = [{"target": "layers/.*_proj/kernel", "name": "lora", "rank": 4, "alpha": 8}]
  adapters = peft.attach(rules, variables["params"], jax.random.key(2))
  adapters = jax.tree.map(
    lambda x: x + jax.random.normal(jax.random.key(3), x.shape) * 0.1 if x.ndim > 1 else x, adapters
  )
  merged = {"params": peft.merge(variables["params"], adapters)}
  bound = {**variables, "adapters": adapters}
  arguments = {"max_new_tokens": NEW, "eos_ids": ()}
  expected = generate(model, merged, PROMPTS, **arguments)
  for unrolled in (True, False):
    found = generate(model, bound, PROMPTS, **arguments, unrolled=unrolled)
    assert [c.tokens for c in found] == [c.tokens for c in expected]
  assert [c.tokens for c in expected] != [
    c.tokens for c in generate(model, variables, PROMPTS, **arguments)
  ]


def test_bfloat16_follows_its_own_forward_pass(toy):
  """Each token within rounding of the best: 0.2 in log-probability."""
  model, variables = toy
  half = models.Decoder(model.config, jnp.bfloat16)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables["params"])
  for unrolled in (True, False):
    found = generate(
      half, {"params": params}, PROMPTS, max_new_tokens=NEW, eos_ids=(), unrolled=unrolled
    )
    for prompt, completion in zip(PROMPTS, found, strict=True):
      every = _log_probs(half, {"params": params}, prompt + completion.tokens)
      every = every[len(prompt) - 1 : -1]
      chosen = every[np.arange(NEW), completion.tokens]
      np.testing.assert_allclose(completion.log_probs, chosen, atol=0.2)
      assert (every.max(axis=-1) - chosen < 0.2).all()


def test_progress_counts_every_completion(toy):
  counts = []
  generate(
    *toy, PROMPTS, max_new_tokens=2, eos_ids=(), samples=3, batch_size=4, progress=counts.append
  )
  assert sum(counts) == 15
  assert len(counts) > 1


def test_no_prompts(toy):
  assert generate(*toy, [], max_new_tokens=2, eos_ids=()) == []


@pytest.mark.parametrize(
  ("prompts", "changes", "told"),
  [
    ([[1], []], {}, "prompt 1 is empty"),
    ([[1, 300]], {}, "prompt 0 holds token 300; the model has 0 to 299"),
    ([[1, -2]], {}, "holds token -2"),
    ([[1] * 510], {}, "510 tokens, which with max_new_tokens 3 exceeds the model's 512"),
    ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
    ([[1]], {"samples": 0}, "samples is 0"),
    ([[1]], {"batch_size": 0}, "batch_size is 0"),
    ([[1], [1] * 510], {"room": [3, 3]}, "prompt 1 has 510 tokens, which with max_new_tokens 3"),
    ([[1]], {"room": [2, 2]}, "room is of each of 1 prompts"),
    ([[1]], {"room": [0]}, "1 or more, not .0"),
  ],
)
def test_what_cannot_be_generated(toy, prompts, changes, told):
  with pytest.raises(ValueError, match=told):
    generate(*toy, prompts, **{"max_new_tokens": 3, "eos_ids": (), **changes})
