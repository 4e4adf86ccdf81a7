"""Steady states of any page: the amounts at which one dosing interval leads back to where it began.

With F(x, p) the amounts one interval after x, the dose that falls into it given, a steady state is x = F(x, p). It is
looked for by a few sweeps x <- F(x, p) from initial(p), the endogenous state of a system with a baseline, and then by
Newton's method with the sensitivity of F in x, which a solver gives. Where nothing settles (more is given than can be
eliminated) the amounts are NaN.

Derivatives come by the same solver in Taylor arithmetic. With M = (1 - dF/dx)^-1 at the steady state, a fixed matrix,

    x <- x + M [F(x, p) - x]

makes one more order of derivatives exact each time, whatever they were before: those in p that are carried forward, and
with a graph attached those of reverse mode.

An infusion without end has the stationary point of dy/dt = f(y, p) + rate instead, found by implicit Euler steps that
grow without bound, which is Newton's method in the end.

Kelley & Keyes, SIAM J. Numer. Anal. 35 (1998), doi:10.1137/S0036142996304796 (the growing steps).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import broadcast, each, order_of
from nlmegen.structure.lowering import Points, Recurring
from nlmegen.structure.packed import at_rows, flattened
from nlmegen.structure.points import PADDING, Point
from nlmegen.structure.rows import Dynamics, wide
from nlmegen.structure.timeline import Timeline

Flow = Callable[[Mapping[str, Number], Sequence[Number], Timeline], list[Number]]
"""From individual parameters `[row or 1, 1]`, amounts at the start `[row, 1]` and timelines of one observation to the
amounts there, `[row, 1]`; NaN where it cannot be solved."""

SWEEPS, NEWTON, EULER = 2, 40, 120
FIRST, GROWTH = 1e-2, 3.0  # first implicit step, as a share of the shortest time constant; growth of the next
LARGEST = 1e7  # amounts beyond so many doses (or baselines) are on their way to infinity
MOMENTS = (0.13, 0.37, 0.71)  # of the interval, at which rates that depend on time are looked at
TRACE = 1e-9  # share of the largest amount below which an amount has no digits to keep


def steady_state(
    system: Dynamics,
    flow: Flow,
    finer: Flow,
    p: Mapping[str, Number],
    doses: Recurring,
    tolerance: float,
    attached: bool = False,
    linear: bool = False,
) -> tuple[list[Number], Tensor]:
    """Amounts at the time of the record, from doses that have been given at their interval for ever.

    Args:
        system: the equations.
        flow: a solver of them over one interval.
        finer: a more accurate one: an error of one interval is that of a steady state many times over.
        p: individual parameters `[*draw, n or 1, 1]`, tensors or Taylor numbers.
        doses: n steady states.
        tolerance: of a last Newton step, over the amounts; a little more than the solver errs by.
        attached: whether reverse mode is to pass through.
        linear: whether the equations are, and `flow` exact: then one Newton step is.

    Returns:
        For each compartment `[*draw, n, 1]`, NaN where there is no steady state; and where there is one, `[*draw, n]`.
    """
    given = (doses.amount, doses.rate, doses.duration, doses.lag)
    shape = torch.Size(broadcast(*(x.shape[:-1] for x in (*p.values(), *given, doses.time))))
    rows = _Rows.of(p, doses, shape)
    found: list[list[Number]] = []
    index: list[Tensor] = []
    fine = torch.zeros(rows.count, dtype=torch.bool, device=rows.time.device)
    for problem, which in ((_Cycle, rows.interval[:, 0] > 0), (_Stationary, rows.interval[:, 0] == 0)):
        here = which.nonzero()[:, 0]
        if len(here):
            x, good = problem(system, flow, finer, rows.only(here), linear).solved(tolerance, attached)
            found.append(x)
            index.append(here)
            fine[here] = good
    if not index:
        nothing = torch.zeros((*shape, 1), dtype=torch.float64, device=rows.time.device)
        return [nothing for _ in system.compartments], fine.reshape(shape)
    place = torch.argsort(torch.cat(index))

    def whole(parts: Sequence[Number]) -> Number:
        joined = cast(Number, torch.cat(list(parts)))  # type: ignore[arg-type]
        return each(joined, lambda x, lead: x.index_select(lead, place).reshape(x.shape[:lead] + (*shape, 1)))

    return [whole(parts) for parts in zip(*found, strict=True)], fine.reshape(shape)


@torch.no_grad()
def recurs(system: Dynamics, p: Mapping[str, Number], doses: Recurring, x: Sequence[Number]) -> Tensor:
    """Whether rates that depend on time are the same one interval later, `[*draw, n]`: else nothing is steady."""
    amounts = [cast(Tensor, value_of(y)) for y in x]
    values = {name: cast(Tensor, value_of(y)) for name, y in p.items()}
    same = torch.ones_like(amounts[0], dtype=torch.bool)
    for share in MOMENTS:
        early = doses.time - share * doses.interval
        both = zip(
            system.rates(early, amounts, values),
            system.rates(early + doses.interval, amounts, values),
            strict=True,
        )
        for a, b in both:
            a, b = cast(Tensor, a), cast(Tensor, b)
            same = same & ((a - b).abs() <= 1e-9 * torch.maximum(a.abs(), b.abs()))
    return same[..., 0]


class _Rows:
    """Steady states of draws and records in one axis; numbers `[row, 1]`."""

    p: dict[str, Number]
    compartment: Tensor
    time: Tensor
    interval: Tensor
    amount: Number
    rate: Number
    duration: Number
    lag: Number

    @classmethod
    def of(cls, p: Mapping[str, Number], doses: Recurring, shape: torch.Size) -> _Rows:
        rows, every = cls(), torch.arange(shape.numel(), device=doses.time.device)
        rows.p = {name: wide(flattened(x, shape), every) for name, x in p.items()}
        for name in ("compartment", "time", "interval", "amount", "rate", "duration", "lag"):
            setattr(rows, name, wide(flattened(getattr(doses, name), shape), every))
        return rows

    @property
    def count(self) -> int:
        return self.time.shape[0]

    def _each(self, change: Callable[[Number], Number]) -> _Rows:
        part = _Rows()
        part.p = {name: change(x) for name, x in self.p.items()}
        for name in ("compartment", "time", "interval", "amount", "rate", "duration", "lag"):
            setattr(part, name, change(getattr(self, name)))
        return part

    def only(self, index: Tensor) -> _Rows:
        """The rows in `index`."""
        return self._each(lambda x: _at(x, index))

    def bare(self) -> _Rows:
        """Values alone."""
        return self._each(lambda x: cast(Tensor, value_of(x)).detach())

    def to_order(self, order: int) -> _Rows:
        """Derivatives up to an order."""

        def cut(x: Number) -> Number:
            if not isinstance(x, Taylor) or x.order <= order:
                return x
            return x.value if order == 0 else Taylor(x.value, x.jac)

        return self._each(cut)

    @property
    def order(self) -> int:
        return order_of(self.amount, self.rate, self.duration, self.lag, *self.p.values())

    def cycle(self, compartments: int) -> Timeline:
        """One interval up to the record: infusions that still run, the dose at its lag, an observation at the end."""
        begin, zero = self.time - self.interval, torch.zeros_like(self.time)
        infused = cast(Tensor, value_of(self.duration)).detach() > 0
        ahead = cast(Tensor, value_of(self.lag + self.duration)).detach()
        inside = infused & (ahead < self.interval)
        first = begin + self.lag
        columns: list[tuple[Tensor | Point, Number, Number, Number]] = [
            (Point.MARK, begin, zero, zero),
            (torch.where(infused, PADDING, int(Point.BOLUS)), first, self.amount, zero),
            (torch.where(infused, int(Point.RATE), PADDING), first, zero, self.rate),
            (torch.where(inside, int(Point.RATE), PADDING), first + self.duration, zero, -self.rate),
        ]
        before = torch.where(infused, torch.ceil(ahead / self.interval) - 1, 0.0)
        for k in range(1, int(before.amax()) + 1):
            kind = torch.where(before >= k, int(Point.RATE), PADDING)
            end = begin + (self.lag + self.duration - k * self.interval)
            columns += [(kind, begin, zero, self.rate), (kind, end, zero, -self.rate)]
        columns.append((Point.OBSERVE, self.time, zero, zero))
        kinds = [
            x if isinstance(x, Tensor) else torch.full_like(self.compartment, int(x)) for x, *_ in columns
        ]
        nothing = torch.zeros(self.count, len(columns), dtype=torch.int64, device=self.time.device)
        slot = torch.full_like(nothing, -1)
        slot[:, -1] = 0
        points: Points = {
            "time": _cat([x for _, x, _, _ in columns]),
            "kind": torch.cat(kinds, -1),
            "compartment": self.compartment.expand(nothing.shape),
            "amount": _cat([x for _, _, x, _ in columns]),
            "change": _cat([x for _, _, _, x in columns]),
            "slot": slot,
            "segment": nothing,
            "block": nothing,
        }
        return Timeline.assembled(points, torch.arange(len(columns), device=slot.device), compartments, 1)


class _Problem:
    """What is looked for, and how it is made more exact: `x - M residual(x)` has one more order of derivatives.

    Args:
        system: the equations.
        flow: a solver of them, to look with; finer: the one whose steady state is taken.
        rows: the steady states.
        linear: whether the equations are, and `flow` exact.
    """

    def __init__(self, system: Dynamics, flow: Flow, finer: Flow, rows: _Rows, linear: bool) -> None:
        self.system, self.flow, self.finer, self.rows, self.linear = system, flow, finer, rows, linear
        self.count = len(system.compartments)

    def search(self, rows: _Rows, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """From values `x [row, D]`: those at the steady state, the matrices M `[row, D, D]`, and where it was found."""
        raise NotImplementedError

    def residual(self, rows: _Rows, x: Sequence[Number]) -> list[Number]:
        """What M is multiplied with; zero at the steady state."""
        raise NotImplementedError

    def solved(self, tolerance: float, attached: bool) -> tuple[list[Number], Tensor]:
        """Amounts `[row, 1]` with derivatives, and where there is a steady state."""
        with torch.no_grad():
            bare = self.rows.bare()
            begin = torch.cat([x.expand(bare.count, 1) for x in self.initial(bare)], -1)
            value, inverse, fine = self.search(bare, begin, tolerance)
            # rows without a steady state go along where they began
            value = torch.where(fine[:, None], value, begin)
            unit = torch.eye(self.count, dtype=value.dtype, device=value.device)
            inverse = torch.where(fine[:, None, None], inverse, unit)
        x: list[Number] = [value[:, k : k + 1] for k in range(self.count)]
        # values first, then one order of derivatives after the other
        for made in range(1 if self.linear else 0, self.rows.order + attached + 1):
            order = min(made, self.rows.order)
            x = [Taylor(y.value, y.jac, y.hess, order) if isinstance(y, Taylor) else y for y in x]
            over = self.residual(self.rows.to_order(order), x)
            x = [
                total + sum(inverse[:, i, j : j + 1] * r for j, r in enumerate(over))
                for i, total in enumerate(x)
            ]
        gone = torch.where(fine, 0.0, torch.nan)[:, None]
        return [y + gone for y in x], fine

    def initial(self, rows: _Rows) -> list[Number]:
        """Amounts at the start."""
        return self.system.initial(rows.p)

    def limit(self, rows: _Rows, *seen: Tensor) -> Tensor:
        """`[row]`, above which amounts are on their way to infinity."""
        dose = cast(Tensor, rows.amount).abs() + (cast(Tensor, rows.rate) * cast(Tensor, rows.duration)).abs()
        sizes = [dose[:, 0], *(x.abs().amax(-1) for x in seen)]
        return LARGEST * torch.stack(sizes).nan_to_num(nan=0.0).amax(0)


class _Cycle(_Problem):
    """Doses at an interval."""

    def search(self, rows: _Rows, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `_Problem`."""
        line = rows.cycle(self.count)
        for _ in range(0 if self.linear else SWEEPS):
            after = torch.cat(self.flow(rows.p, list(x.split(1, -1)), line), -1)  # type: ignore[arg-type, no-untyped-call]
            x = torch.where(after.isfinite(), after, x)
        limit = self.limit(rows, x)
        tolerance = torch.inf if self.linear else tolerance
        unit = torch.eye(self.count, dtype=x.dtype, device=x.device)
        inverse, fine = unit.expand(len(x), -1, -1).clone(), torch.zeros(len(x), dtype=torch.bool)
        x, left, rest = x.clone(), torch.arange(len(x), device=x.device), rows
        for _ in range(NEWTON):
            if not len(left):
                break
            if len(left) < len(rest.time):
                rest = rows.only(left)
                line = rest.cycle(self.count)
            now = x[left]
            after, slope = _parted(self.flow(rest.p, Taylor.seed(now, 1), line), self.count)
            matrix, _ = torch.linalg.inv_ex(unit - slope)
            change = _times(matrix, after - now)
            new = now + change
            size = torch.maximum(new.abs(), TRACE * new.abs().amax(-1, keepdim=True))
            good = (change.abs() <= tolerance * size).all(-1) & new.isfinite().all(-1)
            # a step below zero is too long: a sweep instead
            below = ((new < 0) & (now >= 0) & (after >= 0)).any(-1) | ~new.isfinite().all(-1)
            x[left] = torch.where((below & ~good)[:, None], after, new)
            inverse[left] = matrix
            fine[left] = good
            lost = ~after.isfinite().all(-1) | ~(x[left].abs().amax(-1) <= limit[left])
            fine[left[lost]] = False
            left = left[~good & ~lost]
        return x, inverse, fine

    def residual(self, rows: _Rows, x: Sequence[Number]) -> list[Number]:
        """F(x) - x."""
        after = self.finer(rows.p, x, rows.cycle(self.count))
        return [y - z for y, z in zip(after, x, strict=True)]


