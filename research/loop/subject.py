"""A model to be used, as commands name it: a checkpoint, with an adapter, or a run's result."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.core import config as config_lib


@dataclasses.dataclass
class Subject:
  """A model, its variables and its tokenizer, under a name for people.

  base: the source of the model that it was made from.
  """

  name: str
  model: Any
  variables: dict[str, Any]
  tokenizer: Any
  base: str


def add_arguments(parser: argparse.ArgumentParser, title: str) -> None:
  """The flags `--model`, `--adapter`, `--run` and `--dtype`."""
  group = parser.add_argument_group(title)
  group.add_argument(
    "--model", metavar="MODEL", help="a Hugging Face directory, a GGUF file or a known name"
  )
  group.add_argument(
    "--adapter", type=Path, metavar="DIR", help="an adapter of --model, in PEFT's format"
  )
  group.add_argument(
    "--run", type=Path, metavar="DIR", help="a run's directory, in place of --model"
  )
  group.add_argument(
    "--dtype", choices=("bfloat16", "float32"), help="default: the config's, or bfloat16"
  )


def load_model(source: str, dtype: str) -> Subject:
  """A checkpoint, a GGUF file or a known name.

  Raises:
    ValueError: it has no tokenizer, or as `research.models.load`.
  """
  import jax.numpy as jnp

  from research import models

  model, params, tokenizer = models.load(source, dtype=jnp.dtype(dtype))
  if tokenizer is None:
    raise ValueError(f"{source} has no tokenizer")
  return Subject(source, model, {"params": params}, tokenizer, source)


def with_adapter(subject: Subject, directory: Path) -> Subject:
  """The base of `subject` with the adapter in `directory`."""
  from research import peft
  from research.models import families

  config = subject.model.config
  params = subject.variables["params"]
  adapters = peft.load(directory, params, families.find(config.family).modules(config))
  params, adapters = peft.install(params, adapters)
  variables = {"params": params, "adapters": adapters}
  return dataclasses.replace(subject, name=str(directory), variables=variables)


def is_run_config(saved: Mapping[str, Any]) -> bool:
  """Whether this is what a run's `config.json` holds, and not a model's."""
  return isinstance(saved.get("model"), Mapping) and "source" in saved["model"]


def run_config(directory: Path) -> config_lib.Config:
  """The config of the run in `directory`.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is a model's directory.
  """
  file = directory / "config.json"
  if not file.is_file():
    raise FileNotFoundError(f"{directory} is no run: it has no config.json")
  saved = json.loads(file.read_text())
  if not is_run_config(saved):
    raise ValueError(f"{file} is not a run's config; a model's directory goes to --model")
  return config_lib.Config(saved)


def load_run(directory: Path, dtype: str | None = None) -> Subject:
  """A run's model as it ended: its base with `adapter/`, or the whole of `model/`.

  Raises:
    FileNotFoundError: the run has not come to its end, or is none.
  """
  config = run_config(directory)
  dtype = dtype or config.model.dtype
  if (directory / "adapter").is_dir():
    subject = with_adapter(load_model(config.model.source, dtype), directory / "adapter")
  elif (directory / "model").is_dir():
    subject = load_model(str(directory / "model"), dtype)
    subject.base = config.model.source
  else:
    raise FileNotFoundError(f"{directory} holds neither adapter/ nor model/; is the run complete?")
  return dataclasses.replace(subject, name=str(directory))


def load(args: argparse.Namespace) -> Subject:
  """What the flags of `add_arguments` name."""
  if args.run:
    return load_run(args.run, args.dtype)
  subject = load_model(args.model, args.dtype or "bfloat16")
  return with_adapter(subject, args.adapter) if args.adapter else subject
