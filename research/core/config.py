"""A run's configuration: a file and overrides in, a frozen view that knows what was read out.

A config file defines `get_config() -> ml_collections.ConfigDict`; the command line names the file
and overrides its keys (`--config=configs/x.py --config.optimizer.learning_rate=1e-4`). `Config`
remembers every key that somebody asked for, so that a run can refuse to start while a key of its
config is read by nothing.

A section that chooses a component by name, as in `{"name": "warmup_cosine", "warmup_steps": 10}`,
is the call of a function: its other keys are the function's keyword arguments (`call`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import itertools
import json
import re
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from research.core import tree


class ConfigError(ValueError):
  """What a person wrote in a config or on the command line cannot be; one line says why."""


class Config(Mapping[str, Any]):
  """A frozen mapping, by key or attribute, that remembers which of its leaves were read.

  Sections are `Config`s, sequences are tuples (with `Config`s in place of dicts). Looking a key up
  reads it; `in`, iteration and `len` do not.
  """

  def __init__(self, values: Mapping[str, Any], path: str = ""):
    fields: dict[str, Any] = {}
    for key, value in values.items():
      name = f"{path}.{key}" if path else key
      if not isinstance(key, str) or hasattr(Mapping, key) or hasattr(type(self), key):
        raise ConfigError(f"{name!r} cannot name a config key")
      fields[key] = _freeze(value, name)
    object.__setattr__(self, "_fields", fields)
    object.__setattr__(self, "_read", set())
    object.__setattr__(self, "_path", path)

  def __getitem__(self, key: str) -> Any:
    if key not in self._fields:
      where = f"config.{self._path}" if self._path else "config"
      raise KeyError(f"{where} has no key {key!r}{tree.nearest(str(key), self._fields)}")
    self._read.add(key)
    return self._fields[key]

  def __getattr__(self, key: str) -> Any:
    # Private names are looked up by copy and pickle before __init__ has run.
    if key.startswith("_"):
      raise AttributeError(key)
    try:
      return self[key]
    except KeyError as error:
      raise AttributeError(error.args[0]) from None

  def __setattr__(self, key: str, value: Any) -> None:
    raise AttributeError(f"a Config is frozen: cannot set {key!r}")

  def __contains__(self, key: object) -> bool:
    return key in self._fields

  def __iter__(self) -> Iterator[str]:
    return iter(self._fields)

  def __len__(self) -> int:
    return len(self._fields)

  def __repr__(self) -> str:
    return f"Config({self.to_dict()!r})"

  def to_dict(self) -> dict[str, Any]:
    """Plain dicts and lists, ready for JSON; reads nothing."""
    return {key: _thaw(value) for key, value in self._fields.items()}

  def take(self) -> dict[str, Any]:
    """`to_dict`, and all of it counts as read: for a component that checks its keys itself."""
    self._read.update(self._fields)
    for value in self._fields.values():
      for section in _sections(value):
        section.take()
    return self.to_dict()

  def unread(self) -> list[str]:
    """The dotted keys that were never read; a section that was never opened counts as one."""
    found = []
    for key, value in self._fields.items():
      if key not in self._read:
        found.append(self._dotted(key))
      for section in _sections(value) if key in self._read else ():
        found += section.unread()
    return found

  def dotted_keys(self, read_only: bool = False) -> list[str]:
    """The dotted keys of all sections and leaves, or of those that were read."""
    found = []
    for key, value in self._fields.items():
      if key in self._read or not read_only:
        found.append(self._dotted(key))
        for section in _sections(value):
          found += section.dotted_keys(read_only)
    return found

  def require_all_read(self) -> None:
    """Raises ConfigError naming the keys that nothing has read, and what is read instead."""
    unread, read = self.unread(), self.dotted_keys(read_only=True)
    if unread:
      told = [f"config.{key}{_nearest_key(key, read)}" for key in unread]
      raise ConfigError(f"nothing in this run reads {', '.join(told)}")

  def _dotted(self, key: str) -> str:
    return f"{self._path}.{key}" if self._path else key


def _freeze(value: Any, path: str) -> Any:
  if isinstance(value, ml_collections.ConfigDict | ml_collections.FieldReference):
    value = value.get() if isinstance(value, ml_collections.FieldReference) else value.to_dict()
  if isinstance(value, Mapping):
    return Config(value, path)
  if isinstance(value, list | tuple):
    return tuple(_freeze(item, f"{path}[{i}]") for i, item in enumerate(value))
  return value


def _thaw(value: Any) -> Any:
  if isinstance(value, Config):
    return value.to_dict()
  return [_thaw(item) for item in value] if isinstance(value, tuple) else value


def _sections(value: Any) -> list[Config]:
  """The sections that `value` is or holds."""
  if isinstance(value, Config):
    return [value]
  return [item for item in value if isinstance(item, Config)] if isinstance(value, tuple) else []


def _nearest_key(key: str, known: Sequence[str]) -> str:
  """`tree.nearest` among the keys of the same section, else among all."""
  section = key.rpartition(".")[0]
  siblings = [name for name in known if name.rpartition(".")[0] == section]
  return tree.nearest(key, siblings) or tree.nearest(key, known)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
  """The dotted keys whose values differ, or that only one has, between two plain configs.

  Values are compared as JSON has them, so that a config equals what was saved of it. A key that
  one lacks and that is empty in the other is no difference: keys that came with a later version
  are empty by default, and runs of the earlier one go on.
  """
  found = []
  for key in sorted({*first, *second}):
    a, b = first.get(key), second.get(key)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      found += [f"{key}.{name}" for name in differences(a, b)]
    elif key in first and key in second:
      found += [key] if _json(a) != _json(b) else []
    elif not _empty(b if key in second else a):
      found.append(key)
  return found


def _empty(value: Any) -> bool:
  """Whether it says nothing, as defaults of sections and keys do."""
  if isinstance(value, Mapping):
    return all(map(_empty, value.values()))
  return not value


def _json(value: Any) -> str:
  return json.dumps(value, sort_keys=True)


def call(
  registry: Mapping[str, Callable[..., Any]], section: Mapping[str, Any], **extra: Any
) -> Any:
  """`registry[section["name"]](**other_keys, **extra)`.

  Raises:
    ConfigError: the name is not in the registry, a key is not a keyword of the function, a
      keyword without default is missing, or a value is not of the type that a plain annotation
      (int, float, bool, str, None and unions of them) asks for.
  """
  where = f"config.{section._path}" if isinstance(section, Config) else "section"
  if "name" not in section:
    raise ConfigError(f"{where} has no 'name'; it is one of {', '.join(sorted(registry))}")
  name = section["name"]
  if name not in registry:
    raise ConfigError(
      f"{where}.name is {name!r}{tree.nearest(str(name), registry)}; "
      f"there are {', '.join(sorted(registry))}"
    )
  function = registry[name]
  keywords = {key: section[key] for key in section if key != "name"}
  parameters = {
    key: parameter
    for key, parameter in inspect.signature(function).parameters.items()
    if key not in extra
  }
  for key, value in keywords.items():
    if key not in parameters:
      raise ConfigError(
        f"{where}.{key}: {name} takes no {key!r}{tree.nearest(key, parameters)}; "
        f"it takes {', '.join(parameters) or 'nothing'}"
      )
    expected = _annotation(parameters[key])
    if not _fits(value, expected):
      raise ConfigError(f"{where}.{key} is {value!r}, which is not {expected}")
  for key, parameter in parameters.items():
    if parameter.default is parameter.empty and key not in keywords:
      raise ConfigError(f"{where} lacks {key!r}, which {name} needs")
  return function(**keywords, **extra)


def _annotation(parameter: inspect.Parameter) -> str:
  """A parameter's annotation as source text; a string annotation is that already."""
  annotation = parameter.annotation
  return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _fits(value: Any, annotation: str) -> bool:
  """Whether `value` is of one of the plain types of `int | None` and the like.

  True where the annotation has other parts: the function itself has to judge those.
  """
  kinds = [_PLAIN.get(part.strip()) for part in annotation.split("|")]
  if isinstance(value, bool):
    return None in kinds or any(bool in kind for kind in kinds if kind)
  return any(kind is None or isinstance(value, kind) for kind in kinds)


