"""Intervals from replicates: percentiles, and percentiles corrected for bias and skewness.

The ends of a BCa interval (Efron 1987, doi:10.1080/01621459.1987.10478410) are the percentiles

    Phi( z0 + (z0 + z) / (1 - a (z0 + z)) ) ,      z = -1.96, 1.96 for 95 %,

with z0 = Phi^-1(share of replicates below the estimate) for the bias, and for the skewness

    a = 1/6 sum_i u_i^3 / (sum_i u_i^2)^(3/2) ,

u_i what subject i adds to the estimate: its score, carried by the inverse Hessian.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.floating[Any]]


def percentiles(values: Floats, level: float) -> Floats:
    """The ends of the central share `level` of `values [replicate, parameter]`: `[2, parameter]`."""
    tail = (1 - level) / 2
    if len(values) < 2:
        return np.full((2, values.shape[1]), np.nan)
    return np.asarray(np.quantile(values, (tail, 1 - tail), axis=0))


def bca(values: Floats, estimate: Floats, acceleration: Floats, level: float) -> Floats:
    """The ends of BCa intervals `[2, parameter]`; NaN where all replicates lie on one side of the estimate.

    Args:
        values: `[replicate, parameter]`.
        estimate: of the fit, `[parameter]`.
        acceleration: a, `[parameter]`.
        level: coverage.

    Example:
        >>> values = np.arange(1.0, 100.0)[:, None]
        >>> bca(values, np.array([50.0]), np.array([0.0]), 0.9).round(1).tolist()  # as the percentiles
        [[5.9], [94.1]]
    """
    ends = np.full((2, values.shape[1]), np.nan)
    if len(values) < 2:
        return ends
    below = (values < estimate).mean(0) + 0.5 * (values == estimate).mean(0)
    for k in np.flatnonzero((below > 0) & (below < 1) & np.isfinite(acceleration)):
        bias = ndtri(below[k])
        reach = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
        shrink = 1 - acceleration[k] * reach
        if (shrink > 0).all():
            ends[:, k] = np.quantile(values[:, k], ndtr(bias + reach / shrink))
    return ends


def acceleration(influence: Floats) -> Floats:
    """a `[parameter]` from what each subject adds to the estimates, `influence [subject, parameter]`."""
    centred = influence - influence.mean(0)
    square = (centred**2).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((centred**3).sum(0) / (6 * square**1.5))
