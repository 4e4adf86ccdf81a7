"""What the rungs share: comparisons that raise AssertionError, and distributions q of known shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from nlmegen.inference.families import Gaussian
from nlmegen.inference.posterior import Approximation

F64 = torch.float64
EXACT = 1e-8
"""What rounding, and conditional modes iterated to the end, leave of an exact answer."""


def close(found: Any, wanted: Any, tolerance: float) -> None:
    """Assert |found - wanted| <= tolerance (1 + |wanted|), entry by entry."""
    a, b = torch.as_tensor(found, dtype=F64), torch.as_tensor(wanted, dtype=F64)
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def within(error: Any, se: Any, number: float) -> None:
    """Assert that errors are at most `number` standard errors, entry by entry."""
    z = torch.as_tensor(error, dtype=F64).abs() / torch.as_tensor(se, dtype=F64)
    assert bool((z <= number).all()), f"off by {float(z.max()):.3g} standard errors, at most {number} allowed"


def gaussian_q(mean: Tensor, factor: Tensor) -> Approximation:
    """q = N(mean, factor factor') for every subject, as a fit's encoder would return it.

    The family's own numbers are not the standard ones: P (w - m) is standard normal with P and m of no special value,
    and the affine map makes up for it, so that no determinant is 1 by chance.
    """
    n, q = mean.shape
    inner = torch.full((q,), 0.4, dtype=F64)
    lower = 0.2 * torch.ones(q * (q - 1) // 2, dtype=F64)
    raw = torch.cat((inner, torch.linspace(-0.3, 0.5, q, dtype=F64), lower)).expand(n, -1)
    precision = torch.diag_embed(raw[0, q : 2 * q].exp())
    if q > 1:
        precision[tuple(torch.tril_indices(q, q, -1))] = lower
    scale = factor @ precision
    return Approximation(Gaussian(), raw, mean - scale @ inner, scale)


def shifted(
    mean: Tensor, covariance: Tensor, *, shift: float | Tensor = 0.0, widen: float = 1.0
) -> Approximation:
    """A Gaussian with the mean moved by `shift` marginal SDs and the SDs multiplied by `widen`."""
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return gaussian_q(mean + shift * sd, widen * torch.linalg.cholesky(covariance))


def fixed_q(q: Approximation) -> Any:
    """What stands where a fit keeps its encoder, and answers with q."""
    return SimpleNamespace(approximate=lambda problem, values, widen=1.0: q)
