"""Rates and modes of mammillary disposition: a central compartment with one or two peripheral ones.

Amounts obey dx/dt = A x, where A holds the micro-constants k10 = cl/v, k12 = q/v, k21 = q/v2, k13 = q3/v, k31 = q3/v3.
Minus its eigenvalues are the roots of

    n = 2:   s^2 - a1 s + a0 = 0           a1 = k10 + k12 + k21             a0 = k10 k21
    n = 3:   s^3 - a2 s^2 + a1 s - a0 = 0  a2 = k10 + k12 + k13 + k21 + k31
                                           a1 = k31 (k10 + k12 + k21) + k21 (k10 + k13)     a0 = k10 k21 k31

all positive and, A being similar to a symmetric matrix, real. Every coefficient is a sum of positive products, so the
roots keep their relative accuracy however far apart they lie. The response is

    exp(A t)_ij = sum_m r_ijm exp(-lambda_m t),    r_ijm = adj(-lambda_m - A)_ij / prod_{l != m} (lambda_l - lambda_m).

Two roots meet only where a flow vanishes while its compartment keeps a rate equal to another one. The response is
smooth there, the single roots are not: `meeting` says where to leave them alone.

Gabrielsson & Weiner, Pharmacokinetic and Pharmacodynamic Data Analysis, 5th ed. (2016); Abuhelwa et al.,
J. Pharmacokinet. Pharmacodyn. 42 (2015), doi:10.1007/s10928-015-9412-0 (closed forms carried from event to event).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import Term, accumulate, order_of, stack, unbind

# Relative distance of two rates below which the modes give way to the matrix exponential. A derivative of order d loses
# 1e-16 over its power d: at this distance 1e-12 is left of the Hessian.
MEETING = 0.1


# Micro-constants (k10, k12, k21, k13, k31) with modes far apart.
_APART = (1.0, 1.0, 1.0, 0.1, 0.1)


def micro_constants(cl: Number, v: Number, peripheral: Sequence[tuple[Number, Number]] = ()) -> list[Number]:
    """k10, and k12, k21 (k13, k31) for each peripheral compartment.

    Args:
        cl, v: clearance and central volume, `[*draw, subject, 1 or event]` each.
        peripheral: (flow, volume) of each peripheral compartment: none, (q, v2), or also (q3, v3).
    """
    if not peripheral:
        return [cl / v]
    numerators, denominators = [cl], [v]
    for flow, volume in peripheral:
        numerators += [flow, flow]
        denominators += [v, volume]
    return unbind(stack(numerators) / stack(denominators))


class Disposition:
    """Modes of disposition for given micro-constants.

    Args:
        micro: k10, k12, k21, k13, k31 as far as there are compartments, `[*draw, subject, 1 or event]` each.

    Attributes:
        n: number of disposition compartments (and modes).
    """

    def __init__(self, micro: Sequence[Number]) -> None:
        self.micro = list(micro)
        self.n = (len(self.micro) + 1) // 2

    @cached_property
    def rates(self) -> Number:
        """lambda_1, ..., lambda_n, the largest first, `[mode, *draw, subject, 1 or event]`; no mode axis for n = 1."""
        if self.n == 1:
            return self.micro[0]
        if self.n == 2:
            roots, slopes = _two_roots(*(cast(Tensor, value_of(k)) for k in self.micro))
        else:
            a0, a1, a2 = (cast(Tensor, value_of(a)) for a in self._coefficients)
            roots = _newton(_newton(self._start, a0, a1, a2), a0, a1, a2)
            slopes = _slopes(roots)
        if not any(isinstance(k, Taylor) for k in self.micro):
            return roots
        return _implicit(roots, slopes, self._coefficients)

    @cached_property
    def _start(self) -> Tensor:
        """The rates `[mode, ...]` to half their digits at least where they meet, to nearly all where they do not."""
        if self.n == 2:
            return cast(Tensor, value_of(self.rates)).detach()
        return _three_roots(*(cast(Tensor, value_of(a)).detach() for a in self._coefficients))

    @cached_property
    def _coefficients(self) -> list[Number]:
        """a_0, ..., a_{n-1}."""
        if self.n == 2:
            k10, k12, k21 = self.micro
            return [k10 * k21, k10 + k12 + k21]
        k10, k12, k21, k13, k31 = self.micro
        inner, outer = k10 + k12 + k21, k10 + k13
        return [k10 * k21 * k31, k31 * inner + k21 * outer, inner + k13 + k31]

    @cached_property
    def _shape(self) -> Number:
        """prod_{l != m} (lambda_l - lambda_m), stacked."""
        if self.n == 2:
            first, second = unbind(self.rates)
            gap = second - first
            return stack([gap, -gap])
        first, second, third = unbind(self.rates)
        ab, bc, ca = second - first, third - second, first - third
        return stack([-(ab * ca), -(bc * ab), -(ca * bc)])

    def matrix(self, absorption: Number | None = None) -> Number:
        """A `[compartment, compartment, *draw, subject, 1 or event]`, a depot first where there is one."""
        k10, zero = self.micro[0], torch.zeros_like(cast(Tensor, value_of(self.micro[0])))
        pairs = list(zip(self.micro[1::2], self.micro[2::2], strict=True))
        outflow = k10
        for out, _ in pairs:
            outflow = outflow + out
        entries: list[list[Number]] = [[zero] * self.n for _ in range(self.n)]
        entries[0][0] = -outflow
        for j, (out, back) in enumerate(pairs, 1):
            entries[j][0], entries[0][j], entries[j][j] = out, back, -back
        if absorption is not None:
            entries = [[-absorption, *[zero] * self.n], *([zero, *row] for row in entries)]
            entries[1][0] = absorption
        return stack([stack(row) for row in entries])

    @cached_property
    def meeting(self) -> Tensor | None:
        """Where two rates are too close for derivatives through them, `[*draw, subject or 1]`; None when nowhere."""
        if self.n == 1:
            return None
        # not after Newton's steps, which run wild where two roots are one
        share = 1 - self._start[1:] / self._start[:-1]
        if share.numel() == 0 or float(share.amin()) >= MEETING:
            return None
        where = (share < MEETING).any(0).any(-1)
        return where if bool(where.any()) else None

    def parted(self, meeting: Tensor) -> Disposition:
        """The same with constants of no meaning where modes meet: finite, and no derivative flows through them."""
        where = meeting.unsqueeze(-1)
        like = cast(Tensor, value_of(self.micro[0]))
        return Disposition(
            [torch.where(where, like.new_tensor(x), k) for x, k in zip(_APART, self.micro, strict=False)]  # type: ignore[arg-type]
        )

    def response(self, to: int, of: int) -> Number | None:
        """r_ijm of a unit amount put into compartment `of` on compartment `to`, `[mode, ...]`; None for 1.

        Args:
            to, of: positions among the disposition compartments, 0 is the central one.
        """
        if self.n == 1:
            return None
        if (to, of) not in self._responses:
            self._responses[to, of] = self._adjugate(to, of) / self._shape
        return self._responses[to, of]

    @cached_property
    def _responses(self) -> dict[tuple[int, int], Number]:
        return {}

    @cached_property
    def _diagonal(self) -> list[Number]:
        """The diagonal of -lambda - A for each mode, stacked: outflow rates less the mode's rate."""
        if self.n == 2:
            k10, k12, k21 = self.micro
            return [k10 + k12 - self.rates, k21 - self.rates]
        k10, k12, k21, k13, k31 = self.micro
        return [k10 + k12 + k13 - self.rates, k21 - self.rates, k31 - self.rates]

    def _adjugate(self, to: int, of: int) -> Number:
        d = self._diagonal
        if self.n == 2:
            _, k12, k21 = self.micro
            if to == of:
                return d[1 - to]
            return k21 if to == 0 else k12
        _, k12, k21, k13, k31 = self.micro
        out, back = {1: k12, 2: k13}, {1: k21, 2: k31}
        if to == of == 0:
            return d[1] * d[2]
        if to == of:
            other = 3 - to
            return d[0] * d[other] - out[other] * back[other]
        if to == 0:
            return back[of] * d[3 - of]
        if of == 0:
            return out[to] * d[3 - to]
        return back[of] * out[to]


