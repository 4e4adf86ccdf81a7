"""What was understood of a table, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlmegen.check.table.view import View, count
from nlmegen.data import describe
from nlmegen.data.columns import is_reserved

_RULES = {
    "nonmem": "the next record's value governs the interval that ends at it (NONMEM's rule)",
    "locf": "a value holds until the next record",
    "linear": "a segment carries the value at the middle between its records",
}


def understood(view: View) -> Iterator[str]:
    """Yield what a table says, a sentence at a time."""
    table, population = view.table, view.population
    said = dict(describe.lines(population))
    yield (
        f"{count(population.n_subjects, 'subject')}, {count(population.n_observations, 'observation')} "
        f"{said['observations'].partition(' ')[2]}, times {said['times']}"
    )
    mask = population.mask
    for code, label in enumerate(population.dvids):
        values = population.dv[mask & (population.dvid == code)]
        unit = population.dv_unit if len(population.dvids) == 1 else ""  # each endpoint has its own
        name = "dv" if len(population.dvids) == 1 else f"dv of endpoint (DVID) {label}: {len(values)} values,"
        yield f"{name} {describe.span(values, unit)}"
    yield from _limits(view)
    yield from describe.routes(population) or ["no doses"]
    yield from _additional(view)
    if "resets" in said:
        yield f"{said['resets']} resets (EVID 3 or 4)"
    if "occasions" in said:
        yield f"occasions (OCC) {said['occasions']}"
    yield from (f"covariate {text}" for text in describe.covariates(population))
    if any(item.varies for item in population.covariates.values()):
        yield f"between records, covariates that vary: {_RULES[population.interpolation]}"
    kept = [
        table.name(x) for x in table.frame.columns if x not in population.covariates and not is_reserved(x)
    ]
    if kept:
        yield f"kept in the table, but no covariates (text or blank): {', '.join(kept)}"


def _additional(view: View) -> Iterator[str]:
    """Doses that ADDL orders."""
    records = view.records
    rows = np.flatnonzero(records.dosed & (records.additional > 0))
    if len(rows):
        orders, many = count(len(rows), "record"), int(records.additional[rows].sum())
        yield f"{orders} with additional doses (ADDL): {many:,} ordered, given up to the subject's last record"


def _limits(view: View) -> Iterator[str]:
    """The share of values below (or above) a limit, over all and by time."""
    records = view.records
    for code, label in enumerate(records.dvids):
        rows = np.flatnonzero(records.observed & (records.dvid == code))
        name = "" if len(records.dvids) == 1 else f" of endpoint {label}"
        for flag, word, sign in ((1, "below", "CENS 1"), (-1, "above", "CENS -1")):
            mine = view.censored[rows] == flag
            if not mine.any():
                continue
            limits = np.unique(records.dv[rows[mine]])
            limit = f"{limits[0]:g}" if len(limits) == 1 else f"{limits[0]:g} to {limits[-1]:g}"
            time = view.since[rows]
            time = np.where(np.isnan(time), records.time[rows], time)
            order = np.argsort(time, kind="stable")
            parts = np.array_split(order, min(4, max(1, len(order) // 10)))
            shares = ", ".join(
                f"{mine[part].mean():.0%} from {time[part[0]]:.3g} to {time[part[-1]]:.3g}" for part in parts
            )
            by_time = f"; by time after dose {shares}" if len(parts) > 1 else ""
            yield (
                f"{int(mine.sum())} of {count(len(rows), 'observation')}{name} ({mine.mean():.0%}) {word} the limit of "
                f"quantification ({sign}, limit {limit}){by_time}"
            )
