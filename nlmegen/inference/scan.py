"""A coarse look at each subject's density, for modes that a search from zero does not reach.

With a small residual error a conditional density is a narrow ridge in a wide prior, and Newton's method from zero may
walk away from it: a concentration of an oral dose, for example, rises to its peak and falls again, and one sample is
explained by a fast and by a slow absorption. Random effects of up to three prior standard deviations along each axis
of z (eta = L z, Omega = L L') are therefore looked at, and the likeliest is a further start.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..maths.newton import Minimum
from ..model.parameters import Values
from ..model.problem import Problem
from .ebe import Conditional, ConditionalExpansion, find_modes

MARGIN = 1e-6
"""Relative difference of two depths that rounding does not make."""

REACH = (-3.0, -2.0, -1.0, 1.0, 2.0, 3.0)
"""Prior standard deviations that are looked at on each axis, beside zero."""

PIECE = 2_000_000
"""Predictions made at once."""


def likeliest(problem: Problem, values: Values) -> Tensor:
    """The likeliest of a few random effects of every subject, `[subject, q]`.

    Args:
        problem: the binding of page and data.
        values: one parameter vector.

    Example:
        >>> likeliest(problem, problem.values(problem.start)).shape  # doctest: +SKIP
        torch.Size([12, 3])
    """
    q = problem.q
    size = max(1, PIECE // ((len(REACH) * q + 1) * max(1, problem.y.shape[-1])))
    if size < problem.n_subjects:
        parts = torch.split(torch.arange(problem.n_subjects), size)
        return torch.cat([likeliest(problem.select(index), values) for index in parts])
    axes = values.factor.reshape(q, q).T
    looks = torch.cat([torch.zeros(1, q, dtype=torch.float64), *(r * axes for r in REACH)]).unsqueeze(1)
    with torch.no_grad():
        depth = problem.log_joint(looks.expand(-1, problem.n_subjects, -1), values)
    return looks[depth.nan_to_num(nan=-math.inf, posinf=-math.inf).argmax(0), 0]


def deepest(problem: Problem, values: Values, eta0: Tensor | None = None) -> Minimum[ConditionalExpansion]:
    """The conditional modes of one parameter vector, the deepest of three: from `eta0`, from the reflection of what
    that finds, and from the likeliest points.

    Args:
        problem: the binding of page and data.
        values: one parameter vector.
        eta0: where the first search starts, `[subject, q]`; zero for None.
    """
    conditional = Conditional.of(problem, values)
    found = find_modes(conditional, eta0)
    if not problem.q or not problem.n_subjects:
        return found
    eta, depth = found.expansion.eta, found.expansion.value
    moved = torch.zeros_like(depth, dtype=torch.bool)
    for start in (-eta, likeliest(problem, values).reshape(eta.shape)):
        other = find_modes(conditional, start)
        here = other.expansion.value
        better = other.converged & ~(here >= depth - MARGIN * (1 + depth.abs()))
        eta, depth = (
            torch.where(better[..., None], other.expansion.eta, eta),
            torch.where(better, here, depth),
        )
        moved |= better
    return find_modes(conditional, eta, near=True) if bool(moved.any()) else found