def _two_roots(k10: Tensor, k12: Tensor, k21: Tensor) -> tuple[Tensor, Tensor]:
    """Both roots and the slopes of the polynomial at them, from a discriminant that is a sum of squares."""
    d = k10 + k12 - k21
    root = torch.sqrt(d * d + 4 * k12 * k21)
    larger = 0.5 * (k10 + k12 + k21 + root)
    return torch.stack((larger, k10 * k21 / larger)), torch.stack((root, -root))


def _three_roots(a0: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
    """Roots of s^3 - a2 s^2 + a1 s - a0, all real and positive, the largest first: a start for Newton's method.

    The largest comes from the trigonometric formula, the others from the quadratic that is left after dividing it out.
    Two Newton steps restore what the arc cosine lost. They are differentiated and their start is not, which makes the
    derivatives of the roots exact up to the third: each step doubles the order that is right.
    """
    spread = ((a2 * a2 - 3 * a1) / 9).clamp(min=0.0)
    root = spread.sqrt()
    cosine = (2 * a2**3 - 9 * a2 * a1 + 27 * a0) / (54 * spread * root)
    largest = a2 / 3 + 2 * root * torch.cos(torch.acos(cosine.clamp(-1.0, 1.0)) / 3)
    product = a0 / largest
    total = (a1 - product) / largest
    middle = 0.5 * (total + (total * total - 4 * product).clamp(min=0.0).sqrt())
    return torch.stack((largest, middle, product / middle))


def _newton(s: Tensor, a0: Tensor, a1: Tensor, a2: Tensor) -> Tensor:
    return s - (((s - a2) * s + a1) * s - a0) / ((3 * s - 2 * a2) * s + a1)


def _slopes(roots: Tensor) -> Tensor:
    """Derivative of the cubic at its roots, from their differences."""
    a, b, c = roots.unbind(0)
    ab, bc, ca = a - b, b - c, c - a
    return torch.stack((-ab * ca, -ab * bc, -bc * ca))


def _implicit(roots: Tensor, slopes: Tensor, coefficients: Sequence[Number]) -> Number:
    """Roots as a Taylor number in the coefficients, by the implicit function theorem.

    With chi(s) = s^n + sum_j (-1)^(n-j) a_j s^j the derivatives are ds/da_j = -chi_j / chi' and

        d2s/da_i da_j = -(chi'_i s_j + chi'_j s_i + chi'' s_i s_j) / chi'.
    """
    n, inverse = len(coefficients), slopes.reciprocal()
    signs = [(-1.0) ** (n - j) for j in range(n)]
    powers = [torch.ones_like(roots), roots, roots * roots]
    first = [-signs[j] * powers[j] * inverse for j in range(n)]
    partials = [roots, *first]
    if order_of(*coefficients) == 2:
        if n == 2:
            curvature: Tensor | float = 2.0
        else:
            a, b, c = roots.unbind(0)
            curvature = 2 * torch.stack((2 * a - b - c, 2 * b - a - c, 2 * c - a - b))
        mixed = [0.0 if j == 0 else signs[j] * j * powers[j - 1] for j in range(n)]
        for i in range(n):
            for j in range(i, n):
                bend = mixed[i] * first[j] + mixed[j] * first[i] + curvature * first[i] * first[j]
                partials.append(-bend * inverse)
    return accumulate([Term(None, tuple(coefficients), partials)])
