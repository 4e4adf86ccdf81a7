"""What a variational fit reports: the ladder ELBO <= IW-ELBO(K) <= log L, each patient's posterior, standard errors.

Everything here is computed on draws that the estimation never saw, so that no number profits from having been
maximised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import Status
from .conclusion import (
    NOT_FINITE,
    Uncertainty,
    light_weights,
    on_a_grid,
    slow_absorption,
    standard_errors,
)
from .ebe import modes
from .estimate import Estimate
from .finish import MAP
from .iwml import FINISH, Course
from .marginal import GRID_ETAS
from .penalty import penalty_hessian
from .posterior import Posterior, log_joint
from .settle import draws_per_patient, expected_loss, too_noisy
from .weights import describe as describe_weights

if TYPE_CHECKING:
    from .elbo import ELBO

MEDIAN_ESS, LOW_ESS = 0.5, 0.2
"""A fit is used when the median of ESS / K is above the first and its 10th percentile above the second."""
ELBO_DRAWS = 200
"""Draws a subject from q itself, for its bound."""


@dataclass(frozen=True)
class Ladder:
    """The bounds on log L at one point, summed over subjects.

    Args:
        elbo: mean log weight under q itself.
        iwelbo: log mean weight of K draws from q a little widened, biased low by about half its variance.
        log_likelihood: the same with that bias taken off; se: its Monte Carlo standard error.
        posterior: of each subject, from the same draws.
    """

    elbo: float
    iwelbo: float
    log_likelihood: float
    se: float
    posterior: Posterior

    def bounds(self) -> dict[str, Any]:
        """As a fit's folder keeps it; effective sample sizes are fractions of K."""
        share = self.posterior.ess / self.posterior.k
        return {
            "elbo": self.elbo,
            "iwelbo": self.iwelbo,
            "k": self.posterior.k,
            "importance_log_likelihood": self.log_likelihood,
            "importance_se": self.se,
            "khat_max": float(self.posterior.khat.max()),
            "ess_median": float(share.median()),
            "ess_min": float(share.min()),
        }


def climb(course: Course, k: int, generator: torch.Generator) -> Ladder:
    """The ladder at `course.free` from `k` fresh draws a subject.

    The draws come in G independent groups; with v_i the variance of a group's relative mean weight, log of the mean
    over groups has variance v_i / G and, to that order, bias -v_i / 2G.
    """
    problem = course.problem
    values = problem.values(course.free)
    eta, log_q = course.encoder.approximate(problem, values).draw(k, generator)
    ratio = log_joint(problem, eta, values) - log_q
    own = torch.logsumexp(ratio, 0) - math.log(ratio.shape[0])
    groups = own.shape[0]
    total = torch.logsumexp(own, 0) - math.log(groups)
    variance = (own - total).exp().var(0) / groups
    ids = tuple(problem.population.ids)
    posterior = Posterior.weigh(ids, tuple(problem.eta_names), eta.flatten(0, 1), ratio.flatten(0, 1))
    plain, log_plain = course.encoder.approximate(problem, values, widen=1.0).draw(ELBO_DRAWS, generator)
    elbo = (log_joint(problem, plain, values) - log_plain).mean((0, 1))
    return Ladder(
        float(elbo.sum()),
        float(total.sum()),
        float((total + 0.5 * variance).sum()),
        math.sqrt(float(variance.sum())),
        posterior,
    )


def verdict(course: Course, ladder: Ladder) -> tuple[bool, str]:
    """Whether the fit may be used, and why."""
    if course.reason:
        return False, course.reason
    if not math.isfinite(ladder.log_likelihood):
        return False, NOT_FINITE
    light = light_weights(ladder.posterior.ess / ladder.posterior.k)
    if light:
        return False, f"the encoder's draws {light}: train longer (steps) or look at the data"
    noisy = too_noisy(course.problem, course.deficit)
    return not noisy, noisy or course.success


def uncertainty(course: Course, posterior: Posterior, kind: str | None) -> Uncertainty:
    """Standard errors at the maximum of the simulated likelihood: on a grid, or with many random effects on all the
    draws of the maximum.
    """
    problem, free = course.problem, course.free
    if kind is None or course.likelihood is None or problem.P == 0:
        return Uncertainty(None, "", None, None, torch.zeros(problem.P, dtype=torch.bool))
    if problem.q <= GRID_ETAS:
        information, scores = on_a_grid(problem, free, posterior.mean, posterior.cov)
    else:
        information, scores = -course.likelihood.hessian(free), course.likelihood(free).scores
    information = information + 0.5 * penalty_hessian(problem, free)
    return standard_errors(problem, free, information, scores.mT @ scores, kind)


def conclude(course: Course, settings: ELBO) -> Estimate:
    """The `Estimate` of a course that has come to its end, or was stopped."""
    problem = course.problem
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003)
    ladder = climb(course, draws_per_patient(problem, 10 * settings.draws, 2 * FINISH), generator)
    posterior = ladder.posterior
    converged, reason = verdict(course, ladder)
    errors = uncertainty(course, posterior, settings.covariance if converged else None)
    if (
        converged
        and course.maximum is not None
        and errors.covariance is not None
        and errors.information is not None
    ):
        noisy = too_noisy(problem, expected_loss(course.maximum.evaluation, errors.information))
        converged, reason = not noisy, noisy or reason
    ebe, status = modes(problem, problem.values(course.free), posterior.mean.nan_to_num())
    poor = torch.tensor([word == "refine" for word in posterior.verdict])
    status = status | poor.to(status.dtype) * int(Status.LOW_ESS)
    penalty = float(problem.penalty(course.free))
    return Estimate(
        free=course.free,
        ofv=problem.ofv(ladder.log_likelihood),
        log_likelihood=ladder.log_likelihood,
        ofv_source="importance",
        ofv_se=2.0 * ladder.se,
        converged=converged,
        reason=reason,
        iterations=course.steps,
        notes=[
            *([MAP.format(penalty=penalty)] if problem.penalised else []),
            *course.notes,
            *slow_absorption(problem, course.free),
            *errors.notes,
            *describe_weights(problem, course.free, posterior.mean.nan_to_num()),
        ],
        ebe=ebe,
        status=status,
        eta_mean=posterior.mean,
        eta_cov=posterior.cov,
        covariance=errors.covariance,
        covariance_kind=errors.kind,
        hessian_r=errors.information,
        score_s=errors.outer,
        encoder=course.encoder.eval(),
        bounds=ladder.bounds(),
        history=course.history,
        weights=problem.weights.detach().clone() if len(problem.weights) else None,
        penalty=penalty,
    )
