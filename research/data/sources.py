"""Where rows come from: random access by index, and a fingerprint of the content.

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

import hashlib
import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from research.core import tree
from research.data.episodes import Episodes
from research.data.examples import BadRow, Report
from research.data.templates import Templates

Row = dict[str, Any]


class Source(Protocol):
  """Rows by index.

  Attributes:
    name: for people: what is read.
    fingerprint: equal for equal content.
    report: rows that were lost before there was a source, in preparation.
  """

  name: str
  fingerprint: str
  report: Report

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Row:
    """Row `index`; a row that cannot be read raises `BadRow`."""
    ...

  def origin(self, index: int) -> int:
    """The index under which people know the row, such as its line in the file, from 0."""
    ...


class LocalFile:
  """The rows of a prepared JSONL or text file, in the file's order."""

  def __init__(self, path: str, file_format: str, split_by: str, cache: str | None):
    from research.data import prepare  # TFDS takes a second to import.

    prepared = prepare.prepare(path, file_format=file_format, split_by=split_by, cache=cache)
    self.name = str(path)
    self.fingerprint = prepared.fingerprint
    self.report = prepared.report
    self._directory = prepared.directory
    self._records = prepare.records(prepared)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Row:
    return json.loads(_intact(self._records, index, self._directory)["row"])

  def origin(self, index: int) -> int:
    return int(_intact(self._records, index, self._directory)["index"])


def jsonl(path: str, cache: str | None = None) -> LocalFile:
  """A file with a JSON object a line."""
  return LocalFile(path, "jsonl", "document", cache)


def text(path: str, split_by: str = "document", cache: str | None = None) -> LocalFile:
  """A text file, as one row (`document`) or one a `paragraph` or `line`.

  The whole file is a document unless told otherwise: lines are rarely what a language
  model should see alone. A document longer than a row needs `on_long_row="split"`.
  """
  return LocalFile(path, "text", split_by, cache)


class TFDS:
  """A split of a TensorFlow Datasets data set, prepared as ArrayRecord if it is not yet."""

  def __init__(self, dataset: str, split: str = "train", data_dir: str | None = None):
    import tensorflow_datasets as tfds  # A second to import.

    try:
      builder = tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
      hint = tree.nearest(dataset, tfds.list_builders(with_community_datasets=False))
      raise ValueError(f"no TFDS data set {dataset!r}{hint}") from error
    if not builder.data_path.exists():
      builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
      builder.download_and_prepare()
    self.name = f"{builder.info.full_name}[{split}]"
    self.report = Report()
    self._directory = builder.data_path
    self._records = builder.as_data_source(split=split)
    splits = {
      name: (info.num_examples, info.num_bytes) for name, info in builder.info.splits.items()
    }
    self.fingerprint = _hash([self.name, sorted(splits.items())])

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Row:
    row = _intact(self._records, index, self._directory)
    return {name: _decoded(value, name) for name, value in row.items()}

  def origin(self, index: int) -> int:
    return index


def _intact(records: Any, index: int, directory: Any) -> Row:
  """The record, of files in `directory`.

  Raises:
    OSError: its file is damaged.
  """
  try:
    row = records[index]
  except RuntimeError as error:
    reason = " ".join(str(error).split())
    raise OSError(f"{_DAMAGED.format(directory)}: {reason}") from error
  if None in row.values():  # which is what is read beyond the end of a file that was cut
    raise OSError(f"{_DAMAGED.format(directory)}: record {index} is missing")
  return row


_DAMAGED = "prepared data in {} are damaged (remove them, and they are made again)"


