"""The objective of distillation against plain logits of both models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, objectives, peft, quant
from research.core.config import ConfigError
from research.models.unrolled import unstack

SHAPE = {
  "model_type": "llama",
  "vocab_size": 37,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
KEY = jax.random.key(0)


def _model(seed, **shape):
  model = models.build(SHAPE | shape).clone(unroll=1)
  params = jax.jit(model.init)(KEY, jnp.zeros((1, 1), jnp.int32))["params"]
  return model, jax.tree.map(
    lambda x: x + 0.2 * jax.random.normal(jax.random.key(seed), x.shape), params
  )


@pytest.fixture(scope="module")
def world():
  student, params = _model(1)
  teacher, theirs = _model(2, hidden_size=8, num_hidden_layers=3)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 37, (2, 9)).astype(np.int32)
  batch = {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": (rng.random((2, 9)) * (rng.random((2, 9)) < 0.7)).astype(np.float32),
    "segments": np.array([[1] * 9, [1] * 4 + [2] * 5], np.int32),
    "positions": np.array([np.arange(9), [*range(4), *range(5)]], np.int32),
    "task": np.array([[1] * 9, [0] * 4 + [1] * 5], np.int32),
  }
  variables = {"params": params, "adapters": {}, "teacher": {"params": theirs, "adapters": {}}}
  return student, teacher, variables, batch


def _close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def _build(student, teacher, tasks=(), **section):
  lesson = objectives.Lesson(student, teacher, 11, 0)
  return objectives.build({"name": "distillation", "chunk_tokens": 5, **section}, tasks, lesson)


def _logits(model, variables, batch):
  return model.apply(variables, batch["tokens"], batch["positions"], batch["segments"])


def _plain(world, share, temperature):
  """Reverse KL times the temperature's square, and cross-entropy: of each token, `[B, S]`."""
  student, teacher, variables, batch = world

  def terms(params):
    ours = _logits(student, {"params": params}, batch)
    theirs = _logits(teacher, variables["teacher"], batch)
    p, q = (jax.nn.log_softmax(x / temperature) for x in (ours, theirs))
    far = temperature**2 * (jnp.exp(p) * (p - q)).sum(-1)
    losses = jax.nn.log_softmax(ours)
    losses = -jnp.take_along_axis(losses, batch["targets"][..., None], -1)[..., 0]
    mixed = share * far + (1 - share) * losses
    return jnp.sum(mixed * batch["weights"]), (mixed, far, losses)

  return jax.jit(jax.value_and_grad(terms, has_aux=True))(variables["params"])


SECTION = {
  "divergence": {"name": "reverse_kl"},
  "temperature": {"name": "linear", "start": 3.0, "end": 1.0},
  "share": 0.4,
}


def test_loss_metrics_and_gradients_at_a_step(world):
  student, teacher, variables, batch = world
  loss = _build(student, teacher, ("a", "b"), **SECTION)

  def ours(params, step):
    total, weight, metrics = loss(student, {**variables, "params": params}, batch, None, step)
    return total, (weight, metrics)

  (total, (weight, metrics)), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(
    variables["params"], 5
  )
  (want, (mixed, far, losses)), slopes = _plain(world, 0.4, 2.0)
  np.testing.assert_allclose(total, want, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, slopes
  )
  weights = batch["weights"]
  assert weight == weights.sum()
  for name, each in (("divergence", far), ("cross_entropy", losses)):
    np.testing.assert_allclose(
      metrics[f"distillation/{name}"][0], (each * weights).sum(), rtol=1e-5
    )
  np.testing.assert_allclose(metrics["distillation/temperature"][0] / weight, 2.0, rtol=1e-6)
  of_b = np.where(batch["task"] == 1, mixed * weights, 0).sum()
  np.testing.assert_allclose(metrics["loss/b"][0], of_b, rtol=1e-5)
  assert {"accuracy", "accuracy/a", "distillation/divergence/a"} <= set(metrics)


def test_evaluation_is_at_the_last_temperature(world):
  student, teacher, variables, batch = world
  total = jax.jit(
    lambda: _build(student, teacher, **SECTION)(student, variables, batch, None, None)
  )
  np.testing.assert_allclose(total()[0], _plain(world, 0.4, 1.0)[0][0], rtol=1e-5)


def test_no_gradient_to_the_teacher_in_any_form(world):
  """Nor does it matter whether its layers are stacks, or arrays of their own."""
  student, teacher, variables, batch = world
  loss = _build(student, teacher)

  @jax.jit
  def gradients(theirs):
    return jax.value_and_grad(
      lambda own: loss(student, {**variables, "teacher": own}, batch, KEY, 0)[0]
    )(theirs)

  value, found = gradients(variables["teacher"])
  assert not any(leaf.any() for leaf in jax.tree.leaves(found))
  other, found = gradients(unstack(variables["teacher"]))
  np.testing.assert_allclose(value, other, rtol=1e-5)
  assert not any(leaf.any() for leaf in jax.tree.leaves(found))


def test_the_base_is_the_teacher_of_its_adapter(world):
  """On a base in few bits: the divergence is that of the logits with and without adapters."""
  student, _, variables, batch = world
  rules = [{"target": "layers/.*_proj/kernel", "kind": "int4", "group": 8}]
  params = quant.quantize(variables["params"], rules)
  rule = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}
  adapters = peft.attach([rule], variables["params"], KEY)
  bare = {"params": params, "adapters": adapters}
  loss = _build(student, student)
  run = jax.jit(lambda adapters: loss(student, bare | {"adapters": adapters}, batch, None, 0))
  np.testing.assert_allclose(run(adapters)[0], 0, atol=1e-5)
  moved = jax.tree.map(lambda x: x + 0.1, adapters)
  gradients = jax.jit(jax.grad(lambda own: run(own)[0]))(moved)
  assert any(np.any(node.b) for _, node in peft.sites(gradients))

  @jax.jit
  def plain(own):
    p = jax.nn.log_softmax(_logits(student, {"params": params, "adapters": own}, batch))
    q = jax.nn.log_softmax(_logits(student, {"params": params}, batch))
    return ((jnp.exp(q) * (q - p)).sum(-1) * batch["weights"]).sum()

  np.testing.assert_allclose(run(moved)[0], plain(moved), rtol=1e-4)


@pytest.mark.parametrize(
  ("section", "told"),
  [
    ({"share": 1.5}, "between 0 and 1, not 1.5"),
    ({"divergence": {"name": "kl"}}, "name is 'kl'"),
    ({"temperature": {"name": "linear", "start": -1.0}}, "a temperature is above 0"),
    ({"temperatur": {}}, "did you mean 'temperature'"),
  ],
)
def test_mistakes(world, section, told):
  with pytest.raises(ValueError, match=told):
    _build(*world[:2], **section)


def test_teachers_that_cannot_be(world):
  student, teacher = world[:2]
  with pytest.raises(ConfigError, match="config.teacher names none"):
    objectives.build({"name": "distillation"})
  with pytest.raises(ConfigError, match="for the objective 'distillation', not 'causal'"):
    objectives.build({"name": "causal"}, (), objectives.Lesson(student, teacher, 1, 0))
  with pytest.raises(ValueError, match="the teacher has 38 logits and the student 37"):
    _build(student, models.build(SHAPE | {"vocab_size": 38}))
