"""Dates and clock times: from DATE, DAT1, DAT2 or DAT3 and a TIME such as 8:30 to elapsed hours."""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from nlmegen.data.columns import (
    CLOCK,
    DATES,
    Bools,
    Floats,
    Table,
    check,
    is_number,
    number_text,
    quote,
    timestamp,
)
from nlmegen.errors import DataError

_CLOCK = re.compile(r"(\d{1,3}):([0-5]?\d)(?::([0-5]?\d(?:\.\d*)?))?")
_DATE = re.compile(r"(\d{1,4})\D(\d{1,4})(?:\D(\d{1,4}))?")
_YEAR_FIRST = re.compile(r"\d{4}-\d{1,2}-\d{1,2}")
_PIVOT = 50  # a year of two digits below it lies in this century
_MOST_DAYS = 1_000_000  # 20240501 is a date without separators, not the number of a day
_HOURS = frozenset(("", "h", "hr", "hrs", "hour", "hours"))


def elapsed(table: Table) -> Table:
    """Turn dates and clock times into hours since the first record of each subject; other tables stay as they are.

    The rules are NM-TRAN's day-time translation (NONMEM help, DATE DATA ITEM): a TIME is a clock time if it has a colon
    (hours:minutes, hours:minutes:seconds) or if there is a date; otherwise it is elapsed time. DATE
    is month/day/year, DAT1 day/month/year, DAT2 year/month/day, DAT3 year/day/month, with any character between the
    numbers. A single number is the number of a day; two are month and day in that order, of a year without a 29
    February. Years have four digits, or two (50 to 99: 1950 to 1999; 00 to 49: 2000 to 2049). As its year cannot be a
    month, 2024-05-01 is read in DATE as well. Date and time as they were written are kept in a column CLOCK.

    Raises:
        DataError: a date or time that is none, two columns of dates, or clock times that go back without a date.
    """
    named = [name for name in DATES if table.has(name)]
    times = table.frame["time"]
    text = not pd.api.types.is_numeric_dtype(times)
    clocked = text and any(isinstance(cell, str) and ":" in cell for cell in times)
    if not named and not clocked:
        return table
    if len(named) > 1:
        raise DataError(
            f"expected one column of dates, got {' and '.join(table.name(name) for name in named)}; leave one out with "
            "rename={'THAT NAME': 'drop'}",
            column=table.name(named[1]),
        )
    if CLOCK in table.frame.columns:
        raise DataError(
            "expected no column CLOCK beside clock times (date and time as written are kept there), got one; rename it",
            column=table.name(CLOCK),
        )
    seconds, days = _seconds(table, dated=bool(named)), np.zeros(len(times))
    if named:
        days = _days(table, named[0])
    run = np.cumsum(np.diff(pd.factorize(table.frame["id"])[0], prepend=-1) != 0) - 1
    first = np.flatnonzero(np.diff(run, prepend=-1))[run]
    hours = ((days - days[first]) * 86400 + (seconds - seconds[first])) / 3600
    if not named:
        _check_midnight(table, hours, np.asarray(np.diff(run, prepend=-1) == 0))
    if not named:
        return _with_clock(table, hours, named, "")
    inner = np.asarray(np.diff(run, prepend=-1) == 0)
    return _with_clock(table, hours, named, _order(table, named[0], days, seconds, inner, clocked=clocked))


def check_unit(table: Table, time_unit: str) -> None:
    """Refuse another unit of time than hours where TIME was made from clock times.

    Raises:
        DataError: there are clock times and the unit is another.
    """
    if CLOCK in table.frame.columns and time_unit.lower() not in _HOURS:
        raise DataError(
            f"expected time_unit='h', got {time_unit!r}: clock times become hours; leave the unit out, or write the "
            "elapsed time"
        )


def _seconds(table: Table, *, dated: bool) -> Floats:
    """TIME in seconds: of the day, or since some midnight where there is no date."""
    times = table.frame["time"]
    if pd.api.types.is_numeric_dtype(times):
        found = times.to_numpy(np.float64) * 3600
    else:
        found = np.array([_second(table, row, cell) for row, cell in enumerate(times)])
    if dated:
        check(
            table,
            "time",
            (found < 0) | (found > 86400),
            "expected a time of the day from 0 to 24 h beside a date, got {} h; if TIME is elapsed time, leave the "
            "date out with rename={{'DATE': 'drop'}}",
            found / 3600,
        )
    return found


def _second(table: Table, row: int, cell: Any) -> float:
    if not isinstance(cell, str):
        return float("nan")
    if is_number(cell):
        return float(cell) * 3600
    parts = _CLOCK.fullmatch(cell)
    if parts is None:
        how = "write 14:30" if re.search("[ap]m", cell, re.IGNORECASE) else "correct the cell"
        how = timestamp(cell) or how
        raise table.error(
            f"expected a clock time hours:minutes or hours:minutes:seconds, got {quote(cell)}; {how}",
            row,
            "time",
        )
    return int(parts[1]) * 3600 + int(parts[2]) * 60 + float(parts[3] or 0)


