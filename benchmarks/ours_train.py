"""Our side of training: the step that `research.train` runs, on `benchmarks/config.py`.

Five works: `lora_step` on random tokens, also with other methods, `sft` on packed GSM8K through
our data pipeline, `dpo_step` on pairs of random tokens, `encoder_step`, of a classifier, and
`distillation_step`, of a student of half the layers.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import config as settings
from benchmarks import worker, workloads
from research import models, objectives, peft
from research.core import compile as compile_lib
from research.core import config as config_lib
from research.core import memory, sharding, tree
from research.loop import bound as bound_lib
from research.loop import learner as learner_lib
from research.loop import state as state_lib
from research.loop import step as step_lib
from research.models import unrolled
from research.optim import build as optim

# Packed rows hold about as many examples a step as the peer's padded batch of eight; the longest
# problem has fewer tokens than a row.
SFT_ROWS, SFT_LENGTH = 4, 512


class Training:
  """A model with adapters, its training state and its step, which compiles at first use.

  losses: of each step so far.
  """

  def __init__(self, config: config_lib.Config):
    compile_lib.run_inline()
    learner = learner_lib.build(config)
    bound = bound_lib.bind(config, learner, (), {})
    self.tokenizer = learner.tokenizer
    self.virtual_ids = peft.virtual_ids(learner.variables["adapters"])
    mesh = sharding.make_mesh(config.mesh)
    trainable, frozen = tree.partition(bound.variables, learner.trains)
    self._frozen = step_lib.arrange(learner.model, trainable, frozen, mesh, bound.beside)
    steps = config.train.steps
    around = peft.allocation(trainable, steps)
    optimizer, schedule = optim.build(config.optimizer, trainable, steps, around)
    step = step_lib.make_step(
      learner.model,
      bound.objective,
      optimizer,
      schedule,
      accumulate_steps=config.train.accumulate_steps,
      seed=config.seed,
    )
    self._step = step_lib.Program(step)
    self._state = state_lib.create(trainable, optimizer, mesh)
    self.trainable = tree.count(trainable)
    self.losses: list[float] = []

  @property
  def compile_seconds(self) -> float:
    """How long tracing and compiling has taken."""
    return self._step.seconds

  def advance(self, batch: dict[str, Any]) -> int:
    """One step, waited for; returns the number of tokens in it that are no padding."""
    self._state, metrics = self._step(self._state, self._frozen, batch)
    jax.block_until_ready(self._state)
    total, weight = metrics["sums"]["loss"]
    self.losses.append(float(total) / float(weight))
    return int(metrics["counts"]["useful_tokens"])


def lora_step(args: Any) -> tuple[dict[str, Any], Training]:
  """The same batch again and again."""
  section = settings.get_config(str(args.model), args.method)
  if args.device != "cpu":
    section.model.unroll = 0  # what `research.train` does there
  training = Training(config_lib.Config(section))
  batch = _random_batch(args.rows, args.length, training.virtual_ids)
  seconds = worker.time_steps(lambda: training.advance(batch), warmup=args.warmup, steps=args.steps)
  measured = {
    "tokens_per_second": worker.median_rate(seconds, batch["tokens"].size),
    "seconds": seconds,
    "first_loss": training.losses[0],
  }
  return measured, training


@contextlib.contextmanager
def gsm8k_batches(section: ConfigDict, tokenizer: Any, args: Any) -> Iterator[Any]:
  """Packed batches of `args.gsm8k`, enough for all steps; `section` becomes their config."""
  # Here, so that the LoRA step's memory is that of the step.
  from research.data import pipeline

  rows = workloads.gsm8k_rows(args.gsm8k, workloads.gsm8k_count(args.warmup + args.steps))
  with tempfile.TemporaryDirectory() as scratch:
    file = Path(scratch) / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    section.data.train.source = ConfigDict({"name": "jsonl", "path": str(file), "cache": scratch})
    section.data.train.length = SFT_LENGTH
    config = config_lib.Config(section)
    batches = pipeline.train_batches(
      config.data.train, tokenizer, batch_size=SFT_ROWS, seed=config.seed
    )
    try:
      yield batches
    finally:
      batches.close()


def sft(args: Any) -> tuple[dict[str, Any], Training]:
  """Fresh packed batches; taking a batch from the pipeline is part of the step."""
  section = settings.get_config(str(args.model))
  training = Training(config_lib.Config(section))
  useful: list[int] = []
  with gsm8k_batches(section, training.tokenizer, args) as batches:
    seconds = worker.time_steps(
      lambda: useful.append(training.advance(next(batches))),
      warmup=args.warmup,
      steps=args.steps,
    )
  useful = useful[args.warmup :]
  measured = {
    "tokens_per_second": worker.total_rate(seconds, useful),
    "seconds": seconds,
    "padding_fraction": 1 - sum(useful) / (args.steps * SFT_ROWS * SFT_LENGTH),
  }
  return measured, training


def encoder_step(args: Any) -> tuple[dict[str, Any], Training]:
  """The same batch of whole rows again and again, each with a class."""
  section = settings.get_config(str(args.model))
  section.model.unroll = 0
  section.model.head = {"name": "sequence", "labels": 2}
  section.objective = {"name": "classification"}
  training = Training(config_lib.Config(section))
  tokens, classes = workloads.encoder_rows()
  first = np.arange(tokens.shape[1]) == 0
  batch = {
    "tokens": tokens,
    "labels": np.where(first, classes[:, None], 0),
    "weights": np.broadcast_to(first.astype(np.float32), tokens.shape),
    "segments": np.ones_like(tokens),
    "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
  }
  batch = {name: jnp.asarray(rows) for name, rows in batch.items()}
  seconds = worker.time_steps(lambda: training.advance(batch), warmup=args.warmup, steps=args.steps)
  measured = {
    "tokens_per_second": worker.median_rate(seconds, tokens.size),
    "seconds": seconds,
    "first_loss": training.losses[0],
  }
  return measured, training


def dpo_step(args: Any) -> tuple[dict[str, Any], Training]:
  """The same pairs again and again, against the base or against what is kept of it."""
  section = settings.get_config(str(args.model))
  section.objective = {
    "name": "preference",
    "loss": {"name": "sigmoid", "beta": workloads.BETA},
    "reference": "kept" if args.kept else "base",
  }
  training = Training(config_lib.Config(section))
  tokens = workloads.pairs()
  weights = np.zeros(tokens.shape, np.float32)
  weights[:, workloads.PAIR_PROMPT_TOKENS - 1 : -1] = 1
  batch = {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": weights,
    "segments": np.ones_like(tokens),
    "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
    "row": np.repeat(np.arange(workloads.PAIRS, dtype=np.int32), 2),
    "margin": np.zeros(len(tokens), np.float32),
  }
  if args.kept:
    batch["reference"] = np.full(len(tokens), -1, np.float32)
  batch = {name: jnp.asarray(rows) for name, rows in batch.items()}
  seconds = worker.time_steps(lambda: training.advance(batch), warmup=args.warmup, steps=args.steps)
  measured = {
    "tokens_per_second": worker.median_rate(seconds, tokens.size),
    "seconds": seconds,
    "first_loss": training.losses[0],
  }
  return measured, training


def distillation_step(args: Any) -> tuple[dict[str, Any], Training]:
  """The same batch again and again for a student, from its teacher or by cross-entropy alone.

  `--teacher=apart` is cross-entropy, and then the teacher's own forward pass up to its loss.
  """
  section = settings.get_student(str(args.model), args.teacher)
  training = Training(config_lib.Config(section))
  batch = _random_batch(args.rows, args.length, [])
  if args.teacher == "kept":
    batch |= _kept(section.teacher.keep_tokens, batch["tokens"])
  forward = _forward_pass(str(args.model), batch) if args.teacher == "apart" else None

  def advance() -> None:
    training.advance(batch)
    if forward is not None:
      forward()

  seconds = worker.time_steps(advance, warmup=args.warmup, steps=args.steps)
  measured = {
    "tokens_per_second": worker.median_rate(seconds, batch["tokens"].size),
    "seconds": seconds,
    "first_loss": training.losses[0],
  }
  return measured, training


def _kept(count: int, tokens: jax.Array) -> dict[str, jax.Array]:
  """What is in a batch of a teacher of which `count` tokens were kept, of made-up numbers."""
  shape = (*tokens.shape, count)
  ids = (tokens[..., None] + jnp.arange(count)) % workloads.VOCABULARY
  return {
    "teacher_ids": ids.astype(jnp.int32),
    "teacher_log_probs": jnp.full(shape, -np.log(2 * count), jnp.float16),
  }


def _forward_pass(source: str, batch: dict[str, jax.Array]) -> Callable[[], None]:
  """The model's forward pass up to the loss of each token, by straight-line code."""
  model, params, _ = models.load(source, dtype=jnp.bfloat16)
  variables = unrolled.unstack({"params": params})
  loss = objectives.build({"name": "causal"})
  run = jax.jit(
    lambda variables, batch: loss(model, variables, batch, None, None)[0],
    compiler_options=compile_lib.options(),
  )
  return lambda: jax.block_until_ready(run(variables, batch))


