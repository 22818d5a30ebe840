"""Losses of preference pairs by name, and weighted mixtures of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from research.core import config
from research.losses import dpo, reference_free
from research.losses.pairs import PairLoss, Pairs


def build(section: Mapping[str, Any]) -> PairLoss:
  """The loss that `section` names: `{"name": "sigmoid", "beta": 0.1}`.

  Raises:
    ConfigError: a name that is not in `LOSSES`, or a setting that the loss does not take.
  """
  return config.call(LOSSES, section)


def mixture(*, parts: Sequence[Mapping[str, Any]]) -> PairLoss:
  """The weighted sum of several losses, as RPO is of `sigmoid` and `sft`.

  Rewards and their metrics are those of the first part.

  Args:
    parts: sections of `build`, each with a `weight`, which is 1 where it is left out.
  """
  if not parts:
    raise ValueError("a mixture needs parts")
  weights = [part.get("weight", 1.0) for part in parts]
  losses = [build({key: part[key] for key in part if key != "weight"}) for part in parts]
  if any(loss.prompts for loss in losses):
    raise ValueError("a mixture's parts learn completions alone; leave 'prompts' out")

  def mixed(pairs: Pairs) -> jax.Array:
    return sum(weight * loss(pairs) for weight, loss in zip(weights, losses, strict=True))

  reference = any(loss.reference for loss in losses)
  return PairLoss(mixed, losses[0].beta, reference, losses[0].averaged)


LOSSES: dict[str, Callable[..., PairLoss]] = {
  "aot": dpo.aot,
  "aot_unpaired": dpo.aot_unpaired,
  "apo_down": dpo.apo_down,
  "apo_zero": dpo.apo_zero,
  "bco_pair": dpo.bco_pair,
  "cpo": reference_free.cpo,
  "discopop": dpo.discopop,
  "exo_pair": dpo.exo_pair,
  "hinge": dpo.hinge,
  "ipo": dpo.ipo,
  "mixture": mixture,
  "nca_pair": dpo.nca_pair,
  "orpo": reference_free.orpo,
  "robust": dpo.robust,
  "sft": dpo.sft,
  "sigmoid": dpo.sigmoid,
  "sigmoid_norm": dpo.sigmoid_norm,
  "simpo": reference_free.simpo,
  "sppo_hard": dpo.sppo_hard,
}
