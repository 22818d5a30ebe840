"""Compiling large programs so that they, and the compiler, leave memory to the rest."""

from __future__ import annotations

import ctypes
import functools
import sys

import jax

# Numbers of mallopt(3)'s options, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# Parameters that are split are gathered before they multiply. In place of that the compiler would
# multiply by a part at a time, as parts come round, and add each product to a float32 result that
# is read and written as often as there are devices.
_TPU = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


@functools.cache
def options(platform: str | None = None) -> dict[str, str]:
  """Options for `jax.jit`: on a CPU, the order of work that needs the least memory; see `_TPU`.

  CPUs otherwise run whatever is ready first, and parts of the backward pass are ready, and kept,
  from the forward pass on.

  platform: what is compiled for, by default JAX's own.
  """
  platform = platform or jax.default_backend()
  if platform == "tpu":
    return _TPU
  if platform != "cpu":
    return {}
  order = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
  try:
    jax.jit(lambda x: x, compiler_options=order).lower(0.0).compile()
  except jax.errors.JaxRuntimeError:
    return {}  # a version of the compiler that has no such option
  return order


def run_inline() -> None:
  """Lets CPUs run programs on the calling thread; to be called before JAX's first computation.

  Otherwise a program may begin, on a thread of its own, before the last one's temporaries are
  freed: memory for both. And only memory of the main thread is kept by `settle`.
  """
  jax.config.update("jax_cpu_enable_async_dispatch", False)


def settle() -> None:
  """Gives the system back what compiling has freed, and keeps what programs free from now on.

  glibc's allocator does neither by itself: it holds small blocks, and unmaps the large ones, such
  as a program's temporaries, which the system then has to zero again, page by page, at each run.
  """
  if sys.platform != "linux" or jax.default_backend() != "cpu":
    return
  library = ctypes.CDLL(None)
  if not hasattr(library, "malloc_trim"):  # another allocator than glibc's
    return
  library.malloc_trim(0)
  library.mallopt(_M_MMAP_MAX, 0)  # no block has a mapping of its own
  library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # and the end of the heap stays
