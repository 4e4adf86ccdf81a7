"""Phenobarbital: NONMEM's standard errors, quadrature, nlme. (OFV and estimates: tests/inference/test_foce.py.)"""

from __future__ import annotations

import math

import pytest
from reference.published import NUMBERS, at, minus2ll, moved
from torch import exp, log

import nlmegen as nl
from nlmegen.inference.agq import AGQ

REFERENCE = NUMBERS["phenobarbital"]


@pytest.fixture(scope="module")
def data() -> nl.Population:
    return nl.load_data("phenobarbital")


@pytest.fixture(scope="module")
def sandwich(data: nl.Population) -> nl.Fit:
    return nl.fit(nl.load_model("phenobarbital"), data, nl.FOCEI())


def test_nonmem_standard_errors(sandwich: nl.Fit) -> None:
    numbers = REFERENCE["nonmem"]
    assert sandwich.estimate.covariance_kind == "sandwich"
    se = sandwich.parameters["se"]
    for name, value in numbers["se"].items():
        assert se[name] == pytest.approx(value, rel=0.01), name
    sigma = sandwich.parameters.loc["cp.proportional"]
    # NONMEM's SIGMA is a variance: d sigma^2 = 2 sigma d sigma
    assert 2 * sigma["estimate"] * sigma["se"] == pytest.approx(numbers["se_sigma2"], rel=0.01)
    assert sandwich.condition_number == pytest.approx(numbers["condition_number"], rel=0.01)


def test_standard_errors_of_the_plain_hessian(sandwich: nl.Fit, data: nl.Population) -> None:
    numbers = REFERENCE["hessian"]
    plain = nl.fit(sandwich.model, data, nl.FOCEI(evaluate=True, covariance="R"))
    assert plain.parameters.loc["asphyxia", "se"] == pytest.approx(numbers["se_asphyxia"], abs=1e-4)
    assert plain.condition_number == pytest.approx(numbers["condition_number"], rel=0.01)
    assert plain.condition_number < sandwich.condition_number


def test_the_objective_at_nonmems_estimates(data: nl.Population) -> None:
    """FOCEI is evaluated there, so that the outer search has no part in it; six digits of the estimates leave 1e-6."""
    numbers = REFERENCE["nonmem"]
    model = at(nl.load_model("phenobarbital"), numbers)
    found = nl.fit(model, data, nl.FOCEI(evaluate=True))
    assert found.ofv == pytest.approx(numbers["ofv"], abs=2e-5)
    assert minus2ll(model, data) == pytest.approx(REFERENCE["quadrature"]["at_nonmem_minus2ll"], abs=2e-3)


def test_the_quadrature_optimum(data: nl.Population) -> None:
    numbers = REFERENCE["quadrature"]
    model = at(nl.load_model("phenobarbital"), numbers)
    best = minus2ll(model, data)
    assert best == pytest.approx(numbers["minus2ll"], abs=2e-3)
    for name in model.layout.names:
        there = [minus2ll(moved(model, name, step), data) for step in (-0.1, 0.1)]
        assert min(there) > best + 0.02, f"{name} moved: {there}, at the optimum {best}"


def test_agq_ends_at_the_quadrature_optimum(data: nl.Population) -> None:
    numbers = REFERENCE["quadrature"]
    found = nl.fit(nl.load_model("phenobarbital"), data, AGQ())
    assert found.converged
    assert -2 * found.log_likelihood == pytest.approx(numbers["minus2ll"], abs=2e-3)
    for name, value in numbers["log_theta"].items():
        assert math.log(float(found.model.theta[name])) == pytest.approx(value, abs=1e-4), name
    assert float(found.model.theta["asphyxia"]) == pytest.approx(numbers["theta"]["asphyxia"], abs=1e-4)
    for k, name in enumerate(found.model.eta_names):
        assert float(found.model.omega[k, k]) ** 0.5 == pytest.approx(numbers["omega_sd"][name], abs=1e-4), (
            name
        )
    assert float(found.model.sigma["cp.proportional"]) == pytest.approx(0.11507, abs=2e-5)


class LogWeight(nl.Model):
    """Both parameters a power of weight, additive error: nlme's Phenobarb example."""

    tvcl = nl.Theta(0.005, lower=0)
    tvv = nl.Theta(1.0, lower=0)
    pcl = nl.Theta(1.0)
    pv = nl.Theta(1.0)
    iiv = nl.Omega(cl=0.04, v=0.04)
    cp = nl.Additive(2.5)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(theta.pcl * log(cov.wt) + eta.cl),
            v=theta.tvv * exp(theta.pv * log(cov.wt) + eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def test_nlme(data: nl.Population) -> None:
    numbers = REFERENCE["nlme"]
    found = nl.fit(LogWeight(), data, nl.FOCEI(covariance=None))
    assert found.converged
    for name, value in numbers["log_theta"].items():
        assert float(found.model.theta[name]) == pytest.approx(math.exp(value), rel=0.02), name
    for name, value in numbers["theta"].items():
        assert float(found.model.theta[name]) == pytest.approx(value, rel=0.02), name
    for k, name in enumerate(found.model.eta_names):
        assert float(found.model.omega[k, k]) ** 0.5 == pytest.approx(numbers["omega_sd"][name], rel=0.05), (
            name
        )
    assert float(found.model.sigma["cp.additive"]) == pytest.approx(numbers["sigma"], rel=0.02)
