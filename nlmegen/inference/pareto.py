"""Pareto-smoothed importance sampling: the shape k-hat of the tail of the weights, which tells when they cannot be
trusted.

A generalised Pareto distribution is fitted to the largest weights of each subject by the empirical-Bayes estimator of
Zhang & Stephens (2009, doi:10.1198/tech.2009.08017), with the weak prior of Vehtari et al. (2024, JMLR 25:72).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pareto_shape(log_weights: Tensor) -> Tensor:
    """k-hat of each column of weights.

    Below 0.5 the variance of the weights is finite and the sums converge as usual; above 0.7 they cannot be relied upon
    at any practical number of draws.

    Args:
        log_weights: `[K, subject]`, need not be normalised.

    Returns:
        `[subject]`; infinite where fewer than five draws lie in the tail or a weight is not finite, and minus
        infinity where all the weights of the tail are equal.

    Example:
        >>> pareto_shape(torch.zeros(1000, 1)).item()
        -inf
    """
    k, n = log_weights.shape
    tail = int(min(0.2 * k, 3.0 * math.sqrt(k)))
    if tail < 5:
        return torch.full((n,), math.inf, dtype=log_weights.dtype)
    ordered = torch.sort(log_weights - log_weights.amax(0), dim=0).values
    cut = ordered[k - tail - 1]
    excess = ordered[k - tail :].exp() - cut.exp()
    flat = excess[-1] <= 1e-9  # of the largest weight: rounding alone
    shape = _fit_shape(torch.where(flat, torch.ones_like(excess), excess))
    shape = (shape * tail + 0.5 * 10.0) / (tail + 10.0)
    shape = torch.where(flat, torch.full_like(shape, -math.inf), shape)
    return torch.where(log_weights.isfinite().all(0), shape, torch.full_like(shape, math.inf))


def _fit_shape(excess: Tensor) -> Tensor:
    """Shape of the generalised Pareto distribution of `excess [m, n]`, ascending along the first axis."""
    m = excess.shape[0]
    excess = excess.clamp_min(1e-300)
    grid = 30 + int(math.sqrt(m))
    step = torch.arange(1, grid + 1, dtype=excess.dtype) - 0.5
    quartile = excess[int(m / 4 + 0.5) - 1]
    theta = 1.0 / excess[-1] + (1.0 - (grid / step).sqrt()).unsqueeze(-1) / (3.0 * quartile)
    shape = torch.log1p(-theta.unsqueeze(1) * excess).mean(1)
    log_likelihood = m * ((-theta / shape).log() - shape - 1.0)
    weight = torch.softmax(log_likelihood.nan_to_num(nan=-math.inf), 0)
    best = (weight * theta).sum(0)
    return torch.log1p(-best * excess).mean(0)
