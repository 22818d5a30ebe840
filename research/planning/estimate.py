"""The plan of a run: its step compiled for devices that need not be here, and what that tells."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax

from research.core import chips, matrix, sharding
from research.core import config as config_lib
from research.loop import problem, program
from research.loop import state as state_lib
from research.planning import flops, hlo, memory, outline

_LEVEL = "jax_optimization_level"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a step of a run needs on each device, and how long it should take.

  memory: bytes a device by kind; what goes in, what is kept for the backward pass, gradients,
    other temporaries, the padding of layouts, the program. Where it does not fit, what is known
    without the compiler.
  total: their sum. limit: what a device has.
  fits: the compiler found room. why: what it said if not.
  tokens: of a step. trained, parameters: numbers.
  model_flops: of a step, as training needs them (`loop.throughput`); program_flops: that the
    program's products do, recomputation and all; both over all devices.
  bytes, sent: read and written in HBM, and sent by collectives, a device and step.
  compute_seconds: the compiler's cycles, and kernels at the peak's rate.
  collective_seconds: `sent` over all links of a chip.
  parts: shares of the cycles.
  replicated: share of the parameters' bytes that all devices hold whole.
  unread: what the program's text did not tell, and what it was taken for.
  """

  topology: str
  chip: chips.Chip
  devices: int
  mesh: dict[str, int]
  memory: dict[str, float]
  total: float
  limit: float
  fits: bool
  why: str
  tokens: int
  trained: int
  parameters: int
  model_flops: float
  program_flops: float
  bytes: float
  sent: dict[str, float]
  compute_seconds: float
  collective_seconds: float
  parts: dict[str, float]
  replicated: float
  unread: tuple[str, ...]
  compile_seconds: float

  @property
  def seconds(self) -> float:
    """A step, where collectives run beside the rest."""
    return max(self.compute_seconds, self.collective_seconds)

  @property
  def tokens_per_second(self) -> float:
    """Over all devices, padding included."""
    return self.tokens / self.seconds

  @property
  def utilisation(self) -> float:
    """Model FLOPs by what the devices could do in that time."""
    return self.model_flops / (self.seconds * self.devices * self.chip.flops)

  @property
  def serial_utilisation(self) -> float:
    """The same if no collective ran beside the rest."""
    seconds = self.compute_seconds + self.collective_seconds
    return self.model_flops / (seconds * self.devices * self.chip.flops)

  def dollars(self, price: float, tokens: float) -> float:
    """What `tokens` cost at `price` a chip and hour."""
    chip_count = self.devices / self.chip.per_chip
    return tokens / self.tokens_per_second / 3600 * chip_count * price

  def days(self, tokens: float) -> float:
    """How long `tokens` take."""
    return tokens / self.tokens_per_second / 86400

  def bottleneck(self) -> str:
    """What most of a step beyond the model's FLOPs is spent on."""
    peak = self.devices * self.chip.flops
    if self.collective_seconds > self.compute_seconds:
      kind = max(self.sent, key=lambda name: self.sent[name])
      return f"the interconnect, with {kind}"
    lost = {
      "recomputation, or blocks that kernels skip and a plan counts": (
        self.program_flops - self.model_flops
      )
      / peak,
      "memory's bandwidth": self.bytes / self.chip.bandwidth - self.program_flops / peak,
    }
    rest = self.compute_seconds - self.program_flops / peak
    name = max(lost, key=lambda key: lost[key])
    part = max(self.parts, key=lambda key: self.parts[key], default="")
    if lost[name] > rest / 2:
      return name
    return f"work that is no product at the peak's rate, most of the time in {part}"


