"""What the data do not determine, in plain sentences.

The curvature R (half the Hessian of -2 log L in the free parameters, see `uncertainty`) is scaled to ones on its
diagonal, C = D^(-1/2) R D^(-1/2), so that units do not matter. An eigenvalue of C near zero is a direction in which all
parameters can move together while the likelihood stays where it is, though each alone is held: the data determine a
combination, and not its parts. The direction says which. With d its components relative to the parameters (dx / x of a
positive one), two of them whose d are equal leave x / y determined, opposite ones x y.

Then come what is determined, but poorly: pairs of estimates with a high correlation, large relative standard errors, a
large condition number; and random effects whose individual estimates have shrunk, because the record of a patient says
little of them (Savic & Karlsson 2009, AAPS J 11:558-569, doi:10.1208/s12248-009-9133-0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.problem import Problem
from .uncertainty import Uncertainty, jacobian, natural

FLAT = 1e-4
"""Eigenvalue of the scaled curvature under which a direction is not determined: with the others free a standard error
is a hundred times what it would be with the others known."""

DOWN = -0.01
"""The same under which the objective bends down: rounding does not make so much of what is flat."""

NOTHING = 0.01
"""Curvature of the objective in a logarithm under which a parameter alone is not determined: an error of e^14."""

TAKES_PART = 0.05
"""Share of the largest component from which a parameter belongs to a direction."""

CORRELATED = 0.95
"""Correlation of two estimates from which it is said."""

LOOSE, LOOSER = 0.5, 1.0
"""Relative standard error from which it is said: of a positive theta; of a variance or a residual error, for which
half is what a dozen subjects give."""

ILL_CONDITIONED = 1000.0
"""Condition number from which it is said."""

SHRUNK = 0.3
"""Shrinkage from which it is said (Savic & Karlsson 2009: diagnostics mislead from 20 to 30 % on)."""

MOST = 5
"""Parameters that a sentence spells out combinations of; of more it only gives the names."""


@dataclass(frozen=True)
class Combination:
    """Parameters that the data do not determine apart.

    Attributes:
        names: two or more, the one that moves most (of equal ones the last) in the last place.
        moves: how they move together: relative changes of those that multiply, absolute ones of those that add up.
        multiply: which each does: positive parameters multiply, variances among themselves and all others add up.
    """

    names: tuple[str, ...]
    moves: tuple[float, ...]
    multiply: tuple[bool, ...]

    @property
    def determined(self) -> list[str]:
        """What stays the same along the direction, each of the others with the last; empty where it has no name."""
        if all(self.multiply):
            return [
                _product(name, self.names[-1], -move / self.moves[-1])
                for name, move in zip(self.names[:-1], self.moves[:-1], strict=True)
            ]
        if not any(self.multiply):
            return [
                _sum(name, self.names[-1], -move / self.moves[-1])
                for name, move in zip(self.names[:-1], self.moves[:-1], strict=True)
            ]
        return []

    def describe(self) -> str:
        """One sentence."""
        apart = f"{_listed(self.names)} apart"
        if len(self.names) > MOST or not self.determined:
            return (
                f"the data do not determine {apart}: they can be moved together without a change in the fit"
            )
        return f"the data determine {_listed(self.determined)} but not {apart}; fix one of them"


def identifiability(
    problem: Problem,
    free: Tensor,
    r: Tensor | None,
    s: Tensor | None,
    spread: Uncertainty | None,
    shrinkage: Mapping[str, float],
) -> list[str]:
    """What the data do not determine, or poorly, in plain sentences; empty for a healthy fit.

    Args:
        problem: the binding of page and data.
        free: the estimates `[P]`.
        r, s: curvature and score matrix `[P, P]` as `uncertainty.information` returns them; S stands in for a missing
            R where there are more subjects than parameters.
        spread: standard errors, where there are any.
        shrinkage: of each random effect.

    Example:
        >>> identifiability(problem, free, r, s, None, {})  # doctest: +SKIP
        ['the data determine cl/f and v/f but not cl, v and f apart; fix one of them']
    """
    held = torch.zeros(problem.P, dtype=torch.bool)
    if spread is not None:
        held = torch.isnan(spread.se)
    curvature = _curvature(problem, r, s)
    words: list[str] = []
    together: list[Combination] = []
    alone: list[str] = []
    if curvature is not None:
        together, alone = undetermined(problem, free, curvature, held)
    if alone:
        words.append(f"the data do not determine {_listed(alone)}: fix it, or leave it out of the page")
    words += [combination.describe() for combination in together]
    if spread is not None:
        named = {*alone, *(name for combination in together for name in combination.names)}
        words += _correlated(spread, together)
        words += _loose(problem, spread, named)
        if math.isfinite(spread.condition_number) and spread.condition_number > ILL_CONDITIONED:
            words.append(
                f"the condition number is {spread.condition_number:.4g} (above {ILL_CONDITIONED:g}): some parameters"
                " can be traded for others; the page may be larger than the data"
            )
    return words + _shrunk(shrinkage)


def undetermined(
    problem: Problem, free: Tensor, curvature: Tensor, held: Tensor
) -> tuple[list[Combination], list[str]]:
    """Combinations, and single parameters, that the curvature `[P, P]` at `free [P]` leaves open.

    None where it bends down: `free` is at no minimum then, and what is flat there need not be so at one.

    Args:
        problem: the binding of page and data.
        free: the estimates.
        curvature: R, or S in its place.
        held: parameters that are left out, `[P]` bool.
    """
    value, slope, positive = _natural(problem, free)
    weight = curvature.diagonal()
    steep = weight * _size(problem, free) ** 2
    if bool((steep < -NOTHING)[~held].any()):
        return [], []
    flat = ~(steep > NOTHING) & ~held
    alone = [name for name, yes in zip(problem.names, flat.tolist(), strict=True) if yes]
    kept = (~held & ~flat).nonzero().flatten()
    if len(kept) < 2:
        return [], alone
    scale = weight[kept].rsqrt()
    eigenvalues, axes = torch.linalg.eigh(curvature[kept[:, None], kept] * scale * scale[:, None])
    if float(eigenvalues[0]) < DOWN:
        return [], []
    found = []
    for axis in _sparse(axes[:, eigenvalues < FLAT].T):
        part = (axis.abs() > TAKES_PART * axis.abs().max()).nonzero().flatten()
        index = kept[part].tolist()
        moves = slope[:, kept[part]] @ (scale * axis)[part]
        multiply = positive
        if all(problem.names[k] in problem.layout.omega_names for k in index):
            multiply = torch.zeros_like(positive)  # variances add up
        moves = torch.where(multiply, moves / value, moves)
        size = moves.abs() / moves[index].abs().max()
        last = max(index, key=lambda k: (round(float(size[k]), 3), k))
        index = [k for k in index if k != last] + [last]
        if len(index) == 1:
            alone.append(problem.names[last])
            continue
        found.append(
            Combination(
                tuple(problem.names[k] for k in index),
                tuple(float(moves[k]) for k in index),
                tuple(bool(multiply[k]) for k in index),
            )
        )
    return found, alone


def _curvature(problem: Problem, r: Tensor | None, s: Tensor | None) -> Tensor | None:
    """R; S where there is no R and enough subjects; None where neither is of use."""
    subjects = int((problem.mask.sum(-1) > 0).sum())
    for matrix in (r, s if subjects > problem.P else None):
        if matrix is not None and matrix.numel() and bool(torch.isfinite(matrix).all()):
            return matrix
    return None


def _natural(problem: Problem, free: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Natural values `[P]`, their derivatives in the free parameters `[P, P]`, and which are positive `[P]`."""
    layout = problem.layout
    lower = {name: b.lower for name, b in zip(layout.theta_names, layout.bijections, strict=True)}
    positive = [lower[name] >= 0 if name in lower else "," not in name for name in problem.names]
    return natural(problem, free), jacobian(problem, free), torch.tensor(positive, dtype=torch.bool)


