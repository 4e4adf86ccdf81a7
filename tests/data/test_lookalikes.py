"""Columns that may mean more than how they are read: said where they are there, silent where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from data.tables import frame

from nlmegen.data.columns import remedy
from nlmegen.data.nonmem import read_nonmem
from nlmegen.data.population import Population
from nlmegen.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")
PLAIN = frame([
    dict(id=k, time=float(t), evid=int(t == 0), amt=9.0 * (t == 0), dv=np.nan if t == 0 else 3.0 + t)
    for k in range(1, 5) for t in range(3)
])  # fmt: skip
FLAG = [0, 0, 1] * 4
INFUSED = PLAIN.assign(RATE=3.0 * PLAIN.evid).drop(columns="rate")


def test_nothing_is_said_of_a_plain_table() -> None:
    assert read_nonmem(PLAIN).warnings == ()


@pytest.mark.parametrize("name", ["DUR", "Duration", "D1", "TINF"])
def test_durations_name_the_rate_to_write(name: str) -> None:
    (text,) = read_nonmem(PLAIN.assign(**{name: 2.0})).warnings
    assert f"{name} is read as a covariate only" in text
    assert f"for infusions write RATE = AMT/{name}; rename={{'{name}': 'drop'}} leaves it out" in text
    assert read_nonmem(PLAIN.assign(**{name: 2.0}), rename={name: "drop"}).warnings == ()


def test_a_duration_beside_a_rate_may_be_that_of_an_illness() -> None:
    assert read_nonmem(INFUSED.assign(DURATION=2.0)).warnings == ()
    assert "RATE" not in read_nonmem(PLAIN.assign(F1=2.0)).warnings[0]


@pytest.mark.parametrize("name", ["EXCL", "exclude", "IGNORE"])
def test_records_to_leave_out(name: str) -> None:
    table = PLAIN.assign(**{name: FLAG})
    (text,) = read_nonmem(table).warnings
    condition = f"{name.lower()} != 0"
    assert f"column {name} is not 0 on 4 of 12 records, the first on line 4" in text
    assert f"ignore=['{condition}']" in text
    left = read_nonmem(table, ignore=[condition])
    assert (left.warnings, left.n_observations) == ((), 4)
    assert read_nonmem(PLAIN.assign(**{name: 0})).warnings == ()


def test_a_column_of_comments() -> None:
    table = PLAIN.assign(C=["", ".", "C"] * 4)
    (text,) = read_nonmem(table).warnings
    assert "column C holds the letter C on 4 of 12 records, the first on line 4" in text
    assert "ignore=['c == C']" in text
    assert read_nonmem(table, ignore=["c == C"]).warnings == ()
    assert read_nonmem(PLAIN.assign(C=["A", "B", "C"] * 4)).warnings == ()
    assert read_nonmem(PLAIN.assign(C=[1.0, 2.0, 3.0] * 4)).warnings == ()


@pytest.mark.parametrize("name", ["BLOQ", "BLQFN", "LOQFL"])
def test_flags_of_values_below_quantification(name: str) -> None:
    table = PLAIN.assign(**{name: FLAG})
    (text,) = read_nonmem(table).warnings
    assert f"column {name} is read as a covariate only" in text
    assert f"rename={{'{name}': 'cens'}}" in text
    renamed = read_nonmem(table, rename={name: "cens"})
    assert (renamed.warnings, int((renamed.cens == 1).sum())) == ((), 4)
    assert read_nonmem(table.assign(CENS=FLAG)).warnings == ()
    assert read_nonmem(PLAIN.assign(**{name: 0})).warnings == ()


def test_levels_that_differ_in_case_or_blanks() -> None:
    sex = np.repeat(["male", "Male ", "female", "ma le"], 3)
    (text,) = read_nonmem(PLAIN.assign(SEX=sex, SITE=["a", "b"] * 6)).warnings
    for words in ("'male' (3 records, the first on line 2)", "'Male' (3 records, the first on line 5)"):
        assert words in text
    assert "count as 3 levels" in text
    assert read_nonmem(PLAIN.assign(SEX=np.repeat(["male", "male ", "female", "male"], 3))).warnings == ()


def test_a_text_with_blank_cells_says_which_are_empty() -> None:
    sex = ["m"] * 4 + [""] + ["f"] * 6 + ["."]
    population = read_nonmem(PLAIN.assign(SEX=sex))
    assert "2 of 12 records have none (lines 6, 13)" in population.no_covariates["sex"]
    assert population.select([0]).no_covariates == population.no_covariates
    assert read_nonmem(PLAIN.assign(SEX=["m"] * 6 + ["f"] * 6)).no_covariates == {}
    filled = read_nonmem(PLAIN.assign(SEX=sex), missing={"sex": "carry"})
    assert filled.covariates["sex"].levels == ("f", "m")


def test_the_range_of_a_covariate_counts_dose_records() -> None:
    table = PLAIN.assign(given=5.0 * PLAIN.evid)
    assert "given 0 to 5, varies in time" in repr(Population.from_table(table))


@pytest.mark.parametrize(
    ("column", "text", "says"),
    [
        ("dv", "1,000", "write 1000, without a separator of thousands"),
        ("dv", "-12,345.6", "write -12345.6,"),
        ("dv", "1,5", "decimal point, not a decimal comma"),
        ("dv", "0,500", "decimal point, not a decimal comma"),
        ("dv", "moderate", "coded 0, 1, 2, ..."),
        ("time", "2024-02-27T08:30", "DAT2 (2024-02-27) and the clock time into TIME (08:30)"),
        ("time", "8:3x", "a clock time is"),
    ],
)
def test_remedies(column: str, text: str, says: str) -> None:
    assert says in remedy(column, text)


def test_remedies_in_a_table() -> None:
    with pytest.raises(DataError, match=r"row 3, column time: .*DAT2 \(2024-02-27\)"):
        read_nonmem(PLAIN.assign(time=["8:30", "2024-02-27 09:30:00Z", "10:30"] * 4))
    blank = PLAIN.assign(dv=[None, None, 5.0] * 4)
    with pytest.raises(DataError, match="row 3, column dv: .*set MDV=1 .*or CENS=1 with DV=LLOQ"):
        read_nonmem(blank.assign(lloq=0.5))
    with pytest.raises(DataError, match="nothing was measured$"):
        read_nonmem(blank)
