"""NONMEM's printed tables of two phenobarbital runs: predictions, residuals, modes, objectives of the subjects.

The tables hold five digits (modes six, objectives seventeen) computed at estimates that are known to six digits
(five for the first-order run), so a digit may turn by one: the tolerances are one unit of the last digit printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from check.frozen import frozen
from reference.published import NUMBERS, at
from scipy import stats
from torch import exp

import nlmegen as nl
from nlmegen.check.npde import npde
from nlmegen.check.residuals import residuals
from nlmegen.inference.conditional import FOCEIObjective

TABLES = Path(__file__).parent / "nonmem"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(TABLES / f"{name}.csv", comment="#")


def last_digit(printed: pd.Series, digits: int = 5) -> np.ndarray:
    """One unit of the last of `digits` significant digits."""
    size = np.floor(np.log10(np.abs(printed.to_numpy()).clip(1e-300)))
    return 10.0 ** (size - digits + 1)


def observed(fit: Any, draws: int = 0) -> pd.DataFrame:
    rows = residuals(fit, draws=draws)
    return rows[rows["evid"] == 0].reset_index(drop=True)


def agree(ours: Any, printed: pd.Series, units: float = 1.0, scale: pd.Series | None = None) -> None:
    """Within `units` of the last digit (of `scale`, where a difference of two printed columns is held)."""
    off = np.abs(np.asarray(ours) - printed.to_numpy()) / last_digit(printed if scale is None else scale)
    assert off.max() <= units, f"row {int(off.argmax())}: {off.max():.2f} units of the last digit"


@pytest.fixture(scope="module")
def interaction() -> nl.Fit:
    """METHOD=1 INTER at NONMEM's estimates."""
    model = at(nl.load_model("phenobarbital"), NUMBERS["phenobarbital"]["nonmem"])
    return nl.fit(model, nl.load_data("phenobarbital"), nl.FOCEI(evaluate=True))


def test_predictions_and_residuals_of_the_interaction_run(interaction: nl.Fit) -> None:
    printed, ours = table("pheno_tab"), observed(interaction)
    np.testing.assert_allclose(ours["time"], printed["time"])
    np.testing.assert_allclose(printed["pred"] + printed["res"], ours["dv"], atol=5.1e-4)
    agree(ours["pred"], printed["pred"])
    agree(ours["ipred"], printed["cipredi"])
    # RES is DV - PRED: its error is that of PRED
    agree(ours["res"], printed["res"], scale=printed["pred"])
    assert np.abs(ours["cwres"] - printed["cwres"]).max() < 6e-5


def test_cwres_takes_the_residual_variance_at_the_mode(interaction: nl.Fit) -> None:
    """The help calls CWRES non-interactive; the column of a run with INTERACTION is not."""
    alone = frozen(interaction.model, interaction.population, method="foce", modes=False)
    alone.ebe = interaction.ebe
    off = np.abs(observed(alone)["cwres"] - table("pheno_tab")["cwres"])
    assert off.max() > 0.5


def test_modes_and_objectives_of_the_subjects(interaction: nl.Fit) -> None:
    printed = table("pheno_phi")
    problem = interaction.problem
    there = FOCEIObjective(problem)(problem.start[None])
    for k, name in enumerate(("eta_cl", "eta_v")):
        assert np.abs(there.eta[0, :, k].numpy() - printed[name]).max() < 1e-6
    # theta, omega and sigma are known to six digits: 3e-6 of some of them make 2e-5 of an objective
    np.testing.assert_allclose(there.objective[0].numpy(), printed["obj"], atol=3e-5)
    assert interaction.ofv == pytest.approx(printed["obj"].sum(), abs=1e-6)


