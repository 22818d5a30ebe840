"""Compiling large programs so that they, and the compiler, leave memory to the rest."""

from __future__ import annotations

import ctypes
import functools
import sys

import jax


@functools.cache
def options() -> dict[str, str]:
  """Options for `jax.jit`: on a CPU, the order of work that needs the least memory.

  CPUs otherwise run whatever is ready first, and parts of the backward pass are ready, and kept,
  from the forward pass on.
  """
  if jax.default_backend() != "cpu":
    return {}
  order = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
  try:
    jax.jit(lambda x: x, compiler_options=order).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return {}  # a version of the compiler that has no such option
  return order


def release() -> None:
  """Gives the system back what was freed, as by the compiler; Linux's allocator would keep it."""
  if sys.platform == "linux":
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others have none
    if trim:
      trim(0)
