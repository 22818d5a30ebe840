"""The optimizer: one flat optax chain whose parts and their states go by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from research.core import config as config_lib
from research.core import tree
from research.optim import schedules

# Matrices decay; biases, gains, lookup tables, a prefix's keys and values and what an objective
# learns do not. Paths are those of the trainable tree, with their collection in front.
_DECAYED_UNLESS = re.compile(r".*/((bias|scale)(_\w+)?|embedding|keys|values)|objective/.*")


def build(
  section: config_lib.Config, trainable: Any, total_steps: int
) -> tuple[optax.GradientTransformation, schedules.Schedule]:
  """AdamW behind a clip of the global norm, and the schedule of its learning rate.

  The states of the parts are named `clip`, `adam`, `weight_decay` and `learning_rate`.

  Args:
    section: `learning_rate`, `schedule`, `b1`, `b2`, `eps`, `weight_decay`,
      `weight_decay_mask` (rules `(path regex, whether it decays)`; empty: matrices decay, biases,
      norms and embeddings do not) and `clip_norm` (0 or None: no clip).
    trainable: a tree of what trains, None elsewhere; leaves may be shapes.
    total_steps: the length of the run, in updates.
  """
  with config_lib.blaming("optimizer.schedule"):
    schedule = config_lib.call(
      schedules.SCHEDULES,
      section.schedule,
      learning_rate=section.learning_rate,
      total_steps=total_steps,
    )
  parts: list[tuple[str, optax.GradientTransformation]] = []
  if section.clip_norm:
    parts.append(("clip", optax.clip_by_global_norm(section.clip_norm)))
  adam = optax.scale_by_adam(section.b1, section.b2, section.eps, mu_dtype=jnp.float32)
  parts.append(("adam", adam))
  mask = decay_mask(section.weight_decay_mask, trainable)
  parts.append(("weight_decay", optax.add_decayed_weights(section.weight_decay, mask)))
  parts.append(("learning_rate", optax.scale_by_learning_rate(schedule)))
  return optax.named_chain(*parts), schedule


def decay_mask(rules: Sequence[tuple[str, bool]], trainable: Any) -> Any:
  """A tree like `trainable` of whether weight decay applies.

  Args:
    rules: `(path regex, whether it decays)`, first match wins; empty for the default.
    trainable: the tree of what trains; paths start with the collection (`params/...`).

  Raises:
    ConfigError: a rule that matches nothing, or a path that no rule covers.
  """
  paths = list(tree.flatten(trainable))
  if rules:
    with config_lib.blaming("optimizer.weight_decay_mask"):
      found = tree.first_match(rules, paths)
    uncovered = [path for path in paths if path not in found]
    if uncovered:
      raise config_lib.ConfigError(
        f"config.optimizer.weight_decay_mask covers neither {uncovered[0]} nor "
        f"{len(uncovered) - 1} more; end it with ('.*', True) or ('.*', False)"
      )
  else:
    found = {path: not _DECAYED_UNLESS.fullmatch(path) for path in paths}
  return tree.map_with_path(lambda path, _: found[path], trainable)
