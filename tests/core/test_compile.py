"""The compiler takes the options, and memory goes back to the system."""

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


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_release_runs_everywhere(monkeypatch, system):
  monkeypatch.setattr(compile_lib.sys, "platform", system)
  compile_lib.release()
