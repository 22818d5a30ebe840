"""Parts of a kernel that a LoRA begins as, instead of as nothing.

The adapted model is then `x (W - scale a0 b0) + scale (x a) b`: what the adapter begins as,
`scale a0 b0`, is taken out of the base (`research.peft.residual`), so that the model is the same
at first and the most of the kernel trains. Both are as `peft` computes them.
"""

from collections.abc import Callable

import numpy as np

Factors = tuple[np.ndarray, np.ndarray]


def pissa(kernel: np.ndarray, rank: int, scale: float) -> Factors:
  """The principal singular vectors and values (Meng et al. 2024, arXiv:2404.02948, eqs. 2-4).

  Args:
    kernel: `[in, out]` float32.
    rank: how many.
    scale: of the product.

  Returns:
    `a [in, rank]` and `b [rank, out]` such that `scale * a b` is the nearest matrix of that rank,
    the singular values shared evenly.
  """
  u, values, v = np.linalg.svd(kernel, full_matrices=False)
  root = np.sqrt(values[:rank] / scale)
  return u[:, :rank] * root, root[:, None] * v[:rank]


def olora(kernel: np.ndarray, rank: int, scale: float) -> Factors:
  """The first directions of a QR decomposition (Büyükakyüz 2024, arXiv:2406.01775, algorithm 1).

  Args and returns: see `pissa`; here `b` is orthonormal, and `scale` is not in the factors, so that
  `scale` times that part of the kernel is taken out.
  """
  del scale
  q, r = np.linalg.qr(kernel.T)  # [out, n], [n, in]
  return r[:rank].T, q[:, :rank].T


STARTS: dict[str, Callable[[np.ndarray, int, float], Factors]] = {"olora": olora, "pissa": pissa}
