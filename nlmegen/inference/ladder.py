"""What a variational fit reports: the ladder ELBO <= IW-ELBO(K) <= log L, each patient's posterior, standard errors.

Everything here is computed on draws that the estimation never saw, so that no number profits from having been
maximised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import Status
from ..maths.quadrature import tensor_grid
from ..model.problem import LOG_2PI
from .boundary import FLAT, describe
from .ebe import modes
from .estimate import Estimate
from .families import log_diagonal
from .flipflop import absorbs_slowly, has_mirror
from .iwml import FINISH, NUMBERS, Course, draws_per_patient, expected_loss
from .posterior import Posterior, log_joint
from .simulated import SimulatedLikelihood
from .starts import logarithmic
from .transport import Chart
from .uncertainty import covariance_of, determined
from .weights import describe as describe_weights

if TYPE_CHECKING:
    from .elbo import ELBO

MEDIAN_ESS, LOW_ESS = 0.5, 0.2
"""A fit is used when the median of ESS / K is above the first and its 10th percentile above the second."""
LEAST_LOSS, LOSS_SHARE = 0.02, 0.01
"""And when the expected loss of -2 log L to Monte Carlo is under the first, or under the second for each parameter: an
estimate's own sampling error costs one unit of -2 log L a parameter, so that noise adds one percent to it."""

GRID_ETAS, GRID_POINTS, FEWEST_NODES, MOST_NODES = 3, 300_000, 7, 9
"""Standard errors come from a grid up to so many random effects, of about so many points for all subjects together."""

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
    share = ladder.posterior.ess / ladder.posterior.k
    median, low = float(share.median()), float(share.quantile(0.1))
    if not math.isfinite(ladder.log_likelihood):
        return (
            False,
            "the likelihood is not finite at the estimates; look at the data, or bound the parameters",
        )
    if median < MEDIAN_ESS or low < LOW_ESS:
        return False, (
            f"the encoder's draws carry too little weight (effective sample size over K: median {median:.2f}, 10th "
            f"percentile {low:.2f}; at least {MEDIAN_ESS} and {LOW_ESS} are needed): train longer (steps) or look at"
            " the data"
        )
    return too_noisy(course, course.deficit) or (True, course.success)


def too_noisy(course: Course, loss: float) -> tuple[bool, str] | None:
    """What to say where Monte Carlo noise in the parameters costs `loss` of -2 log L; None if that is little."""
    allowed = max(LEAST_LOSS, LOSS_SHARE * course.problem.P)
    if not loss > allowed:
        return None
    return False, (
        f"Monte Carlo error costs an expected {loss:.3f} of -2 log L (at most {allowed:.2f} is allowed): "
        "allow more draws (most_draws)"
    )


@dataclass(frozen=True)
class Uncertainty:
    """Covariance of the estimates on the free scale, from R (information) and S (sum of score outer products)."""

    covariance: Tensor | None
    kind: str
    information: Tensor | None
    outer: Tensor | None
    notes: tuple[str, ...] = ()


def curvature(course: Course, posterior: Posterior) -> Tensor:
    """Second derivatives of the log likelihood at `course.free`, `[P, P]`.

    Curvature is a small difference of large terms where a posterior is nearly as wide as its prior, and draws are too
    noisy for it. With few random effects the draws are therefore the nodes of a quadrature, laid by each subject's
    posterior mean and covariance, and q their weights; with many they are those of the maximum, all of them.
    """
    problem, free = course.problem, course.free
    assert course.likelihood is not None
    if problem.q > GRID_ETAS:
        return course.likelihood.hessian(free)
    share = round((GRID_POINTS / problem.n_subjects) ** (1 / problem.q))
    x, log_weight = tensor_grid(min(max(share, FEWEST_NODES), MOST_NODES), problem.q)
    spread = 1e-12 * torch.eye(problem.q, dtype=torch.float64)
    factor = torch.linalg.cholesky(posterior.cov + spread)
    log_normal = -0.5 * (x * x).sum(-1) - 0.5 * problem.q * LOG_2PI
    total = torch.zeros(problem.P, problem.P, dtype=torch.float64)
    size = max(1, NUMBERS // (len(x) * problem.y.shape[-1]))
    for first in range(0, problem.n_subjects, size):
        some = torch.arange(first, min(first + size, problem.n_subjects))
        eta = posterior.mean[some] + (factor[some] @ x[:, None, :, None]).squeeze(-1)
        log_q = (log_normal - log_weight - math.log(len(x)))[:, None] - log_diagonal(factor[some])
        chosen = problem.select(some)
        chart = Chart(chosen, course.likelihood.chart.loose)
        part = SimulatedLikelihood(chosen, free, eta[:, None], log_q[:, None], chart)
        total = total + part.hessian(free)
    return total


def uncertainty(course: Course, posterior: Posterior, kind: str | None) -> Uncertainty:
    """Standard errors at the maximum of the simulated likelihood.

    R is the Hessian by differences of the exact scores, S the outer product of the subjects' scores. A logarithm in
    which the likelihood is flat marks a parameter at a boundary: it is named, and the others' errors hold given it.
    """
    if kind is None or course.likelihood is None or course.problem.P == 0:
        return Uncertainty(None, "", None, None)
    information = -curvature(course, posterior)
    scores = course.likelihood(course.free).scores
    outer = scores.mT @ scores
    held = logarithmic(course.problem) & (2.0 * information.diagonal().abs() < FLAT)
    notes = describe(course.problem, course.free, held)
    seen = int((course.problem.mask.sum(-1) > 0).sum())
    kind, weak = determined(kind, seen, int((~held).sum()))
    notes += [weak] if weak else []
    covariance, why = covariance_of(information, outer, kind, held)
    if covariance is None:
        return Uncertainty(None, "", information, outer, (*notes, why))
    return Uncertainty(covariance, kind, information, outer, tuple(notes))


def _flip_flop(course: Course) -> list[str]:
    """A word on absorption slower than elimination, which oral data cannot tell from its mirror image."""
    if has_mirror(course.problem) and absorbs_slowly(course.problem, course.free):
        return [
            "absorption is estimated slower than elimination (flip-flop); start from the other values to compare"
        ]
    return []


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
        loss = expected_loss(course.maximum.evaluation, errors.information)
        converged, reason = too_noisy(course, loss) or (True, reason)
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
        notes=[
            *course.notes,
            *_flip_flop(course),
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
    )