def _decoded(value: Any, column: str) -> Any:
  """TFDS's bytes, arrays and NumPy scalars as strings, lists and numbers."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError as error:
      raise BadRow("not UTF-8", f"column {column!r}: {error}") from error
  if isinstance(value, Mapping):
    return {key: _decoded(item, column) for key, item in value.items()}
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, (list, tuple)):
    return [_decoded(item, column) for item in value]
  return value.item() if isinstance(value, np.generic) else value


class ReasoningGym:
  """Problems of a mix of reasoning-gym tasks, all different, made from their seed.

  Which problems are for training is decided by a hash of the question alone: one in ten
  belongs to the `test` split. So no seed, size or mix can put a held-out problem into
  training, even where a task has few problems and two seeds meet.

  Rows have `prompt` and `completion` (messages, or strings without `chat`), and for
  scoring `answer`, `task` and `metadata`: `{"question", "answer", "metadata"}` is the entry
  that reasoning-gym's `get_score_answer_fn(task)` takes.

  Args:
    tasks: `{"name", "weight" (1), "config" ({})}` each.
    size: number of rows.
    seed: of the tasks and of their order.
    split: `train` or `test`.
    chat: rows are messages of a user and an assistant.
    prompt, completion: templates, with `{question}` and `{answer}`.

  Raises:
    ValueError: an unknown task or setting, or a task with too few different problems.
  """

  _PATIENCE = 1000  # Draws in a row that give nothing new before a task counts as used up.

  def __init__(
    self,
    tasks: Sequence[Mapping[str, Any]],
    size: int,
    seed: int = 0,
    split: str = "train",
    chat: bool = True,
    prompt: str = "{question}",
    completion: str = "{answer}",
  ):
    if split not in ("train", "test"):
      raise ValueError(f"reasoning_gym split {split!r} is neither 'train' nor 'test'")
    if not tasks:
      raise ValueError("reasoning_gym needs at least one task")
    for task in tasks:
      _check_keys("a reasoning_gym task", task, ("name", "weight", "config"), ("name",))
    names = [task["name"] for task in tasks]
    self.name = f"reasoning_gym[{split}]: {', '.join(dict.fromkeys(names))}"
    self.report = Report()
    self._templates = (chat, prompt, completion)
    self.fingerprint = _hash(
      [metadata.version("reasoning-gym"), tasks, size, seed, split, self._templates]
    )
    rng = random.Random(f"{seed}/{split}")
    makers = [_task(task, rng.getrandbits(31), size * self._PATIENCE) for task in tasks]
    weights = [task.get("weight", 1) for task in tasks]
    drawn = [0] * len(tasks)
    seen: set[bytes] = set()
    self._problems: list[tuple[str, dict[str, Any]]] = []
    for _ in range(size):
      (chosen,) = rng.choices(range(len(tasks)), weights)
      for _ in range(self._PATIENCE):
        problem = makers[chosen][drawn[chosen]]
        drawn[chosen] += 1
        digest = hashlib.sha256(" ".join(problem["question"].split()).encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") % 10 == 0
        if held_out == (split == "test") and digest not in seen:
          seen.add(digest)
          self._problems.append((names[chosen], problem))
          break
      else:
        raise ValueError(
          f"reasoning_gym task {names[chosen]!r} has too few different {split} problems: "
          f"{len(self._problems)} rows of {size} were found; ask for fewer or widen its config"
        )

  def __len__(self) -> int:
    return len(self._problems)

  def __getitem__(self, index: int) -> Row:
    task, problem = self._problems[index]
    chat, prompt, completion = self._templates
    asked = prompt.format(question=problem["question"])
    told = completion.format(answer=problem["answer"])
    return {
      "prompt": [{"role": "user", "content": asked}] if chat else asked,
      "completion": [{"role": "assistant", "content": told}] if chat else told,
      "task": task,
      **problem,
    }

  def origin(self, index: int) -> int:
    return index


def _task(task: Mapping[str, Any], seed: int, count: int) -> Any:
  """The generator of one task's first `count` problems, which makes problem `i` from `seed + i`.

  Most tasks would give as many as one likes; some draw all of their kinds beforehand.
  """
  import reasoning_gym  # Takes seconds to import.
  from reasoning_gym.factory import DATASETS

  name, config = task["name"], task.get("config", {})
  if name not in DATASETS:
    raise ValueError(f"no reasoning_gym task {name!r}{tree.nearest(name, DATASETS)}")
  settings = [key for key in inspect.signature(DATASETS[name][1]).parameters if key != "size"]
  settings.remove("seed")
  _check_keys(f"reasoning_gym task {name!r}", config, settings)
  try:
    return reasoning_gym.create_dataset(name, **{**config, "seed": seed, "size": count})
  except AssertionError as error:  # How reasoning-gym refuses a value.
    raise ValueError(f"reasoning_gym task {name!r}: {error}") from error


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
    self.fingerprint = _hash([[part.fingerprint for part in self.parts], self.weights])
    self.report = Report()
    for part in self.parts:
      self.report.merge(part.report)
    self._starts = np.cumsum([0, *map(len, self.parts)])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def _at(self, index: int) -> tuple[Source, int]:
    part = int(np.searchsorted(self._starts, index, side="right")) - 1
    return self.parts[part], index - int(self._starts[part])

  def __getitem__(self, index: int) -> Row:
    part, at = self._at(index)
    return part[at]

  def origin(self, index: int) -> int:
    part, at = self._at(index)
    return part.origin(at)


SOURCES: dict[str, Callable[..., Any]] = {
  "jsonl": jsonl,
  "text": text,
  "tfds": TFDS,
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
  _check_keys(f"source {name!r}", config, [p.name for p in parameters], required)
  return SOURCES[name](**config)


def plain(config: Any) -> Any:
  """Nested mappings and ConfigDicts as dicts, sequences as lists."""
  if hasattr(config, "items"):
    return {key: plain(value) for key, value in config.items()}
  if isinstance(config, (list, tuple)):
    return [plain(value) for value in config]
  return config


def _check_keys(
  what: str, given: Mapping[str, Any], known: Sequence[str], required: Sequence[str] = ()
) -> None:
  for key in given:
    if key not in known:
      raise ValueError(f"{what} takes no {key!r}{tree.nearest(key, known)}; it takes {list(known)}")
  if missing := [key for key in required if key not in given]:
    raise ValueError(f"{what} needs {', '.join(missing)}")


def _hash(value: Any) -> str:
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
