"""The rows of one solve: draws and subjects in one axis, their parameters, and what happens to them at each point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import broadcast
from nlmegen.structure.packed import Layout, at_rows, flattened
from nlmegen.structure.timeline import Point, Timeline

# Status of a row
OK, TOO_MANY_STEPS, STEP_TOO_SMALL, NOT_FINITE = range(4)

Parameters = Callable[[int], Mapping[str, Number]]


class Dynamics(Protocol):
    """The equations of a page: what `nlmegen.structure.system.System` offers."""

    @property
    def compartments(self) -> Sequence[str]:
        """Names of the compartments, in order."""

    def rates(self, t: Number, y: Sequence[Number], p: Mapping[str, Number]) -> list[Number]:
        """Time derivatives of the amounts."""

    def initial(self, p: Mapping[str, Number]) -> list[Number]:
        """Amounts at the start."""


class Rows:
    """M = draws x subjects rows in one axis, in the order of `[*draw, subject]`.

    Attributes:
        system: the equations.
        shape: `[*draw, subject]`.
        layout: how amounts are packed.
        count: M.
        points: K.
        time: Number `[row, point]`.
        length: Number `[row, point - 1]`, the time from each point to the next, 0 at a reset and in the padding.
        used: `[row, point - 1]`, whether the way to the next point exists (no reset, no padding).
        kind: `[row, point]`; compartment, slot, amount likewise.
        last: `[row]`, the number of points, without padding.
        n_slots: columns of observations.
    """

    def __init__(self, system: Dynamics, p: Parameters, timeline: Timeline) -> None:
        self.system, self.n_slots = system, timeline.n_slots
        self.points = timeline.kind.shape[-1]
        given = [p(k) for k in range(self.points)] or [p(0)]
        same = all(x is given[0] for x in given)
        given = given[:1] if same else given
        numbers = [x for mapping in given for x in mapping.values()]
        lines = [timeline.time, timeline.amount]
        self.shape = torch.Size(broadcast(*(x.shape[:-1] for x in [*numbers, *lines])))
        self.layout = Layout.of([*lines, *numbers])
        self.count = self.shape.numel()
        self._given = [{n: flattened(x, self.shape) for n, x in mapping.items()} for mapping in given]

        def whole(x: Tensor) -> Tensor:
            return x.expand(self.shape + x.shape[-1:]).reshape(self.count, x.shape[-1])

        every = torch.arange(self.count, device=self.layout.device)
        self.time = wide(flattened(timeline.time, self.shape), every)
        self.amount = wide(flattened(timeline.amount, self.shape), every)
        self.kind, self.compartment, self.slot = (
            whole(x) for x in (timeline.kind, timeline.compartment, timeline.slot)
        )
        last = whole(timeline.count.unsqueeze(-1))
        position = torch.arange(1, self.points, device=self.layout.device)
        self.used = (position < last) & (self.kind[:, 1:] != Point.RESET)
        gap = self.time[:, 1:] - self.time[:, :-1]
        ahead = self.used & (value_of(gap) >= 0)
        self.length: Number = torch.where(ahead, gap, torch.zeros((), dtype=self.layout.dtype))  # type: ignore[arg-type]
        inside = torch.arange(self.points, device=self.layout.device) < last
        self.kind = torch.where(inside, self.kind, int(Point.MARK))
        self.slot = torch.where(inside, self.slot, -1)
        self.last = last[:, 0]
        self.infused = bool((self.kind == Point.RATE).any())

    def select(self, index: Tensor) -> Rows:
        """The rows in `index`, with the shape `[len(index)]`."""
        part = object.__new__(Rows)
        part.__dict__.update({name: x for name, x in self.__dict__.items() if name != "plain"})
        part.count, part.shape = len(index), torch.Size((len(index),))
        part._given = [{n: at_rows(x, index) for n, x in mapping.items()} for mapping in self._given]
        for name in ("time", "amount", "length"):
            setattr(part, name, wide(getattr(self, name), index))
        for name in ("kind", "compartment", "slot", "used", "last"):
            setattr(part, name, getattr(self, name)[index])
        return part

    @cached_property
    def plain(self) -> Rows:
        """The same rows without derivatives."""
        part = object.__new__(Rows)
        part.__dict__.update(self.__dict__)
        part.layout = Layout(0, 0, self.layout.dtype, self.layout.device)
        part._given = [{n: _bare(x) for n, x in mapping.items()} for mapping in self._given]
        part.time, part.amount, part.length = _bare(self.time), _bare(self.amount), _bare(self.length)
        return part

    @property
    def moving(self) -> bool:
        """Whether the time between points carries derivatives."""
        return isinstance(self.length, Taylor)

    @property
    def varying(self) -> bool:
        """Whether the parameters change from point to point."""
        return len(self._given) > 1

    def parameters(self, k: int) -> Mapping[str, Number]:
        """Parameters in force after point `k`, numbers `[row or 1, 1]`."""
        return self._given[k if len(self._given) > 1 else 0]

    def table(self, points: int) -> Mapping[str, Number]:
        """Parameters after the first points, numbers `[row or 1, 1 or points]`."""
        if not self.varying:
            return self._given[0]
        every = torch.arange(self.count, device=self.layout.device)
        return {
            name: torch.cat([wide(x[name], every) for x in self._given[:points]], -1)  # type: ignore[misc]
            for name in self._given[0]
        }

    def parameters_of(self, point: Tensor, index: Tensor) -> Mapping[str, Number]:
        """Parameters of the rows `index`, each after its own point."""
        if len(self._given) == 1:
            return {n: at_rows(x, index) for n, x in self._given[0].items()}
        return {n: pick(x, index, point) for n, x in self.table(self.points).items()}

    def events(self) -> tuple[Tensor, Tensor]:
        """The points at which something happens, those of each row in order.

        Returns:
            `[row, event]` the points, and the one that follows each, or the number of points where none does; both are
            that number where a row has no more events.
        """
        position = torch.arange(self.points, device=self.layout.device)
        happens = (self.kind != Point.OBSERVE) & (self.kind != Point.MARK)
        if self.varying:
            # where points move, a segment's points and those of the next may come in any order
            happens = happens | self.moving | (self.kind == Point.MARK)
        happens = (happens | (position == 0)) & (position < self.last.unsqueeze(-1))
        found = torch.where(happens, position, self.last.unsqueeze(-1)).sort(-1).values
        found = torch.cat((found, self.last.unsqueeze(-1)), -1)[:, : int(happens.sum(-1).amax()) + 1]
        return found[:, :-1], found[:, 1:]

    def reached(self, after: Tensor) -> Tensor:
        """The last point on the way to the points `after [row]`: these, or those before a reset or the end."""
        point = after.clamp(max=self.points - 1).unsqueeze(-1)
        on = (after < self.last) & (self.kind.gather(-1, point)[:, 0] != Point.RESET)
        return torch.where(on, after, (after - 1).clamp(min=0))

    def observed(self, event: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and points of the observations from points `event [row]` to before the points `after`."""
        position = torch.arange(self.points, device=self.layout.device)
        inside = (position >= event.unsqueeze(-1)) & (position < after.unsqueeze(-1))
        row, point = ((self.slot >= 0) & inside).nonzero().unbind(1)
        return row, point

    def finite(self) -> Tensor:
        """`[row]`, whether parameters, times and amounts are finite, derivatives included."""
        fine = torch.ones(self.count, dtype=torch.bool, device=self.layout.device)
        for x in [self.time, self.amount, *(x for mapping in self._given for x in mapping.values())]:
            parts = x.full() if isinstance(x, Taylor) else (x,)
            for part in parts:
                if part is not None:
                    fine = fine & part.detach().isfinite().reshape(-1, *part.shape[-2:]).all(0).all(-1)
        return fine

    def start(self, p: Mapping[str, Number], count: int) -> Tensor:
        """initial(p), packed `[component, amount, row]`."""
        return self.layout.pack(self.system.initial(p), count)

    def change(
        self, state: Tensor, rate: Tensor | None, index: Tensor, point: Tensor, p: Mapping[str, Number]
    ) -> tuple[Tensor, Tensor | None]:
        """What happens to rows at their points.

        Args:
            state: packed amounts `[component, amount, row]` of the rows `index`.
            rate: packed infusion rates, likewise, or None when the solve has no infusions.
            index: `[n]` which rows these are.
            point: `[n]` the point of each.
            p: the parameters in force after these points.

        Returns:
            Amounts and rates after the points.
        """
        kind = self.kind[index, point]
        if bool(((kind == Point.OBSERVE) | (kind == Point.MARK)).all()):
            return state, rate
        count = state.shape[-1]
        compartments = torch.arange(state.shape[1], device=state.device).unsqueeze(-1)
        here = self.compartment[index, point] == compartments
        amount = self.layout.pack([pick(self.amount, index, point)], count)
        state = state + torch.where((kind == Point.BOLUS) & here, amount, 0.0)
        if rate is not None:
            rate = torch.where((kind == Point.RATE) & here, amount, rate)
        off = kind == Point.ZERO
        if bool(off.any()):
            state = torch.where(off & here, 0.0, state)
        reset = kind == Point.RESET
        if bool(reset.any()):
            state = torch.where(reset, self.start(p, count), state)
            rate = None if rate is None else torch.where(reset, 0.0, rate)
        return state, rate

    def collect(self, seen: Sequence[tuple[Tensor, Tensor, Tensor]], fine: Tensor) -> list[Number]:
        """The amounts at the observations, from what was seen on the way.

        Args:
            seen: packed states `[component, amount, n]` with the rows and slots of each `[n]`.
            fine: `[row]`, false where the solve failed: NaN there.

        Returns:
            For each compartment `[row, T]`.
        """
        size = (self.layout.components, len(self.system.compartments))
        flat = torch.zeros((*size, self.count * self.n_slots), dtype=self.layout.dtype)
        flat = flat.to(self.layout.device)
        if seen:
            place = torch.cat([rows * self.n_slots + slots for _, rows, slots in seen])
            flat = flat.index_copy(2, place, torch.cat([state for state, _, _ in seen], -1))
        table = flat.reshape((*size, self.count, self.n_slots))
        if not bool(fine.all()):
            table = torch.where(fine.unsqueeze(-1), table, torch.nan)
        return [_flat(x) for x in self.layout.unpack(table)]


