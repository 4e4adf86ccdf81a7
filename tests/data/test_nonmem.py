"""Reading and writing: ids, comments, selection, renaming, and the round trip through a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from nlmegen.data.nonmem import read_nonmem, write_nonmem
from nlmegen.data.population import Population
from nlmegen.errors import DataError

LINES = [
    "ID,TIME,AMT,DV,EVID,WT,SITE",
    "1,0,100,.,1,70,north",
    "1,1.5,.,0.1,0,70,",
    "1,3,,12,0,70,north",
    "2,0,50,.,1,61.5,south",
    "2,2,.,0,0,61.5,south",
]


def write(folder: Path, *lines: str, end: str = "\n") -> Path:
    path = folder / "table.csv"
    path.write_bytes((end.join(lines) + end).encode())
    return path


def test_reads_a_table(tmp_path: Path) -> None:
    population = read_nonmem(write(tmp_path, *LINES), time_unit="h", amount_unit="mg", dv_unit="mg/L")
    assert population.ids == ("1", "2")
    assert population.dv.tolist() == [[0.1, 12.0], [0.0, 0.0]]
    assert population.mask.tolist() == [[True, True], [True, False]]
    assert population.covariates["wt"].observation.tolist() == [[70.0], [61.5]]
    assert population.table.columns.tolist() == ["id", "time", "amt", "dv", "evid", "wt", "site"]
    assert population.table["site"].isna().tolist() == [False, True, False, False, False]
    assert (population.time_unit, population.amount_unit, population.dv_unit) == ("h", "mg", "mg/L")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_blank_lines_and_blanks_in_cells(tmp_path: Path, end: str) -> None:
    plain = read_nonmem(write(tmp_path, *LINES))
    spaced = [LINES[0], "", *(line.replace(",", " , ") for line in LINES[1:]), "   "]
    assert read_nonmem(write(tmp_path, *spaced, end=end)).sha256 == plain.sha256


def test_quoted_cells(tmp_path: Path) -> None:
    quoted = ['"ID","TIME","AMT","DV","EVID","SITE"', '"1",0,100,.,1,"north, ""upper"""', '"1",1,.,5,0,"x"']
    population = read_nonmem(write(tmp_path, *quoted))
    assert population.table["site"].tolist() == ['north, "upper"', "x"]
    assert population.ids == ("1",)


def test_line_numbers_count_comments_and_blank_lines(tmp_path: Path) -> None:
    lines = ["# made by hand", LINES[0], "", "# a remark", LINES[1], "1,2,.,bad,0,70,north"]
    with pytest.raises(DataError) as caught:
        read_nonmem(write(tmp_path, *lines))
    assert (caught.value.row, caught.value.column) == (6, "DV")


@pytest.mark.parametrize("ignore", ["#", None, ["#"]])
def test_number_sign_is_the_comment_character(tmp_path: Path, ignore: str | list[str] | None) -> None:
    commented = ["#" + LINES[0], *LINES[1:], "#3,0,1,.,1,50,"]
    assert read_nonmem(write(tmp_path, *commented), ignore=ignore).ids == ("1", "2")


def test_comment_column_as_in_nonmem(tmp_path: Path) -> None:
    lines = ["C," + LINES[0], *("C," + line if k == 2 else ".," + line for k, line in enumerate(LINES[1:]))]
    population = read_nonmem(write(tmp_path, *lines), ignore="C")
    assert population.n_observations == 2
    assert "c" in population.table.columns


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (dict(ignore="dv == 0"), [0.1, 12.0]),
        (dict(ignore=["DV.EQ.0", "dv > 10"]), [0.1]),
        (dict(ignore=["#", "ID = 2"]), [0.1, 12.0]),
        (dict(accept=["evid == 1", "dv >= 12"]), [12.0]),
        (dict(accept="site != 'south'", ignore="#"), [12.0]),
        (dict(ignore=["site == south", "time < 2"], rename={"TIME": "time"}), [12.0]),
    ],
)
@pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")
def test_ignore_and_accept(tmp_path: Path, options: dict[str, object], kept: list[float]) -> None:
    path = write(tmp_path, *LINES)
    for source in (path, pd.read_csv(path, na_values=".")):
        population = read_nonmem(source, **options)  # type: ignore[arg-type]
        assert population.dv[population.mask].tolist() == kept


def test_ignored_records_may_hold_anything(tmp_path: Path) -> None:
    population = read_nonmem(write(tmp_path, *LINES, "2,3,.,BLQ,0,61.5,south"), ignore="dv == BLQ")
    assert population.n_observations == 3


