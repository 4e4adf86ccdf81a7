"""The dosing schedule of every subject, as padded tensors: what a structure is solved against.

Events cut time into segments; segment e runs from event e to event e + 1 (the last one for ever). Within a segment the
infusion rates are constant and nothing else happens, so the state is carried from event to event,

    x_e = keep_e * (state at the end of segment e - 1) + bolus_e ,

and every observation is reached from the start of its own segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nlmegen.data.events import Events, Kind
from nlmegen.data.population import Population
from nlmegen.errors import DataError, nearest

if TYPE_CHECKING:
    from nlmegen.structure.timeline import Timeline


@dataclass(frozen=True, eq=False)
class Schedule:
    """Doses, infusions, resets and observation times of N subjects, E padded events, T padded observations.

    Padding adds events of length 0 that change nothing. Where the events are not `plain` (steady states, compartments
    switched off, rates or durations that the page gives), `bolus`, `rate` and `keep` are only what the records say at
    face value, and amounts are computed from `events`.

    Attributes:
        start: [subject, event] time of the event that opens each segment.
        length: [subject, event] duration to the next event, 0 for the last.
        keep: [subject, event] 0.0 where a reset empties the system, else 1.0.
        bolus: for each compartment [subject, event] the amount that the event adds, or None where none ever does.
        rate: for each compartment [subject, event] the infusion rate running during the segment, or None.
        time: [subject, time] the observation times.
        segment: [subject, time] the segment of each observation.
        boundary: [subject, event] true for the first event and where one gives, stops or empties something.
        events: the events themselves, one a segment: what is built from where doses are modelled or not plain.
        target: [subject, event] int64, position of each event's compartment among those of the structure.
        origin: the schedule that this one was selected from, and which of its subjects these are.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"id": [1, 1], "time": [0.0, 2.0], "amt": [100.0, 0.0], "dv": [0.0, 5.0]})
        >>> schedule = Schedule.build(Population.from_table(table), ("depot", "central"))
        >>> schedule.bolus[0].tolist(), schedule.bolus[1], schedule.elapsed.tolist(), schedule.single
        ([[100.0]], None, [[2.0]], True)
    """

    start: Tensor
    length: Tensor
    keep: Tensor
    bolus: tuple[Tensor | None, ...]
    rate: tuple[Tensor | None, ...]
    time: Tensor
    segment: Tensor
    boundary: Tensor
    events: Events
    target: Tensor
    origin: tuple[Schedule, Tensor] | None = None

    @classmethod
    def build(cls, population: Population, compartments: Sequence[str]) -> Schedule:
        """The schedule of a population for a structure with these compartments.

        A label of CMT is the position of a compartment (1 is the first), its name, or 0 for the first one.

        Args:
            population: the data.
            compartments: names of the structure's compartments, in order.

        Raises:
            DataError: when a dose goes to a compartment that the structure does not have.
        """
        events = population.events
        place = torch.tensor([_position(label, compartments) for label in population.compartments] or [0])
        target = place.to(events.time.device)[events.compartment]
        reset = events.kind == Kind.RESET
        boundary = (events.kind != Kind.CHANGE) & (events.kind != Kind.PAD)
        boundary[:, 0] = True  # observations before the first dose need a segment too
        bolus: list[Tensor | None] = []
        rate: list[Tensor | None] = []
        for c in range(len(compartments)):
            here = target == c
            amount = torch.where(here & (events.kind == Kind.BOLUS), events.amount, 0.0)
            change = torch.where(here, events.rate, 0.0)
            bolus.append(amount if bool(amount.any()) else None)
            rate.append(_running(change, reset) if bool(change.any()) else None)
        length = torch.diff(events.time, dim=-1, append=events.time[:, -1:]).clamp(min=0.0)
        return cls(
            start=events.time,
            length=length,
            keep=torch.where(reset, 0.0, 1.0).to(length.dtype),
            bolus=tuple(bolus),
            rate=tuple(rate),
            time=population.time,
            segment=population.segment,
            boundary=boundary,
            events=events,
            target=target,
        )

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return self.start.shape[0]

    @property
    def single(self) -> bool:
        """Whether there is one segment: everything is given at the first event."""
        return self.start.shape[-1] == 1

    @cached_property
    def plain(self) -> bool:
        """Whether `bolus`, `rate` and `keep` are all that the records ask for (of any subject, selected or not)."""
        return self.root[0].events.plain

    @cached_property
    def modelled(self) -> frozenset[tuple[int, int]]:
        """What the records leave to the page: (position of a compartment, 1 for a rate or 2 for a duration)."""
        events = self.root[0].events
        asked = events.modelled > 0
        pairs = torch.stack((self.root[0].target[asked], events.modelled[asked]), -1)
        return frozenset((int(c), int(code)) for c, code in pairs.tolist())

    def check_modelled(self, compartments: Sequence[str], dosed: Mapping[str, Any]) -> None:
        """Refuse records with RATE -1 or -2 where the page does not say the rate or duration.

        Args:
            compartments: names of the structure's compartments, in order.
            dosed: what the page's `dosing` returns, `nl.Dose` by compartment.

        Raises:
            DataError: naming the compartment, the code and what to write.
        """
        if self.plain:
            return
        for place, code in sorted(self.modelled):
            name, word = compartments[place], ("rate", "duration")[code - 1]
            if getattr(dosed.get(name), word, None) is None:
                raise DataError(
                    f"expected the page to give the {word} of doses into {name}, for which the data have RATE "
                    f"-{code} (modelled {word}); write def dosing(self, p): return "
                    f"dict({name}=nl.Dose({word}=...)), or give the rate in the data",
                    column="rate",
                )

    @cached_property
    def elapsed(self) -> Tensor:
        """Time from the start of its segment to each observation `[subject, time]`, not negative in the padding."""
        return (self.time - self.start.gather(-1, self.segment)).clamp(min=0.0)

    @cached_property
    def resets(self) -> bool:
        """Whether any event after the first empties the system."""
        return bool((self.keep[:, 1:] == 0).any())

    @cached_property
    def spans(self) -> Tensor:
        """Durations of all segments but the last `[subject, event - 1]`."""
        return self.length[:, :-1]

    @cached_property
    def observed_rate(self) -> tuple[Tensor | None, ...]:
        """For each compartment the infusion rate running at each observation `[subject, time]`, or None."""
        return tuple(
            None if r is None else r if self.single else r.gather(-1, self.segment) for r in self.rate
        )

    @property
    def keep_first(self) -> Tensor:
        """As `keep`, of the first compartment."""
        return self.keep

    def first(self, compartment: int) -> Tensor:
        """What a compartment holds at the first event `[subject, 1]`."""
        bolus = self.bolus[compartment]
        return torch.zeros_like(self.start[:, :1]) if bolus is None else bolus[:, :1]

    @cached_property
    def switched(self) -> frozenset[int]:
        """Positions of the compartments that a record switches off."""
        off = self.root[0].events.kind == Kind.OFF
        return frozenset(self.root[0].target[off].tolist())

    @cached_property
    def essential(self) -> Schedule:
        """The schedule without the events that only bound a segment: all that constant parameters need."""
        number = self.boundary.sum(-1, keepdim=True)
        count = int(number.amax()) if self.n_subjects else 1
        if count == self.start.shape[-1]:
            return self
        # boundaries first, in order; the rest of a row repeats its last boundary and adds nothing
        order = torch.argsort((~self.boundary).to(torch.int8), dim=-1, stable=True)[:, :count]
        padding = torch.arange(count, device=order.device) >= number
        pick = torch.where(padding, order.gather(-1, number - 1), order)
        start = self.start.gather(-1, pick)
        return replace(
            self,
            start=start,
            length=torch.diff(start, dim=-1, append=start[:, -1:]).clamp(min=0.0),
            keep=torch.where(padding, 1.0, self.keep.gather(-1, pick)),
            bolus=tuple(
                None if b is None else torch.where(padding, 0.0, b.gather(-1, pick)) for b in self.bolus
            ),
            rate=tuple(None if r is None else r.gather(-1, pick) for r in self.rate),
            segment=torch.cumsum(self.boundary.to(torch.int64), -1).gather(-1, self.segment) - 1,
            boundary=~padding,
            events=_reordered(self.events, pick, padding),
            target=self.target.gather(-1, pick),
            origin=None,
        )

    @cached_property
    def timeline(self) -> Timeline:
        """Events and observations as one list of points a subject, for parameters that are constant in time."""
        from nlmegen.structure.timeline import Timeline

        return Timeline.build(self.essential)

    @cached_property
    def segment_timelines(self) -> tuple[Timeline, ...]:
        """Each segment as a timeline of its own, for parameters that vary."""
        from nlmegen.structure.timeline import Timeline

        return tuple(Timeline.of_segment(self, e) for e in range(self.start.shape[-1]))

    @property
    def root(self) -> tuple[Schedule, Tensor]:
        """The schedule that this one was selected from (itself, if it was not), and its subjects' places there."""
        return (self, torch.arange(self.n_subjects)) if self.origin is None else self.origin

    def select(self, index: Tensor) -> Schedule:
        """The schedule of the subjects in `index` [M] (repeats allowed)."""
        whole, places = self.root
        return Schedule(
            start=self.start[index],
            length=self.length[index],
            keep=self.keep[index],
            bolus=tuple(None if b is None else b[index] for b in self.bolus),
            rate=tuple(None if r is None else r[index] for r in self.rate),
            time=self.time[index],
            segment=self.segment[index],
            boundary=self.boundary[index],
            events=self.events.select(index),
            target=self.target[index],
            origin=(whole, places[index]),
        )


