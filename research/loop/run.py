"""The training loop: from a config to a run directory, through interruptions.

A run directory holds `config.json` and `environment.json`, `checkpoints/`, `metrics.jsonl` (a line
for each step, and one for each evaluation), `tensorboard/`, `profile/` if steps were traced,
`evaluations/STEP.json` (what `research.evaluate --compare` reads) and, once the run is complete,
what was trained (`adapter/` in PEFT's format or `model/` in Hugging Face's) and `results.json`.

The same command starts a run, goes on with one that stopped, and tells the results of a complete
one. Up to the last checkpoint nothing is done twice; what came after it is done again and comes
out the same, to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from research import quant
from research.core import cache, distributed, matrix, sharding, tree
from research.core import compile as compile_lib
from research.core import config as config_lib
from research.evals import Evaluator, Result
from research.io import metrics as metrics_lib
from research.io.checkpoint import Checkpoints, write_json
from research.loop import environment, identity, problem, ranges, state, throughput
from research.loop import program as program_lib
from research.loop.callbacks import Callback, Context
from research.loop.interrupt import Interrupted, Interrupts, SharedInterrupts
from research.loop.profile import Profile
from research.loop.record import Recorder

Results = dict[str, Any]


def run(
  config: config_lib.Config,
  *,
  assemble: Callable[[config_lib.Config], problem.Problem] = problem.assemble,
  callbacks: Sequence[Callback] = (),
) -> Results:
  """Trains as `config` says, and returns what `results.json` holds.

  Args:
    config: see `configs/base.py`.
    assemble: makes the problem.
    callbacks: what else to do, in this order; see `loop.callbacks`.

  Raises:
    ConfigError: the config cannot be run, or is not the one that the directory was made with.
    ConnectionError: another process of the run is gone.
    FloatingPointError: gradients stayed non-finite.
    Interrupted: by SIGINT or SIGTERM; all steps so far are saved.
  """
  if not config.directory:
    raise config_lib.ConfigError("config.directory is empty; name the run's directory")
  if config.get("stages"):
    raise config_lib.ConfigError("config.stages are several runs, by research.loop.stages")
  directory = Path(config.directory)
  complete = (directory / "results.json").exists()
  distributed.require_same({"config": config.to_dict(), "complete": complete}, "the run")
  _require_same_config(directory, config)
  if complete:
    return json.loads((directory / "results.json").read_text())
  profile = Profile(config.log.profile, config.train.steps)
  with SharedInterrupts() if jax.distributed.is_initialized() else Interrupts() as interrupts:
    cache.keep_compiled(config.compilation_cache)
    compile_lib.run_inline()
    trainer = _Trainer(config, directory, assemble(config), callbacks, interrupts, profile)
    with contextlib.ExitStack() as stack:
      stack.callback(trainer.close)
      stack.enter_context(jax.set_mesh(trainer.mesh))
      try:
        return trainer.train()
      except ConnectionError:
        stack.pop_all()  # to close would be to wait for who is gone
        raise


class _Trainer:
  """A run between its first and its last step."""

  def __init__(
    self,
    config: config_lib.Config,
    directory: Path,
    task: problem.Problem,
    callbacks: Sequence[Callback],
    interrupts: Interrupts,
    profile: Profile,
  ):
    shared = directory
    if jax.process_index():
      # Checkpoints are written together; of the rest, each process keeps its own.
      directory = shared / f"process_{jax.process_index()}"
    directory.mkdir(parents=True, exist_ok=True)
    # One process tells how the run goes; what others would say is in their directories.
    self._log = (directory / "log.txt").open("a") if jax.process_index() else None
    self._callbacks = callbacks
    self._interrupts = interrupts
    self._profile = profile
    self._total_steps = config.train.steps
    self._eval_every_steps = config.eval.every_steps
    self._save_every_steps = config.checkpoint.every_steps
    self._saves_evaluated = config.checkpoint.keep_best > 0

    with config_lib.blaming("mesh"):
      self.mesh = sharding.make_mesh(config.mesh)
    arranged = program_lib.arrange(config, task, self.mesh)
    trainable, optimizer = arranged.trainable, arranged.optimizer
    if (share := program_lib.replicated(arranged)) > program_lib.REPLICATED_AT_MOST:
      told = f"{share:.1%} of the parameters' bytes are whole on every device"
      task = dataclasses.replace(task, notes=[*task.notes, told])
    # Of the stacks that may just have been copied, nothing keeps the originals.
    task = self._task = dataclasses.replace(task, variables=jax.eval_shape(lambda: task.variables))
    # Frozen companions, a teacher or a copy to compare with, are no parameters of the model.
    self._parameters = matrix.count(problem.of_model(task.variables))
    self._free_steps = _free_steps(config, task.variables["params"])
    self._range_batches = config.train.range_batches
    self._has_ranges = bool(quant.ranged(task.variables["params"]))

    self._step = program_lib.program(config, task, arranged)
    self._free_step = self._step
    if self._free_steps:
      self._free_step = program_lib.program(config, task, arranged, free=True)

    with config_lib.blaming("checkpoint"):
      self._checkpoints = Checkpoints(
        shared / "checkpoints",
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        best_metric=config.checkpoint.best_metric,
        best_mode=config.checkpoint.best_mode,
      )
    saved = self._checkpoints.latest_step()
    self._recorder = Recorder(
      directory,
      resume_step=saved,
      total_steps=self._total_steps,
      every_steps=config.log.every_steps,
      tensorboard=config.log.tensorboard,
      flops_per_token=program_lib.flops_per_token(task, trainable),
      peak_flops=config.log.peak_flops or throughput.peak_flops(),
      trainable_paths=list(tree.flatten(trainable)),
      max_nonfinite_steps=config.optimizer.max_nonfinite_steps,
      figures=task.figures,
      out=self._log,
    )
    config.require_all_read()
    write_json(directory / "config.json", config.to_dict())
    environment.append(directory / "environment.json", first_step=saved or 0)
    if saved is None:
      initial = state.create(trainable, optimizer, self.mesh)
    else:
      initial = self._restore(saved, arranged.shapes, arranged.shardings)
    self._context = Context(
      config=config,
      directory=directory,
      problem=task,
      total_steps=self._total_steps,
      step=saved or 0,
      state=initial,
      frozen=arranged.frozen,
      # Which are due, all processes have to agree on.
      evaluations=[(at, found) for at, found in distributed.of_first(_evaluations(directory))],
      say=self._recorder.say,
    )
    if self._has_ranges and saved is None:
      with config_lib.blaming("quantize"), jax.set_mesh(self.mesh):
        self._measure_ranges()

  def train(self) -> Results:
    """From where the run stands to its end."""
    context = self._context
    self._introduce()
    for callback in self._callbacks:
      callback.on_start(context)
    try:
      with self._interrupts.deferred():
        self._pause()
        while context.step < self._total_steps:
          with (
            distributed.blaming_others(),
            self._profile.step(context, self._recorder.drain),
          ):
            self._advance()
          self._pause()
    except Interrupted as interrupted:
      self._recorder.drain()
      self._profile.close()
      self._save(None)
      self._checkpoints.wait()
      context.say(f"{interrupted}: saved step {context.step}; the same command goes on from there")
      raise
    self._checkpoints.wait()
    first = jax.process_index() == 0
    # Rounded where steps were, whose arithmetic another device may not have.
    variables = context.variables
    variables = variables | {"params": quant.hold(variables["params"])}
    variables = sharding.fetched(variables, keep=first)
    if first:
      with sharding.on_host():
        self._task.export(context.directory, variables)
    for callback in self._callbacks:
      callback.on_end(context)
    results = self._results()
    write_json(context.directory / "results.json", results)
    return results

  def close(self) -> None:
    """Frees files and threads."""
    self._profile.close()
    self._recorder.close()
    self._checkpoints.close()
    if self._log:
      self._log.close()

  def _advance(self) -> None:
    """One step: dispatched, not waited for."""
    context = self._context
    if self._has_ranges and context.step and context.step == self._free_steps:
      self._measure_ranges()
    self._recorder.begin()
    with self._recorder.waiting():
      local = next(self._task.batches)
    if self._task.rewrite:
      local = self._task.rewrite(context.step, lambda: context.variables, local)
    batch = sharding.place(local, self.mesh)
    now = self._free_step if context.step < self._free_steps else self._step
    context.state, metrics = now(context.state, context.frozen, batch)
    context.step += 1
    self._recorder.push(context.step, metrics)

  def _measure_ranges(self) -> None:
    """Scales of rounded activations, by the model as it is and the batches ahead."""
    context, task = self._context, self._task
    found = ranges.found(
      task.model, context.variables, task.batches, self._range_batches, self.mesh
    )
    trainable = ranges.placed(context.state.trainable, found)
    context.state = dataclasses.replace(context.state, trainable=trainable)

  def _pause(self) -> None:
    """Between two steps: evaluates and saves if it is time, leaves if somebody asked."""
    now, every = self._context.step, self._eval_every_steps
    results = None
    evaluated = {at for at, _ in self._context.evaluations}
    due = now in (0, self._total_steps) or (every and now % every == 0)
    if self._task.evaluators and due and now not in evaluated:
      results = self._evaluate()
    every = self._save_every_steps
    due = now == self._total_steps or (every and now and now % every == 0)
    # An evaluation before the first step is saved too: nobody wants to wait for it twice.
    if due or (results and (self._saves_evaluated or now == 0)):
      self._save(results)
    self._interrupts.check(now)

  def _evaluate(self) -> Mapping[str, float]:
    context = self._context
    self._recorder.drain()
    variables = context.variables  # once: it may have to stack the base
    # Nothing changes here, so that a signal need not wait.
    with self._interrupts.deferred(False):
      results = [self._measure(evaluator, variables) for evaluator in self._task.evaluators]
    if not jax.process_index():
      file = context.directory / "evaluations" / f"{context.step}.json"
      file.parent.mkdir(exist_ok=True)
      name = f"{context.config.directory} at step {context.step}"
      write_json(file, {"name": name, "results": [result.to_json() for result in results]})
    figures = {
      f"eval/{result.name}/{metric}": float(value)
      for result in results
      for metric, value in result.metrics.items()
    }
    self._recorder.evaluation(context.step, figures)
    context.evaluations.append((context.step, figures))
    for callback in self._callbacks:
      callback.on_evaluation(context, results)
    return figures

  def _measure(self, evaluator: Evaluator, variables: Any) -> Result:
    """What `evaluator` finds; all processes run the same programs, on the same items."""
    with distributed.blaming_others():
      result = evaluator(self._task.model, variables, self._task.tokenizer)
    items = [record["id"] for record in result.records]
    distributed.require_same({"items": items}, f"what {result.name} judged")
    return result

  def _save(self, results: Mapping[str, float] | None) -> None:
    # The lines up to a checkpoint are on disk before it is: a run that goes on from it has them.
    self._recorder.drain()
    data = self._task.batches.get_state()
    self._checkpoints.save(self._context.step, self._context.state, data, results)

  def _restore(self, saved: int, shapes: Any, shardings: Any) -> state.TrainState:
    abstract = jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
      shapes,
      shardings,
    )
    restored, data = self._checkpoints.restore(saved, abstract)
    self._task.batches.set_state(data)
    return restored

  def _introduce(self) -> None:
    context = self._context
    trained, total = state.count(context.state.trainable), self._parameters
    context.say(
      f"{total:,} parameters, of which {trained:,} ({trained / total:.2%}) are trained\n"
      f"{self._task.batches.description()}"
    )
    for note in self._task.notes:
      context.say(note)
    if context.step:
      context.say(f"going on from step {context.step} of {self._total_steps}")

  def _results(self) -> Results:
    lines = metrics_lib.read_json_lines(self._context.directory / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    return {
      "steps": self._context.step,
      "loss": steps[-1]["loss"] if steps else None,
      "seconds": sum(line["seconds"] for line in steps),
      "tokens": sum(line["tokens"] for line in steps),
      "useful_tokens": sum(line["useful_tokens"] for line in steps),
      "skipped_updates": int(self._context.state.skipped),
      "trainable_parameters": state.count(self._context.state.trainable),
      "parameters": self._parameters,
      "evaluations": [{"step": at, **found} for at, found in self._context.evaluations],
    }


def _free_steps(config: config_lib.Config, params: Any) -> int:
  """How many first steps train what is to be rounded as it is."""
  count = config.train.round_after_steps
  if not 0 <= count < max(1, config.train.steps):
    raise config_lib.ConfigError(
      f"config.train.round_after_steps is {count}; of {config.train.steps} steps some are to train"
      " on the grid"
    )
  if count and not quant.trains_rounded(params):
    raise config_lib.ConfigError(
      "config.train.round_after_steps: nothing that trains is on a grid; config.quantize says what"
    )
  return count


def _evaluations(directory: Path) -> list[tuple[int, Mapping[str, float]]]:
  """The evaluations in metrics.jsonl."""
  found: list[tuple[int, Mapping[str, float]]] = []
  for line in metrics_lib.read_json_lines(directory / "metrics.jsonl"):
    results = {name: value for name, value in line.items() if name.startswith("eval/")}
    if results:
      found.append((line["step"], results))
  return found


def _require_same_config(directory: Path, config: config_lib.Config) -> None:
  """Raises ConfigError if the run in `directory` was started with another config."""
  if changed := identity.changed(directory, config):
    raise config_lib.ConfigError(
      f"{directory} holds a run with other values of {', '.join(changed)}; "
      "set them back to go on with it, or config.directory to start another"
    )
