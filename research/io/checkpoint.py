"""Checkpoints of a run: Orbax, written in the background, old ones removed.

A checkpoint is a step's arrays (parameters in training, optimizer state, counters), the state of
its data iterator and its metrics. It does not hold what never changes: the frozen base model
comes from where the config says, and the seed is part of the config beside it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from research.core import tree

_GOES_ON = "the same command goes on from the newest that was"


class Checkpoints:
  """The checkpoints in one directory.

  A checkpoint counts from the moment its directory has its final name, so a process killed while
  it writes leaves the one before as the latest.
  """

  def __init__(
    self,
    directory: Path,
    *,
    keep_last: int,
    keep_best: int = 0,
    best_metric: str = "",
    best_mode: str = "max",
  ):
    """Opens or creates the directory.

    Args:
      keep_last: how many of the newest stay.
      keep_best: how many more stay by `best_metric` among those saved with it.
      best_mode: "max" or "min".
    """
    if keep_last < 1:
      raise ValueError(f"keep_last is {keep_last}; a run needs one checkpoint to go on from")
    if best_mode not in ("max", "min"):
      raise ValueError(f"best_mode is {best_mode!r}, not 'max' or 'min'")
    if keep_best and not best_metric:
      raise ValueError("keep_best needs a best_metric")
    policies: list[Any] = [checkpoint_managers.LatestN(keep_last)]
    if keep_best:
      policies.append(
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics[best_metric],
          reverse=best_mode == "min",
          n=keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._best_metric = best_metric
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        create=True,
        cleanup_tmp_directories=True,
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      ),
    )

  def latest_step(self) -> int | None:
    """The step of the newest complete checkpoint; None if there is none."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """The steps of the complete checkpoints, in order."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    step: int,
    state: Any,
    data: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to save; returns as soon as the arrays are copied.

    Args:
      step: where the run stands; saving a step twice does nothing.
      state: a pytree of arrays, None where it holds nothing.
      data: the data iterator's state, JSON.
      metrics: an evaluation's results; `best_metric` must be among them if they are given.

    Raises:
      OSError: this checkpoint, or the one before, was not written.
    """
    if step in self._manager.all_steps():
      return
    if metrics is not None and self._best_metric and self._best_metric not in metrics:
      raise ValueError(
        f"checkpoint.best_metric {self._best_metric!r} is not measured"
        f"{tree.nearest(self._best_metric, metrics)}; there are {', '.join(metrics)}"
      )
    with _blaming(f"checkpoint {step} was not written", _GOES_ON):
      self._save(step, state, data, metrics)

  def _save(self, step: int, state: Any, data: Mapping[str, Any], metrics: Any) -> None:
    # Donating `state` to the next step is safe at once: accelerators have copied it to the host by
    # now, and the CPU runtime copies a buffer that somebody still views instead of reusing it.
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree.unflatten(tree.flatten(state))),
        data=ocp.args.JsonSave(dict(data)),
      ),
      metrics=dict(metrics) if metrics is not None else None,
      force=True,
    )

  def restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
    """The state and the data iterator's state of a step.

    Args:
      abstract: a pytree like the saved one of `jax.ShapeDtypeStruct`s; their shardings say where
        the arrays go.

    Raises:
      ValueError: the saved tree has other paths, shapes or types than `abstract`.
      OSError: its files are damaged.
    """
    damaged = (
      f"checkpoint {step} cannot be read",
      f"move it out of {self._manager.directory}, and the same command goes on from the one before",
    )
    wanted = tree.flatten(abstract)
    with _blaming(*damaged):
      saved = tree.flatten(self._manager.item_metadata(step)["state"].tree)
    for path in sorted({*wanted, *saved}):
      a, b = wanted.get(path), saved.get(path)
      if a is None or b is None or tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype:
        raise ValueError(f"checkpoint {step} has {path} as {_shown(b)}, but the run as {_shown(a)}")
    with _blaming(*damaged):
      found = self._manager.restore(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardRestore(tree.unflatten(wanted)), data=ocp.args.JsonRestore()
        ),
      )
    flat = tree.flatten(found["state"])
    leaves = [flat[path] for path in wanted]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves), found["data"]

  def wait(self) -> None:
    """Returns when what was saved is complete on disk; raises OSError if it is not written."""
    with _blaming("the last checkpoint was not written", _GOES_ON):
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then frees the threads."""
    self._manager.close()


@contextlib.contextmanager
def _blaming(what: str, remedy: str) -> Iterator[None]:
  """Makes what Orbax and its storage say about files an OSError of one line."""
  try:
    yield
  except (OSError, ValueError) as error:  # JSON's errors and TensorStore's are of the latter kind
    reason = " ".join(str(error).partition(" [tensorstore_spec")[0].split())
    raise OSError(f"{what}: {reason}; {remedy}") from error


def write_json(path: Path, content: Any) -> None:
  """Replaces a JSON file at once: a reader, or a run after a crash, sees all or nothing of it."""
  temporary = path.with_name(f".{path.name}.new")
  temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
  temporary.replace(path)


def _shown(leaf: Any) -> str:
  return "nothing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
