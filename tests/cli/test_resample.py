"""`bootstrap`, `sir` and `profile` on the folder of a fit: what they write, what they say, how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from nlmegen.cli import main
from nlmegen.cli.resample import names_in
from nlmegen.inference.foce import FOCEI
from nlmegen.results import save

FOLDER = "nlmegen-out/theophylline-focei"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which theophylline was fitted, without figures and report."""
    place = tmp_path_factory.mktemp("resampled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(save._Derived, "figures", lambda self: None)
        patch.setattr(save._Derived, "report", lambda self: None)
        assert main(["fit", "theophylline", "theophylline", "--method", "focei"]) == 0
    return place


@pytest.fixture
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That directory, in which we are."""
    monkeypatch.chdir(workplace)
    return workplace / FOLDER


def test_a_bootstrap_is_written_and_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", FOLDER, "--n", "2"]) == 0
    said = capsys.readouterr().out
    assert "bootstrap of theophylline by focei: case, 2 replicates, seed 0; 2 converged" in said
    assert f"written: {FOLDER}/bootstrap.csv (2 replicates), {FOLDER}/bootstrap-summary.csv" in said
    first = pd.read_csv(here / "bootstrap.csv")
    assert main(["bootstrap", FOLDER, "--n", "3", "--progress", "plain"]) == 0
    assert "bootstrap 3/3" in capsys.readouterr().err
    second = pd.read_csv(here / "bootstrap.csv")
    pd.testing.assert_frame_equal(second.iloc[:2], first)
    assert len(second) == 3
    summary = pd.read_csv(here / "bootstrap-summary.csv", index_col=["replicates", "name"])
    assert summary.loc[("converged", "tvcl"), "estimate"] == pytest.approx(2.786, abs=1e-3)
    assert json.loads((here / "bootstrap.json").read_text())["kind"] == "case"
    assert not list(here.glob(".part-*"))


def test_other_settings_are_refused_unless_forced(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bootstrap", FOLDER, "--n", "2", "--force"]) == 0
    before = (here / "bootstrap.csv").read_bytes()
    assert main(["bootstrap", FOLDER, "--n", "2", "--seed", "4"]) == 2
    assert "seed 0 there, 4 asked for" in capsys.readouterr().err
    assert (here / "bootstrap.csv").read_bytes() == before
    other = ["--kind", "parametric", "--method", "focei", "--set", "tolerance=1e-4", "--out", "other.csv"]
    assert main(["bootstrap", FOLDER, "--n", "2", *other]) == 0
    assert Path("other-summary.csv").exists()
    assert (here / "bootstrap.csv").read_bytes() == before


def test_an_interrupted_bootstrap_ends_with_3_and_is_finished(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest, calls = FOCEI.estimate, []

    def second_is_interrupted(self: FOCEI, problem: Any, progress: Any = None) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(self, problem, progress)

    with monkeypatch.context() as patch:
        patch.setattr(FOCEI, "estimate", second_is_interrupted)
        assert main(["bootstrap", FOLDER, "--n", "3", "--seed", "8", "--out", "cut.csv"]) == 3
    assert "interrupted by the user after 1 of 3" in capsys.readouterr().err
    assert len(pd.read_csv("cut.csv")) == 1
    assert main(["bootstrap", FOLDER, "--n", "3", "--seed", "8", "--out", "cut.csv"]) == 0
    assert len(pd.read_csv("cut.csv")) == 3


def test_a_bootstrap_of_which_little_converges_ends_with_3(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rough = ["--method", "focei", "--set", "max_iterations=0", "--out", "rough.csv"]
    assert main(["bootstrap", FOLDER, "--n", "2", *rough]) == 3
    captured = capsys.readouterr()
    assert "only 0 of 2 replicates converged" in captured.err
    assert "2 not converged: stopped at the limit of 0 iterations" in captured.out


def test_sir_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--samples", "300", "--resamples", "100", "--iterations", "2", "--seed", "2"]
    assert main(["sir", FOLDER, *options]) in (0, 3)
    assert f"written: {FOLDER}/sir.csv (100 resamples)" in capsys.readouterr().out
    assert len(pd.read_csv(here / "sir.csv")) == 100
    assert "tvcl" in pd.read_csv(here / "sir-summary.csv", index_col="name").index
    assert main(["sir", FOLDER, "--samples", "30", "--resamples", "99", "--cap", "1"]) == 2


def test_profiles_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", FOLDER, "--names", "tvcl", "--sides", "upper"]) == 0
    assert "95 % upper limits" in capsys.readouterr().out
    table = pd.read_csv(here / "profile.csv", index_col="name")
    assert table.loc["tvcl", "estimate"] == pytest.approx(2.786, abs=1e-3)
    path = pd.read_csv(here / "profile-path.csv")
    assert path["rise"].max() > 2.7
    assert {"name", "value", "rise", "omega.ka"} <= set(path)
    assert main(["profile", FOLDER, "--names", "cl"]) == 2
    assert "'cl' is no free parameter. Did you mean 'tvcl'?" in capsys.readouterr().err


def test_names_with_commas() -> None:
    known = ["a", "omega.v", "omega.v,cl", "b"]
    assert names_in("a,omega.v,cl,b", known) == ["a", "omega.v,cl", "b"]
    assert names_in("omega.v , b", known) == ["omega.v", "b"]
    assert names_in("zz", known) == ["zz"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bootstrap", "nowhere"], "nowhere is not the folder of a fit"),
        (["bootstrap", FOLDER, "--set", "covariance=R"], "name the method"),
        (["bootstrap", FOLDER, "--method", "focee"], "there is no method 'focee'"),
        (["bootstrap", FOLDER, "--stratify", "sex"], "no column 'sex'"),
        (["bootstrap", FOLDER, "--n", "0"], "expected a whole number of 1 or more"),
        (["bootstrap", FOLDER, "--kind", "bayes"], "invalid choice"),
        (["sir", FOLDER, "--inflation", "-1"], "inflation"),
        (["profile", FOLDER, "--level", "95"], "level: expected a fraction"),
    ],
)
def test_bad_input_ends_with_2(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err
