"""The columns of a NONMEM-format table: their names, which are reserved, and a table as it passes through reading."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nlmegen.errors import DataError

REQUIRED = ("id", "time", "dv")
NUMERIC = ("time", "dv", "amt", "evid", "mdv", "rate", "ii", "addl", "ss")
LABELS = ("cmt", "dvid", "occ", "l2")
FLAGS = ("cens", "blq", "bql")  # three names of one thing: 1 below a limit; only cens has -1, above one
LIMITS = ("lloq", "uloq", "limit")
DATES = {"date": "mdy", "dat1": "dmy", "dat2": "ymd", "dat3": "ydm"}
"""Columns of dates, and the order of month, day and year in them (NM-TRAN's)."""
CLOCK = "clock"
"""Where a table keeps date and time as they were written, once TIME holds elapsed hours."""
RESULTS = frozenset(
    ("pred", "ipred", "epred", "res", "ires", "iwres", "wres", "cwres", "pwres", "npd", "npde", "ofvi", "tad")
)  # what a fit appends to a table: kept when such a table is read again, but never a covariate
TRUTHS = (
    "eta_",
    "kappa_",
    "true_",
)  # what a simulation or a fit knows of a patient: an encoder that read it would cheat

UNSUPPORTED: dict[str, str] = {
    "cont": "continued records are not supported: write one record a line",
    "pcmt": "PCMT is not supported: name the endpoint of an observation with DVID",
    "call": "CALL is not supported: leave the column out",
}
"""Reserved columns whose use (a value other than 0 or missing) asks for something that is not there yet."""

_STAMP = re.compile(r"(\d{4}[-/]\d{1,2}[-/]\d{1,2})[T ]+(\d{1,2}:\d{2}(?::\d{2})?)\S*")
NOT_A_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)|#?n/?a!?|null|none|missing|#.*!|#num", re.IGNORECASE)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Cells = list[str] | NDArray[Any]
"""One column as it came: the text of every cell, or an array of numbers."""


class DataWarning(UserWarning):
    """A table was read, but something in it deserves a look; the texts are kept in `Population.warnings`."""


def is_reserved(name: str) -> bool:
    """Say whether a column (lower case) has a meaning of its own and so is never a covariate."""
    return (
        name in ("id", *NUMERIC, *LABELS, *FLAGS, *LIMITS, CLOCK)
        or name in DATES
        or name in RESULTS
        or name.startswith(TRUTHS)
        or name in UNSUPPORTED
    )


@dataclass(frozen=True)
class Raw:
    """A table before its cells are read: what `ignore`, `accept` and `rename` work on.

    Attributes:
        cells: Lower-case column name -> its cells.
        shown: Lower-case column name -> the name as the user wrote it, for messages.
        line: [R] line of the file (header = 1) that each record came from.
    """

    cells: dict[str, Cells]
    shown: dict[str, str]
    line: Ints

    def error(self, message: str, row: int | None = None, column: str | None = None) -> DataError:
        """Build a DataError for record `row` (counted from 0) and column `column` (lower case)."""
        line = None if row is None else int(self.line[row])
        return DataError(
            message, row=line, column=None if column is None else self.shown.get(column, column.upper())
        )

    def keep(self, mask: Bools) -> Raw:
        """Return the records where `mask` is true."""
        cells: dict[str, Cells] = {
            name: list(compress(column, mask)) if isinstance(column, list) else column[mask]
            for name, column in self.cells.items()
        }
        return replace(self, cells=cells, line=self.line[mask])


