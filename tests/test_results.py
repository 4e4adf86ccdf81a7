"""The folder of a fit: its schema, its way back, and that nothing is lost or run that should not be."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from torch import exp

import nlmegen as nl
from nlmegen.fit import Fit
from nlmegen.model.pagetext import page_text
from nlmegen.results import load_fit, save
from nlmegen.results.facts import facts, individuals

REFERENCE_SCALE = 70.0


def scaled(weight: torch.Tensor) -> torch.Tensor:
    """Used by `Scripted`, and so to be found in its model.py."""
    return weight / REFERENCE_SCALE


class Scripted(nl.Model):
    """A page written in a script, not in a file of its own."""

    tvka = nl.Theta(1.5, lower=0, unit="1/h")
    tvcl = nl.Theta(2.8, lower=0, unit="L/h")
    tvv = nl.Theta(32.0, lower=0, fixed=True, unit="L")
    iiv = nl.Omega(ka=0.4, cl=0.07)
    cp = nl.Additive(0.7)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka * exp(eta.ka), cl=theta.tvcl * exp(eta.cl), v=theta.tvv * scaled(cov.wt))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


@pytest.fixture(scope="module")
def fitted() -> Fit:
    """A real FOCEI fit of the catalogue's page."""
    return nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())


@pytest.fixture(scope="module")
def folder(fitted: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nl.save_fit(fitted, tmp_path_factory.mktemp("fits") / "deep" / "theophylline")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders without figures and report, which take seconds and are looked at once."""
    monkeypatch.setattr(save._Derived, "figures", lambda self: None)
    monkeypatch.setattr(save._Derived, "report", lambda self: None)
    return


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_folder_holds_what_is_promised(folder: Path) -> None:
    names = {name for name in tree(folder) if not name.startswith("figures/")}
    assert names == {
        "fit.json",
        "parameters.csv",
        "covariance.csv",
        "correlation.csv",
        "individuals.csv",
        "predictions.csv",
        "model.py",
        "data.csv",
        "weights.safetensors",
        "report.html",
    }
    figures = sorted((folder / "figures").glob("*.png"))
    assert len(figures) >= 6
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert json.loads((folder / "fit.json").read_text())["notes"] == [], "something could not be written"


def test_fit_json_follows_its_schema(fitted: Fit, folder: Path) -> None:
    content = json.loads((folder / "fit.json").read_text())
    assert set(content) == {
        *("schema", "nlmegen", "model", "page_sha256", "data", "method", "ofv", "log_likelihood"),
        *("ofv_source", "ofv_se", "converged", "reason", "seconds", "theta", "omega", "sigma"),
        *("shrinkage_eta", "aic", "bic", "condition_number", "notes"),
    }
    assert content["schema"] == 1
    assert content["nlmegen"] == nl.__version__
    assert content["model"] == "theophylline"
    assert content["method"] == content["ofv_source"] == "focei"
    assert content["data"] == {
        "n_subjects": 12,
        "n_observations": 132,
        "sha256": fitted.population.sha256,
    }
    assert content["converged"] is True
    assert set(content["theta"]) == {"tvka", "tvcl", "tvv"}
    assert set(content["theta"]["tvcl"]) == {"estimate", "se", "rse", "ci_lower", "ci_upper", "unit", "fixed"}
    assert content["theta"]["tvcl"]["unit"] == "L/h"
    assert content["theta"]["tvcl"]["fixed"] is False
    assert content["omega"]["names"] == ["ka", "cl", "v"]
    assert np.shape(content["omega"]["covariance"]) == np.shape(content["omega"]["se"]) == (3, 3)
    assert set(content["sigma"]) == {"cp.additive", "cp.proportional"}
    assert set(content["sigma"]["cp.additive"]) == {"estimate", "se"}
    assert set(content["shrinkage_eta"]) == {"ka", "cl", "v"}


def test_fit_json_keeps_every_digit(fitted: Fit, folder: Path) -> None:
    content = json.loads((folder / "fit.json").read_text())
    assert content["ofv"] == fitted.ofv
    assert content["log_likelihood"] == fitted.log_likelihood
    assert content["omega"]["covariance"] == fitted.model.omega.tolist()
    assert content["theta"]["tvcl"]["estimate"] == fitted.parameters.loc["tvcl", "estimate"]
    # the numbers of a FOCEI fit of these data: published references/ has them to four digits
    assert content["ofv"] == pytest.approx(104.3221, abs=1e-3)


def test_the_matrices_of_the_estimates_are_there_and_come_back(fitted: Fit, folder: Path) -> None:
    again = load_fit(folder, model=nl.load_model("theophylline"))
    for name in ("covariance", "correlation"):
        written = pd.read_csv(folder / f"{name}.csv", index_col="name")
        pd.testing.assert_frame_equal(written, getattr(fitted, name), rtol=1e-12)
        pd.testing.assert_frame_equal(getattr(again, name), getattr(fitted, name))
    se = fitted.parameters["se"]
    assert np.sqrt(np.diag(written.loc[list(se.index), list(se.index)])) == pytest.approx(np.ones(len(se)))
    assert np.sqrt(np.diag(fitted.covariance)) == pytest.approx(se.to_numpy())


def test_without_standard_errors_there_are_no_matrices(fitted: Fit, quick: None, tmp_path: Path) -> None:
    plain = nl.fit(fitted.model, fitted.population, nl.FOCEI(evaluate=True))
    assert plain.covariance is None
    assert plain.correlation is None
    names = tree(nl.save_fit(plain, tmp_path / "plain"))
    assert not {"covariance.csv", "correlation.csv"} & set(names)


def test_what_is_not_identified_and_priors_are_in_fit_json(fitted: Fit) -> None:
    content = facts(_with(fitted, penalty=3.5, identifiability=["the data determine a*b"]))
    assert content["penalty"] == 3.5
    assert "the data determine a*b" in content["notes"]


def _with(fitted: Fit, **changes: Any) -> Fit:
    changed = copy.copy(fitted)
    changed.__dict__.update(changes)
    return changed


def test_the_tables_repeat_the_fit(fitted: Fit, folder: Path) -> None:
    parameters = pd.read_csv(folder / "parameters.csv", index_col="name")
    assert list(parameters.index) == list(fitted.parameters.index)
    np.testing.assert_array_equal(parameters["estimate"], fitted.parameters["estimate"])
    people = pd.read_csv(folder / "individuals.csv", dtype={"id": str})
    etas = [f"eta_{name}{part}" for name in ("ka", "cl", "v") for part in ("_mean", "_sd")]
    assert list(people.columns) == ["id", "eta_ka", "eta_cl", "eta_v", *etas, "ka", "cl", "v", "status"]
    assert list(people["id"]) == list(fitted.population.ids)
    np.testing.assert_array_equal(people["eta_cl"], fitted.ebe[:, 1].numpy())
    tvcl = float(fitted.model.theta.tvcl)
    np.testing.assert_allclose(people["cl"], tvcl * np.exp(people["eta_cl"]), rtol=1e-12)
    predictions = pd.read_csv(folder / "predictions.csv")
    assert {"id", "time", "dv", "pred", "ipred", "res", "wres", "iwres", "cwres", "npde"} <= set(predictions)
    assert len(predictions) == len(fitted.population.table)


def test_modes_and_means_are_told_apart(fitted: Fit) -> None:
    apart = replace(fitted.estimate, eta_mean=fitted.ebe + 1.0)
    table = individuals(Fit(fitted.model, fitted.population, fitted.settings, apart, fitted.seconds))
    np.testing.assert_array_equal(table["eta_v"], fitted.ebe[:, 2].numpy())
    np.testing.assert_array_equal(table["eta_v_mean"], fitted.ebe[:, 2].numpy() + 1.0)


def same(one: Fit, two: Fit) -> None:
    """Two fits that must agree to the last bit, in what they hold and in what they compute."""
    pd.testing.assert_frame_equal(one.parameters, two.parameters, check_exact=True)
    for name in (
        "ofv",
        "log_likelihood",
        "ofv_source",
        "ofv_se",
        "converged",
        "reason",
        "iterations",
        "method",
    ):
        assert getattr(one, name) == getattr(two, name)
    for name in ("ebe", "status", "eta_mean", "eta_cov", "omega_se"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.settings == two.settings
    assert one.bounds == two.bounds
    assert one.population.sha256 == two.population.sha256
    assert one.population.time_unit == two.population.time_unit
    k = 50
    pd.testing.assert_frame_equal(
        one.posterior(k=k, seed=3).table(), two.posterior(k=k, seed=3).table(), rtol=1e-9
    )


def test_a_fit_comes_back_whole(fitted: Fit, folder: Path) -> None:
    same(load_fit(folder, nl.load_model("theophylline")), fitted)
    same(load_fit(folder, "page"), fitted)


def test_a_fit_comes_back_after_its_folder_has_moved(fitted: Fit, folder: Path, tmp_path: Path) -> None:
    import shutil

    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    same(load_fit(moved, "page"), fitted)


@pytest.mark.slow
def test_a_variational_fit_comes_back_with_its_encoder(tmp_path: Path) -> None:
    data = nl.load_data("theophylline")
    fitted = nl.fit(nl.load_model("theophylline"), data, nl.ELBO(seed=1, steps=100, most_draws=200))
    folder = nl.save_fit(fitted, tmp_path / "vi")
    content = json.loads((folder / "fit.json").read_text())
    assert set(content["elbo"]) == {
        *("elbo", "iwelbo", "k", "importance_log_likelihood", "importance_se"),
        *("khat_max", "ess_median", "ess_min"),
    }
    back = load_fit(folder, nl.load_model("theophylline"))
    assert back.encoder is not None
    same(back, fitted)
    new = data.select([0, 3])
    pd.testing.assert_frame_equal(
        back.posterior(new, k=100).table(), fitted.posterior(new, k=100).table(), rtol=1e-9
    )


TRAP = """
import pathlib
import nlmegen as nl

pathlib.Path({marker!r}).write_text("this page was run")
{page}
"""


@pytest.mark.usefixtures("quick")
def test_nothing_is_run_unless_it_is_asked_for(fitted: Fit, tmp_path: Path) -> None:
    folder = nl.save_fit(fitted, tmp_path / "fit")
    marker = tmp_path / "ran"
    page = (folder / "model.py").read_text()
    (folder / "model.py").write_text(TRAP.format(marker=str(marker), page=page))
    load_fit(folder, nl.load_model("theophylline"))
    with pytest.raises(nl.ModelError, match="is not run.*hash differs from fit.json.*model=YourPage"):
        load_fit(folder, "page")
    assert not marker.exists()
    # what stands here runs once the folder itself vouches for it
    import hashlib

    content = json.loads((folder / "fit.json").read_text())
    content["page_sha256"] = hashlib.sha256((folder / "model.py").read_bytes()).hexdigest()
    (folder / "fit.json").write_text(json.dumps(content))
    assert load_fit(folder, "page").ofv == fitted.ofv
    assert marker.exists()


@pytest.mark.usefixtures("quick")
def test_a_page_of_a_script_becomes_a_page_that_runs_alone(tmp_path: Path) -> None:
    fitted = nl.fit(Scripted, nl.load_data("theophylline"), nl.FOCEI(evaluate=True))
    folder = nl.save_fit(fitted, tmp_path / "fit")
    text = (folder / "model.py").read_text()
    assert "import nlmegen as nl\n" in text
    assert "from torch import exp\n" in text
    assert "REFERENCE_SCALE = 70.0\n" in text
    assert text.index("def scaled") < text.index("class Scripted")
    assert "import pandas" not in text, "only what the page uses"
    back = load_fit(folder, "page")
    assert type(back.model) is not Scripted
    assert back.model.name == fitted.model.name
    same(back, fitted)


def test_a_page_that_cannot_be_found_is_kept_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Scripted, "source", "")
    monkeypatch.setattr(save._Derived, "figures", lambda self: None)
    monkeypatch.setattr(save._Derived, "report", lambda self: None)
    assert page_text(Scripted()) == ""
    fitted = nl.fit(Scripted, nl.load_data("theophylline"), nl.FOCEI(evaluate=True))
    folder = nl.save_fit(fitted, tmp_path / "fit")
    with pytest.raises(nl.ModelError, match="holds no page.*model=YourPage"):
        load_fit(folder, "page")
    assert load_fit(folder, Scripted()).ofv == fitted.ofv


def test_a_page_with_other_bounds_or_another_error_is_refused(folder: Path) -> None:
    """Tensors lie on the free scale: the same names with other bounds would mean other numbers."""
    base = type(nl.load_model("theophylline"))

    def page(**changes: object) -> nl.Model:
        made: nl.Model = type("Other", (base,), {"__module__": __name__, **changes})()
        return made

    load_fit(folder, page(tvcl=nl.Theta(9.0, lower=0)))
    for change in (
        {"tvcl": nl.Theta(2.0, lower=0, upper=50)},
        {"cp": nl.Combined(additive=0.5, proportional=0.1, form="sd")},
    ):
        with pytest.raises(nl.ModelError, match="another page"):
            load_fit(folder, page(**change))


def test_no_string_but_page_runs_anything(folder: Path) -> None:
    with pytest.raises(nl.ModelError, match="load_fit needs the page"):
        load_fit(folder, "theophylline")  # type: ignore[arg-type]
    with pytest.raises(nl.ModelError, match="load_fit needs the page"):
        load_fit(folder, 3)  # type: ignore[arg-type]
    assert load_fit(folder, type(nl.load_model("theophylline"))).converged


def test_a_damaged_folder_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "fit.json").write_text('{"schema": 1}')
    with pytest.raises(nl.DataError, match="damaged"):
        load_fit(copy, nl.load_model("theophylline"))
    safetensors.torch.save_file({"model": torch.zeros(3)}, copy / "weights.safetensors")
    with pytest.raises(nl.DataError, match="cannot be read"):
        load_fit(copy, nl.load_model("theophylline"))


def test_another_page_is_refused(folder: Path) -> None:
    with pytest.raises(nl.ModelError, match="Combined additive proportional.*Give the page that was fitted"):
        load_fit(folder, Scripted())


@pytest.mark.usefixtures("quick")
def test_changed_data_are_noticed(fitted: Fit, tmp_path: Path) -> None:
    folder = nl.save_fit(fitted, tmp_path / "fit")
    text = (folder / "data.csv").read_text()
    assert "10.5" in text
    (folder / "data.csv").write_text(text.replace("10.5", "10.6", 1))
    with pytest.raises(nl.DataError, match="not the table that was fitted"):
        load_fit(folder, nl.load_model("theophylline"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("fit.json", None, "holds no fit.json"),
        ("fit.json", "{not json", "is not JSON"),
        ("fit.json", "[]", "this version reads 1"),
        ("fit.json", '{"schema": 2}', "schema 2, this version reads 1"),
        ("weights.safetensors", "short", "cannot be read"),
        ("weights.safetensors", None, "cannot be read"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_a_folder_that_is_none_is_a_data_error(
    fitted: Fit, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    folder = nl.save_fit(fitted, tmp_path / "fit")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(nl.DataError) as error:
        load_fit(folder, nl.load_model("theophylline"))
    assert words in str(error.value)


@pytest.mark.usefixtures("quick")
def test_an_existing_folder_is_replaced_only_by_force(fitted: Fit, tmp_path: Path) -> None:
    folder = nl.save_fit(fitted, tmp_path / "fit")
    (folder / "mine.txt").write_text("a remark")
    before = tree(folder)
    with pytest.raises(nl.DataError, match="exists; choose another folder, or replace it with --force"):
        nl.save_fit(fitted, folder)
    assert tree(folder) == before
    nl.save_fit(fitted, folder, force=True)
    assert "mine.txt" not in tree(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


@pytest.mark.usefixtures("quick")
def test_force_replaces_nothing_but_fits(fitted: Fit, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("home", "file"):
        with pytest.raises(nl.DataError, match="not the folder of a fit and is not replaced"):
            nl.save_fit(fitted, tmp_path / name, force=True)
    (tmp_path / "empty").mkdir()
    assert "fit.json" in tree(nl.save_fit(fitted, tmp_path / "empty", force=True))
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_a_place_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(nl.DataError, match="file is not a folder that you may write to"):
        save.check_target(tmp_path / "file" / "fit", force=False)
    save.check_target(tmp_path / "new" / "fit", force=False)
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(nl.DataError, match="cannot be made"):
        save.check_target(tmp_path / "new" / "fit", force=False)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["while writing", "while moving"])
def test_nothing_is_lost_when_force_fails_midway(
    fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    folder = nl.save_fit(fitted, tmp_path / "fit")
    before = tree(folder)

    def full_disk(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    if fault == "while writing":
        monkeypatch.setattr(save, "write_nonmem", full_disk)
    else:
        rename = Path.rename
        moves = iter([rename, full_disk, rename])
        monkeypatch.setattr(Path, "rename", lambda self, target: next(moves)(self, target))
    with pytest.raises(OSError, match="No space left"):
        nl.save_fit(fitted, folder, force=True)
    assert tree(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["fit"], "no remains beside it"


@pytest.mark.usefixtures("quick")
def test_a_figure_that_fails_costs_a_note_and_nothing_else(
    fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise ZeroDivisionError("no figure")

    monkeypatch.setattr(save._Derived, "figures", broken)
    folder = nl.save_fit(fitted, tmp_path / "fit")
    notes = json.loads((folder / "fit.json").read_text())["notes"]
    assert notes == ["figures could not be written: ZeroDivisionError: no figure"]
    same(load_fit(folder, nl.load_model("theophylline")), fitted)


@pytest.mark.usefixtures("quick")
def test_npde_that_cannot_be_simulated_costs_its_column_only(
    fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise nl.FitError("no residual error")

    monkeypatch.setattr("nlmegen.check.residuals.npde", refuse)
    folder = nl.save_fit(fitted, tmp_path / "fit")
    table = pd.read_csv(folder / "predictions.csv")
    assert table["npde"].isna().all()
    assert table["cwres"].notna().any()
    notes = json.loads((folder / "fit.json").read_text())["notes"]
    assert notes == ["npde was left out of predictions.csv: no residual error"]


@pytest.mark.usefixtures("quick")
def test_what_is_not_finite_is_null_with_a_note(fitted: Fit, tmp_path: Path) -> None:
    estimate = replace(fitted.estimate, covariance=None, ofv=math.inf)
    poor = Fit(fitted.model, fitted.population, fitted.settings, estimate, fitted.seconds)
    folder = nl.save_fit(poor, tmp_path / "fit")
    text = (folder / "fit.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    content = json.loads(text)
    assert content["ofv"] is None
    assert content["theta"]["tvcl"]["se"] is None
    assert content["theta"]["tvcl"]["estimate"] is not None
    (note,) = [note for note in content["notes"] if note.startswith("null because not finite")]
    assert note == "null because not finite: ofv"
    assert "no standard errors were computed: they are null" in content["notes"]
    assert load_fit(folder, nl.load_model("theophylline")).ofv == math.inf


def test_the_folder_is_as_readable_as_any_other(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_stepped_fit_comes_back_stepped_with_its_solver(tmp_path: Path) -> None:
    page = nl.load_model("theophylline")
    solver = nl.Solver(method="stiff", rtol=1e-6)
    fitted = nl.fit(page.as_ode(solver), nl.load_data("theophylline"), nl.FOCEI(evaluate=True))
    folder = nl.save_fit(fitted, tmp_path / "stepped")
    back = load_fit(folder, page)
    assert back.model.stepped
    assert back.model.solver == solver
    assert not nl.load_model("theophylline").stepped
    again = nl.fit(back.model, back.population, nl.FOCEI(evaluate=True))
    assert again.ofv == pytest.approx(fitted.ofv, abs=1e-9)


def test_network_weights_are_kept(tmp_path: Path) -> None:
    page = nl.load_model("michaelis_menten_neural")
    page = page.with_weights(page.weights + 0.01)
    cohort = nl.Cohort(6, nl.Regimen(300), times=(0.5, 4, 12, 24))
    fitted = nl.fit(page, nl.read_nonmem(nl.simulate(page, cohort, seed=1)), nl.FOCEI(evaluate=True))
    assert torch.equal(fitted.model.weights, page.weights)
    back = load_fit(nl.save_fit(fitted, tmp_path / "learned"), nl.load_model("michaelis_menten_neural"))
    assert torch.equal(back.model.weights, page.weights)
    assert not torch.equal(nl.load_model("michaelis_menten_neural").weights, page.weights)
