"""The classic methods on observations that are not Gaussian, not measured or not independent: modes, Laplace's
approximation, quadrature and FOCEI against formulas written out in numpy and scipy.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from inference.kinds import Counts, Events, Grades, Limited, Scattered, log_p, maximum, minus2ll, table
from problems import F64
from scipy import optimize, stats

import nlmegen as nl
from nlmegen.inference.conditional import FOCEIObjective, FOCEObjective
from nlmegen.inference.ebe import modes
from nlmegen.inference.firstorder import FOObjective
from nlmegen.inference.nodes import LaplaceObjective, QuadratureObjective
from nlmegen.inference.objective import Objective

KINDS = [Counts, Scattered, Events, Grades, Limited]
LOG_2PI = math.log(2 * math.pi)


def words(problem: nl.Problem, free: torch.Tensor) -> dict[str, float]:
    """Natural parameters as `inference.kinds` calls them."""
    values = problem.values(free)
    out = {name: float(x) for name, x in values.theta.items()}
    out["sd"] = float(values.omega[0, 0].sqrt())
    return out | {name.split(".")[1]: float(x) for name, x in values.sigma.items()}


def evaluated(objective: Objective, free: torch.Tensor) -> tuple[float, np.ndarray]:
    at = objective(free[None], scores=True)
    assert bool(at.converged.all())
    return float(at.ofv[0]), at.gradient[0].numpy()


def differences(function, free: torch.Tensor, step: float) -> np.ndarray:
    """The gradient by central differences of fourth order."""
    out = []
    for k in range(len(free)):
        unit = torch.zeros_like(free)
        unit[k] = step
        near, far = (function(free + m * unit) - function(free - m * unit) for m in (1, 2))
        out.append((8 * near - far) / (12 * step))
    return np.array(out)


@pytest.mark.parametrize("kind", KINDS)
def test_quadrature_is_the_likelihood_and_its_gradient(kind: type[nl.Model]) -> None:
    frame = table(kind, 12)
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    free = problem.start + 0.1
    value, gradient = evaluated(QuadratureObjective(problem, 31), free)
    exact = minus2ll(kind, words(problem, free), frame)
    assert value + problem.n_gaussian * LOG_2PI == pytest.approx(exact, abs=1e-5)
    truth = differences(lambda x: minus2ll(kind, words(problem, x), frame), free, 1e-3)
    np.testing.assert_allclose(gradient, truth, atol=2e-4, rtol=1e-5)
    assert nl.quadrature(problem, problem.values(free), 31).total == pytest.approx(-0.5 * exact, abs=1e-5)


def laplace(kind: type[nl.Model], p: dict[str, float], frame: pd.DataFrame) -> tuple[float, list[float]]:
    """-2 log of Laplace's approximation and the modes, from the density alone."""
    seen = frame[frame.EVID == 0]
    total, found = 0.0, []
    for _, own in seen.groupby("ID"):
        y = own.DV.to_numpy()
        cens = own.CENS.to_numpy() if "CENS" in own else np.zeros(len(y), dtype=int)

        def depth(z: np.ndarray, y: np.ndarray = y, cens: np.ndarray = cens) -> np.ndarray:
            return -log_p(kind, p, np.atleast_1d(z), y, cens) + 0.5 * np.atleast_1d(z) ** 2

        best = optimize.minimize_scalar(lambda z: float(depth(z)[0]), bracket=(-1.0, 1.0), tol=1e-12).x
        h = 1e-2
        stencil = depth(best + h * np.arange(-3, 4))
        weights = np.array([2, -27, 270, -490, 270, -27, 2]) / 180.0
        slopes = np.array([-1, 9, -45, 0, 45, -9, 1]) / 60.0
        bend = float(weights @ stencil) / h**2
        best = best - float(slopes @ stencil) / h / bend
        total += 2 * float(depth(best)[0]) + math.log(bend)
        found.append(best)
    return total, found


