"""bitsandbytes' tensors of NF4 and FP4 (QLoRA's), which transformers and PEFT read.

The weight is `[out, in]`, numbered row by row, in blocks of successive numbers:

```
weight                 uint8 [out * in / 2, 1]  codes, the first of two in the high half; read in
                                                any type of those bytes
weight.absmax          float32 [blocks], or uint8 if scales are held in 8 bits each
weight.quant_map       float32 [16]             the numbers of the codes
weight.nested_absmax   float32 [blocks / 256], and weight.nested_quant_map float32 [256], of those
weight.quant_state.bitsandbytes__nf4            the rest as JSON, uint8
```
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from research.quant import codebooks
from research.quant.interchange.convention import told
from research.quant.qarray import DoubleScales, QArray
from research.quant.scheme import Scheme

_STATE = "weight.quant_state.bitsandbytes__"
MARK = "weight.absmax"
PARTS: tuple[str, ...] = (
  "weight",
  "weight.absmax",
  "weight.quant_map",
  "weight.nested_absmax",
  "weight.nested_quant_map",
  *(f"{_STATE}{kind}" for kind in codebooks.CODEBOOKS),
)
_BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_NESTED_BLOCK = 256
_CLOSE = 1.3e-7  # bitsandbytes' 8-bit numbers differ in the last bit between processors


def require(path: str, scheme: Scheme, shape: Sequence[int]) -> None:
  """See `Convention`; NF4 and FP4 in blocks that bitsandbytes has."""
  del shape
  if scheme.kind not in codebooks.CODEBOOKS:
    raise ValueError(
      f"bitsandbytes' files hold nf4 or fp4, not {told(scheme)}; format 'gptq' or 'native' holds it"
    )
  if scheme.group not in _BLOCKS or scheme.scales not in ("float32", "double"):
    raise ValueError(
      f"{path!r}: bitsandbytes has blocks of {', '.join(map(str, _BLOCKS))} with scales in float32"
      f" or double, not {told(scheme)}"
    )


def settings(
  held: Mapping[str, QArray], modules: Mapping[str, str], outside: Sequence[str], dtype: str
) -> dict[str, Any]:
  """See `Convention`."""
  scheme = next(iter(held.values())).scheme
  left = [name for path, name in modules.items() if path not in held]
  return {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": scheme.kind,
    "bnb_4bit_use_double_quant": scheme.scales == "double",
    "bnb_4bit_compute_dtype": dtype,
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_skip_modules": [*left, *outside],
  }


def encode(held: QArray, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """See `Convention`."""
  kind, (inputs, outputs) = held.scheme.kind, held.shape
  state: dict[str, Any] = {
    "quant_type": kind,
    "blocksize": held.scheme.group,
    "dtype": settings["bnb_4bit_compute_dtype"],
    "shape": [outputs, inputs],
  }
  # Ours are packed along the inputs as well, the first in the low half.
  found = {
    "weight": _halves_swapped(np.asarray(held.codes).T).reshape(-1, 1),
    "weight.quant_map": codebooks.values(kind),
  }
  if isinstance(held.scale, DoubleScales):
    found["weight.absmax"] = np.asarray(held.scale.codes).T.reshape(-1)
    found["weight.nested_absmax"] = np.asarray(held.scale.scale)
    found["weight.nested_quant_map"] = codebooks.dynamic()
    state |= {
      "nested_blocksize": _NESTED_BLOCK,
      "nested_dtype": "float32",
      "nested_offset": float(held.scale.offset),
    }
  else:
    found["weight.absmax"] = np.asarray(held.scales()).T.reshape(-1)
  found[f"{_STATE}{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
  return found


def decode(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> QArray:
  """See `Convention`.

  Scales of 8 bits are read by our own table of those numbers, which may differ from the file's in
  the last bit of float32.
  """
  del settings
  name = next((name for name in tensors if name.startswith(_STATE)), None)
  if name is None:
    raise ValueError(f"a projection of bitsandbytes has no {_STATE}nf4 or {_STATE}fp4")
  state = json.loads(tensors[name].tobytes())
  kind, (outputs, inputs) = state["quant_type"], state["shape"]
  double = "weight.nested_absmax" in tensors
  scheme = Scheme(kind, state["blocksize"], scales="double" if double else "float32")
  scheme.require_fits(inputs, "a projection of bitsandbytes")
  _require_table("quant_map", tensors, codebooks.values(kind))
  # Some files tell the same bytes as numbers of another type (`bnb_4bit_quant_storage`).
  stored = np.ascontiguousarray(tensors["weight"]).view(np.uint8)
  codes = jnp.asarray(_halves_swapped(stored.reshape(outputs, -1)).T)
  absmax = jnp.asarray(tensors["weight.absmax"].reshape(outputs, -1).T)
  if not double:
    return QArray(codes, absmax, None, None, scheme)
  _require_table("nested_quant_map", tensors, codebooks.dynamic())
  if state["nested_blocksize"] != _NESTED_BLOCK:
    raise ValueError(
      f"scales of bitsandbytes in blocks of {state['nested_blocksize']} are unknown;"
      f" {_NESTED_BLOCK} are its own"
    )
  offset = jnp.float32(state["nested_offset"])
  scale = DoubleScales(absmax, jnp.asarray(tensors["weight.nested_absmax"]), offset)
  return QArray(codes, scale, None, None, scheme)


def _halves_swapped(codes):
  return (codes & 15) << 4 | codes >> 4


def _require_table(name, tensors, ours):
  theirs = tensors.get(f"weight.{name}")
  if (
    theirs is None
    or theirs.shape != ours.shape
    or not np.allclose(theirs, ours, rtol=_CLOSE, atol=0)
  ):
    raise ValueError(f"weight.{name} of a projection is not the table of bitsandbytes")
