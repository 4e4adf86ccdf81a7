"""Doses as they arrive, where a page models them: what a closed form is solved against in place of a schedule.

With lags, bioavailabilities, modelled infusions and steady states the times at which something happens and the amounts
that come are numbers with derivatives, and differ from draw to draw. A timeline has put them in order; here its points
are parted into events, between which nothing happens, and observations, each of which belongs to the event before it.
The recurrences of `solution` then run as they do along a schedule. An event at which nothing happens stands in front,
so that every amount that is given, with its derivatives, enters as an input of the recurrence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.chain import each, take
from nlmegen.structure.timeline import Point, Timeline


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Events and observations of R subjects, E padded events, T observations; the names are those of `Schedule`.

    Attributes:
        spans: `[*draw, subject, event - 1]` time from each event to the next, 0 at a reset.
        keep: `[*draw, subject, event]` 0.0 where everything is emptied, else 1.0.
        keep_first: the same for the first compartment, which may be emptied alone.
        bolus: for each compartment what each event adds, or None.
        rate: for each compartment the infusion rate running after each event, or None.
        elapsed: `[*draw, subject, time]` from its event to each observation.
        segment: `[*draw, subject, time]` the event before each observation.
        origin: `[*draw, subject, event]` the segment of the schedule whose parameters hold after each event.
    """

    spans: Number
    keep: Tensor
    keep_first: Tensor
    bolus: tuple[Number | None, ...]
    rate: tuple[Number | None, ...]
    elapsed: Number
    segment: Tensor
    origin: Tensor

    single = False

    @classmethod
    def build(cls, line: Timeline, count: int) -> Arrivals:
        """The arrivals of a timeline of a structure with `count` compartments."""
        every = torch.arange(line.kind.shape[-1], device=line.kind.device)
        inside = every < line.count.unsqueeze(-1)
        happens = (line.kind != Point.OBSERVE) & inside
        number = happens.sum(-1, keepdim=True)
        most = int(number.amax()) if number.numel() else 0
        # events first, in order; the rest of a row repeats its last event and gives nothing
        order = torch.argsort((~happens).to(torch.int8), dim=-1, stable=True)[..., :most]
        padding = torch.arange(most, device=order.device) >= number
        point = torch.where(padding, order.gather(-1, (number - 1).clamp(min=0)), order)
        point = torch.cat((point[..., :1], point), -1)
        idle = torch.cat((torch.ones_like(padding[..., :1]), padding), -1)
        kind = torch.where(idle, int(Point.MARK), line.kind.gather(-1, point))
        place = line.compartment.gather(-1, point)
        start, amount = _at(line.time, point), _at(line.amount, point)
        reset = kind == Point.RESET
        kept = torch.where(reset, 0.0, 1.0).to(value_of(start).dtype)
        keep_first = torch.where((kind == Point.ZERO) & (place == 0), 0.0, kept)
        # every column of observations stands once in a row
        seen = torch.argsort(torch.where(line.slot >= 0, line.slot, len(every) + line.n_slots), dim=-1)
        seen = seen[..., : line.n_slots]
        segment = happens.cumsum(-1).gather(-1, seen)
        return cls(
            spans=_ahead(each(start, lambda x, lead: x.diff(dim=-1)), ~reset[..., 1:]),
            keep=keep_first if count == 1 else kept,
            keep_first=keep_first,
            bolus=tuple(_given(kind, place == c, amount) for c in range(count)),
            rate=tuple(_running(kind, place == c, reset, amount) for c in range(count)),
            elapsed=_ahead(_at(line.time, seen) - _at(start, segment)),
            segment=segment,
            origin=line.segment.gather(-1, point),
        )

    def first(self, compartment: int) -> Tensor:
        """What is there at the first event `[subject, 1]`: nothing, see above."""
        return torch.zeros(self.keep.shape[-2], 1, dtype=self.keep.dtype, device=self.keep.device)

    @cached_property
    def resets(self) -> bool:
        """Whether any event empties the system."""
        return bool((self.keep == 0).any())

    @cached_property
    def observed_rate(self) -> tuple[Number | None, ...]:
        """For each compartment the infusion rate running at each observation `[*draw, subject, time]`, or None."""
        return tuple(None if r is None else take(r, self.segment) for r in self.rate)


def _at(x: Number, point: Tensor) -> Number:
    """Entries of the trailing axis."""
    return each(x, lambda y, lead: y.gather(-1, point.expand(y.shape[:lead] + point.shape)))


def _ahead(time: Number, where: Tensor | None = None) -> Number:
    """Durations, 0 where they are none: at a reset, which may set the clock back, and in the padding."""
    value = cast(Tensor, value_of(time))
    legal = ~(value < 0) if where is None else where & ~(value < 0)  # NaN stays
    if bool(legal.all()):
        return time
    return cast(Number, torch.where(legal, time, torch.zeros((), dtype=value.dtype)))  # type: ignore[arg-type]


def _given(kind: Tensor, here: Tensor, amount: Number) -> Number | None:
    """What the boluses into one compartment bring."""
    here = here & (kind == Point.BOLUS)
    return _only(here, amount) if bool(here.any()) else None


def _running(kind: Tensor, here: Tensor, reset: Tensor, amount: Number) -> Number | None:
    """The infusion rate of one compartment: what the last change says, nothing since a reset."""
    here = here & (kind == Point.RATE)
    if not bool(here.any()):
        return None
    position = torch.arange(kind.shape[-1], device=kind.device)
    latest, ended = (torch.where(x, position, -1).cummax(-1).values for x in (here, reset))
    return _only(latest > ended, _at(amount, latest.clamp(min=0)))


def _only(here: Tensor, x: Number) -> Number:
    zero = torch.zeros((), dtype=value_of(x).dtype, device=here.device)
    return cast(Number, torch.where(here, x, zero))  # type: ignore[arg-type]
