"""The density of observations about the rows of a prediction, with derivatives: every kind of endpoint in one place.

Rows are the predictions f at all times and, where a page gives residuals a size of their own (`Predicted`), the
logarithms h of that size after them. A residual has the variance R(f) exp(2 h) = exp(v). Densities are written in f and
v, with u = (y - f) exp(-v/2):

    measured    log p = -(u^2 + v + log 2 pi) / 2
    Student t   log p = c - v/2 - (df + 1)/2 log(1 + u^2 / df)
    censored    log p = log( Phi(b) - Phi(a) ), a and b the limits of u; its score is that of a measured observation
                averaged between the limits, its curvature the average less the variance of the score (Louis 1982)
    M4          less log P(y > 0)
    a pair      log p = -(u1^2 - 2 c u1 u2 + u2^2) / 2(1 - c^2) - (v1 + v2 + log(1 - c^2))/2 - log 2 pi

and carried to rows by the chain rule, v_f = R'/R, v_h = 2. Everything is made of operations that reverse mode may pass
as often as one likes, finite in far tails and where nothing was observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..maths.taylor import value_of
from .censoring import Limits
from .discrete import Discrete, Slopes
from .joined import Half, Joined
from .points import Point, interval, normal, parts_of, student
from .residuals import StudentT

if TYPE_CHECKING:
    from .parameters import Values
    from .problem import Problem


@dataclass(frozen=True)
class Curvature:
    """A symmetric matrix over the rows of every subject, most of it zero.

    Attributes:
        diagonal: `[*draw, subject, row]`.
        cross: what lies off the diagonal: rows i and j `[subject or 1, pair]` and the value there and at its mirror
            image, `[*draw, subject, pair]`. No value counts where i = j = 0 (padding holds zeros).
    """

    diagonal: Tensor
    cross: tuple[tuple[Tensor, Tensor, Tensor], ...] = ()

    def times(self, jac: Tensor) -> Tensor:
        """The product with each row vector of `jac [*draw, subject, q, row]`: J' W J = jac @ W.times(jac).mT.

        Example:
            >>> w = Curvature(torch.ones(1, 2), ((torch.tensor([[0]]), torch.tensor([[1]]), torch.ones(1, 1)),))
            >>> w.times(torch.tensor([[[1.0, 3.0]]])).tolist()
            [[[4.0, 4.0]]]
        """
        out = jac * self.diagonal.unsqueeze(-2)
        for i, j, value in self.cross:
            shape = jac.shape[:-1] + i.shape[-1:]
            i, j, value = i.unsqueeze(-2).expand(shape), j.unsqueeze(-2).expand(shape), value.unsqueeze(-2)
            out = out.scatter_add(-1, i, value * jac.gather(-1, j))
            out = out.scatter_add(-1, j, value * jac.gather(-1, i))
        return out


@dataclass(frozen=True)
class Local:
    """log p of every observation about its rows.

    Attributes:
        log_p: every constant included, but for the Jacobian of a transform of y (`Problem.log_jacobian`); 0 in the
            padding, -inf where there is no density. Of a pair the first holds its own, the second the conditional one.
            `[*draw, subject, time]`.
        score: d log p / d row, `[*draw, subject, row]`.
        weight: E[ -d2 log p / d row d row' ], positive semidefinite. Of a censored observation the observed curvature
            where that is not negative, else that part of it that moves f alone.
        second: -d2 log p / d row d row', where asked for.
    """

    log_p: Tensor
    score: Tensor
    weight: Curvature
    second: Curvature | None = None


def _residual(problem: Problem, f: Any, v: Any) -> Point:
    """Everything with a residual."""
    point = normal(problem.y - f, v)
    for _, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, StudentT):
            point = student(problem.y - f, v, float(endpoint.df)).where(mask, point)
    return point if problem.limits is None else _limited(problem.limits, point, f, v)


def _limited(limits: Limits, point: Point, f: Any, v: Any) -> Point:
    """The same with limits: only the records that have them are worked on."""
    shape = point.log_p.shape
    flat_f, flat_v = (x.expand(shape).flatten(-2) for x in (f, v))
    parts = [x.expand(shape).flatten(-2) for x in parts_of(point)]
    if len(at := limits.at):
        lower, upper = limits.lower.flatten()[at], limits.upper.flatten()[at]
        found, _ = interval(lower, upper, flat_f.index_select(-1, at), flat_v.index_select(-1, at))
        parts = [a.index_copy(-1, at, b) for a, b in zip(parts, parts_of(found), strict=True)]
    if len(at := limits.conditional):
        lower = limits.zero.flatten()[at]
        upper = torch.full_like(lower, torch.inf)
        whole, law = interval(lower, upper, flat_f.index_select(-1, at), flat_v.index_select(-1, at))
        less = whole.where(limits.censored.flatten()[at], law)
        parts = [a.index_add(-1, at, -b) for a, b in zip(parts, parts_of(less), strict=True)]
    return Point(*(x.unflatten(-1, shape[-2:]) for x in parts))


def log_density(problem: Problem, rows: Any, values: Values) -> Any:
    """log p of every observation about its rows, `[*draw, subject, time]`; see `Local`."""
    return _assembled(problem, rows, values)[0]


def local(
    problem: Problem, rows: Tensor, values: Values, observed: bool = False, held: Tensor | None = None
) -> Local:
    """The density about `rows [*draw, subject, row]` with its derivatives; see `Problem.local`."""
    log_p, point, (variance, slope, bend), joined, parts = _assembled(problem, rows, values, held)
    rho = (slope / variance).expand(log_p.shape)
    bent = bend / variance - rho * rho
    times = problem.y.shape[-1] if problem.scaled else None
    score, scale = point.f + point.v * rho, (2 * point.v).expand(log_p.shape)
    whole = _rows(point.ff, point.fv, point.vv, rho)
    whole[0] = whole[0] - point.v * bent
    weight = _rows(point.eff, point.efv, point.evv, rho)
    if problem.limits is not None:
        weight = _semidefinite(problem, weight, whole, point, times is None)
    zero = torch.zeros((), dtype=rows.dtype)
    for mask, slopes in parts:
        score = torch.where(mask, slopes.first, score)
        whole, weight = (
            [torch.where(mask, new, old) for new, old in zip((own, zero, zero), matrix, strict=True)]
            for own, matrix in ((-slopes.second, whole), (slopes.expected, weight))
        )
        scale = torch.where(mask, zero, scale)
    seen = problem.mask

    def curvature(matrix: Sequence[Tensor], expected: bool) -> Curvature:
        cross = [entry for pair in joined for entry in pair.across(expected, rho, times)]
        matrix = [x.expand(score.shape) * seen for x in matrix]
        if times is None:
            return Curvature(matrix[0], tuple(cross))
        place = torch.arange(times)[None]
        own = (place, place + times, matrix[1])
        return Curvature(torch.cat((matrix[0], matrix[2]), -1), (own, *cross))

    rowed = score * seen
    if times is not None:
        rowed = torch.cat((rowed, scale * seen), -1)
    return Local(log_p, rowed, curvature(weight, True), curvature(whole, False) if observed else None)


def _rows(ff: Tensor, fv: Tensor, vv: Tensor, rho: Tensor) -> list[Tensor]:
    """Curvature in f and v carried to (f, f), (f, h) and (h, h)."""
    return [ff + rho * (2 * fv + rho * vv), 2 * (fv + rho * vv), 4 * vv]


def _semidefinite(
    problem: Problem, weight: list[Tensor], whole: list[Tensor], point: Point, single: bool
) -> list[Tensor]:
    """For censored records the observed curvature where it is not negative, else that in f alone."""
    limits = problem.limits
    assert limits is not None
    ff, fh, hh = whole
    fine = ff >= 0 if single else (ff >= 0) & (hh >= 0) & (ff * hh >= fh * fh)
    kept = torch.where(fine, ff, point.ff.clamp(min=0.0))
    instead = [kept, *(torch.where(fine, x, 0.0) for x in (fh, hh))]
    alone = limits.censored
    for pairs in problem.residual_pairs:
        alone = alone & ~pairs.cut
    return [torch.where(alone, new, old) for new, old in zip(instead, weight, strict=True)]


def _assembled(
    problem: Problem, rows: Any, values: Values, held: Tensor | None = None
) -> tuple[Any, Point, tuple[Any, Any, Any], list[Joined | Half], list[tuple[Tensor, Slopes]]]:
    """log p; the point of everything with a residual; R, R' and R''; pairs; counts and categories."""
    times = problem.y.shape[-1]
    f = rows[..., :times]
    if held is None:
        variance, slope, bend = problem.variance(f, values)
    else:
        variance = held.expand(f.shape)
        slope = bend = torch.zeros((), dtype=f.dtype)
    discrete = [(name, e, mask) for name, e, mask in problem.by_endpoint if isinstance(e, Discrete)]
    with_residual = problem.observed
    for _, _, mask in discrete:
        with_residual = with_residual & ~mask
    lost = ~(torch.isfinite(_plain(f)) & (_plain(variance) > 0) & torch.isfinite(_plain(variance)))
    idle = lost | ~with_residual  # numbers that do no harm where nothing is measured, or nothing can be said
    one, zero = torch.ones((), dtype=rows.dtype), torch.zeros((), dtype=rows.dtype)
    variance, slope, bend = (
        torch.where(idle, fill, x) for x, fill in ((variance, one), (slope, zero), (bend, zero))
    )
    v = torch.log(variance)
    if problem.scaled and held is None:
        v = v + 2 * torch.where(idle, zero, rows[..., times:])
    safe = torch.where(idle, problem.y, f)
    point = _residual(problem, safe, v)
    joined: list[Joined | Half] = []
    for pairs in problem.residual_pairs:
        c, wide = values.sigma[pairs.name], v.expand(safe.shape)
        joined.append(Joined(pairs, c, problem.y - safe, wide))
        if problem.limits is not None and pairs.half.any():
            joined.append(Half(pairs, c, problem.y, safe, wide, problem.limits, point))
    for pair in joined:
        point = pair.onto(point)
    log_p = torch.where(lost & with_residual, -torch.inf, point.log_p)
    parts = []
    for name, endpoint, mask in discrete:
        usable = mask & endpoint.defined(f)
        sigma = {s: values.sigma[f"{name}.{s}"] for s in endpoint.start}
        slopes = endpoint.slopes(torch.where(usable, f, 0.5), torch.where(mask, problem.y, 0.0), sigma)
        log_p = torch.where(mask, torch.where(usable, slopes.log_p, -torch.inf), log_p)
        parts.append((mask, slopes))
    log_p = torch.where(problem.observed, log_p, zero)
    return log_p, point, (variance, slope, bend), joined, parts


def _plain(x: Any) -> Any:
    return value_of(x).detach()
