"""A table explained in words before anything is fitted: what was understood, and what looks odd."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nlmegen.data import describe
from nlmegen.data.columns import Bools, DataWarning, Floats, Ints, Table, is_reserved
from nlmegen.data.nonmem import Source, read_table
from nlmegen.data.population import Population, build
from nlmegen.data.records import Records, read_records

_SENTINELS = (-99.0, -999.0, -9999.0, 999.0, 9999.0)


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What `check_table` found; `print(report)` shows it.

    Attributes:
        understood: Sentences on what the table says.
        odd: Sentences on what deserves a look; none of them stops a fit.
        population: The table as a Population.
    """

    understood: tuple[str, ...]
    odd: tuple[str, ...]
    population: Population

    def __str__(self) -> str:
        parts = ["What was understood", *(f"  - {line}" for line in self.understood), "", "What looks odd"]
        return "\n".join([*parts, *(f"  - {line}" for line in self.odd or ("nothing",))])

    __repr__ = __str__


def check_table(
    path_or_df: Source,
    *,
    ignore: str | Sequence[str] | None = None,
    accept: str | Sequence[str] | None = None,
    rename: Mapping[str, str | None] | None = None,
    interpolation: str = "nonmem",
    time_unit: str = "",
    amount_unit: str = "",
    dv_unit: str = "",
) -> CheckReport:
    """Explain a table: subjects, observations, doses by route, covariates, endpoints, and what looks odd.

    What looks odd is said with the first line it concerns: a unit off by about 1,000, two measurements at one time,
    doses after the last measurement, endpoints that are all 0, huge gaps in time, extreme values, codes such as -99
    among covariates.

    Args:
        path_or_df, ignore, accept, rename, interpolation, time_unit, amount_unit, dv_unit: As in `read_nonmem`.

    Raises:
        DataError: the table cannot be read; the message names row and column and the remedy.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1], "time": [0, 2], "amt": [100, 0], "dv": [None, 7.5], "wt": [70, 70]})
        >>> print(check_table(frame))
        What was understood
          - 1 subject, 1 observation (1 a subject), times 2
          - dv 7.5
          - 1 bolus into the default compartment, amount 100
          - covariate wt 70, constant
        <BLANKLINE>
        What looks odd
          - nothing
    """
    table = read_table(path_or_df, ignore=ignore, accept=accept, rename=rename)
    with warnings.catch_warnings(action="ignore", category=DataWarning):  # they are part of the report
        population = build(table, interpolation, (time_unit, amount_unit, dv_unit))
    records = read_records(table)
    odd = [*population.warnings, *_odd_observations(table, records), *_odd_times(table, records)]
    odd += _odd_covariates(table, records, population)
    return CheckReport(tuple(_understood(table, population)), tuple(odd), population)


def _understood(table: Table, population: Population) -> Iterator[str]:
    said = dict(describe.lines(population))
    yield (
        f"{_count(population.n_subjects, 'subject')}, {_count(population.n_observations, 'observation')} "
        f"{said['observations'].partition(' ')[2]}, times {said['times']}"
    )
    mask = population.mask
    for code, label in enumerate(population.dvids):
        values = population.dv[mask & (population.dvid == code)]
        name = "dv" if len(population.dvids) == 1 else f"dv of endpoint (DVID) {label}: {len(values)} values,"
        yield f"{name} {describe.span(values, population.dv_unit)}"
    yield from describe.routes(population) or ["no doses"]
    if "resets" in said:
        yield f"{said['resets']} resets (EVID 3 or 4)"
    yield from (f"covariate {text}" for text in describe.covariates(population))
    if any(item.varies for item in population.covariates.values()):
        rule = {
            "nonmem": "the next record's value governs the interval that ends at it (NONMEM's rule)",
            "locf": "a value holds until the next record",
            "linear": "a segment carries the value at the middle between its records",
        }[population.interpolation]
        yield f"between records, covariates that vary: {rule}"
    kept = [
        table.name(x) for x in table.frame.columns if x not in population.covariates and not is_reserved(x)
    ]
    if kept:
        yield f"kept in the table, but no covariates (text or blank): {', '.join(kept)}"


def _odd_observations(table: Table, records: Records) -> Iterator[str]:
    for code, label in enumerate(records.dvids):
        rows = np.flatnonzero(records.observed & (records.dvid == code))
        if not len(rows):
            continue
        values = records.dv[rows]
        name = "DV" if len(records.dvids) == 1 else f"DV of endpoint {label}"
        if (values == 0).all():
            yield f"{name} is 0 in all {_count(len(rows), 'observation')}: was it read from the right column?"
            continue
        if (values < 0).any():
            yield f"{name} is negative in {_where(table, rows[values < 0])}: is it on a log scale?"
        zeros = rows[(values == 0) & (_since_dose(records)[rows] > 0)]
        if len(zeros):
            yield f"{name} is 0 after a dose in {_where(table, zeros)}: below quantification? (MDV=1 leaves them out)"
        yield from _odd_scale(table, records, rows, name)
    yield from _units(table, records, np.flatnonzero(records.dosed), records.amount, "AMT")


