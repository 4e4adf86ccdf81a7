"""Any ODE page in torch, by an explicit Runge-Kutta method: torchdiffeq, from event to event on rescaled time.

Between two events every row has its own duration L, so that with tau from 0 to 1

    dy / dtau = L [f(t_e + tau L, y, p) + rate]

takes all rows from event e to event e + 1 in one call. Run on Taylor numbers this is the system of sensitivity
equations, also where L and the rates carry derivatives (lags, modelled durations). Steps are common to all rows and as
long as the worst of them allows, sensitivities included; a row that would hold up the others is taken out.

Steps do not stop at observations. Each is reached by one step of the same method from the start of the step that it
lies in, which is shorter than one that was good enough, and all of them are reached at once when the walk is over.

Chen, torchdiffeq (2018), github.com/rtqichen/torchdiffeq; the method is Dormand & Prince, order 8(7), J. Comput. Appl.
Math. 7 (1981), doi:10.1016/0771-050X(81)90010-3.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchdiffeq import odeint

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.leg import Leg
from nlmegen.structure.packed import parted
from nlmegen.structure.rows import (
    NOT_FINITE,
    OK,
    STEP_TOO_SMALL,
    TOO_MANY_STEPS,
    Dynamics,
    Parameters,
    Rows,
    wide,
)
from nlmegen.structure.sight import Sight
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Timeline

METHOD, ORDER = "dopri8", 8
_SMALLEST = 1e-12  # step in tau, where the clock still resolves it
_TRACE = 1e-12  # share of the largest amount of a row below which an amount has no digits to keep
_FIRST = 0.5  # first step, as a share of the time in which an amount would change by its largest size
_ESTIMATE = 30.0  # tolerance of the error estimate, as a multiple of rtol
_HUGE = 1e10  # error ratio of a step that left the finite numbers
_AT_ONCE = 500_000  # entries of the states that are taken to observations together


def explicit(
    system: Dynamics, p: Parameters, timeline: Timeline, solver: Solver
) -> tuple[list[Number], Tensor]:
    """Amounts at the observations by an explicit method, with derivatives, for any page.

    Reverse mode passes through (weights inside the page too), under values and Jacobians alike.

    Args:
        system: the equations.
        p: the individual parameters in force after point k of the timeline, numbers `[*draw, subject or 1, 1]`; where
            nothing varies it returns the same mapping for every k. Observations do not change them.
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
        walk = _Walk(rows if len(left) == rows.count else rows.select(left), solver)
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
        peak: `[amount, row]` the largest amount so far.
        step: `[row]` the step in time that each row would take alone.
        spent: `[row]` the steps that it would have needed alone; gone: the time behind it.
        status: `[row]`.
        sights: the observations on the way.
    """

    def __init__(self, rows: Rows, solver: Solver) -> None:
        self.rows, self.solver = rows, solver
        # the estimate is that of a method of order 7: steps of order 8 err by a thousandth of it
        self.tolerance = _ESTIMATE * solver.rtol
        self.every = torch.arange(rows.count, device=rows.layout.device)
        zero = torch.zeros(rows.count, dtype=rows.layout.dtype, device=rows.layout.device)
        self.step = torch.full_like(zero, torch.inf)
        self.spent, self.gone = zero, zero
        self.whole = cast(Tensor, value_of(rows.length)).detach().sum(-1)
        self.status = torch.zeros_like(self.every)
        self.sights: list[Sight] = []

    def run(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Walk all points; the states seen at observations, with their rows and slots."""
        rows = self.rows
        state = rows.start(rows.parameters(0), rows.count)
        self.fail(~_finite(state), NOT_FINITE)
        self.attached = state.requires_grad
        state = torch.where(self.alive, state, 0.0)
        rate = torch.zeros_like(state) if rows.infused else None
        self.peak = state[0].detach().abs()
        events, following = rows.events()
        for event, after in zip(events.unbind(1), following.unbind(1), strict=True):
            state, rate = self.happen(state, rate, (event < after).nonzero()[:, 0], event)
            state = self.carry(event, after, state, rate)
        return self.look()

    def happen(
        self, state: Tensor, rate: Tensor | None, here: Tensor, event: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The rows `here` meet their next events `event [row]`."""
        rows = self.rows
        point, whole = event[here], len(here) == rows.count
        part = state if whole else state[:, :, here]
        flow = rate if rate is None or whole else rate[:, :, here]
        new, flow = rows.change(part, flow, here, point, rows.parameters_of(point, here))
        if new is part:
            return state, rate
        state = new if whole else state.index_copy(2, here, new)
        if rate is not None and flow is not None:
            rate = flow if whole else rate.index_copy(2, here, flow)
        self.fail(~_finite(state), NOT_FINITE)
        state = torch.where(self.alive, state, 0.0)
        self.peak = torch.maximum(self.peak, state[0].detach().abs())
        return state, rate

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

    def carry(self, event: Tensor, after: Tensor, state: Tensor, rate: Tensor | None) -> Tensor:
        """Carry all rows from their points `event` to the points `after` at which something happens again."""
        rows = self.rows
        end = rows.reached(after)
        seen = rows.observed(event, after)
        event = event.clamp(max=rows.points - 1)  # a row with nothing more to come stays where it is
        way = Leg.between(rows, self.every, event, end, rate)
        span = cast(Tensor, value_of(way.length)).detach()[:, 0]
        going = self.alive & ((end > event) if rows.moving else span > 0)
        leg = _Leg(self, way, span, going, event, seen)
        if not bool(going.any()):
            leg.see(state, 0.0, torch.inf)
            return state
        options = {"norm": leg.norm, "first_step": leg.first(state), "step_t": span.new_ones(1)}
        ends = span.new_tensor([0.0, 1.0])
        self.gone = self.gone + span
        arrived: Tensor = odeint(leg, state, ends, rtol=0.0, atol=1.0, method=METHOD, options=options)[1]
        return arrived

    def look(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Take all observations from where they were seen to where they are."""
        rows = self.rows
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        if not self.sights:
            return found
        sights = Sight.joined(self.sights)
        most = max(1, _AT_ONCE // sights.state[..., 0].numel())
        for part in torch.arange(len(sights.row), device=sights.row.device).split(most):  # type: ignore[no-untyped-call]
            sight = sights.only(part)
            state = sight.reached(rows, METHOD)
            self.fail(
                self.every.new_zeros(rows.count, dtype=torch.bool).index_fill(
                    0, sight.row[~_finite(state)], True
                ),
                NOT_FINITE,
            )
            found.append((state, sight.row, rows.slot[sight.row, sight.point]))
        return found


class _Leg:
    """The way from one event to the next: the right side, and what torchdiffeq asks and tells while stepping."""

    def __init__(
        self,
        walk: _Walk,
        way: Leg,
        span: Tensor,
        going: Tensor,
        event: Tensor,
        observed: tuple[Tensor, Tensor],
    ) -> None:
        self.walk, self.rows, self.way = walk, walk.rows, way
        self.span, self.going, self.event = span, going, event
        self.all_going = bool(going.all())
        self.row, self.point = observed
        # where in tau the observations are
        time, start = (cast(Tensor, value_of(x)).detach() for x in (walk.rows.time, way.time))
        ahead = time[self.row, self.point] - start[self.row, 0]
        self.place = torch.where(ahead > 0, ahead / span[self.row], 0.0)
        self.ratio, self.size = torch.zeros_like(span), 0.0
        self.f0: Tensor | None = None

    def slope(self, tau: Tensor, state: Tensor) -> Tensor:
        """dy / dtau."""
        packed = self.way.slope(tau, state)
        return packed if self.all_going else torch.where(self.going, packed, 0.0)

    def __call__(self, tau: Tensor, state: Tensor) -> Tensor:
        """The right side for torchdiffeq; the first call repeats what `first` has seen."""
        self.latest = state
        if self.f0 is not None:
            f0, self.f0 = self.f0, None
            return f0
        return self.slope(tau, state)

    def first(self, state: Tensor) -> Tensor:
        """The first step from `state`, in tau: as long as the row that asks for the shortest allows."""
        walk = self.walk
        self.start = self.latest = state
        f0 = self.slope(self.span.new_zeros(()), state)
        walk.attached = walk.attached or f0.requires_grad
        self.stop(~_finite(f0) & self.going, NOT_FINITE)
        f0 = f0 if self.all_going else torch.where(self.going, f0, 0.0)
        self.f0 = f0
        f, peak = f0[0].detach(), walk.peak
        self.least = _TRACE * torch.maximum(peak, f.abs()).amax(0) + 1e-300
        # amounts that are still nothing have no size to compare with
        speed = torch.where(peak > 0, f.abs() / peak, 0.0).amax(0)
        guess = torch.where(speed > 0, _FIRST / speed, 1e-2)
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
        ratio = self.rows.layout.blocks(error, self.walk.tolerance * scale)
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
        begin, end = float(tau), float(tau) + float(size)
        self.see(state, begin, end if end < 1 - _SMALLEST else torch.inf)
        self.charge(end)

    def see(self, state: Tensor, begin: float, end: float) -> None:
        """Note the observations between two places of tau, from the state at the first of them."""
        here = (self.place <= end).nonzero()[:, 0]
        if not len(here):
            return
        later = (self.place > end).nonzero()[:, 0]
        row, point = self.row[here], self.point[here]
        self.row, self.point, self.place = self.row[later], self.point[later], self.place[later]
        self.walk.sights.append(
            Sight(
                state[:, :, row],
                None if self.way.rate is None else self.way.rate[:, :, row],
                row,
                point,
                self.event[row],
                wide(self.way.time + self.way.length * begin, row),
            )
        )

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