def test_etc_of_nonmem_is_the_expected_information(interaction: nl.Fit) -> None:
    """ETC of the .phi file is (J' W J + Omega^-1)^-1 with FOCEI's W, without second derivatives of f."""
    printed, problem = table("pheno_phi"), interaction.problem
    there = problem.predict(interaction.ebe, interaction.values, order=1)
    variance, slope, _ = (x.expand(there.f.shape) for x in problem.variance(there.f, interaction.values))
    weight = ((1 / variance + (slope / variance) ** 2 / 2) * problem.mask).numpy()
    assert there.jac is not None
    jac, prior = there.jac.numpy(), np.linalg.inv(interaction.model.omega.numpy())
    cov = np.linalg.inv(np.einsum("qnt,nt,rnt->nqr", jac, weight, jac) + prior)
    for name, (j, k) in {"var_cl": (0, 0), "cov": (0, 1), "var_v": (1, 1)}.items():
        np.testing.assert_allclose(cov[:, j, k], printed[name], rtol=1e-5, err_msg=name)


class Simple(nl.Model):
    """Phenobarbital without covariates, at NONMEM's first-order estimates."""

    tvcl = nl.Theta(5.5536e-3, lower=0)
    tvv = nl.Theta(1.3364, lower=0)
    iiv = nl.Omega(cl=0.24707, v=0.14158)
    cp = nl.Proportional(0.016415**0.5)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / p.v)


@pytest.fixture(scope="module")
def first_order() -> nl.Fit:
    return nl.fit(Simple(), nl.load_data("phenobarbital"), nl.FO(evaluate=True))


def test_the_first_order_run(first_order: nl.Fit) -> None:
    """WRES is linearised at 0; POSTHOC's modes keep the residual variance of eta = 0, for there is no interaction."""
    printed = table("pheno_fo_tab")
    ours = observed(first_order).iloc[: len(printed)]
    assert first_order.ofv == pytest.approx(742.051045069463, abs=2e-4)  # five digits of the estimates
    np.testing.assert_allclose(ours["time"], printed["time"])
    agree(ours["pred"], printed["pred"])
    agree(ours["ipred"], printed["ipred"])
    agree(ours["res"], printed["res"], scale=printed["pred"])
    assert np.abs(ours["wres"] - printed["wres"]).max() < 6e-5
    # the page of that run has W = F
    iwres = ours["iwres"] * float(first_order.model.sigma["cp.proportional"])
    assert np.abs(iwres - printed["iwres"]).max() < 5e-5


def test_the_first_order_optimum() -> None:
    found = nl.fit(Simple(), nl.load_data("phenobarbital"), nl.FO(covariance=None))
    assert found.converged
    assert found.ofv == pytest.approx(742.051045069463, abs=1e-5)


NPDE = {  # NONMEM 7.4.2, ESAMPLE 300, eigenvalue root: column NPDE of tests/testdata/nonmem/sdtab1 of pharmpy
    "1": [-0.37634, 0.70630],
    "2": [-1.5548, 1.5548, 1.4758],
    "3": [-0.21898, -0.11724, -1.3408],
    "4": [-0.016712, -0.28802, 0.43073],
    "5": [-0.96742, -0.53401, -1.5834],
    "6": [0.20189, -1.9893, 0.86568],
    "7": [-0.31425, 0.28802, -0.42158],
}


def test_npde_of_nonmem_is_decorrelated_by_the_symmetric_root(interaction: nl.Fit) -> None:
    """Within the Monte Carlo error of NONMEM's 300 draws; by the Cholesky root far from it."""
    printed = np.concatenate([NPDE[i] for i in sorted(NPDE)])
    few = frozen(interaction.model, interaction.population.select(range(len(NPDE))), modes=False)
    seen = few.population.mask.numpy()
    p = stats.norm.cdf(printed)
    # of the rank, the mean and the covariance
    error = (np.sqrt(p * (1 - p)) / stats.norm.pdf(printed) + 1 + np.abs(printed)) / np.sqrt(300)
    off = {
        root: np.abs(npde(few, draws=4000, seed=1, root=root).npde[seen] - printed) / error
        for root in ("symmetric", "cholesky")
    }
    assert off["symmetric"].max() < 2
    assert off["cholesky"].max() > 4
