"""What trains: words and patterns over parameters and adapters."""

import jax
import jax.numpy as jnp
import optax
import peft as hf_peft
import pytest
import transformers

from research import models
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


def test_biases_or_layer_norms_alone():
  """BitFit (Ben Zaken et al. 2021) and PEFT's tuning of layer norms, as many as there."""
  shape = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
  model = models.build({"model_type": "gpt2", **shape})
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  flat = tree.flatten({"params": params})

  def count(pattern):
    return sum(flat[path].size for path in _trained(pattern, variables={"params": params}))

  theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape))
  biases = [p.numel() for name, p in theirs.named_parameters() if name.endswith("bias")]
  assert count(".*/bias") == sum(biases)
  config = hf_peft.LNTuningConfig(target_modules=["ln_1", "ln_2", "ln_f"])
  tuned = hf_peft.get_peft_model(theirs, config)
  assert count(".*norm/.*") == tuned.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
  ("section", "told"),
  [
    (("lm_head/bia",), "rule 'lm_head/bia' matches none.*'lm_head/bias'"),
    (("(",), "config.trainable: .*"),
    (("codes",), "is held in few bits and cannot be trained; its scales can"),
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
