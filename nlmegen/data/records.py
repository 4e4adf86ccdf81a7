"""From a table to event records: what every line means, and whether it may mean that.

The rules are PREDPP's (NONMEM Users Guide, part VI, chapter V), stated by column in `read_records`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nlmegen.data.censoring import Censoring, read_censoring
from nlmegen.data.columns import (
    UNSUPPORTED,
    Bools,
    Floats,
    Ints,
    Table,
    check,
    number_text,
)
from nlmegen.data.covariates import Levels, read_covariates
from nlmegen.data.doses import Doses
from nlmegen.data.labels import Label, read_compartments, read_dvids
from nlmegen.data.lookalikes import spelt_alike, suspected
from nlmegen.data.occasions import read_groups, read_occasions


@dataclass(frozen=True)
class Records:
    """Every record of a table in file order, R of them, N subjects.

    Attributes:
        ids: The N ids as text, in order of first appearance.
        subject: [R] index into `ids`.
        start, count: [N] first record and number of records of each subject.
        block: [R] number of the reset block; EVID 3 and 4, and a new subject, open one.
        regime: [R] number of the regime; a steady state with SS=1 opens one too.
        time, dv: [R]; dv is NaN where there is none, and the limit where it is censored.
        evid: [R] the event code.
        amount, rate, interval, additional, steady, modelled: [R] as in `Doses`.
        observed: [R] true where DV counts as an observation (EVID 0 and MDV 0).
        dosed: [R] true for EVID 1 and 4.
        off: [R] true where the record switches its compartment off (EVID 2, negative CMT).
        compartment, dvid: [R] index into `compartments`, `dvids`.
        compartments, dvids: The labels met on dose records and on observations.
        covariates: Name -> [R] values.
        levels: Name -> the levels of a covariate that is a text.
        no_covariates: Name -> why a text is no covariate.
        censoring: Measurements beyond a limit, or None.
        occasion: [R] the occasion within the subject, and the labels of each subject; or None.
        group: [R] the group of correlated observations within the subject, -1 in none; or None.
        warnings: What deserves a look.
    """

    ids: tuple[str, ...]
    subject: Ints
    start: Ints
    count: Ints
    block: Ints
    regime: Ints
    time: Floats
    dv: Floats
    amount: Floats
    rate: Floats
    interval: Floats
    additional: Ints
    steady: Ints
    modelled: Ints
    evid: Ints
    observed: Bools
    dosed: Bools
    off: Bools
    compartment: Ints
    dvid: Ints
    compartments: tuple[Label, ...]
    dvids: tuple[Label, ...]
    covariates: dict[str, Floats]
    levels: dict[str, Levels]
    no_covariates: dict[str, str]
    censoring: Censoring | None
    occasion: tuple[Ints, tuple[tuple[str, ...], ...]] | None
    group: Ints | None
    warnings: tuple[str, ...]


def read_records(
    table: Table, covariates: tuple[str, ...] | None = None, levels: dict[str, Levels] | None = None
) -> Records:
    """Read a table's records.

    - ID: text or number; the records of one id stand together.
    - TIME: elapsed time, any finite number, not decreasing within a subject; EVID 3 and 4 may set it back.
    - EVID: 0 observation, 1 dose, 2 other, 3 reset, 4 reset and dose. Without the column a record with AMT (or RATE,
      ADDL, SS) is a dose, one with MDV=1 is an other record, any other one an observation. A missing cell is 0; a
      column that is blank throughout counts as none, here as elsewhere.
    - MDV: 1 where DV is not an observation. Without the column, or in a missing cell: 0 for EVID 0, else 1.
    - AMT, RATE, ADDL, II, SS: see `nlmegen.data.doses.Doses`.
    - CMT: on a dose, the compartment by number (1 is the first) or name; 0 or missing is the default compartment. With
      EVID 2, a negative one switches that compartment off.
    - DVID: on an observation, the endpoint by number or name; the text "1" is the number 1.
    - CENS (BLQ, BQL), LIMIT, LLOQ, ULOQ: see `nlmegen.data.censoring.read_censoring`.
    - OCC: the occasion of every record, by number or name. L2: observations of neighbouring records with the same value
      other than 0 have correlated residuals.
    - Any other numeric column, and a text with few levels, is a covariate and has a value on every record. F1, D1, R1,
      S1, ALAG1, TLAG, TINF and DUR are covariates too, with a warning: they change no dose unless the page uses them.

    Args:
        table: The table.
        covariates: Names of the covariates to take; all of them if None.
        levels: Levels to code texts with, in place of those met.

    Raises:
        DataError: a record breaks one of these rules, or uses what is not supported; an unknown covariate.
    """
    ids, subject, start, count = _subjects(table)
    _refuse_unsupported(table)
    time, dv = table.numbers("time"), table.numbers("dv")
    check(table, "time", np.isnan(time), "expected a time on every record, got none; write the elapsed time")
    evid = _evid(table)
    dosed, observed = (evid == 1) | (evid == 4), _observed(table, evid)
    doses = Doses.read(table, dosed)
    dv, censoring, limits = read_censoring(table, observed, dv)
    _check_measured(table, observed & np.isnan(dv))
    opens = (evid == 3) | (evid == 4) | (np.diff(subject, prepend=-1) != 0)
    block = np.cumsum(opens)
    _check_order(table, block, time)
    compartment, off, compartments = read_compartments(table, dosed, observed, evid == 2)
    dvid, dvids = read_dvids(table, observed)
    found, met, no_covariates = read_covariates(table, covariates, subject, levels)
    warnings = [*table.warnings, *limits, *_odd(ids, subject, dosed, observed), *doses.odd(table, dosed)]
    warnings += spelt_alike(table, met)
    if covariates is None:  # a column that was asked for by name is meant as a covariate
        warnings += suspected(table, found)
    return Records(
        ids=ids, subject=subject, start=start, count=count, block=block,
        regime=np.cumsum(opens | (doses.steady == 1)), time=time, dv=dv, amount=doses.amount, rate=doses.rate,
        interval=doses.interval, additional=doses.additional, steady=doses.steady, modelled=doses.modelled, evid=evid,
        observed=observed, dosed=dosed, off=off, compartment=compartment, dvid=dvid, compartments=compartments,
        dvids=dvids, covariates=found, levels=met, no_covariates=no_covariates, censoring=censoring,
        occasion=read_occasions(table, subject, len(ids)), group=read_groups(table, subject, observed),
        warnings=tuple(warnings),
    )  # fmt: skip


def _subjects(table: Table) -> tuple[tuple[str, ...], Ints, Ints, Ints]:
    values = table.frame["id"].to_numpy()
    codes, unique = pd.factorize(values)
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(first) > len(unique):
        runs = codes[first]
        again = int(first[np.flatnonzero(pd.Series(runs).duplicated())[0]])
        raise table.error(
            f"expected the records of one id to stand together, got id {values[again]} again after other ids; sort the "
            "table by id (and time), or take each run as a subject of its own (repeated_ids='separate', NONMEM's rule)",
            again,
            "id",
        )
    count = np.diff(first, append=len(codes))
    return (
        tuple(str(x) for x in unique),
        codes.astype(np.int64),
        first.astype(np.int64),
        count.astype(np.int64),
    )


def _refuse_unsupported(table: Table) -> None:
    for name in table.frame.columns:
        if name not in UNSUPPORTED or not table.has(name):
            continue
        used = np.nan_to_num(table.numbers(name)) != 0
        if used.any():
            row = int(np.argmax(used))
            raise table.error(
                f"expected 0 or no value, got {table.frame[name].iloc[row]}: {UNSUPPORTED[name]}; "
                f"if the column means something else, rename={{'{table.name(name)}': 'drop'}} leaves it out",
                row,
                name,
            )


def _evid(table: Table) -> Ints:
    if not table.has("evid"):
        dose = np.zeros(len(table.frame), dtype=np.bool_)
        for name in ("amt", "rate", "addl", "ss"):
            dose |= np.nan_to_num(table.numbers(name)) != 0
        other = np.nan_to_num(table.numbers("mdv")) == 1
        return np.where(dose, 1, np.where(other, 2, 0)).astype(np.int64)
    values = table.numbers("evid")
    evid = np.nan_to_num(values)
    check(
        table,
        "evid",
        ~np.isin(evid, (0, 1, 2, 3, 4)),
        "expected 0 (observation), 1 (dose), 2 (other), 3 (reset) or 4 (reset and dose), got {}; correct the code",
        values,
    )
    return evid.astype(np.int64)


def _observed(table: Table, evid: Ints) -> Bools:
    mdv = table.numbers("mdv")
    check(
        table,
        "mdv",
        ~np.isnan(mdv) & (mdv != 0) & (mdv != 1),
        "expected 0 (DV is an observation) or 1 (it is not), got {}; correct the flag",
        mdv,
    )
    check(
        table,
        "mdv",
        (evid != 0) & (mdv == 0),
        "expected 1 on a record that is no observation (EVID other than 0), got {}; set MDV=1, and give a measurement "
        "at that time a record of its own",
        mdv,
    )
    return np.asarray((evid == 0) & (np.isnan(mdv) | (mdv == 0)), dtype=np.bool_)


def _check_measured(table: Table, blank: Bools) -> None:
    """Refuse an observation without a value; where it has a limit, it may be one below it."""
    limits = np.nan_to_num(table.numbers("lloq")) > 0
    below = ", or CENS=1 with DV=LLOQ where it was below the limit" if limits[int(np.argmax(blank))] else ""
    check(
        table,
        "dv",
        blank,
        "expected a measurement on an observation record, got none; set MDV=1 (or EVID=2) where nothing was measured"
        + below,
    )


def _check_order(table: Table, block: Ints, time: Floats) -> None:
    back = np.zeros(len(time), dtype=np.bool_)
    back[1:] = (np.diff(time) < 0) & (np.diff(block) == 0)
    if back.any():
        row = int(np.argmax(back))
        raise table.error(
            f"expected times that do not decrease within a subject, got {number_text(time[row])} after "
            f"{number_text(time[row - 1])} (id {table.frame['id'].iloc[row]}); sort the subject's records by time, or "
            "mark a new period with EVID 3 or 4",
            row,
            "time",
        )


def _odd(ids: tuple[str, ...], subject: Ints, dosed: Bools, observed: Bools) -> list[str]:
    warnings = []
    for flag, what in ((dosed, "doses"), (observed, "observations")):
        without = np.flatnonzero(np.bincount(subject, weights=flag, minlength=len(ids)) == 0)
        if len(without):
            shown = ", ".join(ids[k] for k in without[:5]) + (", ..." if len(without) > 5 else "")
            warnings.append(f"{len(without)} of {len(ids)} subjects without {what}: id {shown}; kept")
    return warnings
