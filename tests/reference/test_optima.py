"""Every method that claims maximum likelihood ends at the optima that two independent quadrature codes found.

SAEM's optimum is judged by quadrature at its estimates. (The optima themselves: test_theophylline, test_phenobarbital.)
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from inference.pages import TheophyllineAdditive
from reference.published import NUMBERS, minus2ll

import nlmegen as nl

CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "theophylline, additive": (
        TheophyllineAdditive,
        "theophylline",
        NUMBERS["theophylline"]["quadrature"]["additive"],
    ),
    "theophylline, combined": (
        lambda: nl.load_model("theophylline"),
        "theophylline",
        NUMBERS["theophylline"]["quadrature"]["combined"],
    ),
    "phenobarbital": (
        lambda: nl.load_model("phenobarbital"),
        "phenobarbital",
        NUMBERS["phenobarbital"]["quadrature"],
    ),
}


@pytest.mark.parametrize("title", list(CASES))
def test_quadrature_ends_at_the_optimum(title: str) -> None:
    page, name, numbers = CASES[title]
    found = nl.fit(page(), nl.load_data(name), nl.AGQ(covariance=None))
    assert found.converged
    assert -2 * found.log_likelihood == pytest.approx(numbers["minus2ll"], abs=3e-3)
    # to three of the five digits printed: the nodes of the three codes are not laid alike
    for name, value in numbers["log_theta"].items():
        assert math.log(float(found.model.theta[name])) == pytest.approx(value, abs=1e-3), name
    for k, name in enumerate(found.model.eta_names):
        assert float(found.model.omega[k, k]) ** 0.5 == pytest.approx(numbers["omega_sd"][name], abs=1e-3), (
            name
        )
    for name, value in numbers["sigma"].items():
        assert float(found.model.sigma[name]) == pytest.approx(value, abs=1e-3), name


@pytest.mark.parametrize(
    ("method", "within", "title"),
    [
        (nl.SAEM, 0.1, "theophylline, combined"),
        (nl.SAEM, 0.1, "phenobarbital"),
        (nl.Importance, 0.02, "theophylline, additive"),
        (nl.Importance, 0.02, "phenobarbital"),
    ],
)
def test_sampling_methods_end_at_the_optimum(method: Any, within: float, title: str) -> None:
    page, name, numbers = CASES[title]
    data = nl.load_data(name)
    found = nl.fit(page(), data, method(covariance=None, seed=3))
    assert found.converged
    over = minus2ll(found.model, data) - numbers["minus2ll"]
    assert -3e-3 < over < within
