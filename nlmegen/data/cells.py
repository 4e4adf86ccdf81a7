"""How cells become numbers.

A table comes as text (a csv file) or as a DataFrame; both pass through `typed`, so that both obey one set of rules:
`.` and an empty cell are missing, nothing else is.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nlmegen.data.clock import elapsed
from nlmegen.data.columns import (
    NOT_A_NUMBER,
    REQUIRED,
    Cells,
    Raw,
    Table,
    is_number,
    is_reserved,
    named,
    quote,
    remedy,
)
from nlmegen.data.limittext import limits_from_text
from nlmegen.errors import DataError

_MISSING = frozenset(("", "."))
_LEADING_ZERO = re.compile(r"[+-]?0\d")


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


def typed(raw: Raw) -> Table:
    """Read the cells: a column of whole numbers becomes int64, of numbers float64, any other text.

    Clock times and dates become elapsed hours (`nlmegen.data.clock`), texts such as "<0.5" in DV a limit and a flag
    (`nlmegen.data.limittext`).

    Logical values (TRUE, FALSE; T, F where both occur) become 1 and 0. A column that mixes numbers with text stays
    text, with a warning, unless it is reserved: then `Table.numbers` raises where it is used.

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
    return limits_from_text(elapsed(Table(pd.DataFrame(frame, copy=False), raw.shown, raw.line, warnings)))


def _typed_column(raw: Raw, name: str, warnings: list[str]) -> NDArray[Any]:
    cells = raw.cells[name]
    if isinstance(cells, list):
        joined = "".join(cells)
        if joined.split() != [
            joined
        ]:  # one search for blanks is cheaper than stripping every cell of a clean column
            cells = [cell.strip() for cell in cells]
    if name == "id":
        return _typed_ids(raw, cells)
    if not isinstance(cells, list):
        wrong = np.isinf(cells)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise raw.error(f"expected a finite number, got {cells[row]}; {remedy(name, 'inf')}", row, name)
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
            f"expected a finite number, got {quote(cells[row])}; {remedy(name, cells[row])}", row, name
        )
    return numbers


def _text_column(raw: Raw, name: str, cells: list[str], warnings: list[str]) -> NDArray[Any]:
    filled = [cell for cell in cells if cell not in _MISSING]
    words = {cell.lower() for cell in filled}
    # all F may well be all female: single letters are logical values where both occur
    if (words <= {"true", "false"} or words == {"t", "f"}) and len(filled) == len(cells):
        return np.array([int(cell.lower()[0] == "t") for cell in cells], dtype=np.int64)
    text = np.array([np.nan if cell in _MISSING else cell for cell in cells], dtype=object)
    if is_reserved(name):
        return text
    words = {cell for cell in filled if not is_number(cell)}
    if len(words) == len(set(filled)):
        return text
    first = next(row for row, cell in enumerate(cells) if cell in words)
    if all(NOT_A_NUMBER.fullmatch(word) for word in words):
        raise raw.error(
            f"expected a number, got {quote(cells[first])}; {remedy(name, cells[first])}", first, name
        )
    warnings.append(
        f"column {raw.shown[name]} mixes numbers with text ({quote(cells[first])} on line {raw.line[first]}): it is "
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
    whole = pd.api.types.is_integer_dtype(kind) and not column.isna().any()
    if whole and not (pd.api.types.is_unsigned_integer_dtype(kind) and column.max() > np.iinfo(np.int64).max):
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
        elif isinstance(value, (str, int, float, Decimal, np.number, np.bool_)):
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
