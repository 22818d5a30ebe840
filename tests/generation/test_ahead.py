"""Virtual tokens and a prefix, ahead of every prompt, in every way to write and to score."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft
from research.generation import (
  Request,
  Sampler,
  Stream,
  beam_search,
  contrastive_search,
  drop_layers,
  generate,
  score,
  serve,
  speculate,
)

PROMPTS = [[5, 17, 8], list(range(20, 31)), [7]]
NEW = 6
SAME = {"max_new_tokens": NEW, "eos_ids": ()}


@pytest.fixture(scope="module")
def led():
  """A model of learned positions, few of them, with both kinds of adapters."""
  model = models.build(
    {"model_type": "gpt2", "vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4,
     "n_positions": 27}
  )  # fmt: skip
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  params = jax.tree.map(lambda x: x * 8 if x.ndim > 1 else x, params)
  rules = [{"name": "prompt", "tokens": 4}, {"name": "prefix", "tokens": 3}]
  return model, {"params": params, "adapters": peft.attach(rules, params, jax.random.key(1))}


@pytest.fixture(scope="module")
def expected(led):
  """What the whole forward pass, without a cache, writes, and its log-probabilities."""
  model, variables = led
  apply = jax.jit(model.apply)
  found = []
  for prompt in PROMPTS:
    row = np.zeros((1, 24), np.int32)
    row[0, : 4 + len(prompt)] = [-1, -2, -3, -4, *prompt]
    log_probs = []
    for at in range(4 + len(prompt), 4 + len(prompt) + NEW):
      after = jax.nn.log_softmax(apply(variables, row)[0, at - 1])
      row[0, at] = after.argmax()
      log_probs.append(float(after.max()))
    found.append((row[0, 4 + len(prompt) :][:NEW].tolist(), log_probs))
  return found


def _stream(model, variables):
  stream = Stream(model, variables)
  return [list(stream(prompt, **SAME)) for prompt in PROMPTS]


def _serve(model, variables):
  requests = [Request(prompt, NEW) for prompt in PROMPTS]
  done = serve(model, variables, requests, eos_ids=(), batch_size=2)
  return [c.tokens for c in sorted(done, key=lambda c: c.prompt)]


WAYS = {
  "generate": lambda m, v: [c.tokens for c in generate(m, v, PROMPTS, **SAME)],
  "stacks": lambda m, v: [c.tokens for c in generate(m, v, PROMPTS, unrolled=False, **SAME)],
  "stream": _stream,
  "serve": _serve,
  "beams": lambda m, v: [c.tokens for c in beam_search(m, v, PROMPTS, num_beams=1, **SAME)],
  "contrastive": lambda m, v: [
    c.tokens for c in contrastive_search(m, v, PROMPTS, penalty_alpha=0, top_k=2, **SAME)
  ],
  "speculate": lambda m, v: [
    c.tokens for c in speculate(m, v, PROMPTS, draft=drop_layers(m, v, [1]), **SAME).completions
  ],
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write(led, expected, way):
  assert WAYS[way](*led) == [tokens for tokens, _ in expected]
  assert len({token for tokens, _ in expected for token in tokens}) > 4


def test_scores(led, expected):
  found = score(*led, [*PROMPTS, PROMPTS[0]], [*(tokens for tokens, _ in expected), [1]])
  for log_probs, (_, wanted) in zip(found, expected, strict=False):
    np.testing.assert_allclose(log_probs, wanted, atol=5e-5)


def test_penalties_do_not_count_virtual_tokens(led):
  """Ids -1 to -4 are no repetition of the last tokens of the vocabulary."""
  sampler = Sampler(repetition_penalty=1e6)
  (completion,) = generate(*led, [PROMPTS[0]], sampler, max_new_tokens=NEW, eos_ids=())
  model, variables = led
  tokens, apply = [-1, -2, -3, -4, *PROMPTS[0]], jax.jit(model.apply)
  for token in completion.tokens:
    row = np.zeros((1, 24), np.int32)
    row[0, : len(tokens)] = tokens
    logits = np.array(apply(variables, row)[0, len(tokens) - 1])
    seen = [t for t in tokens if t >= 0]
    logits[seen] = np.where(logits[seen] < 0, logits[seen] * 1e6, logits[seen] / 1e6)
    assert token == logits.argmax()
    tokens.append(token)


def test_adapters_take_positions(led):
  """Of 27, 7 are ahead."""
  prompt = [1] * 14
  assert len(generate(*led, [prompt], max_new_tokens=6, eos_ids=())[0].tokens) == 6
  message = "14 tokens, which with max_new_tokens 7 and the adapters' 7 positions exceeds"
  for way in (generate, lambda *args, **kwargs: Stream(*args[:2])(args[2][0], **kwargs)):
    with pytest.raises(ValueError, match=message):
      way(*led, [prompt], max_new_tokens=7, eos_ids=())
  with pytest.raises(ValueError, match="take 28 positions; the model has 27"):
    score(*led, [prompt], [[1] * 8])
  with pytest.raises(ValueError, match="holds token -1"):
    generate(*led, [[-1, 5]], **SAME)
  model, variables = led
  draft = drop_layers(model, {"params": variables["params"]}, [0])
  with pytest.raises(ValueError, match="the draft has 0 virtual tokens and the model 4"):
    speculate(model, variables, PROMPTS, draft=draft, **SAME)
