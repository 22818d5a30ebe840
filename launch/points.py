"""From a description to named points: products, draws, and the names that directories get."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launch.description import (
  Choice,
  LogUniform,
  Overrides,
  Random,
  Space,
  Sweep,
  Uniform,
  Values,
)
from research.core import tree
from research.core.config import ConfigError

POINT = "point"  # the axis of a sweep's named points
DRAW = "draw"  # that of its random ones
ALONE = "config"  # the name of the one point of a sweep that overrides nothing
_LONGEST = 120  # characters of a name, which is that of a directory


@dataclasses.dataclass(frozen=True)
class Point:
  """What is run from each seed.

  Attributes:
    name: its own within the sweep, fit for a directory.
    overrides: of the config.
    labels: the name of its value along each axis of the sweep.
  """

  name: str
  overrides: Overrides = dataclasses.field(hash=False)
  labels: Mapping[str, str] = dataclasses.field(hash=False)


def expand(sweep: Sweep) -> list[Point]:
  """The points that follow from the description alone, in its order.

  Raises:
    ConfigError: two points would have one name or set one key, a value needs a name, or a key is
      the sweep's to set.
  """
  axes: dict[str, dict[str, Overrides]] = {}
  if sweep.points:
    axes[POINT] = {name: dict(overrides) for name, overrides in sweep.points.items()}
  for key, values in sweep.grid.items():
    axes[key] = {label: {key: value} for label, value in named(key, values).items()}
  if sweep.random:
    axes[DRAW] = dict(_draws(sweep.random))
  if not axes and sweep.search:
    return []
  short = _short_names(list(axes))
  points = []
  for combination in itertools.product(*(axis.items() for axis in axes.values())):
    labels = dict(zip(axes, (label for label, _ in combination), strict=True))
    # Names that a person gave stand alone; values stand behind their key.
    parts = [
      label if key in (POINT, DRAW) else f"{short[key]}={label}" for key, label in labels.items()
    ]
    points.append(
      Point(slug(",".join(parts) or ALONE), _joined([part for _, part in combination]), labels)
    )
  repeated = [name for name, count in Counter(point.name for point in points).items() if count > 1]
  if repeated:
    raise ConfigError(f"two points would be called {repeated[0]!r}; give their values other names")
  return points


def named(key: str, values: Values) -> dict[str, Any]:
  """The values by name: their own, or what they are written as.

  Raises:
    ConfigError: a value has parts and no name.
  """
  if isinstance(values, Mapping):
    return dict(values)
  for value in values:
    if not isinstance(value, str | int | float | bool | None):
      raise ConfigError(f"{key}: {value!r} needs a name; write {{name: value}} in place of a tuple")
  return {str(value): value for value in values}


def slug(text: str) -> str:
  """The text as the name of a directory.

  Raises:
    ConfigError: it is too long for one, or nothing is left of it.
  """
  name = re.sub(r"[^\w.=,+-]+", "_", text, flags=re.ASCII).strip("._")
  if not name or len(name) > _LONGEST:
    raise ConfigError(
      f"{text!r} makes no directory's name of 1 to {_LONGEST} characters; name its values"
    )
  return name


def baselines(points: Sequence[Point], baseline: str | Mapping[str, str]) -> dict[str, str]:
  """`point's name -> the name of the point that it is compared with`; none of a baseline itself.

  Raises:
    ConfigError: the baseline is no point, or no value along an axis.
  """
  if not baseline:
    return {}
  if isinstance(baseline, str):
    name = slug(baseline)
    names = [point.name for point in points]
    if name not in names:
      raise ConfigError(f"baseline {baseline!r} is no point{tree.nearest(name, names)}")
    return {other: name for other in names if other != name}
  for key, label in baseline.items():
    known = sorted({point.labels[key] for point in points if key in point.labels})
    if label not in known:
      raise ConfigError(f"baseline: {key!r} has no value named {label!r}; it has {known}")
  by_labels = {_labels(point.labels): point.name for point in points}
  found = {}
  for point in points:
    against = by_labels.get(_labels({**point.labels, **baseline}))
    if against and against != point.name:
      found[point.name] = against
  return found


def _labels(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
  return frozenset(labels.items())


def _joined(parts: Sequence[Overrides]) -> Overrides:
  """The overrides of several axes as one.

  Raises:
    ConfigError: two of them set the same key, or one the part of another.
  """
  joined: dict[str, Any] = {}
  for part in parts:
    for key, value in part.items():
      if key in ("seed", "directory"):
        raise ConfigError(f"{key!r} is the sweep's own to set; leave it out of its points")
      for other in joined:
        if f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}."):
          raise ConfigError(f"{other!r} and {key!r} both set something in one point")
      joined[key] = value
  return joined


def _short_names(keys: Sequence[str]) -> dict[str, str]:
  """Each key's last part, or all of it where two have the same one."""
  last = Counter(key.rpartition(".")[2] for key in keys)
  return {key: key.rpartition(".")[2] if last[key.rpartition(".")[2]] == 1 else key for key in keys}


def _draws(random: Random) -> Iterator[tuple[str, Overrides]]:
  """`draw_000, its overrides`, and so on; more of them leave the first as they are."""
  rng = np.random.default_rng(random.seed)
  for number in range(random.count):
    yield f"draw_{number:03d}", {key: _draw(rng, key, random.space) for key in random.space}


def _draw(rng: np.random.Generator, key: str, space: Space) -> Any:
  """One value; one random number of the generator is used up, whatever the distribution."""
  where, u = space[key], float(rng.random())
  match where:
    case Uniform(low, high):
      return low + (high - low) * u
    case LogUniform(low, high):
      return float(low * (high / low) ** u)
    case Choice(values):
      return list(named(key, values).values())[int(u * len(values))]
