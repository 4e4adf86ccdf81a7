"""Figures hold the numbers they are made of, touch nothing global, and come out the same each time."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from check.frozen import frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import nlmegen as nl
from nlmegen.check.residuals import residuals
from nlmegen.check.vpc import vpc
from nlmegen.errors import DataError
from nlmegen.plots.etas import etas
from nlmegen.plots.history import history
from nlmegen.plots.individual import densify, individual, individual_pages
from nlmegen.plots.predictions import normal_quantiles, observed_predicted, residual_against
from nlmegen.plots.style import figure, png


@pytest.fixture(scope="module")
def fit() -> Any:
    made = frozen(nl.load_model("theophylline"), nl.load_data("theophylline"))
    made.shrinkage_eta = {"ka": 0.1, "cl": 0.2, "v": float("nan")}
    made.history = [{"step": k, "objective": 100.0 / (k + 1)} for k in range(30)]
    return made


@pytest.fixture(scope="module")
def table(fit: Any) -> pd.DataFrame:
    return residuals(fit, draws=40)


def _points(axes: Axes) -> Any:
    """The points of the one line that is drawn with markers only."""
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "None"]
    assert len(lines) == 1
    return np.asarray(lines[0].get_xydata())


@pytest.mark.parametrize("prediction", ["pred", "ipred"])
def test_observed_against_predicted(table: pd.DataFrame, prediction: str) -> None:
    seen = table[table["evid"] == 0]
    axes = observed_predicted(table, prediction)
    np.testing.assert_array_equal(_points(axes), seen[[prediction, "dv"]].to_numpy())
    assert axes.get_xlim() == axes.get_ylim()


@pytest.mark.parametrize("against", ["time", "pred"])
@pytest.mark.parametrize("residual", ["cwres", "iwres", "npde"])
def test_residuals_against(table: pd.DataFrame, against: str, residual: str) -> None:
    seen = table[table["evid"] == 0]
    axes = residual_against(table, against, residual)
    np.testing.assert_array_equal(_points(axes), seen[[against, residual]].to_numpy())
    low, high = axes.get_ylim()
    assert low == -high
    assert high >= seen[residual].abs().max()


def test_a_fit_draws_what_its_table_draws(fit: Any, table: pd.DataFrame) -> None:
    np.testing.assert_array_equal(_points(observed_predicted(fit)), _points(observed_predicted(table)))


def test_normal_quantiles_rise(table: pd.DataFrame) -> None:
    points = _points(normal_quantiles(table))
    assert (np.diff(points, axis=0) >= 0).all()
    np.testing.assert_allclose(points[:, 0], -points[::-1, 0], atol=1e-12)


def test_axes_of_the_caller_are_used(table: pd.DataFrame) -> None:
    own = figure().add_subplot()
    assert residual_against(table, axes=own) is own


def test_units_are_on_the_axes(fit: Any) -> None:
    population = nl.Population.from_table(fit.population.table, time_unit="h", dv_unit="mg/L")
    axes = observed_predicted(residuals(frozen(fit.model, population), draws=0))
    assert axes.get_ylabel() == "observed (mg/L)"


def test_individual_curves_pass_through_the_predictions(fit: Any, table: pd.DataFrame) -> None:
    drawn = individual(fit, ids=[3, "7"])
    assert len(drawn.axes) == 2
    for panel, subject in zip(drawn.axes, (3, 7), strict=True):
        own = table[(table["id"] == subject) & (table["evid"] == 0)]
        lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in panel.get_lines()}
        np.testing.assert_array_equal(lines["observed"], own[["time", "dv"]].to_numpy())
        for name, column in (("individual prediction", "ipred"), ("population prediction", "pred")):
            curve = lines[name]
            at = np.searchsorted(curve[:, 0], own["time"].to_numpy())
            np.testing.assert_allclose(curve[at, 1][1:], own[column].to_numpy()[1:], rtol=1e-9)


def test_pages(fit: Any) -> None:
    pages = list(individual_pages(fit, per_page=5))
    assert [len(page.axes) for page in pages] == [5, 5, 2]
    with pytest.raises(DataError, match="0 to 2"):
        individual(fit, page=3, per_page=5)
    with pytest.raises(DataError, match="no subject '99'"):
        individual(fit, ids=[99])


def test_a_dense_grid_keeps_the_doses_and_the_course_of_a_covariate() -> None:
    rows = pd.DataFrame(
        {
            "id": [1] * 6 + [2] * 3,
            "time": [0, 2, 12, 0, 1, 8, 0, 5, 9],
            "amt": [100, 0, 0, 50, 0, 0, 80, 0, 0],
            "rate": [50, 0, 0, 0, 0, 0, 0, 0, 0],
            "addl": [1, 0, 0, 0, 0, 0, 2, 0, 0],
            "ii": [6, 0, 0, 0, 0, 0, 4, 0, 0],
            "evid": [1, 0, 0, 4, 0, 2, 1, 0, 0],
            "dv": [np.nan, 1, 2, np.nan, 3, np.nan, np.nan, 4, 5],
            "wt": [50, 50, 60, 60, 60, 70, 80, 80, 80],
        }
    ).astype({"dv": float})
    population = nl.Population.from_table(rows, warn=False)
    dense = densify(population, 50)
    for subject in (0, 1):
        kinds = population.events.kind[subject]
        real = kinds > 0
        for name in ("time", "kind", "amount", "rate"):
            ours = getattr(dense.events, name)[subject][dense.events.kind[subject] > 0]
            torch.testing.assert_close(ours, getattr(population.events, name)[subject][real])
    torch.testing.assert_close(
        dense.covariates["wt"].segment[0][: int((dense.events.kind[0] > 0).sum())],
        population.covariates["wt"].segment[0][: int((population.events.kind[0] > 0).sum())],
    )
    assert int(dense.mask[0].sum()) > 100
    # A curve of a bolus model is the same function of time on both grids.
    model = Bolus()
    fine, coarse = nl.Problem(model, dense), nl.Problem(model, population)
    for subject in (0, 1):
        f = coarse.predict(torch.zeros(2, 1, dtype=torch.float64), model.values).f[subject]
        g = fine.predict(torch.zeros(2, 1, dtype=torch.float64), model.values).f[subject]
        for k in range(int(population.mask[subject].sum())):
            at = (dense.time[subject] == population.time[subject, k]) & dense.mask[subject]
            assert float((g[at] - f[k]).abs().min()) < 1e-9


class Bolus(nl.Model):
    """Bolus whose clearance follows weight."""

    tvcl = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.Additive(0.2)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * cov.wt / 70 * torch.exp(eta.cl), v=10.0)

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / p.v)


def test_vpc_panels(fit: Any) -> None:
    table = fit.population.table
    check = vpc(frozen(fit.model, nl.read_nonmem(table)), draws=20, stratify="wt")
    drawn = check.plot(log=True)
    assert isinstance(drawn, Figure)
    assert [panel.get_title(loc="left") for panel in drawn.axes] == list(
        dict.fromkeys(check.table["stratum"])
    )
    observed = check.table[(check.table["quantile"] == 0.5) & (check.table["bin"] == 0)]["observed"].iloc[0]
    heights = [np.asarray(line.get_ydata())[0] for line in drawn.axes[0].get_lines()]
    assert observed in heights


def test_a_vpc_of_censored_values_shows_the_fraction_below_the_limit() -> None:
    table = nl.simulate(
        nl.load_model("theophylline"), nl.Cohort(60, "320", times=[2, 12, 24, 36], lloq=1.0), seed=1
    )
    check = vpc(frozen(nl.load_model("theophylline"), nl.read_nonmem(table), modes=False), draws=20)
    values, shares = check.plot(log=True).axes
    (limit,) = [line for line in values.get_lines() if line.get_linestyle() == ":"]
    assert set(np.asarray(limit.get_ydata())) == {1.0}
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in shares.get_lines()}
    np.testing.assert_array_equal(lines["below limit"], check.shares[["time", "observed"]].to_numpy())
    for panel in (values, shares):
        for line in panel.get_lines():
            assert not np.isinf(np.asarray(line.get_ydata(), dtype=float)).any()


def test_a_checked_table_is_drawn(fit: Any) -> None:
    table = fit.population.table.copy()
    table.loc[20, "dv"] *= 50
    table.loc[table["id"] == 3, "wt"] = 0.0
    table = table.assign(sex=np.where(table["id"] > 4, "m", "f"), cens=0, lloq=1.0)
    report = nl.check_table(table)
    drawn = report.plot()
    values, schedule, weight, sex = drawn.axes
    rows = report.view.records
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in values.get_lines()}
    measured = rows.observed & (report.view.censored == 0) & (rows.dv > 0)
    np.testing.assert_array_equal(lines["observation"][:, 1], rows.dv[measured])
    np.testing.assert_array_equal(lines["below this limit"][:, 1], rows.dv[report.view.censored == 1])
    assert table.loc[20, "dv"] in lines["looks odd"][:, 1]
    assert "line 22" in [text.get_text() for text in values.texts]
    doses = {str(line.get_label()): np.asarray(line.get_xydata()) for line in schedule.get_lines()}["dose"]
    assert len(doses) == 12
    assert [panel.get_title(loc="left") for panel in (weight, sex)] == ["wt", "sex"]
    assert [tick.get_text() for tick in sex.get_xticklabels()] == ["f", "m"]


def test_etas_and_history(fit: Any) -> None:
    drawn = etas(fit)
    assert [panel.get_xlabel() for panel in drawn.axes] == ["eta ka", "eta cl", "eta v"]
    for panel in drawn.axes:
        area = sum(bar.get_height() * bar.get_width() for bar in panel.patches)  # type: ignore[attr-defined]
        assert area == pytest.approx(1.0)
    (line,) = history(fit).get_lines()
    np.testing.assert_allclose(np.asarray(line.get_ydata())[:3], [100, 50, 100 / 3])


def test_same_bytes_and_nothing_global(fit: Any, table: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    first, again = (png(observed_predicted(table).figure) for _ in range(2))  # type: ignore[arg-type]
    assert first == again
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    assert dict(mpl.rcParams) == before