@pytest.mark.parametrize(
    "rows",
    [
        ["1,0, .,100", "1,2,5,."],  # a single cell with a blank
        [" A,0,.,100", "A,2,5,."],
        ["1,0,.,100", "1,2,5, ."],
    ],
)
def test_blanks_in_a_single_cell(tmp_path: Path, rows: list[str]) -> None:
    spaced = read_nonmem(write(tmp_path, "ID,TIME,DV,AMT", *rows))
    clean = read_nonmem(write(tmp_path, "ID,TIME,DV,AMT", *(row.replace(" ", "") for row in rows)))
    assert (spaced.ids, spaced.sha256) == (clean.ids, clean.sha256)
    table = pd.DataFrame([row.split(",") for row in rows], columns=["ID", "TIME", "DV", "AMT"])
    assert read_nonmem(table).sha256 == clean.sha256


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", ".GT."])
def test_order_is_asked_of_numbers_only(tmp_path: Path, sign: str) -> None:
    path = write(tmp_path, *LINES)
    for source in (path, pd.read_csv(path, na_values=".")):
        for option in ("ignore", "accept"):
            with pytest.raises(DataError, match="compare numbers"):
                read_nonmem(source, **{option: f"dv {sign} LOQ"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(ignore=5), "ignore='dv == 0'"),
        (dict(ignore=[5]), "ignore='dv == 0'"),
        (dict(accept=5), "accept='dv == 0'"),
        (dict(accept=[None]), "accept='dv == 0'"),
        (dict(rename="wt"), "rename="),
        (dict(rename={"wt": 5}), "rename="),
        (dict(rename={5: "wt"}), "rename="),
    ],
)
def test_arguments_of_a_wrong_type(tmp_path: Path, options: dict[str, object], says: str) -> None:
    path = write(tmp_path, *LINES)
    for source in (path, pd.read_csv(path, na_values=".")):
        with pytest.raises(DataError, match=says):
            read_nonmem(source, **options)  # type: ignore[arg-type]


def test_rename_and_drop(tmp_path: Path) -> None:
    lines = ["PATIENT,HOURS,AMT,CONC,EVID,WT,JUNK", "1,0,100,.,1,70,.", "1,1,.,5,0,70,9"]
    rename = {"patient": "ID", "HOURS": "time", "CONC": "dv", "JUNK": "drop"}
    population = read_nonmem(write(tmp_path, *lines), rename=rename)
    assert population.table.columns.tolist() == ["id", "time", "amt", "dv", "evid", "wt"]
    with pytest.raises(DataError) as caught:
        read_nonmem(write(tmp_path, *lines, "1,2,.,x,0,70,9"), rename=rename)
    assert caught.value.column == "CONC", "messages speak of the file's own names"


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        (["7", "7", "12"], ("7", "12")),
        (["7.0", "7", "12"], ("7", "12")),
        (["007", "007", "7"], ("007", "7")),
        (["A-1", "A-1", "2"], ("A-1", "2")),
        (["1.5", "1.5", "2"], ("1.5", "2")),
        (["-1", "-1", "0"], ("-1", "0")),
        (["9007199254740993", "9007199254740993", "1"], ("9007199254740993", "1")),
    ],
)
def test_ids(tmp_path: Path, written: list[str], ids: tuple[str, ...]) -> None:
    lines = [f"{name},{k},{10 if k != 1 else 0},{3 if k == 1 else '.'}" for k, name in enumerate(written)]
    with pytest.warns(UserWarning, match="without observations"):
        population = read_nonmem(write(tmp_path, "ID,TIME,AMT,DV", *lines))
    assert population.ids == ids


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    population = read_nonmem(write(tmp_path, *LINES))
    path = write_nonmem(population, tmp_path / "again.csv")
    again = read_nonmem(path)
    pd.testing.assert_frame_equal(again.table, population.table)
    assert again.sha256 == population.sha256
    assert path.read_text().splitlines()[0] == LINES[0]
    assert write_nonmem(again.table, tmp_path / "third.csv").read_bytes() == path.read_bytes()


def test_numbers_survive_exactly(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    values = np.exp(generator.uniform(-300, 300, 500)) * generator.choice([-1.0, 1.0], 500)
    table = pd.DataFrame({"id": 1, "time": np.arange(500.0), "amt": [1.0] + [0.0] * 499, "dv": values})
    again = read_nonmem(write_nonmem(table, tmp_path / "exact.csv"))
    assert torch.equal(again.dv[0], torch.from_numpy(values[1:]))


def test_write_refuses_what_would_not_read_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["#1", "#1"], "time": [0, 1], "amt": [1, 0], "dv": [0.0, 1.0]})
    with pytest.raises(DataError, match="starts a comment"):
        write_nonmem(Population.from_table(table), tmp_path / "x.csv")
    with pytest.raises(DataError, match="no.*folder|found none"):
        write_nonmem(table, tmp_path / "none" / "x.csv")
    moved = table[["time", "id", "amt", "dv"]]
    assert read_nonmem(write_nonmem(moved, tmp_path / "x.csv")).ids == ("#1",)


def test_ten_thousand_subjects_read_as_they_are(tmp_path: Path) -> None:
    count, each = 10_000, 20
    generator = np.random.default_rng(0)
    evid = np.tile([1] + [0] * (each - 1), count)
    table = pd.DataFrame({
        "id": np.repeat(np.arange(count), each), "time": np.tile(np.arange(float(each)), count), "evid": evid,
        "amt": 100.0 * evid, "dv": generator.normal(size=count * each),
        "wt": np.repeat(generator.normal(70, 10, count), each),
    })  # fmt: skip
    population = read_nonmem(write_nonmem(table, tmp_path / "big.csv"))
    assert population.mask.shape == (count, each - 1)
    assert population.mask.all()
    expected = torch.from_numpy(table["dv"].to_numpy().reshape(count, each)[:, 1:].copy())
    assert torch.equal(population.dv, expected)
    assert population.events.time.shape == (count, 1)
    assert torch.equal(population.select([4321]).dv, expected[4321:4322])