_PLAIN = {
  "int": (int,),
  "float": (int, float),
  "bool": (bool,),
  "str": (str,),
  "None": (types.NoneType,),
}


@contextlib.contextmanager
def blaming(key: str) -> Iterator[None]:
  """Makes what a component says about its arguments a ConfigError that names their key."""
  try:
    yield
  except ConfigError:
    raise
  except (ValueError, TypeError, FileNotFoundError, re.error) as error:
    raise ConfigError(f"config.{key}: {error}") from error


def from_command_line(argv: Sequence[str]) -> Config:
  """The config that `--config=FILE[:ARGUMENT]` and `--config.KEY=VALUE` of `argv` describe.

  Args:
    argv: the arguments, without the program's name.

  Raises:
    ConfigError: no such file, an unknown flag or key, or a value of the wrong type.
  """
  file, argument = _config_file(argv)
  known = _load(file, argument).dotted_keys()
  for flag in argv:
    override = re.match(r"--?(?:no)?config\.([^=]+)", flag)
    if override and override[1] not in known:
      raise ConfigError(f"{file} has no key {override[1]!r}{_nearest_key(override[1], known)}")
  parser = flags.FlagValues()
  command = ["research", *argv]
  holder = config_flags.DEFINE_config_file("config", flag_values=parser, sys_argv=command)
  try:
    _, *left = parser(command)
  except flags.Error as error:
    raise ConfigError(" ".join(str(error).split())) from error
  if left:
    raise ConfigError(f"unknown argument {left[0]!r}; overrides look like --config.KEY=VALUE")
  return Config(holder.value.to_dict())


def _config_file(argv: Sequence[str]) -> tuple[Path, list[str]]:
  """The config file that `argv` names, and what follows its colon."""
  for flag, after in itertools.pairwise([*argv, ""]):
    if match := re.fullmatch(r"--?config(=(.*))?", flag):
      name, *argument = (match[2] if match[1] else after).split(":", 1)
      file = Path(name)
      if not file.is_file():
        others = [str(path) for path in sorted(file.parent.glob("*.py"))]
        raise ConfigError(f"there is no config file {name!r}{tree.nearest(name, others)}")
      return file, argument
  raise ConfigError("which config? give --config=configs/NAME.py")


def _load(file: Path, argument: Sequence[str]) -> Config:
  """What the file's `get_config` returns; its mistakes against the base become one line."""
  spec = importlib.util.spec_from_file_location("research_config_file", file)
  if spec is None or spec.loader is None:
    raise ConfigError(f"{file} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return Config(module.get_config(*argument))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == spec.origin]
    message = " ".join(str(error).strip("\"'").split())
    if locked := re.match(r'Key "(.+?)" does not exist', message):
      close = re.search(r'Did you mean \\?"([^"\\]+)', message)
      nearest = f"; did you mean {close[1]!r}?" if close else ""
      message = f"the base config has no key {locked[1]!r} here{nearest}"
    where = f"{file}:{lines[-1]}" if lines else str(file)
    raise ConfigError(f"{where}: {message}") from error
