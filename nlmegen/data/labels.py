"""Columns of labels: CMT and DVID by number or by name."""

from __future__ import annotations

from dataclasses import replace
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
        hint = ""
        if column == "cmt" and number < 0:
            hint = (
                " (a record with EVID 2 and a negative CMT switches a compartment off; no other record does)"
            )
        raise table.error(f"{expected}, got {cell}{hint}; correct it", row, column)
    return int(number)


def read_compartments(
    table: Table, dosed: Bools, observed: Bools, other: Bools
) -> tuple[Ints, Bools, tuple[Label, ...]]:
    """Code CMT of the doses and of the compartments switched off; a missing one is 0, the default compartment.

    A negative CMT (-2, or -central) on a record with EVID 2 switches that compartment off; a positive one switches it
    on, which a dose into it does as well (NONMEM help, CMT). On observations CMT is not used (DVID names the
    endpoint), but must not tell several endpoints apart without DVID.

    Args:
        table: The table.
        dosed, observed, other: [R] true for doses, observations and records with EVID 2.

    Returns:
        [R] index into the labels, [R] whether the record switches its compartment off, and the labels met there.

    Raises:
        DataError: a label that is neither a name nor a whole number of 0 or more, or endpoints told apart by CMT alone.
    """
    nothing = np.zeros(len(dosed), dtype=np.bool_)
    if not table.has("cmt"):
        return np.zeros(len(dosed), dtype=np.int64), nothing, (0,)
    table, off = _unsigned(table, other)
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
    if not (dosed | off).any():
        return np.zeros(len(dosed), dtype=np.int64), off, (0,)
    codes, labels = _labels(table, "cmt", dosed | off, "a compartment", 0)
    return codes, off, labels


def _unsigned(table: Table, other: Bools) -> tuple[Table, Bools]:
    """Take the sign off negative CMT of records with EVID 2; say which had one."""
    cells = table.frame["cmt"].to_numpy()
    if cells.dtype != object:
        off = other & (cells < 0)
        return (
            (replace(table, frame=table.frame.assign(cmt=np.where(off, -cells, cells))), off)
            if off.any()
            else (
                table,
                off,
            )
        )
    signed = np.array(
        [isinstance(x, str) and x.startswith("-") and len(x) > 1 for x in cells], dtype=np.bool_
    )
    off = other & signed & np.array([x not in ("-0", "-0.0") for x in cells], dtype=np.bool_)
    if not off.any():
        return table, off
    plain = np.array(
        [x[1:].strip() if strip else x for x, strip in zip(cells, off, strict=True)], dtype=object
    )
    return replace(table, frame=table.frame.assign(cmt=plain)), off


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
