"""The command line as a user meets it: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import nlmegen as nl
import nlmegen.cli.estimate
import nlmegen.cli.progress
from nlmegen.cli import main
from nlmegen.errors import FitError
from nlmegen.inference.foce import FOCEI
from nlmegen.results import save

THEOPHYLLINE = ("fit", "theophylline", "theophylline", "--method", "focei")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which theophylline was fitted by FOCEI, as a user would."""
    place = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(THEOPHYLLINE) == 0
    return place


@pytest.fixture
def fitted(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of that fit, relative to the current directory."""
    monkeypatch.chdir(workplace)
    return "nlmegen-out/theophylline-focei"


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of fits without figures and report, which take seconds and have their own tests."""
    monkeypatch.setattr(save._Derived, "figures", lambda self: None)
    monkeypatch.setattr(save._Derived, "report", lambda self: None)


@pytest.fixture
def here(plain: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Interrupt:
    """Stands for the display of progress and sends Ctrl-C at a report."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, progress: object) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_fit_prints_the_estimates_and_says_what_is_where(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(THEOPHYLLINE) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "104.32" in captured.out
    for name in ("tvcl", "omega.ka", "cp.additive"):
        assert name in captured.out
    assert "written: nlmegen-out/theophylline-focei/" in captured.out
    assert json.loads((here / "nlmegen-out/theophylline-focei/fit.json").read_text())["schema"] == 1


def test_fit_names_only_what_it_wrote(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise FitError("no residuals")

    monkeypatch.setattr(save._Derived, "predictions", broken)
    assert main((*THEOPHYLLINE, "--evaluate", "--out", "out")) == 0
    captured = capsys.readouterr()
    assert "written: out/ (parameters.csv, individuals.csv, fit.json)\n" in captured.out
    assert captured.err == "note: predictions.csv could not be written: FitError: no residuals\n"


def test_an_existing_folder_is_refused_before_any_work(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*THEOPHYLLINE, "--evaluate", "--out", "out")
    assert main(command) == 0
    before = (here / "out/fit.json").read_bytes()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(FOCEI, "estimate", _must_not_run)
        assert main(command) == 2
    assert "out exists; choose another folder, or replace it with --force" in capsys.readouterr().err
    assert (here / "out/fit.json").read_bytes() == before
    assert main((*command, "--force")) == 0
    assert (here / "out/fit.json").read_bytes() != before  # `seconds` differs


def _must_not_run(*args: object) -> None:
    raise AssertionError("the estimation was started")


def test_evaluate_estimates_nothing(here: Path) -> None:
    assert main((*THEOPHYLLINE, "--evaluate", "--out", "out")) == 0
    content = json.loads((here / "out/fit.json").read_text())
    start = nl.load_model("theophylline")
    assert content["theta"]["tvcl"]["estimate"] == pytest.approx(float(start.theta.tvcl), rel=1e-12)


def test_set_reaches_the_method(here: Path) -> None:
    assert main((*THEOPHYLLINE, "--set", "covariance=R", "--out", "r")) == 0
    assert main((*THEOPHYLLINE, "--out", "sandwich")) == 0
    errors = [
        json.loads((here / name / "fit.json").read_text())["theta"]["tvka"]["se"]
        for name in ("r", "sandwich")
    ]
    assert errors[0] != pytest.approx(errors[1], rel=1e-3)


def test_set_help_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main((*THEOPHYLLINE, "--set", "help")) == 0
    assert "covariance = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "saem,imp"), "no method 'saem,imp'"),
        (("--method", "fo+fo"), "a chain takes each method once"),
        (("--method", "foci"), "Did you mean 'focei'?"),
        (("--compare", "laplas"), "Did you mean 'laplace'?"),
        (("--method", "focei", "--compare", "focei"), "that is the method already"),
        (
            ("--method", "focei", "--seed", "1"),
            "--seed means nothing to method focei; methods that take it: elbo",
        ),
        (
            ("--method", "elbo", "--evaluate"),
            "--evaluate means nothing to method elbo; methods that take it: focei",
        ),
        (("--method", "focei", "--compare", "elbo", "--evaluate"), "--evaluate means nothing to method elbo"),
        (("--device", "cuda"), "--device means nothing to method elbo"),
        (("--method", "focei", "--set", "covarianc=R"), "Did you mean 'covariance'?"),
        (("--seed", "one"), "argument --seed: expected a whole number of 0 or more, got 'one'"),
        (("--seed", "-1"), "argument --seed: expected a whole number of 0 or more, got '-1'"),
        (("--metod", "focei"), "unrecognized arguments: --metod focei"),
    ],
)
def test_words_that_cannot_be_followed(
    here: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("fit", "theophylline", "theophylline", *words)) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_fit_compares_two_methods(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("fit", "theophylline", "theophylline", "--compare", "focei", "--seed", "1", "--out", "out")
    short = ("--set", "steps=100", "--set", "most_draws=200")
    assert main((*command, *short, "--progress", "plain")) == 0
    captured = capsys.readouterr()
    assert "objective" in captured.err
    assert (here / "out/compare-focei/fit.json").exists()
    table = pd.read_csv(here / "out/comparison.csv", index_col=0)
    assert list(table.index) == ["elbo", "focei"]
    assert "report.html" in captured.out
    assert (here / "out/report.html").exists()


def test_an_interrupted_fit_keeps_the_best_so_far(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nlmegen.cli.progress.Reporter, "callback", Interrupt(at=3))
    assert main((*THEOPHYLLINE, "--out", "out", "--compare", "elbo")) == 3
    message = capsys.readouterr().err
    assert "interrupted by the user" in message
    assert "The partial result is kept in out" in message
    content = json.loads((here / "out/fit.json").read_text())
    assert content["converged"] is False
    assert content["ofv"] < 400
    assert not (here / "out/compare-elbo").exists(), "the user wanted to stop"


def test_a_failed_estimation_says_so_and_keeps_what_there_is(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate: Callable[..., Any] = FOCEI.estimate

    def unlucky(self: FOCEI, *args: Any) -> Any:
        return replace(estimate(self, *args), converged=False, reason="the limit of iterations was reached")

    monkeypatch.setattr(FOCEI, "estimate", unlucky)
    assert main((*THEOPHYLLINE, "--out", "out")) == 3
    message = capsys.readouterr().err
    assert "the estimation by focei failed: the limit of iterations was reached" in message
    assert "try other starts, another --method" in message
    assert json.loads((here / "out/fit.json").read_text())["converged"] is False


def test_an_estimation_without_any_result(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(*args: object) -> None:
        raise FitError("no subject has a finite likelihood; check the units")

    monkeypatch.setattr(FOCEI, "estimate", hopeless)
    assert main(THEOPHYLLINE) == 3
    message = capsys.readouterr().err
    assert message == "nlmegen: the estimation failed: no subject has a finite likelihood; check the units\n"
    assert list(here.iterdir()) == []


def test_a_fault_of_ours_is_called_one(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(FOCEI, "estimate", broken)
    assert main(THEOPHYLLINE) == 1
    message = capsys.readouterr().err
    assert "unexpected ZeroDivisionError: division by zero. This is a fault in nlmegen" in message
    assert "Traceback" not in message
    assert main((*THEOPHYLLINE, "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_new_page_can_be_fitted_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("new", "warfarin_oral")) == 0
    page = here / "warfarin_oral.py"
    assert "class WarfarinOral(nl.Model)" in page.read_text()
    assert "wrote warfarin_oral.py" in capsys.readouterr().out
    assert main(("fit", "warfarin_oral.py", "theophylline", "--method", "focei")) == 0
    assert "104.32" in capsys.readouterr().out  # the likelihood of the catalogue's page, from other starts


def test_new_overwrites_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "mine.py").write_text("# mine")
    assert main(("new", "mine")) == 2
    assert "mine.py exists and is left as it is" in capsys.readouterr().err
    assert (here / "mine.py").read_text() == "# mine"


@pytest.mark.parametrize("name", ["3compartments", "two words", "class", "half-life", "", "nowhere/page"])
def test_new_refuses_what_is_no_name(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("new", name)) == 2
    assert "nlmegen: " in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_compare_puts_fits_side_by_side(
    plain: None, fitted: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = workplace / "additive.py"
    text = nl.load_model("theophylline").source
    page.write_text(text.replace("nl.Combined(additive=0.5, proportional=0.15)", "nl.Additive(0.7)"))
    assert (
        main(("fit", "additive.py", "theophylline", "--method", "focei", "--out", "additive", "--force")) == 0
    )
    capsys.readouterr()
    assert main(("compare", fitted, "additive")) == 0
    out = capsys.readouterr().out
    assert f"\n{Path(fitted).name} " in out, "the last parts of the paths tell them apart"
    assert "\nadditive " in out
    assert main(("compare", fitted)) == 2
    assert "two folders" in capsys.readouterr().err
    assert main(("compare", fitted, "additive", fitted)) == 2
    assert "is named twice" in capsys.readouterr().err


def test_posterior_of_new_patients(fitted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("posterior", fitted, "theophylline")) == 0
    printed = capsys.readouterr().out
    assert main(("posterior", fitted, "theophylline", "--out", "posterior.csv")) == 0
    assert "12 patients" in capsys.readouterr().out
    assert Path("posterior.csv").read_text() == printed
    table = pd.read_csv("posterior.csv")
    etas = [f"eta_{name}_{part}" for name in ("ka", "cl", "v") for part in ("mean", "sd")]
    assert list(table.columns) == ["id", *etas, "ess", "khat", "verdict"]
    assert len(table) == 12


def test_a_simulated_cohort_can_be_fitted(
    plain: None, fitted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("simulate", fitted, "--n", "20", "--regimen", "320 every 24 x 2", "--times", "0:48:6")
    assert main((*command, "--seed", "7", "--out", "cohort.csv")) == 0
    assert "20 virtual patients" in capsys.readouterr().out
    table = pd.read_csv("cohort.csv", na_values=".")
    assert table["ID"].nunique() == 20
    assert {"TIME", "AMT", "DV", "EVID"} <= set(table.columns)
    assert main((*command, "--seed", "7", "--out", "again.csv")) == 0
    assert Path("again.csv").read_bytes() == Path("cohort.csv").read_bytes()
    assert main((*command, "--seed", "8", "--out", "again.csv")) == 2, "an existing file is not overwritten"
    assert Path("again.csv").read_bytes() == Path("cohort.csv").read_bytes()
    assert main((*command, "--seed", "8", "--out", "again.csv", "--force")) == 0
    assert not list(Path().glob(".part-*"))
    assert Path("again.csv").read_bytes() != Path("cohort.csv").read_bytes()
    fit = (
        "fit",
        "theophylline",
        "cohort.csv",
        "--method",
        "focei",
        "--evaluate",
        "--out",
        "refit",
        "--force",
    )
    assert main(fit) == 0


def test_simulate_from_a_page_with_covariates(here: Path) -> None:
    command = ("simulate", "phenobarbital", "--n", "5", "--regimen", "20/kg", "--times", "1, 24")
    assert main((*command, "--covariates", "phenobarbital", "--out", "babies.csv")) == 0
    assert "WT" in pd.read_csv("babies.csv").columns


LASTING = """
import nlmegen as nl
from torch import exp

class Lasting(nl.Model):
    tvcl = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    iov = nl.Omega(cl=0.1, level="occ")
    cp = nl.Proportional(0.1)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov, kappa):
        return dict(cl=theta.tvcl * exp(eta.cl + kappa.cl), v=10.0, d=2.0)

    def dosing(self, p):
        return dict(central=nl.Dose(duration=p.d))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
"""


def test_what_a_cohort_leaves_unused_of_a_page_is_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "page.py").write_text(LASTING)
    command = ("simulate", "page.py", "--n", "2", "--times", "1, 13", "--force", "--out", "x.csv")
    assert main((*command, "--regimen", "100 every 12 x 2")) == 0
    duration, occasions = capsys.readouterr().err.splitlines()
    assert duration.startswith("note: the page gives a duration for doses into central")
    assert 'write "100 over duration every 12 x 2"' in duration
    assert occasions.startswith("note: the page has random effects between occasions (cl)")
    assert "--occasions" in occasions
    assert main((*command, "--regimen", "100 over duration every 12 x 2", "--occasions", "dose")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--times", "0:24:1", "--out", "x.csv"), "simulate needs --regimen"),
        (("--regimen", "100", "--out", "x.csv"), "simulate needs --times"),
        (("--regimen", "100 evry 24 x 7", "--times", "1", "--out", "x.csv"), "Did you mean 'every'?"),
        (("--regimen", "100", "--times", "0:x:1", "--out", "x.csv"), "times"),
        (
            ("--regimen", "100", "--times", "1", "--out", "x.xls"),
            "expected a name that ends in .csv or .parquet",
        ),
        (
            ("--regimen", "100", "--times", "1", "--out", "no/x.csv"),
            "there is no directory no; make it first",
        ),
        (("--regimen", "100 into liver", "--times", "1", "--out", "x.csv"), "liver"),
        (
            ("--regimen", "100", "--times", "1", "--n", "0", "--out", "x.csv"),
            "whole number of 1 or more, got '0'",
        ),
        (
            ("--regimen", "100", "--times", "1", "--seed", "-1", "--out", "x.csv"),
            "whole number of 0 or more, got '-1'",
        ),
        (
            ("--regimen", "100", "--times", "0:1e12:1e-3", "--out", "x.csv"),
            "expected at most 1,000,000 times",
        ),
        (
            ("--regimen", "100 every 1 x 99999999999", "--times", "1", "--out", "x.csv"),
            "expected at most 100,000 doses",
        ),
        (("--regimen", "100", "--times", "1"), "required: --out"),
    ],
)
def test_a_cohort_that_cannot_be_drawn(
    here: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(("simulate", "theophylline", *words)) == 2
    assert message in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_parquet_without_its_library(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ("simulate", "theophylline", "--regimen", "100", "--times", "1", "--out", "x.parquet")
    assert main(command) == 2
    assert "pip install 'nlmegen[parquet]'" in capsys.readouterr().err


def test_vpc_writes_its_table_and_figure(fitted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("vpc", fitted, "--draws", "50")) == 0
    assert "vpc.csv" in capsys.readouterr().out
    table = pd.read_csv(Path(fitted) / "vpc.csv")
    assert {"time", "quantile", "observed", "simulated", "simulated_lower", "simulated_upper"} <= set(table)
    assert (Path(fitted) / "figures/vpc.png").read_bytes().startswith(b"\x89PNG")
    assert main(("vpc", fitted, "--stratify", "sexx")) == 2
    assert "no column 'sexx'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [("posterior", "{}", "theophylline"), ("vpc", "{}"), ("compare", "{}", "another")]
)
def test_commands_on_what_is_no_folder_of_a_fit(
    here: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "stranger").mkdir()
    for name in ("stranger", "missing"):
        assert main([word.format(name) for word in command]) == 2
        assert f"{name} is not the folder of a fit" in capsys.readouterr().err


def test_a_changed_page_is_not_run(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = Path(shutil.copytree(workplace / "nlmegen-out/theophylline-focei", tmp_path / "fit"))
    (folder / "model.py").write_text("raise SystemExit('this page was run')\n")
    assert main(("vpc", str(folder))) == 2
    assert "is not run" in capsys.readouterr().err


def test_check_says_how_a_table_is_understood(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("check", "theophylline")) == 0
    assert "12" in capsys.readouterr().out
    (here / "bad.csv").write_text("ID,TIME,DV\n1,0,x\n")
    assert main(("check", "bad.csv")) == 2
    assert "row 2, column DV" in capsys.readouterr().err


def test_check_draws_a_figure(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("check", "theophylline", "--figure", "table.png")) == 0
    said = capsys.readouterr().out
    assert "times 0 to 24.65 h" in said
    assert "written: table.png" in said
    assert (here / "table.png").read_bytes().startswith(b"\x89PNG")
    assert main(("check", "theophylline", "--figure", "table.png")) == 2
    assert "--figure table.png exists" in capsys.readouterr().err
    assert main(("check", "theophylline", "--figure", "table.png", "--force")) == 0
    assert main(("check", "theophylline", "--figure", "table.pdf")) == 2
    assert "ends in .png" in capsys.readouterr().err


def test_a_cohort_with_occasions_and_a_limit(here: Path) -> None:
    command = (
        "simulate",
        "theophylline",
        "--n",
        "5",
        "--regimen",
        "320 every 24 ss x 2",
        "--times",
        "0:48:6",
    )
    assert main((*command, "--occasions", "dose", "--lloq", "3", "--out", "cohort.csv")) == 0
    table = pd.read_csv("cohort.csv", na_values=".")
    assert {"SS", "II", "OCC", "LLOQ", "CENS"} <= set(table.columns)
    assert sorted(table["OCC"].unique()) == [1, 2]


def test_list_names_models_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    models, data = capsys.readouterr().out.split("\n\n")
    assert models.startswith("models\n")
    assert data.startswith("data sets\n")
    for name in ("theophylline", "phenobarbital"):
        assert f"  {name}" in models
        assert f"  {name}" in data


def test_the_module_is_the_command_and_survives_a_closed_pipe() -> None:
    words = [sys.executable, "-m", "nlmegen"]
    ran = subprocess.run(
        [*words, "--version"], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert ran.stdout == f"nlmegen {nl.__version__}\n"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        ran = subprocess.run(
            [*words, "list"],
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
    assert "Traceback" not in ran.stderr
    assert "BrokenPipe" not in ran.stderr
