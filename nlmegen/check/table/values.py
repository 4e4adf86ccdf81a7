"""What looks odd about measured values: units, outliers, codes, constants, limits of quantification."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlmegen.check.table.view import Finding, Profile, View, count, robust
from nlmegen.data.columns import Bools, Floats, Ints

CODES = (-99.0, -999.0, -9999.0, 999.0, 9999.0)
"""Numbers that stand for "missing" in other people's tables."""

_UNIT = 2.5
"""Decades from the others that only another unit explains."""

_TENFOLD = 0.7
"""Decades from the others that a slip of the decimal point explains, where the others agree."""


def odd_values(view: View) -> Iterator[Finding]:
    """Yield what looks odd about DV."""
    records = view.records
    for code, label in enumerate(records.dvids):
        rows = np.flatnonzero(view.measured & (records.dvid == code))
        name = "DV" if len(records.dvids) == 1 else f"DV of endpoint {label}"
        if len(rows):
            yield from _single(view, rows, name)
            yield from _heaped(view, code, rows, name)
        yield from _limits(view, code, name)
    for profile in view.profiles:
        name = "DV" if len(records.dvids) == 1 else f"DV of endpoint {profile.label}"
        units = list(_units(view, profile, name))
        yield from units
        yield from _outliers(view, profile, name, {row for unit in units for row in unit.rows})


def _single(view: View, rows: Ints, name: str) -> Iterator[Finding]:
    """Codes, zeros, negative values and values that never change."""
    records = view.records
    values = records.dv[rows]
    if (values == 0).all():
        text = f"{name} is 0 in all {count(len(rows), 'observation')}: was it read from the right column?"
        yield Finding(text, tuple(rows.tolist()), "dv")
        return
    coded = rows[_is_code(values)]
    if len(coded):
        text = f"{name} is {records.dv[coded[0]]:g} in {{}}: a code for missing? Set MDV=1 there, or ignore=[...]"
        yield view.finding("dv", text, coded)
    rest = rows[~np.isin(rows, coded)]
    below = rest[records.dv[rest] < 0]
    if len(below):
        why = 'is it on a log scale? LogNormal(dv="log") fits logarithms'
        if len(below) < 0.05 * len(rows) and len(rows) > 100:
            why = "noise about 0, or a slip? A log-normal endpoint refuses them"
        yield view.finding("dv", f"{name} is negative in {{}}: {why}", below)
    zeros = rest[(records.dv[rest] == 0) & (view.since[rest] > 0)]
    whole = bool((values == np.floor(values)).all())  # counts and categories are 0 as a matter of course
    if len(zeros) and not whole:
        yield view.finding(
            "dv",
            f"{name} is 0 after a dose in {{}}: below quantification? (CENS=1 with the limit in DV keeps them, MDV=1 "
            "leaves them out)",
            zeros,
        )
    positive = rest[records.dv[rest] > 0]
    for subject in np.unique(records.subject[positive]):
        own = positive[records.subject[positive] == subject]
        if len(own) >= 4 and not whole and len(np.unique(records.dv[own])) == 1:
            text = f"{name} of id {records.ids[subject]} is {records.dv[own[0]]:g} in all of {{}}: filled in by hand?"
            yield view.finding("dv", text, own)


def _is_code(values: Floats) -> Bools:
    """[n] values that are codes: negative ones among others that are not, 999 and 9999 far above all others."""
    found = np.zeros(len(values), dtype=np.bool_)
    others = values[~np.isin(values, CODES)]
    if not len(others):
        return found
    for code in CODES:
        alone = others.min() >= 0 if code < 0 else code > 3 * others.max()
        found |= (values == code) & alone
    return found


def _limits(view: View, code: int, name: str) -> Iterator[Finding]:
    """Values below quantification where measured ones stand before and after, and tables that are mostly such."""
    records = view.records
    rows = np.flatnonzero(records.observed & (records.dvid == code))
    low = view.censored[rows] == 1
    if not low.any():
        return
    if low.mean() > 0.4:
        yield Finding(
            f"{name} is below quantification in {low.mean():.0%} of {count(len(rows), 'observation')}: leaving them "
            'out would bias the fit; blq="M3" (the default of an endpoint) uses them',
            tuple(rows[low].tolist()),
            "dv",
        )
    between = []
    for subject in np.unique(records.subject[rows[low]]):
        own = rows[records.subject[rows] == subject]
        for k in np.flatnonzero(view.censored[own] == 1):
            row = own[k]
            if not 0 < k < len(own) - 1 or not (view.censored[own[[k - 1, k + 1]]] == 0).all():
                continue
            alike = view.since[own[k + 1]] > view.since[row] > view.since[own[k - 1]] >= 0
            if alike and records.dv[own[[k - 1, k + 1]]].min() > 3 * records.dv[row]:
                between.append(row)
    if between:
        yield view.finding(
            "dv",
            f"{name} is below quantification in {{}}, between values three times the limit: a sample mixed up?",
            np.array(between),
        )


