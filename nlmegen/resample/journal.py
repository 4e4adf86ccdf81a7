"""A csv to which finished work is appended so that it survives a kill at any moment, and what it belongs to.

NAME.json beside NAME.csv says of which fit and with which settings the rows are; it stands before the first row does.
Each row is one line, written at once and flushed to the disk. A line that was torn by a kill is dropped on reading.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import DataError

_LOCKS: Any = importlib.import_module("fcntl") if importlib.util.find_spec("fcntl") else None
"""Locks of files; where there are none (Windows), two runs on one file are the user's affair."""


class Journal:
    """Rows of finished work, by number.

    Args:
        place: a csv, or a folder, in which it is called `name`.csv.
        name: what the rows are of, for example "bootstrap".
        identity: whatever the numbers depend on; JSON.
        columns: of the csv; the first holds the number of a row.
        fresh: begin anew, whatever there is.

    Attributes:
        rows: text of each cell by the row's number.
        path: of the csv.

    Raises:
        DataError: the file holds work of something else, is damaged, or is being written by another process.
    """

    def __init__(
        self,
        place: str | Path,
        name: str,
        identity: Mapping[str, Any],
        columns: Sequence[str],
        *,
        fresh: bool = False,
    ) -> None:
        self.path = csv_path(place, name)
        self.name, self.columns = name, list(columns)
        self._identity = json.loads(json.dumps(identity))
        self.rows: dict[int, list[str]] = {}
        if not self.path.parent.is_dir():
            raise DataError(f"{self.path}: there is no directory {self.path.parent}; make it first")
        # "a": made when it is not there, never emptied before the lock is ours
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._begin(fresh)
        except BaseException:
            self._file.close()
            raise

    def add(self, row: Sequence[object]) -> None:
        """Keep a row, on the disk before this returns."""
        cells = [_text(cell) for cell in row]
        self.rows[int(cells[0])] = cells
        self._append([cells])

    def close(self) -> None:
        """Put the rows into the order of their numbers, whoever finished first."""
        part = self.path.with_name(f".part-{self.path.name}")
        part.write_text(_lines([self.columns, *(self.rows[k] for k in sorted(self.rows))]), encoding="utf-8")
        part.replace(self.path)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what there is --------------------------------------------------------------------------------------------
    @property
    def _label(self) -> Path:
        return self.path.with_suffix(".json")

    def _lock(self) -> None:
        if _LOCKS is None:
            return
        try:
            _LOCKS.flock(self._file, _LOCKS.LOCK_EX | _LOCKS.LOCK_NB)
        except OSError:
            raise DataError(f"{self.path} is being written by another process; wait for it to end") from None

    def _begin(self, fresh: bool) -> None:
        self._file.seek(0)
        content = self._file.read()
        if fresh or not content:
            if content:
                self._file.truncate(0)
            part = self._label.with_name(f".part-{self._label.name}")
            part.write_text(json.dumps(self._identity, indent=2) + "\n", encoding="utf-8")
            part.replace(self._label)
            self._append([self.columns])
            return
        self._compare()
        whole, newline, torn = content.rpartition(b"\n")
        if torn:
            self._file.truncate(len(whole) + len(newline))
        lines = list(csv.reader(io.StringIO(whole.decode("utf-8", errors="replace"))))
        if not lines:  # the header itself was torn
            self._append([self.columns])
            return
        for number, cells in enumerate(lines):
            if len(cells) != len(self.columns) or (number > 0 and not cells[0].isdigit()):
                raise DataError(
                    f"{self.path}, line {number + 1}: expected {len(self.columns)} values; remove the line to have it"
                    f" computed again, or the file to begin anew (--force, fresh=True)"
                )
        if lines[0] != self.columns:
            raise DataError(f"{self.path} has other columns than expected; begin anew (--force, fresh=True)")
        self.rows = {int(cells[0]): cells for cells in lines[1:]}

    def _compare(self) -> None:
        """Refuse rows of another fit or of other settings."""
        remedy = "write to another place (--out), or begin anew (--force, fresh=True)"
        try:
            known = json.loads(self._label.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(
                f"{self.path} exists, and there is no {self._label.name} to say what it holds; {remedy}"
            ) from None
        differs = [key for key in self._identity if known.get(key) != self._identity[key]]
        if differs:
            shown = [
                f"{key} {_short(known.get(key))} there, {_short(self._identity[key])} asked for"
                for key in differs
            ]
            raise DataError(f"{self.path} holds another {self.name} ({'; '.join(shown)}); {remedy}")

    def _append(self, rows: Iterable[Sequence[str]]) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(_lines(rows).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def csv_path(place: str | Path, name: str) -> Path:
    """The csv that is meant by a folder or a csv.

    Raises:
        DataError: neither.
    """
    path = Path(place)
    if path.suffix == ".csv":
        return path
    if path.is_dir():
        return path / f"{name}.csv"
    raise DataError(f"out={str(place)!r}: expected a folder that exists, or a name that ends in .csv")


def _lines(rows: Iterable[Sequence[str]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _text(cell: object) -> str:
    """A cell on one line; numbers so that they read back to the same."""
    if isinstance(cell, float):
        return repr(cell) if cell == cell else ""
    return " ".join(str(cell).split())


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
