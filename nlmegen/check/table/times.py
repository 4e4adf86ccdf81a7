"""What looks odd about times: copies, values before the first dose, gaps, other origins."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlmegen.check.table.view import Finding, View


def odd_times(view: View) -> Iterator[Finding]:
    """Yield what looks odd about TIME."""
    records = view.records
    rows = np.flatnonzero(records.observed)
    key = np.stack((records.block[rows], records.time[rows], records.dvid[rows]), axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    twice = np.setdiff1d(rows, rows[first])
    if len(twice):
        yield view.finding(
            "time", "two measurements of one endpoint at the same time in {}: replicates, or a copy?", twice
        )
    yield from _early(view)
    negative = np.flatnonzero(records.time < 0)
    if len(negative):
        yield view.finding("time", "TIME is negative in {}: before the first dose?", negative)
    gap = np.where(np.diff(records.block, prepend=-1) == 0, np.diff(records.time, prepend=0.0), 0.0)
    usual = np.median(gap[gap > 0]) if (gap > 0).any() else 0.0
    huge = np.flatnonzero(gap > 100 * usual) if usual > 0 else gap[:0].astype(np.int64)
    few = len(np.unique(records.subject[huge])) <= max(1, 0.05 * len(records.ids))
    if len(huge) and few:
        size = f"a gap of {gap[huge[0]]:.4g}, over 100 times the usual {usual:.4g},"
        yield view.finding("time", f"{size} before {{}}: a wrong TIME?", huge)
    yield from _origins(view)


def _early(view: View) -> Iterator[Finding]:
    """Positive values before the first dose, where most subjects have none: a baseline is seen in most."""
    records = view.records
    if not records.dosed.any():
        return
    begun = np.zeros(len(records.time), dtype=np.bool_)
    for start, number in zip(records.start, records.count, strict=True):
        own = slice(start, start + number)
        begun[own] = np.cumsum(records.dosed[own]) > 0
    dosed = np.bincount(records.subject, weights=records.dosed)[records.subject] > 0
    for code, label in enumerate(records.dvids):
        mine = view.measured & (records.dvid == code) & ~begun & dosed
        early = np.flatnonzero(mine & (records.dv != 0))
        subjects = len(np.unique(records.subject[early]))
        whose = len(np.unique(records.subject[view.measured & (records.dvid == code)]))
        if not len(early) or subjects > 0.5 * whose:
            continue
        name = "DV" if len(records.dvids) == 1 else f"DV of endpoint {label}"
        text = f"{name} is not 0 before the first dose in {{}}: an earlier dose, a baseline, or a wrong TIME?"
        yield view.finding("time", text, early)


def _origins(view: View) -> Iterator[Finding]:
    """Subjects whose clock starts far from that of the others."""
    records = view.records
    begin = records.time[records.start]
    span = records.time[records.start + records.count - 1] - begin
    usual = float(np.median(span))
    if len(begin) < 4 or usual <= 0:
        return
    far = np.flatnonzero(np.abs(begin - np.median(begin)) > 10 * usual)
    if len(far) and len(far) <= 0.2 * len(begin):
        rows = records.start[far]
        text = (
            f"TIME of {view.who(far)}) starts at {begin[far[0]]:.4g} in {{}}, that of the others at "
            f"{np.median(begin):.4g}: time from another origin? Write the time since the subject's own first dose"
        )
        yield view.finding("time", text, rows)