@dataclass(frozen=True)
class Table:
    """A table whose cells are read: numbers are numbers, text is text, missing is NaN.

    Attributes:
        frame: The records in file order; lower-case column names.
        shown: As in `Raw`.
        line: As in `Raw`.
        warnings: What was odd about single columns.
    """

    frame: pd.DataFrame
    shown: dict[str, str]
    line: Ints
    warnings: list[str] = field(default_factory=list)

    def error(self, message: str, row: int | None = None, column: str | None = None) -> DataError:
        """Build a DataError for record `row` (counted from 0) and column `column` (lower case)."""
        line = None if row is None else int(self.line[row])
        return DataError(
            message, row=line, column=None if column is None else self.shown.get(column, column.upper())
        )

    def name(self, column: str) -> str:
        """Return the name of a column as the user wrote it."""
        return self.shown.get(column, column.upper())

    def has(self, column: str) -> bool:
        """Say whether the column is there and not blank throughout."""
        return column in self.frame.columns and bool(self.frame[column].notna().any())

    def numbers(self, column: str) -> Floats:
        """Return a column as [R] float64, NaN where missing (everywhere, if the column is absent).

        Raises:
            DataError: a cell holds text.
        """
        if column not in self.frame.columns:
            return np.full(len(self.frame), np.nan)
        values = self.frame[column]
        if pd.api.types.is_numeric_dtype(values):
            return values.to_numpy(np.float64)
        for row, value in enumerate(values):
            if isinstance(value, str) and not is_number(value):
                raise self.error(
                    f"expected a number, got {quote(value)}; {remedy(column, value)}", row, column
                )
        return np.array([float(v) if isinstance(v, str) else np.nan for v in values], dtype=np.float64)


def check(table: Table, column: str, wrong: Bools, message: str, values: Floats | None = None) -> None:
    """Raise for the first record where `wrong`; `{}` in the message is the value there.

    Raises:
        DataError: some record is wrong.
    """
    if wrong.any():
        row = int(np.argmax(wrong))
        raise table.error(
            message if values is None else message.format(number_text(values[row])), row, column
        )


def number_text(value: float) -> str:
    """Return a number for a message."""
    return "nothing" if np.isnan(value) else f"{value:.12g}"


def named(header: Sequence[str], row: int | None = None) -> dict[str, str]:
    """Map the lower-case names of a header to the names as written.

    Raises:
        DataError: an empty name, or one name twice (case does not count).
    """
    shown: dict[str, str] = {}
    for position, text in enumerate(header, start=1):
        name = text.strip()
        if "\n" in name or "\r" in name:
            raise DataError("expected one line, got a column name with a line break; rename it", column=name)
        if not name:
            raise DataError(
                f"expected a column name, got an empty one in position {position}; name the column or remove it "
                "(in R: write.csv(..., row.names = FALSE))",
                row=row,
            )
        if name.lower() in shown:
            raise DataError(
                f"expected every column name once, got it twice (columns {shown[name.lower()]!r} and {name!r}; upper "
                "and lower case are the same); rename or remove one of them",
                row=row,
                column=name,
            )
        shown[name.lower()] = name
    return shown


def is_number(text: str) -> bool:
    """Say whether a text is a finite number; 1_000, which Python would read, is none."""
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def quote(text: str) -> str:
    """Return a cell for a message, in quotes, cut where it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def remedy(name: str, text: str) -> str:
    """Return what to do about a cell `text` of column `name` that is no number."""
    if NOT_A_NUMBER.fullmatch(text):
        note = "; a record without a measurement has MDV=1" if name == "dv" else ""
        return f"write '.' or leave the cell empty where a value is missing{note}"
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", text):
        plain = text.replace(",", "")
        return f"write {plain}, without a separator of thousands (a decimal comma would be a decimal point)"
    if re.fullmatch(r"[+-]?\d+,\d+", text):
        return "write a decimal point, not a decimal comma"
    if name == "time" and (stamp := timestamp(text)):
        return stamp
    if name == "time" and ":" in text:
        return "a clock time is hours:minutes or hours:minutes:seconds, from 0:00 to 24:00"
    if name == "dv" and re.match(r"[<>]|[ab][lq]", text, re.IGNORECASE):
        return "write '<0.5' or '>100' for a measurement beyond a limit, or 'BLQ', 'ALQ' with the limit in LLOQ, ULOQ"
    if name == "dv" and re.fullmatch(r"[^\W\d_][^\d]*", text):
        return (
            "correct the cell (grades and categories are coded 0, 1, 2, ... in order, no and yes 0 and 1), write '.' "
            "and MDV=1 where the value is missing, or leave the record out with ignore="
        )
    return "correct the cell, write '.' where the value is missing, or leave the record out with ignore="


def timestamp(text: str) -> str | None:
    """Return how to write a date and time of one cell, such as 2024-02-27T08:30, or None if `text` is none."""
    found = _STAMP.fullmatch(text)
    if found is None:
        return None
    return f"write the date into a column DAT2 ({found[1]}) and the clock time into TIME ({found[2]})"
