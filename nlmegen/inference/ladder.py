"""What a variational fit reports: the ladder ELBO <= IW-ELBO(K) <= log L, each patient's posterior, standard errors.

Everything here is computed on draws that the estimation never saw, so that no number profits from having been maximised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import Status
from .ebe import modes
from .estimate import Estimate
from .iwml import Course, draws_per_patient, positive_definite
from .posterior import Posterior
from .simulated import inverse_information

if TYPE_CHECKING:
    from .elbo import ELBO

MEDIAN_ESS, LOW_ESS, DEFICIT = 0.5, 0.2, 0.02
"""A fit is used when the median of ESS / K is above the first, its 10th percentile above the second, and the expected loss
of -2 log L to Monte Carlo under the third."""


@dataclass(frozen=True)
class Ladder:
    """The bounds on log L at one point, summed over subjects.

    Args:
        elbo: mean log weight.
        iwelbo: log mean weight of K draws, biased low by about half its variance.
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

    The draws come in G independent groups; with v_i the variance of a group's relative mean weight, log of the mean over
    groups has variance v_i / G and, to that order, bias -v_i / 2G.
    """
    problem = course.problem
    values = problem.values(course.free)
    eta, log_q = course.encoder.approximate(problem, values).draw(k, generator)
    ratio = problem.log_joint(eta, values) - log_q
    own = torch.logsumexp(ratio, 0) - math.log(ratio.shape[0])
    groups = own.shape[0]
    total = torch.logsumexp(own, 0) - math.log(groups)
    variance = (own - total).exp().var(0) / groups
    ids = tuple(problem.population.ids)
    posterior = Posterior.weigh(ids, tuple(problem.eta_names), eta.flatten(0, 1), ratio.flatten(0, 1))
    return Ladder(
        float(ratio.mean((0, 1)).sum()),
        float(total.sum()),
        float((total + 0.5 * variance).sum()),
        math.sqrt(float(variance.sum())),
        posterior,
    )


def verdict(course: Course, ladder: Ladder) -> tuple[bool, str]:
    """Whether the fit may be used, and why."""
    if course.reason:
        return False, course.reason
    share = ladder.posterior.ess / ladder.posterior.k
    median, low = float(share.median()), float(share.quantile(0.1))
    if not math.isfinite(ladder.log_likelihood):
        return False, "the likelihood is not finite at the estimates; look at the data, or bound the parameters"
    if median < MEDIAN_ESS or low < LOW_ESS:
        return False, (
            f"the encoder's draws carry too little weight (effective sample size over K: median {median:.2f}, 10th "
            f"percentile {low:.2f}; at least {MEDIAN_ESS} and {LOW_ESS} are needed): train longer (steps) or look at the data"
        )
    if course.deficit > DEFICIT:
        return False, (
            f"Monte Carlo error costs an expected {course.deficit:.3f} of -2 log L (at most {DEFICIT} is allowed): "
            "allow more draws (most_draws)"
        )
    return True, "the parameters stand still and the draws carry weight"


@dataclass(frozen=True)
class Uncertainty:
    """Covariance of the estimates on the free scale, with R (information) and S (sum of score outer products), `[P, P]`."""

    covariance: Tensor | None
    kind: str
    information: Tensor | None
    outer: Tensor | None
    notes: tuple[str, ...] = ()


def uncertainty(course: Course, kind: str | None) -> Uncertainty:
    """Standard errors from the simulated likelihood at its maximum.

    R is the Hessian by differences of the exact scores, S the outer product of the subjects' scores; sandwich R^-1 S R^-1.
    """
    if kind is None or course.likelihood is None or course.problem.P == 0:
        return Uncertainty(None, "", None, None)
    # curvature needs fewer draws than the maximum did
    few = draws_per_patient(course.problem, 200)
    information = -course.likelihood.thinned(few).hessian(course.free)
    scores = course.likelihood(course.free).scores
    outer = scores.mT @ scores
    if not positive_definite(information):
        words = "the Hessian of the likelihood is not positive definite at the estimates: no standard errors"
        return Uncertainty(None, "", information, outer, (words,))
    inverse = torch.linalg.inv(information)
    covariance = {
        "sandwich": lambda: inverse @ outer @ inverse,
        "R": lambda: inverse,
        "S": lambda: inverse_information(outer),
    }[kind]()
    return Uncertainty(covariance, kind, information, outer)


def conclude(course: Course, settings: ELBO) -> Estimate:
    """The `Estimate` of a course that has come to its end, or was stopped."""
    problem = course.problem
    generator = torch.Generator().manual_seed(settings.seed + 1_000_003)
    ladder = climb(course, draws_per_patient(problem, 10 * settings.draws, 100_000), generator)
    posterior = ladder.posterior
    converged, reason = verdict(course, ladder)
    errors = uncertainty(course, settings.covariance if converged else None)
    ebe, status = modes(problem, problem.values(course.free), posterior.mean.nan_to_num())
    poor = torch.tensor([word == "refine" for word in posterior.verdict])
    status = status | poor.to(status.dtype) * int(Status.LOW_ESS)
    return Estimate(
        free=course.free,
        ofv=problem.ofv(ladder.log_likelihood),
        log_likelihood=ladder.log_likelihood,
        ofv_source="importance",
        ofv_se=2.0 * ladder.se,
        converged=converged,
        reason=reason,
        iterations=course.steps,
        notes=[*course.notes, *errors.notes],
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
    )
