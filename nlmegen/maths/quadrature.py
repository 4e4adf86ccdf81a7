"""Gauss-Hermite quadrature for integrals against a standard normal density.

    E[g(x)] = integral g(x) N(x; 0, I) dx  ~  sum_k w_k g(x_k) ,      sum_k w_k = 1

In one dimension n nodes are exact for polynomials of degree 2n - 1; in q dimensions the tensor product of q such rules
has n^q nodes. See Golub & Welsch (1969), Math Comp 23:221-230, doi:10.1090/S0025-5718-69-99647-1.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=64)
def hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes `[n]` and log weights `[n]` of the rule with n nodes against N(0, 1); shared, not to be changed in place.

    Raises:
        ValueError: when n is less than one.

    Example:
        >>> x, log_w = hermite(3)
        >>> round(float((log_w.exp() * x**4).sum()), 12)
        3.0
    """
    if n < 1:
        raise ValueError(f"a quadrature rule has at least one node, got n={n}")
    x, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(x), torch.from_numpy(np.log(w) - np.log(w.sum()))


def tensor_grid(n: int, q: int) -> tuple[Tensor, Tensor]:
    """The product rule against N(0, I) in q dimensions.

    Args:
        n: nodes a dimension.
        q: dimensions; zero gives the one point of the empty integral.

    Returns:
        Nodes `[n^q, q]` and log weights `[n^q]`.

    Example:
        >>> x, log_w = tensor_grid(5, 2)
        >>> x.shape[0], round(float((log_w.exp() * x[:, 0] ** 2 * x[:, 1] ** 2).sum()), 12)
        (25, 1.0)
    """
    x, log_w = hermite(n)
    if q == 0:
        return torch.zeros(1, 0, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    grids = torch.meshgrid(*[x] * q, indexing="ij")
    weights = torch.meshgrid(*[log_w] * q, indexing="ij")
    return torch.stack([g.flatten() for g in grids], -1), sum(
        (w.flatten() for w in weights), torch.zeros(n**q, dtype=torch.float64)
    )


def affordable_nodes(n: int, q: int, budget: int) -> int:
    """The most nodes a dimension, at most n and at least 1, whose product rule has at most `budget` nodes."""
    while n > 1 and n**q > budget:
        n -= 1
    return n
