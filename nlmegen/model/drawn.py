"""Observations drawn around predictions, for every kind of endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .discrete import Discrete
from .residuals import StudentT

if TYPE_CHECKING:
    from .parameters import Values
    from .problem import Problem


def observations(
    problem: Problem, rows: Tensor, sd: Tensor, values: Values, generator: torch.Generator
) -> Tensor:
    """Draws on the scale of the residual error, `[*draw, subject, time]`; counts and categories as they are.

    Args:
        problem: the binding of page and data.
        rows: predictions, `[*draw, subject, row]`.
        sd: sqrt R(f), `[*draw, subject, time]`.
        values: parameter values.
        generator: of random numbers.
    """
    times = problem.y.shape[-1]
    f = rows[..., :times]
    noise = torch.randn(f.shape, generator=generator, dtype=f.dtype)
    for pairs in problem.residual_pairs:
        c = values.sigma[pairs.name]
        first, second = (x.expand(*f.shape[:-1], x.shape[-1]) for x in (pairs.first, pairs.second))
        own = noise.gather(-1, second)
        joined = c * noise.gather(-1, first) + (1 - c * c).sqrt() * own
        noise = noise.scatter_add(-1, second, torch.where(pairs.there, joined - own, 0.0))
    for _, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, StudentT):
            half = torch.full(f.shape, 0.5 * endpoint.df, dtype=f.dtype)
            wide = (half / torch._standard_gamma(half, generator=generator)).sqrt()
            noise = torch.where(mask, noise * wide, noise)
    out = f + (sd * torch.exp(rows[..., times:]) if problem.scaled else sd) * noise
    for name, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, Discrete):
            sigma = {s: values.sigma[f"{name}.{s}"] for s in endpoint.start}
            safe = torch.where(mask & endpoint.defined(f), f, 0.5)
            drawn = torch.where(endpoint.defined(f), endpoint.draw(safe, sigma, generator), torch.nan)
            out = torch.where(mask, drawn, out)
    return out
