"""Problems that reasoning-gym makes from a seed, as a source."""

from __future__ import annotations

import hashlib
import inspect
import random
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from research.core import tree
from research.data.examples import Report
from research.data.source import Row, check_keys, fingerprint


class ReasoningGym:
  """Problems of a mix of reasoning-gym tasks, all different, made from their seed.

  Which problems are for training is decided by a hash of the question alone: one in ten
  belongs to the `test` split. So no seed, size or mix can put a held-out problem into
  training, even where a task has few problems and two seeds meet.

  Rows have `prompt` and `completion` (messages, or strings without `chat`), and for
  scoring `answer`, `task` and `metadata`: `{"question", "answer", "metadata"}` is the entry
  that reasoning-gym's `get_score_answer_fn(task)` takes. Problems of tasks with many right
  answers and no reference have the `answer` None and no `completion`: they can be asked, and
  scored by their task, but not imitated.

  Args:
    tasks: `{"name", "weight" (1), "config" ({})}` each.
    size: number of rows.
    seed: of the tasks and of their order.
    split: `train` or `test`.
    chat: rows are messages of a user and an assistant.
    prompt, completion: templates, with `{question}` and `{answer}`; other braces are doubled.

  Raises:
    ValueError: an unknown task or setting, a value or template that cannot be, or a task with too
      few different problems.
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
      check_keys("a reasoning_gym task", task, ("name", "weight", "config"), ("name",))
      weight = task.get("weight", 1)
      if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight >= 0:
        raise ValueError(
          f"reasoning_gym task {task['name']!r} has the weight {weight!r}, and not a number from 0"
        )
    _check_template("prompt", prompt, "question")
    _check_template("completion", completion, "answer")
    names = [task["name"] for task in tasks]
    self.name = f"reasoning_gym[{split}]: {', '.join(dict.fromkeys(names))}"
    self.report = Report()
    self._templates = (chat, prompt, completion)
    self.fingerprint = fingerprint(
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
    row = {"prompt": [{"role": "user", "content": asked}] if chat else asked}
    if problem["answer"] is not None:
      told = completion.format(answer=problem["answer"])
      row["completion"] = [{"role": "assistant", "content": told}] if chat else told
    return {**row, "task": task, **problem}

  def origin(self, index: int) -> int:
    return index


def _check_template(key: str, template: str, column: str) -> None:
  """Raises ValueError if the template does not show its column, or asks for another."""
  shown = "a text that no template has"
  try:
    found = template.format(**{column: shown})
  except (AttributeError, IndexError, KeyError, ValueError):
    found = ""
  if shown not in found:
    raise ValueError(
      f"reasoning_gym {key} {template!r} is no template of {{{column}}} alone; double other braces"
    )


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
  check_keys(f"reasoning_gym task {name!r}", config, settings)
  try:
    made = reasoning_gym.create_dataset(name, **{**config, "seed": seed, "size": count})
    made[0]  # Some values are refused by what uses them.
  except (AssertionError, TypeError, ValueError) as error:  # How reasoning-gym refuses a value.
    raise ValueError(f"reasoning_gym task {name!r}: {error}") from error
  return made
