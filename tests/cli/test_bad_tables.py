"""Tables that cannot be fitted: exit status 2, one message with row, column and remedy, no traceback.

Every bad table has a near neighbour that differs in the fault alone and must be accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from cli.nothing import save_nothing

import nlmegen.results
from nlmegen.cli import main

TABLE = """\
ID,TIME,AMT,DV,EVID,MDV,CMT,WT
1,0,320,.,1,1,1,79.6
1,0.5,.,3.1,0,0,2,79.6
1,2,.,7.9,0,0,2,79.6
1,12,.,4.2,0,0,2,79.6
2,0,320,.,1,1,1,72.4
2,0.5,.,4.4,0,0,2,72.4
2,2,.,8.1,0,0,2,72.4
2,12,.,3.6,0,0,2,72.4
"""

Edit = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """A fault and its neighbour, each as an edit of TABLE.

    Attributes:
        name: Of the test.
        bad: The text to replace, and the fault.
        good: The same for the near neighbour.
        where: How the message starts: the row (line of the file) and column to blame.
        words: What it must say.
    """

    name: str
    bad: Edit
    good: Edit
    where: str
    words: tuple[str, ...]


OBSERVED = "1,2,.,7.9,0,0,2,79.6"  # line 4
DOSE = "2,0,320,.,1,1,1,72.4"  # line 6

CASES = (
    Case("no DV", ("DV", "CONC"), ("DV", "dv"), "", ("dv",)),
    Case("text in DV", ("7.9", "7.9mg"), ("7.9", "7.90"), "row 4, column DV: ", ("7.9mg",)),
    Case("times not in order", ("1,12,", "1,1,"), ("1,12,", "1,2,"), "row 5, column TIME: ", ("sort",)),
    Case("no time", (OBSERVED, "1,.,.,7.9,0,0,2,79.6"), (OBSERVED, OBSERVED), "row 4, column TIME: ", ()),
    Case(
        "negative amount", (DOSE, DOSE.replace("320", "-320")), (DOSE, DOSE), "row 6, column AMT: ", ("-320",)
    ),
    Case(
        "dose without amount",
        (DOSE, DOSE.replace("320", ".")),
        (DOSE, DOSE),
        "row 6, column AMT: ",
        ("EVID=2",),
    ),
    Case(
        "unknown EVID",
        (DOSE, DOSE.replace(",1,1,1,", ",5,1,1,")),
        (DOSE, DOSE),
        "row 6, column EVID: ",
        ("5",),
    ),
    Case(
        "a header twice",
        ("CMT", "TIME"),
        ("CMT", "CMT_"),
        "row 1",
        ("TIME",),
    ),
    Case(
        "too few fields",
        (OBSERVED, "1,2,.,7.9"),
        (OBSERVED, OBSERVED),
        "row 4: ",
        ("expected 8 fields", "got 4"),
    ),
    Case("decimal commas", (TABLE, TABLE.replace(",", ";")), ("ID,", "ID ,"), "row 1: ", ("semicolons",)),
    Case("no header", (TABLE.splitlines()[0] + "\n", ""), ("ID", "id"), "row 1", ("header",)),
    Case("no records", (TABLE[TABLE.index("\n") :], "\n"), ("\n1,0,", "\n\n1,0,"), "row 1: ", ("records",)),
    Case("an empty file", (TABLE, ""), (TABLE, TABLE + "\n"), "", ("empty",)),
    Case("one enormous line", ("7.9", "7" * 200_000), ("7.9", "7.9" + "0" * 90), "row 4: ", ("characters",)),
    Case(
        "a compartment that the model has not",
        (DOSE, DOSE.replace(",1,72.4", ",7,72.4")),
        (DOSE, DOSE.replace(",1,72.4", ",2,72.4")),
        "",
        ("7", "depot", "central"),
    ),
    Case("a covariate that the model needs", ("WT", "WEIGHT"), ("WT", "Wt"), "", ("wt", "weight")),
    Case(
        "a gap in a covariate",
        (OBSERVED, "1,2,.,7.9,0,0,2,."),
        (OBSERVED, OBSERVED),
        "row 4, column WT: ",
        (),
    ),
    Case(
        "records of an id apart",
        (TABLE, TABLE + "1,24,.,1.5,0,0,2,79.6\n"),
        (TABLE, TABLE + "3,24,.,1.5,0,0,2,79.6\n"),
        "row 10, column ID: ",
        ("sort",),
    ),
    Case(
        "steady state of an observation",
        ("CMT", "SS"),
        (
            TABLE,
            TABLE.replace("CMT", "SS")
            .replace(",1,79.6", ",0,79.6")
            .replace(",1,72.4", ",0,72.4")
            .replace(",2,7", ",0,7"),
        ),
        "row 3, column SS: ",
        ("no dose",),
    ),
    Case(
        "below a limit that is not known",
        (OBSERVED, OBSERVED.replace("7.9", "BLQ")),
        (OBSERVED, OBSERVED),
        "row 4, column DV: ",
        ("LLOQ",),
    ),
    Case(
        "a clock that goes back",
        ("1,12,", "1,1:30,"),
        ("1,12,", "1,14:30,"),
        "row 5, column TIME: ",
        ("DATE",),
    ),
    Case(
        "an infusion on a record that is no dose",
        (TABLE, TABLE.replace("CMT", "RATE").replace(",1,79.6", ",0,79.6").replace(",1,72.4", ",0,72.4")),
        (
            TABLE,
            TABLE.replace("CMT", "RATE")
            .replace(",1,79.6", ",40,79.6")
            .replace(",1,72.4", ",40,72.4")
            .replace(",0,0,2,7", ",0,0,0,7"),
        ),
        "row 3, column RATE: ",
        ("no dose",),
    ),
    Case(
        "an endpoint that the model has not",
        (TABLE, TABLE.replace("MDV", "DVID").replace("1,2,.,7.9,0,0", "1,2,.,7.9,0,3")),
        (TABLE, TABLE.replace("MDV", "DVID").replace(",0,0,2,", ",0,1,2,")),
        "",
        ("DVID",),
    ),
    Case(
        "nothing observed",
        (TABLE, TABLE.replace(",0,0,2,", ",0,1,2,")),
        (TABLE, TABLE.replace("1,2,.,7.9,0,0", "1,2,.,7.9,0,1")),
        "",
        ("no observation",),
    ),
)


def edited(edit: Edit) -> str:
    assert edit[0] in TABLE
    return TABLE.replace(edit[0], edit[1], 1)


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page that uses weight. Fits write nothing here: what they write has its own tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nlmegen.results, "save_fit", save_nothing)
    assert main(["new", "drug"]) == 0
    page = tmp_path / "drug.py"
    page.write_text(page.read_text().replace("exp(eta.v)", "(cov.wt / 70) * exp(eta.v)"))
    return page


def run(page: Path) -> int:
    return main(["fit", str(page), "table.csv", "--method", "focei", "--evaluate"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_table_is_refused_with_its_place_and_remedy(
    case: Case, fit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("table.csv").write_text(edited(case.bad))
    capsys.readouterr()
    assert run(fit) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert message.count("nlmegen: ") == 1
    assert f"nlmegen: {case.where}" in message
    for words in case.words:
        assert words in message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_near_neighbour_is_accepted(case: Case, fit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = edited(case.good)
    assert text != edited(case.bad)
    Path("table.csv").write_text(text)
    status = run(fit)
    assert status == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (TABLE.encode("utf-16"), "UTF-16"),
        (TABLE.replace("WT", "GRÖSSE").encode("latin-1"), "save the file as UTF-8"),
        (b"PK\x03\x04\x00\x00" + TABLE.encode(), "binary"),
    ],
)
def test_a_wrong_encoding_is_named(
    content: bytes, words: str, fit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("table.csv").write_bytes(content)
    assert run(fit) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("tabel.csv", "did you mean table.csv?"),
        ("theophyline", "Did you mean 'theophylline'?"),
        ("./", "folder"),
    ],
)
def test_data_that_are_not_there(
    data: str, words: str, fit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("table.csv").write_text(TABLE)
    assert main(["fit", str(fit), data]) == 2
    assert words in capsys.readouterr().err
