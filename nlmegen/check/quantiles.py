"""Residuals of counts and categories: randomised quantile residuals.

With F the distribution of an observation at its individual prediction, `Phi^-1(u)`, u uniform between F(y - 1) and
F(y), is N(0, 1) under the true model (Dunn & Smyth 1996, doi:10.1080/10618600.1996.10474708); at estimated random
effects it shrinks, as iwres does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nlmegen.model.discrete import Discrete
from nlmegen.model.parameters import Values
from nlmegen.model.problem import Problem


def randomised(problem: Problem, f: Tensor, values: Values, source: torch.Generator) -> Tensor:
    """Return the randomised quantile residuals of counts and categories, missing elsewhere.

    Args:
        problem: Whose observations.
        f: [N, T] individual predictions.
        values: Parameters.
        source: Generator of the uniform numbers.

    Returns:
        [N, T].
    """
    out = torch.full_like(problem.y, torch.nan)
    uniform = torch.rand(problem.y.shape, dtype=f.dtype, generator=source)
    for name, endpoint, mask in problem.by_endpoint:
        if not isinstance(endpoint, Discrete) or not bool(mask.any()):
            continue
        sigma = {s: values.sigma[f"{name}.{s}"].reshape(()) for s in endpoint.start}
        at = torch.where(endpoint.defined(f[mask]), f[mask], 0.5)
        y = problem.y[mask]
        below, here = torch.zeros_like(y), torch.zeros_like(y)
        for k in range(int(y.max()) + 1):
            mass = torch.exp(endpoint.slopes(at, torch.full_like(y, float(k)), sigma).log_p)
            below, here = torch.where(y > k, below + mass, below), torch.where(y == k, mass, here)
        u = (below + uniform[mask] * here).clamp(1e-16, 1 - 1e-16)
        out[mask] = torch.where(endpoint.defined(f[mask]), torch.special.ndtri(u), torch.nan)
    return out
