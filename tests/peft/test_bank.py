"""A bank of adapters: rows of a batch with their own, swaps, and training by tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, objectives, peft
from research.core import tree
from research.models.unrolled import unroll
from research.peft.lora import LoRA

KEY = jax.random.key(0)
LLAMA = {
  "model_type": "llama",
  "vocab_size": 31,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
  "max_position_embeddings": 32,
}
TOKENS = np.random.default_rng(0).integers(0, 31, (4, 6)).astype(np.int32)
QUERY = "layers/attention/q_proj/kernel"
# Of different ranks, in layers too, and at sites of which they share some.
RULES = {
  "math": {"target": QUERY, "rank": 3, "rank_pattern": {"layers/1/.*": 1}},
  "code": {"target": "layers/(attention/q|mlp/up)_proj/kernel", "rank": 2, "alpha": 6},
  "chat": {"target": "layers/mlp/up_proj/kernel", "rank": 1},
}


def _noisy(adapters, seed):
  draws = np.random.default_rng(seed)

  def change(path, leaf):
    if not path.endswith(("/a", "/b")):
      return leaf
    return jnp.asarray(draws.normal(size=leaf.shape) * 0.3, jnp.float32)

  def masked(lora):
    live = np.arange(lora.a.shape[-1]) < np.array(lora.ranks)[:, None]
    return lora.replace(a=lora.a * live[:, None, :], b=lora.b * live[..., None])

  noisy = tree.map_with_path(change, adapters)
  return jax.tree.map(masked, noisy, is_leaf=lambda node: isinstance(node, LoRA))


@pytest.fixture(scope="module")
def world():
  """A model, its parameters, its compiled function as a loop over layers, and named adapters."""
  model = models.build(LLAMA).clone(unroll=1)
  params = jax.jit(model.init)(KEY, TOKENS)["params"]
  params = jax.tree.map(lambda leaf: leaf * 4 if leaf.ndim > 1 else leaf, params)
  named = {
    name: _noisy(peft.attach([{"name": "lora"} | rule], params, KEY), seed)
    for seed, (name, rule) in enumerate(RULES.items())
  }
  return model, params, jax.jit(model.apply), named


ROWS = ["code", None, "math", "code"]


@pytest.fixture(scope="module")
def alone(world):
  """name -> logits of all rows with that adapter merged; None: of the base."""
  _, params, apply, named = world
  merged = {name: peft.merge(params, adapters) for name, adapters in named.items()}
  return {name: apply({"params": p}, TOKENS) for name, p in {None: params, **merged}.items()}


def _require_rows(got, alone, rows):
  largest = max(np.abs(logits).max() for logits in alone.values())
  assert np.abs(alone["code"] - alone["math"]).max() > 0.1 * largest
  for i, name in enumerate(rows):
    np.testing.assert_allclose(got[i], alone[name][i], rtol=0, atol=4e-6 * largest, err_msg=name)


def test_rows_have_their_own_and_swaps_compile_nothing(world, alone):
  model, params, _, named = world
  bank = peft.bank({name: named[name] for name in ("math", "code")}, slots=3)
  apply = jax.jit(model.apply)
  run = lambda rows: apply({"params": params, "adapters": bank.select(rows)}, TOKENS)  # noqa: E731
  _require_rows(run(ROWS), alone, ROWS)
  np.testing.assert_array_equal(run([None] * 4), alone[None])
  bank.put("chat", named["chat"])
  _require_rows(run(["chat", "code", "math", None]), alone, ["chat", "code", "math", None])
  bank.remove("math")
  bank.put("maths", named["math"])
  assert bank.names == ["maths", "code", "chat"]
  bank.put("code", named["math"])  # another under the name of one
  _require_rows(run(["chat", "code", "maths", None]), alone, ["chat", "math", "math", None])
  assert apply._cache_size() == 1
  # Through an array a layer, and a cache.
  run_model, variables = unroll(model, {"params": params, "adapters": bank.select(["maths"] * 4)})
  logits, _ = jax.jit(run_model.apply)(variables, TOKENS, cache=run_model.init_cache(4, 6))
  _require_rows(logits, alone, ["math"] * 4)


def test_tokens_of_packed_rows_have_their_own(world, alone):
  model, params, _, named = world
  bank = peft.bank(named)
  which = np.repeat(bank.numbers(ROWS), 6).reshape(2, 12)
  variables = {"params": params, "adapters": bank.select(which)}
  positions = np.tile(np.arange(6), 4).reshape(2, 12)
  segments = np.repeat([1, 2, 1, 2], 6).reshape(2, 12)
  run = jax.jit(model.apply)
  _require_rows(
    run(variables, TOKENS.reshape(2, 12), positions, segments).reshape(4, 6, -1), alone, ROWS
  )


def test_what_is_taken_is_what_was_put(world):
  _, _, _, named = world
  bank = peft.bank(named, slots=5, rank=4)
  for name, adapters in named.items():
    got, want = dict(peft.sites(bank.take(name))), dict(peft.sites(adapters))
    assert list(got) == list(want)
    for path, lora in want.items():
      assert jax.tree.structure(got[path]) == jax.tree.structure(lora), path
      for a, b in zip(jax.tree.leaves(got[path]), jax.tree.leaves(lora), strict=True):
        np.testing.assert_array_equal(a, b)
  bank.remove("code")
  with pytest.raises(ValueError, match="the bank has no adapter 'code'; it has math, chat"):
    bank.take("code")
  assert all(not np.asarray(node.b)[:, 4:8].any() for node in peft.banks(bank.adapters))


def _batch(tasks):
  """Two packed rows of two documents, of the tasks of numbers."""
  draws = np.random.default_rng(1)
  shape = (2, 12)
  return {
    "tokens": draws.integers(0, 31, shape).astype(np.int32),
    "targets": draws.integers(0, 31, shape).astype(np.int32),
    "weights": draws.uniform(0.5, 2, shape).astype(np.float32),
    "positions": np.tile(np.arange(6), 4).reshape(shape).astype(np.int32),
    "segments": np.repeat([1, 2, 1, 2], 6).reshape(shape).astype(np.int32),
    "task": np.repeat(tasks, 6).reshape(shape).astype(np.int32),
  }


def _loss(model, variables, batch, rng, step):
  """Cross-entropy by the batch's weights."""
  del rng, step
  rows = (batch["tokens"], batch["positions"], batch["segments"])
  log_probs = jax.nn.log_softmax(model.apply(variables, *rows))
  found = jnp.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
  return -jnp.sum(found * batch["weights"]), jnp.sum(batch["weights"]), {}


