"""The optimizer: one flat optax chain whose parts and their states go by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax

from research.core import config as config_lib
from research.core import tree
from research.core.matrix import MEASURED, parameter_of
from research.optim import schedules

# Matrices decay; biases, gains, singular values, lookup tables, a prefix's keys and values and what
# an objective learns do not. Paths are those of the trainable tree, with their collection in front.
_DECAYED_UNLESS = re.compile(
  r".*/((bias|scale)(_\w+)?|magnitude|lambda_[bd]|e|embedding|rows|keys|values)|objective/.*"
)
_LORA_B = re.compile(r"adapters/.*/kernel/b")


def build(
  section: config_lib.Config,
  trainable: Any,
  total_steps: int,
  around: Callable[[optax.GradientTransformation], optax.GradientTransformation] | None = None,
) -> tuple[optax.GradientTransformation, schedules.Schedule]:
  """AdamW behind a clip of the global norm, and the schedule of its learning rate.

  The states of the parts are named `clip`, `adam`, `weight_decay` and `learning_rate`, and
  `lora_plus` where there is a ratio; those after the clip are within `around` if that is given.

  Args:
    section: `learning_rate`, `schedule`, `b1`, `b2`, `eps`, `weight_decay`,
      `weight_decay_mask` (rules `(path regex, whether it decays)`; empty: matrices decay, biases,
      norms and embeddings do not), `clip_norm` (0 or None: no clip) and `lora_plus_ratio`, how many
      times the rate of all else that of LoRA's `b` is (LoRA+: Hayou et al. 2024, arXiv:2402.12354,
      section 4; 0: as all else).
    trainable: a tree of what trains, None elsewhere; leaves may be shapes.
    total_steps: the length of the run, in updates.
    around: of a method that trains more than by gradients (`peft.allocation`): wraps all that comes
      after the clip.

  Raises:
    ConfigError: the schedule or a rule cannot be, or there is a ratio and no `b` that trains.
  """
  with config_lib.blaming("optimizer.schedule"):
    schedule = config_lib.call(
      schedules.SCHEDULES,
      section.schedule,
      learning_rate=section.learning_rate,
      total_steps=total_steps,
    )
  parts: list[tuple[str, optax.GradientTransformation]] = []
  adam = optax.scale_by_adam(section.b1, section.b2, section.eps, mu_dtype=jnp.float32)
  parts.append(("adam", adam))
  mask = decay_mask(section.weight_decay_mask, trainable)
  parts.append(("weight_decay", optax.add_decayed_weights(section.weight_decay, mask)))
  if section.lora_plus_ratio:
    mask = _lora_b(trainable)
    parts.append(("lora_plus", optax.masked(optax.scale(section.lora_plus_ratio), mask)))
  parts.append(("learning_rate", optax.scale_by_learning_rate(schedule)))
  if around:
    parts = [("around", around(optax.named_chain(*parts)))]
  if section.clip_norm:
    parts.insert(0, ("clip", optax.clip_by_global_norm(section.clip_norm)))
  return optax.named_chain(*parts), schedule


def _lora_b(trainable: Any) -> Any:
  """A tree like `trainable` of whether a leaf is a LoRA's `b`."""
  found = {path: bool(_LORA_B.fullmatch(path)) for path in tree.flatten(trainable)}
  if not any(found.values()):
    raise config_lib.ConfigError(
      "config.optimizer.lora_plus_ratio is of the b of LoRA, and none trains; set it to 0"
    )
  return tree.map_with_path(lambda path, _: found[path], trainable)


def decay_mask(rules: Sequence[tuple[str, bool]], trainable: Any) -> Any:
  """A tree like `trainable` of whether weight decay applies.

  Args:
    rules: `(path regex, whether it decays)`, first match wins; empty for the default. What is
      measured and does not learn never does.
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
    found = {path: not _DECAYED_UNLESS.fullmatch(parameter_of(path)) for path in paths}
  return tree.map_with_path(lambda path, _: found[path] and not MEASURED.fullmatch(path), trainable)
