"""Whole fits of a linear page against the maximum of its closed form: estimates, standard errors, posteriors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ladder.comparisons import close
from ladder.linear_gaussian import by_hand
from problems import (
    Straight,
    exact,
    exact_hessian,
    exact_scores,
    maximum_likelihood,
    straight_problem,
    straight_table,
)
from scipy.optimize import minimize

import nlmegen as nl
from nlmegen import Status


def natural_errors(problem: nl.Problem, free: torch.Tensor) -> torch.Tensor:
    """Sandwich standard errors of the natural parameters, all from the closed form."""
    bread = torch.linalg.inv(-exact_hessian(problem, free))
    score = exact_scores(problem, free)
    slope = torch.autograd.functional.jacobian(lambda x: by_hand(problem, x), free)
    return (slope @ bread @ (score.mT @ score) @ bread @ slope.mT).diagonal().sqrt()


@pytest.mark.parametrize(("n", "seed"), [(60, 2), (60, 5), (150, 3)])
def test_focei_is_maximum_likelihood(n: int, seed: int) -> None:
    problem = straight_problem(n, seed)
    best = maximum_likelihood(problem)
    fit = nl.fit(problem.model, problem.population, nl.FOCEI())
    assert fit.converged
    close(fit.log_likelihood, exact(problem, best).total, 1e-8)
    wanted = natural_errors(problem, best)
    estimate = torch.tensor(fit.parameters["estimate"].to_numpy())
    assert float(((estimate - by_hand(problem, best)).abs() / wanted).max()) < 2e-3
    close(torch.tensor(fit.parameters["se"].to_numpy()) / wanted, torch.ones(problem.P), 0.01)


def test_a_correlation_of_one_is_the_supremum_of_the_closed_form() -> None:
    """Some samples put the maximum at the edge; the closed form, followed there by BFGS, says how high it is."""
    problem = straight_problem(60, seed=3)

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(x, requires_grad=True)
        value = -exact(problem, free).log_likelihood.sum()
        (gradient,) = torch.autograd.grad(value, free)
        return value.item(), gradient.numpy()

    top = -minimize(objective, problem.start.numpy(), jac=True, method="BFGS").fun
    fit = nl.fit(problem.model, problem.population, nl.FOCEI())
    assert fit.log_likelihood == pytest.approx(top, abs=1e-4)
    omega = fit.model.omega
    assert float(omega[0, 1] / (omega[0, 0] * omega[1, 1]).sqrt()) > 0.999
    assert "omega.s" in fit.reason
    assert "boundary" in fit.reason
    assert fit.parameters["se"].isna().tolist() == [name == "omega.s" for name in fit.parameters.index]


def test_a_fit_in_other_units() -> None:
    """Theophylline in ug and minutes: the OFV moves by 2 n log 1000, estimates and their errors scale."""
    model, data = nl.load_model("theophylline"), nl.load_data("theophylline")
    table = data.to_table()
    other = nl.read_nonmem(
        table.assign(amt=table["amt"] * 1000, dv=table["dv"] * 1000, time=table["time"] * 60)
    )
    factor = {"tvka": 1 / 60, "tvcl": 1 / 60, "cp.additive": 1000.0}
    start = model.with_values(
        theta={k: float(model.theta[k]) * factor.get(k, 1.0) for k in model.theta_names},
        sigma={k: float(model.sigma[k]) * factor.get(k, 1.0) for k in model.sigma_names},
    )
    a, b = nl.fit(model, data, nl.FOCEI()), nl.fit(start, other, nl.FOCEI())
    close(b.ofv - a.ofv, 2 * 132 * math.log(1000), 1e-8)
    scale = torch.tensor([factor.get(name, 1.0) for name in a.parameters.index])
    for column, tolerance in (("estimate", 1e-4), ("se", 2e-3)):
        x, y = (torch.tensor(fit.parameters[column].to_numpy()) for fit in (a, b))
        close(y / (x * scale), torch.ones_like(x), tolerance)
    close(b.condition_number / a.condition_number, 1.0, 5e-3)


@pytest.fixture(scope="module")
def elbo() -> nl.Fit:
    return nl.fit(Straight(), nl.read_nonmem(straight_table(60, seed=5)), nl.ELBO(seed=1))


@pytest.mark.slow
def test_elbo_is_maximum_likelihood(elbo: nl.Fit) -> None:
    problem = straight_problem(60, seed=5)
    assert elbo.converged, elbo.reason
    best, here = exact(problem, maximum_likelihood(problem)), exact(problem, elbo.estimate.free)
    assert 2 * (best.total - here.total) < 0.02, "the estimate loses likelihood"
    assert elbo.ofv_se is not None
    assert abs(elbo.log_likelihood - here.total) < 2 * elbo.ofv_se + 1e-3
    # the ladder, in its order and under the closed form; these posteriors are Gaussian, so little is lost
    assert elbo.bounds is not None
    assert here.total - 1.0 < elbo.bounds["elbo"] < elbo.bounds["iwelbo"] + 0.05
    assert elbo.bounds["iwelbo"] < here.total + 2 * elbo.ofv_se + 1e-3
    sd = here.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((elbo.eta_mean - here.mean) / sd).abs().max()) < 0.05
    close(elbo.eta_sd / sd, torch.ones_like(sd), 0.1)
    poor = [i for i, s in enumerate(elbo.status) if Status.LOW_ESS in Status(int(s))]
    assert not poor, f"weights that are all alike are no failure, yet patients {poor} are flagged"


@pytest.mark.slow
def test_elbo_standard_errors(elbo: nl.Fit) -> None:
    wanted = natural_errors(straight_problem(60, seed=5), elbo.estimate.free)
    found = torch.tensor(elbo.parameters["se"].to_numpy())
    close(found / wanted, torch.ones_like(wanted), 0.1)


@pytest.mark.slow
def test_the_encoder_knows_new_patients(elbo: nl.Fit) -> None:
    new = nl.Problem(elbo.model, nl.read_nonmem(straight_table(40, seed=77)))
    truth, posterior = exact(new), elbo.posterior(new.population)
    sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert float(((posterior.mean - truth.mean) / sd).abs().max()) < 0.15
    assert float(posterior.ess.median()) > 0.8 * posterior.k
    assert float(posterior.log_likelihood.sum()) == pytest.approx(truth.total, abs=0.5)
    for word, share in zip(posterior.verdict, posterior.ess / posterior.k, strict=True):
        assert word != "refine" or float(share) < 0.5, (
            f"effective sample size {float(share):.0%}, and yet {word}"
        )
