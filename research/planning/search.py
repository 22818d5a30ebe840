"""The mesh, the recomputation and the batch with which a run goes fastest, among those that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from research.core import config as config_lib
from research.nn import remat as remat_lib
from research.planning import estimate, outline
from research.planning.estimate import Plan

_TENSOR = (1, 2, 4, 8)
_GAIN = 1.02  # for less a larger batch is not worth it
Changes = dict[str, Any]


def search(
  config: config_lib.Config,
  topology: str,
  devices: Sequence[Any],
  say: Callable[[str], None] = print,
) -> tuple[Changes, Plan]:
  """The changes of `config` with the most tokens a second, and their plan.

  First each mesh is taken with the config's batch and the least recomputation that fits
  (`nn.remat.CHOICES`); then, on the best mesh, batches of twice the size while they fit and pay,
  with no less recomputation than the batch before had to have. These are compiled
  quickly, which tells memory, and are compared by what bounds them: products at the
  peak's rate, bytes at HBM's or collectives at the links'. The last one is planned in full.

  Args:
    say: is told each that is tried.

  Raises:
    ConfigError: none fits.
  """
  best: tuple[Changes, Plan] | None = None
  for mesh in _meshes(config, len(devices)):
    tried = _first_that_fits(config, topology, devices, mesh, say)
    if tried and (best is None or _rate(tried[1]) > _rate(best[1])):
      best = tried
  if best is None:
    raise config_lib.ConfigError(
      f"no mesh of {topology} has room for a batch of {config.train.batch_size}; make it smaller"
    )
  while True:
    size = best[0].get("train.batch_size", config.train.batch_size)
    larger = {**best[0], "train.batch_size": 2 * size}
    tried = _first_that_fits(config, topology, devices, larger, say)
    if tried is None or _rate(tried[1]) < _GAIN * _rate(best[1]):
      break
    best = tried
  changes = best[0]
  return changes, estimate.make(outline.changed(config, changes), topology, devices)


def _first_that_fits(
  config: config_lib.Config,
  topology: str,
  devices: Sequence[Any],
  changes: Changes,
  say: Callable[[str], None],
) -> tuple[Changes, Plan] | None:
  """With the least recomputation that fits, from that of `changes` on if they tell it."""
  least = remat_lib.CHOICES.index(changes.get("model.remat", False))
  for remat in remat_lib.CHOICES[least:]:
    whole = {**changes, "model.remat": remat}
    told = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in whole.items())
    try:
      plan = estimate.make(outline.changed(config, whole), topology, devices, quickly=True)
    except config_lib.ConfigError as error:
      say(f"{told}: {error}")
      return None
    if plan.fits:
      say(f"{told}: {plan.total / 2**30:.1f} GiB, at most {_rate(plan):,.0f} tokens/s")
      return whole, plan
    say(f"{told}: does not fit")
  return None


def _rate(plan: Plan) -> float:
  """Tokens a second, by what bounds them."""
  products = plan.program_flops / (plan.devices * plan.chip.flops)
  bound = max(products, plan.bytes / plan.chip.bandwidth, plan.collective_seconds)
  return plan.tokens / bound


def _meshes(config: config_lib.Config, devices: int) -> Iterator[Changes]:
  """`tensor` of several sizes; `sequence` as it is, `fsdp` the rest."""
  sequence = max(config.mesh.sequence, 1)
  for tensor in _TENSOR:
    if devices % (tensor * sequence) == 0:
      fsdp = devices // (tensor * sequence)
      yield {"mesh.data": 1, "mesh.fsdp": fsdp, "mesh.tensor": tensor, "mesh.sequence": sequence}
