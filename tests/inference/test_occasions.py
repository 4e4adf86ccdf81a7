"""Random effects between occasions in every method, against a dense normal density written apart from the package."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from nested import LINEAR, Nested, Oral, exact, linear_table, oral_table, population
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import LogNormal

import nlmegen as nl
from nlmegen.inference.conditional import FOCEIObjective
from nlmegen.inference.firstorder import FOObjective
from nlmegen.inference.uncertainty import natural
from nlmegen.inference.vem import expectation_step, maximised, start_at

F64 = torch.float64
LOG_2PI = math.log(2 * math.pi)


@cache
def table(n: int = 8) -> pd.DataFrame:
    return linear_table(n)


@cache
def problem(n: int = 8) -> nl.Problem:
    return nl.Problem(Nested(), population(table(n)))


def named(case: nl.Problem, free: Tensor) -> dict[str, float]:
    """Natural values by name."""
    return dict(zip(case.names, natural(case, free).tolist(), strict=True))


def likelihoods(case: nl.Problem, free: Tensor, n: int = 8) -> np.ndarray:
    return exact(table(n), named(case, free))


@cache
def optimum(n: int = 40) -> tuple[dict[str, float], float]:
    """The maximum of the closed form by a search without derivatives of ours: values and log L."""

    def value(x: np.ndarray) -> dict[str, float]:
        lower = np.array([[math.exp(x[4]), 0.0], [x[5], math.exp(x[6])]])
        kappa = lower @ lower.T
        return dict(
            zip(
                LINEAR,
                (
                    x[0],
                    x[1],
                    math.exp(x[2]),
                    math.exp(x[3]),
                    kappa[0, 0],
                    kappa[1, 0],
                    kappa[1, 1],
                    math.exp(x[7]),
                ),
                strict=True,
            )
        )

    start = [2.0, 0.5, math.log(0.4), math.log(0.05), math.log(0.39), 0.05, math.log(0.16), math.log(0.3)]
    found = minimize(lambda x: -exact(table(n), value(x)).sum(), start, method="BFGS", options={"gtol": 1e-6})
    return value(found.x), -found.fun


# -- the likelihood at given parameters -------------------------------------------------------------------------------
@pytest.mark.parametrize("method", [nl.FO, nl.FOCE, nl.FOCEI, nl.Laplace])
def test_the_likelihood_is_the_closed_form(method: type) -> None:
    fit = nl.fit(Nested(), population(table()), method(evaluate=True))
    case = problem()
    assert fit.log_likelihood == pytest.approx(likelihoods(case, case.start).sum(), abs=1e-9)


def test_quadrature_and_its_limit_of_nodes() -> None:
    case = problem()
    found = nl.fit(Nested(), population(table()), nl.AGQ(nodes=3, evaluate=True)).log_likelihood
    assert found == pytest.approx(likelihoods(case, case.start).sum(), abs=1e-8)
    with pytest.raises(nl.FitError, match=r"over 8 random effects needs 5\^8 nodes.*AGQ\(nodes=3\)"):
        nl.AGQ(nodes=5).estimate(case)


def test_importance_sampling_and_the_posterior() -> None:
    case = problem()
    fit = nl.fit(Nested(), population(table()), nl.Importance(evaluate=True, seed=1))
    assert fit.ofv_se is not None
    assert abs(fit.log_likelihood - likelihoods(case, case.start).sum()) < 4 * 0.5 * fit.ofv_se + 1e-6
    posterior = fit.posterior(seed=2)
    absent = ~case.levels.present
    assert int(absent.sum()) == 4
    prior = case.omega(case.start).diagonal().expand(8, -1)[absent]
    torch.testing.assert_close(posterior.cov.diagonal(dim1=-2, dim2=-1)[absent], prior, rtol=0.15, atol=0.0)
    assert float(fit.ebe[absent].abs().max()) < 1e-8
    assert "kappa_b_3_mean" in posterior.table()


def test_the_variational_bound_of_a_linear_page_is_its_likelihood() -> None:
    case = problem()
    at = start_at(case, case.start + 0.3)
    truth = likelihoods(case, at.free)
    assert (at.bound.numpy() < truth - 0.1).all()
    for _ in range(3):
        at = expectation_step(case, at)
    np.testing.assert_allclose(at.bound.numpy(), truth, atol=1e-9)
    ahead = maximised(case, at)  # an M-step pools the occasions that there are: log L rises
    assert likelihoods(case, ahead.free).sum() > truth.sum() + 1.0


@pytest.mark.parametrize("kind", [FOObjective, FOCEIObjective])
def test_exact_gradients(kind: type) -> None:
    """Scores of every subject against central differences of the closed form."""
    case = problem()
    free = case.start + 0.2 * torch.randn(case.P, generator=torch.Generator().manual_seed(3), dtype=F64)
    score = kind(case)(free[None], scores=True).score
    assert score is not None
    for a in range(case.P):
        step = torch.zeros_like(free)
        step[a] = 1e-5
        slope = (likelihoods(case, free + step) - likelihoods(case, free - step)) / 2e-5
        np.testing.assert_allclose(score[0, :, a].numpy(), -2 * slope, rtol=1e-5, atol=1e-6)


# -- estimates --------------------------------------------------------------------------------------------------------
def test_focei_reaches_the_optimum_and_its_standard_errors() -> None:
    values, best = optimum()
    fit = nl.fit(Nested(), population(table(40)), nl.FOCEI(covariance="R"))
    assert fit.converged
    assert fit.log_likelihood == pytest.approx(best, abs=1e-5)
    assert fit.parameters["estimate"].to_dict() == pytest.approx(values, rel=2e-3)
    case, free = fit.problem, fit.estimate.free
    steps = 1e-3 * torch.eye(case.P, dtype=F64)

    def at(x: Tensor) -> float:
        return float(likelihoods(case, x, 40).sum())

    curvature = np.array(
        [
            [
                (at(free + a + b) - at(free + a - b) - at(free - a + b) + at(free - a - b)) / 4e-6
                for b in steps
            ]
            for a in steps
        ]
    )
    covariance = np.linalg.inv(-curvature)
    assert fit.estimate.covariance is not None
    np.testing.assert_allclose(
        fit.estimate.covariance.numpy(), covariance, rtol=2e-2, atol=2e-2 * covariance.max()
    )
    omega_se = fit.omega_se
    assert omega_se.shape == (4, 4)
    assert float(omega_se[3, 2]) == pytest.approx(fit.parameters["se"]["omega.occ.s,occ.b"])
    assert bool(omega_se[2, 0].isnan())


@pytest.mark.parametrize(
    "method", [nl.SAEM(seed=3, precision=0.05), nl.Importance(seed=3)], ids=["saem", "imp"]
)
def test_sampling_methods_reach_the_optimum(method: object) -> None:
    values, best = optimum()
    fit = nl.fit(Nested(), population(table(40)), method)  # type: ignore[arg-type]
    assert fit.converged
    truth = exact(table(40), fit.parameters["estimate"].to_dict()).sum()
    assert (
        best - truth < 0.1
    )  # a few times what the methods allow Monte Carlo error to cost, .05 and .02 of -2 log L
    se = fit.parameters["se"].to_dict()
    for name, value in values.items():
        assert abs(fit.parameters["estimate"][name] - value) < 0.3 * se[name]


def test_an_encoder_reads_occasions() -> None:
    small = nl.ELBO(seed=1, objective="elbo", steps=60, batch=32, width=8, covariance=None)
    fit = nl.fit(Nested(), population(table(12)), small)
    assert fit.bounds is not None
    truth = exact(table(12), fit.parameters["estimate"].to_dict()).sum()
    assert truth - 2.0 < fit.bounds["elbo"] < truth
    assert abs(fit.log_likelihood - truth) < 4 * 0.5 * (fit.ofv_se or 0.0) + 1e-3
    assert fit.bounds["ess_min"] > 0.5


def test_an_absent_occasion_changes_nothing() -> None:
    """The same subjects beside one with a fourth occasion: each has the same likelihood and modes."""
    case = problem()
    longer = linear_table(1, seed=9, occasions=4).assign(id=99)
    both = nl.Problem(Nested(), population(pd.concat([table(), longer], ignore_index=True)))
    assert (case.q, both.q) == (8, 10)
    a = FOCEIObjective(case)(case.start[None], scores=True)
    b = FOCEIObjective(both)(both.start[None], scores=True)
    assert a.score is not None
    assert b.score is not None
    torch.testing.assert_close(b.objective[:, :8], a.objective)
    torch.testing.assert_close(b.score[:, :8], a.score)
    torch.testing.assert_close(b.eta[:, :8, :8], a.eta)


def test_a_fit_meets_patients_with_more_occasions() -> None:
    fit = nl.fit(Nested(), population(table()), nl.FOCEI(evaluate=True))
    new = linear_table(3, seed=5, occasions=5)
    posterior = fit.posterior(population(new), how="laplace")
    assert posterior.mean.shape == (3, 12)
    total = float(posterior.log_likelihood.sum())
    assert total == pytest.approx(exact(new, LINEAR).sum(), abs=1e-6)


def test_a_fixed_matrix_stays_and_a_prior_pulls() -> None:
    class Fixed(Nested):
        iov = nl.Omega(b=0.15, s=0.03, cov=[0.02], level="occ", fixed=True)

    for method in (nl.FOCEI(), nl.SAEM(seed=1)):
        fit = nl.fit(Fixed(), population(table(40)), method)
        assert torch.equal(fit.model.omega[2:, 2:], Nested().omega[2:, 2:])
        assert fit.parameters.loc["omega.occ.s", "fixed"]

    class Held(Nested):
        iov = nl.Omega(b=0.15, s=0.03, cov=[0.02], level="occ", prior={"b": LogNormal(math.log(0.8), 0.05)})

    case = nl.Problem(Held(), population(table(40)))
    sd = math.sqrt(0.15)
    expected = -2 * float(LogNormal(math.log(0.8), 0.05).log_prob(torch.tensor(sd, dtype=F64)))
    assert float(case.penalty(case.start)) == pytest.approx(expected)
    fit = nl.fit(Held(), population(table(40)), nl.FOCEI())
    free = optimum()[0]["omega.occ.b"]
    assert math.sqrt(free) + 0.05 < math.sqrt(fit.parameters["estimate"]["omega.occ.b"]) < 0.85


def test_a_variance_between_occasions_that_is_not_there_ends_at_its_boundary() -> None:
    records = linear_table(30, seed=4)
    source = np.random.default_rng(0)
    seen = records.evid == 0
    base = dict(zip(range(1, 31), source.normal(2.0, 0.6, 30), strict=True))
    records.loc[seen, "dv"] = records.id.map(base)[seen] + 0.3 * source.standard_normal(int(seen.sum()))
    # the mean of an occasion scatters less than its residuals do: the variance is estimated as zero
    records.loc[seen, "dv"] -= records[seen].groupby(["id", "occ"]).dv.transform("mean")
    records.loc[seen, "dv"] += records.id.map(base)[seen]

    class Plain(nl.Model):
        mu = nl.Theta(2.0)
        iiv = nl.Omega(b=0.4)
        iov = nl.Omega(b=0.1, level="occ")
        cp = nl.Additive(0.3)
        structure = nl.OneCompartment()

        def individual(self, theta, eta, cov, kappa):
            return dict(base=theta.mu + eta.b + kappa.b, cl=1.0, v=1.0)

        def observe(self, t, a, p):
            return dict(cp=p.base + 0.0 * t)

    fit = nl.fit(Plain(), population(records), nl.FOCEI())
    assert fit.parameters["estimate"]["omega.occ.b"] < 1e-4
    assert any("omega.occ.b is at its boundary 0" in note for note in fit.notes)
    assert np.isnan(fit.parameters["se"]["omega.occ.b"])


def test_one_occasion_cannot_tell_the_two_levels_apart() -> None:
    class Twice(nl.Model):
        mu = nl.Theta(2.0)
        iiv = nl.Omega(b=0.4)
        iov = nl.Omega(b=0.1, level="occ")
        cp = nl.Additive(0.3)
        structure = nl.OneCompartment()

        def individual(self, theta, eta, cov, kappa):
            return dict(base=theta.mu + eta.b + kappa.b, cl=1.0, v=1.0)

        def observe(self, t, a, p):
            return dict(cp=p.base + 0.0 * t)

    fit = nl.fit(Twice(), population(table(40).drop(columns="occ")), nl.FOCEI())
    words = " ".join(fit.problems())
    assert "no occasions" in words
    assert "omega.b + omega.occ.b but not omega.b and omega.occ.b apart" in words


# -- a kinetic page ---------------------------------------------------------------------------------------------------
def simulated(n: int, seed: int) -> pd.DataFrame:
    """Records of `Oral` at its declared values."""
    design = oral_table(n)
    case = nl.Problem(Oral(), population(design))
    values = case.values(case.start)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, case.q, generator=generator, dtype=F64)
    dv = case.simulate_dv(case.predict(z @ values.factor.mT, values).f, values, generator)
    row = case.population.row
    design.loc[row[row >= 0].numpy(), "dv"] = dv[row >= 0].numpy()
    return design


def test_shrinkage_of_each_level() -> None:
    fit = nl.fit(Oral(), population(simulated(20, 1)), nl.FOCEI(evaluate=True))
    assert list(fit.shrinkage_eta) == ["cl", "v", "occ.cl", "occ.ka"]
    kappa = torch.cat([fit.ebe[:, 2], fit.ebe[:, 4]])
    assert fit.shrinkage_eta["occ.cl"] == pytest.approx(1 - float(kappa.std()) / math.sqrt(0.05))


@pytest.mark.slow
def test_variances_between_occasions_are_recovered() -> None:
    """Twenty data sets: the mean of the estimates is within three of its standard errors, about the spread they say."""
    truth = {"tvcl": 1.0, "omega.cl": 0.08, "omega.occ.cl": 0.05, "omega.occ.ka": 0.15}
    rows, errors = [], []
    for seed in range(20):
        told = seed % 4 == 0  # standard errors of a few will do
        fit = nl.fit(Oral(), population(simulated(25, seed)), nl.FOCEI(covariance="R" if told else None))
        assert fit.converged
        rows.append(fit.parameters["estimate"][list(truth)].to_numpy(float))
        if told:
            errors.append(fit.parameters["se"][list(truth)].to_numpy(float))
    estimates, se = np.array(rows), np.array(errors)
    off = (estimates.mean(0) - np.array(list(truth.values()))) / (estimates.std(0, ddof=1) / math.sqrt(20))
    assert (np.abs(off) < 3).all(), off
    ratio = np.nanmean(se, 0) / estimates.std(0, ddof=1)
    assert ((ratio > 0.6) & (ratio < 1.6)).all(), ratio
