"""The outer minimisation: an objective function with exact gradients, over the free parameters.

Two ways to the curvature, by cost:

* differences of the exact gradient: the point and its P displaced neighbours are one batch. Where the batch is small
  this costs little more than the point alone, and gives Newton's method with its quadratic end.
* the score outer product 1/2 sum_i s_i s_i' (Berndt, Hall, Hall & Hausman 1974), corrected by a structured secant as
  the iteration goes (Dennis, Gay & Welsch 1981, doi:10.1145/355958.355965), where many subjects make a batch of P + 1
  vectors expensive. It ends with one difference Hessian, which checks the end and serves the standard errors.

Steps come from a trust region, several radii being tried as one batch. Conditional modes travel with a step and are
kept only with an accepted one, so that a wild trial leaves no subject in a foreign mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .objective import Evaluation, Objective

DIFFERENCE = 1e-5
"""Displacement of a parameter, in its own scale, for a difference of exact gradients."""

RADII = (1.0, 0.4, 0.1)
"""Trust radii tried together, as fractions of the present one."""

FIRST_RADIUS, LARGEST_RADIUS = 1.0, 2.0
"""Trust radii in unit steps; on a log scale 1 is a factor of e in one parameter."""

SHORT = 0.3
"""Scaled length of a Newton step that is taken without trying others beside it."""

NOISE = 1e-10
"""Share of an objective value that rounding and the tolerance of the modes may change."""

LEVEL = 1e-3
"""A curvature of less than this in a unit step is none: rounding decides its sign."""

POLISH = 1e-5
"""Promised decrease below which one Newton step with the Hessian at hand ends the search. (A step that promises d is
sqrt(2 d) standard errors long, and the Hessian changes by a fraction of that.)"""

SETTLED = 1e-4
"""The same for a dear Hessian, and the promise at which score outer products have done their work."""

CHEAP = 400_000
"""Cost of a batch of P + 1 vectors, in numbers of second-order predictions, up to which differences are taken at every
iteration."""


@dataclass
class Surface:
    """What the optimiser knows at one point.

    Attributes:
        free: the point `[P]`.
        value: what is minimised: the objective function, and -2 log prior where the page has priors.
        gradient: of `value`, `[P]`.
        hessian: of `value`, `[P, P]`; its objective function's part from differences or from scores.
        exact: whether the Hessian comes from differences of the gradient.
        evaluation: of the point alone (leading axis of length one), with scores.
        drift: how the modes move with the parameters, d eta / d free `[P, subject, q]`, from the same differences.
    """

    free: Tensor
    value: float
    gradient: Tensor
    hessian: Tensor
    exact: bool
    evaluation: Evaluation
    drift: Tensor | None = None

    @property
    def eta(self) -> Tensor:
        """Conditional modes `[1, subject, q]`."""
        return self.evaluation.eta

    def eta_after(self, steps: Tensor) -> Tensor:
        """The modes to expect after short steps `[step, P]` of the parameters, `[step or 1, subject, q]`."""
        return self.eta if self.drift is None else self.eta + torch.einsum("sp,pnk->snk", steps, self.drift)


@dataclass
class Outcome:
    """How the outer minimisation ended.

    Attributes:
        surface: where.
        converged, reason, iterations: how.
        held: parameters that did not move, `[P]` bool.
        second: subjects with several conditional modes there, `[subject]` bool, once somebody has looked.
    """

    surface: Surface
    converged: bool
    reason: str
    iterations: int
    held: Tensor
    second: Tensor | None = None


Watch = Callable[[Surface], None]


class Outer:
    """Minimises the objective over the parameters that are not held.

    Args:
        objective: the objective function.
        logarithmic: which free parameters live on a log-like scale, where a step of 1 is a factor, `[P]` bool.
        held: parameters to leave where they are, `[P]` bool.
        tolerance: largest promised decrease (half the Newton decrement, objective function units) of a finished search.
        max_iterations: largest number of iterations.
        lacking: what the score outer product lacks of the Hessian near the start, `[P, P]`, if somebody knows.
        watch: called with the surface at every iteration.
    """

    def __init__(
        self,
        objective: Objective,
        logarithmic: Tensor,
        *,
        held: Tensor | None = None,
        tolerance: float = 1e-7,
        max_iterations: int = 200,
        lacking: Tensor | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.objective, self.logarithmic = objective, logarithmic
        self.held = torch.zeros_like(logarithmic) if held is None else held
        self.moving = (~self.held).nonzero().squeeze(-1)
        self.tolerance, self.max_iterations, self.watch = tolerance, max_iterations, watch
        self.lacking = lacking
        self.best: Surface | None = None
        self.iterations = 0
        self.cheap = objective.cost * (len(self.moving) + 1) <= CHEAP
        self.polish = POLISH if self.cheap else SETTLED

    # -- the surface ------------------------------------------------------------------------------------------------
    def scale(self, free: Tensor, hessian: Tensor | None = None) -> Tensor:
        """The length that counts as a unit step of each parameter: 1 on a log scale, else its size or two errors."""
        size = free.abs()
        if hessian is not None:
            size = torch.maximum(
                size, 2 * (2 / hessian.diagonal().abs().clamp(min=1e-300)).sqrt().clamp(max=1e3)
            )
        else:
            size = torch.where(size > 0, size, 1.0)
        return torch.where(self.logarithmic, 1.0, size)

    def exact(self, free: Tensor, eta: Tensor | None, *, near: bool = False) -> Surface:
        """Value, gradient and difference Hessian at `free [P]`; `near`: its conditional modes are close to `eta`."""
        unit = DIFFERENCE * self.scale(free, None if self.best is None else self.best.hessian)
        points = torch.cat((free[None], free + torch.diag(unit)[self.moving]))
        everything = self.objective(points, eta, scores=True, near=near)
        slope = everything.slope
        rows = (slope[1:] - slope[0]) / unit[self.moving, None]
        hessian = torch.zeros_like(free).diag()
        block = rows[:, self.moving]
        hessian[self.moving[:, None], self.moving] = 0.5 * (block + block.T)
        hessian = self._with_priors(hessian, free)
        point = everything.first()
        if not bool(torch.isfinite(hessian).all()):
            return self._by_scores(free, point)
        drift = torch.zeros((len(free), *point.eta.shape[1:]), dtype=torch.float64)
        drift[self.moving] = (everything.eta[1:] - point.eta) / unit[self.moving, None, None]
        return Surface(free, float(point.total[0]), point.gradient[0], hessian, True, point, drift)

    def _by_scores(self, free: Tensor, point: Evaluation) -> Surface:
        score = point.score
        assert score is not None
        hessian = self._with_priors(0.5 * score[0].T @ score[0], free)
        return Surface(free, float(point.total[0]), point.gradient[0], hessian, False, point)

    def _with_priors(self, hessian: Tensor, free: Tensor) -> Tensor:
        """A Hessian `[P, P]` and the second derivatives of -2 log prior in the parameters that move."""
        if not self.objective.problem.penalised:
            return hessian
        moves = (~self.held).to(free.dtype)
        return hessian + self.objective.penalty_hessian(free) * moves * moves[:, None]

    def by_scores(self, free: Tensor, eta: Tensor | None) -> Surface:
        """Value, gradient and score outer product at `free [P]`."""
        return self._by_scores(free, self.objective(free[None], eta, scores=True))

    # -- the search -------------------------------------------------------------------------------------------------
    def run(self, free: Tensor, eta: Tensor | None = None) -> Outcome:
        """Minimise from `free [P]`, with the conditional modes searched from `eta [1, subject, q]`."""
        if not len(self.moving):
            surface = self.by_scores(free, eta)
            return self._outcome(surface, math.isfinite(surface.value), "nothing to estimate")
        if not self.cheap:
            rough = self._secant(free, eta)
            if not rough.converged:
                return rough
            free, eta = rough.surface.free, rough.surface.eta
        return self._newton(free, eta)

    def _outcome(self, surface: Surface, converged: bool, reason: str) -> Outcome:
        return Outcome(surface, converged, reason, self.iterations, self.held)

    def _note(self, surface: Surface) -> None:
        self.best = surface
        if self.watch is not None:
            self.watch(surface)

    def _newton(self, free: Tensor, eta: Tensor | None) -> Outcome:
        """Trust-region Newton iterations with difference Hessians."""
        surface = self.exact(free, eta, near=not self.cheap)
        radius = FIRST_RADIUS
        while True:
            region = self.region(surface)
            self._note(surface)
            if region.convex and region.promise < self.polish and surface.exact:
                surface, region = self._polish(surface, region)
            if region.convex and region.promise < self.tolerance:
                return self._outcome(
                    surface, True, "the gradient vanishes and the Hessian is positive definite"
                )
            if not math.isfinite(region.promise):
                return self._outcome(surface, False, "the gradient is not finite")
            if self.iterations >= self.max_iterations:
                return self._outcome(
                    surface, False, f"stopped at the limit of {self.max_iterations} iterations"
                )
            self.iterations += 1
            if region.convex and region.promise < 1.0 and region.newton_length <= min(radius, SHORT):
                # almost surely accepted: one batch for the step and its derivatives
                step = region.steps([math.inf])
                ahead = self.exact(free + step[0], surface.eta_after(step), near=True)
                if ahead.value <= surface.value + NOISE * (1 + abs(surface.value)):
                    free, surface = ahead.free, ahead
                    continue
            free_next, eta_next, radius = self._trial(surface, region, radius)
            if free_next is None:
                close = region.promise < 1e-3
                why = "no step lowers the objective any more" if close else "no step lowers the objective"
                return self._outcome(surface, close and region.convex, why)
            free, surface = free_next, self.exact(free_next, eta_next, near=True)

    def _polish(self, surface: Surface, region: Region) -> tuple[Surface, Region]:
        """A last Newton step, so short that the Hessian need not be taken again."""
        step = region.steps([math.inf])
        free = surface.free + step[0]
        point = self.objective(free[None], surface.eta_after(step), scores=True, near=True)
        value = float(point.total[0])
        if not value <= surface.value + NOISE * (1 + abs(surface.value)):
            return surface, region
        ahead = replace(surface, free=free, value=value, gradient=point.gradient[0], evaluation=point)
        return ahead, self.region(ahead)

    def _trial(
        self, surface: Surface, region: Region, radius: float
    ) -> tuple[Tensor, Tensor, float] | tuple[None, None, float]:
        """The best of several radii, its modes, and the radius for the next time."""
        for _ in range(5):
            radii = [radius * fraction for fraction in RADII]
            steps = region.steps(radii)
            points = surface.free + steps
            tried = self.objective(points, surface.eta_after(steps), tolerance=1e-8)
            best = int(tried.total.argmin())
            if float(tried.total[best]) < surface.value:
                radius = min(2.5 * radius, LARGEST_RADIUS) if best == 0 else max(radii[best], 1e-3) * 1.5
                return points[best], tried.eta[best : best + 1], radius
            radius = radii[-1] * 0.4
        return None, None, radius

    def _secant(self, free: Tensor, eta: Tensor | None) -> Outcome:
        """Quasi-Newton iterations from score outer products, to where a difference Hessian is worth its price."""
        surface = self.by_scores(free, eta)
        correction = torch.zeros_like(surface.hessian) if self.lacking is None else self.lacking
        radius = FIRST_RADIUS
        while True:
            surface.hessian = surface.hessian + correction
            region = self.region(surface)
            self._note(surface)
            if region.promise < SETTLED:
                return self._outcome(surface, True, "")
            if not math.isfinite(region.promise):
                return self._outcome(surface, False, "the gradient is not finite")
            if self.iterations >= self.max_iterations:
                return self._outcome(
                    surface, False, f"stopped at the limit of {self.max_iterations} iterations"
                )
            self.iterations += 1
            step = region.steps([radius])[0]
            ahead = self.by_scores(surface.free + step, surface.eta)
            expected = -float(surface.gradient @ step + 0.5 * step @ surface.hessian @ step)
            gain = (surface.value - ahead.value) / max(expected, 1e-300)
            if ahead.value < surface.value:
                change = ahead.gradient - surface.gradient
                correction = _secant_update(correction, ahead.hessian, step, change)
                factor = 2.0 if gain > 0.75 else 1.0 if gain > 0.25 else 0.5
                radius = min(factor * radius, LARGEST_RADIUS)
                surface = ahead
            else:
                length = float((step / self.scale(surface.free, surface.hessian)).norm())
                radius = 0.25 * min(radius, length)
                surface.hessian = surface.hessian - correction
                if radius < 1e-6:
                    return self._outcome(surface, True, "")

    def region(self, surface: Surface) -> Region:
        """The quadratic model at a surface, over the parameters that move."""
        return Region(surface, self.moving, self.scale(surface.free, surface.hessian))


class Region:
    """The quadratic model g's + s'Hs/2 in scaled parameters, and its minimiser in a ball.

    Args:
        surface: gradient and Hessian.
        moving: indices of the parameters that move, `[m]`.
        scale: unit step of each parameter `[P]`.

    Attributes:
        convex: the Hessian is positive definite, or at most as flat as a parameter at its boundary.
        promise: the decrease that the model promises for its best step (with |eigenvalues|).
        newton_length: scaled length of the Newton step.
    """

    def __init__(self, surface: Surface, moving: Tensor, scale: Tensor) -> None:
        self.moving, self.size = moving, len(surface.free)
        self.unit = scale[moving]
        hessian = surface.hessian[moving[:, None], moving] * self.unit * self.unit[:, None]
        gradient = surface.gradient[moving] * self.unit
        finite = bool(torch.isfinite(hessian).all()) and bool(torch.isfinite(gradient).all())
        if not finite:
            self.convex, self.promise, self.newton_length = False, math.nan, math.nan
            return
        self.eigenvalues, self.axes = torch.linalg.eigh(hessian)
        self.slope = self.axes.T @ gradient
        floor = 1e-12 * float(self.eigenvalues.abs().max()) + 1e-300
        self.curvature = self.eigenvalues.abs().clamp(min=floor)
        self.convex = bool(self.eigenvalues[0] > -LEVEL)
        self.promise = 0.5 * float((self.slope**2 / self.curvature).sum())
        self.newton_length = float((self.slope / self.curvature).norm())

    def steps(self, radii: Sequence[float]) -> Tensor:
        """For each radius the step of at most that scaled length that minimises the model, `[radius, P]`.

        Where the model bends down its curvature is taken by its absolute value.
        """
        slope, curvature = self.slope.numpy(), self.curvature.numpy()
        radius = np.asarray(radii)[:, None]
        shift = np.zeros((len(radii), 1))
        for _ in range(8 if self.newton_length > min(radii) else 0):
            # Newton's method on 1/|step| = 1/radius, which is almost linear in the multiplier and is met from one side
            scaled = slope / (curvature + shift)
            square = (scaled**2).sum(1, keepdims=True)
            change = (
                (np.sqrt(square) / radius - 1)
                * square
                / (scaled**2 / (curvature + shift)).sum(1, keepdims=True)
            )
            shift = np.maximum(shift + np.where(np.isfinite(change), change, 0.0), 0.0)
        inner = torch.from_numpy(-slope / (curvature + shift)) @ self.axes.T * self.unit
        steps = torch.zeros(len(radii), self.size, dtype=torch.float64)
        steps[:, self.moving] = inner
        return steps


def _secant_update(correction: Tensor, scores: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """What to add to the score outer product so that the sum maps the step onto the change of the gradient.

    The symmetric rank-one update of what is missing, skipped where it is not defined.
    """
    missing = change - (scores + correction) @ step
    along = float(missing @ step)
    if abs(along) < 1e-8 * float(missing.norm() * step.norm()) or not math.isfinite(along):
        return correction
    return correction + torch.outer(missing, missing) / along
