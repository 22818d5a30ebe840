"""Policies of recomputation: the same gradients, of less memory and more work, and no less."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from research import models
from research.core import config as config_lib
from research.models.unrolled import unstack
from research.nn import cudnn, remat, splash
from research.planning import flops

SHAPE = {
  "model_type": "llama",
  "vocab_size": 32,
  "hidden_size": 32,
  "intermediate_size": 128,
  "num_hidden_layers": 6,
  "num_attention_heads": 2,
  "num_key_value_heads": 1,
}
TOKENS = jax.random.randint(jax.random.key(1), (2, 256), 0, 32)


def _loss(model, params):
  return jnp.mean(model.apply({"params": params}, TOKENS) ** 2)


@pytest.fixture(scope="module")
def params():
  return models.initialize(models.build(SHAPE), jax.random.key(0))


@pytest.fixture(scope="module")
def steps(params):
  """Of each choice the FLOPs as traced, the compiled program and the gradients."""
  found = []
  for choice in remat.CHOICES:
    model = models.build(SHAPE, remat=choice, unroll=1)
    traced = jax.jit(jax.grad(functools.partial(_loss, model))).trace(params)
    compiled = traced.lower().compile()
    found.append((flops.count(traced.jaxpr)[0], compiled, compiled(params)))
  return found


def test_gradients_are_the_same(steps):
  (_, _, expected), *others = steps
  for _, _, found in others:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected
    )


def test_choices_go_from_the_least_recomputation_to_the_most(steps):
  work = [count for count, _, _ in steps]
  compiled = [program.cost_analysis()["flops"] for _, program, _ in steps]
  memory = [program.memory_analysis().temp_size_in_bytes for _, program, _ in steps]
  for figures in (work, compiled, [-size for size in memory]):
    assert all(np.diff(figures) > 0), (work, compiled, memory)
  # Plain attention's scores are computed again by any of them; a third of the step is all there is.
  assert work[-1] < 1.34 * work[0] and work[1] < 1.1 * work[0]
  assert memory[1] < 0.7 * memory[0] and memory[-1] < 0.4 * memory[0]


def _kept(model, params):
  """Bytes that the forward pass keeps, parameters aside, by JAX's own account."""
  leaves = jax.eval_shape(
    lambda p: jax.tree.leaves(jax.vjp(functools.partial(_loss, model), p)[1]), params
  )
  held = {leaf.shape for leaf in jax.tree.leaves(params)}
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.shape not in held)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_kept_is_what_has_a_name(params, dtype):
  kept = [
    _kept(models.build(SHAPE, remat=choice, unroll=1, dtype=dtype), params)
    for choice in remat.CHOICES
  ]
  item, tokens, layers = jnp.dtype(dtype).itemsize, TOKENS.size, SHAPE["num_hidden_layers"]
  # Of a token and layer: attention's output and, in float32, the sum of each of two heads; queries,
  # keys, values, o_proj's output, gate and up; what follows down_proj needs none of it.
  attended = layers * tokens * (32 * item + 2 * 4)
  projected = layers * tokens * (32 + 16 + 16 + 32 + 128 + 128) * item
  assert kept[2] - kept[3] == attended
  assert kept[1] - kept[2] == projected
  assert kept[0] > kept[1]


def test_a_straight_line_recomputes_too():
  """All layers in one piece of code, where the compiler could take one pass for the other."""

  def work(choice):
    model = models.build({**SHAPE, "num_hidden_layers": 2}, remat=choice, unroll=2)
    params = jax.eval_shape(functools.partial(models.initialize, model), jax.random.key(0))
    step = jax.jit(jax.grad(lambda p: jnp.mean(model.apply({"params": p}, TOKENS[:1, :64]) ** 2)))
    return step.lower(params).compile().cost_analysis()["flops"]

  assert work(True) > 1.15 * work(False)


@pytest.mark.parametrize("policy", remat.POLICIES)
def test_an_array_a_layer_keeps_the_same(params, policy):
  model = models.build(SHAPE, remat=policy, unroll=1)
  split = unstack({"params": params})
  traced = [
    flops.count(jax.jit(jax.grad(functools.partial(_loss, one))).trace(p).jaxpr)[0]
    for one, p in ((model, params), (model, split["params"]))
  ]
  assert traced[0] == traced[1]


def _traced(kernel, q, k):
  """The value and the derivative of a kernel under each choice."""
  for choice in remat.CHOICES:
    attend = remat.checkpointed(jax.checkpoint, lambda *a: jnp.sum(kernel(*a)), choice)
    yield jax.make_jaxpr(jax.value_and_grad(attend, (0, 1, 2)))(q, k, k)


def test_the_kernel_for_tpus_is_not_run_again():
  q, k = jnp.zeros((1, 1, 2, 128, 128)), jnp.zeros((1, 1, 128, 128))
  segments = jnp.ones((1, 128), jnp.int32)
  kernel = functools.partial(splash.attend, segments=segments, causal=True, interpret=True)
  work = [flops.count(jaxpr)[1] for jaxpr in _traced(kernel, q, k)]
  # Of products two forward, and seven in the two kernels of the backward pass.
  assert work[0] == work[1] == work[2] == work[3] * 9 / 11 > 0


def test_the_kernel_for_gpus_is_not_run_again(monkeypatch):
  # Traced and not run: what asks for the GPU and its library gets an answer.
  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
  monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda *_: True)
  q, k = jnp.zeros((1, 1, 2, 64, 16), jnp.bfloat16), jnp.zeros((1, 1, 64, 16), jnp.bfloat16)
  kernel = functools.partial(cudnn.attend, mask=jnp.ones((1, 64, 64), bool), causal=True, scale=1.0)
  runs = [str(jaxpr).count("attention_fwd_wrapper[") for jaxpr in _traced(kernel, q, k)]
  assert runs == [1, 1, 1, 2]


def test_a_wrong_name_is_told():
  with pytest.raises(ValueError, match="did you mean 'products'.*: products, attention"):
    jax.eval_shape(models.build(SHAPE, remat="product").init, jax.random.key(0), TOKENS)
  with pytest.raises(ValueError, match="remat is 1; it is False, True or"):
    remat.require(1)


@pytest.mark.parametrize("choice", remat.CHOICES)
def test_a_flag_gives_each_choice(choice):
  file = "--config=configs/pod_qlora_8b.py"
  config = config_lib.from_command_line([file, f"--config.model.remat={choice}"])
  assert config.model.remat is choice or config.model.remat == choice != True  # noqa: E712
