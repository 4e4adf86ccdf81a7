"""An objective function minimised over parameters and network weights together.

    minimise  F(psi, w) = sum_i O_i(psi, w) + penalty(w)

by quasi-Newton steps (BFGS) with exact gradients. The first metric is the linearised model's information on thetas and
weights (`weights`) and the score outer product of the other parameters; it is taken anew when it has aged. Conditional
modes travel with a step and are kept only with an accepted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.problem import Problem
from .objective import Evaluation, Objective
from .outer import Outcome
from .weights import FLAT, Linear

STEP_LIMIT = 0.7
"""Largest entry of a step: a weight of order one, or a parameter on the log scale."""

AGE = 25
"""Steps after which the metric is taken anew."""

PLATEAU = 0.1
"""A gain of less than this over the life of a metric ends the search: what is left are directions in the weights that
the data hardly see."""

SUFFICIENT = 1e-4
"""Share of the promised decrease that a step must bring."""

HALVINGS = 8
"""Tries of a line search."""

FEW = 6
"""Steps whose gain is looked at where no step lowers the objective any more."""

MOST_DAMPING = 1e6
"""Damping of a metric, by factors of 100, after which no step is believed to lower the objective."""

ROUNDS = 4
"""How often weights and parameters, then parameters alone, are estimated in turns."""

TOLERANCE, STEPS = 1e-2, 500
"""Promised decrease of the objective at which weights stand still, and steps in a round of their search."""


@dataclass(frozen=True)
class Point:
    """The objective at parameters and weights.

    Attributes:
        objective: of the problem at these weights.
        free: `[P]`.
        evaluation: of the objective, with scores and the gradient in the weights.
        value: objective and penalties, those of priors among them.
        gradient: of `value`, parameters first, `[P + W]`.
    """

    objective: Objective
    free: Tensor
    evaluation: Evaluation
    value: float
    gradient: Tensor

    @classmethod
    def at(cls, objective: Objective, free: Tensor, eta: Tensor | None, *, near: bool = True) -> Point:
        """Evaluate at `free [P]`, the modes searched from `eta [1, subject, q]`."""
        problem = objective.problem
        found = objective(free[None], eta, scores=True, near=near and eta is not None, weights=True)
        assert found.weight_gradient is not None
        networks, weights = problem.model.networks, problem.weights
        pull = found.weight_gradient[0] + 2.0 * networks.penalties * weights
        value = float(found.total[0]) + float(networks.penalty(weights))
        return cls(objective, free, found, value, torch.cat((found.gradient[0], pull)))

    @property
    def problem(self) -> Problem:
        """The problem at these weights."""
        return self.objective.problem

    @property
    def ofv(self) -> float:
        """The objective function without penalties."""
        return float(self.evaluation.ofv[0])

    def moved(self, step: Tensor) -> Point:
        """The point after a step `[P + W]`."""
        n = len(self.free)
        problem = self.problem.with_weights(self.problem.weights + step[n:])
        return Point.at(self.objective.on(problem), self.free + step[:n], self.evaluation.eta)

    def searched_again(self) -> Point:
        """The same parameters and weights with modes searched from zero, if these are better."""
        other = Point.at(self.objective, self.free, None)
        return other if other.value < self.value else self

    def inverse_metric(self, damping: float = 1.0) -> Tensor:
        """Inverse of an approximate Hessian of `value`, `[P + W, P + W]`, its flat directions damped."""
        n, problem = len(self.free), self.problem
        score = self.evaluation.score
        assert score is not None
        linear = Linear.at(problem, self.free, self.evaluation.eta[0])
        where = torch.tensor([*linear.thetas, *range(n, n + len(problem.weights))])
        metric = torch.zeros(len(self.gradient), len(self.gradient), dtype=torch.float64)
        spreads = torch.tensor([a for a in range(n) if a not in linear.thetas], dtype=torch.long)
        metric[spreads[:, None], spreads] = 0.5 * score[0][:, spreads].T @ score[0][:, spreads]
        metric[where[:, None], where] = 2.0 * linear.information
        ridge = torch.full_like(self.gradient, 1e-6 * damping)
        ridge[n:] = 2.0 * (problem.model.networks.penalties + FLAT * damping)
        inverse: Tensor = torch.linalg.inv(metric + ridge.diag())
        return 0.5 * (inverse + inverse.mT)


Watch = Callable[[Point, int], None]


@dataclass(frozen=True)
class Descent:
    """How a joint minimisation ended.

    Attributes:
        point: where; iterations: steps taken.
        promise: decrease of the objective that one more step promises.
        settled: whether that was little.
    """

    point: Point
    iterations: int
    promise: float
    settled: bool


def descend(point: Point, *, tolerance: float, iterations: int, watch: Watch | None = None) -> Descent:
    """Minimise from a point until a step with a fresh metric promises less than `tolerance`, or little is gained.

    Args:
        point: the start.
        tolerance: in units of the objective.
        iterations: steps at most.
        watch: called with every accepted point and the number of steps.
    """
    inverse, age, count, damping = point.inverse_metric(), 0, 0, 1.0
    renewed, values = point.value, [point.value]
    while True:
        step = -inverse @ point.gradient
        promise = -0.5 * float(step @ point.gradient)
        if promise < tolerance and age:
            inverse, age = point.inverse_metric(), 0
            continue
        if promise < tolerance:
            return Descent(point, count, promise, True)
        if count >= iterations or not math.isfinite(promise):
            return Descent(point, count, promise, False)
        ahead, step = _search(point, step)
        if ahead is None:
            if not age:
                if damping >= MOST_DAMPING:
                    # at a kink, where the mode of a subject is about to jump, gradients promise what no step keeps
                    still = len(values) > FEW and values[-FEW] - values[-1] < PLATEAU
                    return Descent(point, count, promise, still or promise < 10 * tolerance)
                damping *= 100.0
                point = point.searched_again()
            inverse, age = point.inverse_metric(damping), 0
            continue
        damping = 1.0
        inverse = _updated(inverse, step, ahead.gradient - point.gradient)
        point, count, age = ahead, count + 1, age + 1
        values.append(point.value)
        if watch is not None:
            watch(point, count)
        if age == AGE:
            if renewed - point.value < PLATEAU:
                return Descent(point, count, promise, True)
            inverse, age, renewed = point.inverse_metric(), 0, point.value


def learn(point: Point, newton: Callable[[Tensor, Tensor], Outcome], watch: Watch) -> Outcome:
    """Estimate weights and parameters together, then the parameters at fixed weights, until the weights stay.

    Args:
        point: the start.
        newton: the search over the parameters, from a vector `[P]` and modes, at the weights last watched.
        watch: called with every accepted point and the number of steps; it takes over the point's weights.

    Returns:
        The end of the last search over the parameters.
    """
    for _ in range(ROUNDS):
        found = descend(point, tolerance=TOLERANCE, iterations=STEPS, watch=watch)
        outcome = newton(found.point.free, found.point.evaluation.eta)
        if not found.settled:
            words = (
                f"the weights of the networks still moved after {found.iterations} steps; give them a penalty"
            )
            return replace(outcome, converged=False, reason=words)
        point = Point.at(found.point.objective, outcome.surface.free, outcome.surface.eta)
        if found.iterations == 0 or point.value > found.point.value - TOLERANCE:
            break
    return outcome


def _search(point: Point, step: Tensor) -> tuple[Point | None, Tensor]:
    """The first of ever shorter steps that lowers the objective enough."""
    step = step * min(1.0, STEP_LIMIT / float(step.abs().max()))
    for _ in range(HALVINGS):
        ahead = point.moved(step)
        slope = float(point.gradient @ step)
        if ahead.value <= point.value + SUFFICIENT * slope:
            return ahead, step
        # the parabola through what is known, not too far from halving
        bend = ahead.value - point.value - slope
        share = -slope / (2.0 * bend) if bend > 0 and bend < float("inf") else 0.25
        step = step * min(0.5, max(0.1, share))
    return None, step


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The BFGS update of an inverse Hessian; unchanged where the curvature along the step is not positive."""
    curvature = float(step @ change)
    if not curvature > 1e-12 * float(step.norm() * change.norm()):
        return inverse
    left = torch.eye(len(step), dtype=step.dtype) - torch.outer(step, change) / curvature
    return left @ inverse @ left.mT + torch.outer(step, step) / curvature
