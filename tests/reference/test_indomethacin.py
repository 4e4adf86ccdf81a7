"""Indomethacin: nlme's biexponential fit, what it is, and where the maximum of the likelihood is.

nlme alternates between conditional modes and the maximum likelihood of the model linearised about them (Lindstrom &
Bates 1990, doi:10.2307/2532087). Its value is FOCE's at its own estimates; but its estimates are a fixed point of the
alternation, in which modes and Jacobians stand still, and not the maximum of that value.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from reference.published import NUMBERS, at, minus2ll
from scipy.optimize import minimize
from torch import exp

import nlmegen as nl

REFERENCE = NUMBERS["indomethacin"]["nlme"]
NAMES = ("a1", "lrc1", "a2", "lrc2")
LOG_2PI = math.log(2 * math.pi)


class Biexponential(nl.Model):
    """C = A1 exp(-exp(lrc1) t) + A2 exp(-exp(lrc2) t), through the micro constants of two compartments."""

    a1 = nl.Theta(2.8, lower=0)
    lrc1 = nl.Theta(0.8)
    a2 = nl.Theta(0.5, lower=0)
    lrc2 = nl.Theta(-1.3)
    iiv = nl.Omega(a1=0.3, lrc1=0.03, a2=0.01)
    cp = nl.Additive(0.08)
    structure = nl.TwoCompartment()

    def individual(self, theta, eta, cov):
        a1, a2 = theta.a1 + eta.a1, theta.a2 + eta.a2
        alpha, beta = exp(theta.lrc1 + eta.lrc1), exp(theta.lrc2)
        v = 25 / (a1 + a2)
        k21 = (a1 * beta + a2 * alpha) / (a1 + a2)
        k10 = alpha * beta / k21
        k12 = alpha + beta - k21 - k10
        return dict(cl=k10 * v, v=v, q=k12 * v, v2=k12 * v / k21)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def curve(b: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concentrations `[..., time]` at b = (A1, lrc1, A2, lrc2) and their derivatives `[..., time, 4]`."""
    a1, r1, a2, r2 = (b[..., None, k] for k in range(4))
    e1, e2 = np.exp(-np.exp(r1) * t), np.exp(-np.exp(r2) * t)
    slopes = np.stack(np.broadcast_arrays(e1, -a1 * np.exp(r1) * t * e1, e2, -a2 * np.exp(r2) * t * e2), -1)
    return a1 * e1 + a2 * e2, slopes


def linear_minus2ll(
    w: np.ndarray, x: np.ndarray, z: np.ndarray, beta: np.ndarray, omega: np.ndarray, s2: float
) -> float:
    """-2 log L of w = X beta + Z b + e, `w [subject, time]`, independent b of variances omega."""
    v = np.einsum("ijk,k,ilk->ijl", z, omega, z) + s2 * np.eye(w.shape[1])
    r = w - x @ beta
    quadratic = np.einsum("ij,ij->", r, np.linalg.solve(v, r[..., None])[..., 0])
    return float(np.linalg.slogdet(v)[1].sum() + quadratic + w.size * LOG_2PI)


@pytest.fixture(scope="module")
def data() -> nl.Population:
    return nl.load_data("indomethacin")


@pytest.fixture(scope="module")
def nlme(data: nl.Population) -> nl.Fit:
    return nl.fit(at(Biexponential(), REFERENCE), data, nl.FOCEI(evaluate=True))


def test_the_page_is_the_biexponential(data: nl.Population, nlme: nl.Fit) -> None:
    found = nlme.problem.predict(nlme.ebe, nlme.values).f.numpy()
    b = np.array([REFERENCE["theta"][k] for k in NAMES]) + np.pad(nlme.ebe.numpy(), ((0, 0), (0, 1)))
    np.testing.assert_allclose(found, curve(b, data.time.numpy())[0], rtol=1e-12)


def test_foce_has_nlmes_value_at_nlmes_estimates(nlme: nl.Fit) -> None:
    assert -2 * nlme.log_likelihood == pytest.approx(REFERENCE["minus2ll"], abs=1e-3)


