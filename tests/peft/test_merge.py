"""What merging replaces comes back bit for bit, whatever the method and the type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import peft
from research.core import tree

KEY = jax.random.key(0)
UP, DOWN = "layers/mlp/up_proj/kernel", "layers/mlp/down_proj/kernel"
EXPERTS = "layers/mlp/experts/up_proj/kernel"
LORA = {"target": UP, "name": "lora", "rank": 2, "alpha": 3}
RULES = {
  "lora": [LORA, {"target": EXPERTS, "name": "lora", "rank": 2}],
  "dora": [{"target": UP, "name": "dora", "rank": 2}],
  "vera": [{"target": UP, "name": "vera", "rank": 5}],
  "ia3": [{"target": "layers/mlp/(up|down)_proj/kernel", "name": "ia3"}],
  "embedding": [{"target": "embed/embedding", "name": "embedding_lora", "rank": 2}],
}
SHAPES = {
  "embed/embedding": (11, 4),
  "lm_head/kernel": (4, 11),
  UP: (2, 4, 6),
  "layers/mlp/up_proj/bias": (2, 6),
  DOWN: (2, 6, 4),
  "layers/mlp/down_proj/bias": (2, 4),
  EXPERTS: (2, 3, 4, 6),
}


def _params(dtype):
  draws = np.random.default_rng(0)
  return tree.unflatten(
    {path: jnp.asarray(draws.normal(size=shape), dtype) for path, shape in SHAPES.items()}
  )


def _trained(adapters):
  """With noise in all that trains."""
  trains = peft.trainable_paths(adapters)
  noise = lambda leaf: jnp.asarray(np.random.default_rng(1).normal(size=leaf.shape), jnp.float32)  # noqa: E731
  return tree.map_with_path(lambda p, leaf: leaf + noise(leaf) * (p in trains), adapters)


def _adapters(name, params):
  if name == "stacked":
    return peft.stacked([_adapters(one, params) for one in ("dora", "lora", "ia3", "embedding")])
  if name == "ia3":  # one of the inputs stands first where it is stacked
    rules = [rule | {"feedforward": False} for rule in RULES["ia3"]]
    return _trained(peft.attach(rules, params, KEY))
  return _trained(peft.attach(RULES[name], params, KEY))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", [*RULES, "stacked"])
def test_unmerge_gives_the_bits_back(name, dtype):
  params = _params(dtype)
  adapters = _adapters(name, params)
  kept = peft.covered(params, adapters)
  merged = peft.merge(params, adapters)
  before, changed = tree.flatten(params), tree.flatten(merged)
  assert set(kept) >= {path for path in before if (before[path] != changed[path]).any()} != set()
  after = tree.flatten(peft.unmerge(merged, kept))
  assert list(after) == list(before)
  for path, leaf in before.items():
    assert after[path].dtype == dtype
    assert np.asarray(after[path]).tobytes() == np.asarray(leaf).tobytes(), path


def test_what_is_no_change_of_a_kernel_is_named():
  adapters = {"layers": {"mlp_out": peft.Adapter()}}
  for call in (peft.merge, peft.covered):
    with pytest.raises(ValueError, match="Adapter at 'layers/mlp_out' is no change of a kernel"):
      call(_params(jnp.float32), adapters)


def test_what_was_covered_in_another_model():
  params = _params(jnp.float32)
  adapters = _adapters("lora", params)
  kept = peft.covered(params, adapters)
  with pytest.raises(ValueError, match=r"up_proj/kernel' is bfloat16 .* and was float32"):
    peft.unmerge(peft.merge(_params(jnp.bfloat16), adapters), kept)
  with pytest.raises(ValueError, match="was covered and is not in the model"):
    peft.unmerge({"layers": params["layers"]["mlp"]}, kept)
