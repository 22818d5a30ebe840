"""Summands of hidden states and attention, against transformers' and against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from research import models, objectives
from research.models.unrolled import unstack
from research.models.watch import watch

SHAPE = {
  "model_type": "llama",
  "vocab_size": 37,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 32,
}
TEACHER = SHAPE | {"hidden_size": 24, "num_hidden_layers": 4, "head_dim": 4}
KEY = jax.random.key(0)


def _model(shape, seed):
  model = models.build(shape).clone(unroll=1)
  params = jax.jit(model.init)(KEY, jnp.zeros((1, 1), jnp.int32))["params"]
  return model, jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(jax.random.key(seed), x.shape), params
  )


@pytest.fixture(scope="module")
def world():
  student, params = _model(SHAPE, 1)
  teacher, theirs = _model(TEACHER, 2)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 37, (2, 7)).astype(np.int32)
  batch = {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": (rng.random((2, 7)) * (rng.random((2, 7)) < 0.7)).astype(np.float32),
    "segments": np.array([[1] * 7, [1] * 3 + [2] * 4], np.int32),
    "positions": np.array([np.arange(7), [*range(3), *range(4)]], np.int32),
  }
  variables = {"params": params, "adapters": {}, "teacher": {"params": theirs}}
  return student, teacher, variables, batch


@pytest.fixture(scope="module")
def watched(world):
  student, teacher, variables, batch = world

  def both(variables):
    found = (
      watch(model, own, batch, hidden=True, attention=True)
      for model, own in ((student, variables), (teacher, variables["teacher"]))
    )
    return [(w.output, w.stream, w.vectors) for w in found]

  ours, theirs = jax.jit(both)(variables)
  make = type(watch(student, variables, batch, hidden=False, attention=False))
  return make(student.config, *ours), make(teacher.config, *theirs)


def test_what_is_watched_is_what_transformers_gives(world, watched, tmp_path):
  student, _, variables, batch = world
  models.save(tmp_path / "model", student, variables["params"])
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / "model", attn_implementation="eager"
  )
  with torch.no_grad():  # the first row, which is one document
    out = theirs(
      torch.tensor(batch["tokens"][:1]), output_hidden_states=True, output_attentions=True
    )
  for number, wanted in enumerate(out.hidden_states):
    np.testing.assert_allclose(watched[0].hidden(number)[:1], wanted, atol=2e-5)
  for layer, wanted in enumerate(out.attentions):
    scores, mask = watched[0].scores(layer)
    maps = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf))
    np.testing.assert_allclose(maps[:1], wanted, atol=2e-5)


def test_layers_with_their_own_arrays_tell_the_same(world, watched):
  student, _, variables, batch = world
  split = unstack({"params": variables["params"]})

  @jax.jit
  def run(split):
    seen = watch(student, split, batch, hidden=True, attention=True)
    return [seen.hidden(1), seen.scores(1)[0], seen.side_by_side("values", 0)[0]]

  wanted = [watched[0].hidden(1), watched[0].scores(1)[0], watched[0].side_by_side("values", 0)[0]]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), run(split), wanted)


def _build(world, **section):
  lesson = objectives.Lesson(world[0], world[1], 3, 0)
  return objectives.build({"name": "distillation", **section}, (), lesson)


FEATURES = (
  {"name": "mean_squared", "weight": 2.0, "layers": ((0, 0), (2, 4))},
  {"name": "cosine"},
  {"name": "linear_cka", "layers": ((1, 2),)},
)
ATTENTION = (
  {"name": "map_kl", "weight": 0.5, "layers": ((0, 1),)},
  {"name": "score_mean_squared", "layers": ((0, 1),)},
  {"name": "value_relation", "heads": 2},
)


def test_summands_and_their_gradients(world, watched):
  """Sums of the plain formulas over the batch's tokens; and projections and student both learn."""
  student, _, variables, batch = world
  plain = _build(world)
  loss = _build(world, features=FEATURES, attention=ATTENTION)
  learnt = objectives.variables(loss)
  shapes = {n: {p: x.shape for p, x in one.items()} for n, one in learnt["projections"].items()}
  assert shapes == {
    "mean_squared": {"0_0": (16, 24), "2_4": (16, 24)},
    "cosine": {"1_2": (16, 24), "2_4": (16, 24)},
  }

  def run(params, objective):
    total, _, metrics = loss(
      student, {**variables, "params": params, "objective": objective}, batch, None, 0
    )
    return total, (metrics, plain(student, {**variables, "params": params}, batch, None, 0)[0])

  (total, (metrics, rest)), (slopes, projections) = jax.jit(
    jax.value_and_grad(run, (0, 1), has_aux=True)
  )(variables["params"], learnt)
  ours, theirs = watched
  weights = batch["weights"]
  wanted = {}
  for name, pairs in (("mean_squared", ((0, 0), (2, 4))), ("cosine", ((1, 2), (2, 4)))):
    found = []
    for i, j in pairs:
      x = np.asarray(ours.hidden(i) @ learnt["projections"][name][f"{i}_{j}"])
      y = np.asarray(theirs.hidden(j))
      product = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
      found.append(((x - y) ** 2).mean(-1) if name == "mean_squared" else 1 - product)
    wanted[name] = (np.mean(found, axis=0) * weights).sum()
  (x, mask), (y, _) = ours.scores(0), theirs.scores(1)
  p, q = (np.asarray(jax.nn.softmax(jnp.where(mask[:, None], s, -1e30))) for s in (x, y))
  seen = np.broadcast_to(mask[:, None], q.shape)
  kl = np.where(seen, q * (np.log(np.maximum(q, 1e-30)) - np.log(np.maximum(p, 1e-30))), 0)
  wanted["map_kl"] = (kl.sum(-1).mean(1) * weights).sum()
  squares = np.where(seen, (np.asarray(x) - np.asarray(y)) ** 2, 0).sum(-1).mean(1)
  wanted["score_mean_squared"] = (squares / np.asarray(mask).sum(-1) * weights).sum()
  for name, value in wanted.items():
    np.testing.assert_allclose(metrics[f"distillation/{name}"][0], value, rtol=2e-4, err_msg=name)
  by_name = {name: metrics[f"distillation/{name}"][0] for name in (*wanted, "linear_cka")}
  by_name["value_relation"] = metrics["distillation/value_relation"][0]
  factors = {"mean_squared": 2.0, "map_kl": 0.5}
  sums = sum(factors.get(name, 1.0) * value for name, value in by_name.items())
  np.testing.assert_allclose(total, rest + sums, rtol=1e-5)
  assert 0 < by_name["linear_cka"] < weights.sum()
  assert by_name["value_relation"] > 0
  for leaf in jax.tree.leaves((projections, slopes["layers"]["attention"])):
    assert np.any(leaf)


