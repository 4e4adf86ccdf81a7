"""check_table: every oddity is said of a table that has it, and not of one that has not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nlmegen.data.catalogue import list_data
from nlmegen.data.check import check_table
from nlmegen.errors import DataError


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


def change(rows: object, column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def apply(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[rows, column] = value  # type: ignore[index]
        return table

    return apply


def grams(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table.ID == 2, "WT"] *= 1000
    return table


def nanograms(table: pd.DataFrame) -> pd.DataFrame:
    table.loc[table.ID.isin([3, 4]), "DV"] *= 1000
    return table


def second_dose(table: pd.DataFrame) -> pd.DataFrame:
    extra = pd.DataFrame(
        {"ID": [8], "TIME": [48.0], "AMT": [100.0], "DV": [np.nan], "EVID": [1], "WT": [88.0]}
    )
    return pd.concat([table, extra], ignore_index=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (change([3], "DV", 900_000.0), "DV is extreme"),
        (change([3], "DV", -1.0), "DV is negative in 1 record (first on line 5)"),
        (change([3], "DV", 0.0), "DV is 0 after a dose in 1 record (first on line 5)"),
        (change(slice(None), "DV", 0.0), "DV is 0 in all 48 observations"),
        (
            change([3], "TIME", 1.0),
            "two measurements of one endpoint at the same time in 1 record (first on line 5)",
        ),
        (change([6], "TIME", 2400.0), "a gap of 2392, over 100 times the usual"),
        (nanograms, "DV of 2 subjects (id 3, 4; line 17) is about 1,000 times larger"),
        (grams, "WT of 1 subject (id 2; line 9) is about"),
        (change([0], "AMT", 0.1), "AMT of 1 subject (id 1; line 2) is about 1,000 times smaller"),
        (second_dose, "no observation after the dose in 1 record (first on line 58)"),
        (change([0, 1], "TIME", -1.0), "TIME is negative in 2 records (first on line 2)"),
        (change(slice(0, 6), "WT", -99.0), "WT is -99 in 7 records"),
        (change(slice(0, 6), "WT", 0.0), "WT is 0 in 7 records (first on line 2), elsewhere 1 or more"),
        (lambda t: t.assign(LNDV=np.arange(len(t))), "LNDV changes at almost every record"),
        (lambda t: t[~((t.ID == 5) & (t.EVID == 1))], "1 of 8 subjects without doses: id 5"),
        (lambda t: pd.concat([t.iloc[[1]].assign(TIME=0.0, DV=3.0), t]), "DV is not 0 before the first dose"),
        (lambda t: t.assign(II=24.0), "8 dose records with II but no ADDL"),
    ],
)
def test_oddities(spoil: Callable[[pd.DataFrame], pd.DataFrame], says: str) -> None:
    assert check_table(study()).odd == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = check_table(spoil(study()))
    assert any(says in line for line in report.odd), report.odd
    assert says in str(report)


def test_what_was_understood(tmp_path: Path) -> None:
    table = study().assign(
        SITE="A", DVID=np.where(study().TIME > 4, 2, 1), CMT=2, RATE=np.where(study().EVID == 1, 50, 0)
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
        "no covariates (text or blank): SITE",
        "What looks odd\n  - nothing",
    ):
        assert words in text


@pytest.mark.parametrize("name", ["theophylline", "phenobarbital"])
def test_nothing_is_odd_in_the_catalogue(name: str) -> None:
    path = next(entry.path for entry in list_data() if entry.name == name)
    assert check_table(path).odd == ()


def test_a_malformed_table_is_an_error() -> None:
    with pytest.raises(DataError, match="row 2, column AMT"):
        check_table(study().assign(AMT=0))