@pytest.mark.parametrize("kind", KINDS)
def test_laplace_and_modes_against_an_objective_of_its_own(kind: type[nl.Model]) -> None:
    frame = table(kind, 10, seed=2)
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    free = problem.start + 0.1
    value, gradient = evaluated(LaplaceObjective(problem), free)
    exact, z = laplace(kind, words(problem, free), frame)
    assert value + problem.n_gaussian * LOG_2PI == pytest.approx(exact, abs=1e-5)
    eta, status = modes(problem, problem.values(free))
    np.testing.assert_allclose(eta.flatten(), np.array(z) * words(problem, free)["sd"], atol=1e-6)
    assert not bool(status.any())
    truth = differences(lambda x: laplace(kind, words(problem, x), frame)[0], free, 2e-3)
    np.testing.assert_allclose(gradient, truth, atol=2e-4, rtol=1e-5)


class Outliers(Limited):
    """Residuals with heavy tails."""

    cp = nl.StudentT(0.3, 0.2, df=4)


def test_gradients_with_heavy_tails_are_differences_of_the_objective() -> None:
    frame = table(Limited, 10)
    frame.loc[frame.CENS == 1, "DV"] = 8.0  # far off
    problem = nl.Problem(Outliers(), nl.read_nonmem(frame.drop(columns="CENS")))
    free = problem.start + 0.1
    for objective in (LaplaceObjective(problem), QuadratureObjective(problem, 15)):
        value, gradient = evaluated(objective, free)
        assert math.isfinite(value)
        truth = differences(lambda x, o=objective: float(o(x[None]).ofv[0]), free, 1e-4)
        np.testing.assert_allclose(gradient, truth, atol=1e-5, rtol=1e-6)


class Noise(nl.Model):
    """A bolus; the size of the residual error has a random effect."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.15, noise=0.2, cov=[0.03])
    cp = nl.Combined(0.1, 0.2)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * torch.exp(eta.cl), v=theta.tvv, noise=torch.exp(eta.noise))

    def observe(self, t, a, p):
        return dict(cp=nl.Predicted(a.central / p.v, scale=p.noise))


class Pair(nl.Model):
    """A bolus; parent and metabolite-like endpoint with correlated residuals."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    share = nl.Theta(0.4, lower=0)
    iiv = nl.Omega(cl=0.15, v=0.1)
    parent = nl.Combined(0.1, 0.2)
    other = nl.Additive(0.3)
    link = nl.Correlation("parent", "other", 0.6)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * torch.exp(eta.cl), v=theta.tvv * torch.exp(eta.v), share=theta.share)

    def observe(self, t, a, p):
        return dict(parent=a.central / p.v, other=p.share * a.central / p.v)


class Both(Pair):
    """And the size of the residuals of one of them has a random effect."""

    iiv = nl.Omega(cl=0.15, v=0.1, noise=0.2)

    def individual(self, theta, eta, cov):
        return super().individual(theta, eta, cov) | dict(noise=torch.exp(eta.noise))

    def observe(self, t, a, p):
        out = super().observe(t, a, p)
        return out | dict(parent=nl.Predicted(out["parent"], scale=p.noise))


def simulated(kind: type[nl.Model], n: int = 6) -> nl.Problem:
    """Records at four times, of both endpoints where there are two, not all of them of both."""
    rows = []
    for i in range(n):
        rows.append((i + 1, 0.0, 100.0, 0.0, 1, 1))
        for t in (0.5, 1.5, 3.0, 6.0)[: 3 + i % 2]:
            rows.append((i + 1, t, 0.0, 1.0, 0, 1))
            if kind is not Noise and not (i == 0 and t == 1.5):
                rows.append((i + 1, t, 0.0, 1.0, 0, 2))
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID", "DVID"])
    blank = nl.Problem(kind(), nl.read_nonmem(frame))
    values, generator = blank.values(blank.start), torch.Generator().manual_seed(4)
    eta = torch.randn(n, blank.q, generator=generator, dtype=F64) @ values.factor.mT
    dv = blank.simulate_dv(blank.predict(eta, values).f, values, generator)
    frame.loc[frame.EVID == 0, "DV"] = dv[blank.mask > 0].numpy()
    return nl.Problem(kind(), nl.read_nonmem(frame))