def make(
  config: config_lib.Config,
  topology: str,
  devices: Sequence[Any],
  *,
  quickly: bool = False,
) -> Plan:
  """Compiles the step of `config` for `devices`, and reads the plan off what comes out.

  Args:
    config: a run's.
    topology: the devices' name.
    devices: see `planning.topology.devices`.
    quickly: the compiler takes a third of the time, and tells memory alone, no cycles.

  Raises:
    ConfigError: the config cannot be run on these devices.
  """
  config = outline.without_numbers(config)
  with config_lib.blaming("mesh"):
    mesh = sharding.make_mesh(config.mesh, devices)
  task = outline.problem(config)
  arranged = program.arrange(config, task, mesh, outline.put)
  batch = outline.batch(config, task, mesh)
  state = outline.put(arranged.shapes, arranged.shardings)
  step = program.program(config, task, arranged)
  with jax.set_mesh(mesh):
    traced = step.trace(state, arranged.frozen, batch)
  products, kernels = flops.count(traced.jaxpr)

  held = memory.held(arranged, batch)
  held["gradients"] = memory.gradients(arranged)
  steps = config.train.accumulate_steps
  held["activations"] = memory.activations(task, arranged, batch, steps)
  started = time.perf_counter()
  compiled, why = _compiled(traced, quickly)
  seconds = time.perf_counter() - started
  tally, unread = hlo.Tally(), set[str]()
  if compiled is not None:
    _account(held, compiled.memory_analysis())
    read = hlo.Program(compiled.as_text())
    tally, unread = read.tally(), read.unread
  chip = _chip(devices[0])
  tokens, length = outline.tokens(batch)
  per_token = program.flops_per_token(task, arranged.trainable)
  return Plan(
    topology=topology,
    chip=chip,
    devices=len(devices),
    mesh=dict(mesh.shape),
    memory=held,
    total=sum(held.values()),
    limit=chip.memory,
    fits=compiled is not None,
    why=why,
    tokens=tokens,
    trained=state_lib.count(arranged.shapes.trainable),
    parameters=matrix.count(problem.of_model(task.variables)),
    model_flops=tokens * per_token(length),
    program_flops=products + kernels,
    bytes=tally.bytes,
    sent=dict(tally.sent),
    compute_seconds=tally.cycles / chip.clock + kernels / (len(devices) * chip.flops),
    collective_seconds=sum(tally.sent.values()) / chip.links,
    parts={part: cycles / tally.cycles for part, cycles in tally.parts.items()},
    replicated=program.replicated(arranged),
    unread=tuple(sorted(unread)),
    compile_seconds=seconds,
  )


def _compiled(traced: jax.stages.Traced, quickly: bool) -> tuple[Any, str]:
  """The program, or None and why it does not fit."""
  before = getattr(jax.config, _LEVEL)
  jax.config.update(_LEVEL, "O0" if quickly else before)
  try:
    return traced.lower().compile(), ""
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
      raise
    # Its first line of figures; some 10,000 lines of buffers follow.
    found = re.search(r"Used [\d.]+\w of [\d.]+\w[^\n]*|[^\n:]*exceeds available[^\n]*", message)
    return None, (found[0] if found else message.splitlines()[0]).strip()
  finally:
    jax.config.update(_LEVEL, before)


def _account(held: dict[str, float], told: Any) -> None:
  """Adds what the compiler knows to what is known of the shapes."""
  entering = sum(size for kind, size in held.items() if kind not in ("gradients", "activations"))
  held["padding"] = max(told.argument_size_in_bytes - entering, 0.0)
  held["outputs"] = told.output_size_in_bytes - told.alias_size_in_bytes
  # What the compiler holds for gradients and activations is among its temporaries, and may be less
  # than they are by themselves.
  free = float(told.temp_size_in_bytes)
  for kind in ("gradients", "activations"):
    held[kind] = min(held[kind], free)
    free -= held[kind]
  held["temporaries"] = free
  held["program"] = told.generated_code_size_in_bytes


def _chip(device: Any) -> chips.Chip:
  found = chips.find(device.device_kind)
  if found is None:
    raise config_lib.ConfigError(f"core/chips.py has no data sheet of {device.device_kind!r}")
  return found
