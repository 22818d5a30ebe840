"""GPTQ's tensors, which GPTQModel, vLLM and transformers read.

```
qweight int32 [in * bits / 32, out]      codes from 0, along the inputs, the first lowest
qzeros  int32 [groups, out * bits / 32]  zero points, along the outputs; see below
scales  float16 [groups, out]
g_idx   int32 [in]                       the group of each input
```

The first version of the format, which all readers know, stores zero points less one. A zero point
of 0 has no place in it: tools differ on what is meant by its -1. A model with one is written as the
second version, which stores them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research.quant.interchange.convention import (
  from_words,
  integers,
  require_float16_scales,
  require_words,
  to_words,
  told,
  unsigned,
)
from research.quant.qarray import QArray
from research.quant.scheme import INTEGERS, TENSOR, Scheme

MARK = "qweight"
PARTS: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")
_V1, _V2 = "gptq", "gptq_v2"
_BITS = (2, 3, 4, 8)


def require(path: str, scheme: Scheme, shape: Sequence[int]) -> None:
  """See `Convention`; integers of 2, 3, 4 or 8 bits with float16 scales."""
  if scheme.kind not in INTEGERS or scheme.group == TENSOR or scheme.activations:
    raise ValueError(
      f"GPTQ's files hold int2, int3, int4 or int8 in groups or a scale an output, not"
      f" {told(scheme)}; format 'native' holds it"
    )
  require_words(path, shape[-2], "inputs", scheme.bits, "GPTQ")
  require_words(path, shape[-1], "outputs", scheme.bits, "GPTQ")
  require_float16_scales(path, scheme, "GPTQ")


def settings(
  held: Mapping[str, QArray], modules: Mapping[str, str], outside: Sequence[str], dtype: str
) -> dict[str, Any]:
  """See `Convention`."""
  del outside, dtype
  scheme = next(iter(held.values())).scheme
  least = scheme.levels[0]
  with_zero = any(leaf.zero is not None and (leaf.zero == least).any() for leaf in held.values())
  found = {
    "quant_method": "gptq",
    "bits": scheme.bits,
    "group_size": scheme.group or -1,
    "desc_act": any(leaf.order is not None for leaf in held.values()),
    "sym": scheme.symmetric,
    "checkpoint_format": _V2 if with_zero else _V1,
  }
  if set(modules) - set(held):
    found["modules_in_block_to_quantize"] = [[modules[path] for path in held]]
  return found


def encode(held: QArray, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """See `Convention`."""
  scheme = held.scheme
  codes, zero = unsigned(held)
  if held.order is None:
    groups = np.arange(len(codes)) // (scheme.group or len(codes))
  else:
    groups = np.asarray(held.order)
  return {
    "qweight": np.ascontiguousarray(to_words(codes.T, scheme.bits).T),
    "qzeros": to_words(zero - np.uint8(_less(settings)), scheme.bits),
    "scales": np.asarray(held.scales()).astype(np.float16),
    "g_idx": groups.astype(np.int32),
  }


def decode(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> QArray:
  """See `Convention`; without `g_idx` groups are of successive inputs."""
  for name in PARTS[:3]:
    if name not in tensors:
      raise ValueError(f"a projection of GPTQ has no {name}")
  bits, scale = settings["bits"], tensors["scales"]
  if bits not in _BITS:
    raise ValueError(f"GPTQ of {bits} bits is unknown; there are {', '.join(map(str, _BITS))}")
  codes = np.ascontiguousarray(from_words(tensors["qweight"].T, bits).T)
  zero = (from_words(tensors["qzeros"], bits) + np.uint8(_less(settings))) & (2**bits - 1)
  symmetric = settings.get("sym", True)
  if symmetric and not (zero == 2 ** (bits - 1)).all():
    raise ValueError(f"zero points of symmetric GPTQ are all {2 ** (bits - 1)}, and these are not")
  size = settings["group_size"]
  scheme = Scheme(f"int{bits}", max(size, 0), symmetric, str(scale.dtype))
  order = tensors.get("g_idx")
  if order is not None and (order == np.arange(len(codes)) // (scheme.group or len(codes))).all():
    order = None
  return integers(codes, None if symmetric else zero, scale, scheme, order)


def _less(settings):
  """By how much zero points are stored too small."""
  version = settings.get("checkpoint_format", _V1)
  if version not in (_V1, _V2):
    raise ValueError(f"checkpoint_format {version!r} is unknown; there are {_V1} and {_V2}")
  return int(version == _V1)
