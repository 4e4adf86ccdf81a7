"""The columns of a NONMEM-format table: their names, which are reserved, and how a cell becomes a number.

A table comes as text (a csv file) or as a DataFrame; both pass through `typed`, so that both obey one set of
rules: `.` and an empty cell are missing, nothing else is.
"""

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
    ("pred", "ipred", "epred", "res", "ires", "iwres", "wres", "cwres", "npd", "npde", "ofvi", "tad")
)  # what a fit appends to a table: kept when such a table is read again, but never a covariate
TRUTHS = ("eta_", "true_")  # what a simulation or a fit knows of a patient: an encoder that read it would cheat

UNSUPPORTED: dict[str, str] = {
    "ss": "steady state is not supported yet: write the earlier doses out (ADDL and II, starting far enough back)",
    "lag": "lag times are not supported yet: move the dose's TIME",
    "alag": "lag times are not supported yet: move the dose's TIME",
    "occ": "occasions (inter-occasion variability) are not supported yet: leave the column out",
    "cens": "censored observations are not supported yet: leave them out (ignore=['cens != 0']) or set MDV=1",
    "lloq": "a limit of quantification is not supported yet: leave the column out and set MDV=1 below the limit",
    "limit": "censoring limits are not supported yet: leave the column out and set MDV=1 on censored records",
    "date": "calendar dates are not supported: put the elapsed time since the first record into TIME",
    "cont": "continued records are not supported: write one record a line",
    "pcmt": "PCMT is not supported: name the endpoint of an observation with DVID",
    "call": "CALL is not supported: leave the column out",
}
"""Reserved columns whose use (a value other than 0 or missing) asks for something that is not there yet."""

_ALIASES = {"dat1": "date", "dat2": "date", "dat3": "date"}
_MISSING = frozenset(("", "."))
_NOT_A_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)|#?n/?a!?|null|none|missing|#.*!|#num", re.IGNORECASE)
_LEADING_ZERO = re.compile(r"[+-]?0\d")

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
        return DataError(message, row=line, column=None if column is None else self.shown.get(column, column))

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
        return DataError(message, row=line, column=None if column is None else self.shown.get(column, column))

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
            if isinstance(value, str) and not _is_number(value):
                raise self.error(
                    f"expected a number, got {_quote(value)}; {_remedy(column, value)}", row, column
                )
        return np.array([float(v) if isinstance(v, str) else np.nan for v in values], dtype=np.float64)


def raw_from_frame(frame: pd.DataFrame) -> Raw:
    """Take a DataFrame apart; record k counts as line k + 2, where a csv file would hold it.

    Raises:
        DataError: no records, a duplicate column, or a column that holds neither numbers nor text.
    """
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError("expected one row of column names, got several levels; flatten the columns")
    shown = named([str(name) for name in frame.columns])
    if frame.empty:
        raise DataError("expected records, got an empty table; check how the DataFrame was made")
    cells: dict[str, Cells] = {}
    line = np.arange(2, len(frame) + 2, dtype=np.int64)
    for position, name in enumerate(shown):
        cells[name] = _cells(frame.iloc[:, position], shown[name])
    return Raw(cells, shown, line)


def named(header: Sequence[str], row: int | None = None) -> dict[str, str]:
    """Map the lower-case names of a header to the names as written.

    Raises:
        DataError: an empty name, or one name twice (case does not count).
    """
    shown: dict[str, str] = {}
    for position, text in enumerate(header, start=1):
        name = text.strip()
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


def typed(raw: Raw) -> Table:
    """Read the cells: a column of whole numbers becomes int64, of numbers float64, any other text.

    Logical values (TRUE, FALSE) become 1 and 0. A column that mixes numbers with text stays text, with a warning,
    unless it is reserved: then `Table.numbers` raises where it is used.

    Raises:
        DataError: a missing required column, NaN or an infinity written as text, a missing id.
    """
    for name in REQUIRED:
        if name not in raw.cells:
            raise DataError(
                f"expected a column {name.upper()}, got {', '.join(raw.shown.values())}; if it goes by another name: "
                f"rename={{'THAT NAME': '{name}'}}",
                column=name.upper(),
            )
    warnings: list[str] = []
    frame = {name: _typed_column(raw, name, warnings) for name in raw.cells}
    return Table(pd.DataFrame(frame, copy=False), raw.shown, raw.line, warnings)


