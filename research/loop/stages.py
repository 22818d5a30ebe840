"""Several runs by one command, each from what the last one left: teacher, assistant, student.

Each of `config.stages` is the config with a few keys changed, and a run in `stages/NAME` of the
config's directory. Stages that are complete are not run again, so the same command goes on between
them and, as any run does, inside of them. What a later stage starts from is a model, `model/`:
where the earlier one leaves an adapter, that is merged for it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from research import models, quant
from research.core import config as config_lib
from research.core import distributed, sharding, tree
from research.io.checkpoint import write_json
from research.loop import run as runs
from research.loop import subject as subjects
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
    if any(_model_of(stage.directory) in _sources(other) for other in each.values()):
      _leave_model(Path(stage.directory), f"config.stages[{number - 1}]")
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
      `model.source` and no `model.student`, unless it says so itself. A source `stages/NAME`, of a
      teacher or a reward, too, is the model that this earlier stage leaves; a `run` is its run.

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
    for key, value in changes.items():
      _set(own, key, value, where)
    for section in _opening(own):
      for key in ("source", "run"):
        if str(section.get(key, "")).startswith(_RESULT):
          run = _directory(section[key], values["directory"], found, where)
          section[key] = run if key == "run" else _model_of(run)
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


def _opening(values: dict[str, Any]) -> list[dict[str, Any]]:
  """The sections of a config that name a model by `source`, or a run by `run`."""
  rewards = values["train"].get("rollout", {}).get("rewards", ())
  return [values["model"], values["teacher"], *rewards]


def _sources(config: config_lib.Config) -> set[str]:
  return {str(section.get("source", "")) for section in _opening(config.to_dict())}


def _model_of(directory: str) -> str:
  return str(Path(directory) / "model")


def _directory(source: str, directory: str, before: dict[str, Any], where: str) -> str:
  """That of the stage that `stages/NAME` names."""
  name = source.removeprefix(_RESULT)
  if name not in before:
    told = ", ".join(before) or "none"
    raise config_lib.ConfigError(
      f"{where}: {source!r} is no stage before it{tree.nearest(name, before)}; there are {told}"
    )
  return str(Path(directory) / "stages" / name)


def _leave_model(run: Path, where: str) -> None:
  """The model of a complete run that left an adapter, beside it; all processes call this."""
  if jax.process_index() == 0 and not (run / "model").exists():
    unfinished = run / "model.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    with sharding.on_host(), config_lib.blaming(where.removeprefix("config.")):
      subject = subjects.load_run(run, "float32")
      params = quant.dequantize(subjects.merged(subject))
      models.save(unfinished, subject.model, params, subject.tokenizer)
    unfinished.rename(run / "model")
  if jax.process_count() > 1:
    distributed.everywhere(True)