class _Stationary(_Problem):
    """An infusion without end."""

    def search(self, rows: _Rows, x: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """See `_Problem`."""
        unit = torch.eye(self.count, dtype=x.dtype, device=x.device)
        speed, slope = _parted(self.residual(rows, Taylor.seed(x, 1)), self.count)
        fastest = slope.abs().sum(-1).amax(-1)
        step = FIRST / torch.where(fastest > 0, fastest, 1.0)
        # an amount as large as flows in while the slowest dies out may be far above anything seen so far
        slowest = torch.where(
            slope.diagonal(dim1=-2, dim2=-1) != 0, slope.diagonal(dim1=-2, dim2=-1).abs(), torch.inf
        )
        content = cast(Tensor, rows.rate)[:, 0].abs() / slowest.amin(-1).clamp(min=1e-300)
        limit = self.limit(rows, x, torch.where(content.isfinite(), content, 0.0)[:, None])
        fine = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        lost = ~speed.isfinite().all(-1)
        for _ in range(EULER):
            change = torch.linalg.solve_ex(unit / step[:, None, None] - slope, speed.unsqueeze(-1)).result[
                ..., 0
            ]
            new = x + change
            bad = ~new.isfinite().all(-1) | ((new < 0) & (x >= 0)).any(-1)
            size = torch.maximum(new.abs(), TRACE * new.abs().amax(-1, keepdim=True))
            still = (change.abs() <= 1e-12 * size).all(-1) & (step * fastest > 1e9)
            x = torch.where((bad | lost | fine)[:, None], x, new)
            fine = fine | (still & ~bad & ~lost)
            lost = lost | ~(x.abs().amax(-1) <= limit)
            step = torch.where(bad, step / GROWTH**2, step * GROWTH).clamp(max=1e30)
            speed, slope = _parted(self.residual(rows, Taylor.seed(x, 1)), self.count)
            if bool((fine | lost).all()):
                break
        inverse, info = torch.linalg.inv_ex(-slope)
        fine = fine & ~lost & (info == 0) & inverse.isfinite().all(-1).all(-1)
        return x, inverse, fine

    def residual(self, rows: _Rows, x: Sequence[Number]) -> list[Number]:
        """f(x) + rate."""
        speed = self.system.rates(rows.time, x, rows.p)
        return [f + (rows.compartment == i).to(rows.time.dtype) * rows.rate for i, f in enumerate(speed)]


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    """`[row, D]`, each row the same to the last bit whoever else is there."""
    total = matrix[..., 0] * x[:, :1]
    for j in range(1, x.shape[-1]):
        total = total + matrix[..., j] * x[:, j : j + 1]
    return total


def _parted(x: Sequence[Number], count: int) -> tuple[Tensor, Tensor]:
    """Values `[row, D]` and Jacobians `[row, D, direction]` of D numbers `[row, 1]`."""
    rows = max(y.shape[0] for y in x)
    values = torch.cat([cast(Tensor, value_of(y)).expand(rows, 1) for y in x], -1)
    jacs = [
        y.jac.expand(count, rows, 1)[..., 0] if isinstance(y, Taylor) else values.new_zeros(count, rows)
        for y in x
    ]
    return values, torch.stack(jacs).permute(2, 0, 1)


def _at(x: Number, index: Tensor) -> Number:
    return at_rows(x, index) if isinstance(x, Taylor) else x[index]


def _cat(parts: Sequence[Number]) -> Number:
    return cast(Number, torch.cat(list(parts), -1))  # type: ignore[arg-type]
