"""Where rows come from: each kind of source by its name, and those that are made of others.

A source is made from its config, a mapping of `name` and the arguments of the function or
class of that name in `SOURCES`:

  {"name": "jsonl", "path": "data.jsonl"}
  {"name": "text", "path": "book.txt", "split_by": "paragraph"}
  {"name": "tfds", "dataset": "gsm8k", "split": "train", "data_dir": None}
  {"name": "reasoning_gym", "tasks": [{"name": "chain_sum", "weight": 2, "config": {}}],
   "seed": 0, "size": 4000, "split": "train"}
  {"name": "episodes", "source": {…}, "shots": 4}
  {"name": "templates", "source": {…}, "columns": {"prompt": "sum: {x}", "completion": " {y}"}}
  {"name": "mixture", "sources": [{…}, {…}], "weights": [3, 1], "tasks": ["math", "chat"]}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from research.core import tree
from research.data import records
from research.data.episodes import Episodes
from research.data.examples import Report
from research.data.reasoning import ReasoningGym
from research.data.source import Row, Source, check_keys, fingerprint
from research.data.templates import Templates


def episodes(
  source: Mapping[str, Any],
  shots: int,
  exemplars: Mapping[str, Any] | None = None,
  separator: str = "\n\n",
  size: int | None = None,
  seed: int = 0,
) -> Episodes:
  """Rows of prompt and completion after `shots` others that are solved, as one prompt.

  Args:
    source: the rows that are asked.
    exemplars: where solved rows are drawn from, such as the training split; by default `source`.
    shots, separator, size, seed: see `Episodes`; more episodes than rows ask each again after
      other exemplars.
  """
  asked = build(source)
  shown = build(exemplars) if exemplars else asked
  return Episodes(asked, shown, shots=shots, separator=separator, size=size, seed=seed)


def templates(source: Mapping[str, Any], columns: Mapping[str, str]) -> Templates:
  """Rows of a source through templates; see `Templates`."""
  return Templates(build(source), columns)


class Mixture:
  """Several sources; by index they lie one after the other.

  Training draws from them by weight, each in its own endless order; evaluation reads every row
  of each once.

  Args:
    sources: configs of the parts.
    weights: of the parts; by default `length ** (1 / temperature)`.
    temperature: 1 draws by length, more evens the parts out (Raffel et al. 2020, section 3.5.2).
    tasks: names of the parts; objectives then tell their metrics for each.
  """

  def __init__(
    self,
    sources: Sequence[Mapping[str, Any]],
    weights: Sequence[float] | None = None,
    temperature: float = 1.0,
    tasks: Sequence[str] = (),
  ):
    self.parts = [build(source) for source in sources]
    if not self.parts or any(isinstance(part, Mixture) for part in self.parts):
      raise ValueError("a mixture needs at least one source, and no mixture among them")
    if temperature <= 0 or (weights and temperature != 1):
      raise ValueError(f"a mixture's temperature {temperature} is above 0, and 1 beside weights")
    self.weights: list[float] = list(weights or (len(p) ** (1 / temperature) for p in self.parts))
    if len(self.weights) != len(self.parts) or min(self.weights) <= 0:
      raise ValueError(
        f"a mixture of {len(self.parts)} sources needs as many weights above 0, not {self.weights}"
      )
    self.tasks = tuple(tasks)
    if tasks and (len(tasks) != len(self.parts) or len({*tasks}) < len(tasks)):
      raise ValueError(
        f"a mixture of {len(self.parts)} sources has as many different tasks, not {list(tasks)}"
      )
    self.name = " + ".join(part.name for part in self.parts)
    self.fingerprint = fingerprint([[part.fingerprint for part in self.parts], self.weights])
    self.report = Report()
    for part in self.parts:
      self.report.merge(part.report)
    self._starts = np.cumsum([0, *map(len, self.parts)])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def at(self, index: int) -> tuple[int, int]:
    """The number of the part that row `index` is of, and its index there."""
    part = int(np.searchsorted(self._starts, index, side="right")) - 1
    return part, index - int(self._starts[part])

  def __getitem__(self, index: int) -> Row:
    part, at = self.at(index)
    return self.parts[part][at]

  def origin(self, index: int) -> int:
    part, at = self.at(index)
    return self.parts[part].origin(at)


SOURCES: dict[str, Callable[..., Any]] = {
  "jsonl": records.jsonl,
  "text": records.text,
  "tfds": records.TFDS,
  "reasoning_gym": ReasoningGym,
  "episodes": episodes,
  "templates": templates,
  "mixture": Mixture,
}


def build(config: Mapping[str, Any]) -> Source:
  """The source that a config names.

  Args:
    config: a mapping (or ConfigDict) of `name` and arguments, as in this module's docstring.

  Raises:
    ValueError: an unknown name or argument, or a missing one.
  """
  config = plain(config)
  if not isinstance(config, dict) or "name" not in config:
    raise ValueError(f"a source is a mapping with a name, one of {', '.join(SOURCES)}: {config!r}")
  name = config.pop("name")
  if name not in SOURCES:
    hint = tree.nearest(str(name), SOURCES)
    raise ValueError(f"unknown source {name!r}{hint}; known: {', '.join(SOURCES)}")
  parameters = inspect.signature(SOURCES[name]).parameters.values()
  required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
  check_keys(f"source {name!r}", config, [p.name for p in parameters], required)
  return SOURCES[name](**config)


def plain(config: Any) -> Any:
  """Nested mappings and ConfigDicts as dicts, sequences as lists."""
  if hasattr(config, "items"):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, (list, tuple)):
    return [plain(value) for value in config]
  return config
