"""What happens to a subject between its observations: doses, ends of infusions, resets, changes of covariates.

Records become events, events bound segments: within a segment nothing starts, stops or changes, so that a closed
form (or a smooth solve) carries the state across it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
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
    record of a subject (unless it is a dose or reset itself) or a change of a covariate.

    Attributes:
        time: [subject, event] float64; padding repeats the last time.
        kind: [subject, event] int64, see `Kind`.
        amount: [subject, event] float64, the amount of a BOLUS, else 0.
        rate: [subject, event] float64, added to the running rate: AMT's RATE at START, minus it at STOP, else 0.
        compartment: [subject, event] int64, index into `Population.compartments` (0 where it means nothing).
    """

    time: Tensor
    kind: Tensor
    amount: Tensor
    rate: Tensor
    compartment: Tensor

    def select(self, index: Tensor) -> Events:
        """Return the events of the subjects in `index` [M] (repeats allowed)."""
        return Events(*(x[index] for x in (self.time, self.kind, self.amount, self.rate, self.compartment)))


@dataclass(frozen=True)
class Timeline:
    """The events of all subjects in one row of M, before padding.

    Attributes:
        time, kind, amount, rate, compartment: [M] as in `Events`.
        record: [M] the last record at or before each event, which places it in the file.
        start, count: [subject] first event and number of events.
        segment: [record] the segment (within its subject) that each record falls into.
    """

    time: Floats
    kind: Ints
    amount: Floats
    rate: Floats
    compartment: Ints
    record: Ints
    start: Ints
    count: Ints
    segment: Ints


def timeline(records: Records, interpolation: str) -> Timeline:
    """Write the records' events out and put them in order.

    Args:
        records: The records.
        interpolation: "nonmem", "locf" or "linear"; decides where a change of a covariate bounds a segment.

    Returns:
        The events in order, and the segment of each record.
    """
    lowest, highest = _block_bounds(records)
    reset = np.flatnonzero((records.evid == 3) | (records.evid == 4))
    dose = np.flatnonzero(records.dosed)
    owner, extra_time = _additional(records, dose, lowest, highest)
    source = np.concatenate((dose, owner))  # the record whose AMT and RATE a dose has
    given = np.concatenate((records.time[dose], extra_time))
    running = records.rate[source] > 0
    stop_source = source[running]
    stop_time = given[running] + records.amount[stop_source] / records.rate[stop_source]
    ends = records.time[highest[stop_source]]
    reset_follows = highest[stop_source] + 1 < (records.start + records.count)[records.subject[stop_source]]
    kept = ~reset_follows | (stop_time <= ends)
    stop_source, stop_time = stop_source[kept], stop_time[kept]
    change = np.setdiff1d(
        np.union1d(_changes(records, interpolation), records.start),
        np.union1d(reset, dose),
        assume_unique=True,
    )

    loose_source = np.concatenate((owner, stop_source))
    loose_time = np.concatenate((extra_time, stop_time))
    before = _first_at(records.time, lowest[loose_source], highest[loose_source] + 1, loose_time) - 1
    record = np.concatenate((reset, dose, change, np.maximum(before, loose_source)))
    time = np.concatenate((records.time[np.concatenate((reset, dose, change))], loose_time))
    origin = np.concatenate((reset, dose, change, loose_source))
    sizes = (len(reset), len(dose), len(change), len(owner), len(stop_source))
    is_reset, is_dose, is_change, is_extra, is_stop = (np.repeat(np.arange(5), sizes) == k for k in range(5))
    starts = (is_dose | is_extra) & (records.rate[origin] > 0)
    bolus = (is_dose | is_extra) & ~starts
    kind = np.select(
        (bolus, starts, is_stop, is_reset), (Kind.BOLUS, Kind.START, Kind.STOP, Kind.RESET), Kind.CHANGE
    ).astype(np.int64)
    loose = is_extra | is_stop
    order = np.lexsort((np.arange(len(record)), ~is_stop, time, loose, record))
    count = np.bincount(records.subject[record], minlength=len(records.ids))
    start = np.cumsum(count) - count
    return Timeline(
        time=time[order],
        kind=kind[order],
        amount=np.where(bolus, records.amount[origin], 0.0)[order],
        rate=np.where(starts, records.rate[origin], np.where(is_stop, -records.rate[origin], 0.0))[order],
        compartment=np.where(is_reset | is_change, 0, records.compartment[origin])[order],
        record=record[order],
        start=start,
        count=count,
        segment=_segments(records, record, loose) - start[records.subject],
    )


def covariate_in_segments(values: Floats, records: Records, record: Ints, interpolation: str) -> Floats:
    """Return the value of a covariate in the segments that events open.

    With (t_i, x_i) the records of a subject, the segments between t_i and t_{i+1} carry x_{i+1} ("nonmem": the next
    record governs the interval that ends at it), x_i ("locf") or (x_i + x_{i+1}) / 2 ("linear": the value of the
    straight line at the middle of the interval). After the last record x stays.

    Args:
        values: [R] one value a record.
        records: The records.
        record: [M] the last record at or before each event.
        interpolation: "nonmem", "locf" or "linear".

    Returns:
        [M] values.
    """
    following = np.minimum(record + 1, (records.start + records.count - 1)[records.subject[record]])
    weight = {"nonmem": 1.0, "locf": 0.0, "linear": 0.5}[interpolation]
    return np.asarray(values[record] + weight * (values[following] - values[record]), dtype=np.float64)


def _block_bounds(records: Records) -> tuple[Ints, Ints]:
    """Return for each record the first and the last record of its reset block."""
    first = np.flatnonzero(np.diff(records.block, prepend=0))
    size = np.diff(first, append=len(records.block))
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


def _changes(records: Records, interpolation: str) -> Ints:
    """Return the records at which a covariate's change bounds a segment."""
    differs = np.zeros(len(records.time), dtype=np.bool_)
    inner = np.diff(records.subject, prepend=-1) == 0
    for values in records.covariates.values():
        differs |= inner & (np.diff(values, prepend=values[:1]) != 0)
    if interpolation == "nonmem":
        return np.flatnonzero(differs) - 1
    if interpolation == "locf":
        return np.flatnonzero(differs)
    varies = np.bincount(records.subject, weights=differs) > 0
    return np.flatnonzero(varies[records.subject])


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
