"""The step of a run on the machine that is here: what it takes, beside what was predicted."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from research.core import compile as compile_lib
from research.core import config as config_lib
from research.core import memory as memory_lib
from research.core import sharding
from research.loop import program, state, throughput
from research.planning import outline

STEPS = 4  # that are run; the first one is not timed


@dataclasses.dataclass(frozen=True)
class Measured:
  """A few steps on random weights and batches.

  predicted: bytes of the first device that the compiler says a step needs, what goes in included.
  peak: the most that were in use during the steps: of an accelerator its own count; on a CPU of
    the process, less what it had before there were variables, and what compiling has left.
  seconds: of a step, the fastest.
  """

  device: str
  devices: int
  predicted: float
  peak: float
  seconds: float
  compile_seconds: float
  tokens: int
  model_flops: float
  peak_flops: float

  @property
  def tokens_per_second(self) -> float:
    """Over all devices, padding included."""
    return self.tokens / self.seconds

  @property
  def utilisation(self) -> float:
    """Model FLOPs by what the devices could do in that time."""
    return self.model_flops / (self.seconds * self.peak_flops)

  def record(self) -> dict[str, Any]:
    """For JSON."""
    found = dataclasses.asdict(self)
    return found | {"tokens_per_second": self.tokens_per_second, "utilisation": self.utilisation}

  def text(self) -> str:
    """Lines for a terminal."""
    return "\n".join(
      [
        f"{self.devices} x {self.device}; {self.tokens:,} tokens a step",
        f"memory        {self.peak / 2**30:9.3f} GiB at the peak, measured;"
        f" {self.predicted / 2**30:.3f} predicted",
        f"a step        {self.seconds:9.3f} s, compiled in {self.compile_seconds:.1f} s",
        f"tokens/s      {self.tokens_per_second:9,.0f}",
        f"utilisation   {self.utilisation:9.1%} of {self.peak_flops / 1e12:.2f} TFLOP/s",
      ]
    )


def measure(config: config_lib.Config) -> Measured:
  """Runs steps of `config` on JAX's own devices, with random weights and batches.

  It is to be the first thing that a process does: what was in memory before is not told apart.

  Raises:
    ConfigError: the config cannot be run here.
  """
  compile_lib.run_inline()
  config = outline.without_numbers(config)
  with config_lib.blaming("mesh"):
    mesh = sharding.make_mesh(config.mesh)
  jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(1)))  # what JAX itself needs
  before = memory_lib.resident_bytes()
  task = outline.problem(config, numbers=True)
  arranged = program.arrange(config, task, mesh)
  shapes = outline.batch(config, task, mesh)
  per_token = program.flops_per_token(task, arranged.trainable)
  tokens, length = outline.tokens(shapes)
  now = state.create(arranged.trainable, arranged.optimizer, mesh)
  frozen = arranged.frozen
  batch = _random(shapes, task.model.config.vocab_size)
  step = program.program(config, task, arranged)
  del task, arranged
  ready = memory_lib.resident_bytes()
  started = time.perf_counter()
  with jax.set_mesh(mesh):
    compiled = step.trace(now, frozen, batch).lower().compile()
  compile_seconds = time.perf_counter() - started
  told = compiled.memory_analysis()
  compile_lib.settle()
  before += max(memory_lib.resident_bytes() - ready, 0)
  memory_lib.reset_peak()
  seconds = []
  for _ in range(STEPS):
    started = time.perf_counter()
    now, metrics = compiled(now, frozen, batch)
    jax.block_until_ready(metrics)
    seconds.append(time.perf_counter() - started)
  peak = memory_lib.peak_bytes()
  on_cpu = jax.default_backend() == "cpu"
  return Measured(
    device=jax.devices()[0].device_kind,
    devices=mesh.size,
    predicted=told.argument_size_in_bytes
    + told.temp_size_in_bytes
    + told.output_size_in_bytes
    - told.alias_size_in_bytes,
    peak=peak - before if on_cpu else peak,
    seconds=min(seconds[1:]),
    compile_seconds=compile_seconds,
    tokens=tokens,
    model_flops=tokens * per_token(length),
    peak_flops=config.log.peak_flops or throughput.peak_flops(),
  )


def _random(shapes: dict[str, jax.ShapeDtypeStruct], vocab: int) -> dict[str, jax.Array]:
  """A batch of rows of one document each, all of whose tokens count."""
  rng = np.random.default_rng(0)

  def array(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if name.endswith("tokens") or name == "targets":
      return rng.integers(0, vocab, shape).astype(dtype)
    if name.endswith("positions"):
      return np.broadcast_to(np.arange(shape[1], dtype=dtype), shape)
    if name == "row":
      return np.arange(shape[0], dtype=dtype)
    return np.ones(shape, dtype)

  return {
    name: jax.device_put(array(name, leaf.shape, leaf.dtype), leaf.sharding)
    for name, leaf in shapes.items()
  }
