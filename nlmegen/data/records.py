"""From a table to event records: what every line means, and whether it may mean that.

The rules are PREDPP's (NONMEM Users Guide, part VI, chapter V), stated by column in `read_records`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nlmegen.data.columns import (
    UNSUPPORTED,
    Bools,
    Floats,
    Ints,
    Table,
    is_reserved,
    lookalike,
    unsupported_kind,
)
from nlmegen.data.labels import Label, read_compartments, read_dvids
from nlmegen.errors import DataError, nearest

MOST_ADDITIONAL = 100_000  # a slip of the keyboard should not fill the memory


@dataclass(frozen=True)
class Records:
    """Every record of a table in file order, R of them, N subjects.

    Attributes:
        ids: The N ids as text, in order of first appearance.
        subject: [R] index into `ids`.
        start, count: [N] first record and number of records of each subject.
        block: [R] number of the reset block; EVID 3 and 4, and a new subject, open one.
        time, dv, amount, rate, interval: [R]; dv is NaN where there is none.
        evid, additional: [R] the event code and the number of additional doses.
        observed: [R] true where DV counts as an observation (EVID 0 and MDV 0).
        dosed: [R] true for EVID 1 and 4.
        compartment, dvid: [R] index into `compartments`, `dvids`.
        compartments, dvids: The labels met on dose records and on observations.
        covariates: Name -> [R] values.
        warnings: What deserves a look.
    """

    ids: tuple[str, ...]
    subject: Ints
    start: Ints
    count: Ints
    block: Ints
    time: Floats
    dv: Floats
    amount: Floats
    rate: Floats
    interval: Floats
    evid: Ints
    additional: Ints
    observed: Bools
    dosed: Bools
    compartment: Ints
    dvid: Ints
    compartments: tuple[Label, ...]
    dvids: tuple[Label, ...]
    covariates: dict[str, Floats]
    warnings: tuple[str, ...]


def read_records(table: Table, covariates: tuple[str, ...] | None = None) -> Records:
    """Read a table's records.

    - ID: text or number; the records of one id stand together.
    - TIME: elapsed time, any finite number, not decreasing within a subject; EVID 3 and 4 may set it back.
    - EVID: 0 observation, 1 dose, 2 other, 3 reset, 4 reset and dose. Without the column a record with AMT (or RATE,
      ADDL) is a dose, one with MDV=1 is an other record, any other one an observation. A missing cell is 0.
    - MDV: 1 where DV is not an observation. Without the column, or in a missing cell: 0 for EVID 0, else 1.
    - AMT: positive on doses, 0 or missing elsewhere. RATE > 0: an infusion of AMT/RATE time units.
    - ADDL, II: as many more doses, II apart.
    - CMT: on a dose, the compartment by number (1 is the first) or name; 0 or missing is the default compartment.
    - DVID: on an observation, the endpoint by number or name; the text "1" is the number 1.
    - Any other numeric column is a covariate and has a value on every record. F1, D1, R1, S1, L2, TLAG and TINF are
      covariates too, with a warning: they do not change a dose or an observation.

    Args:
        table: The table.
        covariates: Names of the covariates to take; all numeric columns without a meaning of their own if None.

    Raises:
        DataError: a record breaks one of these rules, or uses what is not supported yet; an unknown covariate.
    """
    ids, subject, start, count = _subjects(table)
    _refuse_unsupported(table)
    time, dv, amount = table.numbers("time"), table.numbers("dv"), table.numbers("amt")
    rate, interval, additional = table.numbers("rate"), table.numbers("ii"), table.numbers("addl")
    _check(table, "time", np.isnan(time), "expected a time on every record, got none; write the elapsed time")
    evid = _evid(table, amount, rate, additional)
    dosed, observed = (evid == 1) | (evid == 4), _observed(table, evid)
    amount, rate, interval, additional = (np.nan_to_num(x) for x in (amount, rate, interval, additional))
    _check_doses(table, dosed, amount, rate, interval, additional)
    _check(
        table,
        "dv",
        observed & np.isnan(dv),
        "expected a measurement on an observation record, got none; set MDV=1 (or EVID=2) where nothing was measured",
    )
    block = np.cumsum((evid == 3) | (evid == 4) | (np.diff(subject, prepend=-1) != 0))
    _check_order(table, block, time)
    compartment, compartments = read_compartments(table, dosed, observed)
    dvid, dvids = read_dvids(table, observed)
    found = _covariates(table, covariates)
    warnings = [*table.warnings, *_odd(table, ids, subject, dosed, observed, interval, additional)]
    if covariates is None:  # a column that was asked for by name is meant as a covariate
        warnings += _lookalikes(table, found)
    return Records(
        ids=ids, subject=subject, start=start, count=count, block=block, time=time, dv=dv, amount=amount, rate=rate,
        interval=interval, evid=evid, additional=additional.astype(np.int64), observed=observed, dosed=dosed,
        compartment=compartment, dvid=dvid, compartments=compartments, dvids=dvids,
        covariates=found, warnings=tuple(warnings),
    )  # fmt: skip


def _check(table: Table, column: str, wrong: Bools, message: str, values: Floats | None = None) -> None:
    """Raise for the first record where `wrong`; `{}` in the message is the value there."""
    if wrong.any():
        row = int(np.argmax(wrong))
        raise table.error(message if values is None else message.format(_number(values[row])), row, column)


def _number(value: float) -> str:
    return "nothing" if np.isnan(value) else f"{value:.12g}"


def _subjects(table: Table) -> tuple[tuple[str, ...], Ints, Ints, Ints]:
    values = table.frame["id"].to_numpy()
    codes, unique = pd.factorize(values)
    first = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(first) > len(unique):
        runs = codes[first]
        again = int(first[np.flatnonzero(pd.Series(runs).duplicated())[0]])
        raise table.error(
            f"expected the records of one id to stand together, got id {values[again]} again after other ids; sort the "
            "table by id (and time), or give each patient an id of its own",
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
        kind = unsupported_kind(name)
        if kind is None or not table.has(name):
            continue
        if kind == "date":
            used = table.frame[name].notna().to_numpy()
        elif kind == "occ":
            values = np.nan_to_num(table.numbers(name))
            used = values != values[0]
        else:
            used = np.nan_to_num(table.numbers(name)) != 0
        if used.any():
            row = int(np.argmax(used))
            wanted = "one value throughout" if kind == "occ" else "0 or no value"
            raise table.error(
                f"expected {wanted}, got {table.frame[name].iloc[row]}: {UNSUPPORTED[kind]}; "
                f"if the column means something else, rename={{'{table.name(name)}': 'drop'}} leaves it out",
                row,
                name,
            )


def _evid(table: Table, amount: Floats, rate: Floats, additional: Floats) -> Ints:
    if not table.has("evid"):
        dose = (np.nan_to_num(amount) != 0) | (np.nan_to_num(rate) != 0) | (np.nan_to_num(additional) != 0)
        other = np.nan_to_num(table.numbers("mdv")) == 1
        return np.where(dose, 1, np.where(other, 2, 0)).astype(np.int64)
    values = table.numbers("evid")
    evid = np.nan_to_num(values)
    _check(
        table,
        "evid",
        ~np.isin(evid, (0, 1, 2, 3, 4)),
        "expected 0 (observation), 1 (dose), 2 (other), 3 (reset) or 4 (reset and dose), got {}; correct the code",
        values,
    )
    return evid.astype(np.int64)


def _observed(table: Table, evid: Ints) -> Bools:
    mdv = table.numbers("mdv")
    _check(
        table,
        "mdv",
        ~np.isnan(mdv) & (mdv != 0) & (mdv != 1),
        "expected 0 (DV is an observation) or 1 (it is not), got {}; correct the flag",
        mdv,
    )
    _check(
        table,
        "mdv",
        (evid != 0) & (mdv == 0),
        "expected 1 on a record that is no observation (EVID other than 0), got {}; set MDV=1, and give a measurement "
        "at that time a record of its own",
        mdv,
    )
    return np.asarray((evid == 0) & (np.isnan(mdv) | (mdv == 0)), dtype=np.bool_)


def _check_doses(
    table: Table, dosed: Bools, amount: Floats, rate: Floats, interval: Floats, additional: Floats
) -> None:
    _check(table, "amt", amount < 0, "expected a dose of 0 or more, got {}; correct the amount", amount)
    _check(
        table,
        "amt",
        ~dosed & (amount > 0),
        "expected no amount on a record that is no dose (EVID 0, 2 or 3), got {}; set EVID=1, or AMT=0",
        amount,
    )
    _check(
        table,
        "amt",
        dosed & (amount == 0),
        "expected an amount on a dose record (EVID 1 or 4), got {}; write the dose, or set EVID=2 if none was given",
        table.numbers("amt"),
    )
    modelled = (rate == -1) | (rate == -2)
    _check(
        table,
        "rate",
        modelled,
        "expected the rate of an infusion, got {}: modelled rates and durations are not supported yet; write AMT "
        "divided by the duration of the infusion",
        rate,
    )
    _check(
        table,
        "rate",
        rate < 0,
        "expected 0 (bolus) or the rate of an infusion, got {}; correct the rate",
        rate,
    )
    _check(
        table,
        "rate",
        ~dosed & (rate > 0),
        "expected no rate on a record that is no dose, got {}; set RATE=0, or EVID=1 with an amount",
        rate,
    )
    with np.errstate(over="ignore"):
        endless = (rate > 0) & ~np.isfinite(amount / np.where(rate > 0, rate, 1.0))
    _check(
        table, "rate", endless, "expected an infusion that ends, got the rate {}; check AMT and RATE", rate
    )
    _check(table, "ii", interval < 0, "expected a dosing interval of 0 or more, got {}; correct it", interval)
    _check(
        table,
        "addl",
        additional < 0,
        "expected 0 or more additional doses, got {}; correct the number",
        additional,
    )
    _check(
        table,
        "addl",
        additional != np.floor(additional),
        "expected a whole number of additional doses, got {}; correct the number",
        additional,
    )
    _check(
        table,
        "addl",
        additional > MOST_ADDITIONAL,
        f"expected at most {MOST_ADDITIONAL:,} additional doses, got {{}}; as many as fit before the last record do",
        additional,
    )
    _check(
        table,
        "addl",
        ~dosed & (additional > 0),
        "expected no additional doses on a record that is no dose, got {}; set ADDL=0, or EVID=1 with an amount",
        additional,
    )
    _check(
        table,
        "addl",
        (additional > 0) & (interval == 0),
        "expected a dosing interval II with {} additional doses, got none; write the time between doses into II",
        additional,
    )


def _check_order(table: Table, block: Ints, time: Floats) -> None:
    back = np.zeros(len(time), dtype=np.bool_)
    back[1:] = (np.diff(time) < 0) & (np.diff(block) == 0)
    if back.any():
        row = int(np.argmax(back))
        raise table.error(
            f"expected times that do not decrease within a subject, got {_number(time[row])} after "
            f"{_number(time[row - 1])} (id {table.frame['id'].iloc[row]}); sort the subject's records by time, or "
            "mark a new period with EVID 3 or 4",
            row,
            "time",
        )


def _covariates(table: Table, names: tuple[str, ...] | None) -> dict[str, Floats]:
    possible = [
        name
        for name in table.frame.columns
        if not is_reserved(name) and pd.api.types.is_numeric_dtype(table.frame[name]) and table.has(name)
    ]
    for name in names or ():
        if name not in possible:
            raise DataError(
                "expected a covariate: a numeric column without a meaning of its own, "
                f"got {name!r}.{nearest(name, possible)}"
            )
    found: dict[str, Floats] = {}
    for name in possible:
        if names is not None and name not in names:
            continue
        values = table.frame[name].to_numpy(np.float64)
        _check(
            table,
            name,
            np.isnan(values),
            "expected a covariate's value on every record, got none; fill it in (carry the last value forward), or "
            f"leave the column out with rename={{'{table.name(name)}': 'drop'}}",
        )
        found[name] = values
    return found


def _lookalikes(table: Table, covariates: dict[str, Floats]) -> list[str]:
    return [
        f"column {table.name(name)} is read as a covariate only: elsewhere it may be {lookalike(name)}, here it "
        f"changes no dose and no observation; rename={{'{table.name(name)}': None}} leaves it out"
        for name, values in covariates.items()
        if lookalike(name) and values.any()
    ]


def _odd(
    table: Table,
    ids: tuple[str, ...],
    subject: Ints,
    dosed: Bools,
    observed: Bools,
    interval: Floats,
    additional: Floats,
) -> list[str]:
    warnings = []
    for flag, what in ((dosed, "doses"), (observed, "observations")):
        without = np.flatnonzero(np.bincount(subject, weights=flag, minlength=len(ids)) == 0)
        if len(without):
            shown = ", ".join(ids[k] for k in without[:5]) + (", ..." if len(without) > 5 else "")
            warnings.append(f"{len(without)} of {len(ids)} subjects without {what}: id {shown}; kept")
    idle = np.flatnonzero((interval > 0) & (additional == 0) & dosed)
    if len(idle):
        warnings.append(
            f"{len(idle)} dose records with II but no ADDL, the first on line {table.line[idle[0]]}: II has no effect "
            "there"
        )
    return warnings
