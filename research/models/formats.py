"""Models and adapters written for other programs, each checked by loading what was written."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research import peft, quant
from research.core import matrix, tree
from research.data.tokenizer import Tokenizer
from research.io import gguf_write
from research.models import agreement, scored
from research.models.load import Model, load, save, save_quantized
from research.models.quantized import OURS
from research.models.save_gguf import save_gguf
from research.peft.bottleneck import Bottleneck
from research.quant import Mixed, QArray

Tree = Any


@dataclasses.dataclass(frozen=True)
class Format:
  """What a model, or an adapter of it, can be written as.

  types: of the matrices. default: one of them. directory: whether it is one, or else a file.
  write: `(path, model, params, tokenizer, type)`; raises RuntimeError where the tensors that it
    reads back are not to the bit those that it meant. None: adapters alone (`export_adapters`).
  method: how parameters in few bits are stored (`quantized.write`); formats without one get the
    numbers that those stand for.
  """

  types: tuple[str, ...]
  default: str
  directory: bool
  write: Callable[[Path, Model, Tree, Tokenizer, str], None] | None
  method: str = ""


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written.

  files: the bytes of each. parameters: their number, as they are in memory.
  difference: the largest of a parameter to what it was, absolute. path: of that parameter, empty
    where there is none.
  """

  files: dict[str, int]
  parameters: int
  difference: float
  path: str


def export(
  path: str | os.PathLike[str],
  model: Model,
  params: Tree,
  tokenizer: Tokenizer,
  *,
  format: str = "hf",
  type: str | None = None,
) -> Exported:
  """Writes a model, loads it again, compares, and only then gives it its name.

  Args:
    path: a file or a directory, as the format has it, which is not there or is an empty directory.
    params: the model's parameters, adapters merged; arrays, `QArray`s and `Mixed`s.
    format: a key of `FORMATS`. type: one of its types, its default if None.

  Raises:
    ValueError: the format or its type is unknown, or is of adapters alone, something stands at
      `path`, or as the format.
    RuntimeError: what was loaded is not what was written.
  """
  path = Path(path)
  form = require(format, type)
  require_free(path, form)
  if form.write is None:
    raise ValueError(f"{format} holds adapters alone, and no model")
  if not form.method:
    params = quant.dequantize(params)
  with _placed(path) as written:
    form.write(written, model, params, tokenizer, type or form.default)
    return _loaded(written, model, params, tokenizer)


def export_adapters(
  path: str | os.PathLike[str], model: Model, params: Tree, adapters: Tree, *, base_model: str
) -> Exported:
  """Writes adapters in PEFT's format, loads them again, compares, and only then names them.

  Args:
    path: a directory, which is not there or is empty.
    params: what `adapters` are for.
    adapters: as `peft.load` gives them, modules that were trained beside them included; in float32.
    base_model: the source of `model`, which PEFT's config names.

  Raises:
    ValueError: PEFT has no such method, or something stands at `path`.
    RuntimeError: what was loaded is not to the bit what was written.
  """
  path = Path(path)
  require_free(path, FORMATS["peft"])
  for site, adapter in peft.sites(adapters):
    if isinstance(adapter, Bottleneck):  # which `peft.save` writes for others
      raise ValueError(f"PEFT has no bottlenecks, as at {site!r}; AdapterHub and we do")
  modules = scored.modules(model.config)
  with _placed(path) as written:
    task_type = scored.task_type(model.config)
    peft.save(written, adapters, modules, base_model=base_model, task_type=task_type)
    found = peft.load(written, params, modules)
    if len({jax.tree.structure(each) for each in (found, adapters)}) > 1:
      raise RuntimeError(f"what was written to {path.name} was loaded with other sites or settings")
    _require_same(found, adapters)
    trained = peft.trainable_paths(adapters)
    count = sum(leaf.size for name, leaf in tree.flatten(adapters).items() if name in trained)
    return Exported(_files(written), count, 0.0, "")


def require(format: str, type: str | None) -> Format:
  """The format of that name, which has that type or is asked for none.

  Raises:
    ValueError: there is none, or it has no such type.
  """
  if format not in FORMATS:
    raise ValueError(
      f"format {format!r} is unknown; known: {', '.join(FORMATS)}{tree.nearest(format, FORMATS)}"
    )
  form = FORMATS[format]
  if type is not None and type not in form.types:
    raise ValueError(
      f"{format} has no type {type!r}; it has {', '.join(form.types)}"
      f"{tree.nearest(type, form.types)}"
    )
  return form