class Dense:
    """NONMEM's first-order objectives of these pages by dense matrices, written out for one subject at a time."""

    def __init__(self, problem: nl.Problem, free: torch.Tensor) -> None:
        self.problem, values = problem, problem.values(free)
        self.theta = {name: float(x) for name, x in values.theta.items()}
        self.sigma = {name: float(x) for name, x in values.sigma.items()}
        self.omega = values.omega.numpy()
        self.names = problem.eta_names

    def mean(self, n: int, eta: np.ndarray) -> np.ndarray:
        e = dict(zip(self.names, eta, strict=True))
        v = self.theta["tvv"] * math.exp(e.get("v", 0.0))
        seen = self.problem.observed[n].numpy()
        t = self.problem.time[n].numpy()[seen]
        f = 100.0 / v * np.exp(-self.theta["tvcl"] * math.exp(e["cl"]) / v * t)
        second = self.second(n)
        return np.where(second, self.theta.get("share", 1.0) * f, f)

    def second(self, n: int) -> np.ndarray:
        return self.problem.population.dvid[n].numpy()[self.problem.observed[n].numpy()] == 1

    def residual(self, n: int, f: np.ndarray, eta: np.ndarray) -> np.ndarray:
        """The covariance of the residuals."""
        e = dict(zip(self.names, eta, strict=True))
        second, t = self.second(n), self.problem.time[n].numpy()[self.problem.observed[n].numpy()]
        first = "parent" if "parent.additive" in self.sigma else "cp"
        sd = np.hypot(self.sigma[f"{first}.additive"], self.sigma[f"{first}.proportional"] * f)
        sd = np.where(second, self.sigma.get("other.additive", 0.0), sd * math.exp(e.get("noise", 0.0)))
        out = np.diag(sd**2)
        for i in range(len(t)):
            for j in range(len(t)):
                if t[i] == t[j] and second[i] != second[j]:
                    out[i, j] = self.sigma["link.correlation"] * sd[i] * sd[j]
        return out

    def depth(self, n: int, eta: np.ndarray, held: np.ndarray | None = None) -> float:
        """-2 log p(y, eta) without log(2 pi)."""
        f = self.mean(n, eta)
        r = self.residual(n, f, eta) if held is None else held
        e = self.problem.y[n].numpy()[self.problem.observed[n].numpy()] - f
        prior = eta @ np.linalg.solve(self.omega, eta) + np.linalg.slogdet(self.omega)[1]
        return float(e @ np.linalg.solve(r, e) + np.linalg.slogdet(r)[1] + prior)

    def jacobians(self, n: int, eta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h, f, r = 1e-5, [], []
        for k in range(len(eta)):
            ends = [eta + s * h * np.eye(len(eta))[k] for s in (1, -1)]
            a, b = (self.mean(n, x) for x in ends)
            f.append((a - b) / (2 * h))
            ra, rb = (self.residual(n, m, x) for m, x in zip((a, b), ends, strict=True))
            r.append((ra - rb) / (2 * h))
        return np.array(f), np.array(r)

    def focei(self, interaction: bool = True) -> float:
        total, zero = 0.0, np.zeros(len(self.names))
        for n in range(self.problem.n_subjects):
            held = None if interaction else self.residual(n, self.mean(n, zero), zero)
            start = zero
            for _ in range(3):
                start = optimize.minimize(lambda x, n=n, h=held: self.depth(n, x, h), start, tol=1e-12).x
            f, r = self.jacobians(n, start)
            here = self.residual(n, self.mean(n, start), start) if held is None else held
            inverse = np.linalg.inv(here)
            information = f @ inverse @ f.T + np.linalg.inv(self.omega)
            if interaction:
                information += 0.5 * np.einsum("ab,ibc,cd,jda->ij", inverse, r, inverse, r)
            total += self.depth(n, start, held) + np.linalg.slogdet(information)[1]
        return total

    def fo(self) -> float:
        total, zero = 0.0, np.zeros(len(self.names))
        for n in range(self.problem.n_subjects):
            f = self.mean(n, zero)
            jac, _ = self.jacobians(n, zero)
            v = jac.T @ self.omega @ jac + self.residual(n, f, zero)
            y = self.problem.y[n].numpy()[self.problem.observed[n].numpy()]
            total += -2 * stats.multivariate_normal(f, v).logpdf(y) - len(y) * LOG_2PI
        return total


@pytest.mark.parametrize("kind", [Noise, Pair, Both])
def test_focei_is_nonmems_formula_by_dense_matrices(kind: type[nl.Model]) -> None:
    problem = simulated(kind)
    free = problem.start + 0.05
    value, gradient = evaluated(FOCEIObjective(problem), free)
    assert value == pytest.approx(Dense(problem, free).focei(), abs=1e-5)
    truth = differences(lambda x: float(FOCEIObjective(problem)(x[None]).ofv[0]), free, 1e-4)
    np.testing.assert_allclose(gradient, truth, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("objective", "name"), [(FOObjective, "fo"), (FOCEObjective, "foce")])
def test_fo_and_foce_with_correlated_residuals(objective: type[Objective], name: str) -> None:
    problem = simulated(Pair)
    free = problem.start + 0.05
    value, gradient = evaluated(objective(problem), free)
    dense = Dense(problem, free).fo() if name == "fo" else Dense(problem, free).focei(False)
    assert value == pytest.approx(dense, abs=1e-8 if name == "fo" else 3e-7)  # constants in double precision
    truth = differences(lambda x: float(objective(problem)(x[None]).ofv[0]), free, 1e-4)
    np.testing.assert_allclose(gradient, truth, atol=1e-6, rtol=1e-6)


def test_random_effects_on_the_error_correlation_and_limits_together() -> None:
    """Score and curvature in all rows are derivatives of the density, and Laplace's gradient those of the objective."""
    problem = simulated(Both)
    frame = problem.population.table
    frame = frame.assign(cens=((frame.evid == 0) & (frame.dvid == 1) & (frame.time > 2)).astype(int))
    problem = nl.Problem(Both(), nl.Population.from_table(frame, warn=False)).select(torch.tensor([0, 3]))
    assert bool(problem.residual_pairs[0].half.any())
    values = problem.values(problem.start)
    rows = problem.predict(torch.full((2, 3), 0.2, dtype=F64), values).f.requires_grad_()
    at = problem.local(rows, values, observed=True)
    (score,) = torch.autograd.grad(at.log_p.sum(), rows, create_graph=True)
    torch.testing.assert_close(at.score, score, rtol=1e-9, atol=1e-11)
    along = torch.randn(2, 1, rows.shape[-1], dtype=F64, generator=torch.Generator().manual_seed(1))
    (turned,) = torch.autograd.grad((score * along.squeeze(1)).sum(), rows)
    torch.testing.assert_close(-at.second.times(along).squeeze(1), turned, rtol=1e-8, atol=1e-9)
    free = problem.start + 0.05
    _, gradient = evaluated(LaplaceObjective(problem), free)
    truth = differences(lambda x: float(LaplaceObjective(problem)(x[None]).ofv[0]), free, 1e-4)
    np.testing.assert_allclose(gradient, truth, atol=1e-6, rtol=1e-6)


def test_the_joint_density_of_correlated_residuals_is_a_multivariate_normal() -> None:
    problem = simulated(Both)
    values = problem.values(problem.start)
    eta = torch.tensor([[0.2, -0.1, 0.3]], dtype=F64).expand(problem.n_subjects, 3)
    dense = Dense(problem, problem.start)
    found = problem.log_likelihood(eta, values)
    for n in range(problem.n_subjects):
        f = dense.mean(n, eta[n].numpy())
        law = stats.multivariate_normal(f, dense.residual(n, f, eta[n].numpy()))
        y = problem.y[n].numpy()[problem.observed[n].numpy()]
        assert float(found[n]) == pytest.approx(float(law.logpdf(y)), rel=1e-11)


class Line(nl.Model):
    """y = base + eta + eps, linear and Gaussian."""

    base = nl.Theta(1.0)
    iiv = nl.Omega(base=0.6)
    cp = nl.Additive(0.5)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=1.0, v=1.0, base=theta.base + eta.base)

    def observe(self, t, a, p):
        return dict(cp=p.base + 0.0 * t)


