"""Prompts that each take an adapter of their own from a bank, by every method that can."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import generation, peft
from research.core import tree

PROMPTS = [[5, 6, 7], [5, 6, 7], [9, 8], [200, 1, 2, 3, 4], [9, 8]]
NAMES = ["math", None, "code", "math", "math"]
SAME = {"max_new_tokens": 5, "eos_ids": (299,)}


@pytest.fixture(scope="module")
def world(toy):
  """The model, variables with a bank, each prompt's slot, and variables of each name, merged."""
  model, variables = toy
  model = model.clone(unroll=1)  # a loop over the layers compiles faster
  params = variables["params"]
  named = {}
  for seed, (name, target) in enumerate({"math": "attention/q", "code": "mlp/up"}.items()):
    rule = {"target": f"layers/{target}_proj/kernel", "name": "lora", "rank": 2 + seed}
    draws = np.random.default_rng(seed)
    named[name] = tree.map_with_path(
      lambda path, leaf, draws=draws: (
        jnp.asarray(draws.normal(size=leaf.shape), jnp.float32)
        if path.endswith(("/a", "/b"))
        else leaf
      ),
      peft.attach([rule], params, jax.random.key(0)),
    )
  bank = peft.bank(named, slots=3)
  alone = {name: {"params": peft.merge(params, adapters)} for name, adapters in named.items()}
  banked = {"params": params, "adapters": bank.adapters}
  return model, banked, bank.numbers(NAMES), {None: {"params": params}, **alone}


def _alone(write, alone):
  """What `write(variables, prompts)` gives for each prompt with its adapter merged, in order."""
  found = []
  for i, (prompt, name) in enumerate(zip(PROMPTS, NAMES, strict=True)):
    found += [(i, c.sample, c.tokens) for c in write(alone[name], [prompt] * 5) if c.prompt == 0]
  return found


def _require_same(write, world):
  _, banked, which, alone = world
  together = [(c.prompt, c.sample, c.tokens) for c in write(banked, PROMPTS, which=which)]
  want = _alone(write, alone)
  assert together == want
  texts = {name: tokens for (_, _, tokens), name in zip(want, NAMES, strict=False)}
  assert len({tuple(tokens) for tokens in texts.values()}) > 1


def test_generate_and_its_samples(world):
  """Through an array a layer; draws know a prompt's number, which alone is given as the first."""
  model, banked, which, alone = world
  hot = generation.Sampler(temperature=1.0)
  same = {"samples": 2, "unrolled": True, "batch_size": 8, **SAME}
  found = generation.generate(model, banked, PROMPTS, hot, which=which, **same)
  for i, name in enumerate(NAMES):
    want = generation.generate(model, alone[name], [PROMPTS[i]] * 4, hot, first_prompt=i, **same)
    assert [c.tokens for c in found if c.prompt == i] == [c.tokens for c in want[:2]]


def test_beams(world):
  model = world[0]
  write = lambda variables, prompts, **extra: generation.beam_search(  # noqa: E731
    model, variables, prompts, num_beams=2, unrolled=False, **SAME, **extra
  )
  _require_same(write, world)


def test_contrastive_search(world):
  model = world[0]
  write = lambda variables, prompts, **extra: generation.contrastive_search(  # noqa: E731
    model, variables, prompts, penalty_alpha=0.6, top_k=3, **SAME, **extra
  )
  _require_same(write, world)


def test_scores_and_choices(world):
  model, banked, which, alone = world
  completions = [[1, 2], [3], [4, 5, 6], [7], [8, 9]]
  found = generation.score(model, banked, PROMPTS, completions, which=which)
  want = {name: generation.score(model, alone[name], PROMPTS, completions) for name in alone}
  for i, name in enumerate(NAMES):
    np.testing.assert_allclose(found[i], want[name][i], atol=1e-4)
  # Equal prompts are read once for the completions of one adapter alone.
  choices = [[[1, 2], [3]]] * 2
  found = generation.choose(model, banked, PROMPTS[:2], choices, which=which[:2])
  assert np.abs(np.array(found[0].scores) - found[1].scores).max() > 1e-2
  scores = generation.score(model, alone[NAMES[0]], PROMPTS[:1] * 2, choices[0])
  np.testing.assert_allclose(found[0].scores, [sum(each) for each in scores], atol=1e-4)
  with pytest.raises(ValueError, match="3 adapters' slots for 2 prompts"):
    generation.choose(model, banked, PROMPTS[:2], choices, which=[0, 0, 0])


def test_a_stream_changes_its_adapter(world):
  model, banked, which, alone = world
  stream = generation.Stream(model, banked, unrolled=False)
  for number in (0, 1):
    stream.use(which[number])
    plain = generation.Stream(model, alone[NAMES[number]], unrolled=False)
    assert list(stream(PROMPTS[0], **SAME)) == list(plain(PROMPTS[0], **SAME))
  with pytest.raises(ValueError, match="slots are -1, for no adapter, to 2"):
    stream.use(3)


def test_what_cannot_be(world):
  model, banked, which, alone = world
  plain = alone[None]
  with pytest.raises(ValueError, match="is of a bank, and there is none"):
    generation.generate(model, plain, PROMPTS, which=which, **SAME)
  with pytest.raises(ValueError, match="2 adapters' slots for 5 prompts"):
    generation.generate(model, banked, PROMPTS, which=which[:2], **SAME)
  requests = [generation.Request(PROMPTS[0], 3)]
  draft = generation.drop_layers(model, plain, [0])
  for call in (
    lambda: generation.generate(model, banked, PROMPTS, **SAME),
    lambda: generation.score(model, banked, PROMPTS, PROMPTS),
    lambda: list(generation.serve(model, banked, requests, eos_ids=())),
    lambda: generation.speculate(model, banked, PROMPTS, draft=draft, **SAME),
  ):
    with pytest.raises(ValueError, match="the adapters are a bank; say which of them"):
      call()


def test_one_row_stands_for_all(world):
  model, banked, which, alone = world
  chosen = {**banked, "adapters": peft.route(banked["adapters"], jnp.asarray(which[:1]))}
  got = generation.score(model, chosen, PROMPTS[:2], PROMPTS[2:4])
  want = generation.score(model, alone["math"], PROMPTS[:2], PROMPTS[2:4])
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
