"""Pairs of observations with correlated residuals: what a pair changes of the marginal points; see `likelihood`."""

from __future__ import annotations

import torch
from torch import Tensor

from .censoring import Limits
from .correlation import Pairs
from .points import NAMES, Point, interval

Cross = list[tuple[Tensor, Tensor, Tensor]]
"""Curvature off the diagonal: rows, rows, values; see `likelihood.Curvature`."""


class _Pair:
    """What pairs of both kinds have in common.

    Args:
        first, second: places of the two in time, `[subject, pair]`.
        shape: of the observations, `[*draw, subject, time]`.
    """

    observed: list[Tensor]
    expected: list[Tensor]
    changes: list[dict[str, Tensor]]

    def __init__(self, first: Tensor, second: Tensor, shape: torch.Size) -> None:
        self.places = (first, second)
        self.at = [x.expand(*shape[:-1], x.shape[-1]) for x in self.places]

    def onto(self, point: Point) -> Point:
        """The points of all observations, those in pairs as the pair makes them."""
        out = {name: getattr(point, name) for name in NAMES}
        for at, change in zip(self.at, self.changes, strict=True):
            out = {name: x.scatter_add(-1, at, change[name]) for name, x in out.items()}
        return Point(**out)

    def across(self, expected: bool, rho: Tensor, rows: int | None) -> Cross:
        """Curvature between the rows of the two; `rho` is R'/R, `rows` the number of times where h has rows."""
        ff, fv, vf, vv = self.expected if expected else self.observed
        first, second = self.places
        one, two = (rho.gather(-1, at) for at in self.at)
        cross = [(first, second, ff + fv * two + vf * one + vv * one * two)]
        if rows is not None:
            cross += [
                (first, second + rows, 2 * (fv + vv * one)),
                (first + rows, second, 2 * (vf + vv * two)),
                (first + rows, second + rows, 4 * vv),
            ]
        return cross


class Joined(_Pair):
    """Pairs of which both were measured.

    Args:
        pairs: which.
        c: the correlation, `[*draw, subject or 1, 1]`.
        e, v: residual and log variance `[*draw, subject, time]`.
    """

    def __init__(self, pairs: Pairs, c: Tensor, e: Tensor, v: Tensor) -> None:
        super().__init__(pairs.first, pairs.second, e.shape)
        roots = [torch.exp(-0.5 * v.gather(-1, at)) for at in self.at]
        one, two = (e.gather(-1, at) * root for at, root in zip(self.at, roots, strict=True))
        free = 1 - c * c
        there = (pairs.there & ~pairs.half).to(e.dtype)
        mixed = -there * c / free  # what stands beside u1 u2 of the two
        self.changes = []
        for u, other, root, second in ((one, two, roots[0], False), (two, one, roots[1], True)):
            slope, bend = (u - c * other) / free, 1 / free  # Q_1 / 2 and Q_11 / 2
            conditional = -0.5 * (slope * (u - c * other) - u * u + torch.log(free)) if second else 0 * u
            change = {
                "log_p": conditional,
                "f": (slope - u) * root,
                "v": 0.5 * u * (slope - u),
                "ff": (bend - 1) * root * root,
                "fv": 0.5 * root * (slope + u * bend - 2 * u),
                "vv": 0.25 * u * (slope + u * bend - 2 * u),
                "eff": (bend - 1) * root * root,
                "efv": 0 * u,
                "evv": 0.25 * (bend - 1) + 0 * u,
            }
            self.changes.append({name: there * x for name, x in change.items()})
        (r1, r2), zero = roots, 0 * one
        self.observed = [
            mixed * r1 * r2,
            0.5 * mixed * r1 * two,
            0.5 * mixed * one * r2,
            0.25 * mixed * one * two,
        ]
        self.expected = [mixed * r1 * r2, zero, zero, 0.25 * mixed * c + zero]


class Half(_Pair):
    """Pairs of which one was measured, and of the other limits are known: it is normal given the measured one,

        f' = f + c u s ,    v' = v + log(1 - c^2) ,

    with u the standardised residual of the measured one and s = exp(v/2). Of its information what moves f' counts.

    Args:
        pairs: which.
        c: the correlation, `[*draw, subject or 1, 1]`.
        y, f, v: observations, predictions and log variances, `[*draw, subject, time]`.
        limits: of the observations.
        point: the marginal points.
    """

    def __init__(
        self, pairs: Pairs, c: Tensor, y: Tensor, f: Tensor, v: Tensor, limits: Limits, point: Point
    ) -> None:
        turned = limits.censored.gather(-1, pairs.first)
        seen = torch.where(turned, pairs.second, pairs.first)
        cut = torch.where(turned, pairs.first, pairs.second)
        super().__init__(seen, cut, f.shape)
        on, off = self.at
        inverse, size = torch.exp(-0.5 * v.gather(-1, on)), torch.exp(0.5 * v.gather(-1, off))
        u = (y.expand(f.shape).gather(-1, on) - f.gather(-1, on)) * inverse
        no = ~pairs.half
        lower = torch.where(no, -1.0, limits.lower.gather(-1, cut))
        upper = torch.where(no, 1.0, limits.upper.gather(-1, cut))
        p, _ = interval(
            lower, upper, f.gather(-1, off) + c * u * size, v.gather(-1, off) + torch.log(1 - c * c)
        )
        a, b = (
            -c * inverse * size,
            -0.5 * c * u * size,
        )  # f' in f and v of the measured one; -b in v of the other
        own = {"f": p.f * a, "v": p.f * b, "ff": p.ff * a * a, "vv": p.ff * b * b + 0.5 * p.f * b}
        own |= {
            "fv": a * (p.ff * b + 0.5 * p.f),
            "eff": p.ff * a * a,
            "efv": p.ff * a * b,
            "evv": p.ff * b * b,
        }
        other = {"log_p": p.log_p, "f": p.f, "v": p.v - b * p.f, "ff": p.ff, "fv": p.fv - b * p.ff}
        other |= {"vv": p.vv - 2 * b * p.fv + b * (p.ff * b + 0.5 * p.f)}
        other |= {"eff": p.ff, "efv": -b * p.ff, "evv": p.ff * b * b}
        nothing = torch.zeros_like(u)
        less = {name: getattr(point, name).gather(-1, off) for name in NAMES}
        self.changes = [
            {name: torch.where(no, 0.0, own.get(name, nothing)) for name in NAMES},
            {name: torch.where(no, 0.0, other[name] - less[name]) for name in NAMES},
        ]
        half = 0.5 * p.f
        observed = [p.ff * a, a * (p.fv - b * p.ff - half), p.ff * b, b * (p.fv - b * p.ff - half)]
        expected = [p.ff * a, -a * b * p.ff, p.ff * b, -b * b * p.ff]
        self.observed, self.expected = (
            [torch.where(no, 0.0, x) for x in some] for some in (observed, expected)
        )