def _bare(x: Number) -> Tensor:
    return cast(Tensor, value_of(x)).detach()


def _flat(x: Number) -> Number:
    """`x` without its last axis, of length one."""
    return x.squeeze(-1)


def pick(x: Number, index: Tensor, point: Tensor) -> Number:
    """Entries (index, point) of a number `[row, point]`, as `[n, 1]`."""
    if not isinstance(x, Taylor):
        return x[index, point].unsqueeze(-1)
    value, jac, hess = x.full()
    return Taylor(
        value[index, point].unsqueeze(-1),
        jac[:, index, point].unsqueeze(-1),
        None if hess is None else hess[:, :, index, point].unsqueeze(-1),
        x.order,
    )


def wide(x: Number, index: Tensor) -> Number:
    """Rows of `x [row or 1, n]`, never shared."""
    if isinstance(x, Taylor):
        value, jac, hess = x.full()
        x = Taylor(value, jac, hess, x.order)
        if x.shape[0] > 1:
            return at_rows(x, index)
        n = len(index)
        return Taylor(
            value.expand(n, -1),
            jac.expand(-1, n, -1),
            None if hess is None else hess.expand(-1, -1, n, -1),
            x.order,
        )
    return x.expand(len(index), -1) if x.shape[0] == 1 else x.index_select(0, index)
