"""Columns of labels: CMT and DVID by number or by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from nlmegen.data.columns import Bools, Ints, Table

Label = str | int


def _labels(
    table: Table, column: str, used: Bools, noun: str, blank: Label | None
) -> tuple[Ints, tuple[Label, ...]]:
    """Code the cells of a column of labels where `used`: whole numbers first, in order, then names as they appear.

    A missing cell counts as `blank`; where that is None it is an error.
    """
    rows = np.flatnonzero(used)
    code, unique = pd.factorize(table.frame[column].to_numpy()[rows], use_na_sentinel=False)
    meaning = [
        _label(table, column, x, int(rows[np.argmax(code == k)]), noun, blank) for k, x in enumerate(unique)
    ]
    numbers = sorted({x for x in meaning if isinstance(x, int)})
    labels: list[Label] = [*numbers, *dict.fromkeys(x for x in meaning if isinstance(x, str))]
    codes = np.zeros(len(used), dtype=np.int64)
    codes[rows] = np.array([labels.index(x) for x in meaning], dtype=np.int64)[code]
    return codes, tuple(labels)


def _label(table: Table, column: str, cell: Any, row: int, noun: str, blank: Label | None) -> Label:
    expected = f"expected the number (0, 1, 2, ...) or the name of {noun}"
    if isinstance(cell, float) and np.isnan(cell):
        if blank is None:
            raise table.error(f"{expected}, got none; write which one this record belongs to", row, column)
        return blank
    try:
        number = float(cell)
    except ValueError:
        return str(cell)
    if number < 0 or not number.is_integer():
        hint = " (turning compartments off is not supported)" if column == "cmt" and number < 0 else ""
        raise table.error(f"{expected}, got {cell}{hint}; correct it", row, column)
    return int(number)


def read_compartments(table: Table, dosed: Bools, observed: Bools) -> tuple[Ints, tuple[Label, ...]]:
    """Code CMT of the dose records; a missing one is 0, the default compartment.

    On observations CMT is not used (DVID names the endpoint), but must not tell several endpoints apart without DVID.

    Returns:
        [R] index into the labels, and the labels met on doses.

    Raises:
        DataError: a label that is neither a name nor a whole number of 0 or more, or endpoints told apart by CMT alone.
    """
    everywhere = np.zeros(len(dosed), dtype=np.int64), (0,)
    if not table.has("cmt"):
        return everywhere
    _labels(table, "cmt", ~dosed, "a compartment", 0)
    if not table.has("dvid"):
        code, seen = _labels(table, "cmt", observed, "a compartment", 0)
        if len([label for label in seen if label != 0]) > 1:
            row = int(np.flatnonzero(observed & (code != code[np.argmax(observed)]))[0])
            raise table.error(
                f"expected DVID to tell the endpoints apart, got observations in CMT {', '.join(map(str, seen))} and "
                "no DVID; add a DVID column (1, 2, ...), or leave the records of the other endpoint out",
                row,
                "cmt",
            )
    return _labels(table, "cmt", dosed, "a compartment", 0) if dosed.any() else everywhere


def read_dvids(table: Table, observed: Bools) -> tuple[Ints, tuple[Label, ...]]:
    """Code DVID of the observations; without the column there is one endpoint, 1.

    Returns:
        [R] index into the labels, and the labels met on observations.

    Raises:
        DataError: an observation without a label.
    """
    if not table.has("dvid") or not observed.any():
        return np.zeros(len(observed), dtype=np.int64), (1,)
    return _labels(table, "dvid", observed, "an endpoint", None)
