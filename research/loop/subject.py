"""A model to be used, as commands name it: a checkpoint, with an adapter, or a run's result."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.core import config as config_lib


@dataclasses.dataclass
class Subject:
  """A model, its variables and its tokenizer, under a name for people.

  base: the source of the model that it was made from.
  beside: the paths of the `params` that came with its adapter.
  bank: the named adapters that `variables` hold, a `peft.Bank`, if they do.
  """

  name: str
  model: Any
  variables: dict[str, Any]
  tokenizer: Any
  base: str
  beside: frozenset[str] = frozenset()
  bank: Any = None


def add_arguments(parser: argparse.ArgumentParser, title: str) -> None:
  """The flags `--model`, `--adapter`, `--run` and `--dtype`."""
  group = parser.add_argument_group(title)
  group.add_argument(
    "--model", metavar="MODEL", help="a Hugging Face directory, a GGUF file or a known name"
  )
  group.add_argument(
    "--adapter",
    action="append",
    default=[],
    metavar="[NAME=]DIR",
    help="an adapter of --model, in PEFT's format; several with names, for research.generate",
  )
  group.add_argument(
    "--run", type=Path, metavar="DIR", help="a run's directory, in place of --model"
  )
  group.add_argument(
    "--dtype", choices=("bfloat16", "float32"), help="default: the config's, or bfloat16"
  )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
  """What `parser` makes of `argv`; it ends there if the flags above name no subject, or two."""
  args = parser.parse_args(argv)
  if bool(args.run) == bool(args.model):
    parser.error("give one of --model and --run")
  if args.run and args.adapter:
    parser.error("--run names its adapter itself; leave --adapter out")
  return args


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
  """The base of `subject` with the adapter in `directory`, and with the modules beside it."""
  from research import peft

  found = _adapters(subject, directory)
  params, adapters = peft.install(subject.variables["params"], found)
  beside = frozenset(dict(peft.sites(found))) - frozenset(dict(peft.sites(adapters)))
  variables = {"params": params, "adapters": adapters}
  return dataclasses.replace(subject, name=str(directory), variables=variables, beside=beside)


def _adapters(subject: Subject, directory: Path) -> Any:
  from research import peft
  from research.models import scored

  modules = scored.modules(subject.model.config)
  return peft.load(directory, subject.variables["params"], modules)


def with_adapters(subject: Subject, given: Sequence[str]) -> Subject:
  """The base of `subject` with the adapter `DIR`, or with a bank of those given as `NAME=DIR`.

  Raises:
    ValueError: one of several has no name, or two have one; or as `research.peft.bank`.
  """
  if not given:
    return subject
  named: dict[str, Path] = {}
  for text in given:
    match = re.fullmatch(r"(\w[\w.-]*)=(.+)", text)
    if match is None or Path(text).is_dir():
      if len(given) > 1:
        raise ValueError(f"several adapters have names, --adapter NAME=DIR; {text!r} has none")
      return with_adapter(subject, Path(text))
    if match[1] in named:
      raise ValueError(f"two adapters are named {match[1]!r}")
    named[match[1]] = Path(match[2])
  return _with_bank(subject, named)


def _with_bank(subject: Subject, named: Mapping[str, Path]) -> Subject:
  from research import peft

  bank = peft.bank({name: _adapters(subject, directory) for name, directory in named.items()})
  variables = {"params": subject.variables["params"], "adapters": bank.adapters}
  return dataclasses.replace(subject, variables=variables, bank=bank)


def one(subject: Subject, name: str | None) -> Subject:
  """`subject` with one adapter of its bank, or with none of them.

  Raises:
    ValueError: it has a name and no bank, or one that the bank has not.
  """
  if subject.bank is None:
    if name is not None:
      raise ValueError(f"{name!r} is no adapter here: name them by --adapter NAME=DIR")
    return subject
  variables = {"params": subject.variables["params"]}
  if name is not None:
    variables["adapters"] = subject.bank.take(name)
  return dataclasses.replace(subject, variables=variables, bank=None)


def require_one(subject: Subject) -> Subject:
  """`subject`, unless its adapters are several.

  Raises:
    ValueError: they are.
  """
  if subject.bank is not None:
    names = ", ".join(subject.bank.names)
    raise ValueError(
      f"{subject.name} has several adapters, {names}: give one of them as --model=MODEL"
      " --adapter=DIR"
    )
  return subject


def merged(subject: Subject) -> Any:
  """The parameters of `subject` with its adapters merged, of which it has one or none.

  Kernels in few bits that have an adapter become the numbers they stand for.

  Raises:
    ValueError: adapters are several, or cannot be merged.
  """
  from research import peft

  variables = require_one(subject).variables
  adapters = variables.get("adapters")
  return peft.merge(variables["params"], adapters) if adapters else variables["params"]


def adapter(subject: Subject) -> Any:
  """The adapter of `subject` as its files hold it, with what was trained whole beside.

  Raises:
    ValueError: there is none, or there are several.
  """
  from research import peft

  variables = require_one(subject).variables
  if "adapters" not in variables:
    raise ValueError(f"{subject.name} has no adapter; it is a whole model")
  return peft.with_saved(variables["adapters"], variables["params"], subject.beside)


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

  Adapters of each task, `adapter/NAME/`, are a bank. A base that was in few bits is so again.

  Raises:
    FileNotFoundError: the run has not come to its end, or is none.
  """
  config = run_config(directory)
  dtype = dtype or config.model.dtype
  each = sorted(file.parent for file in directory.glob("adapter/*/adapter_config.json"))
  if each:
    subject = _base(config, dtype)
    subject = _with_bank(subject, {path.name: path for path in each})
  elif (directory / "adapter").is_dir():
    subject = _base(config, dtype)
    if config.model.get("head"):
      # Its numbers are in the adapter's files, beside it.
      subject = _with_head(subject, config.model.head)
    subject = with_adapter(subject, directory / "adapter")
  elif (directory / "model").is_dir():
    subject = load_model(str(directory / "model"), dtype)
    subject.base = config.model.source
  else:
    raise FileNotFoundError(f"{directory} holds neither adapter/ nor model/; is the run complete?")
  return dataclasses.replace(subject, name=str(directory))


def _base(config: config_lib.Config, dtype: str) -> Subject:
  """What a run's adapters were trained on."""
  from research import quant

  subject = load_model(config.model.source, dtype)
  # What began as a part of the base was taken out before that was rounded; the adapter is for the
  # base as it was, and is nearer to what was trained there.
  rules, adapters = config.get("quantize", ()), config.get("adapters", ())
  if any(rule.get("start") in ("olora", "pissa") for rule in adapters):
    return subject
  held = quant.quantize(subject.variables["params"], rules)
  return dataclasses.replace(subject, variables={"params": held})


def _with_head(subject: Subject, section: Mapping[str, Any]) -> Subject:
  """The subject with a new head, of the kind that a run's config asks for."""
  from research.core import rng
  from research.models import heads

  params = subject.variables["params"]
  model, params, _ = heads.attach(subject.model, params, section, rng.root(0, "head"))
  return dataclasses.replace(subject, model=model, variables={"params": params})


def load(args: argparse.Namespace) -> Subject:
  """What the flags of `add_arguments` name."""
  if args.run:
    return load_run(args.run, args.dtype)
  subject = load_model(args.model, args.dtype or "bfloat16")
  return with_adapters(subject, args.adapter)
