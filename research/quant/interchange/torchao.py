"""torchao's tensors of int8 and 8-bit floats, which transformers reads.

```
_weight_qdata      int8, float8_e4m3fn or float8_e5m2 [out, in]
_weight_scale      float32 [out, groups], or [1, 1]
_weight_zero_point int8, of the scales' shape, zeros; of int8 alone
```

The file's header tells the class that these are parts of, a line of JSON a weight, and of all other
tensors that they are plain. Where activations are rounded, too, torchao takes absmax / 127.5 for
their scales, and we absmax / 127: their codes differ by one at most.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.quant.interchange.convention import told
from research.quant.qarray import QArray
from research.quant.scheme import FLOATS, TENSOR, Scheme

MARK = "_weight_qdata"
_SCALE, _ZERO = "_weight_scale", "_weight_zero_point"
PARTS: tuple[str, ...] = (MARK, _SCALE, _ZERO)
_KINDS = {"int8": "int8"} | {dtype: kind for kind, dtype in FLOATS.items()}  # by the codes' type
_INT8, _ROWS, _FLOAT8 = (
  "Int8WeightOnlyConfig",
  "Int8DynamicActivationInt8WeightConfig",
  "Float8WeightOnlyConfig",
)


def require(path: str, scheme: Scheme, shape: Sequence[int]) -> None:
  """See `Convention`; symmetric int8, e4m3 and e5m2 with float32 scales."""
  del shape
  if scheme.kind not in _KINDS.values() or not scheme.symmetric:
    raise ValueError(
      f"torchao's files hold symmetric int8, e4m3 or e5m2, not {told(scheme)}; format 'native'"
      " holds it"
    )
  if scheme.scales != "float32":
    raise ValueError(
      f"{path!r} is to have {scheme.scales} scales, and torchao holds them in float32;"
      ' "scales": "float32" in the rule does it'
    )
  if scheme.outliers or scheme.is_static or scheme.gradients:
    raise ValueError(
      f"{path!r}: torchao's files have no place for outliers, a range or gradients of integer"
      " products; format 'native' holds them"
    )


def settings(
  held: Mapping[str, QArray], modules: Mapping[str, str], outside: Sequence[str], dtype: str
) -> dict[str, Any]:
  """See `Convention`."""
  del dtype
  scheme = next(iter(held.values())).scheme
  left = [name for path, name in modules.items() if path not in held]
  return {
    "quant_method": "torchao",
    "quant_type": {"default": _config(scheme)},
    "modules_to_not_convert": [*left, *outside],
    "include_input_output_embeddings": False,
    "untie_embedding_weights": False,
  }


def _config(scheme):
  """The way of torchao that makes such weights, as it writes it."""
  if scheme.group == TENSOR:
    granularity = _typed("PerTensor", {}, 1)
  elif scheme.group:
    granularity = _typed("PerGroup", {"group_size": scheme.group}, 1)
  else:
    granularity = _typed("PerRow", {"dim": -1}, 1)
  if scheme.kind in FLOATS:
    dtype = _typed("torch.dtype", FLOATS[scheme.kind])
    return _typed(_FLOAT8, {"weight_dtype": dtype, "granularity": granularity}, 2)
  return _typed(_ROWS if scheme.activations else _INT8, {"granularity": granularity}, 2)


def header(
  tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any], dtype: str
) -> dict[str, str]:
  """What each file says of all tensors, strings as safetensors has them.

  Args:
    tensors: of the whole model, by their names.
    settings: of that model.
    dtype: the type that weights stand for.
  """
  found: dict[str, Any] = {}
  for name, tensor in tensors.items():
    module, _, part = name.rpartition(".")
    if part == MARK:
      scale = tensors[f"{module}.{_SCALE}"]
      blocks = [n // count for n, count in zip(tensor.shape, scale.shape, strict=True)]
      found[f"{module}.weight"] = _weight(str(tensor.dtype), blocks, settings, dtype)
    elif part not in PARTS:
      found[name] = {"_type": "Tensor"}
  names = {"tensor_names": json.dumps(list(found))}
  return names | {name: json.dumps(each) for name, each in found.items()}


def _weight(codes, blocks, settings, dtype):
  """What is told of one weight: its class, its attributes, its tensors."""
  data: dict[str, Any] = {"block_size": blocks, "dtype": _typed("torch.dtype", dtype)}
  if codes != "int8":
    preference = _typed("KernelPreference", "AUTO")
    data |= {"mm_config": None, "act_quant_kwargs": None, "kernel_preference": preference}
    return _typed("Float8Tensor", data) | {"_tensor_data_names": ["qdata", "scale"]}
  rows = None
  if _type_of(settings) == _ROWS:
    how = {
      "granularity": _typed("PerRow", {"dim": -1}),
      "mapping_type": _typed("MappingType", "SYMMETRIC"),
      "reduce_range": False,
    }
    rows = _typed("QuantizeTensorToInt8Kwargs", how)
  data |= {"act_quant_kwargs": rows, "reduce_range": False}
  return _typed("Int8Tensor", data) | {"_tensor_data_names": ["zero_point", "qdata", "scale"]}


def _typed(name, data, version=None):
  """A value with its class beside it."""
  return {"_type": name, **({"_version": version} if version else {}), "_data": data}


def encode(held: QArray, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """See `Convention`."""
  del settings
  scale = np.ascontiguousarray(np.asarray(held.scales()).T)
  found = {MARK: np.ascontiguousarray(np.asarray(held.codes).T), _SCALE: scale}
  if held.scheme.kind == "int8":
    found[_ZERO] = np.zeros(scale.shape, np.int8)
  return found


def decode(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> QArray:
  """See `Convention`."""
  way = _type_of(settings)
  if way not in (_INT8, _ROWS, _FLOAT8):
    raise ValueError(f"torchao's {way} is not read; {_INT8}, {_ROWS} and {_FLOAT8} are")
  if _SCALE not in tensors:
    raise ValueError(f"a projection of torchao has no {_SCALE}")
  codes, scale = tensors[MARK], tensors[_SCALE]
  kind = _KINDS.get(str(codes.dtype))
  if kind is None:
    raise ValueError(f"torchao's codes are {', '.join(_KINDS)}, not {codes.dtype}")
  if _ZERO in tensors and tensors[_ZERO].any():
    raise ValueError("torchao's weights with zero points are not read; symmetric ones are")
  outputs, inputs = codes.shape
  if scale.shape == (1, 1):
    group = TENSOR
  elif scale.ndim == 2 and scale.shape[0] == outputs and inputs % scale.shape[1] == 0:
    group = 0 if scale.shape[1] == 1 else inputs // scale.shape[1]
  else:
    raise ValueError(
      f"torchao's scales {scale.shape} of codes {codes.shape} are read where they are of rows, of"
      " groups in rows or of the whole"
    )
  activations = "int8" if way == _ROWS else ""
  scheme = Scheme(kind, group, scales=str(scale.dtype), activations=activations)
  return QArray(jnp.asarray(codes.T), jnp.asarray(scale.T), None, None, scheme)


def _type_of(settings):
  return settings["quant_type"].get("default", {}).get("_type", "several ways a model")
