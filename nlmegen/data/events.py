"""What happens to a subject between its observations: doses, ends of infusions, resets, changes of covariates.

Records become events, events bound segments: within a segment nothing starts, stops or changes, so that a closed
form (or a smooth solve) carries the state across it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nlmegen.data.columns import Bools, Floats, Ints
from nlmegen.data.records import Records

_ROUNDING = 1e-11


class Kind(enum.IntEnum):
    """What an event does."""

    PAD = 0
    BOLUS = 1
    START = 2
    STOP = 3
    RESET = 4
    CHANGE = 5
    STEADY = 6
    OFF = 7


@dataclass(frozen=True, eq=False)
class Events:
    """The events of every subject, padded to the longest; event e opens segment e, which ends at event e + 1.

    Time does not decrease within a reset block; a RESET may set it back. Simultaneous records keep the order of the
    file. Additional doses (ADDL, II) are written out up to the last record of their reset block, where PREDPP stops
    too; one that falls on the time of a record comes before that record, as in NONMEM (an observation at that time
    sees the dose; found in mrgsolve's comparisons with NONMEM, github.com/metrumresearchgroup/mrgsolve no. 424; times
    that agree within rounding, 1e-11 relative, count as equal). An infusion is a START and a STOP
    with the opposite rate. A RESET empties the system, ends running infusions (their later STOPs are left out) and
    cancels pending additional doses; EVID 4 is a RESET followed by its dose. A CHANGE only bounds a segment: the first
    record of a subject (unless it is an event itself) or a change of a covariate or an occasion.

    A dose with SS is a STEADY, which sets the amounts of a system that has had the dose every `interval` for ever up to
    just before the record, and then the dose itself with its additional doses (none for a constant infusion, AMT = 0:
    it ends at the time of the record; NONMEM help, SS DOSE EVENT RECORD). SS = 1 replaces what is there: it ends
    running infusions and cancels pending additional doses of earlier records, as a RESET does; SS = 2 adds to it
    (NONMEM help, SS). Infusions of the series before that still run, because they last longer than `interval`, are not
    written out. An OFF empties its compartment, ends the infusions into it and lasts until the next dose into it
    (NONMEM help, CMT).

    Times, ends and rates here are those of lag 0 and bioavailability 1. Whoever scales amounts or moves doses finds an
    infusion's whole amount on its START, and computes its end from there: a STOP that a later RESET, STEADY or OFF
    makes void is left out, and the STOP of a modelled infusion stands right after its START, at the same time.

    Attributes:
        time: [subject, event] float64; padding repeats the last time.
        kind: [subject, event] int64, see `Kind`.
        amount: [subject, event] float64, AMT on BOLUS, START, STOP and STEADY, else 0. Read `kind` with it.
        rate: [subject, event] float64, added to the running rate: RATE at START, minus it at STOP; RATE of the
            infusions at STEADY; 0 where RATE is modelled, and elsewhere.
        compartment: [subject, event] int64, index into `Population.compartments` (0 where it means nothing).
        modelled: [subject, event] int64 on START, STOP and STEADY: 1 where the page gives the rate (RATE = -1), 2 where
            it gives the duration (RATE = -2), else 0.
        given: [subject, event] float64, the nominal time of the dose that the event belongs to: that of its START for a
            STOP, else `time`.
        interval: [subject, event] float64, II on STEADY (0 for a constant infusion), else 0.
        steady: [subject, event] int64, SS (1 or 2) on STEADY, else 0.
        additional: [subject, event] bool, whether the event belongs to an additional dose (ADDL).
    """

    time: Tensor
    kind: Tensor
    amount: Tensor
    rate: Tensor
    compartment: Tensor
    modelled: Tensor
    given: Tensor
    interval: Tensor
    steady: Tensor
    additional: Tensor

    @cached_property
    def plain(self) -> bool:
        """Whether there is no STEADY, no OFF and no infusion whose rate or duration is modelled."""
        return not bool((self.kind >= Kind.STEADY).any()) and not bool(self.modelled.any())

    def select(self, index: Tensor) -> Events:
        """Return the events of the subjects in `index` [M] (repeats allowed)."""
        return Events(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    def since_dose(self, time: Tensor, segment: Tensor) -> Tensor:
        """Return the time since the last dose at or before each observation.

        Additional and steady-state doses count. Times are nominal: a lag is not known here. A RESET forgets what was
        given before it.

        Args:
            time, segment: [subject, time] the observations and their segments.

        Returns:
            [subject, time], NaN before the first dose.
        """
        dose = (self.kind == Kind.BOLUS) | (self.kind == Kind.START) | (self.kind == Kind.STEADY)
        marks = dose | (self.kind == Kind.RESET)
        position = torch.arange(self.time.shape[1], device=self.time.device)
        last = torch.where(marks, position, -1).cummax(dim=1).values
        known = (last >= 0) & dose.gather(1, last.clamp(min=0))
        latest = torch.where(known, self.given.gather(1, last.clamp(min=0)), torch.nan)
        return time - latest.gather(1, segment)


@dataclass(frozen=True)
class Timeline:
    """The events of all subjects in one row of M, before padding.

    Attributes:
        time, kind, amount, rate, compartment, modelled, given, interval, steady, additional: [M] as in `Events`.
        source: [M] the record that ordered the event: for an additional dose, or the end of an infusion, that of the
            dose.
        record: [M] the last record at or before each event, which places it in the file.
        following: [M] the record after that, of the same subject (its last one at the end).
        start, count: [subject] first event and number of events.
        segment: [record] the segment (within its subject) that each record falls into.
    """

    time: Floats
    kind: Ints
    amount: Floats
    rate: Floats
    compartment: Ints
    modelled: Ints
    given: Floats
    interval: Floats
    steady: Ints
    additional: Bools
    source: Ints
    record: Ints
    following: Ints
    start: Ints
    count: Ints
    segment: Ints


def timeline(records: Records, interpolation: str, *, occasions: bool = True) -> Timeline:
    """Write the records' events out and put them in order.

    Args:
        records: The records.
        interpolation: "nonmem", "locf" or "linear"; decides where a change of a covariate bounds a segment.
        occasions: Whether a change of the occasion bounds a segment.

    Returns:
        The events in order, and the segment of each record.
    """
    lowest, highest = _bounds(records.block)
    _, last = _bounds(records.regime)
    reset = np.flatnonzero((records.evid == 3) | (records.evid == 4))
    steady = np.flatnonzero(records.steady > 0)
    off = np.flatnonzero(records.off)
    dose = np.flatnonzero(records.dosed & (records.amount > 0))
    owner, extra_time = _additional(records, dose, lowest, last)
    source = np.concatenate((dose, owner))  # the record whose AMT and RATE a dose has
    given = np.concatenate((records.time[dose], extra_time))
    free = records.modelled[source] > 0  # the page says when it ends
    running = (records.rate[source] > 0) | free
    stop_of = np.flatnonzero(running)
    stop_source, stop_given, stop_free = source[running], given[running], free[running]
    length = records.amount[stop_source] / np.where(stop_free, np.inf, records.rate[stop_source])
    stop_time = stop_given + length
    ends = records.time[last[stop_source]]
    cut = last[stop_source] + 1 < (records.start + records.count)[records.subject[stop_source]]
    kept = stop_free | ~cut | (stop_time <= ends)
    kept &= stop_free | ~_switched_off(records, off, stop_source, stop_given, stop_time, stop_of >= len(dose))
    stop_of, stop_source, stop_free = stop_of[kept], stop_source[kept], stop_free[kept]
    stop_given, stop_time = stop_given[kept], stop_time[kept]
    change = np.setdiff1d(
        np.union1d(_changes(records, interpolation, occasions), records.start),
        np.concatenate((reset, steady, off, dose)),
    )

    fixed = (reset, steady, off, dose, change)  # at records, in the order in which those of one record happen
    loose_source = np.concatenate((owner, stop_source))
    loose_time = np.concatenate((extra_time, stop_time))
    before = _first_at(records.time, lowest[loose_source], highest[loose_source] + 1, loose_time) - 1
    place = np.maximum(before, loose_source)
    record = np.concatenate((*fixed, place))
    origin = np.concatenate((*fixed, loose_source))
    time = np.concatenate((records.time[np.concatenate(fixed)], loose_time))
    sizes = (*map(len, fixed), len(owner), len(stop_source))
    is_reset, is_steady, is_off, is_dose, is_change, is_extra, is_stop = (
        np.repeat(np.arange(7), sizes) == k for k in range(7)
    )
    starts = (is_dose | is_extra) & ((records.rate[origin] > 0) | (records.modelled[origin] > 0))
    bolus = (is_dose | is_extra) & ~starts
    kind = np.select(
        (bolus, starts, is_stop, is_reset, is_steady, is_off),
        (Kind.BOLUS, Kind.START, Kind.STOP, Kind.RESET, Kind.STEADY, Kind.OFF),
        Kind.CHANGE,
    ).astype(np.int64)
    loose = is_extra | is_stop
    ordinal = np.arange(len(record), dtype=np.float64)
    given = time.copy()
    given[is_stop] = stop_given
    early = (
        is_stop.copy()
    )  # an infusion ends before another starts at that time, and before one at its end starts
    if stop_free.any():
        _beside_start(np.flatnonzero(is_stop)[stop_free], stop_of[stop_free], sizes, record, loose, ordinal)
        early[np.flatnonzero(is_stop)[stop_free]] = False
    order = np.lexsort((ordinal, ~early, time, loose, record))
    count = np.bincount(records.subject[record], minlength=len(records.ids))
    start = np.cumsum(count) - count
    of_dose = bolus | starts | is_stop | is_steady
    sign = np.where(is_stop, -1.0, 1.0)
    following = np.minimum(record + 1, (records.start + records.count - 1)[records.subject[record]])
    return Timeline(
        time=time[order],
        kind=kind[order],
        amount=np.where(of_dose, records.amount[origin], 0.0)[order],
        rate=np.where(of_dose & ~bolus, sign * records.rate[origin] + 0.0, 0.0)[order],
        compartment=np.where(is_reset | is_change, 0, records.compartment[origin])[order],
        modelled=np.where(of_dose, records.modelled[origin], 0)[order],
        given=given[order],
        interval=np.where(is_steady, records.interval[origin], 0.0)[order],
        steady=np.where(is_steady, records.steady[origin], 0)[order],
        additional=is_extra[order] | (is_stop & (given != records.time[origin]))[order],
        source=origin[order],
        record=record[order],
        following=following[order],
        start=start,
        count=count,
        segment=_segments(records, record, loose) - start[records.subject],
    )


def _beside_start(
    stop: Ints, dose: Ints, sizes: tuple[int, ...], record: Ints, loose: Bools, ordinal: Floats
) -> None:
    """Put the STOPs of modelled infusions right after their STARTs.

    Args:
        stop: the STOPs, among all events.
        dose: for each of them its dose, counted over the doses and then the additional ones.
        sizes: how many there are of each sort.
        record, loose, ordinal: what orders events; the entries of the STOPs are changed.
    """
    doses, changes = sizes[3], sizes[4]
    first = sum(sizes[:3])
    start = first + dose + np.where(dose >= doses, changes, 0)
    record[stop], loose[stop], ordinal[stop] = record[start], loose[start], ordinal[start] + 0.5


def _switched_off(
    records: Records, off: Ints, source: Ints, given: Floats, until: Floats, extra: Bools
) -> Bools:
    """Say which infusions run when their compartment is switched off.

    Args:
        records: the records.
        off: the records that switch a compartment off.
        source, given, until: the record, the start and the end of each infusion.
        extra: whether it is an additional dose, which comes before a record at its time.
    """
    found = np.zeros(len(source), dtype=np.bool_)
    for row in off.tolist():
        here = (records.block[source] == records.block[row]) & (source < row)
        here &= records.compartment[source] == records.compartment[row]
        found |= here & np.where(extra, given <= records.time[row], True) & (until > records.time[row])
    return found


def _bounds(block: Ints) -> tuple[Ints, Ints]:
    """Return for each record the first and the last record of its block."""
    first = np.flatnonzero(np.diff(block, prepend=0))
    size = np.diff(first, append=len(block))
    return np.repeat(first, size), np.repeat(first + size - 1, size)


def _additional(records: Records, dose: Ints, lowest: Ints, highest: Ints) -> tuple[Ints, Floats]:
    """Write ADDL and II out: the record that ordered each additional dose, and its time."""
    ordering = dose[records.additional[dose] > 0]
    interval = records.interval[ordering]
    with np.errstate(over="ignore"):  # a minute interval leaves room for all of them
        room = np.floor((records.time[highest[ordering]] - records.time[ordering]) / interval + 1e-9)
    number = np.minimum(records.additional[ordering], room).astype(np.int64)
    owner = np.repeat(ordering, number)
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number) + 1
    time = records.time[owner] + nth * records.interval[owner]
    # 3 x 0.1 is not 0.3: a dose that rounding moved off the time of a record is moved back onto it
    slack = _ROUNDING * np.maximum(np.abs(time), records.interval[owner])
    near = np.minimum(
        _first_at(records.time, lowest[owner], highest[owner] + 1, time - slack), highest[owner]
    )
    return owner, np.where(np.abs(records.time[near] - time) <= slack, records.time[near], time)


def _changes(records: Records, interpolation: str, occasions: bool) -> Ints:
    """Return the records at which a change of a covariate, or of the occasion, bounds a segment."""
    inner = np.diff(records.subject, prepend=-1) == 0
    numbers = np.zeros(len(records.time), dtype=np.bool_)
    levels = numbers.copy()
    for name, values in records.covariates.items():
        differs = inner & (np.diff(values, prepend=values[:1]) != 0)
        if name in records.levels:
            levels |= differs
        else:
            numbers |= differs
    if occasions and records.occasion is not None:
        levels |= inner & (np.diff(records.occasion[0], prepend=0) != 0)
    if interpolation == "locf":
        return np.flatnonzero(numbers | levels)
    if interpolation == "nonmem":
        return np.flatnonzero(numbers | levels) - 1
    varies = np.bincount(records.subject, weights=numbers) > 0
    return np.union1d(np.flatnonzero(varies[records.subject]), np.flatnonzero(levels) - 1)


def _segments(records: Records, record: Ints, loose: Bools) -> Ints:
    """Return the number of the last event at or before each record, counted over all subjects."""
    size = len(records.time)
    own = np.cumsum(np.bincount(record[~loose], minlength=size))
    between = np.cumsum(np.bincount(record[loose], minlength=size))
    earlier = np.concatenate((np.zeros(1, dtype=np.int64), between[:-1]))
    return np.asarray(own + earlier - 1, dtype=np.int64)


def _first_at(time: Floats, low: Ints, high: Ints, query: Floats) -> Ints:
    """Return the first index in [low, high) with time >= query, or high: a bisection of all queries at once."""
    low, high = low.copy(), high.copy()
    while (low < high).any():
        middle = (low + high) // 2
        below = (low < high) & (time[np.minimum(middle, len(time) - 1)] < query)
        low, high = np.where(below, middle + 1, low), np.where(below | (low >= high), high, middle)
    return low
