"""What looks odd about doses that are there twice: a record and its copy, an additional dose and a record."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlmegen.check.table.view import Finding, View
from nlmegen.data.columns import Ints

_SAME = 1e-6
"""Times that differ by less, as a part of the dosing interval, are one."""


def repeated_doses(view: View) -> Iterator[Finding]:
    """Yield dose records that are there twice, and those that fall on an additional dose (ADDL)."""
    records = view.records
    rows = np.flatnonzero(records.dosed)
    key = np.stack(
        [
            records.block[rows], records.time[rows], records.compartment[rows], records.amount[rows],
            records.rate[rows], records.modelled[rows], records.interval[rows], records.steady[rows],
        ],
        axis=1,
    )  # fmt: skip
    _, first = np.unique(key, axis=0, return_index=True)
    copies = np.setdiff1d(rows, rows[first])
    if len(copies):
        text = (
            "the same dose at the same time as in an earlier record of the subject in {}: both are given; leave the "
            "copies out, or write one record with the sum"
        )
        yield view.finding("dose", text, copies)
    met, order = _on_additional(view)
    met, order = met[~np.isin(met, copies)], order[~np.isin(met, copies)]
    if len(met):
        text = (
            f"a dose in {{}} at the time of an additional dose (ADDL) into the same compartment, the first that of "
            f"line {view.table.line[order[0]]}: both are given; if it is one dose, make ADDL smaller or leave "
            "the record out"
        )
        yield view.finding("dose", text, met)


def _on_additional(view: View) -> tuple[Ints, Ints]:
    """[n] dose records at the time of an additional dose that is pending, and [n] the records that ordered those."""
    records = view.records
    met: dict[int, int] = {}
    dosed = np.flatnonzero(records.dosed)
    for row in np.flatnonzero(records.dosed & (records.additional > 0) & (records.interval > 0)):
        stop = records.start[records.subject[row]] + records.count[records.subject[row]]
        later = dosed[np.searchsorted(dosed, row, side="right") : np.searchsorted(dosed, stop)]
        later = later[
            (records.regime[later] == records.regime[row])  # a reset cancels what is pending
            & (records.compartment[later] == records.compartment[row])
        ]
        number = (records.time[later] - records.time[row]) / records.interval[row]
        nearest = np.round(number)
        on = (np.abs(number - nearest) < _SAME) & (nearest >= 1) & (nearest <= records.additional[row])
        for one in later[on].tolist():
            met.setdefault(one, int(row))
    found = np.array(sorted(met), dtype=np.int64)
    return found, np.array([met[row] for row in found.tolist()], dtype=np.int64)
