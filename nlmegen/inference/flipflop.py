"""Flip-flop: the mirror image of an oral one-compartment model.

With first-order absorption and one compartment the concentration is the same for (ka, cl, v) and for
(cl/v, cl, cl/ka): absorption and elimination have changed places, and oral data alone cannot tell which is which. The
two images are two optima of a population model, with different variances of the random effects. The convention is
that absorption is the faster one (Gibaldi & Perrier, Pharmacokinetics, 2nd ed. (1982), chapter 1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.problem import Problem
from ..structure.closed import OneCompartment

SAMPLE = 50
"""Subjects whose typical parameters are looked at."""


def has_mirror(problem: Problem) -> bool:
    """Whether the structure of the page is one that has a mirror image: ka, cl and v alone."""
    closed = problem.structure.closed_form
    return isinstance(closed, OneCompartment) and closed.absorption is not None


def _typical(problem: Problem, free: Tensor) -> Tensor:
    """log (ka, cl, v) at eta = 0, `[*b, 3, subject]`, of the first subjects."""
    some = problem.select(torch.arange(min(problem.n_subjects, SAMPLE)))
    eta = torch.zeros(*free.shape[:-1], some.n_subjects, problem.q, dtype=torch.float64)
    p = some.individual(eta, problem.values(free))
    return torch.stack([p[name][..., 0].log() for name in ("ka", "cl", "v")], -2)


def absorbs_slowly(problem: Problem, free: Tensor) -> bool:
    """Whether ka < cl/v for the typical parameters of most subjects at `free [P]`."""
    ka, cl, v = _typical(problem, free).unbind(-2)
    return bool((ka - cl + v).median() < 0)


def mirrored(problem: Problem, free: Tensor) -> Tensor | None:
    """The thetas of the mirror image, the other parameters kept: `[P]`.

    The page's own formulas say how typical parameters follow from thetas, so these are found by Gauss-Newton steps on
    log (ka, cl, v) over subjects; None where they cannot get there (ka fixed, say).
    """
    ka, cl, v = _typical(problem, free).unbind(-2)
    target = torch.stack((cl - v, cl, cl - ka), -2)
    if not bool(torch.isfinite(target).all()):
        return None
    thetas = [j for j, name in enumerate(problem.names) if name in problem.layout.thetas]
    if not thetas:
        return None
    step, image = 1e-4, free.clone()
    for _ in range(5):
        points = torch.cat((image[None], image + step * torch.eye(len(free), dtype=torch.float64)[thetas]))
        typical = _typical(problem, points)
        slope = ((typical[1:] - typical[0]) / step).flatten(1).T
        if not bool(torch.isfinite(slope).all()):
            return None
        move = torch.linalg.lstsq(slope, (target - typical[0]).flatten()[:, None], driver="gelsd").solution
        image = image.index_add(0, torch.tensor(thetas), move[:, 0])
    return None if absorbs_slowly(problem, image) == absorbs_slowly(problem, free) else image