def test_nlmes_estimates_are_a_fixed_point(data: nl.Population, nlme: nl.Fit) -> None:
    """The maximum of the linearised likelihood, modes and Jacobians held at nlme's estimates, is where they are."""
    beta = np.array([REFERENCE["theta"][k] for k in NAMES])
    modes = np.pad(nlme.ebe.numpy(), ((0, 0), (0, 1)))
    f, x = curve(beta + modes, data.time.numpy())
    z = x[..., :3]
    w = data.dv.numpy() - f + x @ beta + np.einsum("ijk,ik->ij", x, modes)
    start = np.concatenate([beta, np.log([*REFERENCE["omega"].values(), REFERENCE["sigma2"]])])

    def objective(free: np.ndarray) -> float:
        return linear_minus2ll(w, x, z, free[:4], np.exp(free[4:7]), math.exp(free[7]))

    assert objective(start) == pytest.approx(REFERENCE["minus2ll"], abs=1e-3)
    found = minimize(objective, start, method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(found.x, start, atol=5e-3)
    assert found.fun == pytest.approx(REFERENCE["minus2ll"], abs=1e-3)


def test_the_maximum_is_elsewhere(data: nl.Population, nlme: nl.Fit) -> None:
    """Three units of -2 log L better: without a random effect on lrc1 the model is linear in the rest, and exact."""
    found = nl.fit(Biexponential(), data, nl.FOCEI())
    assert found.converged
    assert float(found.model.omega[1, 1]) < 1e-6, "lrc1 has no variance at the maximum"
    theta = {k: float(found.model.theta[k]) for k in NAMES}
    assert -2 * found.log_likelihood == pytest.approx(-112.22950, abs=1e-4)
    # by quadrature, at both
    assert minus2ll(found.model, data) == pytest.approx(-2 * found.log_likelihood, abs=1e-5)
    assert minus2ll(nlme.model, data) == pytest.approx(-109.41074, abs=1e-4)

    def exact(free: np.ndarray) -> float:
        beta = free[:4]
        f, x = curve(beta, data.time.numpy()[:1])
        z = np.repeat(x[..., [0, 2]], 6, axis=0)
        w = data.dv.numpy() - f
        return linear_minus2ll(w, 0 * z, z, np.zeros(2), np.exp(free[4:6]), math.exp(free[6]))

    at_nlme = [REFERENCE["theta"][k] for k in NAMES]
    variances = [REFERENCE["omega"]["a1"], REFERENCE["omega"]["a2"], REFERENCE["sigma2"]]
    best = minimize(
        exact, np.concatenate([at_nlme, np.log(variances)]), method="BFGS", options={"gtol": 1e-5}
    )
    assert best.fun == pytest.approx(-2 * found.log_likelihood, abs=1e-5)
    np.testing.assert_allclose(best.x[:4], list(theta.values()), rtol=1e-3)
    # nlme's own nested fit, without that random effect, lies between the two
    assert best.fun < REFERENCE["without_lrc1_minus2ll"] < REFERENCE["minus2ll"]


def test_the_page_of_the_catalogue(data: nl.Population) -> None:
    """Against quadrature, and the subjects' own least-squares fits: geometric means within two standard errors."""
    found = nl.fit(nl.load_model("indomethacin"), data, nl.FOCEI())
    assert found.converged
    assert not any("boundary" in note for note in found.notes)
    assert minus2ll(found.model, data) == pytest.approx(-2 * found.log_likelihood, abs=1)
    t, dv = data.time.numpy(), data.dv.numpy()
    alone = []
    for i in range(6):

        def loss(b: np.ndarray, i: int = i) -> float:
            f = curve(np.array([math.exp(b[0]), b[1], math.exp(b[2]), b[3]]), t[i])[0]
            return float(((np.log(dv[i]) - np.log(f)) ** 2).sum())

        b = minimize(loss, [1.0, 0.8, -0.8, -1.3], method="BFGS").x
        area = math.exp(b[0] - b[1]) + math.exp(b[2] - b[3])
        alone.append([math.log(25 / area), math.log(25 / (math.exp(b[0]) + math.exp(b[2])))])
    for k, name in enumerate(("tvcl", "tvv")):
        row = found.parameters.loc[name]
        assert math.exp(np.mean(alone, axis=0)[k]) == pytest.approx(row["estimate"], abs=2 * row["se"]), name
