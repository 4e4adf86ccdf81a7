"""check_table: every oddity is said of a table that has it, and not of its near neighbour that has not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nlmegen.check.table.report import CheckReport, check_table
from nlmegen.data.catalogue import list_data
from nlmegen.errors import DataError

Change = Callable[[pd.DataFrame], pd.DataFrame]


def study() -> pd.DataFrame:
    """Eight subjects, a dose and six declining samples each, nothing odd."""
    generator = np.random.default_rng(3)
    parts = []
    for n in range(8):
        times = np.array([0.0, 0.5, 1, 2, 4, 8, 24])
        dv = 10 * np.exp(-0.1 * times + generator.normal(0, 0.2, 7))
        parts.append(pd.DataFrame({
            "ID": n + 1, "TIME": times, "AMT": np.where(times == 0, 100.0, 0), "DV": np.where(times == 0, np.nan, dv),
            "EVID": (times == 0).astype(int), "WT": 60.0 + 4 * n,
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def repeated(doses: int = 3, rich: int = 8) -> pd.DataFrame:
    """Subjects with a dose every 24 h, a sample before each and three after it, concentrations by superposition."""
    generator = np.random.default_rng(5)
    parts = []
    for n in range(rich):
        dose = 24.0 * np.arange(doses)
        times = np.concatenate([dose[1:] - 0.5, *(dose + lag for lag in (1.0, 4.0, 12.0))])
        past = times[:, None] - dose
        dv = np.where(past >= 0, 10 * np.exp(-0.15 * np.maximum(past, 0)), 0.0).sum(1)
        parts.append(pd.DataFrame({
            "ID": n + 1, "TIME": np.concatenate([dose, times]), "AMT": np.repeat([100.0, 0.0], [doses, len(times)]),
            "DV": np.concatenate([np.full(doses, np.nan), dv * np.exp(generator.normal(0, 0.1, len(times)))]),
            "EVID": np.repeat([1, 0], [doses, len(times)]),
        }).sort_values("TIME", kind="stable"))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def change(rows: object, column: str, value: object) -> Change:
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[rows, column] = value  # type: ignore[index]
        return table

    return apply


def scale(ids: list[int], column: str, factor: float, rows: slice = slice(None)) -> Change:
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        chosen = table.index[table["ID"].isin(ids)][rows]
        table.loc[chosen, column] = table.loc[chosen, column] * factor
        return table

    return apply


def scaled_together(ids: list[int], factor: float) -> Change:
    """A dose escalation: amounts and concentrations of some subjects are larger by one factor."""
    return lambda table: scale(ids, "DV", factor)(scale(ids, "AMT", factor)(table))


def with_extra(**cells: float) -> Change:
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        extra = pd.DataFrame({name: [np.nan] for name in table} | {name: [x] for name, x in cells.items()})
        joined = pd.concat([table, extra], ignore_index=True)
        return joined.sort_values(["ID", "TIME"], kind="stable", ignore_index=True)

    return apply


def baselines(table: pd.DataFrame, ids: range) -> pd.DataFrame:
    early = pd.DataFrame({"ID": list(ids), "TIME": -1.0, "AMT": 0.0, "DV": 3.0, "EVID": 0, "WT": 60.0})
    table = table.assign(TIME=table.TIME + 1)
    early["TIME"] = 0.0
    early["WT"] = [60.0 + 4 * (k - 1) for k in ids]
    joined = pd.concat([early, table], ignore_index=True)
    return joined.sort_values(["ID", "TIME"], kind="stable", ignore_index=True)


def untaken(table: pd.DataFrame) -> pd.DataFrame:
    """Subject 2 did not take the second dose: what is measured is what is left of the first."""
    late = (table.ID == 2) & (table.TIME > 23) & (table.TIME < 47.9) & (table.EVID == 0)
    table.loc[late, "DV"] = 10 * np.exp(-0.15 * table.loc[late, "TIME"])
    return table


def weak(table: pd.DataFrame) -> pd.DataFrame:
    """Subject 2 absorbs a third of the second dose."""
    late = (table.ID == 2) & (table.TIME >= 24) & (table.TIME < 47.9) & (table.EVID == 0)
    time = table.loc[late, "TIME"]
    table.loc[late, "DV"] = 10 * np.exp(-0.15 * time) + 3.3 * np.exp(-0.15 * (time - 24))
    return table


def dose_at(time: float) -> Change:
    return with_extra(ID=8, TIME=time, AMT=100.0, EVID=1, WT=88.0)


CASES: list[tuple[str, Change, Change, str]] = [
    (
        "a slip of ten",
        change([3], "DV", 85.0),
        change([3], "DV", 25.0),
        "DV is extreme, for the dose, in 1 record (line 5)",
    ),
    ("a huge value", change([3], "DV", 9e5), change([3], "DV", 20.0), "DV is extreme"),
    ("a value a hundredth", change([12], "DV", 0.04), change([12], "DV", 2.5), "DV is extreme"),
    ("negative", change([3], "DV", -1.0), change([3], "DV", 5.0), "DV is negative in 1 record (line 5)"),
    ("zero", change([3], "DV", 0.0), change([6], "DV", 0.5), "DV is 0 after a dose in 1 record (line 5)"),
    (
        "all zero",
        change(slice(None), "DV", 0.0),
        change(slice(1, 3), "DV", 9.0),
        "DV is 0 in all 48 observations",
    ),
    (
        "code -99",
        change([3], "DV", -99.0),
        change([3], "DV", 9.9),
        "DV is -99 in 1 record (line 5): a code for missing?",
    ),
    (
        "code 999",
        change([3, 5], "DV", 999.0),
        change([3, 5], "DV", 9.0),
        "DV is 999 in 2 records (lines 5, 7)",
    ),
    (
        "constant",
        change([8, 9, 10, 11, 12, 13], "DV", 4.0),
        change([8, 9, 10], "DV", 4.0),
        "DV of id 2 is 4 in all of 6 records",
    ),
    ("a copy", change([3], "TIME", 1.0), change([3], "TIME", 1.01), "at the same time in 1 record (line 5)"),
    (
        "a gap",
        change([6], "TIME", 2400.0),
        change([6], "TIME", 48.0),
        "a gap of 2392, over 100 times the usual",
    ),
    (
        "an origin",
        lambda t: t.assign(TIME=t.TIME + 900.0 * (t.ID == 4)),
        lambda t: t.assign(TIME=t.TIME + 900.0),
        "TIME of 1 subject (id 4) starts at 900",
    ),
    (
        "mg/L and ng/mL",
        scale([3, 4], "DV", 1000),
        scaled_together([3, 4], 1000),
        "DV of 2 subjects (id 3, 4; line 17) is about 1,000 times larger",
    ),
    (
        "tenfold",
        scale([3], "DV", 0.1),
        scale([3], "DV", 0.5),
        "DV of 1 subject (id 3; line 17) is about 10 times smaller",
    ),
    (
        "mg and g of a dose",
        change([0], "AMT", 0.1),
        scaled_together([1], 0.001),
        "AMT of 1 subject (id 1; line 2) is about 1,000 times smaller",
    ),
    ("kg and g", scale([2], "WT", 1000), scale([2], "WT", 1.2), "WT of 1 subject (id 2"),
    (
        "after the last sample",
        dose_at(48.0),
        dose_at(12.0),
        "no observation after the dose in 1 record (line 58)",
    ),
    (
        "negative times",
        change([0, 1], "TIME", -1.0),
        change([0], "TIME", 0.0),
        "TIME is negative in 2 records (lines 2, 3)",
    ),
    (
        "a code for weight",
        change(slice(0, 6), "WT", -99.0),
        change(slice(0, 6), "WT", 99.0),
        "WT is -99 in 7 records",
    ),
    (
        "no weight",
        change(slice(0, 6), "WT", 0.0),
        change(slice(0, 6), "WT", 40.0),
        "WT is 0 in 7 records (lines 2, 3, 4, 5, 6 and 2 more)",
    ),
    (
        "half a tonne",
        change(slice(0, 6), "WT", 600.0),
        change(slice(0, 6), "WT", 160.0),
        "WT is 600 in 7 records",
    ),
    (
        "one change",
        change([20], "WT", 78.0),
        lambda t: t.assign(WT=t.WT + (t.TIME > 8)),
        "WT changes in 1 record (line 22) and in no other subject",
    ),
    (
        "a jump",
        lambda t: t.assign(WT=t.WT + (t.TIME > 8) + 200.0 * ((t.ID == 2) & (t.TIME == 4))),
        lambda t: t.assign(WT=t.WT + (t.TIME > 8) + 9.0 * ((t.ID == 2) & (t.TIME == 4))),
        "WT more than doubles or halves for one record",
    ),
    (
        "no covariate",
        lambda t: t.assign(LNDV=np.arange(len(t))),
        lambda t: t.assign(LNDV=t.ID),
        "LNDV changes at almost every record",
    ),
    (
        "no dose",
        lambda t: t[~((t.ID == 5) & (t.EVID == 1))],
        lambda t: t[t.ID != 5],
        "1 of 8 subjects without doses: id 5",
    ),
    (
        "no sample",
        lambda t: t[(t.ID != 5) | (t.EVID == 1)],
        lambda t: t[(t.ID != 5) | (t.TIME < 1)],
        "1 of 8 subjects without observations: id 5",
    ),
    (
        "before the dose",
        lambda t: baselines(t, range(1, 2)),
        lambda t: baselines(t, range(1, 9)),
        "DV is not 0 before the first dose in 1 record (line 2)",
    ),
    (
        "II alone",
        lambda t: t.assign(II=24.0 * t.EVID),
        lambda t: t.assign(II=48.0 * t.EVID, ADDL=t.EVID),
        "dose records with II but no ADDL",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "neighbour", "says"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_oddities(spoil: Change, neighbour: Change, says: str) -> None:
    assert check_table(study()).odd == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_table(spoil(study()))
    assert any(says in line for line in report.odd), report.odd
    assert says in str(report)
    assert check_table(neighbour(study())).odd == ()


@pytest.mark.parametrize(
    ("spoil", "neighbour", "says"),
    [
        (untaken, weak, "no rise after the dose in 1 record (line 21)"),
        (
            scale([3], "AMT", 1000, slice(5, 6)),
            scale([3], "AMT", 10, slice(5, 6)),
            "a hundred times larger or smaller than the subject's other doses",
        ),
    ],
    ids=["not taken", "another unit for one dose"],
)
def test_oddities_of_repeated_doses(spoil: Change, neighbour: Change, says: str) -> None:
    assert check_table(repeated()).odd == ()
    report = check_table(spoil(repeated()))
    assert any(says in line for line in report.odd), report.odd
    assert not any(says[:20] in line for line in check_table(neighbour(repeated())).odd)


def test_amounts_per_kg_and_units_that_do_not_fit() -> None:
    per_kg = study().assign(AMT=1.5 * study().EVID)
    assert any("is AMT per kg (then write AMT x WT)" in line for line in check_table(per_kg).odd)
    nanograms = study().assign(DV=study().DV * 1000)
    assert any("mg and ng/mL: the page then observes 1000" in line for line in check_table(nanograms).odd)
    units = {"amount_unit": "mg", "dv_unit": "ng/mL"}
    assert check_table(nanograms, **units).odd == ()
    alone = study().drop(columns="WT").assign(AMT=0.01 * study().EVID)
    assert any("in units that fit" in line for line in check_table(alone).odd)
    micrograms = study().assign(AMT=1e8 * study().EVID)
    assert any("is AMT in a smaller unit than DV" in line for line in check_table(micrograms).odd)


def limited(lloq: float) -> pd.DataFrame:
    """The study with values below a limit given as the limit."""
    table = study()
    low = table["DV"] < lloq
    return table.assign(CENS=low.astype(int), DV=table["DV"].where(~low, lloq))


def test_values_below_quantification() -> None:
    few = check_table(limited(2.0))
    assert few.odd == ()
    share = float(limited(2.0)["CENS"].sum() / 48)
    assert any(
        f"({share:.0%}) below the limit of quantification (CENS 1, limit 2)" in x for x in few.understood
    )
    assert any("by time after dose 0% from 0.5" in line for line in few.understood)
    many = check_table(limited(8.0))
    assert any("leaving them out would bias the fit" in line for line in many.odd)
    amid = limited(2.0)
    amid.loc[3, ["DV", "CENS"]] = [2.0, 1]
    assert any("(line 5), between values three times the limit" in line for line in check_table(amid).odd)


def test_steady_states_occasions_and_modelled_infusions_are_understood() -> None:
    table = study().assign(SS=study().EVID, II=12.0 * study().EVID, RATE=-2.0 * study().EVID, OCC=1)
    table.loc[table["TIME"] > 4, "OCC"] = 2
    report = check_table(table)
    assert (
        "8 infusion of modelled duration (RATE -2) into the default compartment, amount 100"
        in report.understood
    )
    assert "8 at steady state (SS 1, replaces what is there), every 12" in report.understood
    assert "occasions (OCC) 16 (2 a subject)" in report.understood


def test_an_effect_is_not_judged_by_its_dose() -> None:
    """An endpoint that does not follow the dose, with a tenfold range of doses: nothing is odd."""
    table = study()
    table["AMT"] = table["AMT"] * np.where(table["ID"] > 4, 30, 1)
    table["DV"] = np.where(table["EVID"] == 0, 100 - 3 * table["TIME"] + table["ID"], np.nan)
    assert check_table(table).odd == ()


def test_findings_know_their_records() -> None:
    report = check_table(change([3], "DV", 850.0)(study()))
    (finding,) = report.findings
    assert (finding.rows, finding.kind) == ((3,), "dv")
    assert isinstance(report, CheckReport)
    assert report.population.table["dv"].iloc[finding.rows[0]] == 850.0


def test_what_was_understood(tmp_path: Path) -> None:
    table = study().assign(
        NOTE=[f"line {k}" for k in range(len(study()))],
        DVID=np.where(study().TIME > 4, 2, 1),
        CMT=2,
        RATE=np.where(study().EVID == 1, 50, 0),
    )
    table["AGE"] = np.where(table.TIME > 8, 41, 40)
    path = tmp_path / "study.csv"
    table.to_csv(path, index=False, na_rep=".")
    text = str(check_table(path, time_unit="h", amount_unit="mg", dv_unit="mg/L"))
    for words in (
        "8 subjects, 48 observations (6 a subject), times 0.5 to 24 h",
        "endpoint (DVID) 1: 32 values",
        "endpoint (DVID) 2: 16 values",
        "8 infusion into compartment 2, rate 50 mg/h",
        "covariate wt 60 to 88, constant",
        "covariate age 40 to 41, varies in time",
        "the next record's value governs the interval that ends at it",
        "no covariates (text or blank): NOTE",
        "What looks odd\n  - nothing",
    ):
        assert words in text


@pytest.mark.parametrize(
    "name", ["cefamandole", "indomethacin", "phenobarbital", "remifentanil", "theophylline"]
)
def test_nothing_is_odd_in_the_catalogue(name: str) -> None:
    path = next(entry.path for entry in list_data() if entry.name == name)
    assert check_table(path).odd == ()


@pytest.mark.parametrize(("factor", "column"), [(1000, "DV"), (10, "DV"), (0.001, "DV"), (1000, "AMT")])
def test_a_unit_off_is_found_in_real_data(factor: float, column: str) -> None:
    table = pd.read_csv(
        next(entry.path for entry in list_data() if entry.name == "theophylline"), na_values="."
    )
    table.loc[table["ID"] == 7, column] *= factor
    words = "larger" if factor > 1 else "smaller"
    size = max(factor, 1 / factor)
    assert any(
        f"{column} of 1 subject (id 7" in x and f"about {size:,.0f} times {words}" in x
        for x in check_table(table).odd
    )


def test_a_malformed_table_is_an_error() -> None:
    with pytest.raises(DataError, match="row 2, column AMT"):
        check_table(study().assign(AMT=0))
