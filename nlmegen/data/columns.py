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
NUMERIC = ("time", "dv", "amt", "evid", "mdv", "rate", "ii", "addl")
LABELS = ("cmt", "dvid")
RESULTS = frozenset(
    ("pred", "ipred", "epred", "res", "ires", "iwres", "wres", "cwres", "pwres", "npd", "npde", "ofvi", "tad")
)  # what a fit appends to a table: kept when such a table is read again, but never a covariate
TRUTHS = (
    "eta_",
    "true_",
)  # what a simulation or a fit knows of a patient: an encoder that read it would cheat

UNSUPPORTED: dict[str, str] = {
    "ss": "steady state is not supported yet: write the earlier doses out (ADDL and II, starting far enough back)",
    "lag": "lag times are not supported yet: move the dose's TIME",
    "alag": "lag times are not supported yet: move the dose's TIME",
    "occ": "occasions (inter-occasion variability) are not supported yet: leave the column out",
    "cens": "censored observations are not supported yet: leave them out (ignore=['cens != 0']) or set MDV=1",
    "blq": "censored observations are not supported yet: leave them out (ignore=['blq != 0']) or set MDV=1",
    "bql": "censored observations are not supported yet: leave them out (ignore=['bql != 0']) or set MDV=1",
    "lloq": "a limit of quantification is not supported yet: leave the column out and set MDV=1 below the limit",
    "limit": "censoring limits are not supported yet: leave the column out and set MDV=1 on censored records",
    "date": "calendar dates are not supported: put the elapsed time since the first record into TIME",
    "cont": "continued records are not supported: write one record a line",
    "pcmt": "PCMT is not supported: name the endpoint of an observation with DVID",
    "call": "CALL is not supported: leave the column out",
}
"""Reserved columns whose use (a value other than 0 or missing) asks for something that is not there yet."""

_LOOKALIKES = (
    (re.compile(r"l2"), "the flag of correlated observations"),
    (re.compile(r"f\d+"), "bioavailability"),
    (re.compile(r"d\d+|tinf"), "the duration of an infusion"),
    (re.compile(r"r\d+"), "the rate of an infusion"),
    (re.compile(r"s\d+"), "the scale of a compartment"),
    (re.compile(r"tlag"), "a lag time"),
)  # names that say something about doses or observations to other programs, and nothing here

_ALIASES = {"dat1": "date", "dat2": "date", "dat3": "date"}
NOT_A_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)|#?n/?a!?|null|none|missing|#.*!|#num", re.IGNORECASE)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Cells = list[str] | NDArray[Any]
"""One column as it came: the text of every cell, or an array of numbers."""


class DataWarning(UserWarning):
    """A table was read, but something in it deserves a look; the texts are kept in `Population.warnings`."""


def unsupported_kind(name: str) -> str | None:
    """Return the key of `UNSUPPORTED` that governs the column `name` (lower case), or None."""
    if name in UNSUPPORTED:
        return name
    if re.fullmatch(r"a?lag\d+", name):
        return "alag"
    return _ALIASES.get(name)


def lookalike(name: str) -> str | None:
    """Return what the column `name` (lower case) means to other programs although it is a covariate here, or None."""
    return next((meaning for pattern, meaning in _LOOKALIKES if pattern.fullmatch(name)), None)


def is_reserved(name: str) -> bool:
    """Say whether a column (lower case) has a meaning of its own and so is never a covariate."""
    return (
        name in ("id", *NUMERIC, *LABELS)
        or name in RESULTS
        or name.startswith(TRUTHS)
        or unsupported_kind(name) is not None
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
    if re.fullmatch(r"[+-]?\d+,\d+", text):
        return "write a decimal point, not a decimal comma"
    if name == "time" and ":" in text:
        return "clock times are not supported: write the elapsed time, e.g. hours since the first dose"
    if name == "dv" and re.match(r"[<>]|b[lq]", text, re.IGNORECASE):
        return (
            "a value below quantification is not supported yet: set MDV=1 and DV to '.', or ignore the record"
        )
    return "correct the cell, write '.' where the value is missing, or leave the record out with ignore="
