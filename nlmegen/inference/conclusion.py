"""How a method ends that has parameters and no objective function of its own: what is to be said of its estimates.

SAEM and importance sampling arrive at a parameter vector by a random road. What is reported there owes nothing to that
road: the log likelihood by adaptive quadrature (few random effects) or importance sampling, conditional modes,
posterior moments, the boundary verdict, and standard errors from exact scores.

    R = -d2 log L/dpsi2 - d2 log prior/dpsi2,      S = sum_i (d log L_i/dpsi)(d log L_i/dpsi)'

Both come from one sum over nodes eta_ik with log weights log p(y_i, eta_ik) - log q(eta_ik): the scores are posterior
means of the complete-data scores (Fisher's identity), exact for that sum, and R is a difference of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import Status
from ..maths.quadrature import tensor_grid
from ..model.problem import LOG_2PI, Problem
from .boundary import describe, flat, gone, named
from .ebe import modes
from .estimate import Estimate
from .families import log_diagonal
from .finish import MAP, undosed
from .flipflop import absorbs_slowly, has_mirror
from .marginal import GRID_ETAS, Marginal, Sampled, importance, quadrature
from .penalty import penalty_hessian
from .proposals import DF, TwoStudents, proposal
from .scan import likeliest
from .settle import NUMBERS, draws_per_patient
from .simulated import SimulatedLikelihood
from .transport import Chart
from .uncertainty import covariance_of, determined
from .weights import describe as describe_weights

NODES, K = 9, 2000
"""Nodes a dimension of the quadrature, draws a subject of the importance sampling, for the likelihood."""

GRID_POINTS, FEWEST_NODES, MOST_NODES = 50_000, 7, 9
"""Standard errors come from a grid of about so many points for all subjects together."""

DRAWN = 500_000
"""Predictions on which standard errors rest where they come from draws; few subjects get more draws each."""

HEAVY = 0.7
"""A k-hat above this flags a subject: its weights have no usable mean."""

MEDIAN_ESS, LOW_ESS = 0.5, 0.2
"""Draws are trusted when the median of ESS / K is above the first and its 10th percentile above the second."""

NOT_FINITE = "the likelihood is not finite at the estimates; look at the data, or bound the parameters"


@dataclass(frozen=True)
class Uncertainty:
    """Covariance of the estimates on the free scale, from R (information) and S (sum of score outer products).

    Attributes:
        covariance: `[P, P]`, rows of NaN for parameters at a boundary; None where there are no standard errors.
        kind: "sandwich", "R" or "S", "" where there are none.
        information, outer: R and S, `[P, P]`, None where they were not asked for.
        held: parameters at a boundary, `[P]` bool.
        notes: in words.
    """

    covariance: Tensor | None
    kind: str
    information: Tensor | None
    outer: Tensor | None
    held: Tensor
    notes: tuple[str, ...] = ()


def standard_errors(
    problem: Problem, free: Tensor, information: Tensor, outer: Tensor, kind: str
) -> Uncertainty:
    """Standard errors from R and S, after the boundary verdict.

    A logarithm in which the objective is flat marks a parameter at a boundary: it is named, and the others' errors
    hold given it.

    Args:
        problem: the binding of page and data.
        free: the estimates, `[P]`.
        information, outer: R, the priors' part included, and S, `[P, P]`.
        kind: "sandwich", "R" or "S".
    """
    held = flat(problem, 2.0 * information)
    notes = describe(problem, free, held)
    seen = int((problem.mask.sum(-1) > 0).sum())
    kind, weak = determined(kind, seen, int((~held).sum()), problem.penalised)
    notes += [weak] if weak else []
    covariance, why = covariance_of(information, outer, kind, held)
    if covariance is None:
        return Uncertainty(None, "", information, outer, held, (*notes, why))
    return Uncertainty(covariance, kind, information, outer, held, tuple(notes))


def on_a_grid(problem: Problem, free: Tensor, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """R without priors `[P, P]` and the scores `[subject, P]` by quadrature laid by each subject's posterior moments.

    Curvature is a small difference of large terms where a posterior is nearly as wide as its prior, and draws are too
    noisy for it.

    Args:
        problem: the binding of page and data.
        free: where, `[P]`.
        mean, cov: posterior mean `[subject, q]` and covariance `[subject, q, q]` of eta there.
    """
    share = round((GRID_POINTS / problem.n_subjects) ** (1 / problem.q))
    x, log_weight = tensor_grid(min(max(share, FEWEST_NODES), MOST_NODES), problem.q)
    factor = torch.linalg.cholesky(cov + 1e-12 * torch.eye(problem.q, dtype=torch.float64))
    log_normal = -0.5 * (x * x).sum(-1) - 0.5 * problem.q * LOG_2PI
    loose = Chart.of(problem, problem.omega(free), cov.diagonal(dim1=-2, dim2=-1)).loose
    information = torch.zeros(problem.P, problem.P, dtype=torch.float64)
    scores = []
    size = max(1, NUMBERS // (len(x) * problem.y.shape[-1]))
    for some in torch.split(torch.arange(problem.n_subjects), size):
        eta = mean[some] + (factor[some] @ x[:, None, :, None]).squeeze(-1)
        log_q = (log_normal - log_weight - math.log(len(x)))[:, None] - log_diagonal(factor[some])
        part = problem if len(some) == problem.n_subjects else problem.select(some)
        likelihood = SimulatedLikelihood(part, free, eta[:, None], log_q[:, None], Chart(part, loose))
        information = information - likelihood.hessian(free)
        scores.append(likelihood(free).scores)
    return information, torch.cat(scores)


def light_weights(share: Tensor) -> str:
    """What is wrong with draws whose effective sample sizes over K are `share [subject]`, in words; "" if nothing."""
    median, low = float(share.median()), float(share.quantile(0.1))
    if median >= MEDIAN_ESS and low >= LOW_ESS:
        return ""
    return (
        f"carry too little weight (effective sample size over K: median {median:.2f}, 10th percentile {low:.2f}; at"
        f" least {MEDIAN_ESS} and {LOW_ESS} are needed)"
    )


def slow_absorption(problem: Problem, free: Tensor) -> list[str]:
    """A word on absorption slower than elimination, which oral data cannot tell from its mirror image."""
    if has_mirror(problem) and absorbs_slowly(problem, free):
        return [
            "absorption is estimated slower than elimination (flip-flop); start from the other values to compare"
        ]
    return []


@dataclass(frozen=True)
class Drawn:
    """Sampled samples at some parameters, and what they were drawn from.

    Attributes:
        sampled: log likelihood with its error, moments, effective sample sizes.
        proposal: from which more can be drawn.
    """

    sampled: Sampled
    proposal: TwoStudents

    @classmethod
    def at(
        cls, problem: Problem, free: Tensor, *, k: int, seed: int, df: int = DF, eta0: Tensor | None = None
    ) -> Drawn:
        """k fresh draws a subject at `free [P]`, the conditional modes searched from `eta0 [subject, q]`."""
        values = problem.values(free)
        pilots = torch.Generator().manual_seed(seed + 2)
        found = proposal(problem, values, df, eta0=eta0, generator=pilots)
        return cls(importance(problem, values, found, k, seed), found)

    @property
    def flags(self) -> Tensor:
        """`LOW_ESS` for the subjects whose weights have too heavy a tail, `[subject]`."""
        return (~(self.sampled.khat <= HEAVY)).to(torch.int64) * int(Status.LOW_ESS)


def _curvature(
    problem: Problem, free: Tensor, at: Marginal | Sampled, drawn: Drawn | None, seed: int
) -> tuple[Tensor, Tensor]:
    """R and the scores: on a grid, or on draws."""
    if drawn is None or problem.q <= GRID_ETAS:
        information, scores = on_a_grid(problem, free, at.mean, at.cov)
    else:
        k = draws_per_patient(problem, K, DRAWN)
        eta, log_q = drawn.proposal.draw(k, torch.Generator().manual_seed(seed + 1))
        likelihood = SimulatedLikelihood(problem, free, eta, log_q)
        information, scores = -likelihood.hessian(free), likelihood(free).scores
    return information + 0.5 * penalty_hessian(problem, free), scores


def conclude(
    problem: Problem,
    free: Tensor,
    *,
    seed: int,
    covariance: str | None,
    converged: bool,
    reason: str,
    iterations: int,
    notes: list[str],
    history: list[dict[str, Any]],
    eta0: Tensor | None = None,
    drawn: Drawn | None = None,
) -> Estimate:
    """The `Estimate` of a method that ended at `free`.

    Args:
        problem: the binding of page and data, with random effects.
        free: the estimates, `[P]`.
        seed: of the draws, where there are more than `GRID_ETAS` random effects.
        covariance: "sandwich", "R" or "S"; None for no standard errors. There are none either where the method did not
            converge, and a note says so.
        converged, reason, iterations, notes, history: how the method ended, as an `Estimate` tells it.
        eta0: where to start the search for the conditional modes, `[subject, q]`; zero is always tried as well.
        drawn: importance samples at `free` to report; without them a grid is preferred where it is affordable.

    Returns:
        An `Estimate` with log likelihood, modes, moments, flags and standard errors. It is not converged where the
        likelihood is not finite, or a theta ran away to infinity.

    Example:
        >>> conclude(problem, free, seed=1, covariance="R", converged=True, reason="", iterations=9, notes=[],
        ...     history=[]).ofv_source  # doctest: +SKIP
        'quadrature'
    """
    free, notes = free.detach().clone(), list(notes)
    values = problem.values(free)
    ebe, status = modes(problem, values, eta0, second_starts=(0.0, -1.0, likeliest(problem, values)))
    if drawn is None and problem.q > GRID_ETAS:
        drawn = Drawn.at(problem, free, k=K, seed=seed, eta0=ebe)
    at = quadrature(problem, values, NODES, eta0=ebe) if drawn is None else drawn.sampled
    if not math.isfinite(at.total):
        converged, reason = False, NOT_FINITE
    spread = Uncertainty(None, "", None, None, torch.zeros(problem.P, dtype=torch.bool))
    if covariance is not None and problem.P:
        if converged:
            information, scores = _curvature(problem, free, at, drawn, seed)
            spread = standard_errors(problem, free, information, scores.mT @ scores, covariance)
        else:
            notes.append("no standard errors: the estimation did not converge")
    away = gone(problem, free, spread.held)
    if bool(away.any()):
        converged = False
        reason = (
            f"the data do not determine {named(problem, away)}, which ran away; fix it or simplify the page"
        )
    elif bool(spread.held.any()):
        where = named(problem, spread.held)
        reason += f", with {where} at a boundary, of which an error by Monte Carlo says nothing"
    penalty = float(problem.penalty(free))
    prior = [MAP.format(penalty=penalty)] if problem.penalised else []
    told = [*slow_absorption(problem, free), *spread.notes, *describe_weights(problem, free, at.mean), *prior]
    return Estimate(
        free=free,
        ofv=problem.ofv(at.total),
        log_likelihood=at.total,
        ofv_source="quadrature" if drawn is None else "importance",
        ofv_se=None if drawn is None else 2.0 * drawn.sampled.total_se,
        converged=converged,
        reason=reason,
        iterations=iterations,
        notes=notes + [word for word in told if word not in notes],
        ebe=ebe,
        status=status | undosed(problem) * int(Status.NO_DOSES) | (0 if drawn is None else drawn.flags),
        eta_mean=at.mean,
        eta_cov=at.cov,
        covariance=spread.covariance,
        covariance_kind=spread.kind,
        hessian_r=spread.information,
        score_s=spread.outer,
        history=history,
        weights=problem.weights.detach().clone() if len(problem.weights) else None,
        penalty=penalty,
    )
