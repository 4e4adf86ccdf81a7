"""A table as its checks see it: records, time after dose, amounts, values by dose; and what a check finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nlmegen.data.columns import Bools, Floats, Ints, Table
from nlmegen.data.population import Population
from nlmegen.data.records import Records

ROBUST = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution."""

_NAMED = 5
"""Lines, or subjects, that a sentence names."""


_GRADES = 12
"""Fewer distinct whole numbers than these are counts or grades."""


@dataclass(frozen=True)
class Finding:
    """One thing that looks odd.

    Attributes:
        text: What, on which lines, and what to do.
        rows: The records of the table it concerns, counted from 0; empty where it concerns no single record.
        kind: "dv", "dose", "time", "covariate" or "table".
    """

    text: str
    rows: tuple[int, ...] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Profile:
    """The positive, measured values of one endpoint, on a log10 scale, freed of the typical course after a dose.

    Attributes:
        label: The endpoint's DVID.
        rows: [n] records.
        value: [n] log10 of DV, divided by the dose where the endpoint follows it.
        by_dose: Whether it was divided.
        residual: [n] value less the median of the values at a like time after dose.
        spread: [n] robust standard deviation of the residuals at a like time after dose.
    """

    label: str | int
    rows: Ints
    value: Floats
    by_dose: bool
    residual: Floats
    spread: Floats


@dataclass(frozen=True)
class View:
    """A table that was read.

    Attributes:
        table: Its cells.
        records: What its records mean.
        population: The same, padded.
    """

    table: Table
    records: Records
    population: Population

    @cached_property
    def since(self) -> Floats:
        """[R] time since the last dose, also an additional one, at an observation; NaN before the first or a reset."""
        mask = self.population.mask.numpy()
        out = np.full(len(self.records.time), np.nan)
        out[self.population.row.numpy()[mask]] = self.population.time_after_dose.numpy()[mask]
        return out

    @cached_property
    def largest(self) -> Floats:
        """[R] the largest amount that the subject was given at one time up to a record; 0 before the first dose."""
        amount = np.where(self.records.dosed, self.records.amount, 0.0)
        out = np.zeros_like(amount)
        for start, count in zip(self.records.start, self.records.count, strict=True):
            out[start : start + count] = np.maximum.accumulate(amount[start : start + count])
        return out

    @cached_property
    def censored(self) -> Ints:
        """[R] 1 where DV is a limit that the true value is below, -1 above, else 0."""
        out = np.zeros(len(self.records.time), dtype=np.int64)
        mask = self.population.mask.numpy()
        out[self.population.row.numpy()[mask]] = self.population.cens.numpy()[mask]
        return out

    @cached_property
    def measured(self) -> Bools:
        """[R] whether DV is a measured value."""
        return np.asarray(self.records.observed & (self.censored == 0), dtype=np.bool_)

    @cached_property
    def profiles(self) -> list[Profile]:
        """One profile for each endpoint with ten positive values or more; none for a table of logarithms."""
        return list(self._profiles())

    def _profiles(self) -> Iterator[Profile]:
        records = self.records
        anywhere = bool(records.dosed.any())
        for code, label in enumerate(records.dvids):
            mine = self.measured & (records.dvid == code)
            if (records.dv[mine] < 0).mean() > 0.05 if mine.any() else True:
                continue
            rows = np.flatnonzero(mine & (records.dv > 0) & ((self.largest > 0) | (not anywhere)))
            if len(rows) < 10:
                continue
            time = np.nan_to_num(self.since[rows]) if anywhere else records.time[rows]
            group = _alike(time, len(np.unique(records.subject[rows])))
            raw = np.log10(records.dv[rows])
            choices = [(raw, False)]
            if anywhere:
                choices.insert(0, (raw - np.log10(self.largest[rows]), True))
            made = [(*_freed(value, group), value, by_dose) for value, by_dose in choices]
            # An effect does not grow with the dose as a concentration does: the tighter of the two tells.
            best = made[0]
            if len(made) > 1 and np.median(np.abs(made[1][0])) < 0.6 * np.median(np.abs(made[0][0])):
                best = made[1]
            yield Profile(label, rows, best[2], best[3], best[0], best[1])

    def discrete(self, rows: Ints) -> bool:
        """Whether DV of records is a count or a grade: few distinct whole numbers."""
        values = self.records.dv[rows]
        return bool((values == np.floor(values)).all()) and len(np.unique(values)) < _GRADES

    def where(self, rows: Ints) -> str:
        """Records in words: how many, and their lines."""
        lines = ", ".join(str(self.table.line[row]) for row in rows[:_NAMED])
        more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
        return f"{count(len(rows), 'record')} (line{'s' if len(rows) > 1 else ''} {lines}{more})"

    def who(self, subjects: Ints) -> str:
        """Subjects in words: how many, and their ids."""
        ids = ", ".join(self.records.ids[k] for k in subjects[:_NAMED])
        return f"{count(len(subjects), 'subject')} (id {ids}{', ...' if len(subjects) > _NAMED else ''}"

    def finding(self, kind: str, text: str, rows: Ints) -> Finding:
        """A finding about records; `{}` in the text stands for them."""
        return Finding(text.replace("{}", self.where(rows), 1), tuple(int(row) for row in rows), kind)


def count(number: int, noun: str) -> str:
    """A number and its noun.

    Example:
        >>> count(1, "record"), count(1200, "record")
        ('1 record', '1,200 records')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def robust(values: Floats) -> float:
    """Robust standard deviation of values about their median."""
    return float(ROBUST * np.median(np.abs(values - np.median(values))))


def _alike(time: Floats, subjects: int) -> Ints:
    """[n] groups of like times after dose: eight values or one a subject each, whichever is more; 15 at most."""
    most = int(np.clip(len(time) // max(8, min(subjects, 200)), 1, 15))
    order = np.argsort(time, kind="stable")
    group = np.empty(len(time), dtype=np.int64)
    group[order] = np.arange(len(time)) * most // len(time)
    # values at one time belong together, in the group of the first of them
    _, first, inverse = np.unique(time[order], return_index=True, return_inverse=True)
    group[order] = group[order][first][inverse]
    return group


def _freed(value: Floats, group: Ints) -> tuple[Floats, Floats]:
    """[n] values less the median of their group, and [n] robust standard deviation of the group."""
    residual, spread = np.empty_like(value), np.empty_like(value)
    for one in np.unique(group):
        here = group == one
        residual[here] = value[here] - np.median(value[here])
        spread[here] = robust(value[here])
    return residual, np.maximum(spread, robust(residual))
