"""The maximum of a simulated likelihood on ever more draws, until their noise costs little.

With H the information and V the Monte Carlo covariance of the gradient, the estimates lie H^-1 V H^-1 about the maximum
likelihood, which costs tr(H^-1 V) of -2 log L on average. The rounds end when that is under what was asked for and the
parameters no longer move. Where the draws come from does not matter here: an encoder, or Student t densities.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .maximise import Maximum, maximise
from .penalty import penalty_hessian
from .simulated import Evaluation, SimulatedLikelihood

if TYPE_CHECKING:
    from ..model.problem import Problem

NUMBERS = 4_000_000
"""Most predictions, `[draw, group, subject, time]`, held at once."""
KEPT, GROWTH = 0.8, 8
"""A round has more draws than the last, by this factor at most, if those kept so much of their effective size."""
REFRESH = 150_000
"""Predictions that one set of draws may always make: few patients get more draws each."""
STILL = 0.02
"""A move of this squared length, in units of the standard errors, needs no new linearisation."""
ROUNDS = 10
"""Most rounds."""
UNMOVED, NEAR = 0.1, 2.0
"""Squared length of a move, in units of the standard errors, that is none, and one after which draws are still good."""

LEAST_LOSS, LOSS_SHARE = 0.02, 0.01
"""An expected loss under the first, or under the second for each parameter, is accepted: an estimate's own sampling
error costs one unit of -2 log L a parameter, so that noise adds one percent to it."""

WANDERED = (
    "the parameters still moved when the last draws were taken: the data may not determine one of them; look at the"
    " history, or fix it"
)

Draw = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Draws at parameters `[P]`, so many a subject: eta `[draw, group, subject, q]`, log q `[draw, group, subject]`."""


@dataclass(frozen=True)
class Round:
    """The maximum on one set of draws.

    Attributes:
        free: `[P]`.
        likelihood, maximum: of which, and how it was found.
        k: draws a subject.
        loss: expected loss of -2 log L to Monte Carlo error, tr(H^-1 V).
        settled: whether the parameters stayed and the loss is as small as was asked for, or as draws can make it.
    """

    free: Tensor
    likelihood: SimulatedLikelihood
    maximum: Maximum
    k: int
    loss: float
    settled: bool


def draws_per_patient(problem: Problem, wanted: int, numbers: int = REFRESH) -> int:
    """K, a multiple of four: what is wanted, or more where `numbers` predictions allow it; never beyond memory."""
    one = max(1, problem.y.numel())
    return 4 * math.ceil(min(max(wanted, numbers // one), max(20, NUMBERS // one)) / 4)


def expected_loss(evaluation: Evaluation, information: Tensor | None = None) -> float:
    """What Monte Carlo noise in the parameters costs of -2 log L on average, tr(H^-1 V); H from the scores if None.

    A direction so flat that noise moves it by more than one (a factor of e, mostly) costs no more than its curvature h:
    the sum over the axes of H is of min(v / h, h).
    """
    if information is None:
        information = evaluation.scores.mT @ evaluation.scores
    curvature, axes = torch.linalg.eigh(information)
    curvature = curvature.clamp_min(1e-12)
    noise = ((axes.mT @ evaluation.score_noise) * axes.mT).sum(-1)
    return float(torch.minimum(noise / curvature, curvature).sum())


def too_noisy(problem: Problem, loss: float) -> str:
    """What to say where Monte Carlo noise in the parameters costs `loss` of -2 log L; "" if that is little."""
    allowed = max(LEAST_LOSS, LOSS_SHARE * problem.P)
    if not loss > allowed:
        return ""
    return (
        f"Monte Carlo error costs an expected {loss:.3f} of -2 log L (at most {allowed:.2f} is allowed): "
        "allow more draws (most_draws)"
    )


def enough(problem: Problem, k: int, loss: float, precision: float, most_draws: int) -> int:
    """Draws a patient that should bring the loss under the precision (on lattices it falls faster than 1/K)."""
    if loss < precision:
        return k
    wanted = k * max(1.5, 1.2 * (loss / precision) ** 0.8)
    return draws_per_patient(problem, int(min(most_draws, wanted)))


def settle(likelihood: SimulatedLikelihood, free: Tensor) -> tuple[SimulatedLikelihood, Maximum]:
    """The maximum on fixed draws; where predictions were linearised, again from each maximum until it stands still, or
    until the draws are left behind.
    """
    found = maximise(likelihood, free, tolerance=1e-4, reach=1.0)
    moved, first = found.moved, found.first_ess
    for _ in range(8):
        if not likelihood.tangents or found.moved < STILL or _kept(found, first) < KEPT:
            break
        likelihood = likelihood.renewed(found.free)
        found = maximise(likelihood, found.free, tolerance=1e-4, reach=1.0)
        moved += found.moved
    return likelihood, dataclasses.replace(found, moved=moved, first_ess=first)


def _kept(found: Maximum, first: Tensor) -> float:
    """Share of the median effective sample size `first [subject]` that draws have kept."""
    return float(found.evaluation.ess.median() / first.median())


def rounds(
    problem: Problem,
    free: Tensor,
    draw: Draw,
    k: int,
    *,
    precision: float,
    most_draws: int,
    watch: Callable[[Round], None],
    limit: int = ROUNDS,
) -> Round:
    """Draw, maximise, and draw more where it needs more, until nothing changes.

    Args:
        problem: the binding of page and data.
        free: where to start, `[P]`, not far from the maximum.
        draw: draws at given parameters.
        k: draws a subject in the first round.
        precision: expected loss of -2 log L at which to stop.
        most_draws: a subject, at most.
        watch: called with every round.
        limit: most rounds.

    Returns:
        The last round; not settled where the parameters still moved.
    """
    bend = 0.5 * penalty_hessian(problem, free)
    for _ in range(max(1, limit)):
        eta, log_q = draw(free, k)
        likelihood, found = settle(SimulatedLikelihood(problem, free, eta, log_q), free)
        outer = found.evaluation.scores.mT @ found.evaluation.scores
        loss, free = expected_loss(found.evaluation, outer + bend), found.free
        more = enough(problem, k, loss, precision, most_draws)
        settled = found.moved < UNMOVED and (loss < precision or more <= k)
        last = Round(free, likelihood, found, k, loss, settled)
        watch(last)
        if settled:
            break
        if (
            found.moved < NEAR and _kept(found, found.first_ess) > KEPT
        ):  # otherwise most of the noise is that of draws left behind
            k = max(k, min(more, GROWTH * k))
    return last
