"""Network weights in a variational fit: on the bound of variational EM, then on importance-weighted draws.

Both objectives are smooth in the weights w once q, or the draws, are given; their gradients are one reverse pass. The
etas are carried along as x = (thetas, w) moves, d eta = T dx with T and the metric from the linearised model
(`weights`): the posterior then need not catch up with every step, and one step is nearly a step of maximum likelihood.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..model.problem import Problem
from .vem import Variational, alternate, gaussian_bound, maximised
from .weights import FLAT, Linear

STEP_LIMIT = 0.5
"""Largest entry of one step."""

HALVINGS = 6
"""Tries of a line search."""

DRAWN_STEPS = 2
"""Steps of the weights on one set of draws."""


def penalised(problem: Problem, log_likelihood: Tensor) -> Tensor:
    """A log likelihood or bound less half the penalty on the weights."""
    penalty: Tensor = log_likelihood - 0.5 * problem.model.networks.penalty(problem.weights)
    return penalty


def _ascent(linear: Linear, problem: Problem, gradient: Tensor, first: int) -> tuple[Tensor, float]:
    """The Newton step in x, from its entry `first` on, with the linearised metric, and twice the gain it promises."""
    ridge = torch.full_like(gradient, 1e-6)
    ridge[len(linear.thetas) - first :] = problem.model.networks.penalties + FLAT
    step = torch.linalg.solve(linear.information[first:, first:] + ridge.diag(), gradient)
    promise = float(step @ gradient)
    return step * min(1.0, STEP_LIMIT / max(float(step.abs().max()), 1e-300)), promise


# -- variational EM -------------------------------------------------------------------------------------------------
def bound_step(problem: Problem, at: Variational) -> tuple[Problem, Variational, float]:
    """One step of thetas and weights on the bound, the means of all q carried along.

    Returns:
        The problem at its new weights, where variational EM is now, and the gain promised.
    """
    linear = Linear.at(problem, at.free, at.mean)
    carry, n = linear.carry, len(linear.thetas)

    def moved(x: Tensor) -> tuple[Problem, Tensor, Tensor]:
        free = at.free.index_add(0, torch.tensor(linear.thetas, dtype=torch.long), x[:n])
        return problem.with_weights(problem.weights + x[n:]), free, at.mean + carry @ x

    x = torch.zeros(carry.shape[-1], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        there, free, mean = moved(x)
        bound = gaussian_bound(there, free, mean, at.factor)
        (gradient,) = torch.autograd.grad(penalised(there, bound.sum()), x)
    step, promise = _ascent(linear, problem, gradient, 0)
    present = float(penalised(problem, at.bound.sum()))
    for _ in range(HALVINGS):
        there, free, mean = moved(step)
        bound = gaussian_bound(there, free, mean, at.factor)
        if float(penalised(there, bound.sum())) >= present:
            return there, Variational(free, mean, at.factor, bound), promise
        step = 0.4 * step
    return problem, at, promise


def learn_on_the_bound(
    problem: Problem,
    free: Tensor,
    *,
    iterations: int = 200,
    tolerance: float = 0.02,
    report: Callable[[int, Variational], None] | None = None,
) -> tuple[Problem, Variational]:
    """Variational EM over parameters and weights, until three iterations in a row gain less than `tolerance`.

    Args:
        problem: at the weights to start from.
        free: parameters to start from, `[P]`.
        iterations: at most.
        tolerance: in log likelihood units.
        report: called with the iteration and where it is.

    Returns:
        The problem at its new weights, and where variational EM ended.

    Raises:
        FitError: when the bound is not finite at the start.
    """
    return alternate(problem, free, _learned, iterations, tolerance, patience=3, report=report)


def _learned(problem: Problem, at: Variational) -> tuple[Problem, Variational, float]:
    problem, at, _ = bound_step(problem, at)
    at = maximised(problem, at)
    return problem, at, float(penalised(problem, at.bound.sum()))


# -- importance-weighted draws --------------------------------------------------------------------------------------
def drawn_steps(problem: Problem, free: Tensor, eta: Tensor, log_q: Tensor) -> tuple[Problem, Tensor, float]:
    """A few steps of the weights on the simulated likelihood of fixed draws, which are carried along.

    Args:
        problem: at its present weights.
        free: parameters, which stay, `[P]`.
        eta: draws `[draw, group, subject, q]`; log_q: their log density `[draw, group, subject]`.

    Returns:
        The problem at its new weights, the carried draws, and the squared length of the move in the metric.
    """
    values = problem.values(free)

    def log_mean(there: Problem, drawn: Tensor) -> tuple[Tensor, Tensor]:
        ratio = torch.nan_to_num(there.log_joint(drawn, values) - log_q, nan=-math.inf, posinf=-math.inf)
        ratio = ratio.flatten(0, 1)
        return penalised(there, (torch.logsumexp(ratio, 0) - math.log(len(ratio))).sum()), ratio

    length = 0.0
    for _ in range(DRAWN_STEPS):
        with torch.no_grad():
            present, ratio = log_mean(problem, eta)
            centre = torch.einsum("kn,knq->nq", torch.softmax(ratio, 0), eta.flatten(0, 1))
        linear = Linear.at(problem, free, centre)
        first = len(linear.thetas)
        carry = linear.carry[..., first:]
        x = torch.zeros(carry.shape[-1], dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            there = problem.with_weights(problem.weights + x)
            (gradient,) = torch.autograd.grad(log_mean(there, eta + carry @ x)[0], x)
        step, _ = _ascent(linear, problem, gradient, first)
        for _ in range(HALVINGS):
            there, drawn = problem.with_weights(problem.weights + step), eta + carry @ step
            with torch.no_grad():
                value = log_mean(there, drawn)[0]
            if bool(value > present):
                length += float(step @ linear.information[first:, first:] @ step)
                problem, eta = there, drawn
                break
            step = 0.4 * step
        else:
            break
    return problem, eta, length
