"""The least problem that the loop can drive: an embedding and a head, on counted-out batches."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from research.core.config import Config
from research.loop.problem import Problem

VOCAB, WIDTH, ROWS, LENGTH = 11, 4, 4, 6


class TinyModel(nn.Module):
  """Predicts a token from the one before."""

  @nn.compact
  def __call__(self, tokens, positions=None, segments=None):
    x = nn.Embed(VOCAB, WIDTH, name="embed")(tokens)
    x = nn.Dropout(0.2)(x, deterministic=not self.has_rng("dropout"))
    return nn.Dense(VOCAB, name="lm_head")(x)


def tiny_loss(model, variables, batch, rng, step):
  """Cross-entropy, with dropout in training."""
  del step
  rngs = {} if rng is None else {"dropout": rng}
  logits = model.apply({"params": variables["params"]}, batch["tokens"], rngs=rngs)
  logits = logits - variables["adapters"].get("shift", 0.0)
  log_probs = jax.nn.log_softmax(logits)
  found = jnp.take_along_axis(log_probs, batch["targets"][..., None], -1)[..., 0]
  right = (logits.argmax(-1) == batch["targets"]) * batch["weights"]
  weight = batch["weights"].sum()
  return -(found * batch["weights"]).sum(), weight, {"accuracy": (right.sum(), weight)}


def tiny_loss_without_dropout(model, variables, batch, rng, step):
  """The same, a function of the batch alone."""
  del rng
  return tiny_loss(model, variables, batch, None, step)


def tiny_batch(number, rows=ROWS):
  """Batch `number`: random tokens, rows of different lengths and weights."""
  rng = np.random.default_rng(number)
  lengths = rng.integers(1, LENGTH + 1, size=(rows, 1))
  real = np.arange(LENGTH) < lengths
  return {
    "tokens": rng.integers(0, VOCAB, size=(rows, LENGTH), dtype=np.int32),
    "targets": rng.integers(0, VOCAB, size=(rows, LENGTH), dtype=np.int32),
    "weights": (real * rng.uniform(0.1, 2, size=real.shape)).astype(np.float32),
    "segments": real.astype(np.int32),
    "positions": np.where(real, np.arange(LENGTH), 0).astype(np.int32),
  }


class TinyBatches:
  """Batches 0, 1, 2, ...; `before(number)` runs before each is handed out."""

  def __init__(self, before=lambda number: None, change=lambda number, batch: batch):
    self._next = 0
    self._before = before
    self._change = change

  def __next__(self):
    number, self._next = self._next, self._next + 1
    self._before(number)
    return self._change(number, tiny_batch(number))

  def get_state(self):
    return {"next": self._next}

  def set_state(self, state):
    self._next = state["next"]

  def description(self):
    return "counted-out batches"


MODEL = TinyModel()
# One initialization for all tests: what differs between them is never the model.
PARAMS = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def tiny_export(directory, variables):
  """Whatever the loop hands over to be exported."""
  np.save(directory / "exported.npy", variables["params"]["lm_head"]["bias"])


def tiny_problem(batches=None, evaluators=()):
  """The problem, everything in training."""
  return Problem(
    model=MODEL,
    tokenizer=None,
    variables={"params": PARAMS, "adapters": {}},
    trains=lambda path, leaf: True,
    objective=tiny_loss,
    batches=batches or TinyBatches(),
    evaluators=evaluators,
    forward_flops=lambda length: 1000.0 + length,
    export=tiny_export,
  )


def tiny_config(directory, compilation_cache, **changes):
  """A config of 8 steps that saves every 3, changed by dotted keys written with `__`."""
  config = base.get_config().unlock()
  config.directory = str(directory)
  config.compilation_cache = str(compilation_cache)
  config.train.steps = 8
  config.optimizer.learning_rate = 0.05
  config.checkpoint.every_steps = 3
  config.log.peak_flops = 1e12
  config.log.tensorboard = False
  # What only the assembly of a real problem reads.
  for key in (
    "model",
    "adapters",
    "quantize",
    "trainable",
    "teacher",
    "objective",
    "data",
  ):
    del config[key]
  for key in ("batch_size", "on_policy", "rollout"):
    del config.train[key]
  del config.eval["evaluators"]
  for key, value in changes.items():
    section = config
    *parents, name = key.split("__")
    for parent in parents:
      section = section[parent]
    section[name] = value
  return Config(config.to_dict())


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
  """The step is the same in all runs: compiled once."""
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def tiny(compilation_cache):
  """What this file defines, for tests to use."""
  return types.SimpleNamespace(
    model=MODEL,
    params=PARAMS,
    loss=tiny_loss,
    loss_without_dropout=tiny_loss_without_dropout,
    batch=tiny_batch,
    Batches=TinyBatches,
    problem=tiny_problem,
    config=functools.partial(tiny_config, compilation_cache=compilation_cache),
  )
