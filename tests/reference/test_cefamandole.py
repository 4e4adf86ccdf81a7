"""Cefamandole: two compartments and infusions, against the textbook's formula and nlme.

We know of no published fit of these data with its likelihood, hence a run of nlme's own.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference.published import NUMBERS, at, minus2ll

import nlmegen as nl

REFERENCE = NUMBERS["cefamandole"]["nlme"]


class Additive(type(nl.load_model("cefamandole"))):
    """The page with additive error, where FOCEI is FOCE."""

    cp = nl.Additive(3.5)


@pytest.fixture(scope="module")
def data() -> nl.Population:
    return nl.load_data("cefamandole")


def test_the_infusion_is_the_textbooks(data: nl.Population) -> None:
    model = at(Additive(), REFERENCE)
    problem = nl.Problem(model, data)
    nothing = problem.values(problem.start).omega.new_zeros(6, 4)
    found = problem.predict(nothing, problem.values(problem.start)).f[0].numpy()
    cl, v, q, v2 = (math.exp(REFERENCE["log_theta"][k]) for k in ("tvcl", "tvv", "tvq", "tvv2"))
    alpha, beta = np.sort(-np.linalg.eigvals(np.array([[-(cl + q) / v, q / v2], [q / v, -q / v2]])))[::-1]
    t = data.time[0].numpy()
    wanted = sum(
        1.5
        * share
        / v
        / rate
        * (1 - np.exp(-rate * np.minimum(t, 10)))
        * np.exp(-rate * np.maximum(t - 10, 0))
        for share, rate in (
            ((alpha - q / v2) / (alpha - beta), alpha),
            ((q / v2 - beta) / (alpha - beta), beta),
        )
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-11)


def test_foce_has_nlmes_value_at_nlmes_estimates(data: nl.Population) -> None:
    found = nl.fit(at(Additive(), REFERENCE), data, nl.FOCEI(evaluate=True))
    assert -2 * found.log_likelihood == pytest.approx(REFERENCE["minus2ll"], abs=1e-3)


def test_the_maximum_is_near_nlmes_fixed_point(data: nl.Population) -> None:
    found = nl.fit(Additive(), data, nl.FOCEI())
    assert found.converged
    assert REFERENCE["minus2ll"] - 0.1 < -2 * found.log_likelihood < REFERENCE["minus2ll"]
    for name, value in REFERENCE["log_theta"].items():
        row = found.parameters.loc[name]
        assert row["estimate"] == pytest.approx(math.exp(value), abs=0.15 * row["se"]), name
    for k, name in enumerate(found.model.eta_names):
        assert float(found.model.omega[k, k]) ** 0.5 == pytest.approx(REFERENCE["omega_sd"][name], rel=0.05)


def test_the_page_of_the_catalogue(data: nl.Population) -> None:
    """Against quadrature, and the clearance that areas under the observed curves give."""
    found = nl.fit(nl.load_model("cefamandole"), data, nl.FOCEI())
    assert found.converged
    assert not any("boundary" in note for note in found.notes)
    # 5 nodes have converged to .02; Laplace with the exact Hessian is .4 off, FOCEI's expected one 2.1
    assert minus2ll(found.model, data, 5) == pytest.approx(minus2ll(found.model, data, 1), abs=0.6)
    assert minus2ll(found.model, data, 5) == pytest.approx(-2 * found.log_likelihood, abs=2.5)
    t, dv = data.time.numpy(), data.dv.numpy()
    # linear from 0 to the peak at the end of the infusion, log-linear after it, the last slope for ever
    ratio = np.log(dv[:, :-1] / dv[:, 1:])
    area = 5 * dv[:, 0] + ((dv[:, :-1] - dv[:, 1:]) * np.diff(t) / ratio).sum(1)
    area += dv[:, -1] * (t[:, -1] - t[:, -3]) / np.log(dv[:, -3] / dv[:, -1])
    clearance = np.exp(np.log(15 / area).mean())
    row = found.parameters.loc["tvcl"]
    assert clearance == pytest.approx(row["estimate"], abs=row["se"])
