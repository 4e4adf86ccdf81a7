"""What looks odd about covariates: codes, values no body has, one change in one subject, another unit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlmegen.check.table.doses import WEIGHT
from nlmegen.check.table.values import CODES
from nlmegen.check.table.view import Finding, View
from nlmegen.data.columns import Floats

_LEVELS = 6
"""Texts of a column with blank cells that may be levels; more of them are remarks."""

_BOUNDS = {
    **dict.fromkeys(WEIGHT, (0.2, 400.0, "kg")),
    **dict.fromkeys(("age",), (0.0, 120.0, "years")),
    **dict.fromkeys(("ht", "height"), (20.0, 260.0, "cm")),
    **dict.fromkeys(("bmi",), (5.0, 100.0, "kg/m2")),
    **dict.fromkeys(("bsa",), (0.1, 4.0, "m2")),
}
"""Names that mean the same in most tables, with the values that a body has."""


def odd_covariates(view: View) -> Iterator[Finding]:
    """Yield what looks odd about the covariates."""
    yield from _blank(view)
    for name, values in view.records.covariates.items():
        if view.population.covariates[name].levels:
            continue
        shown = view.table.name(name)
        coded = np.flatnonzero(np.isin(values, CODES))
        if len(coded):
            text = f"{shown} is {values[coded[0]]:g} in {{}}: a code for missing?"
            yield view.finding("covariate", text, coded)
            continue
        said = list(_units(view, values, shown))
        yield from said or _implausible(view, name, values, shown)
        yield from _changes(view, name, values, shown)


def _blank(view: View) -> Iterator[Finding]:
    """Texts that would be covariates but for some blank cells; a remark on a few records is none."""
    for name, reason in view.records.no_covariates.items():
        column = view.table.frame[name]
        blank = column.isna().to_numpy()
        if blank.any() and blank.mean() < 0.5 and column.nunique() <= _LEVELS:
            text = f"{view.table.name(name)} is no covariate: {reason}"
            yield Finding(text, tuple(np.flatnonzero(blank).tolist()), "covariate")


def _implausible(view: View, name: str, values: Floats, shown: str) -> Iterator[Finding]:
    zero = np.flatnonzero(values <= 0)
    if len(zero) and len(np.unique(values)) > 3 and (values[values > 0]).min(initial=np.inf) >= 1:
        text = f"{shown} is {values[zero[0]]:g} in {{}}, elsewhere 1 or more: a code for missing?"
        yield view.finding("covariate", text, zero)
    elif name in _BOUNDS:
        low, high, unit = _BOUNDS[name]
        out = np.flatnonzero((values < low) | (values > high))
        # A column that is wholly out of these bounds is in another unit, which is no mistake.
        if 0 < len(out) < 0.5 * len(values):
            text = (
                f"{shown} is {values[out[0]]:g} in {{}}: no body has that in {unit}; a slip, or another unit?"
            )
            yield view.finding("covariate", text, out)


def _units(view: View, values: Floats, shown: str) -> Iterator[Finding]:
    """Subjects whose value is about a thousand times that of the others."""
    records = view.records
    if not (values > 0).all() or len(records.ids) < 3:
        return
    logs = np.log10(values)
    typical = np.array(
        [np.median(logs[s : s + n]) for s, n in zip(records.start, records.count, strict=True)]
    )
    away = typical - np.median(typical)
    for sign, way in ((1, "larger"), (-1, "smaller")):
        off = np.flatnonzero(sign * away > 2.5)
        if len(off):
            factor = 10 ** round(float(abs(np.median(away[off]))))
            rows = np.flatnonzero(np.isin(records.subject, off))
            text = (
                f"{shown} of {view.who(off)}; line {view.table.line[rows[0]]}) is about {factor:,.0f} times {way} than "
                "that of the others: another unit (kg and g)?"
            )
            yield Finding(text, tuple(rows.tolist()), "covariate")


def _changes(view: View, name: str, values: Floats, shown: str) -> Iterator[Finding]:
    """A covariate that changes in one subject of many, that jumps and comes back, or at every record."""
    records = view.records
    inner = np.diff(records.subject, prepend=-1) == 0
    changed = inner & (np.diff(values, prepend=values[:1]) != 0)
    if not changed.any():
        return
    subjects = np.unique(records.subject[changed])
    if len(records.ids) >= 5 and len(subjects) == 1 and changed.sum() <= 2:
        text = f"{shown} changes in {{}} and in no other subject: a slip, or one visit's value?"
        yield view.finding("covariate", text, np.flatnonzero(changed))
    elif (values > 0).all():
        same = inner[1:-1] & inner[2:]
        logs = np.log10(values)
        spike = np.flatnonzero(
            same
            & (np.abs(logs[1:-1] - logs[:-2]) > np.log10(2))
            & (np.abs(logs[1:-1] - logs[2:]) > np.log10(2))
            & (np.abs(logs[2:] - logs[:-2]) < np.log10(1.2))
        )
        if name in WEIGHT and len(spike):
            text = f"{shown} more than doubles or halves for one record in {{}}, and comes back: a slip?"
            yield view.finding("covariate", text, spike + 1)
    if view.population.events.time.shape[1] > 2 and inner.sum() > 4 and changed[inner].mean() > 0.8:
        yield Finding(
            f"{shown} changes at almost every record, which makes a fit slower: if it is no covariate, "
            f"rename={{'{shown}': 'drop'}} leaves it out",
            (),
            "covariate",
        )