def test_a_linear_model_with_limits_is_an_orthant_of_a_multivariate_normal() -> None:
    rows = [
        (1, 0.0, 1.0, 0.0, 1, 0),
        (1, 1.0, 0.0, 1.4, 0, 0),
        (1, 2.0, 0.0, 0.8, 0, 1),
        (1, 3.0, 0.0, 2.0, 0, -1),
    ]
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID", "CENS"])
    problem = nl.Problem(Line(), nl.read_nonmem(frame))
    # given the first, the other two are normal with the covariance of a conditional law; the corner is one integral
    v = 0.6 + 0.25
    mean = 1.0 + 0.6 / v * (1.4 - 1.0)
    shared = 0.6 - 0.6**2 / v
    total = shared + 0.25
    corner = stats.multivariate_normal([mean, mean], [[total, shared], [shared, total]], abseps=1e-12).cdf(
        [0.8, 50.0]
    ) - stats.multivariate_normal([mean, mean], [[total, shared], [shared, total]], abseps=1e-12).cdf(
        [0.8, 2.0]
    )
    exact = stats.norm.logpdf(1.4, 1.0, math.sqrt(v)) + math.log(corner)
    found = nl.quadrature(problem, problem.values(problem.start), 41, rounds=2)
    assert found.total == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize("kind", [Limited, Grades])
