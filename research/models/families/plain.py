"""A decoder of no published family: every field of `DecoderConfig` as it is.

For shapes that others have no name for, such as a llama with ALiBi. `transformers` does not know
this `model_type` and says so, where a wrong one would be loaded and computed wrongly.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from research.core import tree
from research.models.config import DecoderConfig
from research.models.families.weights import Weight
from research.nn.positions import Rope

NAME = "plain_decoder"
IGNORED = ()

# What a config may leave out; the rest it must say, or `DecoderConfig` has a default for it.
_DEFAULTS = {
  "max_positions": 2048,
  "norm": "rms",
  "norm_eps": 1e-6,
  "activation": "silu",
  "gated_mlp": True,
  "qkv_bias": False,
  "out_bias": False,
  "mlp_bias": False,
  "tied_head": True,
  "rope": None,
}
_PROJECTIONS = (
  *(f"attention/{name}_proj" for name in "qkvo"),
  *(f"mlp/{name}_proj" for name in ("gate", "up", "down")),
)


def read_config(hf: Mapping[str, Any]) -> DecoderConfig:
  """From `config.json`, whose keys are the fields of `DecoderConfig`.

  Raises:
    ValueError: one of the sizes is missing, or a key is no field.
  """
  others = {"model_type", "family", "dtype", "torch_dtype"}
  others |= {f"{name}_token_id" for name in ("bos", "eos", "pad")}
  names = [field.name for field in dataclasses.fields(DecoderConfig)]
  for key in hf:
    if key not in names and key not in others:
      raise ValueError(f"a {NAME} has no {key!r}{tree.nearest(key, names)}")
  found = {"num_kv_heads": hf["num_heads"], "head_size": hf["hidden_size"] // hf["num_heads"]}
  found |= _DEFAULTS | {key: hf[key] for key in hf if key in names}
  for key in ("rope", "local_rope"):
    if found.get(key) is not None:
      settings: dict[str, Any] = dict(found[key])
      lists = {name: tuple(v) for name, v in settings.items() if isinstance(v, list)}
      found[key] = Rope(**settings | lists)
  found["windows"] = tuple(found.get("windows", ()))
  missing = [
    field.name
    for field in dataclasses.fields(DecoderConfig)
    if field.default is dataclasses.MISSING and field.name not in {*found, "family"}
  ]
  if missing:
    raise KeyError(missing[0])
  return DecoderConfig(**found | {"family": NAME})


def write_config(config: DecoderConfig) -> dict[str, Any]:
  """The inverse of `read_config`."""
  return {"model_type": NAME, **dataclasses.asdict(config)}


def weights(config: DecoderConfig) -> list[Weight]:
  """A tensor a stack of layers, under our own path."""
  del config
  names = ("attention_norm", "attention_post_norm", "mlp_norm", "mlp_post_norm")
  paths = ["embed/embedding", "positions/embedding", "lm_head/kernel", "final_norm/scale"]
  paths += ["final_norm/bias"]
  paths += [f"layers/{name}/{leaf}" for name in names for leaf in ("scale", "bias")]
  paths += [f"layers/attention/{name}_norm/scale" for name in "qk"]
  paths += [f"layers/{name}/{leaf}" for name in _PROJECTIONS for leaf in ("kernel", "bias")]
  return [Weight(path, path.replace("/", ".")) for path in paths]


def modules(config: DecoderConfig) -> dict[str, tuple[str, tuple[int, int, int]]]:
  """Our projection's kernel -> PEFT's name of a module for each layer."""
  del config
  found = {f"layers/{name}/kernel": f"layers.{{}}.{name}" for name in _PROJECTIONS}
  found["lm_head/kernel"] = "lm_head"
  return {path: (name.replace("/", "."), (0, 1, 1)) for path, name in found.items()}
