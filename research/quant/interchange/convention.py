"""What a convention of tensors has, and what several have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from research.quant.qarray import QArray
from research.quant.scheme import Scheme

WORD = 32  # bits


class Convention(Protocol):
  """How a tool stores a projection `[in, out]` in few bits; implemented by modules.

  MARK: the tensor, by its name in the projection's module, that tells one in few bits.
  PARTS: all that there may be.

  One whose readers look into the headers of files has a function `header`, too (`torchao.header`).
  """

  MARK: str
  PARTS: tuple[str, ...]

  def require(self, path: str, scheme: Scheme, shape: Sequence[int]) -> None:
    """Raises ValueError if the convention has no place for a kernel `[..., in, out]` so held."""

  def settings(
    self,
    held: Mapping[str, QArray],
    modules: Mapping[str, str],
    outside: Sequence[str],
    dtype: str,
  ) -> dict[str, Any]:
    """The `quantization_config` of a model.

    Args:
      held: kernels in few bits, by path, all of one scheme; may be stacks.
      modules: the name within its layer of every projection, by path.
      outside: the names of modules outside layers that multiply by a matrix, which are left as
        they are.
      dtype: the type of all other tensors.

    Raises:
      ValueError: the convention has no place for one of them.
    """

  def encode(self, held: QArray, settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of one kernel `[in, out]`, by their names in its module."""

  def decode(self, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> QArray:
    """The inverse of `encode`.

    Raises:
      ValueError: a tensor is missing or does not fit the others, or there is no `Scheme` for it.
    """


def require_float16_scales(path: str, scheme: Scheme, tool: str) -> None:
  """Raises ValueError if scales are of another type than that of `tool`."""
  if scheme.scales != "float16":
    raise ValueError(
      f"{path!r} is to have {scheme.scales} scales, and {tool} holds them in float16;"
      ' "scales": "float16" in the rule does it'
    )


def require_words(path: str, count: int, what: str, bits: int, tool: str) -> None:
  """Raises ValueError if `count` numbers fill no whole 32-bit words."""
  if count * bits % WORD:
    raise ValueError(
      f"{path!r} has {count} {what} of {bits} bits, and {tool} packs them in words of {WORD} bits;"
      f" format 'native' holds it"
    )


def told(scheme: Scheme) -> str:
  """A scheme in a few words."""
  zero = "" if scheme.symmetric else ", with zero points"
  group = {0: "a scale an output", -1: "one scale"}.get(scheme.group, f"groups of {scheme.group}")
  products = ", products of integers" if scheme.activations else ""
  products += f", range {scheme.range}" if scheme.is_static else ""
  return f"{scheme.kind} ({group}{zero}, scales {scheme.scales}{products})"


def to_words(codes: np.ndarray, bits: int) -> np.ndarray:
  """Unsigned numbers `[rows, n]` -> int32 `[rows, n * bits / 32]`, the first in the lowest bits.

  The words of a row are one row of bits: a number of 3 bits may lie in two of them.
  """
  return _to_bytes(codes, bits).view("<i4")


def from_words(words: np.ndarray, bits: int) -> np.ndarray:
  """The inverse of `to_words` -> uint8."""
  return _from_bytes(np.ascontiguousarray(words).view(np.uint8), bits)


def _to_bytes(codes, bits):
  """uint8 `[rows, n]` -> `[rows, n * bits / 8]`; `research.quant.packing` on the host."""
  rows = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little")
  return np.packbits(rows.reshape(len(codes), -1), axis=-1, bitorder="little")


def _from_bytes(packed, bits):
  rows = np.unpackbits(packed, axis=-1, bitorder="little").reshape(len(packed), -1, bits)
  return np.packbits(rows, axis=-1, bitorder="little")[..., 0]


def unsigned(held: QArray) -> tuple[np.ndarray, np.ndarray]:
  """Codes `[in, out]` and zero points `[groups, out]` of integers, counted from 0, uint8."""
  least = held.scheme.levels[0]
  if held.scheme.bits == 8:
    codes = (np.asarray(held.codes).astype(np.int16) - least).astype(np.uint8)
  else:
    codes = _from_bytes(np.ascontiguousarray(held.codes.T), held.scheme.bits).T
  if held.zero is None:
    return codes, np.full(held.scales().shape, -least, np.uint8)
  return codes, (np.asarray(held.zero).astype(np.int16) - least).astype(np.uint8)


def integers(
  codes: np.ndarray,
  zero: np.ndarray | None,
  scale: np.ndarray,
  scheme: Scheme,
  order: np.ndarray | None = None,
) -> QArray:
  """The inverse of `unsigned`.

  Args:
    codes: uint8 `[in, out]`, from 0.
    zero: uint8 `[groups, out]`, from 0; None if `scheme` is symmetric.
    scale: `[groups, out]`.
    scheme: of integers.
    order: see `QArray`.

  Raises:
    ValueError: arrays do not fit each other.
  """
  least, bits = scheme.levels[0], scheme.bits
  inputs, outputs = codes.shape
  scheme.require_fits(inputs, "a projection in few bits")
  shape = (inputs // scheme.group if scheme.group else 1, outputs)
  if scale.shape != shape:
    raise ValueError(f"scales are {scale.shape}, not {shape} as of codes {codes.shape}")
  if zero is not None and zero.shape != shape:
    raise ValueError(f"zero points are {zero.shape}, not {shape} as of codes {codes.shape}")
  packed = codes.astype(np.int16) + least if bits == 8 else _to_bytes(codes.T, bits).T
  if zero is not None:
    zero = (zero.astype(np.int16) + least).astype(np.int8)
  return QArray(
    jnp.asarray(packed, np.int8 if bits == 8 else np.uint8),
    jnp.asarray(scale),
    None if zero is None else jnp.asarray(zero),
    None if order is None else jnp.asarray(order),
    scheme,
  )