def _size(problem: Problem, free: Tensor) -> Tensor:
    """A step as large as one in a logarithm is, for each free parameter `[P]`."""
    layout = problem.layout
    kinds = {name: b.kind for name, b in zip(layout.theta_names, layout.bijections, strict=True)}
    omega_sd = problem.page_omega(free).diagonal().sqrt()
    size = torch.ones_like(free)
    for k, name in enumerate(problem.names):
        if kinds.get(name) == "identity":
            size[k] = max(abs(float(free[k])), abs(float(problem.start[k])), 1e-12)
        elif name in layout.omega_names:
            i, j = layout.positions[layout.omega_names.index(name)]
            size[k] = omega_sd[i] if i != j else 1.0
    return size


def _sparse(directions: Tensor) -> Tensor:
    """The same space `[direction, P]`, each direction with a parameter of its own that the others leave alone."""
    rows = directions.clone()
    used: list[int] = []
    for k in range(len(rows)):
        free = rows[k:].abs().clone()
        free[:, used] = 0.0
        at = int(free.argmax())
        row, column = k + at // rows.shape[1], at % rows.shape[1]
        rows[[k, row]] = rows[[row, k]]
        rows[k] = rows[k] / rows[k, column]
        others = [j for j in range(len(rows)) if j != k]
        rows[others] -= rows[others, column : column + 1] * rows[k]
        used.append(column)
    return rows


