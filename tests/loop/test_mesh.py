"""The step on eight forced host devices gives what it gives on one."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from configs import base
from research import models, objectives, peft
from research.core import sharding, tree
from research.core.config import Config
from research.loop import state, step
from research.optim import build

SIZES = {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2}
model = models.build({
  "model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 16,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
  "tie_word_embeddings": True}, unroll=1)
rows = jax.random.randint(jax.random.key(1), (8, 17), 0, 16)
batch = {
  "tokens": rows[:, :-1], "targets": rows[:, 1:],
  "weights": jax.random.uniform(jax.random.key(2), (8, 16)),
  "segments": jnp.ones((8, 16), jnp.int32),
  "positions": jnp.broadcast_to(jnp.arange(16), (8, 16))}
params = jax.jit(model.init)(jax.random.key(0), batch["tokens"])["params"]
rule = {"target": "layers/.*_proj/kernel", "name": "lora", "rank": 2}
adapters = peft.attach([rule], params, jax.random.key(3))
variables = {"params": params, "adapters": adapters}
trainable, frozen = tree.partition(
  variables, lambda path, _: path.endswith(("/a", "/b", "norm/scale")))
optimizer, schedule = build.build(Config(base.get_config().optimizer.to_dict()), trainable, 10)
run = step.make_step(
  model, objectives.build({"name": "causal"}), optimizer, schedule, accumulate_steps=2, seed=0)

start = state._initial(trainable, optimizer)
plain = jax.jit(run)(start, frozen, batch)

mesh = sharding.make_mesh(SIZES)
shapes = state.abstract(trainable, optimizer)
places = sharding.shardings(mesh, shapes)
spread = jax.jit(run, donate_argnums=0, out_shardings=(places, None))
frozen = jax.device_put(frozen, sharding.shardings(mesh, frozen))
batch = {n: jax.device_put(r, sharding.batch_sharding(mesh, r.ndim)) for n, r in batch.items()}
result = spread(state.create(trainable, optimizer, mesh), frozen, batch)

flat = tree.flatten(result)
for path, leaf in tree.flatten(plain).items():
  np.testing.assert_allclose(flat[path], leaf, rtol=2e-4, atol=2e-6, err_msg=path)
gate = frozen["params"]["layers"]["mlp"]["gate_proj"]["kernel"]
split = SIZES["fsdp"] * SIZES["tensor"]
assert gate.addressable_shards[0].data.size * split == gate.size
moment = result[0].opt_state["adam"].mu["adapters"]["layers"]["mlp"]["gate_proj"]["kernel"].b
assert moment.addressable_shards[0].data.size * SIZES["tensor"] == moment.size
print("equal")
"""


def test_a_spread_step_is_the_step():
  environment = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
    "JAX_PLATFORMS": "cpu",
  }
  done = subprocess.run(
    [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "equal\n"
