"""The tables that NONMEM 7 writes beside its report: root.ext, .cov, .cor, .coi, .phi.

A file holds one table for each estimation step, under a line that numbers it and names the method,

    TABLE NO.     1: First Order Conditional Estimation with Interaction: Goal Function=...: Problem=1 ...
     ITERATION    THETA1       THETA2       SIGMA(1,1)   OMEGA(1,1)   OBJ
                0  4.69307E-03  1.00916E+00  1.30865E-02  3.09626E-02    587.36644134661617

in Fortran's format: blanks or commas between the columns, an exponent that may lose its letter, asterisks where a
number did not fit. NOTITLE leaves the first line out, NOLABEL the second, without which nothing has a name.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..errors import DataError

_TITLE = re.compile(r"^\s*TABLE NO\.\s*(\d+)\s*(?::\s*(.*))?$")
_LETTERLESS = re.compile(r"^([+-]?\d*\.?\d+)([+-]\d{2,4})$")
_FIRST = ("ITERATION", "NAME", "SUBJECT_NO")
"""First column of the labels of each kind of file."""


@dataclass
class Table:
    """One table.

    Attributes:
        number: as NONMEM counts estimation steps; method: its name, as NONMEM spells it.
        columns: their labels; rows: the cells, numbers but for the column NAME.
    """

    number: int
    method: str
    columns: list[str] = field(default_factory=list)
    rows: list[list[float | str]] = field(default_factory=list)

    @property
    def frame(self) -> pd.DataFrame:
        """As a DataFrame."""
        return pd.DataFrame(self.rows, columns=self.columns)


def read_tables(path: str | Path) -> list[Table]:
    """Every table of a file, in order.

    Raises:
        DataError: no such file, or one that is not in NONMEM's layout; the message names the line.

    Example:
        >>> [table.number for table in read_tables("run1.ext")]  # doctest: +SKIP
        [1]
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    tables: list[Table] = []
    for at, line in enumerate(lines, start=1):
        title = _TITLE.match(line)
        if title:
            tables.append(Table(int(title[1]), (title[2] or "").split(": ")[0].strip().rstrip(":")))
        elif line.strip():
            cells = _cells(line)
            if cells[0] in _FIRST and not tables:
                tables.append(Table(1, ""))
            _take(file, at, tables, cells)
    if not any(table.rows for table in tables):
        raise DataError(
            f"{file} holds no table of NONMEM 7 (a line 'TABLE NO. 1: ...', labels, numbers); hand the file run.ext"
            " that NONMEM wrote beside its report"
        )
    return tables


def _cells(line: str) -> list[str]:
    """Cells of a line with names such as OMEGA(2,1), between blanks or commas."""
    return [cell for cell in re.split(r"[\s,]+(?![^()]*\))", line.strip()) if cell]


def _take(file: Path, at: int, tables: list[Table], cells: list[str]) -> None:
    """Add a line to the last table: its labels first, then its rows."""
    if not tables:
        raise DataError(
            f"{file}, line {at}: expected 'TABLE NO. ...' or labels, got {cells[0]!r}; hand a .ext file that NONMEM 7"
            " wrote (without NOLABEL)"
        )
    table = tables[-1]
    if not table.columns:
        if cells[0] not in _FIRST:
            raise DataError(
                f"{file}, line {at}: expected labels that begin with {' or '.join(_FIRST)}, got {cells[0]!r}; run"
                " NONMEM without NOLABEL"
            )
        table.columns = cells
        return
    if cells == table.columns:  # repeated labels
        return
    if len(cells) != len(table.columns):
        raise DataError(
            f"{file}, line {at}: expected {len(table.columns)} cells, as many as labels, got {len(cells)}; the file is"
            " damaged or was cut off"
        )
    named = table.columns[0] == "NAME"
    row: list[float | str] = []
    for place, cell in enumerate(cells):
        row.append(cell if named and place == 0 else _number(file, at, table.columns[place], cell))
    table.rows.append(row)


def _number(file: Path, at: int, column: str, cell: str) -> float:
    """A number in Fortran's format."""
    text = cell.upper().replace("D", "E")
    letterless = _LETTERLESS.match(text)
    if letterless:
        text = f"{letterless[1]}E{letterless[2]}"
    if set(text) == {"*"}:
        return math.nan
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"{file}, line {at}: expected a number in column {column}, got {cell!r}; the file is damaged"
        ) from None