def test_a_fit_ends_at_the_maximum_with_standard_errors(kind: type[nl.Model]) -> None:
    frame = table(kind, 25)
    best, deviance = maximum(kind, frame)
    result = nl.fit(kind(), nl.read_nonmem(frame), nl.AGQ(nodes=11))
    assert result.converged
    assert bool(np.isfinite(result.covariance.to_numpy()).all())
    assert -2 * result.log_likelihood == pytest.approx(deviance, abs=2e-3)
    found = words(result.problem, result.model.free)
    for name, value in best.items():
        assert found[name] == pytest.approx(value, rel=0.01), name


@pytest.mark.parametrize(
    ("kind", "method", "says"),
    [
        (Limited, nl.FOCEI(), "censored.*Laplace.*AGQ.*SAEM.*Importance.*ELBO"),
        (Counts, nl.FOCE(), "count is Poisson.*Laplace"),
        (Grades, nl.FO(), "event is Ordered.*Laplace"),
        (Noise, nl.FOCE(), "residual variance at eta = 0.*FOCEI"),
        (Noise, nl.FO(), "residual variance at eta = 0.*FOCEI"),
    ],
)
def test_first_order_methods_say_what_they_cannot_do(kind: type[nl.Model], method, says: str) -> None:
    problem = simulated(Noise) if kind is Noise else nl.Problem(kind(), nl.read_nonmem(table(kind, 5)))
    with pytest.raises(nl.FitError, match=says):
        method.estimate(problem)


def test_pages_that_are_not_plain_run_in_taylor_arithmetic_and_say_why() -> None:
    for problem, reason in (
        (simulated(Noise), "random effects act on the residual error"),
        (simulated(Pair), "residuals are correlated"),
        (nl.Problem(Limited(), nl.read_nonmem(table(Limited, 4))), "censored"),
        (nl.Problem(Counts(), nl.read_nonmem(table(Counts, 4))), "count is Poisson"),
    ):
        assert problem.hasten().route.programs is None
        assert reason in problem.route.reason