def _heaped(view: View, code: int, rows: Ints, name: str) -> Iterator[Finding]:
    """Many values at the very smallest one, as if a limit had been written for what lies below it."""
    records = view.records
    endpoint = records.observed & (records.dvid == code)
    known = records.censoring
    if view.discrete(rows) or (view.censored[endpoint] != 0).any():
        return
    if known is not None and np.isfinite(known.lloq[endpoint]).any():
        return
    value, ties = np.unique(records.dv[rows][records.dv[rows] > 0], return_counts=True)
    # rounded values have ties throughout: a heap stands out from those next to it
    if len(value) < 4 or ties[0] < max(5, 0.05 * len(rows)) or ties[0] <= 2 * ties[1:4].max():
        return
    heap = rows[records.dv[rows] == value[0]]
    text = (
        f"{name} is {value[0]:g}, its smallest value, in {{}}, {ties[0] / len(rows):.0%} of all: values at the "
        "limit of quantification? CENS=1 there (or a column LLOQ) keeps them as such"
    )
    yield view.finding("dv", text, heap)


def _units(view: View, profile: Profile, name: str) -> Iterator[Finding]:
    """Subjects whose values are about 10 or 1,000 times those of the others at the same dose and time."""
    records = view.records
    subject = records.subject[profile.rows]
    present = np.unique(subject)
    if len(present) < 3:
        return
    typical = np.array([np.median(profile.residual[subject == k]) for k in present])
    many = np.array([(subject == k).sum() for k in present])
    away = typical - np.median(typical)
    apart = max(4 * robust(typical), _TENFOLD)
    slip = (np.abs(away) > apart) & (many >= 2)
    off = (np.abs(away) > _UNIT) | (slip if slip.sum() <= 0.2 * len(present) else False)
    if off.mean() > 0.5:
        return
    dose = np.array([np.median(np.log10(view.largest[profile.rows[subject == k]] + 1e-300)) for k in present])
    dose = dose - np.median(dose)
    for decade in np.unique(np.round(away[off])):
        chosen = off & (np.round(away) == decade)
        guilty = profile.by_dose & (np.abs(dose + away) < 0.5) & (np.abs(dose) > _TENFOLD)
        for by_amount in (False, True):
            these = present[chosen & (guilty == by_amount)]
            if not len(these) or not decade:
                continue
            rows = profile.rows[np.isin(subject, these)]
            if by_amount:
                rows = np.flatnonzero(records.dosed & np.isin(records.subject, these))
            what = "AMT" if by_amount else name
            way = "larger" if (decade > 0) != by_amount else "smaller"
            factor = 10 ** abs(decade)
            why = "another unit (mg and ug, mg/L and ng/mL)?"
            if factor < 100:
                why = "a slip of the decimal point, or another unit?"
            which = " at the same dose and time after it" if profile.by_dose and not by_amount else ""
            text = (
                f"{what} of {view.who(these)}; line {view.table.line[rows[0]]}) is about {factor:,.0f} times {way} "
                f"than that of the others{which}: {why} Bring {what} to one unit"
            )
            yield Finding(text, tuple(int(row) for row in rows), "dose" if by_amount else "dv")


def _outliers(view: View, profile: Profile, name: str, known: set[int]) -> Iterator[Finding]:
    """Single values far from those at a like time after dose, and far from the rest of their own subject."""
    subject = view.records.subject[profile.rows]
    own, beside, top = (np.zeros_like(profile.residual) for _ in range(3))
    alone = np.zeros(len(own), dtype=np.bool_)
    for k in np.unique(subject):
        here = np.flatnonzero(subject == k)
        residual = profile.residual[here]
        alone[here] = len(here) < 3
        own[here] = residual - np.median(residual)
        if len(here) > 1:  # a subject's own half-life moves neighbours alike
            padded = np.concatenate([residual[1:2], residual, residual[-2:-1]])
            beside[here] = residual - 0.5 * (padded[:-2] + padded[2:])
        top[here] = profile.value[here].max()
    far = np.abs(profile.residual) > np.maximum(5 * profile.spread, np.log10(4))
    for score in (own, beside):
        within = robust(score[~alone]) if (~alone).any() else 0.0
        big = (np.abs(score) > max(5 * within, np.log10(4))) & (score * profile.residual > 0)
        far &= np.where(alone, np.abs(profile.residual) > 1.0, big)
    # noise that does not shrink with the value makes logarithms of small ones wild: the slip itself must be visible
    size = np.abs(10**profile.value - 10 ** (profile.value - profile.residual))
    far &= size > 0.2 * 10 ** np.median(top)
    far &= ~np.isin(profile.rows, list(known))
    if far.any():
        by_dose = ", for the dose," if profile.by_dose else ""
        text = (
            f"{name} is extreme{by_dose} in {{}}: more than five robust SD from the others at that time after dose, "
            "and from the subject's own course: a slip in DV or TIME?"
        )
        yield view.finding("dv", text, profile.rows[far])
