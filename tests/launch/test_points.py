"""Expansion: counts and names in closed form, draws by distribution, mistakes in one line."""

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from launch import Choice, LogUniform, Random, Sweep, Uniform, points
from research.core.config import ConfigError

RATES = (1e-3, 3e-3)
SCHEDULES = {"three": {"name": "three_phase"}, "cosine": {"name": "warmup_cosine"}}


def _sweep(**arguments):
  return Sweep(config="config.py", metrics=("loss",), **arguments)


def test_a_grid_is_the_product_of_its_axes():
  found = points.expand(
    _sweep(
      points={"lora": {"rank": 4}, "full": {"rank": 0}},
      grid={"optimizer.rate": RATES, "optimizer.schedule": SCHEDULES},
    )
  )
  assert [point.name for point in found] == [
    f"{name},rate={rate},schedule={schedule}"
    for name in ("lora", "full")
    for rate in ("0.001", "0.003")
    for schedule in ("three", "cosine")
  ]
  assert found[1].overrides == {
    "rank": 4,
    "optimizer.rate": 0.001,
    "optimizer.schedule": {"name": "warmup_cosine"},
  }
  assert found[1].labels["point"] == "lora" and found[1].labels["optimizer.schedule"] == "cosine"


def test_of_nothing_the_config_itself_is_the_point():
  (point,) = points.expand(_sweep())
  assert point.name == "config" and point.overrides == {}


@hypothesis.given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_every_point_of_a_grid_has_a_name_and_overrides_of_its_own(sizes):
  grid = {f"key{i}": tuple(range(size)) for i, size in enumerate(sizes)}
  found = points.expand(_sweep(grid=grid))
  assert len(found) == math.prod(sizes) == len({point.name for point in found})
  assert len({tuple(point.overrides.items()) for point in found}) == len(found)


def test_keys_with_the_same_last_part_are_told_apart():
  (point,) = points.expand(_sweep(grid={"train.steps": (1,), "eval.steps": (2,)}))
  assert point.name == "train.steps=1,eval.steps=2"


def test_draws_follow_from_their_seed_and_have_their_distributions():
  space = {
    "rate": LogUniform(1e-4, 1e-1),
    "decay": Uniform(-1.0, 3.0),
    "name": Choice(("a", "b", "c", "d")),
  }
  found = points.expand(_sweep(random=Random(space, count=400, seed=3)))
  again = points.expand(_sweep(random=Random(space, count=7, seed=3)))
  assert again == found[:7] and found[0].name == "draw_000"
  assert points.expand(_sweep(random=Random(space, count=7, seed=4))) != again
  column = {key: [point.overrides[key] for point in found] for key in space}
  logs = np.log10(column["rate"])
  assert stats.kstest(logs, stats.uniform(-4, 3).cdf).pvalue > 0.01
  assert stats.kstest(column["decay"], stats.uniform(-1, 4).cdf).pvalue > 0.01
  counts = [column["name"].count(name) for name in "abcd"]
  assert stats.chisquare(counts).pvalue > 0.01
  assert abs(stats.spearmanr(column["rate"], column["decay"])[0]) < 0.15


def test_a_baseline_is_a_point_or_a_value_along_axes():
  found = points.expand(_sweep(grid={"rate": RATES, "schedule": SCHEDULES}))
  one = points.baselines(found, "rate=0.001,schedule=three")
  assert len(one) == 3 and set(one.values()) == {"rate=0.001,schedule=three"}
  assert points.baselines(found, {"schedule": "cosine"}) == {
    "rate=0.001,schedule=three": "rate=0.001,schedule=cosine",
    "rate=0.003,schedule=three": "rate=0.003,schedule=cosine",
  }
  assert points.baselines(found, "") == {}
  with pytest.raises(ConfigError, match=r"no point; did you mean 'rate=0.001,schedule=three'"):
    points.baselines(found, "rate=0.001,schedule=thre")
  with pytest.raises(ConfigError, match="no value named 'linear'"):
    points.baselines(found, {"schedule": "linear"})


@pytest.mark.parametrize(
  ("arguments", "told"),
  [
    ({"grid": {"schedule": ({"name": "x"},)}}, "schedule: .* needs a name"),
    ({"grid": {"rate": ()}}, "rate.* tuple of values"),
    ({"grid": {"rate": "abc"}}, "rate.* tuple of values"),
    ({"grid": {"seed": (1, 2)}}, "'seed' is the sweep's own"),
    ({"grid": {"a": {"x/y": 1, "x y": 2}}}, "two points would be called 'a=x_y'"),
    ({"points": {"a": {"rate": 1}}, "grid": {"rate": (2,)}}, "'rate' and 'rate' both"),
    ({"points": {"a": {"rate": {}, "rate.b": 1}}}, "'rate' and 'rate.b' both"),
    ({"points": {"a" * 121: {}}}, "1 to 120 characters"),
    ({"seeds": (1, 1)}, "each once"),
    ({"seeds": ()}, "each once"),
  ],
)
def test_what_cannot_be_is_told(arguments, told):
  with pytest.raises(ConfigError, match=told):
    points.expand(_sweep(**arguments))


def test_spaces_without_room_are_told():
  for make in (
    lambda: Uniform(1, 1),
    lambda: LogUniform(0, 1),
    lambda: Choice(()),
    lambda: Random({}, 3),
    lambda: Random({"rate": Uniform(0, 1)}, 0),
  ):
    with pytest.raises(ConfigError):
      make()
