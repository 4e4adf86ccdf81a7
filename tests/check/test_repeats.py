"""check_table: doses given twice, values heaped at a limit, blank texts, grades; each with a silent neighbour."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from check.test_table import repeated, study

from nlmegen.check.table.report import check_table


def doses(*records: dict[str, float]) -> tuple[str, ...]:
    """What is odd about doses in a table of samples at 1, 20, 100 h and these dose records (ID 1, from line 2 on)."""
    rows = [dict(TIME=t, DV=5.0 * np.exp(-0.02 * t), EVID=0) for t in (1.0, 20.0, 100.0)]
    given = [dict(TIME=0.0, EVID=1, AMT=100.0) | record for record in records]
    table = pd.DataFrame([*given, *rows]).sort_values("TIME", kind="stable").assign(ID=1).fillna(
        dict(AMT=0, RATE=0, ADDL=0, II=0, CMT=1, SS=0)
    )  # fmt: skip
    return tuple(line for line in check_table(table).odd if "both are given" in line)


PENDING = dict(ADDL=3, II=12.0, RATE=0.0, CMT=1, SS=0)


@pytest.mark.parametrize(
    ("spoil", "neighbour"),
    [
        (dict(), dict(AMT=50.0)),
        (dict(), dict(TIME=0.5)),
        (dict(), dict(CMT=2)),
        (dict(), dict(RATE=10.0)),
        (dict(), dict(EVID=4)),
    ],
)
def test_a_dose_that_is_there_twice(spoil: dict[str, float], neighbour: dict[str, float]) -> None:
    first = dict(CMT=1, RATE=0.0)
    (line,) = doses(first, first | spoil)
    assert "the same dose at the same time" in line
    assert "1 record (line 3)" in line
    assert "write one record with the sum" in line
    assert doses(first, first | neighbour) == ()


def test_a_dose_at_the_time_of_an_additional_one() -> None:
    (line,) = doses(PENDING, dict(TIME=36.0))
    assert "a dose in 1 record (line 5) at the time of an additional dose (ADDL)" in line
    assert "that of line 2" in line
    assert "make ADDL smaller" in line
    for neighbour in (dict(TIME=48.0), dict(TIME=30.0), dict(TIME=36.0, CMT=2), dict(TIME=36.0, EVID=4)):
        assert doses(PENDING, neighbour) == ()
    assert doses(PENDING, dict(TIME=36.0, SS=1, II=12.0)) == ()  # cancels what is pending


def heaped(table: pd.DataFrame, share: float, limit: float) -> pd.DataFrame:
    rows = table.index[table.EVID == 0]
    low = rows[np.argsort(table.loc[rows, "DV"].to_numpy())[: int(share * len(rows))]]
    table.loc[low, "DV"] = limit
    return table


def test_values_heaped_at_the_smallest() -> None:
    says = "its smallest value, in 7 records"
    lines = check_table(heaped(study(), 0.15, 0.9)).odd
    assert any(says in line and "CENS=1" in line for line in lines), lines
    few = check_table(heaped(study(), 0.09, 0.9)).odd
    assert not any("smallest value" in line for line in few)
    table = heaped(study(), 0.15, 0.9)
    for other in (table.assign(CENS=(table.DV == 0.9).astype(int)), table.assign(LLOQ=0.9)):
        assert not any("smallest value" in line for line in check_table(other).odd)
    rounded = study().assign(DV=study().DV.round(0) + 0.5)
    assert not any("smallest value" in line for line in check_table(rounded).odd)


def test_a_text_with_blank_cells() -> None:
    table = study().assign(SEX=np.where(study().ID > 4, "f", "m"))
    assert check_table(table).odd == ()
    blank = table.assign(SEX=table.SEX.where(table.index != 9, ""))
    (line,) = check_table(blank).odd
    assert line.startswith("SEX is no covariate: 1 of 56 records have none (line 11)")
    note = table.assign(NOTE=np.where(table.index == 9, "spilt", ""))
    assert check_table(note).odd == ()


def test_spelling_is_said_by_check() -> None:
    table = study().assign(SEX=np.where(study().ID > 4, "male", "Male"))
    assert any("differ only in case or blanks" in line for line in check_table(table).odd)


def test_grades_need_not_rise_with_a_dose() -> None:
    table = repeated()
    late = (table.ID == 2) & (table.TIME > 23) & (table.TIME < 47.9) & (table.EVID == 0)
    table.loc[late, "DV"] = 10 * np.exp(-0.15 * table.loc[late, "TIME"])
    assert any("no rise after the dose" in line for line in check_table(table).odd)
    grades = table.assign(DV=np.ceil(table.DV).clip(upper=9))
    assert not any("no rise" in line for line in check_table(grades).odd)


def test_one_unit_does_not_fit_several_endpoints() -> None:
    assert "dv 0.6" in str(check_table(study(), dv_unit="mg/L"))
    two = check_table(study().assign(DVID=np.where(study().TIME > 4, 2, 1)), dv_unit="mg/L")
    assert "mg/L" not in str(two)
    assert "mg/L" not in repr(two.population)
    assert not any("mg/L" in panel.get_ylabel() for panel in two.plot().axes)
