"""Students against models that compute the same, and against plain choices by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models
from research.core import tree
from research.models import students

LLAMA = {
  "model_type": "llama",
  "vocab_size": 31,
  "hidden_size": 16,
  "intermediate_size": 24,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "attention_bias": True,
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 31, (2, 7)), jnp.int32)
KEY = jax.random.key(0)


def _made(shape):
  model = models.build(shape).clone(unroll=1)
  params = jax.jit(model.init)(KEY, TOKENS)["params"]
  return model, jax.tree.map(
    lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params
  )


@pytest.fixture(scope="module")
def llama():
  return _made(LLAMA)


def _logits(model, params):
  return jax.jit(model.apply)({"params": params}, TOKENS)


def _cut(made, **section):
  return students.build({"name": "sliced", **section}, *made, KEY)


@pytest.mark.parametrize(
  ("count", "total", "wanted"),
  [
    (2, 30, (0, 29)),
    (15, 30, (0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27, 29)),
    (1, 4, (0,)),
  ],
)
def test_layers_are_spread_from_the_first_to_the_last(count, total, wanted):
  assert students.even(count, total) == wanted


def test_layers_that_do_nothing_can_be_left_out(llama):
  model, params = llama
  flat = tree.flatten(params)
  for path in ("layers/attention/o_proj/kernel", "layers/attention/o_proj/bias"):
    flat[path] = flat[path].at[1:3].set(0)
  flat["layers/mlp/down_proj/kernel"] = flat["layers/mlp/down_proj/kernel"].at[1:3].set(0)
  params = tree.unflatten(flat)
  for layers in (2, (0, 3)):
    student, kept = _cut((model, params), layers=layers)
    assert student.config.num_layers == 2
    np.testing.assert_allclose(_logits(student, kept), _logits(model, params), atol=2e-5)


def _groups(flat, layer):
  """The sum of squares of each of two groups of heads, and of each unit."""

  def size(name):
    return np.square(flat[f"layers/{name}_proj/kernel"][layer])

  groups = sum(size(f"attention/{n}").reshape(16, 2, -1).sum(axis=(0, 2)) for n in "qkv")
  groups += size("attention/o").reshape(2, -1).sum(axis=1)
  return groups, (size("mlp/gate") + size("mlp/up")).sum(axis=0) + size("mlp/down").sum(axis=1)


def test_what_is_cut_away_is_as_if_it_were_zero(llama):
  """The student computes what the model does whose other heads and units say nothing."""
  model, params = llama
  student, kept = _cut(llama, heads=2, mlp_size=10)
  assert (student.config.num_heads, student.config.num_kv_heads) == (2, 1)
  flat = {path: np.array(leaf) for path, leaf in tree.flatten(params).items()}
  for layer in range(4):
    groups, units = _groups(flat, layer)
    flat["layers/attention/o_proj/kernel"][layer].reshape(2, 8, 16)[np.argmin(groups)] = 0
    flat["layers/mlp/down_proj/kernel"][layer][np.argsort(-units)[10:]] = 0
  np.testing.assert_allclose(
    _logits(student, kept), _logits(model, tree.unflatten(flat)), atol=2e-5
  )


def test_scales_of_a_norm_over_all_heads_go_with_the_heads_that_stay():
  model, params = _made(LLAMA | {"model_type": "olmo2", "attention_bias": False})
  flat = {path: np.array(leaf) for path, leaf in tree.flatten(params).items()}
  student, kept = _cut((model, params), heads=2)
  for layer in range(4):
    stays = np.argmax(_groups(flat, layer)[0])
    for name, width in (("q", 8), ("k", 4)):
      wanted = flat[f"layers/attention/{name}_norm/scale"][layer].reshape(2, width)[stays]
      got = kept["layers"]["attention"][f"{name}_norm"]["scale"][layer]
      np.testing.assert_array_equal(got, wanted)
  assert np.isfinite(_logits(student, kept)).all()


def test_the_first_ones(llama):
  _, kept = _cut(llama, mlp_size=5, by="first")
  before, after = (params["layers"]["mlp"]["up_proj"]["kernel"] for params in (llama[1], kept))
  np.testing.assert_array_equal(after, before[..., :5])


def test_a_fresh_one_has_the_shape_and_other_numbers(llama):
  student, kept = _cut(llama, layers=2, heads=2, mlp_size=8)
  section = {"name": "fresh", "layers": 2, "heads": 2, "mlp_size": 8}
  other, params = students.build(section, *llama, KEY)
  assert other.config == student.config
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, kept)
  assert not np.allclose(params["embed"]["embedding"], kept["embed"]["embedding"])


def test_a_student_is_saved_as_a_model(llama, tmp_path):
  student, kept = _cut(llama, layers=(0, 1, 3), heads=2, mlp_size=10)
  models.save(tmp_path / "model", student, kept)
  again, params, _ = models.load(tmp_path / "model", unroll=1)
  assert again.config == student.config
  jax.tree.map(np.testing.assert_array_equal, params, kept)


@pytest.mark.parametrize(
  ("section", "told"),
  [
    ({"layers": 5}, "5 layers of a model that has 4"),
    ({"layers": (0, 4)}, "no layer 4; the model has 0 to 3"),
    ({"layers": (2, 1)}, "not in ascending order"),
    ({"layers": ()}, "no layers are left"),
    ({"heads": 3}, "2 share keys and stay together"),
    ({"mlp_size": 99}, "99 of a model that has 24"),
    ({"mlp_size": 9, "by": "magnitud"}, "did you mean 'magnitude'"),
    ({"width": 9}, "takes no 'width'"),
  ],
)
def test_mistakes(llama, section, told):
  with pytest.raises(ValueError, match=told):
    _cut(llama, **section)


def test_shapes_that_a_family_cannot_say():
  shape = {
    "model_type": "gpt2",
    "vocab_size": 31,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 8,
  }
  gpt2 = _made(shape)
  assert _cut(gpt2, layers=1)[0].config.num_layers == 1
  with pytest.raises(ValueError, match="head_size 4 would be read as 8"):
    _cut(gpt2, heads=1)
