"""log p of one observation in its prediction f and log variance v, with derivatives; see `likelihood`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..maths.normal import LOG_2PI, between


@dataclass(frozen=True)
class Point:
    """log p in f and v: first derivatives, and the negatives of second ones (observed, and expected: "e")."""

    log_p: Any
    f: Any
    v: Any
    ff: Any
    fv: Any
    vv: Any
    eff: Any
    efv: Any
    evv: Any

    def where(self, mask: Tensor, other: Point) -> Point:
        """This one where `mask [subject, time]`, elsewhere another."""
        return Point(*(torch.where(mask, a, b) for a, b in zip(parts_of(self), parts_of(other), strict=True)))


NAMES = tuple(Point.__dataclass_fields__)


def parts_of(point: Point) -> list[Any]:
    """The fields of a point, in the order of `NAMES`."""
    return [getattr(point, name) for name in NAMES]


def normal(e: Any, v: Any) -> Point:
    """A measured observation, e = y - f."""
    w = torch.exp(-v)
    scaled = e * w
    square = e * scaled
    zero, half = torch.zeros_like(e), torch.full_like(e, 0.5)
    w = w + zero
    log_p = -0.5 * (square + v + LOG_2PI)
    return Point(log_p, scaled, 0.5 * (square - 1), w, scaled, 0.5 * square, w, zero, half)


def student(e: Any, v: Any, df: float) -> Point:
    """An observation with Student's t law of scale exp(v/2)."""
    w = torch.exp(-v)
    square = e * e * w
    share = (df + 1) / (df + square)
    turn = share * share / (df + 1)
    constant = math.lgamma(0.5 * (df + 1)) - math.lgamma(0.5 * df) - 0.5 * math.log(df * math.pi)
    log_p = constant - 0.5 * v - 0.5 * (df + 1) * torch.log1p(square / df)
    # with g = log(1 + s/df), s = u^2: s_f = -2 e w, s_v = -s, and d(share)/ds = -turn
    zero = torch.zeros_like(e)
    return Point(
        log_p,
        share * e * w,
        0.5 * (share * square - 1),
        w * (share - 2 * turn * square),
        e * w * (share - turn * square),
        0.5 * square * (share - turn * square),
        w * ((df + 1) / (df + 3)) + zero,
        zero,
        0.5 * df / (df + 3) + zero,
    )


def interval(lower: Tensor, upper: Tensor, f: Any, v: Any) -> tuple[Point, Point]:
    """An observation known to lie between two limits, infinite where open.

    Returns:
        The point, its expected information the observed one; and what a density conditional on these limits lacks, so
        that a measured observation less this has the expected information of a truncated normal law (the covariance of
        u and u^2 between the limits).
    """
    open_below, open_above = torch.isinf(lower), torch.isinf(upper)
    root = torch.exp(-0.5 * v)
    low = (torch.where(open_below, 0.0, lower) - f) * root
    high = (torch.where(open_above, 0.0, upper) - f) * root
    u = between(low, high, open_below, open_above)
    ff = u.shrink * root * root
    fv, vv = root * (u.mean - 0.5 * u.skew), 0.5 * u.square - 0.25 * u.spread
    point = Point(u.log_mass, u.mean * root, 0.5 * (u.square - 1), ff, fv, vv, ff, fv, vv)
    return point, replace(point, efv=-0.5 * root * u.skew, evv=0.5 - 0.25 * u.spread)
