"""The pages with a learned rate and a learned effect: gradients through the solvers, and fits to simulated patients."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from problems import F64

import nlmegen as nl
from nlmegen.inference.conditional import FOCEIObjective

TIMES = (0.5, 4.0, 12.0, 24.0, 36.0, 48.0, 60.0)


def cohort(
    page: nl.Model, n: int, doses: tuple[float, ...], times: tuple[float, ...], seed: int
) -> nl.Population:
    """n patients a dose."""
    parts = []
    for k, dose in enumerate(doses):
        table = nl.simulate(page, nl.Cohort(n, nl.Regimen(dose), times=times), seed=10 * seed + k)
        parts.append(table.assign(id=table["id"] + k * n))
    return nl.read_nonmem(pd.concat(parts, ignore_index=True))


@pytest.fixture(scope="module")
def eliminated() -> nl.Population:
    return cohort(nl.load_model("michaelis_menten"), 30, (75.0, 150.0, 300.0), TIMES, 1)


@pytest.fixture(scope="module")
def responding() -> nl.Population:
    truth = nl.load_model("turnover_inhibited_production").with_values(omega={"kout": 1e-6})
    return cohort(truth, 20, (30.0, 100.0, 300.0), (0.5, 2.0, 4.0, 8.0, 12.0, 24.0, 36.0), 1)


@pytest.mark.parametrize("route", ["compiled", "torch"])
@pytest.mark.parametrize("name", ["michaelis_menten_neural", "indirect_response_neural"])
def test_the_gradient_in_the_weights_passes_the_solver(name, route, eliminated, responding) -> None:
    if route == "compiled":
        pytest.importorskip("llvmlite")
    model = nl.load_model(name).with_solver(
        nl.Solver(route=route, rtol=1e-9 if route == "compiled" else 1e-7)
    )
    whole = nl.Problem(model, eliminated if name.startswith("mich") else responding)
    problem = whole.select(torch.tensor([0, 40] if route == "compiled" else [40]))
    free = problem.start
    found = FOCEIObjective(problem)(free[None], scores=True, weights=True)

    def value(weights):
        return float(FOCEIObjective(problem.with_weights(weights))(free[None], found.eta, near=True).total[0])

    scale = float(found.weight_gradient.abs().max())
    for k in (0, len(problem.weights) - 1):
        move = torch.zeros_like(problem.weights)
        move[k] = 1e-3
        difference = (value(problem.weights + move) - value(problem.weights - move)) / 2e-3
        assert float(found.weight_gradient[0, k]) == pytest.approx(difference, rel=1e-4, abs=2e-5 * scale)


METHODS = [
    pytest.param(nl.FOCEI(covariance=None), id="focei"),
    pytest.param(nl.ELBO(seed=1, steps=100, width=16, batch=64, draws=40, covariance=None), id="elbo"),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_network_learns_michaelis_menten_elimination(method, eliminated) -> None:
    truth = nl.load_model("michaelis_menten")
    known = nl.fit(truth, eliminated, nl.FOCEI(covariance=None))
    fit = nl.fit(nl.load_model("michaelis_menten_neural"), eliminated, method)
    assert fit.converged, fit.reason
    c = torch.linspace(0.2, 8.0, 40, dtype=F64)
    rate = fit.model.theta.start * c * torch.exp(fit.model.net(torch.log1p(c)))
    theta = known.model.theta
    assert float((rate / (theta.tvvmax * c / (theta.tvkm + c)) - 1).abs().max()) < 0.06
    ratio = (fit.model.omega.diagonal() / known.model.omega.diagonal()).sqrt()
    assert float((ratio - 1).abs().max()) < 0.1
    assert not any("absorb" in note for note in fit.notes)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_network_learns_an_effect_that_differs_between_patients(method, responding) -> None:
    """Truth: 1 - 0.9 C / (ec50 + C), ec50 log-normal around 1 with SD 0.3."""
    fit = nl.fit(nl.load_model("indirect_response_neural"), responding, method)
    assert fit.converged, fit.reason
    c = torch.tensor([0.1, 0.3, 1.0, 3.0, 6.0], dtype=F64)
    learned = [1 / (1 + c * torch.exp(fit.model.net(torch.log1p(c), z))) for z in (-1.0, 0.0, 1.0)]
    true = [1 - 0.9 * c / (ec50 + c) for ec50 in torch.exp(torch.tensor([-0.3, 0.0, 0.3], dtype=F64))]
    if float(learned[0][2]) > float(learned[2][2]):
        true.reverse()  # the sign of the latent number is the network's own choice
    torch.testing.assert_close(learned[1], true[1], atol=0.04, rtol=0.0)
    for a, b in zip(learned, true, strict=True):
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.0)
    spread, wanted = float(learned[0][2] - learned[2][2]), float(true[0][2] - true[2][2])
    assert spread == pytest.approx(wanted, rel=0.35)
