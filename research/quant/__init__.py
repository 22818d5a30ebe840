"""Parameters in few bits: schemes, rounding, and the arrays that hold them."""

from research.quant.cache import CacheScheme
from research.quant.mixed import Mixed
from research.quant.policy import Rules, dequantize, quantize, schemes, size
from research.quant.qarray import QArray
from research.quant.scheme import Scheme
from research.quant.trained import Trained, free, hold, measured, ranged, train, trains_rounded

__all__ = [
  "CacheScheme",
  "Mixed",
  "QArray",
  "Rules",
  "Scheme",
  "Trained",
  "dequantize",
  "free",
  "hold",
  "measured",
  "quantize",
  "ranged",
  "schemes",
  "size",
  "train",
  "trains_rounded",
]
