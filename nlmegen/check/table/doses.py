"""What looks odd about doses: without effect, after the last sample, in another unit, per kg."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nlmegen.check.table.view import Finding, Profile, View, robust
from nlmegen.data.columns import Bools, Floats, Ints

WEIGHT = ("wt", "weight", "bw", "wgt", "tbw")
"""Names of a column of body weight in kg."""

_PLASMA = 0.03
"""L/kg: no drug spreads over less than the plasma, some 0.04 L/kg."""


def odd_doses(view: View) -> Iterator[Finding]:
    """Yield what looks odd about the doses."""
    records = view.records
    later = np.flatnonzero(records.dosed & ~_before_observation(view))
    some = np.bincount(records.subject, weights=records.observed)[records.subject[later]] > 0
    if some.any():
        yield view.finding(
            "dose", "no observation after the dose in {}: such doses say nothing; a wrong TIME?", later[some]
        )
    yield from _own_doses(view)
    yield from _without_effect(view)
    yield from _volume(view)


def _own_doses(view: View) -> Iterator[Finding]:
    """Doses a hundred times the subject's others."""
    records = view.records
    rows = np.flatnonzero(records.dosed & (records.amount > 0))
    odd = []
    for subject in np.unique(records.subject[rows]):
        own = rows[records.subject[rows] == subject]
        if len(own) >= 3:
            logs = np.log10(records.amount[own])
            odd += own[np.abs(logs - np.median(logs)) > 1.9].tolist()
    if odd:
        text = "AMT in {} is a hundred times larger or smaller than the subject's other doses: another unit?"
        yield view.finding("dose", text, np.array(odd))


def _without_effect(view: View) -> Iterator[Finding]:
    """Doses after which nothing rises, where values rise after nearly all others."""
    for profile in view.profiles:
        if not profile.by_dose or view.discrete(profile.rows):  # a grade need not rise with a dose
            continue
        every, rises, delays, firsts = _rises(view, profile.label)
        found = []
        for first in (True, False):  # a rise above what is left of earlier doses is another thing
            dose, rise, early = every[firsts == first], rises[firsts == first], delays[firsts == first]
            if len(dose) < 5 or (typical := float(np.median(rise))) <= 0:
                continue
            flat = (rise < 0.05 * typical) & (early <= np.quantile(early, 0.9))
            if not first:  # the difference of two noisy values: it must be far from those after other doses
                flat &= rise < typical - 4 * robust(rise)
            if (rise > 0.1 * typical).mean() >= 0.8:
                found += dose[flat].tolist()
        if found:
            text = (
                "no rise after the dose in {}, where DV rises after nearly all others: was it taken? A dose that was "
                "not given is left out; check its TIME and the subject's first samples too"
            )
            yield view.finding("dose", text, np.array(sorted(found)))


def _rises(view: View, label: str | int) -> tuple[Ints, Floats, Floats, Bools]:
    """Doses that stand alone between samples.

    Returns:
        [n] the record, the rise of DV per amount, the delay of the first sample, and whether it is the first dose.
    """
    records = view.records
    code = records.dvids.index(label)
    dose, rise, early, first = [], [], [], []
    for start, number in zip(records.start, records.count, strict=True):
        rows = np.arange(start, start + number)
        seen = rows[records.observed[rows] & (records.dvid[rows] == code)]
        given = rows[records.dosed[rows]]
        for k, row in enumerate(given):
            stop = given[k + 1] if k + 1 < len(given) else start + number
            again = k > 0 and records.regime[given[k - 1]] == records.regime[row]  # something may be left
            begin = given[k - 1] if again else row
            alike = records.regime[seen] == records.regime[row]
            after = seen[(seen > row) & (seen < stop) & alike]
            before = seen[(seen > begin) & (seen < row)]
            odd = records.additional[row] > 0 or records.steady[row] > 0 or records.amount[row] <= 0
            if odd or not len(after) or (again and not len(before)):
                continue
            base = records.dv[before[-1]] if len(before) else 0.0
            dose.append(row)
            first.append(not again)
            low = view.censored[after] == 1
            rise.append((np.where(low, 0.0, records.dv[after]).max() - base) / records.amount[row])
            early.append(records.time[after[0]] - records.time[row])
    return np.array(dose, dtype=np.int64), np.array(rise), np.array(early), np.array(first, dtype=np.bool_)


def _volume(view: View) -> Iterator[Finding]:
    """An apparent volume that no body has: AMT per kg, or AMT and DV in units that do not fit.

    An effect is no concentration: nothing is said where AMT fits one of several endpoints.
    """
    found = [_fit_of_units(view, profile) for profile in view.profiles if profile.by_dose]
    if found and all(one is not None for one in found):
        yield from (one for one in found if one is not None)


def _fit_of_units(view: View, profile: Profile) -> Finding | None:
    records = view.records
    subject = records.subject[profile.rows]
    present, first = np.unique(subject, return_index=True)
    volume = float(10 ** -np.median([profile.value[subject == k].max() for k in present]))
    litres = volume * _factor(view.population.amount_unit, view.population.dv_unit)
    line = f"line {view.table.line[profile.rows[first[0]]]}"
    ratio = f"AMT divided by the highest DV is {volume:.3g} ({line})"
    small = "1000 * a.central / p.v"
    name = next((x for x in WEIGHT if x in records.covariates), None)
    kg = float(np.median(records.covariates[name])) if name is not None else 0.0
    text = None
    if name is not None and 0.2 < kg < 300 and litres / kg < _PLASMA:
        shown = view.table.name(name)
        text = (
            f"{ratio}, {litres / kg:.2g} for each kg of {shown} and less than the plasma holds (0.04 L/kg): is AMT "
            f"per kg (then write AMT x {shown}), or DV in a smaller unit than AMT (mg and ng/mL: the page then "
            f"observes {small})?"
        )
    elif litres < 0.01:
        text = f"{ratio}: are AMT and DV in units that fit (mg and mg/L)? With mg and ng/mL the page observes {small}"
    elif litres > 1e6:
        text = f"{ratio}: is AMT in a smaller unit than DV (ug and mg/L)?"
    return None if text is None else Finding(text, (int(profile.rows[first[0]]),), "dose")


def _factor(amount: str, dv: str) -> float:
    """The factor from AMT / DV to litres, where both units are known; else 1."""
    mass = {"g": 1e3, "mg": 1.0, "ug": 1e-3, "mcg": 1e-3, "µg": 1e-3, "ng": 1e-6, "pg": 1e-9}
    volume = {"l": 1.0, "ml": 1e-3, "dl": 0.1}
    top, _, bottom = dv.partition("/")
    if amount in mass and top in mass and bottom.lower() in volume:
        return mass[amount] / (mass[top] / volume[bottom.lower()])
    return 1.0


def _before_observation(view: View) -> Bools:
    """[R], whether an observation of the subject follows the record in file order."""
    records = view.records
    seen = np.cumsum(records.observed)
    total = seen[records.start + records.count - 1]
    return np.asarray(seen < total[records.subject], dtype=np.bool_)