def require_free(path: Path, form: Format) -> None:
  """Raises ValueError if there is no room for `form` at `path`, where nothing is overwritten."""
  if not path.exists():
    return
  if path.is_file():
    raise ValueError(f"{path} is a file that exists, and nothing is overwritten; name another")
  if not form.directory:
    raise ValueError(f"{path} is a directory, and what is written is a file; name one in it")
  if any(path.iterdir()):
    raise ValueError(f"{path} is a directory that is not empty; name another")


@contextlib.contextmanager
def _placed(path: Path) -> Iterator[Path]:
  """Where to write what gets the name `path` once the block has come to its end."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
    written = Path(scratch) / path.name
    yield written
    written.replace(path)


def _require_same(found: Tree, meant: Tree) -> None:
  """Raises RuntimeError where leaves of two trees of one structure are not the same to the bit."""
  others = tree.flatten(found)
  for name, leaf in tree.flatten(meant).items():
    if np.asarray(leaf).tobytes() != np.asarray(others[name]).tobytes():
      raise RuntimeError(f"{name} was read back with other values")


def _files(path: Path) -> dict[str, int]:
  """The bytes of a file, or of each in a directory, by name."""
  paths = sorted(path.iterdir()) if path.is_dir() else [path]
  return {each.name: each.stat().st_size for each in paths}


def _loaded(path: Path, model: Model, params: Tree, tokenizer: Tokenizer) -> Exported:
  other, loaded, other_tokenizer = load(path, dtype=jnp.float32)
  differences = agreement.config_differences(other.config, model.config)
  differences += agreement.tokenizer_differences(other_tokenizer, tokenizer)
  if differences:
    raise RuntimeError(f"what was written to {path.name} was loaded with {differences[0]}")
  difference, where = agreement.largest_difference(loaded, params)
  return Exported(_files(path), matrix.count(params), difference, where)


def _write_hf(path: Path, model: Model, params: Tree, tokenizer: Tokenizer, type: str) -> None:
  meant = jax.tree.map(lambda leaf: leaf.astype(type), params)
  save(path, model, meant, tokenizer)
  _, found, _ = load(path, dtype=jnp.dtype(type))
  _require_same(found, meant)


def _write_quantized(
  path: Path, model: Model, params: Tree, tokenizer: Tokenizer, type: str, *, method: str
) -> None:
  save_quantized(path, model, params, tokenizer, method=method, dtype=type)
  _, found, _ = load(path, dtype=jnp.dtype(type))
  others = matrix.flatten(found)
  for name, leaf in matrix.flatten(jax.device_get(params)).items():
    if [a.tobytes() for a in _bits(leaf, type)] != [a.tobytes() for a in _bits(others[name], type)]:
      raise RuntimeError(f"{name} was read back with other values")


def _bits(leaf: Any, type: str) -> list[np.ndarray]:
  """What of a parameter is kept to the bit; groups that follow each other may be told or not."""
  if isinstance(leaf, Mixed):
    return [part for each in leaf.each for part in _bits(each, type)]
  if not isinstance(leaf, QArray):
    return [np.asarray(leaf.astype(type))]
  inputs = leaf.shape[leaf.axis]
  order: Any = leaf.order
  if order is None:
    size = leaf.scheme.group if leaf.scheme.group > 0 else inputs
    order = np.broadcast_to(np.arange(inputs, dtype=np.int32) // size, (*leaf.shape[:-2], inputs))
  parts = [leaf.codes, leaf.scales(), leaf.zero, leaf.inputs, order]
  return [np.asarray(part) for part in parts if part is not None]


def _quantized(types: tuple[str, ...], method: str) -> Format:
  return Format(types, types[0], True, partial(_write_quantized, method=method), method)


# AutoAWQ's programs are of float16.
FORMATS = {
  "hf": Format(("float32", "bfloat16"), "float32", True, _write_hf),
  "gguf": Format(gguf_write.TYPES, "Q8_0", False, save_gguf),
  "peft": Format(("float32",), "float32", True, None),
  "gptq": _quantized(("float16", "bfloat16"), "gptq"),
  "awq": _quantized(("float16",), "awq"),
  "bitsandbytes": _quantized(("bfloat16", "float16", "float32"), "bitsandbytes"),
  "torchao": _quantized(("bfloat16", "float32", "float16"), "torchao"),
  "native": _quantized(("float32", "bfloat16", "float16"), OURS),
}
