"""When a run says that its chosen answers become less likely."""

import numpy as np
import pytest

from research.loop.falling import Falling

NOISE = np.random.default_rng(0).normal(size=200)


def _notes(values, name):
  falling = Falling()
  return [(i, note) for i, value in enumerate(values) if (note := falling({name: float(value)}))]


@pytest.mark.parametrize("name", ["logps/chosen_change", "logps/chosen"])
def test_a_fall_is_told_once_with_its_numbers(name):
  (found,) = _notes(-50.0 * (name == "logps/chosen") - 0.1 * np.arange(200) + NOISE, name)
  step, note = found
  assert 19 <= step < 80  # by then the mean is beyond the noise
  assert "has fallen" in note and "nats" in note


@pytest.mark.parametrize("name", ["logps/chosen_change", "logps/chosen"])
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_noise_and_a_rise_are_no_fall(name, slope):
  assert _notes(slope * np.arange(200) + NOISE, name) == []


def test_other_objectives_have_no_such_metric():
  assert Falling()({"loss": 1.0}) is None
  assert _notes([float("nan")] * 50, "logps/chosen_change") == []
