"""What a reader may ask for beyond the cells: missing covariates filled in, repeated ids taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from nlmegen.data.columns import Bools, Ints, Table, is_reserved, number_text
from nlmegen.errors import DataError, nearest

Missing = Mapping[str, str | float]
RULES = ("median", "carry")


def separated(table: Table, repeated_ids: str) -> Table:
    """Apply `repeated_ids`: "refuse" leaves ids as they are; "separate" makes each run of records a subject.

    NONMEM takes records of one id that other ids interrupt as those of another individual. With "separate" that
    individual gets an id of its own: the second run of id 7 is "7 (2)".

    Raises:
        DataError: another word, or a new id that is taken.
    """
    if repeated_ids not in ("refuse", "separate"):
        raise DataError(f"expected repeated_ids 'refuse' or 'separate', got {repeated_ids!r}")
    if repeated_ids == "refuse":
        return table
    codes, unique = pd.factorize(table.frame["id"].to_numpy())
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(first) == len(unique):
        return table
    owner = codes[first]
    nth = pd.Series(owner).groupby(owner).cumcount().to_numpy()
    ids = [f"{unique[k]}" if n == 0 else f"{unique[k]} ({n + 1})" for k, n in zip(owner, nth, strict=True)]
    twice = pd.Series(ids).duplicated().to_numpy()
    if twice.any():
        row = int(first[np.argmax(twice)])
        raise table.error(
            f"expected new ids that nobody has, got {ids[int(np.argmax(twice))]} twice; rename it", row, "id"
        )
    run = np.repeat(np.arange(len(first)), np.diff(first, append=len(codes)))
    note = (
        f"{int((nth > 0).sum())} runs of records with an id met before, the first on line "
        f"{table.line[first[np.argmax(nth > 0)]]} (id {ids[int(np.argmax(nth > 0))]}): each is a subject of its own"
    )
    frame = table.frame.assign(id=np.array(ids, dtype=object)[run])
    return replace(table, frame=frame, warnings=[*table.warnings, note])


def filled(table: Table, missing: Missing | None) -> Table:
    """Fill in missing values of covariates.

    - "carry": the subject's last value before, or else its first one after.
    - "median": the median, over the subjects that have any, of their first recorded value.
    - a number: that number.

    Args:
        table: The table.
        missing: Covariate -> rule; names in any case.

    Returns:
        The table with those cells filled in, and a warning that counts them.

    Raises:
        DataError: an unknown column, a rule that cannot be applied to it, or a subject without any value to carry.
    """
    if missing is None:
        return table
    _check_rules(missing)
    columns, notes = {}, []
    subject = pd.factorize(table.frame["id"].to_numpy())[0].astype(np.int64)
    for given, rule in missing.items():
        name = given.strip().lower()
        if name not in table.frame.columns or is_reserved(name):
            possible = [table.name(x) for x in table.frame.columns if not is_reserved(x)]
            raise DataError(f"expected a covariate in missing=, got {given!r}.{nearest(given, possible)}")
        column = table.frame[name]
        blank = column.isna().to_numpy()
        if not blank.any():
            continue
        values, words = _completed(table, name, blank, subject, rule)
        columns[name] = values
        notes.append(
            f"{int(blank.sum())} missing values of {table.name(name)} ({len(np.unique(subject[blank]))} subjects), the "
            f"first on line {table.line[int(np.argmax(blank))]}: filled in ({words})"
        )
    return replace(table, frame=table.frame.assign(**columns), warnings=[*table.warnings, *notes])


def _check_rules(missing: Any) -> None:
    if not isinstance(missing, Mapping) or not all(isinstance(name, str) for name in missing):
        raise DataError(f"expected missing={{'wt': 'median'}}, a covariate and its rule, got {missing!r}")
    for name, rule in missing.items():
        number = isinstance(rule, int | float) and not isinstance(rule, bool) and bool(np.isfinite(rule))
        if not number and rule not in RULES:
            raise DataError(f"expected missing={{{name!r}: 'median', 'carry' or a number}}, got {rule!r}")


def _completed(table: Table, name: str, blank: Bools, subject: Ints, rule: str | float) -> tuple[Any, str]:
    """The whole column, and the rule in words."""
    column = table.frame[name]
    number = pd.api.types.is_numeric_dtype(column)
    if rule == "carry":
        groups = column.groupby(subject)
        carried = groups.ffill().groupby(subject).bfill()
        still = carried.isna().to_numpy()
        if still.any():
            row = int(np.argmax(still))
            raise table.error(
                f"expected a value to carry, got none of id {table.frame['id'].iloc[row]} at all; choose 'median' or a "
                "number, or leave the subject out",
                row,
                name,
            )
        return carried.to_numpy(), "the subject's last value before, or its first one after"
    if not number:
        raise DataError(
            f"expected missing={{{name!r}: 'carry'}} for a text, got {rule!r}; or write a level such as 'unknown' "
            "into the cells",
            column=table.name(name),
        )
    values = column.to_numpy(np.float64).copy()
    if rule != "median":
        values[blank] = float(rule)
        return values, number_text(float(rule))
    _, first = np.unique(subject[~blank], return_index=True)
    if not len(first):
        raise DataError(
            "expected some value for the median, got none; choose a number", column=table.name(name)
        )
    values[blank] = np.median(values[~blank][first])
    return values, f"median {number_text(values[blank][0])}"
