"""The chain against torch's AdamW and clip, and the rules of weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from configs import base
from research.core import tree
from research.core.config import Config, ConfigError
from research.optim import build

SHAPES = {"params/layers/mlp/up_proj/kernel": (2, 5, 4), "params/layers/mlp/up_proj/bias": (2, 4)}


def _section(**changes):
  section = {"schedule": {"name": "linear"}, "learning_rate": 0.05, "weight_decay": 0.3}
  return Config({**base.get_config().optimizer.to_dict(), **section, **changes}, "optimizer")


def _random(rng, scale=1.0):
  flat = {path: rng.normal(size=shape) * scale for path, shape in SHAPES.items()}
  return tree.unflatten({path: jnp.asarray(v, jnp.float32) for path, v in flat.items()})


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_adamw_and_clip_are_torch_s(clip_norm):
  steps, rng = 12, np.random.default_rng(0)
  params = _random(rng)
  optimizer, schedule = build.build(_section(clip_norm=clip_norm), params, steps)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  theirs = {
    path: torch.nn.Parameter(torch.tensor(np.asarray(leaf)))
    for path, leaf in tree.flatten(params).items()
  }
  adamw = torch.optim.AdamW(
    [
      {"params": [leaf], "weight_decay": 0.3 if path.endswith("kernel") else 0.0}
      for path, leaf in theirs.items()
    ],
    lr=0.05,
  )
  clipped = 0
  for step in range(steps):
    # Norms from far below the clip to far above it.
    gradients = _random(rng, scale=10.0 ** rng.uniform(-2.5, 1))
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    for path, gradient in tree.flatten(gradients).items():
      theirs[path].grad = torch.tensor(np.asarray(gradient))
    if clip_norm:
      clipped += bool(torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm) > clip_norm)
    for group in adamw.param_groups:
      group["lr"] = float(schedule(step))
    adamw.step()
  assert clipped not in (0, steps) or not clip_norm
  for path, ours in tree.flatten(params).items():
    np.testing.assert_allclose(ours, theirs[path].detach().numpy(), rtol=2e-5, atol=2e-6)


def test_moments_are_float32_and_the_states_go_by_name():
  optimizer, _ = build.build(_section(), _random(np.random.default_rng(0)), 10)
  flat = tree.flatten(jax.eval_shape(optimizer.init, _random(np.random.default_rng(0))))
  moments = {p: leaf for p, leaf in flat.items() if p.startswith(("adam/mu/", "adam/nu/"))}
  assert set(moments) == {f"adam/{m}/{path}" for m in ("mu", "nu") for path in SHAPES}
  assert {leaf.dtype for leaf in moments.values()} == {jnp.dtype("float32")}


def _shapes(*paths):
  return tree.unflatten({path: jax.ShapeDtypeStruct((2, 2), jnp.float32) for path in paths})


def test_matrices_decay_by_default():
  decays = {
    "params/embed/embedding": False,
    "params/layers/attention/q_proj/kernel": True,
    "params/layers/attention/q_proj/bias": False,
    "params/layers/mlp_norm/scale": False,
    "params/lm_head/kernel": True,
    "adapters/layers/attention/q_proj/kernel/a": True,
    "adapters/layers/attention/q_proj/kernel/b": True,
    "adapters/layers/attention/q_proj/kernel/magnitude": False,
    "adapters/layers/attention/k_proj/kernel/scale": False,
    "adapters/layers/attention/k_proj/kernel/lambda_b": False,
  }
  assert tree.flatten(build.decay_mask((), _shapes(*decays))) == decays


def test_rules_of_decay():
  shapes = _shapes("params/a/kernel", "params/b/kernel", "params/b/bias")
  mask = build.decay_mask(((".*/a/.*", False), (".*/kernel", True), (".*", False)), shapes)
  assert tree.flatten(mask) == {
    "params/a/kernel": False,
    "params/b/kernel": True,
    "params/b/bias": False,
  }
  with pytest.raises(ConfigError, match="weight_decay_mask: rule '.*/c/.*' matches none"):
    build.decay_mask(((".*/c/.*", False), (".*", True)), shapes)
  with pytest.raises(ConfigError, match="params/b/bias"):
    build.decay_mask(((".*/kernel", True),), shapes)


def test_an_unknown_schedule_is_named():
  with pytest.raises(ConfigError, match="optimizer.schedule.name is 'cosin'"):
    build.build(_section(schedule={"name": "cosin"}), _shapes("params/a/kernel"), 10)


def test_lora_plus_is_another_rate_of_b():
  """As AdamW with two groups, of which the second has a higher rate, in its decay, too."""
  rng, steps = np.random.default_rng(0), 4
  site = "adapters/layers/mlp/up_proj/kernel"
  shapes = {f"{site}/a": (2, 5, 3), f"{site}/b": (2, 3, 4), "params/lm_head/kernel": (5, 7)}

  def random():
    flat = {path: rng.normal(size=shape) for path, shape in shapes.items()}
    return tree.unflatten({path: jnp.asarray(v, jnp.float32) for path, v in flat.items()})

  params = random()
  optimizer, schedule = build.build(_section(lora_plus_ratio=16.0, clip_norm=0.0), params, steps)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  theirs = {
    path: torch.nn.Parameter(torch.tensor(np.asarray(leaf)))
    for path, leaf in tree.flatten(params).items()
  }
  groups = [{"params": [leaf], "b": path.endswith("/b")} for path, leaf in theirs.items()]
  adamw = torch.optim.AdamW(groups, weight_decay=0.3)
  for step in range(steps):
    gradients = random()
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    for path, gradient in tree.flatten(gradients).items():
      theirs[path].grad = torch.tensor(np.asarray(gradient))
    for group in adamw.param_groups:
      group["lr"] = float(schedule(step)) * (16 if group["b"] else 1)
    adamw.step()
  for path, ours in tree.flatten(params).items():
    np.testing.assert_allclose(ours, theirs[path].detach().numpy(), rtol=2e-5, atol=2e-6)


def test_without_a_ratio_the_chain_is_as_it_was():
  shapes = _shapes("adapters/layers/mlp/up_proj/kernel/b")
  optimizer, _ = build.build(_section(), shapes, 10)
  assert set(jax.eval_shape(optimizer.init, shapes)) == {
    "clip",
    "adam",
    "weight_decay",
    "learning_rate",
  }
  with pytest.raises(ConfigError, match="lora_plus_ratio is of the b of LoRA, and none trains"):
    build.build(_section(lora_plus_ratio=2.0), _shapes("params/lm_head/kernel"), 10)