def _reordered(events: Events, pick: Tensor, padding: Tensor) -> Events:
    """The events at `pick [subject, event]`, those in the padding made padding."""
    parts = {part.name: getattr(events, part.name).gather(-1, pick) for part in fields(events)}
    parts["kind"] = torch.where(padding, int(Kind.PAD), parts["kind"])
    return replace(events, **parts)


def _running(change: Tensor, reset: Tensor) -> Tensor:
    """Running rate from the changes at each event, all infusions ended by a reset."""
    total, count = change.cumsum(-1), change.sign().cumsum(-1)
    position = torch.arange(reset.shape[-1], device=reset.device).expand(reset.shape)
    latest = torch.where(reset, position, -1).cummax(-1).values
    before, base = latest < 0, latest.clamp(min=0)
    total = total - torch.where(before, 0.0, total.gather(-1, base))
    count = count - torch.where(before, 0.0, count.gather(-1, base))
    # the sum of overlapping rates leaves a rounding error when the last one stops; their number does not
    return torch.where(count > 0.5, total, 0.0)


def _position(label: str | int, compartments: Sequence[str]) -> int:
    if isinstance(label, int):
        if 0 <= label <= len(compartments):
            return max(label - 1, 0)
        legal = ", ".join(f"{k} = {name}" for k, name in enumerate(compartments, 1))
        raise DataError(
            f"expected a compartment of the model, got CMT {label}; the model has {legal} (0 is the first)",
            column="cmt",
        )
    if label in compartments:
        return list(compartments).index(label)
    raise DataError(
        f"expected a compartment of the model, got CMT {label!r}.{nearest(label, compartments)}", column="cmt"
    )
