"""What trains: words and patterns over parameters and adapters."""

import jax
import jax.numpy as jnp
import optax
import pytest

from research.core import sharding, tree
from research.core.config import ConfigError
from research.loop import state

VARIABLES = {
  "params": {
    "embed": {"embedding": jnp.ones((3, 2), jnp.bfloat16)},
    "lm_head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "codes": jnp.ones(2, jnp.int8),
  },
  "adapters": {"lm_head": {"kernel": {"a": jnp.ones((2, 1)), "scale": jnp.ones(())}}},
}
ADAPTER = "adapters/lm_head/kernel/a"


def _adapter_trains(path, leaf):
  return not path.endswith("scale")


def _trained(*section, variables=VARIABLES):
  keep = state.trains(section, variables, _adapter_trains)
  return set(tree.flatten(tree.partition(variables, keep)[0]))


def test_words_and_patterns():
  floats = {k: v for k, v in VARIABLES["params"].items() if k != "codes"}
  everything = {"params": floats, "adapters": VARIABLES["adapters"]}
  assert _trained("adapters") == {ADAPTER}
  assert _trained("lm_head/bias") == {"params/lm_head/bias"}
  assert _trained("adapters", ".*/bias") == {ADAPTER, "params/lm_head/bias"}
  assert _trained("all", variables=everything) == {
    ADAPTER,
    "params/embed/embedding",
    "params/lm_head/kernel",
    "params/lm_head/bias",
  }


@pytest.mark.parametrize(
  ("section", "told"),
  [
    (("lm_head/bia",), "rule 'lm_head/bia' matches none.*'lm_head/bias'"),
    (("(",), "config.trainable: .*"),
    (("codes",), "params/codes is int8"),
    ((), "nothing to train"),
  ],
)
def test_mistakes(section, told):
  with pytest.raises(ConfigError, match=told):
    _trained(*section)


def test_training_adapters_that_are_not_there():
  with pytest.raises(ConfigError, match="config.adapters is empty"):
    _trained("adapters", variables={"params": VARIABLES["params"], "adapters": {}})


def test_a_new_state_is_float32_and_has_moments_for_what_trains_alone():
  trainable, _ = tree.partition(VARIABLES, lambda path, leaf: path.startswith("params/e"))
  optimizer = optax.named_chain(("adam", optax.scale_by_adam()))
  mesh = sharding.make_mesh({**dict.fromkeys(sharding.MESH_AXES, 1), "data": -1})
  created = state.create(trainable, optimizer, mesh)
  spec = {path: (leaf.shape, str(leaf.dtype)) for path, leaf in tree.flatten(created).items()}
  assert spec == {
    "step": ((), "int32"),
    "trainable/params/embed/embedding": ((3, 2), "float32"),
    "opt_state/adam/count": ((), "int32"),
    "opt_state/adam/mu/params/embed/embedding": ((3, 2), "float32"),
    "opt_state/adam/nu/params/embed/embedding": ((3, 2), "float32"),
    "skipped": ((), "int32"),
    "skipped_in_row": ((), "int32"),
  }
  abstract = state.abstract(trainable, optimizer)
  assert jax.tree.structure(abstract) == jax.tree.structure(created)
