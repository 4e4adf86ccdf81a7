"""Measurements beyond a limit that are written as text into DV: "<0.5", ">100", "BLQ"."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd

from nlmegen.data.columns import FLAGS, Table, is_number, number_text, quote

_BEYOND = re.compile(r"(<=?|>=?)\s*(\S+)")
_BELOW = re.compile(r"<?\s*(b[lq]l?[oq]?q?|l?loq|loq|below)", re.IGNORECASE)
_ABOVE = re.compile(r">?\s*(a[lq]l?[oq]?q?|uloq|above)", re.IGNORECASE)
_SAME = 1e-9


def limits_from_text(table: Table) -> Table:
    """Turn texts in DV into numbers and flags; other tables stay as they are.

    "<0.5" (or "<=0.5") becomes DV = 0.5 with CENS = 1, ">100" becomes DV = 100 with CENS = -1. "BLQ" (BQL, BLOQ, LOQ,
    "<LOQ") and "ALQ" (ALOQ, ULOQ) become CENS = 1 and -1 without a number: LLOQ, ULOQ hold the limit. Other texts stay,
    and are refused where DV is read.

    Raises:
        DataError: a text that contradicts CENS, or a limit in it that contradicts LLOQ or ULOQ.
    """
    column = table.frame["dv"]
    if pd.api.types.is_numeric_dtype(column):
        return table
    cells = column.to_numpy().copy()
    sign = np.zeros(len(cells), dtype=np.int64)
    for row, cell in enumerate(cells):
        if not isinstance(cell, str) or is_number(cell):
            continue
        beyond = _BEYOND.fullmatch(cell)
        if beyond is not None and is_number(beyond[2]):
            sign[row], cells[row] = (1 if beyond[1][0] == "<" else -1), beyond[2]
            _check_limit(table, row, cell, float(beyond[2]), sign[row])
        elif _BELOW.fullmatch(cell) or _ABOVE.fullmatch(cell):
            sign[row], cells[row] = (1 if _BELOW.fullmatch(cell) else -1), np.nan
    if not sign.any():
        return table
    for name in FLAGS:
        flag = table.numbers(name)
        clash = (sign != 0) & ~np.isnan(flag) & (flag != sign)
        if clash.any():
            row = int(np.argmax(clash))
            raise table.error(
                f"expected {sign[row]} or no value beside DV {quote(str(column.iloc[row]))}, got "
                f"{number_text(flag[row])}; correct one of the two",
                row,
                name,
            )
    changed = replace(table, frame=table.frame.assign(dv=cells))
    if any(isinstance(cell, str) and not is_number(cell) for cell in cells):
        return changed  # what is wrong with the others is said where DV is read
    frame = changed.frame.assign(dv=changed.numbers("dv"))
    flags = np.where(sign != 0, sign, np.nan_to_num(table.numbers("cens")))
    if "cens" in frame.columns:
        frame = frame.assign(cens=flags)
    else:
        frame.insert(len(frame.columns), "cens", flags.astype(np.int64))
    return replace(table, frame=frame, shown={"cens": "CENS", **table.shown})


def _check_limit(table: Table, row: int, cell: str, value: float, sign: int) -> None:
    column = "lloq" if sign > 0 else "uloq"
    limit = table.numbers(column)[row]
    if limit != 0 and abs(value - limit) > _SAME * abs(limit):  # False for NaN: there is no limit
        raise table.error(
            f"expected {'<' if sign > 0 else '>'}{number_text(limit)}, the limit in {table.name(column)}, got "
            f"{quote(cell)}; correct one of the two",
            row,
            "dv",
        )
