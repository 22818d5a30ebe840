"""Schedules against transformers and closed forms."""

import numpy as np
import pytest
import torch
import transformers

from research.optim import schedules

RATE, TOTAL = 2e-4, 200


def _curve(schedule):
  return np.asarray([schedule(step) for step in range(TOTAL + 1)])


def _transformers_curve(make, **settings):
  """The rates of steps 0 to TOTAL by a transformers scheduler."""
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
  scheduler = make(optimizer, **settings)
  rates = []
  for _ in range(TOTAL + 1):
    rates.append(scheduler.get_last_lr()[0])
    optimizer.step()
    scheduler.step()
  return np.asarray(rates)


@pytest.mark.parametrize("warmup", [0, 1, 30])
def test_the_field_s_schedules(warmup):
  t, given = transformers, {"num_warmup_steps": warmup}
  whole = {**given, "num_training_steps": TOTAL}
  pairs = [
    (schedules.constant(RATE, TOTAL, warmup_steps=warmup),
     _transformers_curve(t.get_constant_schedule_with_warmup, **given)),
    (schedules.linear(RATE, TOTAL, warmup_steps=warmup),
     _transformers_curve(t.get_linear_schedule_with_warmup, **whole)),
    (schedules.warmup_cosine(RATE, TOTAL, warmup_steps=warmup),
     _transformers_curve(t.get_cosine_schedule_with_warmup, **whole)),
    (schedules.warmup_cosine(RATE, TOTAL, warmup_steps=warmup, final_ratio=0.1),
     _transformers_curve(t.get_cosine_with_min_lr_schedule_with_warmup, min_lr_rate=0.1, **whole)),
    (schedules.wsd(RATE, TOTAL, warmup_steps=warmup, decay_steps=50),
     _transformers_curve(t.get_wsd_schedule, num_decay_steps=50, decay_type="linear", **whole)),
  ]  # fmt: skip
  for ours, theirs in pairs:
    np.testing.assert_allclose(_curve(ours), theirs, rtol=2e-5, atol=RATE * 1e-6)


def test_falling_to_a_ratio_ends_there():
  at = [0, 50, 100, 150, 200]
  line = _curve(schedules.linear(RATE, TOTAL, warmup_steps=100, final_ratio=0.25))
  np.testing.assert_allclose(line[at] / RATE, [0, 0.5, 1, 0.625, 0.25], rtol=1e-6)
  late = _curve(schedules.wsd(RATE, TOTAL, warmup_steps=100, decay_steps=40, final_ratio=0.25))
  np.testing.assert_allclose(late[[*at, 180]] / RATE, [0, 0.5, 1, 1, 0.25, 0.625], rtol=1e-6)


def test_three_phases():
  rates = _curve(schedules.three_phase(1e-4, TOTAL)) / 1e-4
  np.testing.assert_allclose(rates[:40], 0.01, rtol=1e-6)
  np.testing.assert_allclose(rates[40:161], 1, rtol=1e-6)
  np.testing.assert_allclose(rates[160:], np.linspace(1, 0.1, 41), rtol=1e-5)


@pytest.mark.parametrize("make", [schedules.constant, schedules.linear, schedules.wsd])
def test_a_fraction_is_so_many_steps(make):
  by_steps = _curve(make(RATE, TOTAL, warmup_steps=20))
  np.testing.assert_array_equal(_curve(make(RATE, TOTAL, warmup_fraction=0.1)), by_steps)
  assert by_steps[19] < by_steps[20] == np.float32(RATE)


@pytest.mark.parametrize(
  ("settings", "told"),
  [
    ({"warmup_steps": 1, "warmup_fraction": 0.1}, "not both"),
    ({"warmup_fraction": 10}, "between 0 and 1"),
    ({"warmup_steps": 201}, "200 steps"),
    ({"warmup_steps": 100, "decay_fraction": 0.6}, "longer than the run"),
  ],
)
def test_impossible_durations(settings, told):
  with pytest.raises(ValueError, match=told):
    schedules.wsd(RATE, TOTAL, **settings)
