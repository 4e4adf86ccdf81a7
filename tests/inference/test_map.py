"""Maximum a posteriori: every method that honours priors ends at one point, with one curvature."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.distributions import HalfNormal, LogNormal

import nlmegen as nl


class Informed(type(nl.load_model("theophylline"))):
    """Theophylline, the absorption known from elsewhere."""

    tvka = nl.Theta(1.5, lower=0, prior=LogNormal(log(2.0), 0.2))
    iiv = nl.Omega(ka=0.4, cl=0.1, v=0.05, prior={"ka": HalfNormal(1.0)})


@pytest.fixture(scope="module")
def exact() -> nl.Fit:
    return nl.fit(Informed(), nl.load_data("theophylline"), nl.AGQ())


def penalised(fit: nl.Fit) -> float:
    """-2 log posterior of a fit's estimates, by one quadrature."""
    return -2 * nl.quadrature(fit.problem, fit.values, 13).total + float(
        fit.problem.penalty(fit.estimate.free)
    )


METHODS = [
    nl.SAEM(seed=1),
    nl.Importance(seed=1),
    pytest.param(nl.ELBO(seed=1, covariance="R"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_largest_posterior_density_is_found(method, exact: nl.Fit) -> None:
    fit = nl.fit(Informed(), nl.load_data("theophylline"), method)
    assert fit.converged
    assert penalised(fit) == pytest.approx(penalised(exact), abs=0.02)
    assert fit.estimate.penalty == pytest.approx(float(fit.problem.penalty(fit.estimate.free)))
    assert fit.estimate.covariance_kind == "R"
    assert any("MAP" in note for note in fit.notes)
    # the prior alone has the precision 25 of log ka, and is half of what is known of it
    assert fit.estimate.hessian_r is not None
    own = float(fit.estimate.hessian_r[0, 0])
    assert own == pytest.approx(float(exact.estimate.hessian_r[0, 0]), rel=0.03)
    assert torch.allclose(
        torch.tensor(fit.parameters["se"].tolist()), torch.tensor(exact.parameters["se"].tolist()), rtol=0.05
    )


def test_the_prior_moves_the_estimate_towards_itself(exact: nl.Fit) -> None:
    plain = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.AGQ(covariance=None))
    ka = [float(f.values.theta["tvka"]) for f in (plain, exact)]
    assert ka[0] < ka[1] < 2.0
    assert (
        penalised(exact) < -2 * plain.log_likelihood + float(exact.problem.penalty(plain.estimate.free)) - 0.1
    )
