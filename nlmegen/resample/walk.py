"""One parameter moved away from its estimate, the others following, until the objective has risen enough."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..inference.objective import Objective
from ..inference.outer import Outer, Surface
from ..inference.uncertainty import natural
from .chart import Chart, Charted

EXACT = 1e-6
"""The rise at an end may differ from the one asked for by this much."""

FALL = 1e-3
"""An objective lower than the minimum by more than this is another minimum."""

FAR = 20.0
"""On a log scale, a step of this size away from the estimate is as good as the bound itself (a factor of e^20)."""

MANY = 1e3
"""The same elsewhere, in standard errors."""

JUMP, MOST_JUMPS = 1e-4, 3
"""Points closer than this, in standard errors, on both sides of an end belong to different minima; so many times."""

MOST_STEPS = 40
"""Points on one side."""


class Better(Exception):
    """A lower objective was found at `free [P]`, with modes `eta [1, subject, q]`, on the profile of `name`."""

    def __init__(self, name: str, free: Tensor, eta: Tensor) -> None:
        super().__init__(name)
        self.name, self.free, self.eta = name, free, eta


@dataclass(frozen=True)
class Limit:
    """An end on the natural scale, and what is to be said of it."""

    value: float
    words: str


@dataclass(frozen=True)
class Point:
    """The constrained minimum with the parameter at coordinate `at`.

    Attributes:
        at: the coordinate; x: all of them `[P]`; eta: modes `[1, subject, q]`.
        rise: of the objective; slope: its derivative along the profile; converged: of the minimisation.
    """

    at: float
    x: Tensor
    eta: Tensor
    rise: float
    slope: float
    converged: bool

    @property
    def root(self) -> float:
        """Square root of the rise, in which the profile is nearly a straight line."""
        return math.sqrt(max(self.rise, 0.0))


@dataclass
class Walk:
    """The profile of one parameter.

    Args:
        objective: of free vectors.
        base: its minimum, on the free scale.
        held: parameters at a boundary there, which stay, `[P]` bool.
        index: of the parameter.
        target: rise of the objective at the ends.
        mixture: rise up to which a variance of zero is kept by a likelihood-ratio test.
        barred: whether a lower objective at a free vector is no news, for the fit's method would not have it either.
    """

    objective: Objective
    base: Surface
    held: Tensor
    index: int
    target: float
    mixture: float
    barred: Callable[[Tensor], bool] = lambda free: False
    points: list[Point] = field(default_factory=list)

    def __post_init__(self) -> None:
        problem = self.objective.problem
        self.name = problem.names[self.index]
        self.chart = Chart(problem, self.index)
        self.charted = Charted(self.objective, self.chart)
        x = self.chart.coordinates(self.base.free)
        self.home = self.chart.coordinates(problem.layout.start()[problem.free_index])
        self.logarithmic = bool(self._log[self.index])
        self.edges = self.held.clone()
        if self.chart.row and bool(self.held[self.index]):  # a correlation of one, not a variance of zero
            self.edges[self.index], self.edges[self.chart.row] = False, True
        self.edge = bool(self.edges[self.index])
        theta = problem.layout.thetas.get(self.name)
        kind = "" if theta is None else theta.bijection.kind
        self.turned = -1 if kind == "upper" else 1  # the coordinate falls where the parameter rises
        at = float(x[self.index])
        self.edge_side = 1 if kind == "upper" or (kind == "both" and at > 0) else -1
        self.alone = torch.zeros_like(self.held)
        self.alone[self.index] = True
        self.start = Point(float(x[self.index]), x, self.base.eta, 0.0, 0.0, True)
        self.tangent, self.width = self._straight(x)

    @property
    def _log(self) -> Tensor:
        return self.chart.logarithmic

    def _straight(self, x: Tensor) -> tuple[Tensor, float]:
        """How the others follow a unit step, `[P]`, and the step that is one standard error, by the Hessian."""
        slopes = self.chart.slopes(x)
        hessian = slopes.mT @ self.base.hessian @ slopes
        moving = (~(self.edges | self.alone)).nonzero().squeeze(-1)
        tangent = torch.zeros_like(x)
        tangent[self.index] = 1.0
        curvature = hessian[self.index, self.index]
        if len(moving):
            cross = hessian[moving, self.index]
            tangent[moving] = -torch.linalg.lstsq(
                hessian[moving[:, None], moving], cross[:, None], driver="gelsd"
            ).solution[:, 0]
            curvature = curvature + cross @ tangent[moving]
        usual = 1.0 if self.logarithmic else max(abs(float(x[self.index])), 1e-3)
        width = math.sqrt(2 / float(curvature)) if float(curvature) > 0 else usual
        return tangent, min(width, 2.0) if self.logarithmic else width

    # -- one side -----------------------------------------------------------------------------------------------------
    def side(self, sign: int) -> Limit:
        """The end below (-1) or above (+1) the estimate, on the natural scale."""
        if self.edge and sign == self.edge_side:
            return self._at_edge(sign)
        way = sign * self.turned
        goal = math.sqrt(self.target)
        inner, outer = self.start, None
        before = self.start
        step = way * self.width * (goal if not self.edge else 1.0)
        trouble = jumps = 0
        for _ in range(MOST_STEPS):
            point = self._at(inner.at + step, before, inner)
            if point is None:
                trouble += 1
                step *= 0.5
                if trouble > 6:
                    return Limit(
                        math.nan,
                        f"the {_word(sign)} end was not found: the search failed beyond {self._text(inner)}",
                    )
                continue
            self.points.append(point)
            if abs(point.rise - self.target) < EXACT:
                unsure = "" if point.converged else f"the search at the {_word(sign)} end did not converge"
                return Limit(self._value(point), unsure)
            if point.rise < self.target:
                before, inner = inner, point
                if outer is None and self._is_far(inner, way):
                    return self._none(sign, inner)
            else:
                outer = point
            if outer is not None and abs(outer.at - inner.at) < JUMP * self.width:
                # no rise is so steep: the two lie on different minima, and the lower one goes on
                if jumps == MOST_JUMPS:
                    break
                jumps, outer, step = jumps + 1, None, way * 0.2 * self.width
                continue
            step = self._step(inner, outer, goal, way)
        return Limit(self._value(inner), f"the {_word(sign)} end is not exact: the search was cut short")

    def _step(self, inner: Point, outer: Point | None, goal: float, way: int) -> float:
        """From `inner`, where the objective has risen too little, to where the root is expected."""
        candidates = []
        for point in (inner, outer):
            if point is not None and point.root > 0 and point.slope * way > 0:
                candidates.append(point.at + (goal - point.root) * 2 * point.root / point.slope - inner.at)
        if outer is None:
            reach = max(abs(inner.at - self.start.at), self.width)
            newton = abs(candidates[0]) if candidates else math.inf
            return way * min(max(newton, 1e-3 * reach), 2.0 * reach)
        gap = outer.at - inner.at
        nearest = min((inner, outer), key=lambda point: abs(point.rise - self.target))
        if candidates:
            best = candidates[-1] if nearest is outer or len(candidates) == 1 else candidates[0]
            if 0.0 < best / gap < 1.0:
                return best
        share = (goal - inner.root) / (outer.root - inner.root)
        return gap * min(max(share, 0.1), 0.9)

    def _at(self, at: float, before: Point, near: Point) -> Point | None:
        """The constrained minimum at a coordinate, from where the two last points lead; None where there is none.

        A rise far beyond the target may be that of another minimum: it is looked at from the last point too. What is at
        a boundary stays there unless it does better from the page's values.
        """
        guess = self.tangent
        if near is not before and near.at != before.at:
            guess = (near.x - before.x) / (near.at - before.at)
        released = bool((near.x != self.start.x)[self.edges & ~self.alone].any())
        held = self.alone if released else self.edges | self.alone
        best = self._minimum(at, near.x + (at - near.at) * guess, near.eta, held)
        if best is None or not best.converged or best.rise > 1.5 * self.target:
            best = _lower(best, self._minimum(at, near.x, near.eta, held))
        if not released and bool((self.edges & ~self.alone).any()):
            start = torch.where(self.edges, self.home, near.x)
            other = self._minimum(at, start, near.eta, self.alone)
            if other is not None and (best is None or other.rise < best.rise - FALL):
                best = other
        if best is not None and best.rise < -FALL:
            if self.barred(self.chart.free(best.x)):
                return None
            raise Better(self.name, self.chart.free(best.x), best.eta)
        return best

    def _minimum(self, at: float, x: Tensor, eta: Tensor, held: Tensor) -> Point | None:
        x = x.clone()
        x[self.index] = at
        outcome = Outer(self.charted, self._log, held=held).run(x, eta)
        surface = outcome.surface
        if not math.isfinite(surface.value):
            return None
        rise, slope = surface.value - self.base.value, float(surface.gradient[self.index])
        return Point(at, surface.free, surface.eta, rise, slope, outcome.converged)

    # -- no end -----------------------------------------------------------------------------------------------------
    def _is_far(self, point: Point, way: int) -> bool:
        # from a boundary, which is far off already, the page's value is where the way begins
        origin = float(self.home[self.index]) if self.edge else self.start.at
        return way * (point.at - origin) >= (FAR if self.logarithmic else MANY * self.width)

    def _none(self, sign: int, point: Point) -> Limit:
        """The objective does not rise enough, however far the parameter goes."""
        bound = self._bound(sign)
        short = f"the objective rises by {point.rise:.3g} only"
        if math.isinf(bound):
            return Limit(bound, f"no {_word(sign)} limit: {short}, up to {self._text(point)}")
        words = f"the {_word(sign)} limit is the bound {bound:g}, where {short}"
        return Limit(bound, words + self._mixture(point.rise))

    def _at_edge(self, sign: int) -> Limit:
        words = f"the estimate is at its boundary, which is the {_word(sign)} limit"
        return Limit(self._bound(sign), words + self._mixture(0.0))

    def _mixture(self, rise: float) -> str:
        """What the rise at a variance of zero means: half of its distribution is at zero."""
        if not self.name.startswith("omega."):
            return ""
        verdict = "kept" if rise <= self.mixture else "rejected"
        return (
            f" (at a boundary it follows a mixture of chi-squares, half of them 0, whose quantile is"
            f" {self.mixture:.3g}: 0 is {verdict} by that test)"
        )

    def _bound(self, sign: int) -> float:
        theta = self.objective.problem.layout.thetas.get(self.name)
        if theta is not None:
            bound = theta.lower if sign < 0 else theta.upper
            return sign * math.inf if bound is None else float(bound)
        return 0.0 if sign < 0 and self.logarithmic else sign * math.inf

    # -- numbers -------------------------------------------------------------------------------------------------------
    def _value(self, point: Point) -> float:
        return float(natural(self.objective.problem, self.chart.free(point.x))[self.index])

    def _text(self, point: Point) -> str:
        return f"{self._value(point):.4g}"

    def path(self) -> Iterator[dict[str, object]]:
        """Every point visited, in the order of the parameter."""
        problem = self.objective.problem
        for point in sorted([self.start, *self.points], key=lambda point: self.turned * point.at):
            everything = natural(problem, self.chart.free(point.x)).tolist()
            row: dict[str, object] = {
                "value": everything[self.index],
                "rise": point.rise,
                "converged": point.converged,
            }
            yield row | dict(zip(problem.names, everything, strict=True))


def _lower(first: Point | None, second: Point | None) -> Point | None:
    if first is None or second is None:
        return first or second
    return min(first, second, key=lambda point: (not point.converged, point.rise))


def _word(sign: int) -> str:
    return "lower" if sign < 0 else "upper"
