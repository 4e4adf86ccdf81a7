"""What happens to each subject, point by point: what an ODE page is stepped along.

A schedule speaks of segments, which suits closed forms. Here its events and the observations are merged into one list
of points, in the order in which they act. The state starts as initial(p) at the first point; between points nothing
happens but the page's own dynamics under constant infusion rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.lowering import Points, Steady, blocks, lowered
from nlmegen.structure.points import PADDING, Moved, Point, at_segments, generations, order_of_points, totals
from nlmegen.structure.schedule import Schedule

__all__ = ["Moved", "Point", "Timeline", "at_segments"]


@dataclass(frozen=True, eq=False)
class Timeline:
    """The points of R rows (subjects; or draws of subjects where doses are modelled), padded to K.

    Time does not decrease except at a RESET, which starts afresh at its own time: the state is initial(p) again and
    all rates are zero. The time between two points is max(0, next - this).

    Attributes:
        time: `[*draw, R, K]`; a Taylor number where lags are modelled.
        kind: `[*draw, R, K]` int64, see `Point`: observe; add `amount`; set the infusion rate of a compartment to
            `amount`; reset; nothing (a MARK only bounds a segment); empty a compartment.
        compartment: `[*draw, R, K]` int64.
        amount: `[*draw, R, K]` the bolus, or the new total rate; a Taylor number where bioavailability is modelled.
        slot: `[*draw, R, K]` int64, the column of an observation, -1 at other points.
        segment: `[*draw, R, K]` int64, the schedule's segment that a point opens or lies in.
        count: `[*draw, R]` int64, the number of points; the rest is padding.
        n_slots: T, columns of observations.

    Example:
        >>> import pandas as pd
        >>> from nlmegen.data.population import Population
        >>> table = pd.DataFrame({"id": [1, 1], "time": [0.0, 2.0], "amt": [100.0, 0.0], "dv": [0.0, 5.0]})
        >>> line = Timeline.build(Schedule.build(Population.from_table(table), ("central",)))
        >>> line.kind.tolist(), line.time.tolist(), line.slot.tolist()
        ([[1, 0]], [[0.0, 2.0]], [[-1, 0]])
    """

    time: Number
    kind: Tensor
    compartment: Tensor
    amount: Number
    slot: Tensor
    segment: Tensor
    count: Tensor
    n_slots: int

    @property
    def modelled(self) -> bool:
        """Whether times or amounts carry derivatives."""
        return isinstance(self.time, Taylor) or isinstance(self.amount, Taylor)

    def select(self, index: Tensor) -> Timeline:
        """The timelines of the rows in `index [M]` (repeats allowed); not for modelled doses."""
        return replace(
            self,
            **{
                name: getattr(self, name)[index]
                for name in ("time", "kind", "compartment", "amount", "slot", "segment", "count")
            },
        )

    @classmethod
    def build(
        cls,
        schedule: Schedule,
        moved: Mapping[int, Moved] | None = None,
        steady: Steady | None = None,
        varying: bool = False,
        late: Mapping[int, Moved] | None = None,
    ) -> Timeline:
        """The timelines of a schedule.

        Args:
            schedule: doses and times of R subjects.
            moved: by index of the compartment, what the page says of the doses into it, at the records that
                ordered them.
            steady: what steady states come to; needed where the schedule has any.
            varying: whether parameters change at events.
            late: what the page says in each segment, where that differs.
        """
        if moved or steady is not None or not schedule.plain:
            events, block = lowered(schedule, moved or {}, steady, varying, late), blocks(schedule.events)
        else:
            events = cast(Points, _events(schedule))
            block = cast(Tensor, events["block"])
        observations = _observations(schedule, block)
        if "partner" in events:
            width = value_of(events["time"]).shape[-1]
            count = schedule.time.shape[-1]
            own = torch.arange(width, width + count, device=schedule.time.device)
            partner = torch.cat((cast(Tensor, events.pop("partner")), own))
        else:
            partner = None
        points = {name: _beside(x, observations[name]) for name, x in events.items()}
        return cls.assembled(points, partner, len(schedule.rate), schedule.time.shape[-1])

    @classmethod
    def assembled(cls, points: Points, partner: Tensor | None, compartments: int, n_slots: int) -> Timeline:
        """Points in any order as timelines.

        Args:
            points: see `nlmegen.structure.lowering.Points`; the time of each decides its place where `partner` is
                given, else its segment.
            partner: see there, or None.
            compartments: how many there are.
            n_slots: columns of observations.
        """
        points = dict(points)
        clock, given, change = points.pop("time"), points.pop("amount"), points.pop("change")
        plain = {name: cast(Tensor, x) for name, x in points.items()}
        kind, moved = plain["kind"], partner is not None
        parts = [*(value_of(x).shape for x in (clock, given, change)), kind.shape]
        shape = torch.broadcast_shapes(*parts)  # type: ignore[no-untyped-call]
        order = order_of_points(plain, cast(Tensor, value_of(clock)).detach(), moved, shape)
        count = (kind != PADDING).sum(-1).expand(shape[:-1])
        whole = order
        order = order[..., : int(count.amax()) if count.numel() else 0]
        put = {name: x.expand(shape).gather(-1, order) for name, x in plain.items()}
        given = _gathered(given, shape, order)
        if bool((kind == Point.RATE).any()):
            key = put["block"]
            if partner is not None and bool((kind == Point.ZERO).any()):
                everything = {name: x.expand(shape).gather(-1, whole) for name, x in plain.items()}
                off = generations(everything, partner, whole)[..., : order.shape[-1]]
                now = generations(everything, torch.arange(len(partner)), whole)[..., : order.shape[-1]]
                # the end of an infusion that ended when its compartment was switched off ends nothing
                stale = (put["kind"] == Point.RATE) & (off < now)
                put["kind"] = torch.where(stale, int(Point.MARK), put["kind"])
                key = key * (int(off.amax()) + 1) + off
            total = totals(_gathered(change, shape, order), put["compartment"], key, compartments)
            given = cast(Number, torch.where(put["kind"] == Point.RATE, total + given, given))  # type: ignore[arg-type]
        # a dose that comes late finds the parameters of the segment that it comes in
        put["segment"] = put["segment"].cummax(-1).values if moved else put["segment"]
        return cls(
            time=_gathered(clock, shape, order),
            kind=put["kind"].clamp(min=0),
            compartment=put["compartment"],
            amount=given,
            slot=put["slot"],
            segment=put["segment"],
            count=count,
            n_slots=n_slots,
        )

    @classmethod
    def of_segment(cls, schedule: Schedule, e: int) -> Timeline:
        """One segment as a timeline: its start and the rates set there, its observations, its end in a last column."""
        start, n, slots = schedule.start[:, e : e + 1], schedule.n_subjects, schedule.time.shape[-1]
        rates = [(c, r[:, e : e + 1]) for c, r in enumerate(schedule.rate) if r is not None]
        here = schedule.segment == e
        end = start + schedule.length[:, e : e + 1]
        clock = torch.where(here, start + schedule.elapsed, end)
        clock, order = clock.sort(stable=True, dim=-1)
        lead = 1 + len(rates)
        kinds = [Point.MARK, *(Point.RATE for _ in rates), *(Point.OBSERVE for _ in range(slots + 1))]
        places = [0, *(c for c, _ in rates), *(0 for _ in range(slots + 1))]
        nothing = torch.zeros(n, slots + 1, dtype=start.dtype)
        return cls(
            time=torch.cat((start.expand(n, lead), clock, torch.maximum(end, clock[:, -1:])), -1),
            kind=torch.tensor([int(kind) for kind in kinds]).expand(n, -1),
            compartment=torch.tensor(places).expand(n, -1),
            amount=torch.cat((nothing[:, :1], *(r for _, r in rates), nothing), -1),
            slot=torch.cat((torch.full((n, lead), -1), order, torch.full((n, 1), slots)), -1),
            segment=torch.full((n, lead + slots + 1), e),
            count=torch.full((n,), lead + slots + 1),
            n_slots=slots + 1,
        )


def _events(schedule: Schedule) -> dict[str, Tensor]:
    """What every event is, `[subject, event]`: a point or padding."""
    shape = schedule.start.shape
    # a segment of no length in which nothing is observed bounds nothing: padding is of this kind
    seen = torch.zeros(shape, dtype=torch.bool).scatter(-1, schedule.segment, True)
    marks = ~schedule.boundary & (seen | (schedule.length > 0))
    marks[:, 0] = True
    kind = torch.where(marks, int(Point.MARK), PADDING)
    place = torch.zeros(shape, dtype=torch.int64)
    amount, change = torch.zeros_like(schedule.start), torch.zeros_like(schedule.start)
    reset = schedule.keep == 0
    for c, (bolus, rate) in enumerate(zip(schedule.bolus, schedule.rate, strict=True)):
        if rate is not None:
            step = rate - torch.nn.functional.pad(rate[:, :-1], (1, 0))
            moves = (step != 0) & ~reset
            kind[moves], place[moves] = Point.RATE, c
            change = torch.where(moves, step, change)
        if bolus is not None:
            here = bolus != 0
            kind[here], place[here] = Point.BOLUS, c
            amount = torch.where(here, bolus, amount)
    kind[reset] = Point.RESET
    return {
        "time": schedule.start,
        "kind": kind,
        "compartment": place,
        "amount": amount,
        "change": change,
        "slot": torch.full(shape, -1),
        "segment": torch.arange(shape[-1]).expand(shape),
        "block": reset.cumsum(-1),
    }


def _observations(schedule: Schedule, block: Tensor) -> dict[str, Tensor]:
    """The same of every observation, `[subject, time]`; `block [subject, event]` counts fresh starts."""
    shape, segment = schedule.time.shape, schedule.segment
    nothing = torch.zeros_like(schedule.time)
    return {
        "time": schedule.start.gather(-1, segment) + schedule.elapsed,
        "kind": torch.full(shape, int(Point.OBSERVE)),
        "compartment": torch.zeros(shape, dtype=torch.int64),
        "amount": nothing,
        "change": nothing,
        "slot": torch.arange(shape[-1]).expand(shape),
        "segment": segment,
        "block": block.gather(-1, segment),
    }


def _beside(x: Number, y: Tensor) -> Number:
    """Columns of `x [*draw, subject, n]`, then of `y [subject, m]`."""
    return cast(Number, torch.cat((x, y.expand(*value_of(x).shape[:-1], y.shape[-1])), -1))  # type: ignore[arg-type]


def _gathered(x: Number, shape: torch.Size, order: Tensor) -> Number:
    """`x` broadcast to `shape` and sorted."""
    if isinstance(x, Taylor):
        x = x + torch.zeros(shape, dtype=x.dtype)
        return cast(Taylor, torch.gather(x, -1, order))  # type: ignore[arg-type]
    return x.expand(shape).gather(-1, order)
