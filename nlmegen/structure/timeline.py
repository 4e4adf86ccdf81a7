"""What happens to each subject, point by point: what an ODE page is stepped along.

A schedule speaks of segments, which suits closed forms. Here its events and the observations are merged into one list
of points, in the order in which they act. The state starts as initial(p) at the first point; between points nothing
happens but the page's own dynamics under constant infusion rates.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.schedule import Schedule


class Point(enum.IntEnum):
    """What a point of a timeline is."""

    OBSERVE = 0
    BOLUS = 1
    RATE = 2
    RESET = 3
    MARK = 4


@dataclass(frozen=True)
class Moved:
    """What a page's `dosing` does to the doses into one compartment.

    Attributes:
        lag: time by which they come later, `[*draw, subject or 1, 1 or event]`, or None.
        bioavailability: factor of their amounts, likewise.

    A negative lag or bioavailability makes the dose NaN, so that the subject cannot be solved.
    """

    lag: Number | None
    bioavailability: Number | None


@dataclass(frozen=True, eq=False)
class Timeline:
    """The points of R rows (subjects; or draws of subjects where doses are modelled), padded to K.

    Time does not decrease except at a RESET, which starts afresh at its own time: the state is initial(p) again and
    all rates are zero. The time between two points is max(0, next - this).

    Attributes:
        time: `[*draw, R, K]`; a Taylor number where lags are modelled.
        kind: `[*draw, R, K]` int64, see `Point`: observe; add `amount`; set the infusion rate of a compartment to
            `amount`; reset; nothing (a MARK only bounds a segment).
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
    def build(cls, schedule: Schedule, moved: Mapping[int, Moved] | None = None) -> Timeline:
        """The timelines of a schedule.

        Args:
            schedule: doses and times of R subjects.
            moved: by index of the compartment, lags and bioavailabilities of the doses into it.
        """
        events = _events(schedule)
        if moved:  # the first dose may come later than the start
            first = {name: x[:, :1] for name, x in events.items()}
            nothing = torch.zeros_like(first["amount"])
            first |= {
                "kind": torch.full_like(first["kind"], Point.MARK),
                "amount": nothing,
                "change": nothing,
            }
            events = {name: torch.cat((first[name], x), -1) for name, x in events.items()}
        observations = _observations(schedule)
        points = {name: torch.cat((x, observations[name]), -1) for name, x in events.items()}
        kind, place = points["kind"], points["compartment"]
        time, amount = points.pop("time"), points.pop("amount")
        clock: Number = time
        given: Number = amount
        for compartment, dose in (moved or {}).items():
            here = (place == compartment) & ((kind == Point.BOLUS) | (kind == Point.RATE))
            for x in (dose.lag, dose.bioavailability):
                if x is not None:  # there is no such dose: NaN, and the row fails
                    wrong = here & (value_of(at_segments(x, points["segment"])) < 0)
                    given = given + torch.where(wrong, torch.nan, 0.0)
            if dose.lag is not None:
                clock = clock + here.to(time.dtype) * at_segments(dose.lag, points["segment"])
            if dose.bioavailability is not None:
                bolus = (here & (kind == Point.BOLUS)).to(time.dtype)
                factor = at_segments(dose.bioavailability, points["segment"])
                given = given * (1.0 - bolus) + given * bolus * factor
        shape = value_of(clock + given * 0.0).shape
        order = _order_of(points, cast(Tensor, value_of(clock)), bool(moved), shape)
        count = (kind != _PADDING).sum(-1).expand(shape[:-1])
        order = order[..., : int(count.amax()) if count.numel() else 0]
        put = {name: x.expand(shape).gather(-1, order) for name, x in points.items()}
        # a dose that comes late finds the parameters of the segment that it comes in
        put["segment"] = put["segment"].cummax(-1).values if moved else put["segment"]
        given = _gathered(given, shape, order)
        if any(rate is not None for rate in schedule.rate):
            total = _totals(put["change"], put["compartment"], put["block"], len(schedule.rate))
            given = cast(Number, torch.where(put["kind"] == Point.RATE, total + given, given))  # type: ignore[arg-type]
        return cls(
            time=_gathered(clock, shape, order),
            kind=put["kind"].clamp(min=0),
            compartment=put["compartment"],
            amount=given,
            slot=put["slot"],
            segment=put["segment"],
            count=count,
            n_slots=schedule.time.shape[-1],
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


def at_segments(x: Number, segment: Tensor) -> Number:
    """Of parameters `[*draw, subject or 1, 1 or event]` those of the segments `[*draw, subject, n]`.

    Returns:
        `x` itself when it is constant, else a number `[*draw, subject, n]`.
    """
    if x.shape[-1] == 1:
        return x
    shape = value_of(x).shape[:-2] + (segment.shape[-2], x.shape[-1])
    wide = x + torch.zeros(shape, dtype=x.dtype)
    return cast(Number, torch.gather(wide, -1, segment.expand(shape[:-1] + segment.shape[-1:])))  # type: ignore[arg-type]


_PADDING = -1


def _events(schedule: Schedule) -> dict[str, Tensor]:
    """What every event is, `[subject, event]`: a point or padding."""
    shape = schedule.start.shape
    # a segment of no length in which nothing is observed bounds nothing: padding is of this kind
    seen = torch.zeros(shape, dtype=torch.bool).scatter(-1, schedule.segment, True)
    marks = ~schedule.boundary & (seen | (schedule.length > 0))
    marks[:, 0] = True
    kind = torch.where(marks, int(Point.MARK), _PADDING)
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


def _observations(schedule: Schedule) -> dict[str, Tensor]:
    """The same of every observation, `[subject, time]`."""
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
        "block": (schedule.keep == 0).cumsum(-1).gather(-1, segment),
    }


def _order_of(points: Mapping[str, Tensor], clock: Tensor, moved: bool, shape: torch.Size) -> Tensor:
    """How the points are sorted: padding last; by reset block; by time where doses move, else as scheduled."""
    segment = points["segment"].to(clock.dtype).expand(shape)
    clock = clock.expand(shape)
    block = points["block"].to(clock.dtype)
    rank = torch.where(points["kind"] == _PADDING, torch.inf, block).expand(shape)
    return _order(rank, clock, segment) if moved else _order(rank, segment, clock)


def _order(*keys: Tensor) -> Tensor:
    """Indices that sort the last axis by the first key, ties by the next, then by position."""
    order = torch.argsort(keys[-1], dim=-1, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(-1, torch.argsort(key.gather(-1, order), dim=-1, stable=True))
    return order


def _gathered(x: Number, shape: torch.Size, order: Tensor) -> Number:
    """`x` broadcast to `shape` and sorted."""
    if isinstance(x, Taylor):
        x = x + torch.zeros(shape, dtype=x.dtype)
        return cast(Taylor, torch.gather(x, -1, order))  # type: ignore[arg-type]
    return x.expand(shape).gather(-1, order)


def _totals(change: Tensor, place: Tensor, block: Tensor, count: int) -> Tensor:
    """The running rate of its own compartment after each point, infusions ended by a reset."""
    total = torch.zeros_like(change)
    for c in range(count):
        here = place == c
        own = torch.where(here, change, 0.0)
        for b in range(int(block.amax()) + 1):
            inside = own * (block == b)
            level, running = inside.cumsum(-1), inside.sign().cumsum(-1)
            # the sum of overlapping rates leaves a rounding error when the last one stops; their number does not
            level = torch.where(running > 0.5, level, 0.0)
            total = torch.where(here & (block == b), level, total)
    return total
