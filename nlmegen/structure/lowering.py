"""Events whose times or amounts are computed: how they become points of a timeline.

Times and amounts may be Taylor numbers here, in whatever the page's `dosing` reads. With the lag T, the bioavailability
F, and the rate R and duration D of an infusion (two of F AMT, R and D give the third):

    bolus    F AMT at t + T
    infusion the rate rises by R at t + T and falls by R at t + T + D
    off      the compartment is emptied and its infusions end
    steady   everything starts afresh (SS 1 alone); then amounts are added that come from `Steady`; of the earlier
             infusions, which arrived at t + T - k II, those run on that end later, at t + T + D - k II > t

Where parameters vary, T is that of the record that ordered the dose. F and D are so too for a dose that enters at the
time of its record; for one that comes later (lagged, or additional) they are those in force when it comes. R is that of
the segment after the infusion starts. At steady state all are those of the record.

Meaning of records: NONMEM Users Guide VI (PREDPP), chapters V and VI; help, "dose event record",
"rate parameter" and "PROCM2".
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from nlmegen.data.events import Events, Kind
from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.chain import each
from nlmegen.structure.points import PADDING, Moved, Point, at_segments, segments_of

if TYPE_CHECKING:
    from nlmegen.structure.schedule import Schedule


MOST_RUNNING = 200
"""Earlier infusions of a steady state that may run at once; a subject with more of them cannot be solved."""

Points = dict[str, Number]
"""By name `[*draw, subject, n]`: time, kind, compartment, amount, change (of a rate), slot, segment, block; and partner
`[n]`, the number of the point at which the infusion began that a point ends, its own elsewhere."""


@dataclass(frozen=True, eq=False)
class Recurring:
    """Doses that have been given at a fixed interval for ever: n steady states, of any subjects.

    Attributes:
        row: `[n]` the subject; segment: `[n]` the segment that the record opens.
        compartment: `[n, 1]` where doses go.
        time: `[n, 1]` of the record.
        amount: Number `[*draw, n, 1]` what each dose brings at once, 0 for infusions.
        rate: Number `[*draw, n, 1]` at which each infusion runs, 0 for boluses; duration: how long.
        interval: `[n, 1]` from dose to dose; 0 for one infusion without end.
        lag: Number `[*draw, n, 1]`; doses arrived at time + lag - k interval, k = 1, 2, ...
        fresh: `[n, 1]` whether the system starts afresh (SS 1), or the steady state adds to what is there.
    """

    row: Tensor
    segment: Tensor
    compartment: Tensor
    time: Tensor
    amount: Number
    rate: Number
    duration: Number
    interval: Tensor
    lag: Number
    fresh: Tensor


Steady = Callable[[Recurring], list[Number]]
"""From doses at steady state to what each compartment has at the time of the record, `[*draw, n, 1]`: beyond initial(p)
where the system starts afresh; NaN where there is no steady state."""


def steady_states(schedule: Schedule) -> bool:
    """Whether any subject (selected or not) has a record at steady state."""
    return not schedule.plain and bool((schedule.root[0].events.kind == Kind.STEADY).any())


def blocks(events: Events) -> Tensor:
    """How often the system has started afresh by each event, `[subject, event]`."""
    return ((events.kind == Kind.RESET) | (events.steady == 1)).cumsum(-1)


def lowered(
    schedule: Schedule,
    moved: Mapping[int, Moved],
    steady: Steady | None,
    varying: bool = False,
    late: Mapping[int, Moved] | None = None,
) -> Points:
    """The points of all events of a schedule, observations left out.

    Args:
        schedule: with E events a subject.
        moved: what the page says of doses, by index of the compartment, at the record that ordered each event.
        steady: steady states; needed where the events hold any.
        varying: whether parameters change at events: at the time of its record a dose that comes later does too.
        late: the same as `moved` in each segment, where that differs.
    """
    events, place = schedule.events, schedule.target
    kind, segment = events.kind, torch.arange(place.shape[-1], device=place.device).expand(place.shape)
    is_steady = kind == Kind.STEADY
    infused = (kind == Kind.START) | (is_steady & ((events.rate > 0) | (events.modelled > 0)))
    dose = infused | is_steady | (kind == Kind.BOLUS)
    given = _Given(moved, place, segment, dose)
    lag, steps = given.lag, (kind == Kind.START) | (kind == Kind.BOLUS)
    if late:
        given = given.arriving(late, events, place, steps)
    wrong = given.wrong(events.modelled)
    arriving = events.amount * given.bioavailability
    rate, duration = _infusion(events.rate, events.modelled, arriving, given)
    # what cannot be is NaN: the row that has it fails
    spoilt = torch.where(wrong & steps, torch.nan, 0.0)
    block = blocks(events)
    shared: Points = {
        "compartment": place,
        "slot": torch.full_like(place, -1),
        "segment": segment,
        "block": block,
    }
    zero = torch.zeros_like(events.time)
    start = kind == Kind.START
    own = {
        "time": events.time + _where(steps, lag, zero),
        "kind": _kinds(kind, events.steady),
        "amount": _where(kind == Kind.BOLUS, arriving, zero) + spoilt,
        "change": _where(start, rate, zero),
    }
    first = {name: each(x, lambda y, lead: y[..., :1]) for name, x in (shared | own).items()}
    first |= {"time": events.time[:, :1], "kind": torch.full_like(place[:, :1], Point.MARK)}
    first |= {"amount": zero[:, :1], "change": zero[:, :1]}
    parts: list[Points] = [first, shared | own]
    partners: list[int | None] = [None, None]
    if varying and any(said.lag is not None for said in moved.values()):
        marks = torch.where(steps, int(Point.MARK), PADDING)
        parts.append(shared | {"time": events.time, "kind": marks, "amount": zero, "change": zero})
        partners.append(None)
    if bool(start.any()):
        # the end as the records put it, then moved
        end = events.time + _where(start, duration, zero) + _where(start, lag, zero)
        ends = torch.where(start, int(Point.RATE), PADDING)
        parts.append(shared | {"time": end, "kind": ends, "amount": zero, "change": -own["change"]})
        partners.append(1)
    if bool((kind == Kind.OFF).any()):
        stop = torch.where(kind == Kind.OFF, int(Point.RATE), PADDING)
        parts.append(shared | {"time": events.time, "kind": stop, "amount": zero, "change": zero})
        partners.append(None)
    if bool(is_steady.any()):
        if steady is None:
            raise ValueError("the events hold steady states, and nothing says what they come to")
        chosen = _Chosen(is_steady)
        wide = {"rate": rate, "duration": duration, "lag": lag, "arriving": arriving}
        for added, partner in _steady(chosen, schedule, shared, wide, infused, wrong, steady):
            parts.append(added)
            partners.append(None if partner is None else len(parts) - 1 - partner)
    return _joined(parts, partners)


class _Given:
    """What the page says of each event's dose, `[*draw, subject, event]`; of what is no dose, what says nothing."""

    def __init__(self, moved: Mapping[int, Moved], place: Tensor, segment: Tensor, dose: Tensor) -> None:
        def of(name: str, default: float) -> Number:
            total: Number = torch.full(place.shape, default, dtype=torch.float64, device=place.device)
            for compartment, said in moved.items():
                x = getattr(said, name)
                if x is not None:
                    total = _where(dose & (place == compartment), at_segments(x, segment), total)
            return total

        self.lag, self.bioavailability = of("lag", 0.0), of("bioavailability", 1.0)
        self.rate, self.duration = of("rate", 1.0), of("duration", 1.0)

    def arriving(self, late: Mapping[int, Moved], events: Events, place: Tensor, steps: Tensor) -> _Given:
        """The same with what is said where the doses of `steps` arrive, see above."""
        lag = cast(Tensor, value_of(self.lag)).detach()
        line = (events.time + lag, events.time, blocks(events), events.kind != Kind.PAD)
        before = _Given(late, place, segments_of(*line), steps)
        between = steps & (events.additional | (lag > 0))
        other = copy.copy(self)
        other.bioavailability = _where(between, before.bioavailability, self.bioavailability)
        other.duration = _where(between, before.duration, self.duration)
        if bool((events.modelled == 1).any()):
            after = _Given(late, place, segments_of(*line, after=True), steps)
            other.rate = _where(steps, after.rate, self.rate)
        return other

    def wrong(self, modelled: Tensor) -> Tensor:
        """Doses that cannot be."""
        lag, factor, rate, duration = (
            cast(Tensor, value_of(x)) for x in (self.lag, self.bioavailability, self.rate, self.duration)
        )
        asked = ((modelled == 1) & ~(rate > 0)) | ((modelled == 2) & ~(duration > 0))
        return ~(lag >= 0) | ~(factor >= 0) | asked