def _correlated(spread: Uncertainty, together: list[Combination]) -> list[str]:
    """A sentence for each pair of estimates with a high correlation."""
    words = []
    size = len(spread.names)
    for i in range(size):
        for j in range(i):
            rho = float(spread.correlation[i, j])
            pair = {spread.names[i], spread.names[j]}
            if abs(rho) > CORRELATED and not any(pair <= set(c.names) for c in together):
                words.append(
                    f"the estimates of {spread.names[j]} and {spread.names[i]} have a correlation of {rho:.3f}: the"
                    " data hardly tell them apart"
                )
    return words


def _loose(problem: Problem, spread: Uncertainty, named: set[str]) -> list[str]:
    """A sentence for the parameters with a large relative standard error.

    A theta that may be zero has none worth the name: near zero it is large, however well the theta is determined.
    """
    layout = problem.layout
    lower = {name: b.lower for name, b in zip(layout.theta_names, layout.bijections, strict=True)}
    words = []
    for limit, names in (
        (LOOSE, [n for n in spread.names if lower.get(n, -1.0) >= 0]),
        (LOOSER, [n for n in spread.names if n not in lower and "," not in n]),
    ):
        loose = [
            f"{n} ({100 * float(spread.rse[spread.names.index(n)]):.0f} %)"
            for n in names
            if float(spread.rse[spread.names.index(n)]) > limit and n not in named
        ]
        if loose:
            words.append(
                f"poorly determined (relative standard error above {100 * limit:.0f} %): {', '.join(loose)}"
            )
    return words


def _shrunk(shrinkage: Mapping[str, float]) -> list[str]:
    """A sentence for the random effects whose individual estimates have shrunk."""
    shrunk = [
        f"{name} by {100 * x:.0f} %" for name, x in shrinkage.items() if math.isfinite(x) and x > SHRUNK
    ]
    if not shrunk:
        return []
    return [
        f"the individual estimates of eta shrink ({', '.join(shrunk)}): plots of them, regressions on covariates and"
        " individual predictions (ipred, iwres) mislead there; use vpc, npde and the posterior"
    ]


def _product(x: str, y: str, power: float) -> str:
    """x y^power as people write it."""
    return f"{x}{'/' if power < 0 else '*'}{y}{_exponent(abs(power))}"


def _exponent(power: float) -> str:
    nice = round(2 * power) / 2
    shown = nice if nice > 0 and abs(power - nice) < 0.05 * nice else round(power, 2)
    return "" if shown == 1 else f"^{shown:g}"


def _sum(x: str, y: str, factor: float) -> str:
    """x + factor y as people write it."""
    size = abs(factor)
    times = "" if abs(size - 1) < 0.02 else f"{size:.3g} "
    return f"{x} {'-' if factor < 0 else '+'} {times}{y}"


def _listed(names: tuple[str, ...] | list[str]) -> str:
    """Names with commas and an "and"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
