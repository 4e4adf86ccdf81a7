"""Any ODE page in torch, by an explicit Runge-Kutta method: torchdiffeq, from point to point on rescaled time.

Between two points of its timeline every row has its own duration L, so that with tau from 0 to 1

    dy / dtau = L [f(t_k + tau L, y, p) + rate]

takes all rows from point k to point k + 1 in one call. Run on Taylor numbers this is the system of sensitivity
equations, also where L and the rates carry derivatives (lags, modelled durations). Steps are common to all rows and as
long as the worst of them allows, sensitivities included; a row that would hold up the others is taken out.

Chen, torchdiffeq (2018), github.com/rtqichen/torchdiffeq; the method is Dormand & Prince, order 8(7), J. Comput. Appl.
Math. 7 (1981), doi:10.1016/0771-050X(81)90010-3.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchdiffeq import odeint

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.packed import parted
from nlmegen.structure.rows import (
    NOT_FINITE,
    OK,
    STEP_TOO_SMALL,
    TOO_MANY_STEPS,
    Dynamics,
    Parameters,
    Rows,
)
from nlmegen.structure.solver import Solver, Tolerances
from nlmegen.structure.timeline import Timeline

METHOD, ORDER = "dopri8", 8
_SMALLEST = 1e-12  # step in tau, where the clock still resolves it
_TRACE = 1e-12  # share of the largest amount of a row below which an amount has no digits to keep
_HUGE = 1e10  # error ratio of a step that left the finite numbers


def explicit(
    system: Dynamics, p: Parameters, timeline: Timeline, solver: Solver
) -> tuple[list[Number], Tensor]:
    """Amounts at the observations by an explicit method, with derivatives, for any page.

    Reverse mode passes through (weights inside the page too), under values and Jacobians alike.

    Args:
        system: the equations.
        p: the individual parameters in force after point k of the timeline, numbers `[*draw, subject or 1, 1]`; where
            nothing varies it returns the same mapping for every k.
        timeline: what happens to every row.
        solver: tolerances and the cap of steps.

    Returns:
        For each compartment its amount `[*draw, subject, T]`, NaN in rows that failed; and why they failed,
        `[*draw, subject]` int64: 0 did not, 1 too many steps, 2 step too small, 3 not finite.
    """
    rows = Rows(system, p, timeline)
    status = torch.where(rows.finite(), OK, NOT_FINITE)
    while True:
        left = (status == OK).nonzero()[:, 0]
        walk = _Walk(rows if len(left) == rows.count else rows.select(left), solver.tolerances("explicit"))
        try:
            seen = walk.run() if len(left) else []
        except _Stalled as stalled:
            # what a failed row left in the graph would reach shared weights as NaN: start again without it
            status[left] = stalled.status
            continue
        break
    status[left] = walk.status
    table = rows.collect([(state, left[index], slots) for state, index, slots in seen], status == OK)
    return [
        parted(x, lambda y, lead: y.reshape(y.shape[:lead] + rows.shape + y.shape[-1:])) for x in table
    ], (status.reshape(rows.shape))


class _Stalled(Exception):
    """Rows failed in a solve that reverse mode is to pass through."""

    def __init__(self, status: Tensor) -> None:
        super().__init__("rows failed")
        self.status = status


class _Walk:
    """The state of all rows on their way through the timeline, and the error control.

    Attributes:
        state: packed amounts `[component, amount, row]`; rate: running infusions likewise, or None.
        peak: `[amount, row]` the largest amount so far.
        step: `[row]` the step in time that each row would take alone.
        spent: `[row]` the steps that it would have needed alone.
        status: `[row]`.
    """

    def __init__(self, rows: Rows, solver: Tolerances) -> None:
        self.rows, self.solver = rows, solver
        self.every = torch.arange(rows.count, device=rows.layout.device)
        zero = torch.zeros(rows.count, dtype=rows.layout.dtype, device=rows.layout.device)
        self.step = torch.full_like(zero, torch.inf)
        self.spent, self.gone = zero, zero
        self.whole = cast(Tensor, value_of(rows.length)).detach().sum(-1)
        self.status = torch.zeros_like(self.every)

    def run(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Walk all points; the states seen at observations, with their rows and slots."""
        rows = self.rows
        state = rows.start(rows.parameters(0), rows.count)
        self.fail(~_finite(state), NOT_FINITE)
        self.attached = state.requires_grad
        state = torch.where(self.alive, state, 0.0)
        rate = torch.zeros_like(state) if rows.infused else None
        self.peak = state[0].detach().abs()
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        for k in range(rows.points):
            if k:
                state = self.carry(k - 1, state, rate)
            slot = rows.slot[:, k]
            looking = (slot >= 0).nonzero()[:, 0]
            if len(looking):
                seen.append((state[:, :, looking], looking, slot[looking]))
            before = state
            state, rate = rows.change(
                state, rate, self.every, torch.full_like(self.every, k), rows.parameters(k)
            )
            self.changed = state is not before or not k
            if self.changed:
                self.fail(~_finite(state), NOT_FINITE)
                state = torch.where(self.alive, state, 0.0)
                self.peak = torch.maximum(self.peak, state[0].detach().abs())
        return seen

    @property
    def alive(self) -> Tensor:
        """`[row]`, which rows are still being solved."""
        return self.status == OK

    def fail(self, which: Tensor, why: int) -> None:
        """Take out rows."""
        which = which & self.alive
        if bool(which.any()):
            self.status = torch.where(which, why, self.status)
            if self.attached:
                raise _Stalled(self.status)

    def carry(self, k: int, state: Tensor, rate: Tensor | None) -> Tensor:
        """Carry all rows from point `k` to the next."""
        rows = self.rows
        length: Number = rows.length[:, k : k + 1]
        span = cast(Tensor, value_of(length)).detach()[:, 0]
        going = self.alive & (rows.used[:, k] if rows.moving else span > 0)
        if not bool(going.any()):
            return state
        leg = _Leg(self, k, length, span, going, state, rate)
        first = leg.first()
        options = {"norm": leg.norm, "first_step": first, "step_t": torch.ones(1, dtype=span.dtype)}
        ends = torch.tensor([0.0, 1.0], dtype=span.dtype, device=span.device)
        self.gone = self.gone + span
        arrived: Tensor = odeint(leg, state, ends, rtol=0.0, atol=1.0, method=METHOD, options=options)[1]
        return arrived


