"""The chunked loss against plain logits of everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.products import matmul
from research.losses import divergences
from research.losses.distillation import Kept, Teacher, chunked, keep

KEYS = jax.random.split(jax.random.key(0), 8)
HIDDEN = jax.random.normal(KEYS[0], (3, 11, 8))
HEAD = {
  "kernel": jax.random.normal(KEYS[1], (8, 30)),
  "bias": jax.random.normal(KEYS[2], (30,)),
}
TEACHER_HIDDEN = jax.random.normal(KEYS[3], (3, 11, 6))
TEACHER_HEAD = {
  "kernel": jax.random.normal(KEYS[4], (6, 30)),
  "bias": jax.random.normal(KEYS[5], (30,)),
}
TARGETS = jax.random.randint(KEYS[6], (3, 11), 0, 30)
WEIGHTS = jnp.where(jax.random.uniform(KEYS[7], (3, 11)) > 0.6, 0.7, 0.0)


def head(variables, hidden):
  return hidden @ variables["kernel"] + variables["bias"]


TEACHER = Teacher(head, TEACHER_HEAD, TEACHER_HIDDEN)


def plain(variables, hidden, share, temperature, k=None):
  """The same of all logits at one time: forward KL, times the square of the temperature."""
  logits, teacher = head(variables, hidden), head(TEACHER_HEAD, TEACHER_HIDDEN)
  q = jax.nn.softmax(teacher / temperature)
  p = jax.nn.softmax(logits / temperature)
  if k is not None:
    ids = jnp.argsort(-q, axis=-1)[..., :k]
    p, q = (jnp.take_along_axis(x, ids, -1) for x in (p, q))
    p, q = (jnp.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
  far = temperature**2 * (q * jnp.log(q / p)).sum(-1)
  losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), TARGETS[..., None], -1)[..., 0]
  mixed = (share * far + (1 - share) * losses) * WEIGHTS
  told = {
    "loss": mixed,
    "divergence": far * WEIGHTS,
    "cross_entropy": losses * WEIGHTS,
    "accuracy": (logits.argmax(-1) == TARGETS) * WEIGHTS,
  }
  return mixed.sum(), told


def close(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.parametrize(
  ("chunk_tokens", "share", "temperature", "k"),
  [(5, 0.3, 2.0, None), (1000, 1.0, 0.7, None), (5, 0.3, 2.0, 4), (16, 1.0, 1.0, 15)],
)
def test_value_what_is_told_and_gradients(chunk_tokens, share, temperature, k):
  teacher = TEACHER
  if k is not None:
    teacher = keep(head, TEACHER_HEAD, TEACHER_HIDDEN, k, temperature=temperature, chunk_tokens=4)
    assert teacher.ids.shape == teacher.log_probs.shape == (3, 11, k)

  def ours(variables, hidden):
    return chunked(
      head,
      variables,
      hidden,
      teacher,
      WEIGHTS,
      divergence=divergences.forward_kl(),
      temperature=temperature,
      squared=True,
      targets=TARGETS,
      share=share,
      chunk_tokens=chunk_tokens,
    )

  def theirs(variables, hidden):
    return plain(variables, hidden, share, temperature, k)

  got, want = (
    jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(HEAD, HIDDEN) for loss in (ours, theirs)
  )
  close(got, want)


def value_of(variables, hidden, teacher=TEACHER, weights=WEIGHTS, **settings):
  """`chunked`'s sum, by settings that are quick to compile."""
  settings = {
    "divergence": divergences.reverse_kl(),
    "temperature": 1.0,
    "squared": False,
    "chunk_tokens": 18,
  } | settings
  return chunked(head, variables, hidden, teacher, weights, **settings)[0]