def _infusion(recorded: Tensor, modelled: Tensor, arriving: Number, given: _Given) -> tuple[Number, Number]:
    """Rate and duration of each infusion; of what is none, numbers that mean nothing."""
    rate: Number = torch.where(recorded > 0, recorded, 1.0)
    if bool((modelled == 1).any()):
        rate = _where(modelled == 1, given.rate, rate)
    duration = arriving / rate
    if bool((modelled == 2).any()):
        duration = _where(modelled == 2, given.duration, duration)
        rate = _where(modelled == 2, arriving / given.duration, rate)
    return rate, duration


def _kinds(kind: Tensor, steady: Tensor) -> Tensor:
    """The point that an event is; the end of an infusion follows from its start, and is padding."""
    table = {
        Kind.BOLUS: Point.BOLUS,
        Kind.START: Point.RATE,
        Kind.RESET: Point.RESET,
        Kind.CHANGE: Point.MARK,
        Kind.STEADY: Point.MARK,
        Kind.OFF: Point.ZERO,
    }
    found = torch.full_like(kind, PADDING)
    for event, point in table.items():
        found = torch.where(kind == event, int(point), found)
    return torch.where((kind == Kind.STEADY) & (steady == 1), int(Point.RESET), found)


class _Chosen:
    """The steady states of each subject, m at most: what is picked of its events.

    Attributes:
        event: `[subject, m]`; valid: whether there are so many; row, column: `[n]` places of those that are.
        number: `[subject, m]` their numbers among the n, 0 where there is none.
    """

    def __init__(self, which: Tensor) -> None:
        count = which.sum(-1, keepdim=True)
        most = int(count.amax())
        self.event = torch.argsort((~which).to(torch.int8), dim=-1, stable=True)[:, :most]
        self.valid = torch.arange(most, device=which.device) < count
        self.row, self.column = self.valid.nonzero().unbind(1)
        self.number = (self.valid.flatten().cumsum(0) - 1).clamp(min=0).reshape(self.valid.shape)

    def of(self, x: Number) -> Number:
        """`[*draw, subject, m]` of `[*draw, subject, event]`."""
        return each(x, lambda y, lead: y.gather(-1, self.event.expand(y.shape[:-1] + self.event.shape[-1:])))

    def listed(self, x: Number) -> Number:
        """`[*draw, n, 1]` of `[*draw, subject, m]`."""
        return each(x, lambda y, lead: y[..., self.row, self.column].unsqueeze(-1))

    def back(self, x: Number) -> Number:
        """`[*draw, subject, m]` of `[*draw, n, 1]`."""
        return each(x, lambda y, lead: y[..., self.number, 0])


