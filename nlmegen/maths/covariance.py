"""Covariance matrices as unconstrained vectors: the log-Cholesky parametrisation.

A positive definite Omega = L L' has one Cholesky factor with a positive diagonal. The vector holds the lower triangle
of L row by row, with the logarithm taken on the diagonal; for a diagonal Omega it is the log standard deviations.
See Pinheiro & Bates (1996), Statistics and Computing 6:289-296, doi:10.1007/BF00140873.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_positions(sizes: list[tuple[int, bool]]) -> list[tuple[int, int]]:
    """Row and column of every entry of the vector, for blocks laid along the diagonal.

    Args:
        sizes: (number of etas, full) for each block; a block that is not full holds its diagonal alone.
    """
    positions, at = [], 0
    for size, full in sizes:
        positions += [(at + i, at + j) for i in range(size) for j in range(i + 1) if full or i == j]
        at += size
    return positions


class LogCholesky:
    """Assembles Cholesky factors from vectors, and takes covariances apart.

    Args:
        q: dimension of the covariance.
        positions: (row, column) of each entry of the vector, row >= column.

    Example:
        >>> chart = LogCholesky(2, block_positions([(2, False)]))
        >>> chart.factor(torch.zeros(2, dtype=torch.float64)).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, q: int, positions: list[tuple[int, int]]) -> None:
        self.q = q
        self.flat = torch.tensor([i * q + j for i, j in positions], dtype=torch.long)
        self.diagonal = torch.tensor([i == j for i, j in positions], dtype=torch.bool)
        self.is_diagonal = bool(self.diagonal.all())

    def factor(self, x: Tensor) -> Tensor:
        """L `[*b, q, q]` from the vector `[*b, m]`."""
        if self.is_diagonal:
            return torch.diag_embed(torch.exp(x))
        entries = torch.where(self.diagonal, torch.exp(torch.where(self.diagonal, x, torch.zeros_like(x))), x)
        flat = torch.zeros(x.shape[:-1] + (self.q * self.q,), dtype=x.dtype, device=x.device)
        flat = flat.index_copy(-1, self.flat.to(x.device), entries)
        return flat.reshape(x.shape[:-1] + (self.q, self.q))

    def vector(self, covariance: Tensor) -> Tensor:
        """The vector `[*b, m]` of a covariance `[*b, q, q]` with this block structure."""
        entries = torch.linalg.cholesky(covariance).flatten(-2)[..., self.flat]
        return torch.where(self.diagonal, torch.log(torch.where(self.diagonal, entries, 1.0)), entries)