def test_a_temperature_of_the_step_and_its_square():
  def plainly(hidden):
    p, q = (
      jax.nn.log_softmax(head(*side) / 3.0)
      for side in ((HEAD, hidden), (TEACHER_HEAD, TEACHER_HIDDEN))
    )
    return ((jnp.exp(p) * (p - q)).sum(-1) * WEIGHTS).sum()

  @jax.jit
  def gradients(step):
    return [
      jax.grad(lambda hidden, s=squared: value_of(HEAD, hidden, temperature=1.0 + step, squared=s))(
        HIDDEN
      )
      for squared in (False, True)
    ]

  bare, squared = gradients(2)
  np.testing.assert_allclose(bare, jax.jit(jax.grad(plainly))(HIDDEN), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(squared, 9 * bare, rtol=1e-5, atol=1e-5)


def test_a_teacher_that_is_the_student_is_a_constant():
  """Of shared variables the student's part alone is differentiated; both equal: no gradient."""

  def ours(variables, hidden):
    return value_of(variables, hidden, Teacher(head, variables, hidden))

  value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(HEAD, HIDDEN)
  np.testing.assert_allclose(value, 0, atol=1e-5)
  jax.tree.map(lambda x: np.testing.assert_allclose(x, 0, atol=1e-5), gradients)

  def shared_head(variables, hidden):
    return value_of(variables, hidden, Teacher(head, variables, hidden[:, ::-1]))

  def fixed(variables, hidden):
    return value_of(variables, hidden, Teacher(head, HEAD, HIDDEN[:, ::-1]))

  close(*(jax.jit(jax.grad(loss, (0, 1)))(HEAD, HIDDEN) for loss in (shared_head, fixed)))


def test_no_weight_no_loss():
  value, gradient = jax.value_and_grad(
    lambda hidden: value_of(HEAD, hidden, weights=jnp.zeros_like(WEIGHTS))
  )(HIDDEN)
  assert value == 0 and not gradient.any()


def test_products_of_the_program():
  """Half-precision operands into float32; none for a frozen head, and no logits of all tokens."""

  def half_head(variables, hidden):
    return matmul(hidden, variables["kernel"].astype(hidden.dtype), (2, 0))

  teacher = Teacher(half_head, TEACHER_HEAD, TEACHER_HIDDEN.astype(jnp.bfloat16))

  def ours(variables, hidden):
    return chunked(
      half_head,
      variables,
      hidden,
      teacher,
      WEIGHTS,
      divergence=divergences.forward_kl(),
      temperature=1.0,
      squared=True,
      chunk_tokens=3,
    )[0]

  def program(argnums):
    return jax.jit(jax.grad(ours, argnums)).lower(HEAD, HIDDEN.astype(jnp.bfloat16)).as_text()

  frozen, trained = program(1), program((0, 1))
  assert frozen.count("dot_general") == trained.count("dot_general") - 1
  assert "(tensor<3x1x8xbf16>, tensor<8x30xbf16>) -> tensor<3x1x30xf32>" in frozen
  assert "(tensor<3x1x6xbf16>, tensor<6x30xbf16>) -> tensor<3x1x30xf32>" in frozen
  assert "3x11x30x" not in trained and "33x30x" not in trained


def test_mistakes():
  other = Teacher(lambda v, h: head(v, h)[..., :7], TEACHER_HEAD, TEACHER_HIDDEN)
  with pytest.raises(ValueError, match="the teacher has 7 logits and the student 30"):
    value_of(HEAD, HIDDEN, other)
  with pytest.raises(ValueError, match="cross-entropy, which needs targets"):
    value_of(HEAD, HIDDEN, share=0.5)
  with pytest.raises(ValueError, match="between 0 and 1, not 2"):
    value_of(HEAD, HIDDEN, share=2)
  kept = Kept(jnp.zeros((3, 11, 1), jnp.int32), jnp.zeros((3, 11, 1)))
  with pytest.raises(ValueError, match="mean_squared compares logits"):
    value_of(HEAD, HIDDEN, kept, divergence=divergences.mean_squared())
