"""Parts of a kernel that a LoRA begins as, instead of as nothing.

The adapted model is then `x (W - scale a0 b0) + scale (x a) b`: what the adapter begins as,
`scale a0 b0`, is taken out of the base (`research.peft.residual`), so that the model is the same
at first and the most of the kernel trains. Both are as `peft` computes them.
"""

from collections.abc import Callable

import numpy as np
import scipy.linalg

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
  # By the products of the shorter side, of which only so many vectors are needed: the whole
  # decomposition takes ten times as long. In float64 their squares lose nothing that shows.
  rows, turned = kernel.astype(np.float64), kernel.shape[0] > kernel.shape[1]
  rows = rows.T if turned else rows
  size = len(rows)
  squares, u = scipy.linalg.eigh(rows @ rows.T, subset_by_index=(size - rank, size - 1))
  values = np.sqrt(np.maximum(squares[::-1], np.finfo(np.float32).tiny))
  root, u = np.sqrt(values / scale), u[:, ::-1]
  left, right = u * root, (u.T @ rows) * (root / values)[:, None]
  a, b = (right.T, left.T) if turned else (left, right)
  return a.astype(np.float32), b.astype(np.float32)


def olora(kernel: np.ndarray, rank: int, scale: float) -> Factors:
  """The first directions of a QR decomposition (Büyükakyüz 2024, arXiv:2406.01775, algorithm 1).

  Args and returns: see `pissa`; here `b` is orthonormal, and `scale` is not in the factors, so that
  `scale` times that part of the kernel is taken out.
  """
  del scale
  q, r = np.linalg.qr(kernel.T)  # [out, n], [n, in]
  return r[:rank].T, q[:, :rank].T


STARTS: dict[str, Callable[[np.ndarray, int, float], Factors]] = {"olora": olora, "pissa": pissa}
