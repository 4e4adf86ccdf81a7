"""The search for the maximum of a simulated likelihood, times the priors where there are any: BFGS from the metric of
the subjects' scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .penalty import penalty_hessian
from .simulated import Evaluation, SimulatedLikelihood


@dataclass(frozen=True)
class Maximum:
    """Where a search for the maximum ended.

    Args:
        free: `[P]`.
        evaluation: there; first_ess: effective sample size over K before the first step, `[subject]`.
        moved: squared length of the whole move in the metric of the first score outer product: twice the gain that a
            quadratic likelihood would have made.
        iterations: steps taken.
        settled: whether the predicted gain fell under the tolerance.
    """

    free: Tensor
    evaluation: Evaluation
    first_ess: Tensor
    moved: float
    iterations: int
    settled: bool


def maximise(
    likelihood: SimulatedLikelihood,
    free: Tensor,
    *,
    iterations: int = 40,
    step_limit: float = 0.3,
    reach: float = math.inf,
    tolerance: float = 1e-3,
    least_ess: float = 0.3,
) -> Maximum:
    """BFGS on the simulated likelihood; the first metric is the outer product of the subjects' scores.

    Args:
        likelihood: on its fixed draws.
        free: start, `[P]`.
        iterations: at most.
        step_limit: largest entry of one step.
        reach: largest entry of the whole move (draws are only good near where they were made).
        tolerance: stop when the predicted gain in the objective is under this.
        least_ess: no step may bring the median effective sample size under this share of the first.
    """
    start = free
    here = likelihood(free)
    first_ess = here.ess
    least = least_ess * float(first_ess.median())
    outer = here.scores.mT @ here.scores + 0.5 * penalty_hessian(likelihood.problem, free)
    metric = inverse_information(outer)
    identity = torch.eye(len(free), dtype=torch.float64)
    settled = False
    count = 0
    while count < iterations:
        count += 1
        gradient = here.gradient
        step = metric @ gradient
        if float(step @ gradient) < tolerance:
            settled = True
            break
        step = step * min(1.0, step_limit / float(step.abs().max()))
        found = _line_search(likelihood, free, here, step, start, reach, least)
        if found is None:
            break
        new, there = found
        s, y = new - free, gradient - there.gradient
        free, here = new, there
        curvature = float(s @ y)
        if curvature > 1e-10:
            left = identity - torch.outer(s, y) / curvature
            metric = left @ metric @ left.mT + torch.outer(s, s) / curvature
    off = free - start
    return Maximum(free, here, first_ess, float(off @ outer @ off), count, settled)


def _line_search(
    likelihood: SimulatedLikelihood,
    free: Tensor,
    here: Evaluation,
    step: Tensor,
    start: Tensor,
    reach: float,
    least: float,
) -> tuple[Tensor, Evaluation] | None:
    for _ in range(10):
        new = torch.minimum(torch.maximum(free + step, start - reach), start + reach)
        there = likelihood(new)
        if there.objective > here.objective and float(there.ess.median()) > least:
            return new, there
        step = 0.4 * step
    return None


def inverse_information(information: Tensor, ridge: float = 1e-3) -> Tensor:
    """Inverse of an information matrix, steadied by a ridge that is small beside any parameter worth estimating."""
    inverse: Tensor = torch.linalg.inv(information + ridge * torch.eye(len(information), dtype=torch.float64))
    return inverse
