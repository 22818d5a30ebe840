"""Rotary settings in `config.json`."""

import math
from collections.abc import Mapping
from typing import Any

from research.nn.positions import Rope


def read(
  found: Mapping[str, Any], max_positions: int, *, theta: float = 10_000.0, fraction: float = 1.0
) -> Rope:
  """From `rope_parameters` (transformers 5) or `rope_scaling` (before).

  Args:
    found: the settings; empty for plain rotation.
    max_positions: `max_position_embeddings`.
    theta, fraction: what holds if `found` has no `rope_theta`, no `partial_rotary_factor`.

  Raises:
    ValueError: the rope type is unknown, or what it needs is missing.
  """
  kind = found.get("rope_type", found.get("type", "default"))
  original = int(found.get("original_max_position_embeddings") or max_positions)
  if kind == "dynamic":
    original = max_positions
  factor = found.get("factor")
  # Where a factor is absent, the lengths before and after tell it.
  factor = float(max_positions / original if factor is None else factor)
  return Rope(
    theta=float(found.get("rope_theta", theta)),
    kind=kind,
    factor=factor if kind != "default" else 1.0,
    low_freq_factor=float(found.get("low_freq_factor", 1.0)),
    high_freq_factor=float(found.get("high_freq_factor", 4.0)),
    original_max_positions=original,
    fraction=float(found.get("partial_rotary_factor", fraction)),
    magnitude=_magnitude(found, kind, factor, original),
    beta_fast=float(found.get("beta_fast") or 32.0),
    beta_slow=float(found.get("beta_slow") or 1.0),
    truncate=found.get("truncate", True),
    short_factors=tuple(found.get("short_factor") or ()),
    long_factors=tuple(found.get("long_factor") or ()),
  )


def write(rope: Rope) -> dict[str, Any]:
  """`rope_parameters`; the inverse of `read`."""
  found: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
  if rope.fraction != 1.0:
    found["partial_rotary_factor"] = rope.fraction
  if rope.kind != "default":
    found["factor"] = rope.factor
  if rope.kind in ("llama3", "yarn", "longrope"):
    found["original_max_position_embeddings"] = rope.original_max_positions
  if rope.kind in ("yarn", "longrope"):
    found["attention_factor"] = rope.magnitude
  if rope.kind == "llama3":
    found |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
  if rope.kind == "yarn":
    found |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
  if rope.kind == "longrope":
    found |= {
      "short_factor": list(rope.short_factors),
      "long_factor": list(rope.long_factors),
    }
  return found


def _magnitude(found, kind, factor, original):
  """What cosines and sines are multiplied by, from `attention_factor` or by the papers' rules."""
  if kind not in ("yarn", "longrope"):
    return 1.0
  if found.get("attention_factor") is not None:
    return float(found["attention_factor"])
  if factor <= 1:
    return 1.0
  if kind == "longrope":
    return math.sqrt(1 + math.log(factor) / math.log(original))
  above, below = found.get("mscale"), found.get("mscale_all_dim")
  if above and below:
    return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)
  return 0.1 * math.log(factor) + 1
