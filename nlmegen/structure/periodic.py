"""Steady states of linear systems under doses repeated for ever, exactly, with derivatives.

Doses arrived every interval T since ever, the last one a `phase` s in (0, T] ago. Between two arrivals a linear system
obeys x -> Phi x + u, so that right at an arrival

    x_0 = (1 - Phi)^-1 u ,      u: what one dose alone leaves after T,      and x(s) is x_0 carried on by s.

In a mode of disposition Phi is the number q = exp(-l T), and sum_k q^k = 1 / (1 - q) is taken from expm1, so that it
keeps its digits at tiny l T. Absorption from a depot is carried through the divided difference in (l, ka) of `divided`,
which is smooth where ka meets l; here as functions of (l t, ka t, 1), so that times may carry derivatives too. Nothing
is subtracted. An infusion longer than the interval, D = m T + d, is a constant infusion of m times its rate and one
that lasts d < T: how many earlier ones are still running needs no loop.

Shapes: `[*draw, subject, n]` for n repeated doses; a mode axis stands in front.

Gibaldi & Perrier, Pharmacokinetics, 2nd ed. (1982), chapter 3 (multiple dosing).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure import divided
from nlmegen.structure.affine import exponential
from nlmegen.structure.chain import Term, accumulate, each, order_of
from nlmegen.structure.linear import product


@dataclass(frozen=True)
class Repeated:
    """Equal doses into one compartment, one every interval since ever.

    Attributes:
        amount: what each gives at once, 0 for an infusion.
        rate: the rate of each infusion, 0 for a bolus.
        duration: how long each infusion lasts, 0 for a bolus; it may exceed the interval.
        interval: time from one to the next; 0 for one infusion that has run for ever.
        phase: time since the last one arrived, in (0, interval]; NaN comes out where it is not.
    """

    amount: Number
    rate: Number
    duration: Number
    interval: Tensor
    phase: Number

    def tidied(self) -> Repeated:
        """The same with a constant infusion told as one that lasts its interval, and NaN where there is no phase."""
        constant = self.interval == 0
        one = torch.ones_like(self.interval)
        interval = torch.where(constant, one, self.interval)
        phase = _where(constant, one, self.phase)
        # what is in the state after a time since the last arrival exists for times between two arrivals only
        legal = (value_of(phase) > 0) & (value_of(phase) <= interval * (1 + 1e-12))
        broken = torch.where(legal, 0.0, torch.nan).to(one.dtype)
        return replace(
            self,
            amount=self.amount + broken,
            duration=_where(constant, one, self.duration),
            interval=interval,
            phase=_where(legal, phase, interval),
        )

    def parted(self) -> tuple[Number, Number] | tuple[None, None]:
        """(m R, d): the rate of what always runs, and how long the rest of each infusion lasts; None without any."""
        if not bool((value_of(self.rate) != 0).any()):
            return None, None
        whole = torch.floor(cast(Tensor, value_of(self.duration)) / self.interval).detach()
        return whole * self.rate, self.duration - whole * self.interval


def by_modes(rate: Number, absorption: Number | None, dose: Repeated) -> tuple[Number, Number | None]:
    """The steady state of modes of disposition, and of the depot that feeds them.

    Args:
        rate: rates l of the modes `[mode, *draw, subject, 1 or n]`, or without a mode axis.
        absorption: ka `[*draw, subject, 1 or n]` where the doses go into a depot, None where they do not.
        dose: the doses.

    Returns:
        What each mode holds (times the response r_ijm it is the amount in i of doses into j), and what the depot holds,
        None without one; shapes as `rate` and `absorption`, with n doses.

    Example:
        >>> one, nothing = torch.ones(1, 1), torch.zeros(1, 1)
        >>> y, _ = by_modes(0.1 * one, None, Repeated(one, nothing, nothing, 12 * one, 12 * one))
        >>> f"{y.item():.4f}", f"{1 / (math.exp(1.2) - 1):.4f}"
        ('0.4310', '0.4310')
    """
    dose = dose.tidied()
    always, rest = dose.parted()
    if absorption is None:
        left = _direct(dose, rest, rate, 0.0, dose.interval)
        state = _direct(dose, rest, rate, left / _lost(rate * dose.interval), dose.phase)
        return (state if always is None else state + always / rate), None
    # the depot by itself is one mode, into which the doses go directly
    left = _direct(dose, rest, absorption, 0.0, dose.interval)
    held = left / _lost(absorption * dose.interval)
    depot = _direct(dose, rest, absorption, held, dose.phase)
    left = _absorbed(dose, rest, rate, absorption, 0.0, held, dose.interval)
    start = left / _lost(rate * dose.interval)
    state = _absorbed(dose, rest, rate, absorption, start, held, dose.phase)
    if always is None:
        return state, depot
    return state + always / rate, depot + always / absorption


def _direct(
    dose: Repeated, rest: Number | None, rate: Number, start: Number | float, until: Number
) -> Number:
    """What a mode holds `until` after an arrival, `start` right before it, of doses straight into it."""
    x = start + dose.amount
    if rest is None:
        return x * _decay(rate * until)
    on, off = _minimum(until, rest), _after(until, rest)
    x = x * _decay(rate * on) + dose.rate * on * _mean(rate * on)
    return x * _decay(rate * off)


def _absorbed(
    dose: Repeated,
    rest: Number | None,
    rate: Number,
    absorption: Number,
    start: Number | float,
    held: Number,
    until: Number,
) -> Number:
    """The same of doses into a depot, which held `held` right before the arrival."""
    depot = held + dose.amount
    if rest is None:
        return start * _decay(rate * until) + depot * _through(rate * until, absorption * until)
    on, off = _minimum(until, rest), _after(until, rest)
    x = start * _decay(rate * on) + depot * _through(rate * on, absorption * on)
    x = x + dose.rate * on * _through_mean(rate * on, absorption * on)
    depot = depot * _decay(absorption * on) + dose.rate * on * _mean(absorption * on)
    return x * _decay(rate * off) + depot * _through(rate * off, absorption * off)


def by_matrix(matrix: Number, into: int, dose: Repeated, drift: Number | None = None) -> Number:
    """The steady state of dx/dt = A x + b under repeated doses.

    Args:
        matrix: A `[..., i, j]`.
        into: place of the compartment that the doses go into.
        dose: the doses, `[...]`.
        drift: b `[..., i]`, what flows in at all times; None for nothing.

    Returns:
        Amounts `[..., i]`; not finite where there is no steady state (a compartment that nothing leaves).
    """
    dose = dose.tidied()
    always, rest = dose.parted()
    size = value_of(matrix).shape[-1]
    unit = torch.eye(size, dtype=value_of(matrix).dtype, device=value_of(matrix).device)
    place = unit[:, into]

    def vector(x: Number) -> Number:
        return _wide(x, 1) * place

    nothing: Number = torch.zeros_like(place) if drift is None else drift
    constant = nothing if always is None else nothing + vector(always)
    infused = constant + vector(dose.rate)
    whole = exponential(matrix * _wide(dose.interval, 2))

    def carried(x: Number, until: Number) -> Number:
        x = x + vector(dose.amount)
        if rest is not None:
            x = _flow(matrix, infused, x, _minimum(until, rest))
            until = _after(until, rest)
        return _flow(matrix, constant, x, until)

    left = carried(torch.zeros_like(place), dose.interval)
    return carried(solve(unit - whole, left), dose.phase)


def _flow(matrix: Number, source: Number, x: Number, time: Number) -> Number:
    """x after `time` of dx/dt = A x + b, from the exponential of [[A, b], [0, 0]]."""
    size = value_of(matrix).shape[-1]
    column = _wide(source, 1)

    def widened(y: Tensor, lead: int) -> Tensor:
        return torch.nn.functional.pad(y, (0, 1, 0, 1))

    def placed(y: Tensor, lead: int) -> Tensor:
        return torch.nn.functional.pad(y, (size, 0, 0, 1))

    together = each(matrix, widened) + each(column, placed)
    moved = exponential(together * _wide(time, 2))
    ended = each(_wide(x, 1), lambda y, lead: torch.nn.functional.pad(y, (0, 0, 0, 1)))
    last = torch.zeros(size + 1, 1, dtype=value_of(matrix).dtype, device=value_of(matrix).device)
    last[-1] = 1.0
    result = product(moved, ended + last)
    return each(result, lambda y, lead: y[..., :size, 0])


def solve(matrix: Number, right: Number) -> Number:
    """x of M x = b with its derivatives: M x_i = b_i - M_i x, M x_ij = b_ij - M_ij x - M_i x_j - M_j x_i.

    Args:
        matrix: M `[..., i, j]`.
        right: b `[..., i]`, with as many axes in front.

    Returns:
        x `[..., i]`, not finite where M is singular.
    """
    order = order_of(matrix, right)
    m, b = cast(Tensor, value_of(matrix)), cast(Tensor, value_of(right))

    def solved(y: Tensor) -> Tensor:
        return _solve(m, y.unsqueeze(-1)).squeeze(-1)

    def times(a: Tensor, y: Tensor) -> Tensor:
        return (a @ y.unsqueeze(-1)).squeeze(-1)

    x = solved(b)
    if order == 0:
        return x
    m_jac, m_hess = _parts(matrix)
    b_jac, b_hess = _parts(right)
    jac = solved(_minus(b_jac, None if m_jac is None else times(m_jac, x)))
    if order == 1:
        return Taylor(x, jac)
    bend = None if m_hess is None else times(m_hess, x)
    if m_jac is not None:
        cross = times(m_jac.unsqueeze(1), jac.unsqueeze(0))
        cross = cross + cross.transpose(0, 1)
        bend = cross if bend is None else bend + cross
    if bend is None and b_hess is None:
        return Taylor(x, jac, None, 2)
    return Taylor(x, jac, solved(_minus(b_hess, bend)), 2)


def _parts(x: Number) -> tuple[Tensor | None, Tensor | None]:
    return (x.jac, x.hess) if isinstance(x, Taylor) else (None, None)


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor:
    if a is None:
        assert b is not None
        return -b
    return a if b is None else a - b


def _solve(m: Tensor, b: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(m.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    m, b = m.expand(shape + m.shape[-2:]), b.expand(shape + b.shape[-2:])
    return cast(Tensor, torch.linalg.solve_ex(m, b)[0])


def _wide(x: Number, count: int) -> Number:
    """`x` with axes of length one behind its last."""
    return each(x, lambda y, lead: y.reshape(y.shape + (1,) * count))


# -- functions of rate times time ---------------------------------------------------------------------------------
def _decay(z: Number) -> Number:
    return cast(Number, torch.exp(-z))  # type: ignore[arg-type]


def _lost(z: Number) -> Number:
    """1 - exp(-z)."""
    return -cast(Number, torch.expm1(-z))  # type: ignore[arg-type]


def _mean(z: Number) -> Number:
    """(1 - exp(-z)) / z: what an infusion of a unit over the time leaves."""
    return accumulate([Term(None, (z,), divided.phi(value_of(z), order_of(z)))])


def _through(a: Number, b: Number) -> Number:
    """What a unit in the depot has brought into a mode: b B(a, b; 1)."""
    return accumulate([Term(None, (a, b), divided.absorption(value_of(b), _bateman(a, b)))])


def _through_mean(a: Number, b: Number) -> Number:
    """What an infusion of a unit into the depot over the time has brought into a mode: I(a; 1) - B(a, b; 1)."""
    whole = divided.phi(value_of(a), order_of(a, b))
    return accumulate([Term(None, (a, b), divided.absorption_integral(whole, _bateman(a, b)))])


def _bateman(a: Number, b: Number) -> list[Tensor]:
    order, one = order_of(a, b), torch.ones(1, 1, dtype=value_of(a).dtype, device=value_of(a).device)
    first, second = torch.broadcast_tensors(value_of(a), value_of(b))  # type: ignore[no-untyped-call]
    parts = [divided.decay(x, one, order) for x in (first, second)]
    return divided.bateman(first, second, one, parts[0], parts[1], order, early=True)


def _minimum(a: Number, b: Number) -> Number:
    return cast(Number, torch.minimum(a, b))  # type: ignore[arg-type]


def _after(until: Number, rest: Number) -> Number:
    """max(until - rest, 0)."""
    return until - _minimum(until, rest)


def _where(condition: Tensor, a: Number, b: Number) -> Number:
    return cast(Number, torch.where(condition, a, b))  # type: ignore[arg-type]