@pytest.mark.parametrize(
  ("section", "told"),
  [
    ({"features": ({"name": "cosine", "layers": ((1, 5),)},)}, "teacher has no hidden state 5"),
    ({"features": ({"name": "cosine", "layers": ((3, 4),)},)}, "student has no hidden state 3"),
    ({"features": ({"name": "cosine", "layers": (1, 2)},)}, "layers are pairs"),
    ({"features": ({"name": "cosin"},)}, "did you mean 'cosine'"),
    ({"features": ({"name": "cosine"}, {"name": "cosine"})}, "two summands 'cosine'"),
    ({"attention": ({"name": "map_kl", "layers": ((2, 2),)},)}, "student has no layer 2"),
    ({"attention": ({"name": "map_kl", "heads": (0, 1)},)}, "4 numbers from 0 to 3 are needed"),
    ({"attention": ({"name": "value_relation", "heads": 3},)}, "3 relation heads do not divide"),
  ],
)
def test_mistakes(world, section, told):
  with pytest.raises(ValueError, match=told):
    _build(world, **section)


def test_layers_that_cannot_be_mapped_by_themselves(world):
  student, teacher, *_ = world
  with pytest.raises(ValueError, match="too few for the student's layer 3 of 4"):
    _build((teacher, student), features=({"name": "cosine"},))
