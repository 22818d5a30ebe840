"""What a run trains, as its config tells: the model, its parameters and its adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from research import models, peft, quant
from research.core import config as config_lib
from research.core import matrix, tree
from research.core import rng as rng_lib
from research.data.tokenizer import Tokenizer
from research.loop import state as state_lib
from research.models import heads, students
from research.nn import attention, remat
from research.peft.lora import LoRA


@dataclasses.dataclass(frozen=True)
class Learner:
  """A model to be trained.

  variables: `{"params": ..., "adapters": ...}`; adapters that begin as a part of the base have been
    taken out of it.
  trains: says of a path of `variables` and its leaf whether the optimizer changes it.
  fresh: paths of parameters that the checkpoint lacks.
  starts: those adapters as they begin, for `peft.plain`.
  tasks: names of the tasks that have adapters of their own, by slot of their bank.
  cut: the model is another than its source, a student made from it.
  """

  model: Any
  tokenizer: Any
  variables: dict[str, Any]
  trains: Callable[[str, Any], bool]
  fresh: frozenset[str]
  starts: dict[str, LoRA]
  tasks: tuple[str, ...]
  cut: bool

  def base_obstacle(self) -> str | None:
    """Why the model without its adapters is no teacher or reference of the run; None if it can be.

    Where it can be, it needs no second copy.
    """
    params = matrix.flatten(self.variables["params"])
    moving = [path for path, leaf in params.items() if self.trains(f"params/{path}", leaf)]
    if moving:
      return f"{moving[0]} trains"
    if self.starts:
      return "adapters began as a part that was taken out of it (start)"
    if peft.virtual_ids(self.variables["adapters"]):
      return "adapters put virtual tokens in rows, which it cannot read"
    return None


def build(config: config_lib.Config, load: Callable[..., Any] = models.load) -> Learner:
  """What `model`, `adapters` and `trainable` describe; frozen parameters as activations' type.

  Args:
    load: opens the source; `models.invent` where the numbers do not matter.

  Raises:
    ConfigError: one of them cannot be; the message names it.
  """
  with config_lib.blaming("model"):
    dtype = jnp.dtype(config.model.dtype)
    # What trains does so in float32; it should start from all the bits there are.
    param_dtype = dtype if adapters_alone(config) else jnp.float32
    model, params, tokenizer, fresh = _model(config, dtype, param_dtype, load)
  with config_lib.blaming("adapters"):
    rng = rng_lib.root(config.seed, "adapters")
    tasks = peft.tasks(config.adapters)
    adapters = peft.attach(config.adapters, params, rng, tokenizer)
    adapters = peft.prefill(adapters, model, params)
    adapter_trains = peft.trainable_paths(adapters)
  variables = {"params": peft.residual(params, adapters), "adapters": adapters}
  trains = state_lib.trains(
    config.trainable, variables, lambda path, _: path in adapter_trains, fresh
  )
  kernels = matrix.flatten(params)
  for path, adapter in peft.sites(adapters):
    if adapter.frozen_kernel and trains(f"params/{path}", kernels[path]):
      raise config_lib.ConfigError(
        f"config.trainable: {type(adapter).__name__} needs the kernel at {path!r} frozen"
      )
  variables = tree.map_with_path(
    lambda path, leaf: leaf.astype(_type_of(path, leaf, trains, dtype)), variables
  )
  if config.quantize:
    with config_lib.blaming("quantize"):
      variables = _rounded(variables, config.quantize, trains)
    # Of what trains in another form it is the numbers that do.
    trains = _of_parameters(trains)
  elif early := [path for path, node in peft.sites(adapters) if getattr(node, "loftq", False)]:
    raise config_lib.ConfigError(
      f"config.quantize: the adapter at {early[0]!r} begins as what rounding takes from its kernel"
      " (loftq), and nothing is in few bits"
    )
  cut = bool(config.model.student)
  return Learner(model, tokenizer, variables, trains, fresh, peft.starts(adapters), tasks, cut)


def _rounded(
  variables: dict[str, Any], rules: quant.Rules, trains: Callable[[str, Any], bool]
) -> dict[str, Any]:
  """With what of the base is frozen in few bits, what trains on their grid, and adapters on that.

  Raises:
    ValueError: see `quant.quantize`.
  """
  params = variables["params"]
  flat = matrix.flatten(params)
  chosen = quant.schemes(rules, params)
  learnt = {path for path in chosen if trains(f"params/{path}", flat[path])}
  held = quant.quantize(params, {p: s for p, s in chosen.items() if p not in learnt})
  held = quant.train(held, {p: s for p, s in chosen.items() if p in learnt})
  return {"params": held, "adapters": peft.moved(variables["adapters"], held, params)}


def _of_parameters(trains: Callable[[str, Any], bool]) -> Callable[[str, Any], bool]:
  return lambda path, leaf: trains(matrix.parameter_of(path), leaf)


def adapters_alone(config: config_lib.Config) -> bool:
  """Whether nothing of the base trains, new heads aside."""
  return set(config.trainable) == {"adapters"}


def _model(
  config: config_lib.Config, dtype: Any, param_dtype: Any, load: Callable[..., Any]
) -> tuple[Any, Any, Any, frozenset[str]]:
  """The model that `config.model` names, or describes by its shape, with parameters and tokenizer.

  And the paths of parameters of a head that the checkpoint has not.

  Raises:
    ValueError: it does both, or neither, or the tokenizer does not fit; `remat` is no policy, or
      `attention` no implementation.
  """
  remat.require(config.model.remat)
  attention.require(config.model.attention)
  section = dict(config.model)
  source, shape, directory = (section.pop(key) for key in ("source", "shape", "tokenizer"))
  shape, section["dtype"] = shape.take(), dtype
  head, student = section.pop("head", None), section.pop("student", None)
  if bool(source) == bool(shape):
    raise ValueError("give either source, a checkpoint, or shape, that of a model to be trained")
  if source:
    if directory:
      raise ValueError("a tokenizer is for a model of a given shape; a source has its own")
    model, params, tokenizer = load(source, param_dtype=param_dtype, **section)
    if student:
      if head:
        raise ValueError("a student is a decoder, and a head is for an encoder; give one of them")
      if student.get("name") == "fresh" and adapters_alone(config):
        raise ValueError(
          "a student of random weights learns nothing by adapters; set trainable to 'all'"
        )
      rng = rng_lib.root(config.seed, "student")
      model, params = students.build(student, model, params, rng)
    if not head:
      return model, params, tokenizer, frozenset()
    model, params, fresh = heads.attach(model, params, head, rng_lib.root(config.seed, "head"))
    return model, params, tokenizer, fresh
  if student:
    raise ValueError("a student is made from a source; a model of a given shape is what it is")
  if head:
    raise ValueError("a head is for a source; a model of a given shape has that of its config")
  if adapters_alone(config):
    raise ValueError("a model of random weights learns nothing by adapters; set trainable to 'all'")
  if not directory:
    raise ValueError("a model of a given shape needs a tokenizer, a directory")
  tokenizer = Tokenizer.from_directory(directory)
  special = {"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad_id}
  model = models.build({**special, **shape}, **section)
  if tokenizer.vocab_size > model.config.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocab_size is"
      f" {model.config.vocab_size}"
    )
  params = models.initialize(model, rng_lib.root(config.seed, "init"))
  return model, params, tokenizer, frozenset()


def _type_of(path: str, leaf: Any, trains: Callable[[str, Any], bool], dtype: Any) -> Any:
  """The type of a leaf in the run: of the base that of activations, but for what trains."""
  if not path.startswith("params/") or not jnp.issubdtype(leaf.dtype, jnp.floating):
    return leaf.dtype
  whole = matrix.parameter_of(path) == path
  if trains(path, leaf):  # scales of what is in few bits train in all bits, too
    return leaf.dtype if whole else jnp.float32
  return dtype if whole else leaf.dtype
