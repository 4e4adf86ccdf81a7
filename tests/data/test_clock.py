"""Dates and clock times: NM-TRAN's hours since the first record of each subject."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlmegen.data.nonmem import read_nonmem, write_nonmem
from nlmegen.data.population import Population

pytestmark = pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")
HEAD = "ID,{},TIME,AMT,DV"


def read(folder: Path, column: str, *lines: str) -> Population:
    path = folder / "table.csv"
    path.write_text("\n".join((HEAD.format(column), *lines)) + "\n")
    return read_nonmem(path)


def test_the_example_of_the_manual(tmp_path: Path) -> None:
    """NONMEM help, DATE DATA ITEM: 0, 5.42, 23.25 h and 0, 50 h (two decimals there)."""
    found = read(
        tmp_path, "DATE", "1,10-1-86,9:15,5,.", "1,10-1-86,14:40,.,1", "1,10-2-86,8:30,.,2", "2,10-12-86,8,5,.",
        "2,10-14-86,10,.,3",
    )  # fmt: skip
    assert found.table["time"].tolist() == pytest.approx([0, 5 + 25 / 60, 23.25, 0, 50], rel=1e-15)
    assert found.table["clock"].tolist()[:2] == ["10-1-86 9:15", "10-1-86 14:40"]
    assert "TIME was made from DATE and clock times" in found.warnings[0]
    again = read_nonmem(write_nonmem(found, tmp_path / "again.csv"))
    assert again.sha256 == found.sha256
    assert not any("TIME was made" in text for text in again.warnings)


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        ("DATE", "12/31/1999", "1/1/2000"), ("DAT1", "31/12/1999", "1/1/2000"), ("DAT2", "1999/12/31", "2000/1/1"),
        ("DAT3", "1999/31/12", "2000/1/1"), ("DATE", "12-31-99", "01-01-00"), ("DATE", "1999-12-31", "2000-01-01"),
        ("DAT1", "31.12.1999", "1.1.2000"), ("DAT1", "30/4", "1/5"), ("DATE", "4/30", "5/1"), ("DATE", "-1", "0"),
        ("DATE", "7", "8"),
    ],
)  # fmt: skip
def test_the_order_of_month_day_and_year(column: str, first: str, second: str, tmp_path: Path) -> None:
    found = read(tmp_path, column, f"1,{first},23:30,5,.", f"1,{second},0:15:36,.,1")
    assert found.time.tolist() == [[0.76]]


def test_a_leap_year(tmp_path: Path) -> None:
    for year, hours in ((2024, 48.0), (2023, 24.0)):
        assert read(tmp_path, "DATE", f"1,2/28/{year},8,5,.", f"1,3/1/{year},8,.,1").time.tolist() == [
            [hours]
        ]


def test_a_clock_without_dates(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("ID,TIME,AMT,DV\n1,8:20,5,.\n1,8:30,.,1\n1,26:20,.,2\n2,9,5,.\n2,10:00,.,3\n")
    found = read_nonmem(path, time_unit="h")
    assert found.table["time"].tolist() == [0, 600 / 3600, 18, 0, 1]


def test_elapsed_times_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("ID,TIME,AMT,DV,DATE\n1,8.5,5,.,.\n1,9,.,1,.\n")
    found = read_nonmem(path)
    assert found.table["time"].tolist() == [8.5, 9]
    assert found.warnings == ()


def test_the_order_and_the_span_of_dates_are_said(tmp_path: Path) -> None:
    (text,) = read(tmp_path, "DATE", "1,3/4/2024,8:00,5,.", "1,4/4/2024,9:00,.,1").warnings
    assert text.endswith("; DATE read as month/day/year from 4 Mar 2024 to 4 Apr 2024")
    (text,) = read(tmp_path, "DAT1", "1,3/4,8:00,5,.", "1,4/4,9:00,.,1").warnings
    assert text.endswith("; DAT1 read as day/month/year from 3 Apr to 4 Apr")
    (text,) = read(tmp_path, "DATE", "1,2024-03-04,8:00,5,.", "1,2024-04-04,9:00,.,1").warnings
    assert "year/month/day from 4 Mar 2024 to 4 Apr 2024" in text
    (text,) = read(tmp_path, "DATE", "1,1,8:00,5,.", "1,3,9:00,.,1").warnings
    assert text.endswith("the number of a day from 1 to 3")


def test_times_without_a_colon_beside_a_date(tmp_path: Path) -> None:
    """Hours of the day go back where the day changes; elapsed times (0, 2, 24) do not."""
    elapsed = read(tmp_path, "DATE", "1,3/4/2024,0,5,.", "1,3/4/2024,2,.,1", "1,3/5/2024,24,.,1")
    assert "no colon: its numbers were read as hours of the day" in elapsed.warnings[0]
    assert "never goes back where the day changes (the first on line 4)" in elapsed.warnings[0]
    assert "rename={'DATE': 'drop'}" in elapsed.warnings[0]
    clock = read(tmp_path, "DATE", "1,3/4/2024,8,5,.", "1,3/4/2024,10,.,1", "1,3/5/2024,7.5,.,1")
    assert "no colon" in clock.warnings[0]
    assert "never goes back" not in clock.warnings[0]
