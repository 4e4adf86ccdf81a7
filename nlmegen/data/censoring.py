"""Measurements beyond a limit: CENS (BLQ, BQL), LIMIT, LLOQ and ULOQ as intervals of the true value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nlmegen.data.columns import FLAGS, LIMITS, Bools, Floats, Ints, Table, check, number_text

_SAME = 1e-9  # two limits that differ by less, relatively, were rounded differently


@dataclass(frozen=True)
class Censoring:
    """What is known of the measurements of every record, R of them, where not all are plain numbers.

    Attributes:
        cens: [R] 0 measured, 1 below a limit, -1 above one.
        lower, upper: [R] the interval that holds the true value of a censored record, infinite where it is open; NaN
            where it was measured.
        lloq, uloq: [R] the limits of quantification of the record, NaN where it has none.
    """

    cens: Ints
    lower: Floats
    upper: Floats
    lloq: Floats
    uloq: Floats


def read_censoring(
    table: Table, observed: Bools, dv: Floats
) -> tuple[Floats, Censoring | None, tuple[str, ...]]:
    """Read what the table says of measurements beyond a limit; the convention is Monolix's (data set, CENS and LIMIT).

    - CENS = 1: the true value is DV or less, and more than LIMIT where that has a value. CENS = -1: it is DV or more,
      and less than LIMIT. BLQ and BQL are other names of CENS = 1.
    - LLOQ and ULOQ are limits of quantification of the record; 0 and a missing value say that it has none. A DV beyond
      its limit counts as censored there, flagged or not (the latter with a warning); so does a censored record whose
      DV is missing.
    - Only observations (EVID 0, MDV 0) are censored; a flag on another record is left out with a warning.

    Args:
        table: The table.
        observed: [R] true for observations.
        dv: [R] DV, NaN where there is none.

    Returns:
        [R] DV, which is the limit on a censored record; the censoring, or None where the table has none; warnings.

    Raises:
        DataError: a flag that means nothing, or flags and limits that contradict each other or DV.
    """
    if not any(table.has(name) for name in (*FLAGS, *LIMITS)):
        return dv, None, ()
    flagged, name = _flags(table)
    lloq, uloq = (np.where(x == 0, np.nan, x) for x in (table.numbers("lloq"), table.numbers("uloq")))
    limit = table.numbers("limit")
    check(
        table,
        "lloq",
        observed & (lloq >= uloq),
        "expected a limit LLOQ below ULOQ, got {}; correct one of the two",
        lloq,
    )
    warnings = []
    idle = np.flatnonzero(~observed & (flagged != 0))
    if len(idle):
        warnings.append(
            f"{len(idle)} records that are no observations (EVID other than 0, or MDV=1) with {table.name(name)}, the "
            f"first on line {table.line[idle[0]]}: they are left out; for a likelihood of censored values set MDV=0"
        )
    with np.errstate(invalid="ignore"):
        under = np.flatnonzero(observed & (flagged == 0) & (table.numbers("lloq") == 0) & (dv < 0))
    if len(under):
        warnings.append(
            f"{len(under)} observations with a negative DV and LLOQ=0, the first on line {table.line[under[0]]}: 0 says"
            " that there is no limit, and they count as measured; where DV is a logarithm and the limit 1, flag them "
            "with CENS=1 and write 0 into DV"
        )
    cens = np.where(observed, flagged, 0)
    _check_limits(table, name, cens, dv, lloq, uloq)
    with np.errstate(invalid="ignore"):
        below, above = observed & (cens == 0) & (dv < lloq), observed & (cens == 0) & (dv > uloq)
    for beyond, what in ((below, "DV below LLOQ"), (above, "DV above ULOQ")):
        if beyond.any():
            sign = 1 if beyond is below else -1
            warnings.append(
                f"{int(beyond.sum())} observations with {what} and no flag, the first on line "
                f"{table.line[int(np.argmax(beyond))]}: they count as censored there (CENS={sign})"
            )
    cens = np.where(below, 1, np.where(above, -1, cens))
    dv = np.where((cens == 1) & ~np.isnan(lloq), lloq, np.where((cens == -1) & ~np.isnan(uloq), uloq, dv))
    check(
        table,
        "dv",
        (cens != 0) & np.isnan(dv),
        "expected the limit in DV (or in LLOQ, ULOQ) of a censored observation, got none; write it there",
    )
    _check_interval(table, cens, dv, limit)
    zero = np.flatnonzero((cens == 1) & (dv == 0) & np.isnan(limit))
    if len(zero):
        warnings.append(
            f"{len(zero)} observations below a limit of 0, the first on line {table.line[zero[0]]}: on a censored "
            "record DV holds the limit; write it there, or into LLOQ"
        )
    open_end = np.where(cens == 1, -np.inf, np.inf)
    other = np.where(np.isnan(limit), open_end, limit)
    lower = np.where(cens == 1, other, np.where(cens == -1, dv, np.nan))
    upper = np.where(cens == 1, dv, np.where(cens == -1, other, np.nan))
    return dv, Censoring(cens.astype(np.int64), lower, upper, lloq, uloq), tuple(warnings)


def _flags(table: Table) -> tuple[Ints, str]:
    """The flag of every record, and the name of the column it comes from."""
    found, name = np.zeros(len(table.frame)), "cens"
    for column in FLAGS:
        if not table.has(column):
            continue
        values = table.numbers(column)
        legal = (
            "0 (measured), 1 (below the limit) or -1 (above it)"
            if column == "cens"
            else "0 or 1 (below the limit)"
        )
        check(
            table,
            column,
            ~np.isnan(values) & ~np.isin(values, (0, 1, -1) if column == "cens" else (0, 1)),
            f"expected {legal}, got {{}}; correct the flag",
            values,
        )
        values = np.nan_to_num(values)
        clash = (found != 0) & (values != 0) & (values != found)
        check(
            table,
            column,
            clash,
            f"expected the same as in {name.upper()}, got {{}}; keep one of the columns",
            values,
        )
        found, name = np.where(values != 0, values, found), column if (values != 0).any() else name
    return found.astype(np.int64), name


def _check_limits(table: Table, name: str, cens: Ints, dv: Floats, lloq: Floats, uloq: Floats) -> None:
    """Refuse a censored DV on the wrong side of its limit of quantification."""
    with np.errstate(invalid="ignore"):
        for wrong, limit, column in (
            ((cens == 1) & (dv > lloq + _SAME * np.abs(lloq)), lloq, "LLOQ"),
            ((cens == -1) & (dv < uloq - _SAME * np.abs(uloq)), uloq, "ULOQ"),
        ):
            if wrong.any():
                row = int(np.argmax(wrong))
                raise table.error(
                    f"expected a DV of {number_text(limit[row])} ({column}) on a record with {table.name(name)}="
                    f"{cens[row]}, got {number_text(dv[row])}; correct the flag, DV or {column}",
                    row,
                    "dv",
                )


def _check_interval(table: Table, cens: Ints, dv: Floats, limit: Floats) -> None:
    with np.errstate(invalid="ignore"):
        check(
            table,
            "limit",
            (cens == 1) & (limit >= dv),
            "expected a LIMIT below DV on a record with CENS=1 (the true value lies between them), got {}; correct it",
            limit,
        )
        check(
            table,
            "limit",
            (cens == -1) & (limit <= dv),
            "expected a LIMIT above DV on a record with CENS=-1 (the true value lies between them), got {}; correct "
            "it, or write '.' where there is none",
            limit,
        )
