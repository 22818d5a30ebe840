"""AWQ's tensors in the layout "gemm", which AutoAWQ, vLLM and transformers read.

```
qweight int32 [in, out / 8]      codes from 0, eight outputs a word, in the order 0 2 4 6 1 3 5 7
qzeros  int32 [groups, out / 8]  zero points likewise
scales  float16 [groups, out]
```
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
from research.quant.scheme import TENSOR, Scheme

MARK = "qweight"
PARTS: tuple[str, ...] = ("qweight", "qzeros", "scales")
_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of outputs, from the lowest bits of a word


def require(path: str, scheme: Scheme, shape: Sequence[int]) -> None:
  """See `Convention`; int4 with zero points and float16 scales."""
  if scheme.kind != "int4" or scheme.symmetric or scheme.group == TENSOR:
    raise ValueError(
      f'AWQ\'s files hold int4 with zero points, not {told(scheme)}; "kind": "int4", "symmetric":'
      " False in the rule does it"
    )
  require_words(path, shape[-1], "outputs", _BITS, "AWQ")
  require_float16_scales(path, scheme, "AWQ")


def settings(
  held: Mapping[str, QArray], modules: Mapping[str, str], outside: Sequence[str], dtype: str
) -> dict[str, Any]:
  """See `Convention`; groups are of successive inputs."""
  del dtype
  scheme = next(iter(held.values())).scheme
  for path, leaf in held.items():
    if leaf.order is not None:
      raise ValueError(
        f"{path!r} has groups of inputs that do not follow each other, which AWQ's files have no"
        ' place for; "static_groups": True in the method does it'
      )
  left = [name for path, name in modules.items() if path not in held]
  return {
    "quant_method": "awq",
    "bits": _BITS,
    "group_size": scheme.group or -1,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": [*left, *outside],
  }


def encode(held: QArray, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """See `Convention`."""
  del settings
  codes, zero = unsigned(held)
  return {
    "qweight": to_words(_in_order(codes, _ORDER), _BITS),
    "qzeros": to_words(_in_order(zero, _ORDER), _BITS),
    "scales": np.asarray(held.scales()).astype(np.float16),
  }


def decode(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> QArray:
  """See `Convention`."""
  for name in PARTS:
    if name not in tensors:
      raise ValueError(f"a projection of AWQ has no {name}")
  told = [settings.get("bits", _BITS), settings.get("version", "gemm").lower()]
  if told != [_BITS, "gemm"] or not settings.get("zero_point", True):
    raise ValueError(f"AWQ is read with zero points, in 4 bits and the layout gemm, not as {told}")
  back = np.argsort(_ORDER)
  codes, zero = (
    _in_order(from_words(tensors[name], _BITS), back) for name in ("qweight", "qzeros")
  )
  scale = tensors["scales"]
  scheme = Scheme("int4", max(settings["group_size"], 0), False, str(scale.dtype))
  return integers(codes, zero, scale, scheme)


def _in_order(numbers, order):
  """`[rows, n]`, each eight in succession in that order."""
  return numbers.reshape(len(numbers), -1, 8)[..., order].reshape(numbers.shape)
