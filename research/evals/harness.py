"""The tasks of lm-evaluation-harness (`pip install lm_eval`) as an evaluator."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research.core import tree
from research.evals.result import Result

# What a task asks for before it executes code: the harness's argument, and the variable that
# Hugging Face's metric `code_eval` reads.
_CONFIRMED = "confirm_run_unsafe_code"
_ALLOWED = "HF_ALLOW_CODE_EVAL"


@dataclasses.dataclass(frozen=True)
class Harness:
  """What lm-evaluation-harness measures, by its own tasks, prompts and metrics.

  Metrics: `TASK/METRIC` of every task and group, and where a task filters answers in several ways
  `TASK/METRIC/FILTER`. Intervals are the harness's standard errors, times 1.96. A record is a
  document of a task under a filter: its `task`, `target`, the model's `answer`, and its metrics.

  tasks: names of tasks, groups and tags, YAML files of tasks, or directories of such files.
  num_fewshot: examples before each question, by default as many as the task says.
  limit: documents of a task at most, by default all.
  chat_template: prompts are messages in the model's chat template.
  batch_size, max_length, seed: see `research.evals.harness_model.HarnessModel`.
  cache: a file in which answers are kept, and looked for before the model is asked; "" for none,
    as where a run has several processes, which have to ask for the same.
  unsafe_code: code that the model writes is executed, in this user's name and without a sandbox,
    where a task judges by that (humaneval, mbpp); otherwise such a task is an error.
  label: the result's name.
  """

  tasks: Sequence[str]
  num_fewshot: int | None = None
  limit: int | None = None
  chat_template: bool = False
  batch_size: int = 32
  max_length: int | None = None
  cache: str = ""
  seed: int = 0
  unsafe_code: bool = False
  label: str = "harness"

  def __post_init__(self):
    if self.cache and jax.process_count() > 1:
      raise ValueError(f"{self.label}: answers are kept by a single process; leave out `cache`")

  def __call__(self, model: Any, variables: Any, tokenizer: Any) -> Result:
    """Runs all tasks.

    Raises:
      ValueError: lm_eval is not installed or a package that a task needs, there is no such task, a
        task executes code and may not, or asks for what the model does not do.
    """
    names = _expand(self.tasks)
    try:
      from lm_eval import evaluator
      from lm_eval import tasks as library

      from research.evals.harness_model import HarnessModel
    except ImportError as error:
      raise ValueError(
        f"{self.label}: {error}; lm-evaluation-harness comes with the extra 'harness'"
      ) from error
    known = [name for name in names if not Path(name).is_file()]
    # To know its own thousands of tasks takes the harness seconds.
    manager = library.TaskManager(include_defaults=bool(known))
    for name in known:
      if not manager.match_tasks([name]):
        raise ValueError(
          f"{self.label}: lm-evaluation-harness has no task {name!r}"
          f"{tree.nearest(name, manager.all_tasks)}, and there is no such file"
        )
    wrapped = HarnessModel(
      model,
      variables,
      tokenizer,
      batch_size=self.batch_size,
      max_length=self.max_length,
      seed=self.seed,
      name=self.label,
    )
    try:
      with _allowing(self.unsafe_code):
        found = evaluator.simple_evaluate(
          wrapped,
          tasks=names,
          num_fewshot=self.num_fewshot,
          limit=self.limit,
          apply_chat_template=self.chat_template,
          use_cache=self.cache or None,
          task_manager=manager,
          confirm_run_unsafe_code=self.unsafe_code,
        )
    except ImportError as error:
      raise ValueError(f"{self.label}: a task needs a package: {error}") from error
    except ValueError as error:
      if not self.unsafe_code and any(gate in str(error) for gate in (_CONFIRMED, _ALLOWED)):
        raise ValueError(
          f"{self.label}: a task executes code that the model writes; allow that with"
          " unsafe_code=True (--unsafe-code), where it can do no harm"
        ) from error
      raise
    return _result(self.label, found)


@contextlib.contextmanager
def _allowing(unsafe_code: bool) -> Iterator[None]:
  """Within, metrics that execute code do so, if they may."""
  before = os.environ.get(_ALLOWED)
  if unsafe_code:
    os.environ[_ALLOWED] = "1"
  try:
    yield
  finally:
    if unsafe_code:
      os.environ.pop(_ALLOWED, None)
      if before is not None:
        os.environ[_ALLOWED] = before


def _expand(tasks: Sequence[str]) -> list[str]:
  """`tasks` with the files of directories in place of these.

  Raises:
    ValueError: there are none, or a directory has none.
  """
  found = []
  for task in tasks:
    path = Path(task)
    # Files that begin with an underscore are parts that others include.
    inside = sorted(str(file) for file in path.glob("*.yaml") if file.name[0] != "_")
    if path.is_dir() and not inside:
      raise ValueError(f"{task} holds no YAML file of a task")
    found += inside or [task]
  if not found:
    raise ValueError("tasks is empty; it names tasks of lm-evaluation-harness")
  return found


def _result(label: str, found: Mapping[str, Any]) -> Result:
  metrics: dict[str, float] = {}
  intervals = {}
  for task, figures in {**found["results"], **found.get("groups", {})}.items():
    for key, value in figures.items():
      metric, _, kind = key.partition(",")
      if not kind or metric.endswith("_stderr") or not isinstance(value, int | float):
        continue
      name = _metric(task, metric, kind)
      metrics[name] = value
      error = figures.get(f"{metric}_stderr,{kind}")
      if isinstance(error, int | float) and math.isfinite(error):
        intervals[name] = (value - 1.96 * error, value + 1.96 * error)
  records = [
    _record(task, sample) for task, samples in found["samples"].items() for sample in samples
  ]
  means = {name: (name, None) for name in metrics if _is_mean(name, metrics[name], records)}
  metrics["documents"] = len({(record["task"], record["document"]) for record in records})
  return Result(label, metrics, records, means, intervals)


def _metric(task: str, metric: str, kind: str) -> str:
  return f"{task}/{metric}" if kind == "none" else f"{task}/{metric}/{kind}"


def _record(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
  kind, document = sample["filter"], sample["doc_id"]
  record = {
    "id": f"{task}:{document}:{kind}:{sample['doc_hash'][:12]}",
    "task": task,
    "document": document,
    "target": str(sample["target"]),
    "answer": sample["filtered_resps"],
  }
  for metric in sample["metrics"]:
    value = sample[metric]
    if isinstance(value, int | float):
      record[_metric(task, metric, kind)] = float(value)
  return record


def _is_mean(name: str, figure: float, records: Sequence[Mapping[str, Any]]) -> bool:
  """Whether the figure is the mean over its documents, and not a ratio of sums, say."""
  values = [record[name] for record in records if name in record]
  return bool(values) and math.isclose(math.fsum(values) / len(values), figure, abs_tol=1e-9)
