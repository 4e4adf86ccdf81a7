"""Records drawn from the model on given designs, where observations are more than Gaussian numbers.

What likelihoods call an observation is drawn as they see it: a value beyond its limit of quantification becomes a
censored record under M3 and M4, a count a count. M1 and "half" take their records at face value, and so do these.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.censoring import Limits
from ..model.endpoints import Residual
from ..simulate.limits import limits as limits_of
from .density import is_deviation

if TYPE_CHECKING:
    from ..model.correlation import Pairs
    from ..model.parameters import Values
    from ..model.problem import Problem


TRIES = 20
"""Draws that are to be positive are made again so often at most."""


def noisier(problem: Problem, values: Values, factor: Tensor) -> Values:
    """Values with every residual standard deviation multiplied by `factor [subject, 1]`."""
    kept = {name: x * factor if is_deviation(problem, name) else x for name, x in values.sigma.items()}
    return dataclasses.replace(values, sigma=kept)


def with_limits(problem: Problem) -> Problem:
    """The same designs, every record with the limit that it would have been censored at: tables that flag censored
    records and hold no LLOQ do not say it of the others (see `simulate.limits`).

    Args:
        problem: all subjects of a population.
    """
    if problem.limits is None or not bool(problem.limits.censored.any()):
        return problem
    other = copy.copy(problem)
    other.lloq, other.uloq = limits_of(problem.population)
    return other


def answered(
    problem: Problem, rows: Tensor, values: Values, mask: Tensor, generator: torch.Generator
) -> Problem:
    """A problem of the same designs with observations drawn about the prediction `rows [subject, row]`.

    Args:
        problem: the designs.
        rows, values: where to draw.
        mask: samples kept, `[subject, time]`.
        generator: source of the draws.
    """
    dv = _drawn(problem, rows, values, generator)
    limited, cens = problem.censored(dv)
    other = copy.copy(problem)
    other.observed = problem.observed & (mask > 0)
    other.mask = other.observed.to(problem.mask.dtype)
    other.residual_pairs = [_seen(pairs, other.observed) for pairs in problem.residual_pairs]
    y, limits = torch.zeros_like(dv), torch.zeros_like(dv)
    may = torch.zeros_like(problem.observed)
    for _, endpoint, own in problem.by_endpoint:
        own = own & other.observed
        y = torch.where(own, endpoint.link_dv(torch.where(own, dv, 1.0)), y)
        if isinstance(endpoint, Residual) and endpoint.gaussian and endpoint.blq in ("M3", "M4"):
            may = may | own
            linked = endpoint.link_dv(torch.where(own & (cens != 0), limited, 1.0))
            limits = torch.where(own, linked, limits)
    for pairs in problem.residual_pairs:
        may = may & ~_members(pairs, may)
    other.y = y
    other.log_jacobian = torch.zeros_like(problem.log_jacobian)
    other.limits = _limits(problem.limits, y, torch.where(may, cens, 0), limits)
    if other.limits is not None:
        lower, upper = other.limits.lower, other.limits.upper
        other.y = torch.where(other.limits.censored, torch.where(upper.isfinite(), upper, lower), y)
    return other


def _drawn(problem: Problem, rows: Tensor, values: Values, generator: torch.Generator) -> Tensor:
    """Observations of the table; where they are taken to be positive (M4), draws that are not are made again."""
    positive = torch.zeros_like(problem.observed)
    for _, endpoint, own in problem.by_endpoint:
        if isinstance(endpoint, Residual) and endpoint.blq == "M4":
            positive = positive | own
    dv = problem.simulate_dv(rows, values, generator)
    for _ in range(TRIES if bool(positive.any()) else 0):
        wrong = positive & ~(dv > 0)
        if not bool(wrong.any()):
            break
        dv = torch.where(wrong, problem.simulate_dv(rows, values, generator), dv)
    return dv


def _limits(real: Limits | None, y: Tensor, cens: Tensor, limit: Tensor) -> Limits | None:
    """What is known of observations `y` beyond their `limit` as `cens` has it: 1 below, -1 above.

    A record that lies between two limits in the data does so here where y allows, and under the lower one is known to
    be under that.
    """
    if real is None and not bool((cens != 0).any()):
        return None
    inf = torch.full_like(y, torch.inf)
    zero = -inf if real is None else real.zero
    lower = torch.where(cens == -1, limit, torch.where(cens == 1, zero, -inf))
    upper = torch.where(cens == 1, limit, inf)
    if real is not None:
        both = real.censored & (real.lower > zero) & real.upper.isfinite() & (cens == 1) & (y < real.upper)
        lower = torch.where(both & (y >= real.lower), real.lower, lower)
        upper = torch.where(both, torch.where(y >= real.lower, real.upper, real.lower), upper)
    return Limits(cens != 0, lower, upper, zero)


def _seen(pairs: Pairs, observed: Tensor) -> Pairs:
    """The pairs of which both observations are there."""
    there = pairs.there & observed.gather(1, pairs.first) & observed.gather(1, pairs.second)
    return dataclasses.replace(pairs, there=there)


def _members(pairs: Pairs, like: Tensor) -> Tensor:
    """Which observations belong to a pair, `[subject, time]` bool."""
    member = torch.zeros_like(like, dtype=torch.float64)
    for place in (pairs.first, pairs.second):
        member = member.scatter_add(1, place, pairs.there.to(torch.float64))
    return member > 0
