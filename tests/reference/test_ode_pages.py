"""The ODE pages of the catalogue: their courses against scipy, and cohorts drawn by scipy, refitted.

As in tests/ladder/test_recovery.py: over R cohorts of P parameters, twice the gain in log likelihood over the truth,
and the Wald distance of the truth in the metric of the stated errors, are both chi-square with R P degrees of freedom.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from reference.courses import STUDIES, Study
from scipy import stats

import nlmegen as nl

SEEDS = (1, 2)
COARSE = {"tmdd": nl.Solver(method="stiff", rtol=1e-5)}
"""Settings where 1e-7 would take a minute; beside 10 % of noise 1e-5 is exact."""


def at_the_truth(name: str, study: Study) -> nl.Model:
    """The page at the values that the study draws from."""
    model = nl.load_model(name)
    sigma = {label: study.sigma[label.split(".")[0]] for label in model.sigma_names}
    theta = {f"tv{k}": v for k, v in study.theta.items()}
    return model.with_values(theta=theta, omega=study.omega, sigma=sigma)


def elsewhere(model: nl.Model) -> nl.Model:
    """The page with every free theta off by a quarter, up and down in turn."""
    free = [name for name, theta in model.layout.thetas.items() if not theta.fixed and name != "tvemax"]
    factors = [1.25 if k % 2 else 0.8 for k in range(len(free))]
    return model.with_values(
        theta={name: float(model.theta[name]) * f for name, f in zip(free, factors, strict=True)}
    )


@pytest.mark.parametrize("name", STUDIES)
def test_predictions_are_those_of_scipy(name: str) -> None:
    """Every subject at its own parameters: within 1e-6 of the peak of its endpoint."""
    study, rng = STUDIES[name], np.random.default_rng(7)
    model = at_the_truth(name, study)
    problem = nl.Problem(model, nl.read_nonmem(study.draw(rng, 6)))
    eta = torch.as_tensor(
        rng.normal(size=(6, problem.q)) * [math.sqrt(study.omega[k]) for k in model.eta_names]
    )
    found = problem.natural(problem.predict(eta, problem.values(problem.start)).f).numpy()
    times = {k: np.array(t, dtype=float) for k, t in study.times.items()}
    for i in range(6):
        drawn = dict(zip(model.eta_names, eta[i].tolist(), strict=True))
        p = {k: v * math.exp(drawn.get(k, 0.0)) for k, v in study.theta.items()}
        wanted = study.course(p, study.doses[i % len(study.doses)], times)
        for dvid, endpoint in enumerate(wanted, start=1):
            rows = problem.population.table
            mine = rows[(rows["id"] == rows["id"].unique()[i]) & (rows["evid"] == 0)]
            here = np.flatnonzero(mine["dvid"] == dvid) if "dvid" in mine else np.arange(len(mine))
            peak = wanted[endpoint].max()
            np.testing.assert_allclose(found[i][here], wanted[endpoint], rtol=0, atol=1e-6 * peak)


@pytest.mark.skipif(find_spec("llvmlite") is None, reason="minutes without the compiled route")
@pytest.mark.parametrize("name", STUDIES)
def test_focei_recovers_the_truth(name: str) -> None:
    study = STUDIES[name]
    model = at_the_truth(name, study)
    if name in COARSE:
        model = model.with_solver(COARSE[name])
    gain = wald = 0.0
    parameters = 0
    for seed in SEEDS:
        data = nl.read_nonmem(study.draw(np.random.default_rng(seed)))
        truth = nl.Problem(model, data)
        found = nl.FOCEI(covariance="R").estimate(nl.Problem(elsewhere(model), data))
        assert found.converged, found.reason
        assert found.hessian_r is not None
        assert bool((found.hessian_r.diagonal() > 0).all()), found.reason
        gain += nl.FOCEI(evaluate=True).estimate(truth).ofv - found.ofv
        off = found.free - truth.start
        wald += float(off @ found.hessian_r @ off)
        parameters += truth.P
        z = off / torch.linalg.inv(found.hessian_r).diagonal().sqrt()
        assert float(z.abs().max()) < 4.5, dict(zip(truth.names, z.tolist(), strict=True))
    for statistic in (gain, wald):
        p = stats.chi2.cdf(statistic, parameters)
        assert 5e-4 < p < 1 - 5e-4, f"{statistic:.1f} for chi-square with {parameters} degrees of freedom"
