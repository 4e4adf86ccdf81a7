"""Residuals against the same formulas written out subject by subject in numpy and scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from check.frozen import frozen
from problems import Straight, straight_table
from torch import exp

import nlmegen as nl
from nlmegen.check.residuals import COLUMNS, residuals, whiten


def _root(cov: Any) -> Any:
    """The inverse symmetric square root, by scipy's Schur method."""
    return np.linalg.inv(np.real(scipy.linalg.sqrtm(cov)))


class Logs(nl.Model):
    """Bolus, log-normal error."""

    tvcl = nl.Theta(1.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.LogNormal(0.2)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv)

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / p.v)


@pytest.fixture(scope="module")
def straight() -> Any:
    return frozen(Straight(), nl.read_nonmem(straight_table(12)))


@pytest.fixture(scope="module")
def theophylline() -> Any:
    model = nl.load_model("theophylline").with_values(omega={"ka": 0.4, "cl": 0.07, "v": 0.02})
    return frozen(model, nl.load_data("theophylline"))


def test_a_linear_model_has_exact_whitened_residuals(straight: Any) -> None:
    table = residuals(straight, draws=0)
    omega = np.array([[0.5, 0.12], [0.12, 0.1]])
    for _, own in table[table["evid"] == 0].groupby("id"):
        t, y = own["time"].to_numpy(), own["dv"].to_numpy()
        z = np.stack([np.ones_like(t), t], 1)
        cov = z @ omega @ z.T + 0.4**2 * np.eye(len(t))
        white = _root(cov) @ (y - (1.0 + 0.5 * t))
        np.testing.assert_allclose(own["wres"], white, atol=1e-10)
        np.testing.assert_allclose(own["cwres"], white, atol=1e-10)
        np.testing.assert_allclose(own["res"], y - (1.0 + 0.5 * t), atol=1e-12)
        mode = omega @ z.T @ np.linalg.solve(cov, y - (1.0 + 0.5 * t))
        np.testing.assert_allclose(own["iwres"], (y - (1.0 + 0.5 * t) - z @ mode) / 0.4, atol=1e-9)


def _reference(fit: Any, subject: int, at_mode: bool, interaction: bool) -> Any:
    """Whitened residuals of one subject with a Jacobian by central differences."""
    problem, values, n = fit.problem, fit.values, int(fit.problem.observed[subject].sum())
    centre = fit.ebe if at_mode else torch.zeros_like(fit.ebe)

    def f(eta: Any) -> Any:
        return problem.predict(eta, values).f[subject, :n].numpy()

    columns = []
    for k in range(problem.q):
        step = torch.zeros_like(centre)
        step[:, k] = 1e-5
        columns.append((f(centre + step) - f(centre - step)) / 2e-5)
    jac = np.stack(columns, 1)
    sigma = {k: float(v) for k, v in fit.model.sigma.items()}
    level = f(centre if interaction else torch.zeros_like(centre))
    r = sigma["cp.additive"] ** 2 + (sigma["cp.proportional"] * level) ** 2
    cov = jac @ fit.model.omega.numpy() @ jac.T + np.diag(r)
    y = fit.population.dv[subject, :n].numpy()
    return _root(cov) @ (y - f(centre) + jac @ centre[subject].numpy())


@pytest.mark.parametrize(
    ("method", "source", "interaction"),
    [
        ("focei", "focei", True),
        ("elbo", "importance", True),
        ("foce", "foce", False),
        ("fo+foce", "foce", False),
        ("foce+agq", "quadrature", True),
    ],
)
def test_cwres_of_a_nonlinear_model(theophylline: Any, method: str, source: str, interaction: bool) -> None:
    theophylline.method, theophylline.ofv_source = method, source
    table = residuals(theophylline, draws=0)
    for subject in (0, 5, 11):
        own = table[(table["id"] == subject + 1) & (table["evid"] == 0)]
        np.testing.assert_allclose(
            own["cwres"], _reference(theophylline, subject, True, interaction), atol=1e-6
        )
        np.testing.assert_allclose(own["wres"], _reference(theophylline, subject, False, True), atol=1e-6)
    theophylline.method = theophylline.ofv_source = "focei"


def test_every_record_stays_and_only_observations_have_residuals(theophylline: Any) -> None:
    table = residuals(theophylline, draws=40)
    before = theophylline.population.table
    pd.testing.assert_frame_equal(table[before.columns], before)
    assert tuple(table.columns[len(before.columns) :]) == COLUMNS
    assert table.loc[table["evid"] != 0, list(COLUMNS)].isna().all().all()
    assert table.loc[table["evid"] == 0, list(COLUMNS)].notna().all().all()


def test_log_normal_predictions_are_natural_and_residuals_are_logarithms() -> None:
    data = pd.DataFrame(
        {
            "id": [1, 1, 1],
            "time": [0.0, 2.0, 5.0],
            "amt": [100.0, 0, 0],
            "evid": [1, 0, 0],
            "dv": [np.nan, 7.0, 6.0],
        }
    )
    fit = frozen(Logs(), nl.read_nonmem(data))
    own = residuals(fit, draws=0).iloc[1:]
    pred = 10.0 * np.exp(-0.1 * np.array([2.0, 5.0]))
    np.testing.assert_allclose(own["pred"], pred, rtol=1e-10)
    np.testing.assert_allclose(own["res"], np.log([7.0, 6.0]) - np.log(pred), rtol=1e-9)
    ipred = 10.0 * np.exp(-0.1 * np.exp(float(fit.ebe)) * np.array([2.0, 5.0]))
    np.testing.assert_allclose(own["iwres"], np.log(np.array([7.0, 6.0]) / ipred) / 0.2, rtol=1e-8)


def test_the_simulated_mean_of_a_log_normal_endpoint_is_natural() -> None:
    table = {"id": [1, 1, 1], "time": [0.0, 2.0, 5.0], "amt": [100.0, 0, 0], "evid": [1, 0, 0]}
    fit = frozen(Logs(), nl.read_nonmem(pd.DataFrame(table | {"dv": [np.nan, 7.0, 6.0]})))
    own = residuals(fit, draws=20_000).iloc[1:]
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    f = 10.0 * np.exp(-0.1 * np.exp(0.1**0.5 * node) * np.array([[2.0], [5.0]]))
    mean = np.exp(0.2**2 / 2) * (f @ weight) / weight.sum()
    np.testing.assert_allclose(own["epred"], mean, rtol=5 * 0.3 / 20_000**0.5)
    assert own["pwres"].notna().all()


def test_a_subject_without_a_covariance_spoils_no_other() -> None:
    jac = torch.ones(1, 3, 2, dtype=torch.float64)
    jac[0, 1] = torch.nan
    variance = torch.ones(3, 2, dtype=torch.float64)
    variance[2] = 0.0
    white = whiten(torch.ones(3, 2, dtype=torch.float64), jac, torch.eye(1, dtype=torch.float64), variance)
    expected = _root(np.array([[2.0, 1.0], [1.0, 2.0]])) @ np.ones(2)
    np.testing.assert_allclose(white[0].numpy(), expected, rtol=1e-12)
    assert torch.isnan(white[1:]).all()
