"""Several runs by one command, each from what the last one left: teacher, assistant, student.

Each of `config.stages` is the config with a few keys changed, and a run in `stages/NAME` of the
config's directory. Stages that are complete are not run again, so the same command goes on between
them and, as any run does, inside of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.core import config as config_lib
from research.core import distributed, tree
from research.io.checkpoint import write_json
from research.loop import learner
from research.loop import run as runs
from research.loop.callbacks import Callback

_RESULT = "stages/"  # what begins the name of an earlier stage's result, as a source


def run(config: config_lib.Config, *, callbacks: Sequence[Callback] = ()) -> runs.Results:
  """Trains as `config` says: one run, or the stages in their order.

  Returns:
    What `results.json` holds: of stages the sums, and each under `stages`.

  Raises: see `loop.run`; ConfigError also where a stage cannot be.
  """
  stages = config.stages
  if not stages:
    return runs.run(config, callbacks=callbacks)
  if not config.directory:
    raise config_lib.ConfigError("config.directory is empty; name the directory of the stages")
  distributed.require_same({"config": config.to_dict()}, "the run")
  values = {key: value for key, value in config.to_dict().items() if key != "stages"}
  each = configs(values, [stage.take() for stage in stages])
  found = {}
  for number, (name, stage) in enumerate(each.items(), start=1):
    print(f"stage {number} of {len(each)}: {name}", flush=True)
    found[name] = runs.run(stage, callbacks=callbacks)
  sums = {
    key: sum(results[key] for results in found.values())
    for key in ("steps", "seconds", "tokens", "useful_tokens", "skipped_updates")
  }
  results = {**sums, "stages": found}
  write_json(Path(config.directory) / "results.json", results)
  return results


def configs(
  values: dict[str, Any], stages: Sequence[dict[str, Any]]
) -> dict[str, config_lib.Config]:
  """The config of each stage's run, by name.

  Args:
    values: of the whole config, without `stages`.
    stages: `{"name": ..., "dotted.key": value, ...}`. What starts after another has its result as
      `model.source` and no `model.student`, unless it says so itself. A source `stages/NAME`, also
      of the teacher, is the result of that earlier stage.

  Raises:
    ConfigError: a name is none or comes twice, a key is not the config's, a source is no earlier
      stage, or a stage leaves no model to start from.
  """
  found: dict[str, config_lib.Config] = {}
  for number, stage in enumerate(stages):
    where = f"config.stages[{number}]"
    changes = dict(stage)
    name = changes.pop("name", "")
    if not re.fullmatch(r"[\w-]+", str(name)) or name in found:
      raise config_lib.ConfigError(f"{where} needs a name of its own, of letters, not {name!r}")
    own = config_lib.Config(values).to_dict()
    if found:
      *_, last = found
      own["model"] |= {"source": _RESULT + last, "shape": {}, "tokenizer": "", "student": {}}
      if learner.adapters_alone(found[last]):
        raise config_lib.ConfigError(
          f"{where} starts from {last!r}, which leaves an adapter; a model is left where"
          " trainable is 'all'"
        )
    for key, value in changes.items():
      _set(own, key, value, where)
    for section in ("model", "teacher"):
      source = own[section]["source"]
      if source.startswith(_RESULT):
        own[section]["source"] = _result(source, values["directory"], found, where)
    own["directory"] = str(Path(values["directory"]) / "stages" / name)
    found[name] = config_lib.Config(own)
  return found


def _set(values: dict[str, Any], key: str, value: Any, where: str) -> None:
  """`values[a][b] = value` for the key `a.b`, which must be there."""
  *parents, name = key.split(".")
  node: Any = values
  for parent in parents:
    node = node.get(parent) if isinstance(node, dict) else None
  if not isinstance(node, dict) or name not in node:
    known = config_lib.Config(values).dotted_keys()
    raise config_lib.ConfigError(f"{where} has no key {key!r}{tree.nearest(key, known)}")
  node[name] = value


def _result(source: str, directory: str, before: dict[str, Any], where: str) -> str:
  name = source.removeprefix(_RESULT)
  if name not in before:
    told = ", ".join(before) or "none"
    raise config_lib.ConfigError(
      f"{where}: {source!r} is no stage before it{tree.nearest(name, before)}; there are {told}"
    )
  return str(Path(directory) / "stages" / name / "model")