def _days(table: Table, name: str) -> Floats:
    """The number of the day of every record."""
    column = table.frame[name]
    blank = column.isna().to_numpy()
    check(table, name, blank, "expected a date on every record, got none; write it")
    if pd.api.types.is_numeric_dtype(column):
        days = column.to_numpy(np.float64)
        wrong = (days != np.floor(days)) | (np.abs(days) >= _MOST_DAYS)
        order = "/".join({"m": "month", "d": "day", "y": "year"}[letter] for letter in DATES[name])
        check(
            table,
            name,
            wrong,
            f"expected a date ({order}) or the whole number of a day, got {{}}; write the "
            "date with '/' in between",
            days,
        )
        return days
    return np.array([_day(table, name, row, cell) for row, cell in enumerate(column)], dtype=np.float64)


def _day(table: Table, name: str, row: int, cell: str) -> int:
    order = DATES[name]
    words = "/".join({"m": "month", "d": "day", "y": "year"}[letter] for letter in order)
    parts = _DATE.fullmatch(cell)
    if parts is None:
        raise table.error(f"expected a date ({words}), got {quote(cell)}; correct it", row, name)
    if name == "date" and _YEAR_FIRST.fullmatch(cell):
        order = "ymd"
    if parts[3] is None:
        order = order.replace("y", "")
    value = {"y": "2001", **{letter: parts[k + 1] for k, letter in enumerate(order)}}
    year = int(value["y"])
    if len(value["y"]) <= 2:
        year += 2000 if year < _PIVOT else 1900
    try:
        return datetime.date(year, int(value["m"]), int(value["d"])).toordinal()
    except ValueError:
        others = ", ".join(f"{other.upper()} is {''.join(DATES[other])}" for other in DATES if other != name)
        raise table.error(
            f"expected a date ({words}), got {quote(cell)}; correct it, or name the column after its order ({others}; "
            "m, d, y: month, day, year)",
            row,
            name,
        ) from None


def _check_midnight(table: Table, hours: Floats, inner: Bools) -> None:
    evid = table.numbers("evid")
    back = inner & (np.diff(hours, prepend=0.0) < 0) & (evid != 3) & (evid != 4)
    if back.any():
        row = int(np.argmax(back))
        cells = table.frame["time"]
        raise table.error(
            f"expected clock times that do not go back within a subject, got {cells.iloc[row]} after "
            f"{cells.iloc[row - 1]}; add a DATE column (month/day/year, or the number of the day) that says when "
            "the day changes",
            row,
            "time",
        )


def _order(table: Table, name: str, days: Floats, seconds: Floats, inner: Bools, *, clocked: bool) -> str:
    """Say how dates and times were read, and where TIME looks like elapsed time that knows the day already."""
    first, last = int(days.min()), int(days.max())
    column = table.frame[name]
    if pd.api.types.is_numeric_dtype(column):
        words = f"; {table.name(name)} read as the number of a day from {first} to {last}"
    else:
        order = "/".join({"m": "month", "d": "day", "y": "year"}[letter] for letter in DATES[name])
        if _YEAR_FIRST.fullmatch(str(column.iloc[0])):
            order = "year/month/day"
        parts = _DATE.fullmatch(str(column.iloc[0]))
        pattern = "{0.day} {0:%b} {0.year}" if parts is not None and parts[3] else "{0.day} {0:%b}"
        begin, end = (pattern.format(datetime.date.fromordinal(day)) for day in (first, last))
        words = f"; {table.name(name)} read as {order} from {begin} to {end}"
    if clocked:
        return words
    words += "; TIME has no colon: its numbers were read as hours of the day from 0 to 24"
    turned = inner & (np.diff(days, prepend=0.0) > 0)
    if turned.any() and (np.diff(seconds, prepend=0.0)[turned] >= 0).all():
        row = int(np.argmax(turned))
        words += (
            f", although TIME never goes back where the day changes (the first on line {table.line[row]}), as "
            f"in elapsed time, which knows the day already: if it is that, rename={{'{table.name(name)}': 'drop'}}"
        )
    return words


def _with_clock(table: Table, hours: Floats, named: list[str], order: str) -> Table:
    frame = table.frame
    written = frame["time"].map(lambda x: x if isinstance(x, str) else number_text(x))
    for name in named:
        dates = frame[name].map(lambda x: x if isinstance(x, str) else number_text(x))
        written = dates + " " + written
    frame = frame.assign(time=hours).drop(columns=[name for name in DATES if name in frame.columns])
    frame.insert(list(frame.columns).index("time") + 1, CLOCK, written.astype(object))
    source = f"{' and '.join([*(table.name(name) for name in named), 'clock times'])}"
    note = f"TIME was made from {source}: hours since the first record of each subject{order}"
    return replace(
        table, frame=frame, shown={**table.shown, CLOCK: CLOCK.upper()}, warnings=[*table.warnings, note]
    )
