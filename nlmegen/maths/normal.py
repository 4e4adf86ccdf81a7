"""The normal law in its tails: log Phi, its derivatives, and moments between two limits, without cancellation.

    log Phi(x)                     log_ndtr
    h(x) = phi(x) / Phi(x)         hazard:  (log Phi)' = h
    d(x) = x + h(x)                excess:  h' = -h d ,  d' = 1 - h d

For x far below zero h ~ -x and d ~ -1/x, so that d is a difference of two large numbers; there it comes from its
asymptotic series. Each of the three is a function with a derivative of its own, made of the three again: reverse mode
may pass any number of times, and Taylor numbers are understood.

Between two limits a < b the log of Z = Phi(b) - Phi(a) and the moments of u ~ N(0, 1) given a < u < b follow from h and
d at the limits; where the interval is so narrow that those cancel, from Gauss-Legendre nodes within it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .taylor import Taylor, unary, value_of

LOG_2PI = math.log(2 * math.pi)
ROOT_HALF = math.sqrt(0.5)
ROOT_2_PI = math.sqrt(2 / math.pi)

FAR = -50.0
"""Below this the excess comes from its series."""

NARROW = 0.5
"""Change of log phi over an interval up to which moments within it are sums over nodes."""

_NODES = np.polynomial.legendre.leggauss(10)


class _LogNdtr(torch.autograd.Function):
    """log Phi."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """The value."""
        value: Tensor = torch.special.log_ndtr(x)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """What the derivatives need."""
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        """h times the cotangent."""
        return torch.mul(cotangent, hazard(ctx.saved_tensors[0]))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """h times the tangent."""
        return torch.mul(tangent, hazard(ctx.saved_tensors[0]))


class _Hazard(torch.autograd.Function):
    """phi / Phi."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """The value."""
        return torch.div(ROOT_2_PI, torch.special.erfcx(-ROOT_HALF * x))

    setup_context = _LogNdtr.setup_context

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        """-h d times the cotangent."""
        x = ctx.saved_tensors[0]
        return torch.mul(-cotangent, hazard(x) * excess(x))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """-h d times the tangent."""
        x = ctx.saved_tensors[0]
        return torch.mul(-tangent, hazard(x) * excess(x))


class _Excess(torch.autograd.Function):
    """x + phi / Phi."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """The value."""
        near = x + ROOT_2_PI / torch.special.erfcx(-ROOT_HALF * x)
        r = 1 / x.clamp(max=FAR) ** 2
        series = 1 - r * (2 - r * (10 - r * (74 - r * 706)))
        return torch.where(x < FAR, -series / x.clamp(max=FAR), near)

    setup_context = _LogNdtr.setup_context

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        """1 - h d times the cotangent."""
        x = ctx.saved_tensors[0]
        return torch.mul(cotangent, 1 - hazard(x) * excess(x))

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        """1 - h d times the tangent."""
        x = ctx.saved_tensors[0]
        return torch.mul(tangent, 1 - hazard(x) * excess(x))


def log_ndtr(x: Any) -> Any:
    """log Phi(x) of a tensor or Taylor number.

    Example:
        >>> round(float(log_ndtr(torch.tensor(-40.0, dtype=torch.float64))), 4)
        -804.6084
    """
    if not isinstance(x, Taylor):
        return _LogNdtr.apply(x)  # type: ignore[no-untyped-call]
    at, h = x.value, hazard(x.value)
    return unary(x, log_ndtr(at), h, -h * excess(at) if x.order == 2 else None)


def hazard(x: Any) -> Any:
    """h(x) = phi(x) / Phi(x) of a tensor or Taylor number."""
    if not isinstance(x, Taylor):
        return _Hazard.apply(x)  # type: ignore[no-untyped-call]
    h, d = hazard(x.value), excess(x.value)
    return unary(x, h, -h * d, h * (d * d + h * d - 1) if x.order == 2 else None)


def excess(x: Any) -> Any:
    """d(x) = x + h(x) of a tensor or Taylor number."""
    if not isinstance(x, Taylor):
        return _Excess.apply(x)  # type: ignore[no-untyped-call]
    h, d = hazard(x.value), excess(x.value)
    return unary(x, d, 1 - h * d, h * (d * d + h * d - 1) if x.order == 2 else None)


@dataclass(frozen=True)
class Between:
    """u ~ N(0, 1) given that it lies between two limits; tensors or Taylor numbers of one shape.

    Attributes:
        log_mass: log Z.
        mean, square: E u and E u^2.
        shrink: 1 - Var u, between 0 and 1.
        skew: Cov(u, u^2).
        spread: Var u^2.
    """

    log_mass: Any
    mean: Any
    square: Any
    shrink: Any
    skew: Any
    spread: Any


def between(lower: Any, upper: Any, open_below: Tensor, open_above: Tensor) -> Between:
    """The law of u ~ N(0, 1) given lower < u < upper.

    Args:
        lower, upper: the limits, finite wherever they are closed.
        open_below, open_above: where the lower limit is -inf, the upper one inf, bool; nothing is read of a limit that
            is open. Both open is the whole line.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> yes = torch.tensor(True)
        >>> round(float(between(-one, one, ~yes, ~yes).log_mass.exp()), 6)
        0.682689
    """
    whole = open_below & open_above
    one = torch.ones((), dtype=lower.dtype)
    lower = torch.where(open_below, torch.where(open_above, -one, upper - one), lower)
    upper = torch.where(open_above, lower + one, upper)
    # the side that reaches less far: u -> -u takes the other one there
    turned = torch.where(open_below | open_above, open_above, lower + upper > 0)
    a, b = torch.where(turned, -upper, lower), torch.where(turned, -lower, upper)
    single = open_below | open_above
    narrow = ~single & ((b - a) * (a.abs() + b.abs()) < NARROW)
    found = _closed(
        torch.where(narrow | single, b - one, a), b, single
    )  # where it is narrow any other will do
    if bool(narrow.any()):
        inner = _inside(torch.where(narrow, a, -one), torch.where(narrow, b, one))
        names = [field.name for field in fields(Between)]
        found = Between(*(torch.where(narrow, getattr(inner, k), getattr(found, k)) for k in names))
    sign = torch.where(turned, -one, one)
    zero = torch.zeros_like(one)
    return Between(
        torch.where(whole, zero, found.log_mass),
        torch.where(whole, zero, sign * found.mean),
        torch.where(whole, one, found.square),
        torch.where(whole, zero, found.shrink),
        torch.where(whole, zero, sign * found.skew),
        torch.where(whole, 2 * one, found.spread),
    )


def _closed(a: Any, b: Any, single: Tensor) -> Between:
    """From the hazards at the limits; `single` where the lower one is -inf."""
    one = torch.ones((), dtype=b.dtype)
    log_b = log_ndtr(b)
    ratio = torch.exp(torch.where(single, -one, log_ndtr(a) - log_b))  # Phi(a) / Phi(b)
    ratio = torch.where(single, 0 * one, ratio)
    odds = ratio / (1 - ratio)
    at_b, at_a = hazard(b) * (1 + odds), hazard(a) * odds
    from_b = excess(b) + odds * (hazard(b) - hazard(a))  # b - E u
    from_a = from_b - (b - a)
    first = b * at_b - a * at_a
    shrink = at_b * from_b - at_a * from_a
    turn = b * at_b * from_b - a * at_a * from_a
    bend = b * b * at_b * from_b - a * a * at_a * from_a + at_a * at_b * (b - a) ** 2
    mean = at_a - at_b  # and by E u^k = (k - 1) E u^(k-2) - (b^(k-1) h(b) - a^(k-1) h(a)) the others
    return Between(log_b + torch.log1p(-ratio), mean, 1 - first, shrink, mean - turn, 2 - first - bend)


def _inside(a: Any, b: Any) -> Between:
    """From nodes between the limits."""
    x, weight = (torch.tensor(v, dtype=b.dtype) for v in _NODES)
    half = 0.5 * (b - a)
    u = (0.5 * (a + b)).unsqueeze(-1) + half.unsqueeze(-1) * x
    level = -0.5 * u * u
    top = value_of(level).detach().amax(-1, keepdim=True)
    mass = torch.exp(level - top) * weight
    total = mass.sum(-1)
    share = mass / total.unsqueeze(-1)
    mean = (share * u).sum(-1)
    square = (share * u * u).sum(-1)
    apart, wide = u - mean.unsqueeze(-1), u * u - square.unsqueeze(-1)
    return Between(
        torch.log(half * total) + top.squeeze(-1) - 0.5 * LOG_2PI,
        mean,
        square,
        1 - (share * apart * apart).sum(-1),
        (share * apart * wide).sum(-1),
        (share * wide * wide).sum(-1),
    )
