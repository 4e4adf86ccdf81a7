"""What an estimation comes to, once its search has ended: standard errors, the etas of every subject, and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..data.events import Kind
from ..errors import Status
from ..model.problem import LOG_2PI, Problem
from . import weights
from .boundary import describe
from .ebe import status_of
from .estimate import Estimate
from .objective import Evaluation, Objective
from .outer import Outcome
from .uncertainty import covariance_of, determined, information

MAP = (
    "the page has priors: the estimates are those of the largest posterior density (MAP), -2 log prior {penalty:.4f} is"
    " no part of the objective function or of any likelihood reported"
)


def finished(
    objective: Objective,
    outcome: Outcome,
    *,
    covariance: str | None,
    iterations: int,
    notes: list[str],
    history: Sequence[dict[str, Any]],
) -> Estimate:
    """The `Estimate` of a search that has ended.

    Args:
        objective: what was minimised.
        outcome: how the search ended; subjects with second modes have been looked for.
        covariance: the covariance wanted, None for none.
        iterations: of the whole search.
        notes: what has been said already; more is added.
        history: one entry an iteration.
    """
    problem, surface, held = objective.problem, outcome.surface, outcome.held
    point, second = _with_modes(objective, surface.free, surface.evaluation, outcome.second)
    words = objective.remarks + describe(problem, surface.free, held)
    words += weights.describe(problem, surface.free, point.eta[0])
    penalty = 0.0 if point.penalty is None else float(point.penalty[0])
    if problem.penalised:
        words.append(MAP.format(penalty=penalty))
    r = s = matrix = None
    kind = covariance
    if point.score is not None and surface.exact:
        r, s = information(surface.hessian, point.score[0])
    if kind is not None and problem.P:
        why = "no standard errors: the Hessian is not finite"
        if r is not None and s is not None:
            seen = int((problem.mask.sum(-1) > 0).sum())
            kind, note = determined(kind, seen, int((~held).sum()), problem.penalised)
            matrix, why = covariance_of(r, s, kind, held)
            if note and matrix is not None:
                words.append(note)
        if matrix is None:
            words.append(why)
    notes += [sentence for sentence in words if sentence not in notes]
    reason = outcome.reason
    if bool(held.any()) and outcome.converged:
        edge = ", ".join(name for name, yes in zip(problem.names, held.tolist(), strict=True) if yes)
        reason += f", with {edge} at a boundary"
    log_likelihood = -0.5 * (float(point.ofv[0]) + problem.n_gaussian * LOG_2PI)
    status = status_of(problem, point.depth[0], point.converged[0], point.indefinite[0])
    return Estimate(
        free=surface.free.detach().clone(),
        ofv=problem.ofv(log_likelihood),
        log_likelihood=log_likelihood,
        ofv_source=objective.source,
        converged=outcome.converged,
        reason=reason,
        iterations=iterations,
        ebe=point.eta[0],
        status=status | second * int(Status.SECOND_MODE) | undosed(problem) * int(Status.NO_DOSES),
        eta_mean=point.mean[0],
        eta_cov=point.cov[0],
        notes=notes,
        covariance=matrix,
        covariance_kind=kind or "" if matrix is not None else "",
        hessian_r=r,
        score_s=s,
        history=[dict(entry) for entry in history],
        weights=problem.weights.detach().clone() if len(problem.weights) else None,
        penalty=penalty,
    )


def _with_modes(
    objective: Objective, free: Tensor, point: Evaluation, second: Tensor | None
) -> tuple[Evaluation, Tensor]:
    """The evaluation with conditional modes, found now (POSTHOC) where the method has none; second modes as known."""
    none = torch.zeros(objective.problem.n_subjects, dtype=torch.bool)
    if objective.conditional:
        return point, none if second is None else second
    modal = objective.modal(free[None])
    point = replace(
        point,
        eta=modal.eta,
        depth=modal.depth,
        converged=modal.converged,
        indefinite=modal.indefinite,
        factor=modal.factor,
        root=modal.root,
    )
    return point, none


def undosed(problem: Problem) -> Tensor:
    """Subjects without a dose where others have one, `[subject]` bool."""
    kind = problem.population.events.kind
    dosed = ((kind == Kind.BOLUS) | (kind == Kind.START) | (kind == Kind.STEADY)).any(-1)
    return ~dosed & dosed.any()
