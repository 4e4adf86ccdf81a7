"""Stiff ODE pages in torch: Radau IIA of order 5, all rows abreast, each with its own steps.

With the three stages Z = y(tau_i) - y_0 of a step of length h in rescaled time, the method solves

    A^-1 Z / h = G(tau_i, y_0 + Z) ,        G = L [f(t, y, p) + rate]

by simplified Newton iteration on the values: the matrix is that at the start of the step. Given the values, the stages
of the sensitivities solve linear equations, whose residual is a Taylor number: one Newton step with the exact matrix
of the stages for each order of derivatives. The method is stiffly accurate and L-stable. Its error is estimated by an
embedded method of order 3, which is held to 0.1 rtol^(2/3) as in Hairer and Wanner's code: the solution of order 5 then
has errors of the size of rtol.

Reverse mode: the steps and their stages are found without a graph. Newton steps with the exact matrix of the stages,
one more than the order of the Taylor numbers, are then attached to them: they change nothing but make the derivative
in every parameter and weight that of the implicit function.

Hairer & Wanner, Solving Ordinary Differential Equations II, 2nd ed. (1996), section IV.8,
doi:10.1007/978-3-642-05221-7.
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.leg import Leg, Record
from nlmegen.structure.packed import parted
from nlmegen.structure.radau import Radau, applied, mixed
from nlmegen.structure.rows import (
    NOT_FINITE,
    OK,
    STEP_TOO_SMALL,
    TOO_MANY_STEPS,
    Dynamics,
    Parameters,
    Rows,
    pick,
)
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Point, Timeline

_SMALLEST = 1e-13  # step in tau
_TRACE = 1e-12  # share of the largest amount of a row below which an amount has no digits to keep
_ROUNDING = 1e-15  # share of a row's largest amount below which the iteration moves nothing
_ITERATIONS, _CONVERGED = 8, 1e-4  # of Newton; error of the stages as a share of the tolerance


def stiff(system: Dynamics, p: Parameters, timeline: Timeline, solver: Solver) -> tuple[list[Number], Tensor]:
    """Amounts at the observations by an implicit method, with derivatives, for any page.

    Arguments and results are those of `nlmegen.structure.ode.explicit`.
    """
    rows = Rows(system, p, timeline)
    status = torch.where(rows.finite(), OK, NOT_FINITE)
    left = (status == OK).nonzero()[:, 0]
    sub = rows if len(left) == rows.count else rows.select(left)
    attached = torch.is_grad_enabled() and len(left) > 0 and _attached(sub)
    march = _March(sub, solver)
    with torch.no_grad():
        march.run()
    status[left] = march.status
    seen = march.seen
    if attached:
        good = (march.status == OK).nonzero()[:, 0]
        number = torch.cumsum(march.status == OK, 0) - 1
        replay = _March(sub.select(good), solver)
        replay.attach([record.only(march.status == OK, number) for record in march.tape])
        seen, left = replay.seen, left[good]
    table = rows.collect([(state, left[index], slots) for state, index, slots in seen], status == OK)
    shaped = [parted(x, lambda y, lead: y.reshape(y.shape[:lead] + rows.shape + y.shape[-1:])) for x in table]
    return shaped, status.reshape(rows.shape)


def _attached(rows: Rows) -> bool:
    """Whether reverse mode is to pass through the solve."""
    state = rows.start(rows.parameters(0), rows.count)
    every = torch.arange(rows.count, device=state.device)
    state, _ = rows.change(state, None, every, torch.zeros_like(every), rows.parameters(0))
    amount = rows.amount.value if isinstance(rows.amount, Taylor) else rows.amount
    f = rows.system.rates(rows.time[:, :1], rows.layout.unpack(state), rows.parameters(0))
    slope = rows.layout.pack(f, rows.count)
    return bool(state.requires_grad or slope.requires_grad or amount.requires_grad)


class _March:
    """The state of all rows, each at its own place in its timeline.

    Attributes:
        state: packed amounts `[component, amount, row]`; rate: running infusions likewise, or None.
        point: `[row]` the point last passed; tau: the place on the way to the next.
        step: `[row]` the next step in time.
        status: `[row]`.
        seen: states at observations, with their rows and slots.
        tape: what happened, in order.
    """

    def __init__(self, rows: Rows, solver: Solver) -> None:
        self.rows, self.solver = rows, solver
        # the estimate is of order 3 and the method of order 5: the tolerance on the one that means rtol for the other
        self.tolerance = 0.1 * solver.rtol ** (2 / 3)
        self.method = Radau.build(rows.layout.dtype, rows.layout.device)
        self.every = torch.arange(rows.count, device=rows.layout.device)
        self.point = torch.zeros_like(self.every)
        self.status = torch.zeros_like(self.every)
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.tape: list[Record] = []

    @cached_property
    def span(self) -> Tensor:
        """`[row, point - 1]` durations as plain numbers."""
        return cast(Tensor, value_of(self.rows.length)).detach()

    # -- both ways --------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Every row at its first point."""
        rows = self.rows
        self.state = rows.start(rows.parameters(0), rows.count)
        self.rate = torch.zeros_like(self.state) if rows.infused else None

    def arrive(self, index: Tensor, point: Tensor) -> Tensor:
        """Rows `index` reach their points; returns which of them a point changed."""
        rows = self.rows
        self.tape.append(Record(index, point))
        state = self.state[:, :, index]
        slot = rows.slot[index, point]
        looking = (slot >= 0).nonzero()[:, 0]
        if len(looking):
            self.seen.append((state[:, :, looking], index[looking], slot[looking]))
        rate = None if self.rate is None else self.rate[:, :, index]
        p = rows.parameters_of(point, index)
        new, rate = rows.change(state, rate, index, point, p)
        if new is state:
            return torch.zeros_like(index, dtype=torch.bool)
        self.state = self.state.index_copy(2, index, new)
        if self.rate is not None and rate is not None:
            self.rate = self.rate.index_copy(2, index, rate)
        kind = rows.kind[index, point]
        return (kind != Point.OBSERVE) & (kind != Point.MARK)

    def leg(self, index: Tensor, point: Tensor, plain: bool = False) -> Leg:
        """The way of rows `index` from their points to the next; `plain` without derivatives."""
        rows, rate = self.rows, self.rate
        if plain:
            rows, rate = rows.plain, None if rate is None else rate[:1].detach()
        return Leg(
            rows,
            rows.parameters_of(point, index),
            pick(rows.time, index, point),
            pick(rows.length, index, point),
            None if rate is None else rate[:, :, index],
        )

    # -- with a graph -----------------------------------------------------------------------------------------------
    def attach(self, tape: list[Record]) -> None:
        """Repeat what happened, with a graph."""
        self.begin()
        for record in tape:
            if record.stages is None:
                self.arrive(record.which, record.point)
            elif len(record.which):
                self.repeat(record)

    def repeat(self, record: Record) -> None:
        """A step with known stages, corrected by attached Newton steps with the exact matrix."""
        method, layout = self.method, self.rows.layout
        stages, size, tau = (cast(Tensor, x) for x in (record.stages, record.size, record.tau))
        leg = self.leg(record.which, record.point)
        start = self.state[:, :, record.which].unsqueeze(2)
        clock = tau + method.c.unsqueeze(-1) * size
        with torch.no_grad():
            whole = self.method.whole(leg.matrix(clock, (start + stages)[0]), size)
        stages = self.corrected(leg, clock, size, start, stages, whole, layout.order + 1)
        self.state = self.state.index_copy(2, record.which, start[:, :, 0] + stages[:, :, 2])

    def corrected(
        self, leg: Leg, clock: Tensor, size: Tensor, start: Tensor, stages: Tensor, whole: Tensor, times: int
    ) -> Tensor:
        """Stages `[component, amount, 3, row]` after Newton steps with the exact matrix."""
        for _ in range(times):
            residual = leg.slope(clock, start + stages) - mixed(self.method.inverse, stages) / size
            c, d, _, n = residual.shape
            change = torch.linalg.solve_ex(whole, residual.permute(3, 2, 1, 0).reshape(n, 3 * d, c)).result
            stages = stages + change.reshape(n, 3, d, c).permute(3, 2, 1, 0)
        return stages

    # -- without ----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Take all rows to their last points."""
        rows, dtype = self.rows, self.rows.layout.dtype
        self.begin()
        shape = self.state.shape
        self.peak = self.state[0].abs()
        self.tau = torch.zeros(rows.count, dtype=dtype, device=self.state.device)
        self.step = torch.full_like(self.tau, torch.inf)
        self.taken = torch.zeros_like(self.tau)
        # the last accepted step, to foretell the stages of the next: none yet
        self.past = torch.zeros((1, shape[1], 3, shape[2]), dtype=dtype, device=self.state.device)
        self.past_size = torch.zeros_like(self.tau)
        self.past_error = torch.ones_like(self.tau)
        # how much further the iteration was from its end than its last change
        self.beyond = torch.full_like(self.tau, 1e2)
        self.fresh = torch.ones_like(self.every, dtype=torch.bool)
        self.pass_points(self.every, torch.zeros_like(self.every))
        while True:
            index = ((self.status == OK) & (self.point < rows.points - 1)).nonzero()[:, 0]
            if not len(index):
                return
            self.advance(index)

    def pass_points(self, index: Tensor, point: Tensor) -> None:
        """Rows arrive at points, and at all that follow at the same time."""
        rows = self.rows
        while len(index):
            changed = self.arrive(index, point)
            self.point[index], self.tau[index] = point, 0.0
            state = self.state[:, :, index]
            self.fail(index, ~_finite(state), NOT_FINITE)
            self.peak[:, index] = torch.maximum(self.peak[:, index], state[0].abs())
            self.fresh[index] |= changed
            if rows.varying:
                self.past_size[index] = 0.0
            more = point < rows.points - 1
            index, point = index[more], point[more]
            here = rows.used[index, point] if rows.moving else self.span[index, point] > 0
            index, point = index[~here], point[~here] + 1

    def fail(self, index: Tensor, which: Tensor, why: int) -> None:
        """Take out rows."""
        self.status[index[which]] = why

    def advance(self, index: Tensor) -> None:
        """Try one step of the rows `index`."""
        method, solver, layout = self.method, self.solver, self.rows.layout
        point, tau = self.point[index], self.tau[index]
        leg = self.leg(index, point)
        span = self.span[index, point]
        start = self.state[:, :, index]
        slope = leg.slope(tau, start)
        bad = ~_finite(slope)
        self.fail(index, bad, NOT_FINITE)
        least = _TRACE * torch.maximum(self.peak[:, index], slope[0].abs()).amax(0) + 1e-300
        floor = torch.maximum(solver.floor * self.peak[:, index], least)
        step = self.step[index]
        fresh = self.fresh[index]
        if bool(fresh.any()):
            guess = self.guess(start[0], slope[0], floor) * span
            # a way of no length (a dose just when something is observed) says nothing of the next
            step = torch.where(fresh & (span > 0), torch.minimum(step, guess), step)
        ahead = 1.0 - tau
        size = torch.where(span > 0, step / span, 1.0)
        # the rest of the way at once, or in two equal steps
        size = torch.where(size >= 0.98 * ahead, ahead, torch.where(size > 0.6 * ahead, 0.55 * ahead, size))
        plain = self.leg(index, point, plain=True) if layout.order else leg
        matrix = plain.matrix(tau, start[0])
        real, pair = method.inverses(matrix, size)
        time_size = size * span
        clock = tau + method.c.unsqueeze(-1) * size
        w = time_size / self.past_size[index]
        stages = method.foretold(self.past[..., index], torch.where(fresh, torch.inf, w))
        stages, converged, count = self.newton(
            plain, index, clock, size, start[:1], stages, real, pair, floor
        )
        if layout.order:
            # given the values, derivatives solve linear equations, one order after the other
            whole = self.method.whole(plain.matrix(clock, (start[:1].unsqueeze(2) + stages)[0]), size)
            rest = stages.new_zeros((layout.components - 1, *stages.shape[1:]))
            stages = torch.cat((stages, rest))
            stages = self.corrected(leg, clock, size, start.unsqueeze(2), stages, whole, layout.order)
        new = start + stages[:, :, 2]
        scale = self.tolerance * self.scale(floor, start, new)
        drift = torch.einsum("j,cdjn->cdn", method.error, stages) / size
        error = applied(real, slope + drift)
        ratio = layout.blocks(error, scale)
        late = ((ratio > 1) & converged).nonzero()[:, 0]
        if len(late):
            # filtered once more: the first estimate is too large where a stiff component has not died out
            leg = self.leg(index[late], point[late])
            again = leg.slope(tau[late], (start + error)[..., late]) + drift[..., late]
            again = layout.blocks(applied(real[late], again), scale[..., late])
            ratio[late] = torch.where(again.isfinite(), again, ratio[late])
        good = converged & (ratio <= 1) & _finite(new) & ~bad
        self.taken[index] += 1
        self.settle(index, good, converged, ratio, time_size, step, count)
        self.fail(index, ~good & (size <= _SMALLEST) & ~bad, STEP_TOO_SMALL)
        self.fail(index, ~good & (size <= _SMALLEST) & ~ratio.isfinite(), NOT_FINITE)
        self.fail(index, self.taken[index] > solver.max_steps, TOO_MANY_STEPS)
        good = good & (self.status[index] == OK)
        kept = good.nonzero()[:, 0]
        if not len(kept):
            return
        rows_kept = index[kept]
        self.tape.append(Record(rows_kept, point[kept], tau[kept], size[kept], stages[..., kept]))
        self.state[:, :, rows_kept] = new[:, :, kept]
        self.peak[:, rows_kept] = torch.maximum(self.peak[:, rows_kept], new[0][:, kept].abs())
        self.past[..., rows_kept] = stages[:1][..., kept]
        self.past_size[rows_kept] = time_size[kept]
        self.fresh[rows_kept] = self.fresh[rows_kept] & (span[kept] <= 0)
        ends = size[kept] >= ahead[kept]
        self.tau[rows_kept] = tau[kept] + size[kept]
        self.pass_points(rows_kept[ends], point[kept][ends] + 1)

    def guess(self, value: Tensor, slope: Tensor, floor: Tensor) -> Tensor:
        """A first step in tau, from the speed of the amounts."""
        scale = torch.maximum(floor, value.abs())
        size, speed = ((x / scale).square().mean(0).sqrt() for x in (value, slope))
        return torch.where(speed > 0, torch.where(size > 0, 0.05 * size / speed, 1e-3 + 0 * size), 1.0)

    def scale(self, floor: Tensor, start: Tensor, new: Tensor) -> Tensor:
        """Scale of errors, without the tolerance: `[amount, row]`, or with the components in front."""
        size = torch.maximum(start.abs(), new.abs())
        scale = torch.maximum(size[0], floor)
        return torch.maximum(scale, size) if self.rows.layout.order else scale

    def newton(
        self,
        leg: Leg,
        index: Tensor,
        clock: Tensor,
        size: Tensor,
        start: Tensor,
        stages: Tensor,
        real: Tensor,
        pair: Tensor,
        floor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Simplified Newton iteration on the stages of the values.

        Returns:
            The stages, which rows converged, and after how many iterations.
        """
        method, layout = self.method, leg.rows.layout
        scale = self.tolerance * torch.maximum(start[0].abs(), floor)
        scale = torch.maximum(scale, _ROUNDING / _CONVERGED * self.peak[:, index].amax(0))
        start = start.unsqueeze(2)
        converged, lost = (torch.zeros_like(size, dtype=torch.bool) for _ in range(2))
        count, beyond = torch.zeros_like(size), self.beyond[index]
        before = torch.full_like(size, torch.inf)
        for k in range(_ITERATIONS):
            residual = leg.slope(clock, start + stages) - mixed(method.inverse, stages) / size
            first = applied(real, torch.einsum("j,cdjn->cdn", method.real_in, residual))
            second = applied(pair, torch.einsum("j,cdjn->cdn", method.pair_in, residual.to(pair.dtype)))
            change = first.unsqueeze(2) * method.real_out[:, None]
            change = change + 2 * (second.unsqueeze(2) * method.pair_out[:, None]).real
            stages = torch.where(converged, stages, stages + change)
            moved = layout.blocks(change, scale.unsqueeze(1)).amax(0)
            rate = moved / before
            if k:
                open_ = ~converged
                beyond = torch.where(open_, torch.where(rate < 1, rate / (1 - rate), torch.inf), beyond)
            left = beyond * moved
            count = count + (~converged).to(count.dtype)
            # once lost, always lost, or it would depend on the other rows how long one is given to recover
            converged = converged | (~lost & ((left <= _CONVERGED) | (moved == 0)))
            hopeless = rate ** (_ITERATIONS - 1 - k) * left > _CONVERGED
            lost = lost | (~converged & (~moved.isfinite() | (hopeless & (k > 0))))
            if bool((converged | lost).all()):
                break
            before = moved
        # the next step's first change is judged by how well this one went
        self.beyond[index] = torch.where(converged, beyond.clamp(1e-10, 1e2) ** 0.8, 1e2)
        return stages, converged, count

    def settle(
        self,
        index: Tensor,
        good: Tensor,
        converged: Tensor,
        ratio: Tensor,
        size: Tensor,
        wanted: Tensor,
        count: Tensor,
    ) -> None:
        """The next step of each row, from the error of this one."""
        safety = 0.9 * (2 * _ITERATIONS + 1) / (2 * _ITERATIONS + count)
        error = ratio.clamp(min=1e-8)
        factor = error**-0.25
        trend = self.past_size[index]
        steady = good & (trend > 0) & ~self.fresh[index]
        foreseen = factor * (size / trend) * (self.past_error[index] / error) ** 0.25
        factor = torch.where(steady, torch.minimum(factor, foreseen), factor)
        factor = (safety * factor).clamp(0.2, 8.0)
        factor = torch.where(converged, factor, 0.4)
        factor = torch.where(ratio.isfinite(), factor, 0.2)
        following = size * factor
        # a step cut short by a point tells little: what was wanted before still holds
        cut = good & (size < wanted) & (factor >= 1)
        following = torch.where(cut, torch.maximum(following, wanted), following)
        self.step[index] = torch.where(size > 0, following, wanted)
        self.past_error[index] = torch.where(good, error, self.past_error[index])


def _finite(state: Tensor) -> Tensor:
    return state.isfinite().all(0).all(0)