def _odd_scale(table: Table, records: Records, rows: Ints, name: str) -> Iterator[str]:
    """Extreme single values, or whole subjects off by about a thousand: never both of the same subject."""
    positive = rows[records.dv[rows] > 0]
    units = list(_units(table, records, positive, records.dv, name))
    yield from units
    if units or len(positive) < 10:
        return
    logs = np.log(records.dv[positive])
    spread = 1.4826 * np.median(np.abs(logs - np.median(logs)))
    extreme = positive[np.abs(logs - np.median(logs)) > max(6 * spread, np.log(100))]
    if len(extreme):
        yield f"{name} is extreme (more than six robust SD from the median of log {name}) in {_where(table, extreme)}"


def _units(table: Table, records: Records, rows: Ints, values: Floats, name: str) -> Iterator[str]:
    """Subjects whose typical value is about a thousand times that of the others."""
    if not len(rows):
        return
    subject = records.subject[rows]
    logs = np.log10(values[rows])
    present = np.unique(subject)
    typical = np.array([np.median(part) for part in np.split(logs, np.flatnonzero(np.diff(subject)) + 1)])
    away = typical - np.median(typical)
    for off in (away > 2.5, away < -2.5):
        if off.any() and len(present) > 2:
            ids = [records.ids[k] for k in present[off]]
            some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
            line = table.line[rows[np.isin(subject, present[off])][0]]
            factor, way = 10 ** round(abs(np.median(away[off]))), "larger" if away[off][0] > 0 else "smaller"
            yield (
                f"{name} of {_count(len(ids), 'subject')} (id {some}; line {line}) is about {factor:,.0f} times {way} "
                "than that of the others: another unit (mg and ug, mg/L and ng/mL)?"
            )


def _odd_times(table: Table, records: Records) -> Iterator[str]:
    rows = np.flatnonzero(records.observed)
    key = np.stack((records.block[rows], records.time[rows], records.dvid[rows]), axis=1)
    _, first = np.unique(key, axis=0, return_index=True)
    twice = np.setdiff1d(rows, rows[first])
    if len(twice):
        yield f"two measurements of one endpoint at the same time in {_where(table, twice)}: replicates, or a copy?"
    later = np.flatnonzero(records.dosed & ~_before_observation(records))
    if len(later):
        yield f"no observation after the dose in {_where(table, later)}: such doses say nothing"
    early = rows[(records.dv[rows] != 0) & np.isnan(_since_dose(records)[rows])]
    if len(early) and records.dosed.any():
        yield f"DV is not 0 before the first dose in {_where(table, early)}: a baseline, or a wrong time?"
    negative = np.flatnonzero(records.time < 0)
    if len(negative):
        yield f"TIME is negative in {_where(table, negative)}: before the first dose?"
    gap = np.where(np.diff(records.block, prepend=-1) == 0, np.diff(records.time, prepend=0.0), 0.0)
    usual = np.median(gap[gap > 0]) if (gap > 0).any() else 0.0
    huge = np.flatnonzero(gap > 100 * usual) if usual > 0 else gap[:0].astype(np.int64)
    if len(huge):
        size = f"a gap of {gap[huge[0]]:.4g}, over 100 times the usual {usual:.4g},"
        yield f"{size} before {_where(table, huge)}: a wrong TIME?"


def _odd_covariates(table: Table, records: Records, population: Population) -> Iterator[str]:
    for name, values in records.covariates.items():
        shown = table.name(name)
        coded = np.flatnonzero(np.isin(values, _SENTINELS))
        if len(coded):
            yield f"{shown} is {values[coded[0]]:g} in {_where(table, coded)}: a code for missing?"
            continue
        zero = np.flatnonzero(values <= 0)
        if len(zero) and len(np.unique(values)) > 3 and (values[values > 0]).min(initial=np.inf) >= 1:
            yield f"{shown} is {values[zero[0]]:g} in {_where(table, zero)}, elsewhere 1 or more: a code for missing?"
        positive = np.flatnonzero(values > 0)
        if len(positive) == len(values):
            yield from _units(table, records, positive, values, shown)
        if population.covariates[name].varies and population.events.time.shape[1] > 2:
            inner = np.diff(records.subject, prepend=-1) == 0
            if inner.sum() > 4 and (np.diff(values, prepend=values[:1])[inner] != 0).mean() > 0.8:
                yield (
                    f"{shown} changes at almost every record, which makes a fit slower: if it is no covariate, "
                    f"rename={{'{shown}': 'drop'}} leaves it out"
                )


def _since_dose(records: Records) -> Floats:
    """[R] time since the last dose record at or before each record, in file order; NaN before the first one."""
    index = np.arange(len(records.time))
    last = np.maximum.accumulate(np.where(records.dosed, index, -1))
    known = last >= records.start[records.subject]
    return np.where(known, records.time - records.time[np.maximum(last, 0)], np.nan)


def _before_observation(records: Records) -> Bools:
    """[R], whether an observation of the subject follows the record in file order."""
    seen = np.cumsum(records.observed)
    total = seen[records.start + records.count - 1]
    return np.asarray(seen < total[records.subject], dtype=np.bool_)


def _where(table: Table, rows: Ints) -> str:
    return f"{_count(len(rows), 'record')} (first on line {table.line[rows[0]]})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
