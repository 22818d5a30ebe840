"""Temperatures at their ends and between, by hand."""

import jax
import numpy as np
import pytest

from research.core import config
from research.losses.temperatures import TEMPERATURES


def at(section, steps=(0, 2, 4, 8, 20), total_steps=9):
  temperature = config.call(TEMPERATURES, section, total_steps=total_steps)
  return [float(jax.jit(temperature)(step)) for step in steps]


@pytest.mark.parametrize(
  ("section", "want"),
  [
    ({"name": "constant", "value": 3.0}, [3, 3, 3, 3, 3]),
    ({"name": "linear", "start": 5.0}, [5, 4, 3, 1, 1]),
    ({"name": "cosine", "start": 5.0, "end": 1.0}, [5, 3 + 2**0.5, 3, 1, 1]),
    ({"name": "stepwise", "values": (8.0, 4.0, 1.0)}, [8, 8, 4, 1, 1]),
  ],
)
def test_values(section, want):
  np.testing.assert_allclose(at(section), want, rtol=1e-6)


def test_each_step_of_stepwise_lasts_as_long():
  got = at({"name": "stepwise", "values": (4.0, 2.0)}, range(6), total_steps=6)
  assert got == [4, 4, 4, 2, 2, 2]


@pytest.mark.parametrize(
  ("section", "message"),
  [
    ({"name": "linear", "start": 0.0}, "start is 0.0; a temperature is above 0"),
    ({"name": "stepwise", "values": ()}, "0 temperatures for a run of 9 steps"),
    ({"name": "stepwise", "values": (2.0, -1.0)}, r"values\[1\] is -1.0"),
    ({"name": "cosin", "start": 2.0}, "did you mean 'cosine'"),
  ],
)
def test_mistakes(section, message):
  with pytest.raises(ValueError, match=message):
    at(section)
