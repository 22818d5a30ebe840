"""The compiler takes the options, and memory goes back to the system."""

import os
import platform
import statistics
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from research.core import compile as compile_lib


def test_options_are_the_compilers_and_change_no_result():
  x = jnp.arange(12.0).reshape(3, 4)
  step = lambda x: jnp.tanh(x) @ x.T  # noqa: E731
  plain = jax.jit(step)(x)
  assert (jax.jit(step, compiler_options=compile_lib.options())(x) == plain).all()


def test_options_that_the_compiler_lacks_are_left_out(monkeypatch):
  def refuse(*_, **__):
    raise jax.errors.JaxRuntimeError("no such option")

  compile_lib.options.cache_clear()
  monkeypatch.setattr(jax, "jit", refuse)
  assert compile_lib.options() == {}
  compile_lib.options.cache_clear()


@pytest.mark.parametrize(("system", "calls"), [("linux", ["trim", -4, -1]), ("darwin", [])])
def test_settle_trims_and_keeps_where_the_allocator_is_glibcs(monkeypatch, system, calls):
  called: list[object] = []
  library = types.SimpleNamespace(
    malloc_trim=lambda pad: called.append("trim"),
    mallopt=lambda option, value: called.append(option),
  )
  monkeypatch.setattr(compile_lib.sys, "platform", system)
  monkeypatch.setattr(compile_lib.ctypes, "CDLL", lambda _: library)
  compile_lib.settle()
  assert called == calls


def test_settle_does_nothing_with_another_allocator(monkeypatch):
  called: list[object] = []
  library = types.SimpleNamespace(mallopt=lambda *_: called.append("mallopt"))  # no malloc_trim
  monkeypatch.setattr(compile_lib.sys, "platform", "linux")
  monkeypatch.setattr(compile_lib.ctypes, "CDLL", lambda _: library)
  compile_lib.settle()
  assert not called


@pytest.mark.skipif(
  sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator"
)
def test_a_settled_process_takes_no_new_pages_for_temporaries():
  script = """
import resource
import jax, jax.numpy as jnp
from research.core import compile as compile_lib
compile_lib.run_inline()
f = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())
x = jnp.ones((4096, 8))  # whose product is 64 MiB
f(x).block_until_ready()
compile_lib.settle()
for _ in range(9):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  f(x).block_until_ready()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
  )
  pages = 64 * 2**20 / os.sysconf("SC_PAGESIZE")
  assert statistics.median(map(int, done.stdout.split())) < pages / 16, done.stdout
