"""-2 log L of several fits' estimates by one arbiter, whatever each method calls its own objective.

    "quadrature"   adaptive Gauss-Hermite; its error is the change that two nodes fewer make
    "importance"   proposals of two Student t densities (`inference.proposals`), repeated, which gives its error
    "auto"         quadrature up to three random effects, importance sampling beyond
    "own"          no arbiter: each method's own objective, comparable where all are of one kind

Importance sampling uses the same random numbers for all fits, so that a difference is known better than its parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import DataError
from ..inference.marginal import GRID_ETAS, importance, quadrature
from ..inference.proposals import proposal
from ..model.parameters import Values
from ..model.problem import Problem

REPEATS = 8
"""Independent repeats of the importance arbiter, from whose scatter the standard errors come."""

ARBITERS = ("auto", "quadrature", "importance", "own")


class Judged(Protocol):
    """What an arbiter needs: estimates of a problem, and what was said of them where they were made."""

    @property
    def problem(self) -> Problem:
        """The binding of page and data."""

    @property
    def values(self) -> Values:
        """Parameter values at the estimates."""

    @property
    def log_likelihood(self) -> float:
        """Its own, complete."""

    @property
    def ofv_source(self) -> str:
        """How its own was computed."""

    @property
    def ofv_se(self) -> float | None:
        """Monte Carlo standard error of its own, on the scale of -2 log L."""


@dataclass(frozen=True)
class Verdict:
    """-2 log L of every fit by one arbiter.

    Attributes:
        repeats: `[repeat, fit]`: independent repeats of importance sampling; two quadrature rules, the finer first;
            one row of own objectives.
        arbiter: "quadrature", "importance" or "own"; detail: its settings in words.
        own_se: standard errors of own objectives `[fit]`, 0 where they are not random.
    """

    repeats: Tensor
    arbiter: str
    detail: str
    own_se: Tensor | None = None

    @property
    def minus2ll(self) -> Tensor:
        """The best value `[fit]`."""
        return self.repeats.mean(0) if self.arbiter == "importance" else self.repeats[0]

    @property
    def se(self) -> Tensor:
        """Its numerical error `[fit]`; NaN where it is not known."""
        return self.own_se if self.own_se is not None else self._error(self.repeats)

    def paired_se(self, reference: int) -> Tensor:
        """Numerical error of the difference of every fit from fit `reference`, `[fit]`."""
        if self.own_se is not None:
            together = (self.own_se**2 + self.own_se[reference] ** 2).sqrt()
            together[reference] = 0.0
            return together
        return self._error(self.repeats - self.repeats[:, reference : reference + 1])

    def _error(self, repeats: Tensor) -> Tensor:
        if self.arbiter == "quadrature":
            return (repeats[0] - repeats[1]).abs()
        return repeats.std(0) / math.sqrt(len(repeats))


def judge(
    fits: Sequence[Judged], arbiter: str = "auto", nodes: int = 9, k: int = 1000, seed: int = 0
) -> Verdict:
    """-2 log L of every fit's estimates.

    Args:
        fits: one or more.
        arbiter: one of `ARBITERS`.
        nodes: of the quadrature, in each dimension; fewer where the grid would be too large, and `detail` says how
            many.
        k: draws a subject and repeat of importance sampling.
        seed: of importance sampling.

    Raises:
        DataError: an unknown arbiter, too few nodes or draws, or own objectives of different kinds.
    """
    if arbiter not in ARBITERS:
        raise DataError(f"arbiter={arbiter!r}: expected 'auto', 'quadrature', 'importance' or 'own'")
    if nodes < 1:
        raise DataError(f"nodes={nodes}: expected at least 1 node a dimension; 9 unless given")
    if k < 2:
        raise DataError(f"k={k}: expected at least 2 draws a subject; 1000 unless given")
    if arbiter == "auto":
        arbiter = "quadrature" if max(f.problem.q for f in fits) <= GRID_ETAS else "importance"
    if arbiter == "own":
        return _own(fits)
    with torch.no_grad():
        return _by_quadrature(fits, nodes) if arbiter == "quadrature" else _by_importance(fits, k, seed)


def _by_quadrature(fits: Sequence[Judged], nodes: int) -> Verdict:
    finest, coarser, used = [], [], []
    for f in fits:
        if not f.problem.q:
            finest.append(_exactly(f))
            coarser.append(finest[-1])
            continue
        fine = quadrature(f.problem, f.values, nodes)
        finest.append(fine.total)
        used.append(fine.nodes)
        coarser.append(quadrature(f.problem, f.values, fine.nodes - 2).total if fine.nodes > 2 else math.nan)
    judged = torch.tensor([finest, coarser], dtype=torch.float64)
    return Verdict(-2 * judged, "quadrature", _rules(used or [nodes], nodes))


def _by_importance(fits: Sequence[Judged], k: int, seed: int) -> Verdict:
    columns = []
    for f in fits:
        if not f.problem.q:
            columns.append([_exactly(f)] * REPEATS)
            continue
        q = proposal(f.problem, f.values, generator=torch.Generator().manual_seed(seed))
        columns.append([importance(f.problem, f.values, q, k, seed + r).total for r in range(REPEATS)])
    detail = f"importance sampling, {REPEATS} x {k} draws a subject, common random numbers"
    return Verdict(-2 * torch.tensor(columns, dtype=torch.float64).T, "importance", detail)


def _exactly(fit: Judged) -> float:
    """log L of a page without random effects, which has no integral."""
    nothing = torch.zeros(fit.problem.n_subjects, 0, dtype=torch.float64)
    return float(fit.problem.log_likelihood(nothing, fit.values).sum())


def _own(fits: Sequence[Judged]) -> Verdict:
    sources = list(dict.fromkeys(f.ofv_source for f in fits))
    if len(sources) > 1:
        raise DataError(
            f"arbiter='own': the fits' own objectives are of different kinds ({', '.join(sources)}) and cannot be set"
            " against each other; use arbiter='auto', or fit all of them by one method"
        )
    judged = torch.tensor([[-2 * f.log_likelihood for f in fits]], dtype=torch.float64)
    se = torch.tensor([f.ofv_se or 0.0 for f in fits], dtype=torch.float64)
    return Verdict(judged, "own", f"each fit's own objective ({sources[0]}), complete", se)


def _rules(used: list[int], asked: int) -> str:
    """The quadrature rules of the fits in words: the nodes in use, not those asked for."""

    def several(numbers: list[int]) -> str:
        return " or ".join(str(n) for n in sorted(set(numbers), reverse=True))

    second = [n - 2 for n in used if n > 2]
    errors = f"errors: change from {several(second)} nodes" if second else "errors unknown: no smaller rule"
    capped = "" if set(used) == {asked} else f"; {asked} asked for, but the grid would be too large"
    word = "node" if set(used) == {1} else "nodes"
    return f"adaptive quadrature, {several(used)} {word} a dimension ({errors}{capped})"