def _typed_column(raw: Raw, name: str, warnings: list[str]) -> NDArray[Any]:
    cells = raw.cells[name]
    if isinstance(cells, list) and len("".join(cells).split()) > 1:
        cells = [cell.strip() for cell in cells]
    if name == "id":
        return _typed_ids(raw, cells)
    if not isinstance(cells, list):
        wrong = np.isinf(cells)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise raw.error(f"expected a finite number, got {cells[row]}; {_remedy(name, 'inf')}", row, name)
        return cells
    if "_" in "".join(cells):  # Python reads 1_000 as a number; a table does not
        return _text_column(raw, name, cells, warnings)
    try:
        return np.array(list(map(int, cells)), dtype=np.int64)
    except (ValueError, OverflowError):
        pass
    missing = cells.count("") + cells.count(".")
    try:
        numbers = np.array(
            [float("nan" if cell in _MISSING else cell) for cell in cells]
            if missing
            else list(map(float, cells))
        )
    except ValueError:
        return _text_column(raw, name, cells, warnings)
    if np.isfinite(numbers).sum() + missing < len(cells):
        row = next(
            k for k, cell in enumerate(cells) if cell not in _MISSING and not math.isfinite(numbers[k])
        )
        raise raw.error(
            f"expected a finite number, got {_quote(cells[row])}; {_remedy(name, cells[row])}", row, name
        )
    return numbers


def _text_column(raw: Raw, name: str, cells: list[str], warnings: list[str]) -> NDArray[Any]:
    filled = [cell for cell in cells if cell not in _MISSING]
    if all(cell.lower() in ("true", "false", "t", "f") for cell in filled) and len(filled) == len(cells):
        return np.array([int(cell.lower()[0] == "t") for cell in cells], dtype=np.int64)
    text = np.array([np.nan if cell in _MISSING else cell for cell in cells], dtype=object)
    if is_reserved(name):
        return text
    words = {cell for cell in filled if not _is_number(cell)}
    if len(words) == len(set(filled)):
        return text
    first = next(row for row, cell in enumerate(cells) if cell in words)
    if all(_NOT_A_NUMBER.fullmatch(word) for word in words):
        raise raw.error(
            f"expected a number, got {_quote(cells[first])}; {_remedy(name, cells[first])}", first, name
        )
    warnings.append(
        f"column {raw.shown[name]} mixes numbers with text ({_quote(cells[first])} on line {raw.line[first]}): it is "
        "kept as text and is no covariate"
    )
    return text


def _typed_ids(raw: Raw, cells: Cells) -> NDArray[Any]:
    """Whole numbers become int64; anything else stays text, so that '007' and '7' are two patients."""
    texts = cells if isinstance(cells, list) else [_plain(value) for value in cells.tolist()]
    if not {"", ".", "nan", "NaN"}.isdisjoint(texts):
        row = next(k for k, text in enumerate(texts) if text in ("", ".", "nan", "NaN"))
        raise raw.error(
            "expected an id on every record, got none; write the patient's id on each line", row, "id"
        )
    try:
        values = np.array(list(map(float, texts)))
    except ValueError:
        return np.array(texts, dtype=object)
    whole = bool((values == np.floor(values)).all() and (np.abs(values) < 2**53).all())
    if whole and not any(map(_LEADING_ZERO.match, texts)):
        return values.astype(np.int64)
    return np.array(texts, dtype=object)


def _plain(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def _cells(column: pd.Series[Any], shown: str) -> Cells:
    kind = column.dtype
    if pd.api.types.is_bool_dtype(kind) and not column.isna().any():
        return column.to_numpy(np.int64)
    if pd.api.types.is_integer_dtype(kind) and not column.isna().any():
        return column.to_numpy(np.int64)
    if pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_complex_dtype(kind):
        return column.to_numpy(np.float64, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(kind) or pd.api.types.is_timedelta64_dtype(kind):
        raise DataError(
            f"expected numbers or text, got {kind}; convert it to elapsed time, e.g. in hours", column=shown
        )
    texts = []
    for row, value in enumerate(column.tolist()):
        if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
            texts.append("")
        elif isinstance(value, (str, int, float, np.number, np.bool_)):
            texts.append(str(value))
        else:
            raise DataError(
                f"expected a number or text, got a {type(value).__name__}; put one value into each cell",
                row=row + 2,
                column=shown,
            )
        if "\n" in texts[-1] or "\r" in texts[-1]:
            raise DataError(
                "expected one line, got text with a line break; remove it", row=row + 2, column=shown
            )
    return texts


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _remedy(name: str, text: str) -> str:
    if _NOT_A_NUMBER.fullmatch(text):
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
