"""`nlmegen compare` with a run of NONMEM: page and data from a folder, or named."""

from __future__ import annotations

from pathlib import Path

import pytest
from exchange.nonmem_files import write_pheno

import nlmegen as nl
from nlmegen.cli import main
from nlmegen.results import save


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a fit, `ours`, and a run, pheno.ext."""
    place = tmp_path_factory.mktemp("compare")
    fit = nl.fit(nl.load_model("phenobarbital"), nl.load_data("phenobarbital"), nl.FOCEI())
    with pytest.MonkeyPatch.context() as patch:  # without figures and report, which take seconds
        for part in ("predictions", "figures", "report"):
            patch.setattr(save._Derived, part, lambda self: None)
        nl.save_fit(fit, place / "ours")
    write_pheno(place)
    return place


def test_page_and_data_come_from_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    assert main(("compare", "ours", "pheno.ext")) == 0
    out = capsys.readouterr().out
    table = out.split("\n\n")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines()}
    assert rows["pheno.ext"][1:6] == ["nonmem", "phenobarbital", "6", "586.27606", "focei"]
    assert float(rows["pheno.ext"][6]) == pytest.approx(float(rows["ours"][6]), abs=2e-3)
    assert main(("compare", "pheno.ext", "ours", "--arbiter", "own", "--map", "THETA1=tvcl")) == 0
    assert "own objective (focei)" in capsys.readouterr().out


def test_a_run_alone_needs_its_page(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    write_pheno(place, phi=False).rename(place / "again.ext")
    write_pheno(place)
    assert main(("compare", "pheno.ext", "again.ext")) == 2
    assert "needs --model and --data" in capsys.readouterr().err
    words = ("compare", "pheno.ext", "again.ext", "--model", "phenobarbital", "--data", "phenobarbital")
    assert main(words) == 0
    assert capsys.readouterr().out.count("nonmem") >= 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("ours", "other", "--model", "phenobarbital"), "--model is for a run of NONMEM"),
        (("ours", "pheno.ext", "--map", "THETA1"), "expected THETA1=NAME"),
        (("ours", "pheno.ext", "--map", "THETA1=none"), "2 THETA to match by order"),
        (("ours", "nowhere.ext"), "nowhere.ext cannot be read"),
        (("ours", "pheno.ext", "--data", "theophylline"), "59 subjects and the data 12"),
        (("pheno.ext",), "two folders of fits or more"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...],
    says: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    assert main(("compare", *words)) == 2
    assert says in capsys.readouterr().err
