"""The time courses that linear disposition is made of, with their derivatives in the rates.

Everything is a divided difference of the exponential function in the rate, exp(-r t):

    decay                P(r; t)    = exp(-r t)
    decay_integral       I(r; t)    = (1 - exp(-r t)) / r                the integral of P from 0 to t
    bateman              B(a, b; t) = (exp(-a t) - exp(-b t)) / (b - a)    the convolution of two decays
    absorption           b B(a, b; t)                                    what has come through a first-order process
    absorption_integral  I(a; t) - B(a, b; t)                            the integral of that from 0 to t

The quotients are smooth where their denominators vanish, the formulas are not: near r t = 0 and near a = b series take
over, so that values and derivatives keep their digits, at order 2 and under one more differentiation by reverse mode.

All functions take rates `[*axes, subject, 1 or time]` and times `[subject, time]` (>= 0) as plain tensors, and return
the value followed by the derivatives in the rates up to `order` (0, 1 or 2), as `Term.partials` wants them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Two rates are near when they differ by less than this share. The quotient loses the square, third and fourth power of
# 1/NEAR in value, second derivative and its gradient: 1e-10 at worst. The series loses nothing up to |b - a| t = 5.
NEAR = 0.05
EARLY = 0.25
_TERMS = 11
_COEFFICIENTS = [1 / math.factorial(2 * j + 1) for j in range(_TERMS)]
# 1 / (k! (k + 3)), the coefficients of the series of d2/dx2 of (1 - exp(-x)) / x
_SECOND = [(-1) ** k / (math.factorial(k) * (k + 3)) for k in range(12)]
_SMALL = 0.25


def decay(rate: Tensor, time: Tensor, order: int = 0) -> list[Tensor]:
    """P = exp(-r t) and its derivatives in r.

    Args:
        rate: r, `[*axes, subject, 1 or time]`.
        time: t, `[subject, time]`.
        order: how many derivatives.
    """
    back = -time
    value = torch.exp(rate * back)
    if order == 0:
        return [value]
    first = back * value
    return [value, first] if order == 1 else [value, first, back * first]


def phi(x: Tensor, order: int = 0) -> list[Tensor]:
    """(1 - exp(-x)) / x, 1 at x = 0, and its derivatives up to `order`.

    With e = exp(-x) the derivatives obey x phi' = e - phi and x phi'' = -e - 2 phi'. Upwards these cancel at small x;
    there the series of phi'' starts and the same relations give phi' and phi from it without cancellation.

    Example:
        >>> phi(torch.tensor(0.0, dtype=torch.float64), 2)
        [tensor(1., dtype=torch.float64), tensor(-0.5000, dtype=torch.float64), tensor(0.3333, dtype=torch.float64)]
    """
    small = x.abs() < _SMALL
    # either branch sees an argument at which it is finite, so that no NaN flows back through the unused one
    y = torch.where(small, 1.0, x)
    z = torch.where(small, x, 0.0)
    second = torch.full_like(z, _SECOND[-1])
    for c in reversed(_SECOND[:-1]):
        second = second * z + c
    e_z = torch.exp(-z)
    first = -0.5 * (e_z + z * second)
    series = [e_z - z * first, first, second]
    e_y = torch.exp(-y)
    value = (1 - e_y) / y
    direct = [value]
    if order > 0:
        direct.append((e_y - value) / y)
    if order > 1:
        direct.append((-e_y - 2 * direct[1]) / y)
    return [torch.where(small, s, d) for s, d in zip(series, direct, strict=False)]


def decay_integral(rate: Tensor, time: Tensor, order: int = 0) -> list[Tensor]:
    """I = (1 - exp(-r t)) / r = t phi(r t), t at r = 0, and its derivatives in r."""
    parts = phi(rate * time, order)
    power = time
    out = []
    for part in parts:
        out.append(power * part)
        power = power * time
    return out


def bateman(
    a: Tensor,
    b: Tensor,
    time: Tensor,
    at_a: Sequence[Tensor],
    at_b: Sequence[Tensor],
    order: int = 0,
    early: bool = False,
) -> list[Tensor]:
    """B = (exp(-a t) - exp(-b t)) / (b - a), t exp(-a t) at a = b, and its derivatives in a and b.

    Where the rates are well apart the quotient is differentiated as it stands:

        B_a = (P'(a) + B) / (b - a)     B_aa = (P''(a) + 2 B_a) / (b - a)     B_ab = (B_b - B_a) / (b - a)

    Bateman, Proc. Camb. Phil. Soc. 15 (1910) 423.

    Args:
        a, b: the rates, `[*axes, subject, 1 or time]`.
        time: t, `[subject, time]`.
        at_a, at_b: the decays at these rates, with derivatives to the same order.
        order: how many derivatives.
        early: whether B must keep its digits against t, where it starts, and not only against its peak.
    """
    gap = b - a
    near = (gap / b).abs() < NEAR
    if early:
        near = near | (gap.abs() * time < EARLY)
    apart = not bool(near.any())
    inverse = (gap if apart else torch.where(near, 1.0, gap)).reciprocal()
    out = [(at_a[0] - at_b[0]) * inverse]
    if order > 0:
        opposite = -inverse
        out.append((at_a[1] + out[0]) * inverse)
        out.append((at_b[1] + out[0]) * opposite)
    if order > 1:
        out.append(torch.add(at_a[2], out[1], alpha=2) * inverse)
        out.append((out[2] - out[1]) * inverse)
        out.append(torch.add(at_b[2], out[2], alpha=2) * opposite)
    return out if apart else _mend(out, near, a, b, time)


def _mend(out: list[Tensor], near: Tensor, a: Tensor, b: Tensor, time: Tensor) -> list[Tensor]:
    """Replace the entries where `near` by those of the series, computed for these alone."""
    shape = out[0].shape
    constant = near.shape[-1] == 1  # then whole rows are replaced
    where = near[..., 0].expand(shape[:-1]) if constant else near.expand(shape)
    width = shape[:-1] + (1,) if constant else shape
    series = _series(a.expand(width)[where], b.expand(width)[where], time.expand(shape)[where], len(out))
    return [old.index_put((where,), new) for old, new in zip(out, series, strict=True)]


def _series(a: Tensor, b: Tensor, time: Tensor, count: int) -> list[Tensor]:
    """B around the mean rate m, with half the difference h: t exp(-m t) S(h2 t2), S(z) = sinh(sqrt z) / sqrt z."""
    h = 0.5 * (b - a)
    x = h * time
    # beyond, exp(-m t) is below 1e-70: the bound only keeps the polynomial finite
    z = torch.clamp(x * x, max=25.0)
    s, s1, s2 = (torch.zeros_like(z) for _ in range(3))
    for c in reversed(_COEFFICIENTS):
        s2 = s2 * z + s1
        s1 = s1 * z + s
        s = s * z + c
    scale = time * torch.exp(-0.5 * (a + b) * time)
    value = scale * s
    if count == 1:
        return [value]
    # in m: -t B; in h: odd. d/da = (d/dm - d/dh) / 2, d/db = (d/dm + d/dh) / 2
    by_m, by_h = -time * value, scale * time * 2 * x * s1
    out = [value, 0.5 * (by_m - by_h), 0.5 * (by_m + by_h)]
    if count == 3:
        return out
    square = time * time
    mm, mh, hh = square * value, -time * by_h, scale * square * (2 * s1 + 8 * z * s2)
    return [*out, 0.25 * (mm - 2 * mh + hh), 0.25 * (mm - hh), 0.25 * (mm + 2 * mh + hh)]


def absorption(b: Tensor, quotient: Sequence[Tensor]) -> list[Tensor]:
    """b B(a, b; t) and its derivatives in a and b, from those of B."""
    out = [b * quotient[0]]
    if len(quotient) > 1:
        out += [b * quotient[1], torch.addcmul(quotient[0], b, quotient[2])]
    if len(quotient) > 3:
        out += [b * quotient[3], torch.addcmul(quotient[1], b, quotient[4])]
        out.append(torch.add(b * quotient[5], quotient[2], alpha=2))
    return out


def absorption_integral(integral: Sequence[Tensor], quotient: Sequence[Tensor]) -> list[Tensor]:
    """I(a; t) - B(a, b; t), the integral of b B, and its derivatives in a and b, from those of I and B.

    From B' = P(a) - b B. What has come through is the difference of what has been given and what still waits: early on
    it is small against both, and keeps its digits on the scale of what has been given if B keeps them (`early`).
    """
    out = [integral[0] - quotient[0]]
    if len(quotient) > 1:
        out += [integral[1] - quotient[1], -quotient[2]]
    if len(quotient) > 3:
        out += [integral[2] - quotient[3], -quotient[4], -quotient[5]]
    return out