def test_a_mixture_trains_each_as_alone(world):
  model, params, _, _ = world
  names = ("math", "code")
  rule = {"target": QUERY, "name": "lora", "rank": 2, "alpha": 4, "each_task": names}
  adapters = peft.attach([rule], params, KEY)
  assert peft.tasks([rule]) == names
  (node,) = peft.banks(adapters)
  node = node.replace(a=node.a + 0.1, b=node.b + 0.1)
  noisy = {"layers": {"attention": {"q_proj": {"kernel": node}}}}
  # The mixture numbers its tasks the other way round than the slots.
  batch = _batch([0, 1, 1, 0])
  routed = objectives.by_task(_loss, names, ["code", "math"])

  def sums(loss):
    def of(factors, adapters, batch):
      (node,) = [node for _, node in peft.sites(adapters)]
      filled = {"layers": {"attention": {"q_proj": {"kernel": node.replace(**factors)}}}}
      return loss(model, {"params": params, "adapters": filled}, batch, None, None)[0]

    return jax.jit(jax.value_and_grad(of))

  total, grads = sums(routed)({"a": node.a, "b": node.b}, noisy, batch)
  found, run = [], sums(_loss)
  for slot in range(2):
    own = peft.taken(noisy, slot)
    (lora,) = [lora for _, lora in peft.sites(own)]
    weights = batch["weights"] * (batch["task"] == 1 - slot)
    loss, want = run({"a": lora.a, "b": lora.b}, own, batch | {"weights": weights})
    found.append(loss)
    for field, axis in (("a", 2), ("b", 1)):
      got = np.split(np.asarray(grads[field]), 2, axis=axis)[slot]
      assert np.abs(want[field]).max() > 1e-3
      np.testing.assert_allclose(got, want[field], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(total, sum(found), rtol=1e-5)
  assert {path.rpartition("/")[2] for path in peft.trainable_paths(adapters)} == {"a", "b"}
  # Where a batch has tokens of one task alone, nothing goes into the other's slot.
  _, grads = sums(routed)({"a": node.a, "b": node.b}, noisy, _batch([0, 0, 0, 0]))
  assert not np.asarray(grads["a"])[..., :2].any() and np.asarray(grads["a"])[..., 2:].any()


def test_rules_of_tasks_that_cannot_be(world):
  _, params, _, _ = world
  rule = {"target": QUERY, "name": "lora", "each_task": ("math", "code")}
  with pytest.raises(ValueError, match="each_task is for plain lora, not for {.*'dora'"):
    peft.attach([rule | {"name": "dora"}], params, KEY)
  with pytest.raises(ValueError, match="each_task is for plain lora"):
    peft.attach([rule | {"start": "pissa"}], params, KEY)
  with pytest.raises(ValueError, match="projections in layers.*'embed/embedding' is none"):
    peft.attach([rule | {"target": "embed/embedding"}], params, KEY)
  with pytest.raises(ValueError, match="a run has one list of tasks"):
    peft.tasks([rule, rule | {"each_task": ("math",)}])
  with pytest.raises(ValueError, match="names a task twice: a, a"):
    peft.tasks([rule | {"each_task": ("a", "a")}])
  with pytest.raises(ValueError, match="'../a', of which no directory can be made"):
    peft.tasks([rule | {"each_task": ("../a",)}])
  with pytest.raises(ValueError, match="the task 'maths' has no adapter .*did you mean 'math'"):
    objectives.by_task(_loss, ("math", "code"), ("code", "maths"))
  with pytest.raises(ValueError, match="need a mixture whose tasks are named: math, code"):
    objectives.by_task(_loss, ("math", "code"), ())


def test_what_a_bank_cannot_hold(world):
  _, params, _, named = world
  bank = peft.bank({"math": named["math"]})
  with pytest.raises(ValueError, match="all 1 slots of the bank are taken, by math"):
    bank.put("code", named["code"])
  with pytest.raises(ValueError, match="no place for 'math' at 'layers/mlp/up_proj/kernel'"):
    bank.put("math", named["code"])
  high = peft.attach([{"target": QUERY, "name": "lora", "rank": 5}], params, KEY)
  with pytest.raises(ValueError, match="rank 5 at .*q_proj/kernel': a slot of the bank has 3"):
    bank.put("math", high)
  other = {"layers": {"attention": {"q_proj": {"kernel": jnp.ones((3, 16, 16))}}}}
  other = peft.attach([{"target": ".*", "name": "lora", "rank": 2}], other, KEY)
  with pytest.raises(ValueError, match=r"for kernels \(2, 16, 16\) and \(3, 16, 16\)"):
    bank.put("math", other)
  ia3 = peft.attach([{"target": QUERY, "name": "ia3"}], params, KEY)
  with pytest.raises(ValueError, match="a bank holds LoRAs alone; at .* is a IA3"):
    peft.bank({"one": ia3})
  part = peft.attach([{"target": QUERY, "name": "lora", "rank": 2, "start": "olora"}], params, KEY)
  with pytest.raises(ValueError, match="is a part of its base"):
    peft.bank({"one": part})
  with pytest.raises(ValueError, match="2 adapters have no room in 1 slots"):
    peft.bank({"math": named["math"], "code": named["code"]}, slots=1)
  with pytest.raises(ValueError, match="needs an adapter"):
    peft.bank({})


def test_rows_that_cannot_be_told(world):
  model, params, _, named = world
  bank = peft.bank({"math": named["math"]})
  with pytest.raises(ValueError, match="no adapter 'maths'; did you mean 'math'"):
    bank.select(["maths"])
  with pytest.raises(ValueError, match="slots are -1, for none, to 0"):
    bank.select(np.array([1]))
  run = lambda adapters: jax.eval_shape(  # noqa: E731
    model.apply, {"params": params, "adapters": adapters}, TOKENS
  )
  with pytest.raises(ValueError, match="not told which of them acts"):
    run(bank.adapters)
  with pytest.raises(ValueError, match="told of 3 rows and the batch has 4"):
    run(bank.select(["math"] * 3))
  with pytest.raises(ValueError, match="Banked at .* cannot be merged"):
    peft.merge(params, bank.adapters)