class _Leg:
    """The way from one point to the next: the right side, and what torchdiffeq asks and tells while stepping."""

    def __init__(
        self,
        walk: _Walk,
        k: int,
        length: Number,
        span: Tensor,
        going: Tensor,
        state: Tensor,
        rate: Tensor | None,
    ) -> None:
        self.walk, self.rows, self.k = walk, walk.rows, k
        self.length, self.span, self.going = length, span, going
        self.all_going = bool(going.all())
        self.time, self.p = walk.rows.time[:, k : k + 1], walk.rows.parameters(k)
        self.rate = rate
        self.inflow = None if rate is None or not walk.rows.moving else walk.rows.layout.unpack(rate)
        self.start = self.latest = state
        self.f0: Tensor | None = self.slope(0.0, state)
        self.ratio, self.size = torch.zeros_like(span), 0.0

    def slope(self, tau: Tensor | float, state: Tensor) -> Tensor:
        """dy / dtau."""
        rows, layout = self.rows, self.rows.layout
        y = layout.unpack(state)
        f = rows.system.rates(self.time + self.length * tau, y, self.p)
        if not rows.moving:
            packed = layout.pack(f, rows.count)
            packed = packed if self.rate is None else packed + self.rate
            packed = packed * cast(Tensor, self.length)[:, 0]
        else:
            if self.inflow is not None:
                f = [a + b for a, b in zip(f, self.inflow, strict=True)]
            packed = layout.pack([self.length * a for a in f], rows.count)
        return packed if self.all_going else torch.where(self.going, packed, 0.0)

    def __call__(self, tau: Tensor, state: Tensor) -> Tensor:
        """The right side for torchdiffeq; the first call repeats what `first` has seen."""
        self.latest = state
        if self.f0 is not None:
            f0, self.f0 = self.f0, None
            return f0
        return self.slope(tau, state)

    def first(self) -> Tensor:
        """The first step, in tau: as long as the row that asks for the shortest allows."""
        walk, f0 = self.walk, cast(Tensor, self.f0)
        walk.attached = walk.attached or f0.requires_grad
        self.stop(~_finite(f0) & self.going, NOT_FINITE)
        f0 = self.f0 = f0 if self.all_going else torch.where(self.going, f0, 0.0)
        y, f = self.start[0].detach(), f0[0].detach()
        self.least = _TRACE * torch.maximum(walk.peak, f.abs()).amax(0) + 1e-300
        if walk.changed:
            scale = self.scale(y.abs())
            size, speed = (y / scale).square().mean(0).sqrt(), (f / scale).square().mean(0).sqrt()
            guess = torch.where(
                speed > 0, torch.where(size > 0, 0.1 * size / speed, 1e-3 + 0 * size), torch.inf
            )
            walk.step = torch.where(self.span > 0, torch.minimum(walk.step, guess * self.span), walk.step)
        wanted = torch.where(self.going & (self.span > 0), walk.step / self.span, torch.inf)
        return wanted.amin().clamp(1e-6, 1.0)

    def scale(self, size: Tensor) -> Tensor:
        """Scale of errors of the amounts, without the tolerance: `[amount, row]`."""
        floor = self.walk.solver.floor
        return torch.maximum(torch.maximum(size, floor * self.walk.peak), self.least)

    @torch.no_grad()
    def norm(self, error: Tensor) -> Tensor:
        """The worst row's error against its tolerance."""
        start, latest = self.start.abs(), self.latest.abs()
        size = torch.maximum(start, latest)
        scale = self.scale(size[0])
        if error.shape[0] > 1:  # a sensitivity larger than its amount keeps relative accuracy
            scale = torch.maximum(scale, size)
        ratio = self.rows.layout.blocks(error, self.walk.solver.rtol * scale)
        ratio = torch.where(ratio.isfinite(), ratio, _HUGE)
        self.ratio = torch.where(self.going, ratio, 0.0)
        worst = self.ratio.amax()
        if self.size <= _SMALLEST and worst > 1:
            # the others wait for these rows: the step that follows is taken without them
            late = self.ratio > 1
            self.stop(late & (self.ratio >= _HUGE), NOT_FINITE)
            self.stop(late, STEP_TOO_SMALL)
            return torch.full_like(worst, 2.0)
        return worst

    def stop(self, which: Tensor, why: int) -> None:
        """Take rows out of this leg and the rest of the walk."""
        if bool(which.any()):
            self.walk.fail(which, why)
            self.going = self.going & ~which
            self.all_going = False

    def callback_step(self, tau: Tensor, state: Tensor, size: Tensor) -> None:
        """A step from `state` begins."""
        self.start, self.size = state.detach(), float(size)

    def callback_accept_step(self, tau: Tensor, state: Tensor, size: Tensor) -> None:
        """The step was good enough."""
        walk = self.walk
        walk.peak = torch.maximum(walk.peak, self.latest[0].detach().abs())
        self.charge(float(tau) + float(size))

    def callback_reject_step(self, tau: Tensor, state: Tensor, size: Tensor) -> None:
        """The step was not."""
        self.charge(float(tau))

    def charge(self, tau: float) -> None:
        """Add to each row the share of a step that it needed, and take out those that need too many."""
        walk, most = self.walk, self.walk.solver.max_steps
        need = self.ratio.clamp(1e-8, 1.0) ** (1 / ORDER)
        walk.spent = walk.spent + torch.where(self.going, need, 0.0)
        alone = self.size * self.span * 0.9 * self.ratio.clamp(min=1e-8) ** (-1 / ORDER)
        walk.step = torch.where(self.going & (self.span > 0), alone, walk.step)
        done = (walk.gone - self.span * (1 - tau)) / walk.whole
        ahead = walk.spent / done.clamp(min=1e-300)
        # a stiff row shows early that it will not arrive
        hopeless = (walk.spent > most / 20) & (ahead > 20 * most)
        self.stop(self.going & ((walk.spent > most) | hopeless), TOO_MANY_STEPS)


def _finite(state: Tensor) -> Tensor:
    return state.detach().isfinite().all(0).all(0)
