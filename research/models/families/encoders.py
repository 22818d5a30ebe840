"""What the families of encoders have in common: their checkpoints differ in names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from research.models.config import EncoderConfig
from research.models.families.weights import Weight

# What old checkpoints call a norm's scale and bias, and what they are called since.
RENAMED = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))

# Of `EncoderConfig`: what all of them have.
SHAPE: dict[str, Any] = {
  "norm": "layer",
  "gated_mlp": False,
  "qkv_bias": True,
  "out_bias": True,
  "mlp_bias": True,
  "pre_norm": False,
  "sum_norm": True,
}

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
_HEADS = {
  "ForMaskedLM": "masked",
  "ForPreTraining": "masked",
  "ForSequenceClassification": "sequence",
  "ForTokenClassification": "token",
}


@dataclasses.dataclass(frozen=True)
class Names:
  """Our names of modules -> theirs, and where theirs lie.

  prefix: of the encoder within a model with a head.
  layer: of a layer, with `{}` for its number.
  parts: of modules within a layer. embeddings, heads: of those outside.
  bias: of the masked head's, which is no module's.
  """

  prefix: str
  layer: str
  parts: Mapping[str, str]
  embeddings: Mapping[str, str]
  heads: Mapping[str, str]
  bias: str


def read_head(hf: Mapping[str, Any]) -> dict[str, Any]:
  """`head` and `labels` of `EncoderConfig` from a `config.json`'s architecture."""
  architecture = (hf.get("architectures") or [""])[0]
  head = next((head for ending, head in _HEADS.items() if architecture.endswith(ending)), None)
  if head not in ("sequence", "token"):
    return {"head": head}
  named = {int(number): name for number, name in (hf.get("id2label") or {}).items()}
  count = len(named) or hf.get("num_labels", 2)
  pooling = hf.get("classifier_pooling", "cls")  # as ModernBERT's config.json calls it
  return {
    "head": head,
    "labels": tuple(named.get(i, f"LABEL_{i}") for i in range(count)),
    "pooling": "first" if pooling == "cls" else pooling,
  }


def write_head(config: EncoderConfig, model: str) -> dict[str, Any]:
  """The inverse of `read_head`. model: what the architectures' names begin with."""
  ending = {head: ending for ending, head in reversed(_HEADS.items())}.get(config.head or "")
  found: dict[str, Any] = {"architectures": [f"{model}{ending or 'Model'}"]}
  if config.pooling != "first":
    found["classifier_pooling"] = config.pooling
  if config.labels:
    found["id2label"] = {str(i): name for i, name in enumerate(config.labels)}
    found["label2id"] = {name: i for i, name in enumerate(config.labels)}
  return found


def read_activation(name: str) -> str:
  """Our name of an activation."""
  return _ACTIVATIONS.get(name, name)


def write_activation(name: str) -> str:
  """The inverse of `read_activation`."""
  return {ours: theirs for theirs, ours in _ACTIVATIONS.items()}.get(name, name)


def refuse(hf: Mapping[str, Any], family: str, **supported: Any) -> None:
  """Raises ValueError for a key of `hf` with another value than the supported one."""
  for key, value in supported.items():
    if hf.get(key, value) != value:
      raise ValueError(f"{family} with {key}={hf[key]!r} is not supported; only {value!r}")


def complete(config: EncoderConfig, names: Names, tensors: Iterable[str]) -> EncoderConfig:
  """The config with what only the checkpoint's tensors tell: whether there is a pooler."""
  module = names.heads.get("pooler")
  pooler = module is not None and f"{module}.weight" in tensors
  # A head that needs one says itself that it is missing.
  needed = config.head == "sequence" and config.dense is None
  return dataclasses.replace(config, pooler=pooler or needed)


def weights(config: EncoderConfig, names: Names) -> list[Weight]:
  """Hugging Face's tensors."""
  found = [
    Weight(f"{ours}/embedding", f"{names.prefix}.{theirs}.weight")
    for ours, theirs in names.embeddings.items()
  ]
  for ours, name in _modules(config, names).items():
    is_norm = ours.endswith("norm")
    kind = "scale" if is_norm else "kernel"
    found.append(Weight(f"{ours}/{kind}", f"{name}.weight", transposed=not is_norm))
    found.append(Weight(f"{ours}/bias", f"{name}.bias"))
  if config.head == "masked":
    found.append(Weight("masked_head/bias", names.bias))
  return found


def modules(config: EncoderConfig, names: Names) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's module name and the part of it that we hold."""
  bare = f"{names.prefix}." if config.head is None else ""  # PEFT wraps the encoder itself then
  return {
    f"{ours}/kernel": (name.removeprefix(bare), (0, 1, 1))
    for ours, name in _modules(config, names).items()
    if not ours.endswith("norm")
  }


def _modules(config: EncoderConfig, names: Names) -> dict[str, str]:
  """Our path of a module that the config has -> theirs."""
  has = {
    "pooler": config.pooler,
    "masked_head": config.head == "masked",
    "classifier/dense": config.head == "sequence",
    "classifier/out": config.head in ("sequence", "token"),
  }
  found = {"embed_norm": f"{names.prefix}.embeddings.LayerNorm"}
  for ours, theirs in names.parts.items():
    found[f"layers/{ours}"] = f"{names.prefix}.{names.layer}.{theirs}"
  for ours, theirs in names.heads.items():
    if has.get(ours, has.get(ours.split("/")[0])):
      found[ours] = theirs
  return found
