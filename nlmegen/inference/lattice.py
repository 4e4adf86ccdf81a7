"""Low-discrepancy points for Monte Carlo over random effects: shifted lattices, independent per subject.

A rank-one Kronecker sequence u_k = frac(s + k * alpha), with alpha from the generalised golden ratio, fills the unit
cube evenly. Each subject gets `shifts` copies with its own uniform shifts s (Cranley & Patterson 1976,
doi:10.1137/0713071): every point is uniform, so that averages are unbiased; the spread between the copies measures the
error; and because no two subjects share a shift, their errors do not add up in one direction.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHIFTS = 4
"""Independent copies of the lattice a subject: enough to see a spread, few enough to keep each copy dense."""


def golden_ratio(dimension: int) -> float:
    """The positive root of x^(d+1) = x + 1, by fixed-point iteration (d = 1 gives the golden ratio 1.618...)."""
    ratio = 2.0
    for _ in range(60):
        ratio = (1.0 + ratio) ** (1.0 / (dimension + 1))
    return ratio


def shifted_lattice(
    k: int, n_subjects: int, dimension: int, generator: torch.Generator, shifts: int = SHIFTS
) -> Tensor:
    """Uniform points in the open unit cube, `shifts` independently shifted lattices for each subject.

    Args:
        k: points a subject in all; rounded up to a multiple of `shifts`.
        n_subjects: N.
        dimension: d, coordinates of a point.
        generator: source of the shifts.
        shifts: independent copies a subject.

    Returns:
        `[k / shifts, shifts, subject, d]` float64.

    Example:
        >>> shifted_lattice(8, 2, 3, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 4, 2, 3])
    """
    length = -(-k // shifts)
    ratio = golden_ratio(dimension)
    alpha = torch.tensor([ratio ** -(j + 1) for j in range(dimension)], dtype=torch.float64)
    steps = alpha.reshape(-1, 1, 1, 1) * torch.arange(length, dtype=torch.float64).reshape(-1, 1, 1)
    shift = torch.rand(dimension, 1, shifts, n_subjects, generator=generator, dtype=torch.float64)
    points = steps + shift
    # the short axis is last for the reader and outermost in memory
    return (points - points.floor()).clamp(1e-12, 1.0 - 1e-12).movedim(0, -1)
