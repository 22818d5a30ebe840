"""What an adapter's directory holds, told by its files alone, without the model that it is for."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.io import safetensors
from research.peft.interchange import adapterhub, beside
from research.peft.interchange.modules import CONFIG, FILE, PREFIX

# By `peft_type`: how names of tensors that are of a module end, and those of the whole model.
_AT_MODULES: dict[str, tuple[str, ...]] = {
  "ADALORA": ("lora_A", "lora_E", "lora_B"),
  "IA3": ("ia3_l",),
  "LORA": (
    "lora_A.weight",
    "lora_B.weight",
    "lora_magnitude_vector",
    "lora_embedding_A",
    "lora_embedding_B",
    "base_layer.weight",
    f"token_adapter.{beside.DELTA}",
  ),
  beside.TOKENS: (beside.DELTA,),
  "VERA": ("vera_lambda_d", "vera_lambda_b"),
}
_WHOLE: dict[str, tuple[str, ...]] = {
  "P_TUNING": ("prompt_embeddings",),
  "PREFIX_TUNING": ("prompt_embeddings",),
  "PROMPT_TUNING": ("prompt_embeddings",),
  "VERA": ("base_model.vera_A", "base_model.vera_B"),
}
_BOTTLENECK = r"(?P<module>layers/\w+)/(?P<end>\w+)"
_ADAPTERHUB = r"(?P<module>.+\.\w+_adapters)\.adapters\.[^.]+\.(?P<end>.+)"
# Keys of a config that tell of the method and its size, in the order in which they are told.
_SETTINGS = (
  "r",
  "init_r",
  "target_r",
  "lora_alpha",
  "rank_pattern",
  "alpha_pattern",
  "use_rslora",
  "lora_dropout",
  "vera_dropout",
  "d_initial",
  "feedforward_modules",
  "num_virtual_tokens",
  "encoder_reparameterization_type",
  "modules_to_save",
  "trainable_token_indices",
  "token_indices",
  "sites",
  "reduction_factor",
  "non_linearity",
  "mh_adapter",
  "output_adapter",
  "is_parallel",
  "original_ln_before",
  "ln_before",
  "scaling",
  "dropout",
)


@dataclasses.dataclass(frozen=True)
class Family:
  """One module in the layers that have it.

  module: its name in the checkpoint, `{}` for the layer's number.
  layers: their numbers; none where it is in no layer.
  shapes: how a tensor's name ends -> its different shapes in layers.
  """

  module: str
  layers: list[int]
  shapes: dict[str, list[list[int]]]
  parameters: int
  bytes: int
  dtypes: list[str]


@dataclasses.dataclass(frozen=True)
class Contents:
  """An adapter's files.

  method: PEFT's `peft_type`, "DORA" for its LoRA with magnitudes, "ADAPTERHUB" for that package's.
  settings: what of its config tells of the method.
  unplaced: names of tensors that the method has no place for.
  """

  method: str
  base: str | None
  settings: dict[str, Any]
  families: list[Family]
  unplaced: list[str]

  @property
  def parameters(self) -> int:
    """The elements of all tensors that have a place."""
    return sum(family.parameters for family in self.families)

  @property
  def bytes(self) -> int:
    """The bytes of these."""
    return sum(family.bytes for family in self.families)


def find(directory: str | Path) -> dict[str, Path]:
  """The adapters in a directory, by name: its own and a run's under "", named ones in their own.

  Raises:
    FileNotFoundError: there is none.
  """
  directory = Path(directory)
  found = _within(directory)
  if set(found) <= {"adapter"}:  # what a run has
    found = _within(directory / "adapter")
  if found:
    return found
  if (directory / "model").is_dir():
    raise FileNotFoundError(f"{directory} is a run that left a whole model, and no adapter")
  raise FileNotFoundError(f"{directory} holds no adapter: no {CONFIG} there or in adapter/")


def _within(place: Path) -> dict[str, Path]:
  own = {"": place} if (place / CONFIG).is_file() else {}
  return own | {file.parent.name: file.parent for file in sorted(place.glob(f"*/{CONFIG}"))}


def inspect(directory: str | Path) -> Contents:
  """What the files of one adapter hold.

  Raises:
    FileNotFoundError: one is missing.
    ValueError: one is broken.
  """
  directory = Path(directory)
  try:
    config = json.loads((directory / CONFIG).read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{directory / CONFIG} is no JSON: {error}") from error
  theirs = adapterhub.is_one(config)
  tensors = safetensors.read(directory / (adapterhub.FILE if theirs else FILE))
  if theirs:
    kind, method = "ADAPTERHUB", config["config"]
  else:
    kind, method = str(config.get("peft_type")), config
  placed: dict[str, list[tuple[int | None, str, str]]] = {}  # module -> layer, end, name
  unplaced = []
  saved = [*(config.get("modules_to_save") or []), *(["lm_head"] if _is_tied(config) else [])]
  for name in tensors:
    place = _place(kind, name) or _saved(saved, name)
    if place is None:
      unplaced.append(name)
    else:
      module, layer, end = place
      placed.setdefault(module, []).append((layer, end, name))
  return Contents(
    method="DORA" if kind == "LORA" and config.get("use_dora") else kind,
    base=config.get("base_model_name_or_path") or config.get("model_name"),
    settings={key: method[key] for key in _SETTINGS if method.get(key) not in (None, [], {})},
    families=[_family(module, each, tensors) for module, each in placed.items()],
    unplaced=unplaced,
  )


def _place(kind: str, name: str) -> tuple[str, int | None, str] | None:
  """The module of a tensor, its layer's number and the end of its name; None if it has no place."""
  if name in _WHOLE.get(kind, ()):
    return "the whole model", None, name
  if kind in ("ADAPTERHUB", "BOTTLENECK"):
    match = re.fullmatch(_ADAPTERHUB if kind == "ADAPTERHUB" else _BOTTLENECK, name)
    return match and _numbered(match["module"], match["end"])
  for end in _AT_MODULES.get(kind, ()):
    if name.endswith(f".{end}"):
      return _numbered(name.removeprefix(PREFIX).removesuffix(f".{end}"), end)
  return None


def _is_tied(config: Mapping[str, Any]) -> bool:
  """Whether a table that was trained whole is in the file as the head, too."""
  return bool(config.get("ensure_weight_tying"))


def _saved(modules: Sequence[str], name: str) -> tuple[str, int | None, str] | None:
  """The same of a tensor of a module that was trained whole."""
  module, _, end = name.removeprefix(PREFIX).rpartition(".")
  known = any(module == own or module.endswith(f".{own}") for own in modules)
  return _numbered(module, end) if known else None


def _numbered(module: str, end: str) -> tuple[str, int | None, str]:
  found = re.search(r"(?<=\.)\d+(?=\.)", module)
  if found is None:
    return module, None, end
  return f"{module[: found.start()]}{{}}{module[found.end() :]}", int(found[0]), end


def _family(
  module: str, each: Sequence[tuple[int | None, str, str]], tensors: Mapping[str, Any]
) -> Family:
  shapes: dict[str, list[list[int]]] = {}
  for _, end, name in each:
    shape = list(tensors[name].shape)
    if shape not in shapes.setdefault(end, []):
      shapes[end].append(shape)
  held = [tensors[name] for *_, name in each]
  return Family(
    module=module,
    layers=sorted({layer for layer, *_ in each if layer is not None}),
    shapes=shapes,
    parameters=sum(math.prod(tensor.shape) for tensor in held),
    bytes=sum(tensor.nbytes for tensor in held),
    dtypes=sorted({str(tensor.dtype) for tensor in held}),
  )
