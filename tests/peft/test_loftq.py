"""LoftQ: what rounding took, as near as the rank allows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import models, peft, quant
from research.core import config as config_lib
from research.core import matrix

LLAMA = {
  "model_type": "llama",
  "vocab_size": 258,
  "hidden_size": 16,
  "intermediate_size": 32,
  "num_hidden_layers": 2,
  "num_attention_heads": 2,
}
RULE = {"target": "layers/mlp/.*", "name": "lora", "rank": 3, "alpha": 12, "start": "loftq"}
NF4 = {"target": "layers/mlp/.*", "kind": "nf4", "group": 16}


@pytest.fixture(scope="module")
def params():
  model = models.build(LLAMA)
  return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def test_it_is_the_nearest_matrix_of_its_rank(params):
  adapters = peft.attach([{**RULE, "rank_pattern": {"layers/1/.*": 2}}], params, jax.random.key(1))
  held = quant.quantize(params, [NF4])
  begun = peft.moved(adapters, held, params)
  before, after = matrix.flatten(params), matrix.flatten(held)
  sites = dict(peft.sites(begun))
  assert len(sites) == 3
  for path, node in sites.items():
    lost = np.asarray(before[path] - after[path].astype(jnp.float32), np.float64)
    for layer, rank in enumerate((3, 2)):
      product = float(node.scale[layer]) * np.asarray(node.a[layer] @ node.b[layer])
      values = np.linalg.svd(lost[layer], compute_uv=False)
      left = np.linalg.norm(lost[layer] - product)
      np.testing.assert_allclose(left, np.sqrt(np.sum(values[rank:] ** 2)), rtol=1e-4)
      assert not node.a[layer, :, rank:].any()
  assert peft.trainable_paths(begun) == peft.trainable_paths(adapters)


def test_a_kernel_that_is_not_rounded(params):
  adapters = peft.attach([RULE], params, jax.random.key(1))
  up = [{**NF4, "target": "layers/mlp/up_proj/kernel"}]
  with pytest.raises(ValueError, match="the start 'loftq' makes up for rounding"):
    peft.moved(adapters, quant.quantize(params, up), params)


def test_a_run_without_rounding(params, tmp_path, byte_tokenizer):
  from configs import base
  from research.loop import learner

  models.save(tmp_path, models.build(LLAMA), params, byte_tokenizer)
  config = base.get_config()
  config.model.source = str(tmp_path)
  config.adapters = (RULE,)
  with pytest.raises(config_lib.ConfigError, match="begins as what rounding takes"):
    learner.build(config_lib.Config(config))
