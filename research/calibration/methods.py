"""What is made of a layer's parameters: rounding that goes by what its projections read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from research.calibration.folds import folds
from research.core.moments import Moments
from research.models.config import StackConfig
from research.quant import awq, gptq
from research.quant.policy import Choice, rounded
from research.quant.qarray import quantize

Flat = Mapping[str, Any]


class Method(Protocol):
  """Rounds a layer.

  calibrated: whether it needs moments; if not, it is given stacks, whose layers may differ.
  """

  calibrated: bool

  def __call__(
    self,
    config: StackConfig,
    params: Flat,
    schemes: Mapping[str, Choice],
    seen: Mapping[str, Moments],
  ) -> dict[str, Any]:
    """A layer's parameters, by path within it, with a `QArray` wherever there is a scheme.

    Raises:
      ValueError: a scheme is not one that the method knows.
    """


@dataclasses.dataclass(frozen=True)
class Nearest:
  """Each number to the nearest."""

  calibrated = False

  def __call__(self, config, params, schemes, seen):
    """See `Method`."""
    del config, seen
    return dict(params) | {path: rounded(params[path], schemes[path]) for path in schemes}


@dataclasses.dataclass(frozen=True)
class GPTQ(gptq.GPTQ):
  """See `research.quant.gptq`."""

  calibrated = True

  def __call__(self, config, params, schemes, seen):
    """See `Method`."""
    del config
    found = dict(params)
    for path, scheme in schemes.items():
      found[path] = self.round(params[path], _seen(seen, path).products, scheme)
    return found


@dataclasses.dataclass(frozen=True)
class AWQ:
  """Inputs are scaled by their sizes, and ranges clipped (`research.quant.awq`).

  scale, clip: whether that is done. Ranges of queries and keys are never clipped: what they make is
    multiplied by each other, and errors with it.
  """

  scale: bool = True
  clip: bool = True

  calibrated = True

  def __call__(self, config, params, schemes, seen):
    """See `Method`."""
    found = dict(params)
    scales = {path: jnp.ones(moments.total.shape[-1]) for path, moments in seen.items()}
    for fold in folds(config, params) if self.scale else ():
      chosen = [schemes.get(path) for path in fold.readers]
      if not any(chosen):
        continue
      of = _seen(seen, next(path for path in fold.readers if path in schemes))
      by = awq.search(
        [found[path] for path in fold.readers],
        chosen,
        of.products,
        fold.tied(of.sizes / of.count),
      )
      found = fold.apply(found, by, config.norm)
      scales |= dict.fromkeys(fold.readers, by)
    for path, scheme in schemes.items():
      if self.clip and not path.endswith(("q_proj/kernel", "k_proj/kernel")):
        by = 1 / scales[path]
        products = _seen(seen, path).products * by[:, None] * by
        found[path] = awq.clipped(found[path], products, scheme)
      else:
        found[path] = quantize(found[path], scheme)
    return found


@dataclasses.dataclass(frozen=True)
class SmoothQuant:
  """Peaks of inputs are handed over to kernels, and those rounded to nearest.

  Xiao et al. 2022, arXiv:2211.10438, eq. 4: inputs are divided by `max|x|^a / max|w|^(1 - a)`. For
  schemes whose activations are rounded, too.

  alpha: a.
  """

  alpha: float = 0.5

  calibrated = True

  def __call__(self, config, params, schemes, seen):
    """See `Method`."""
    found = dict(params)
    for fold in folds(config, params):
      if not any(path in schemes for path in fold.readers):
        continue
      of = _seen(seen, next(path for path in fold.readers if path in schemes))
      wide = [jnp.max(jnp.abs(found[path].astype(jnp.float32)), axis=1) for path in fold.readers]
      largest = (of.peaks, jnp.max(jnp.stack(wide), axis=0))
      peaks, weights = (jnp.maximum(fold.tied(x, jnp.max), 1e-5) for x in largest)
      scales = peaks**self.alpha / weights ** (1 - self.alpha)
      found = fold.apply(found, scales, config.norm)
    return found | {path: quantize(found[path], schemes[path]) for path in schemes}


def require_seen(seen: Mapping[str, Any], path: str) -> Any:
  """What the kernel at `path` has read.

  Raises:
    ValueError: nothing that was watched.
  """
  if path not in seen:
    raise ValueError(
      f"{path!r} cannot be calibrated: experts are for the method 'nearest' and range 'row'"
    )
  return seen[path]


def _seen(seen: Mapping[str, Moments], path: str) -> Moments:
  """The moments of what the kernel at `path` has read.

  Raises:
    ValueError: nothing, or nothing that was watched.
  """
  moments = require_seen(seen, path)
  if not float(jax.device_get(moments.count)):
    raise ValueError("calibration data has no tokens")
  return moments


METHODS = {"nearest": Nearest, "gptq": GPTQ, "awq": AWQ, "smoothquant": SmoothQuant}
