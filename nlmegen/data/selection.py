"""`ignore`, `accept` and `rename`: which records and columns of a table are taken, and under which names."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nlmegen.data.columns import Raw
from nlmegen.errors import DataError, nearest

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_FORTRAN = {
    "EQ": "==",
    "EQN": "==",
    "NE": "!=",
    "NEN": "!=",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "=": "==",
}
_CONDITION = re.compile(
    r"\s*(?P<name>[^=!<>]+?)\s*(?:\.(?P<word>EQN?|NEN?|LT|LE|GT|GE)\.|(?P<sign>==|!=|<=|>=|<|>|=))\s*(?P<value>.+?)\s*",
    re.IGNORECASE,
)
_DROP = ("drop", "skip")
_EQUALITY = (operator.eq, operator.ne)


@dataclass(frozen=True)
class Condition:
    """One comparison of a column with a constant, such as `dv == 0`."""

    text: str
    column: str
    compare: Callable[[Any, Any], Any]
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `COLUMN OPERATOR VALUE`; operators == != < <= > >= = and NONMEM's .EQ. .NE. .LT. .LE. .GT. .GE.

        Raises:
            DataError: the text is something else.
        """
        found = _CONDITION.fullmatch(text)
        if found is None:
            raise DataError(
                f"expected a condition such as 'dv == 0' (column, one of == != < <= > >=, value), got {text!r}; "
                "several conditions are a list, of which any one is enough"
            )
        sign = found["sign"] or found["word"].upper()
        value = found["value"].strip("'\"")
        return cls(text, found["name"].strip().lower(), _COMPARE[_FORTRAN.get(sign, sign)], value)

    def holds(self, raw: Raw) -> NDArray[np.bool_]:
        """Return [R], where the condition holds. A missing value meets no condition.

        Raises:
            DataError: there is no such column, or < <= > >= with a text.
        """
        if self.column not in raw.cells:
            raise DataError(
                f"expected a column of the table in the condition {self.text!r}, got {self.column!r}."
                f"{nearest(self.column, raw.shown.values())}"
            )
        cells = raw.cells[self.column]
        wanted = _number(self.value)
        if math.isnan(wanted) and self.compare not in _EQUALITY:
            raise DataError(
                f"expected a number in the condition {self.text!r}, got {self.value!r}: < <= > >= compare numbers; "
                "another column cannot stand there, write its value"
            )
        if not isinstance(cells, list):
            if math.isnan(wanted):
                raise DataError(
                    f"expected a number in the condition {self.text!r}: column {self.column} holds numbers"
                )
            return np.asarray(self.compare(cells, wanted), dtype=np.bool_) & ~np.isnan(cells)
        texts = [cell.strip() for cell in cells]
        filled = np.array([cell not in ("", ".") for cell in texts], dtype=np.bool_)
        if math.isnan(wanted):
            return np.array([bool(self.compare(cell, self.value)) for cell in texts], dtype=np.bool_) & filled
        numbers = np.array([_number(cell) for cell in texts])
        return np.asarray(self.compare(numbers, wanted), dtype=np.bool_) & filled


def split_ignore(ignore: str | Sequence[str] | None) -> tuple[str, list[Condition]]:
    """Tell the comment character from the conditions in `ignore`.

    Returns:
        The comment character ("#" unless another is given) and the conditions.

    Raises:
        DataError: two comment characters, or a malformed condition.
    """
    items = _texts("ignore", ignore)
    characters = [item for item in items if len(item.strip()) == 1]
    if len(characters) > 1:
        raise DataError(f"expected one comment character in ignore, got {characters}; keep one of them")
    comment = characters[0].strip() if characters else "#"
    return comment, [Condition.parse(item) for item in items if item not in characters]


def checked_rename(rename: Mapping[str, str | None] | None) -> Mapping[str, str | None]:
    """Return `rename`, empty if None.

    Raises:
        DataError: it is no mapping of names to names or None.
    """
    if not _is_naming(rename):
        raise DataError(
            "expected rename={'NAME IN THE FILE': 'name here'}, or 'drop' instead of the new name to leave a column "
            f"out, got {rename!r}"
        )
    return rename or {}


def _is_naming(given: object) -> bool:
    """Say whether an argument is None or a mapping of texts to texts or None."""
    return given is None or (
        isinstance(given, Mapping)
        and all(isinstance(old, str) and isinstance(new, str | None) for old, new in given.items())
    )


def renamed(raw: Raw, rename: Mapping[str, str | None]) -> Raw:
    """Give columns new names; the name None, 'drop' or 'skip' leaves a column out.

    Raises:
        DataError: a column that is not there, or a new name that is taken.
    """
    plan: dict[str, str | None] = {}
    for old, new in rename.items():
        if old.strip().lower() not in raw.cells:
            raise DataError(
                f"expected a column of the table to rename, got {old!r}.{nearest(old, raw.shown.values())}"
            )
        plan[old.strip().lower()] = None if new is None or new.lower() in _DROP else new.strip()
    cells, shown = {}, {}
    for name in raw.cells:
        target = plan.get(name, name)
        if target is None:
            continue
        if target.lower() in cells or not target:
            raise DataError(
                f"expected new names that no column has, got {target!r} for {raw.shown[name]!r}; rename the other "
                f"column too, or leave it out with rename={{'{target}': 'drop'}}",
                column=raw.shown[name],
            )
        cells[target.lower()] = raw.cells[name]
        shown[target.lower()] = raw.shown[name]
    return replace(raw, cells=cells, shown=shown)


def selected(raw: Raw, ignore: Sequence[Condition], accept: str | Sequence[str] | None) -> Raw:
    """Leave out the records that meet any condition of `ignore`, or keep those that meet any of `accept`.

    Raises:
        DataError: both are given, or no record is left.
    """
    wanted = _texts("accept", accept)
    if ignore and wanted:
        raise DataError(
            "expected conditions in ignore or in accept, got both; turn one round (accept=['dv > 0'] "
            "is ignore=['dv <= 0'])"
        )
    if not ignore and not wanted:
        return raw
    conditions = list(ignore) or [Condition.parse(text) for text in wanted]
    met = np.zeros(len(raw.line), dtype=np.bool_)
    for condition in conditions:
        met |= condition.holds(raw)
    keep = met if wanted else ~met
    if not keep.any():
        words = ", ".join(condition.text for condition in conditions)
        option = "accept" if wanted else "ignore"
        raise DataError(
            f"expected some records to be left, got none after {option} ({words}); check the conditions"
        )
    return raw.keep(keep)


def _texts(option: str, given: object) -> list[str]:
    """Return a text, or a list of texts, as a list."""
    items = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(items, Sequence) or not all(isinstance(item, str) for item in items):
        raise DataError(
            f"expected a condition such as {option}='dv == 0' or a list of them, got {option}={given!r}"
        )
    return list(items)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
