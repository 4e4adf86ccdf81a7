"""Parameters at the edge of what they can be, found before anything is said of standard errors.

On its free scale such a parameter has no optimum: the logarithm of a standard deviation goes to minus infinity, slower
and slower, and the objective no longer depends on it. A curvature near zero in a logarithm is therefore the sign, and
the way it went tells a boundary (a variance of 0, a correlation of 1, a theta at its bound) from a parameter that ran
away because the data do not determine it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.problem import Problem
from .density import is_deviation
from .outer import Surface
from .starts import logarithmic

FLAT = 0.01
"""Curvature of the objective in a logarithm under which it is flat: an error of a factor e^14."""


SMALL = 0.01
"""A gap, a power or a dispersion under this that the objective no longer depends on went to 0."""


def flat(problem: Problem, hessian: Tensor) -> Tensor:
    """Logarithms in which the objective, of Hessian `[P, P]`, is flat, `[P]` bool."""
    return logarithmic(problem) & (hessian.diagonal().abs() < FLAT)


def gone(problem: Problem, free: Tensor, flat: Tensor) -> Tensor:
    """Those of the parameters `flat [P]` that are thetas gone to infinity, `[P]` bool."""
    layout = problem.layout
    kinds = {name: b.kind for name, b in zip(layout.theta_names, layout.bijections, strict=True)}
    open_end = torch.tensor(
        [kinds.get(name) in ("lower", "upper") for name in problem.names], dtype=torch.bool
    )
    return flat & open_end & (free > problem.start)


def runaways(problem: Problem, surface: Surface) -> Tensor:
    """Thetas that went to infinity, `[P]` bool."""
    return gone(problem, surface.free, _flat(problem, surface))


def at_boundary(problem: Problem, surface: Surface) -> Tensor:
    """Thetas at a bound, standard deviations that are zero, correlations of one, `[P]` bool."""
    return _flat(problem, surface) & ~runaways(problem, surface)


def _flat(problem: Problem, surface: Surface) -> Tensor:
    found = flat(problem, surface.hessian)
    return found if surface.exact else torch.zeros_like(found)


def named(problem: Problem, which: Tensor) -> str:
    """The parameters `which [P]`, in words."""
    return ", ".join(name for name, yes in zip(problem.names, which.tolist(), strict=True) if yes)


def describe(problem: Problem, free: Tensor, held: Tensor) -> list[str]:
    """One sentence for each parameter `held [P]` at a boundary at `free [P]`."""
    layout, words = problem.layout, []
    values = layout.values(problem.full(free))
    for name in [name for name, yes in zip(problem.names, held.tolist(), strict=True) if yes]:
        if name in layout.omega_names:
            i, _ = layout.positions[layout.omega_names.index(name)]
            own = float(values.factor[i, i] ** 2 / values.omega[i, i])
            word = f"{name} is at its boundary 0"
            if own < 1e-3:
                word = (
                    f"the random effect {layout.effect_names[i]} is a combination of others (correlation 1)"
                )
        elif name in layout.correlation_names:
            word = f"{name} is at its boundary {math.copysign(1, float(values.sigma[name])):g}"
        elif name in layout.sigma_names:
            at, deviation = float(values.sigma[name]), is_deviation(problem, name)
            word = (
                f"the residual error {name} is at its boundary 0"
                if deviation
                else f"{name} is at its boundary 0"
            )
            if not deviation and at > SMALL:  # a gap above which no category was ever seen, for one
                word = f"the data say nothing about {name} (now {at:.6g})"
        else:
            at, theta = float(values.theta[name]), layout.thetas[name]
            bounds = [b for b in (theta.lower, theta.upper) if b is not None]
            if any(abs(at - b) < 1e-3 * abs(theta.start - b) for b in bounds):
                word = f"{name} is at its bound {at:.6g}"
            else:
                word = f"the data say nothing about {name} (now {at:.6g})"
        words.append(f"{word}; it has no standard error, and those of the others hold given it")
    return words
