"""The objective function that a fit is judged by when its parameters move: the method's own, or quadrature.

A method that approximates the likelihood by an objective function (FO to AGQ) is judged by that one. SAEM, importance
sampling and the variational methods approach the maximum of the likelihood itself, which is to be had by adaptive
quadrature where the random effects are few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import FitError
from ..fit import Fit
from ..fit.result import one_thread
from ..inference.boundary import at_boundary
from ..inference.classic import Classic
from ..inference.methods import method_class, stages
from ..inference.objective import Objective
from ..inference.outer import Outer, Surface
from ..inference.starts import logarithmic
from ..inference.uncertainty import covariance_of, jacobian
from .intervals import Floats

MOST_ETAS = 3
"""Random effects up to which quadrature is taken for a method without an objective function."""


def criterion(fit: Fit) -> Objective:
    """The objective function of a fit, to be evaluated at other parameter vectors.

    Raises:
        FitError: the fit's method has none, and there are too many random effects for quadrature.
    """
    last: Any = stages(fit.settings)[-1]
    if not isinstance(last, Classic):
        if fit.problem.q > MOST_ETAS:
            raise FitError(
                f"{last.name} has no objective function that could be evaluated at other parameters, and"
                f" {fit.problem.q} random effects are too many for quadrature (at most {MOST_ETAS}); use bootstrap, or"
                " fit by laplace or focei from these estimates"
            )
        last = method_class("agq")()
    objective: Objective = last.objective(fit.problem)
    return objective


def is_own(fit: Fit) -> bool:
    """Whether `criterion` is what the fit's own method minimised."""
    return isinstance(stages(fit.settings)[-1], Classic)


def centre(fit: Fit, objective: Objective) -> tuple[float, Tensor, Tensor, list[str]]:
    """The objective at the estimates, these `[P]`, the inverse of its curvature there `[P, P]`, and notes.

    That is R^-1, not the sandwich: exp(-O/2) knows of no other width. Parameters at a boundary have variance zero.

    Raises:
        FitError: the Hessian is not positive definite.
    """
    free, r, notes = fit.estimate.free, fit.estimate.hessian_r, []
    surface = None
    if r is None or fit.estimate.covariance is None:
        surface = Outer(objective, logarithmic(fit.problem)).exact(free, fit.ebe[None])
    if r is None and surface is not None:
        r = 0.5 * surface.hessian
    assert r is not None
    held = _held(fit, surface)
    covariance, why = covariance_of(r, r, "R", held)
    if covariance is None:
        raise FitError(
            f"the fit has no covariance to sample from: {why.removeprefix('no standard errors: ')}"
        )
    if bool(held.any()):
        names = ", ".join(n for n, yes in zip(fit.problem.names, held.tolist(), strict=True) if yes)
        notes.append(f"{names}: held at the boundary")
    covariance = torch.where(held | held[:, None], 0.0, covariance)
    base = float(objective(free[None], fit.ebe[None]).total[0])
    return base, free, covariance, notes


def influence(fit: Fit) -> tuple[Floats | None, str]:
    """What each subject adds to the natural estimates `[subject, P]`, R^-1 score_i; or None and why there is none.

    Parameters at a boundary are held: their columns are zero.
    """
    try:
        objective = criterion(fit)
    except FitError as error:
        return None, str(error)
    problem, free = fit.problem, fit.estimate.free
    with one_thread():
        outer = Outer(objective, logarithmic(problem))
        surface = outer.exact(free, fit.ebe[None])
        score = surface.evaluation.score
        if score is None or not surface.exact:
            return None, "the objective has no finite second derivatives at the estimates"
        at_edge = _held(fit, surface)
        kept = (~at_edge).nonzero().squeeze(-1)
        r = 0.5 * surface.hessian[kept[:, None], kept]
        moves = torch.zeros_like(score[0])
        moves[:, kept] = -0.5 * torch.linalg.lstsq(r, score[0][:, kept].mT, driver="gelsd").solution.mT
        natural: Floats = (moves @ jacobian(problem, free).mT).numpy()
    return natural, ""


def _held(fit: Fit, surface: Surface | None) -> Tensor:
    """Parameters at a boundary `[P]`: as the fit says, or where it has no covariance as the surface tells."""
    covariance = fit.estimate.covariance
    if covariance is not None:
        return torch.isnan(covariance.diagonal())
    assert surface is not None
    return at_boundary(fit.problem, surface)