def _steady(
    chosen: _Chosen,
    schedule: Schedule,
    shared: Points,
    wide: Points,
    infused: Tensor,
    wrong: Tensor,
    steady: Steady,
) -> list[tuple[Points, int | None]]:
    """What steady states add: points, and how many parts before stands what a part ends."""
    events = schedule.events
    own = {name: chosen.of(x) for name, x in shared.items()}
    rate, duration, lag, arriving = (
        chosen.of(wide[name]) for name in ("rate", "duration", "lag", "arriving")
    )
    time, interval, amount = (
        cast(Tensor, chosen.of(x)) for x in (events.time, events.interval, events.amount)
    )
    running = cast(Tensor, chosen.of(infused)) & chosen.valid
    endless = running & (amount == 0)
    zero = torch.zeros_like(time)
    late = ~endless & ~(cast(Tensor, value_of(lag)) < interval)
    ahead = cast(Tensor, value_of(lag)) + cast(
        Tensor, value_of(duration)
    )  # from the record to the end of its dose
    before = (torch.ceil(ahead / torch.where(interval > 0, interval, 1.0)) - 1).clamp(min=0)
    before = torch.where(running & ~endless & before.isfinite(), before, 0.0)
    spoilt = cast(Tensor, chosen.of(wrong)) | late | (before > MOST_RUNNING)
    listed = chosen.listed
    # a dose that cannot be has no steady state either, and need not be looked for
    fine = (~spoilt).expand(spoilt.shape)
    found = steady(
        Recurring(
            row=chosen.row,
            segment=chosen.event[chosen.row, chosen.column],
            compartment=cast(Tensor, listed(cast(Tensor, own["compartment"]))),
            time=cast(Tensor, listed(time)),
            amount=listed(_where(running | ~fine, zero, arriving)),
            rate=listed(_where(running & fine, rate, zero)),
            duration=listed(_where(running & ~endless & fine, duration, zero)),
            interval=cast(Tensor, listed(interval)),
            lag=listed(_where(endless | ~fine, zero, lag)),
            fresh=cast(Tensor, listed(chosen.of(events.steady == 1))),
        )
    )
    kind = torch.where(chosen.valid, int(Point.BOLUS), PADDING)
    nan = torch.where(spoilt & chosen.valid, torch.nan, 0.0)
    parts: list[tuple[Points, int | None]] = [
        (
            own
            | {
                "time": time,
                "kind": kind,
                "compartment": torch.full_like(chosen.event, i),
                "amount": chosen.back(x) + nan,
                "change": zero,
            },
            None,
        )
        for i, x in enumerate(found)
    ]
    for k in range(1, min(int(before.amax()), MOST_RUNNING) + 1 if before.numel() else 1):
        here = (before >= k) & ~spoilt
        kind = torch.where(here, int(Point.RATE), PADDING)
        change = _where(here, rate, zero)
        more = own | {"kind": kind, "amount": zero}
        end = time + _where(here, duration + lag - k * interval, zero)
        parts += [
            (more | {"time": time, "change": change}, None),
            (more | {"time": end, "change": -change}, 1),
        ]
    return parts


def _joined(parts: list[Points], partners: list[int | None]) -> Points:
    """All parts side by side; `partners` names the part, as wide, at which infusions began that a part ends."""
    widths = [value_of(part["time"]).shape[-1] for part in parts]
    begins = [sum(widths[:k]) for k in range(len(widths))]
    joined: Points = {}
    for name in parts[0]:
        axes = torch.broadcast_shapes(*(value_of(part[name]).shape[:-1] for part in parts))  # type: ignore[no-untyped-call]
        spread = [_expanded(part[name], axes) for part in parts]
        joined[name] = torch.cat(spread, -1)  # type: ignore[arg-type]
    places = [
        torch.arange(width) + begins[k if partner is None else partner]
        for k, (width, partner) in enumerate(zip(widths, partners, strict=True))
    ]
    joined["partner"] = torch.cat(places).to(value_of(joined["kind"]).device)
    return joined


def _expanded(x: Number, axes: torch.Size) -> Number:
    return cast(Number, x.expand((*axes, x.shape[-1])))


def _where(condition: Tensor, a: Number, b: Number) -> Number:
    return cast(Number, torch.where(condition, a, b))  # type: ignore[arg-type]
