"""Arrays held in few bits."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from research.core.matrix import Matrix
from research.core.products import matmul, outer_of_rows
from research.quant import codebooks, integer
from research.quant.packing import pack, split, unpack
from research.quant.scheme import FLOATS, INTEGERS, TENSOR, Scheme

_BLOCK = 256  # scales that share one in double quantization
_SHARES = 32  # of a range that are tried, from the whole to two thirds less


@struct.dataclass
class DoubleScales:
  """Scales `[..., groups, out]` of 8 bits each, around their mean.

  They are numbered as bitsandbytes does, all groups of an output after each other, and blocks are
  of 256 of those numbers.
  """

  codes: jax.Array  # uint8 [..., groups, out], along the axis of the array's
  scale: jax.Array  # float32 [..., blocks]
  offset: jax.Array  # float32 [...]

  @classmethod
  def of(cls, scales: jax.Array, axis: int) -> DoubleScales:
    """`scales` float32, positive, of the arrays whose inputs lie along `axis`."""
    numbers, stack = _numbered(scales, axis), scales.shape[:-2]
    offset = numbers.mean(axis=-1)
    rest = numbers - offset[..., None]
    short = -rest.shape[-1] % _BLOCK
    blocks = jnp.pad(rest, [(0, 0)] * len(stack) + [(0, short)]).reshape(*stack, -1, _BLOCK)
    scale = jnp.max(jnp.abs(blocks), axis=-1)
    unit = blocks / jnp.where(scale == 0, 1, scale)[..., None]
    codes = codebooks.encode_dynamic(unit).reshape(*stack, -1)[..., : rest.shape[-1]]
    return cls(_placed(codes, scales.shape, axis), scale, offset)

  def decode(self, axis: int) -> jax.Array:
    """The scales, float32."""
    codes = _numbered(self.codes, axis)
    scale = jnp.repeat(self.scale, _BLOCK, axis=-1)[..., : codes.shape[-1]]
    numbers = codebooks.decode_dynamic(codes) * scale + self.offset[..., None]
    return _placed(numbers, self.codes.shape, axis)


def _numbered(scales, axis):
  turned = scales if axis == -1 else scales.swapaxes(-1, -2)
  return turned.reshape(*scales.shape[:-2], -1)


def _placed(numbers, shape, axis):
  if axis == -1:
    return numbers.reshape(shape)
  return numbers.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)


@struct.dataclass
class QArray(Matrix):
  """Numbers `(code - zero) * scale`, or of a table `table[code] * scale`.

  A kernel's inputs lie along its axis -2, a table's of tokens along -1; codes of fewer than 8 bits
  are packed along it (`research.quant.packing`), integers as their difference from the least one.

  codes: uint8, packed; int8 for 8-bit integers; or 8-bit floats.
  scale: `[..., groups, out]`, or `[..., rows, groups]` for a table, in the scheme's type; where it
    trains in float32, and then it acts as that type holds it, straight through.
  zero: int8, of the scales' shape, or None.
  order: int32 `[..., in]`, each input's group where those are not of successive ones, or None.
  kind: the type of the array that this one stands for.
  inputs: float32 `[...]`, the one scale of what is multiplied by the numbers, if the scheme has one
    and it was calibrated; else each row has its own.
  """

  codes: jax.Array
  scale: jax.Array | DoubleScales
  zero: jax.Array | None
  order: jax.Array | None
  scheme: Scheme = struct.field(pytree_node=False)
  axis: int = struct.field(pytree_node=False, default=-2)
  kind: str = struct.field(pytree_node=False, default="float32")
  inputs: jax.Array | None = None

  @property
  def shape(self) -> tuple[int, ...]:
    """See `Matrix`."""
    shape = list(self.codes.shape)
    shape[self.axis] = shape[self.axis] * 8 // self.scheme.bits
    return tuple(shape)

  @property
  def dtype(self) -> Any:
    """See `Matrix`."""
    return jnp.dtype(self.kind)

  def scales(self) -> jax.Array:
    """float32, of the groups."""
    if isinstance(self.scale, DoubleScales):
      return self.scale.decode(self.axis)
    acting = self._narrowed(self.scale).astype(jnp.float32)
    return acting if self.scale.dtype != jnp.float32 else straight_through(self.scale, acting)

  def held(self) -> QArray:
    """With scales in the scheme's type: what acts, to the bit."""
    if isinstance(self.scale, DoubleScales):
      return self
    return self.replace(scale=self._narrowed(self.scale))  # type: ignore[attr-defined]

  def _narrowed(self, scale):
    narrow = self.scheme.scales in ("float16", "bfloat16")
    return scale.astype(self.scheme.scales) if narrow else scale

  def integers(self) -> jax.Array:
    """The codes of an integer kind, int8, unpacked."""
    if self.scheme.bits == 8:
      return self.codes
    least = self.scheme.levels[0]
    return unpack(self.codes, self.scheme.bits, self.axis).astype(jnp.int8) + jnp.int8(least)

  def astype(self, dtype: Any) -> jax.Array:
    """The numbers, computed in float32."""
    scheme = self.scheme
    if scheme.kind in FLOATS:
      values = self.codes.astype(jnp.float32)
    elif scheme.kind in INTEGERS:
      values = self.integers().astype(jnp.float32)
    else:
      values = codebooks.decode(scheme.kind, unpack(self.codes, scheme.bits, self.axis))
    if self.zero is not None:
      values = self._spread(values, self.zero.astype(jnp.float32), jnp.subtract)
    return self._spread(values, self.scales(), jnp.multiply).astype(dtype)

  def _spread(self, values, of_groups, function):
    """`function(values, what its group has)`."""
    if self.order is not None:
      return function(values, jnp.take_along_axis(of_groups, self.order[..., None], axis=-2))
    groups = of_groups.shape[self.axis]
    if groups == 1:
      return function(values, of_groups)
    grouped = split(values, values.shape[self.axis] // groups, self.axis)
    return function(grouped, jnp.expand_dims(of_groups, self.axis)).reshape(values.shape)

  def of_outputs(self) -> jax.Array:
    """The scale of each output, float32 `[..., out]`, where there is one an output."""
    return jnp.squeeze(self.scales(), self.axis)

  def product(self, x: jax.Array) -> jax.Array:
    """See `Matrix`; gradients are of `x`, and of scales that train."""
    return _product(x, self)

  def rows(self, ids: jax.Array) -> jax.Array:
    """See `Matrix`."""
    taken = jax.tree.map(lambda leaf: jnp.take(leaf, ids, axis=0), self._table())
    return taken.astype(self.dtype)

  def _table(self):
    """With arrays alone that have an axis of rows."""
    if not isinstance(self.scale, DoubleScales):
      return self
    return self.replace(scale=self.scales())  # type: ignore[attr-defined]


@jax.custom_jvp
def straight_through(values: jax.Array, acting: jax.Array) -> jax.Array:
  """`acting`, with the derivative of `values` (Bengio et al. 2013, arXiv:1308.3432)."""
  del values
  return acting


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
  return primals[1], tangents[0]


@jax.custom_vjp
def _product(x, kernel):
  ours = 0 if kernel.axis == -2 else 1
  if not kernel.scheme.has_channels:
    return matmul(x, kernel.astype(x.dtype), (x.ndim - 1, ours))
  # One scale an output is as well multiplied afterwards.
  if kernel.scheme.activations:
    whole: Any = 0
    if kernel.scheme.outliers:
      x, largest, columns = integer.apart(x, kernel.scheme.outliers)
      theirs = jnp.take(kernel.codes, columns, axis=ours).astype(x.dtype)
      whole = matmul(largest, theirs, (x.ndim - 1, ours))
    codes, scale = of_inputs(x, kernel.inputs)
    total = integer.matmul(codes, kernel.codes, (x.ndim - 1, ours)) * scale
    return (total + whole) * kernel.of_outputs()
  return matmul(x, kernel.codes.astype(x.dtype), (x.ndim - 1, ours)) * kernel.of_outputs()


def of_inputs(x: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """`x [..., n]` as int8, and by which scale: the one given, or each row's own `[..., 1]`."""
  return integer.rows(x) if scale is None else (integer.clipped(x, scale), scale)


def _forward(x, kernel):
  learns = any(leaf.perturbed for leaf in jax.tree.leaves(kernel.scale))
  x, kernel = (jax.tree.map(lambda leaf: leaf.value, each) for each in (x, kernel))
  return _product(x, kernel), (x if learns else x[..., :0], kernel)


def _backward(residuals, g):
  x, kernel = residuals
  dx = backward(g, kernel, x.dtype)
  return dx, _of_scales(x, kernel, g) if x.shape[-1] else None


def _of_scales(x, kernel, g):
  """The gradient of a kernel whose scales alone learn."""
  dvalues = outer_of_rows(x, g.astype(x.dtype))
  _, pull = jax.vjp(
    lambda scale: kernel.replace(scale=scale).astype(jnp.float32),
    jax.lax.stop_gradient(kernel.scale),
  )
  (dscale,) = pull(dvalues if kernel.axis == -2 else dvalues.T)
  return kernel.replace(codes=None, scale=dscale, zero=None, order=None, inputs=None)


def backward(g: jax.Array, kernel: QArray, kind: Any) -> jax.Array:
  """The gradient `[..., in]` of what `kernel` multiplies, for that of the product, `[..., out]`."""
  theirs = 1 if kernel.axis == -2 else 0
  if kernel.scheme.has_channels:
    g = g * kernel.of_outputs()
    if kernel.scheme.gradients:
      codes, scale = integer.rows_at_random(g)
      return (integer.matmul(codes, kernel.codes, (g.ndim - 1, theirs)) * scale).astype(kind)
    return matmul(g.astype(kind), kernel.codes.astype(kind), (g.ndim - 1, theirs)).astype(kind)
  # What the kernel stands for is to be made again here: kept from the forward pass it would be all
  # the memory that is saved. On a CPU the compiler takes the barrier away, and keeps it.
  kernel, g = jax.lax.optimization_barrier((kernel, g.astype(kind)))
  return matmul(g, kernel.astype(kind), (g.ndim - 1, theirs)).astype(kind)


_product.defvjp(_forward, _backward, symbolic_zeros=True)


@partial(jax.jit, static_argnames=("scheme", "axis"))
def quantize(values: jax.Array, scheme: Scheme, axis: int = -2) -> QArray:
  """`values [..., in, out]` rounded to the nearest numbers of `scheme`.

  Integers are `values * (1 / scale)` rounded half to even, plus the zero point; a table's halves as
  `codebooks.encode` says. A group of zeros stays that.

  Args:
    values: finite; float32 is computed with.
    scheme: whose groups divide the inputs (`Scheme.require_fits`).
    axis: of the inputs: -2, or -1 for a table `[V, D]`.
  """
  kind = str(values.dtype)
  values = values.astype(jnp.float32)
  scale, zero = grid(values, scheme, axis)
  found = encode(values, scale, zero, scheme, axis, kind)
  if scheme.scales == "double":
    # As bitsandbytes: codes go by the scales as they were.
    return found.replace(scale=DoubleScales.of(scale, axis))  # type: ignore[attr-defined]
  return found


def grid(
  values: jax.Array, scheme: Scheme, axis: int = -2, importance: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Scales and zero points for `values`, float32; scales in the type they are held in.

  importance: of the inputs, `[in]`, where errors of some count more for the fit "mse".
  """
  size = values.shape[axis] if scheme.group <= 0 else scheme.group
  grouped = split(values, size, axis)
  over: Any = (-1, -2, -3) if scheme.group == TENSOR else axis
  low, high = (
    jnp.squeeze(extreme(grouped, axis=over, keepdims=True), axis) for extreme in (jnp.min, jnp.max)
  )
  if scheme.fit == "mse":
    share = _best_share(values, low, high, scheme, axis, importance)
    low, high = low * share, high * share
  return between(low, high, scheme)


def _best_share(values, low, high, scheme, axis, importance):
  """Of each group's range, of the form of `low`."""
  over: Any = (-1, -2, -3) if scheme.group == TENSOR else axis

  def error(share):
    found = encode(values, *between(low * share, high * share, scheme), scheme, axis)
    squares = jnp.square(found.astype(jnp.float32) - values)
    if importance is not None:
      squares = squares * (importance if axis == -1 else importance[:, None])
    grouped = split(squares, values.shape[axis] if scheme.group <= 0 else scheme.group, axis)
    return jnp.squeeze(jnp.sum(grouped, axis=over, keepdims=True), axis)

  shares = 1 - jnp.arange(_SHARES) / (1.5 * _SHARES)
  return shares[jnp.argmin(jax.lax.map(error, shares), axis=0)]


def between(low: jax.Array, high: jax.Array, scheme: Scheme) -> tuple[jax.Array, jax.Array | None]:
  """Scales and zero points of groups whose numbers lie between `low` and `high`, float32."""
  absmax = jnp.maximum(-low, high)
  if scheme.kind in FLOATS:
    scale = _over(absmax, float(jnp.finfo(FLOATS[scheme.kind]).max))
  elif scheme.kind not in INTEGERS:
    scale = absmax
  elif scheme.symmetric:
    scale = _over(absmax, (2**scheme.bits - 1) / 2)
  else:
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    scale = _over(high - low, 2**scheme.bits - 1)
  if scheme.scales != "double":
    scale = scale.astype(scheme.scales)
  if scheme.symmetric:
    return scale, None
  least, most = scheme.levels
  zero = least - jnp.round(low * _inverse(scale))
  return scale, jnp.clip(zero, least, most).astype(jnp.int8)


def encode(
  values: jax.Array,
  scale: jax.Array,
  zero: jax.Array | None,
  scheme: Scheme,
  axis: int = -2,
  kind: str = "float32",
  order: jax.Array | None = None,
) -> QArray:
  """`values`, float32, on a grid that is given; what it does not cover is clipped."""
  found = QArray(values[..., :0], scale, zero, order, scheme, axis, kind)
  if scheme.kind in INTEGERS:
    units = jnp.round(found._spread(values, _inverse(scale), jnp.multiply))
    if zero is not None:
      units = found._spread(units, zero.astype(jnp.float32), jnp.add)
    least, most = scheme.levels
    codes = jnp.clip(units, least, most)
    if scheme.bits == 8:
      codes = codes.astype(jnp.int8)
    else:
      codes = pack((codes - least).astype(jnp.uint8), scheme.bits, axis)
  elif scheme.kind in FLOATS:
    units = found._spread(values, _inverse(scale), jnp.multiply)
    largest = float(jnp.finfo(FLOATS[scheme.kind]).max)
    codes = jnp.clip(units, -largest, largest).astype(FLOATS[scheme.kind])
  else:
    units = found._spread(values, _inverse(scale), jnp.multiply)
    codes = pack(codebooks.encode(scheme.kind, units), scheme.bits, axis)
  return found.replace(codes=codes)  # type: ignore[attr-defined]


def _over(values, divisor):
  """`values / divisor` of values that are not negative.

  Which the compiler does not know: by a constant it would multiply with the rounded inverse, and
  scales would be others' in most of the bits.
  """
  return values / jnp.where(values < 0, 1.0, jnp.float32(divisor))


def _inverse(scale):
  """float32; 0 where the scale is, so that a group of zeros has codes of zero.

  Products with it are the same in any program, where of a division the compiler makes a product.
  """
  scale = scale.astype(jnp.float32)
  return jnp.where(scale == 0, 0, 1 / jnp.where(scale == 0, 1, scale))