def _random_batch(rows: int, length: int, virtual_ids: list[int]) -> dict[str, jax.Array]:
  """The LoRA step's batch: ordinary tokens, virtual ones first, one document a row."""
  tokens = workloads.random_tokens(rows, length)
  tokens[:, : len(virtual_ids)] = virtual_ids
  weights = np.ones(tokens.shape, np.float32)
  weights[:, -1] = 0
  weights[:, : len(virtual_ids)] = 0
  batch = {
    "tokens": tokens,
    "targets": np.roll(tokens, -1, axis=1),
    "weights": weights,
    "segments": np.ones_like(tokens),
    "positions": np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape),
  }
  return {name: jnp.asarray(rows) for name, rows in batch.items()}


def main() -> None:
  """Runs one of the works and prints its figures as a line of JSON."""
  parser = worker.parser(__doc__)
  works = {
    "lora_step": lora_step,
    "sft": sft,
    "dpo_step": dpo_step,
    "encoder_step": encoder_step,
    "distillation_step": distillation_step,
  }
  parser.add_argument("work", choices=tuple(works))
  parser.add_argument(
    "--method", choices=tuple(settings.METHODS), default="lora", help="of lora_step"
  )
  parser.add_argument(
    "--teacher",
    choices=settings.TEACHERS,
    default=settings.TEACHERS[0],
    help="of distillation_step: in the step, kept before, after a step without one, or none",
  )
  parser.add_argument("--rows", type=int, default=workloads.STEP_BATCH, help="of random tokens")
  parser.add_argument("--length", type=int, default=workloads.STEP_TOKENS, help="of those")
  parser.add_argument("--gsm8k", type=Path, help="train.jsonl of GSM8K; sft needs it")
  parser.add_argument(
    "--kept", action="store_true", help="of dpo_step: with precomputed log-probabilities"
  )
  args = parser.parse_args()
  measured, training = works[args.work](args)
  worker.report(
    ("jax", "flax", "optax"),
    **measured,
    peak_bytes=memory.peak_bytes(),
    compile_seconds=training.compile_seconds,
    trainable=training.trainable,
  )


if __name__ == "__main__":
  main()
