"""Weighted draws of eta against the exact posterior of a linear page."""

from __future__ import annotations

import math

import pytest
import torch
from inference.pages import Oral, oral_table
from problems import Straight, exact, straight_problem, straight_table

import nlmegen as nl
from nlmegen.errors import DataError
from nlmegen.inference.families import Gaussian
from nlmegen.inference.marginal import StudentLaplace
from nlmegen.inference.posterior import Approximation, Posterior, log_joint
from nlmegen.inference.posteriors import posterior, weighted

F64 = torch.float64


class TestPosterior:
    """Weighted draws against the exact posterior of a linear page."""

    problem = straight_problem(8)

    def weighted(self, shift: float, widen: float, k: int = 20_000) -> Posterior:
        truth = exact(self.problem)
        scale = torch.linalg.cholesky(truth.covariance) * widen
        location = truth.mean + shift * truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        raw = torch.zeros(8, Gaussian().outputs(2), dtype=F64)
        eta, log_q = Approximation(Gaussian(), raw, location, scale).draw(k, torch.Generator().manual_seed(6))
        ratio = self.problem.log_joint(eta, self.problem.values(self.problem.start)) - log_q
        ids = tuple(self.problem.population.ids)
        return Posterior.weigh(ids, ("b", "s"), eta.flatten(0, 1), ratio.flatten(0, 1))

    def test_the_exact_q_has_equal_weights(self):
        posterior, truth = self.weighted(0.0, 1.0, k=400), exact(self.problem)
        torch.testing.assert_close(posterior.log_likelihood, truth.log_likelihood, rtol=0, atol=1e-9)
        torch.testing.assert_close(posterior.ess, torch.full((8,), 400.0, dtype=F64), rtol=1e-9, atol=0)
        assert set(posterior.verdict) == {"good"}

    @pytest.mark.parametrize(("shift", "widen"), [(0.5, 1.3), (-0.4, 1.8)])
    def test_a_wrong_q_is_corrected(self, shift: float, widen: float):
        posterior, truth = self.weighted(shift, widen), exact(self.problem)
        sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        assert float(((posterior.mean - truth.mean) / sd).abs().max()) < 0.03
        assert float(((posterior.cov - truth.covariance) / sd[:, :, None] / sd[:, None]).abs().max()) < 0.05
        torch.testing.assert_close(posterior.log_likelihood, truth.log_likelihood, rtol=0, atol=0.02)

    def test_a_hopeless_q_is_to_be_refined(self):
        posterior = self.weighted(6.0, 0.4, k=1000)
        assert set(posterior.verdict) == {"refine"}
        assert float(posterior.ess.max()) < 100

    def test_table(self):
        table = self.weighted(0.2, 1.2, k=1000).table()
        wanted = ["id", "eta_b_mean", "eta_b_sd", "eta_s_mean", "eta_s_sd", "ess", "khat", "verdict"]
        assert list(table.columns) == wanted
        assert table["id"].tolist() == list(self.problem.population.ids)
        assert table["ess"].between(1, 1000).all()


class TestMeans:
    """Every way to the posterior against the exact one of a linear page."""

    problem = straight_problem(8)

    def found(self, how: str, k: int = 4000) -> Posterior:
        return posterior(self.problem, self.problem.values(self.problem.start), how=how, k=k, seed=2)

    @pytest.mark.parametrize("how", ["auto", "importance", "quadrature", "laplace"])
    def test_they_agree(self, how: str):
        found, truth = self.found(how), exact(self.problem)
        exactly = how in ("quadrature", "laplace")
        sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        scale = sd[:, :, None] * sd[:, None]
        assert float(((found.mean - truth.mean) / sd).abs().max()) < (1e-6 if how == "quadrature" else 0.07)
        off = ((found.cov - truth.covariance) / scale).abs().max()
        assert float(off) < (1e-6 if how == "quadrature" else 0.12)
        level = 1e-8 if exactly else 0.05
        torch.testing.assert_close(found.log_likelihood, truth.log_likelihood, rtol=0, atol=level)
        assert set(found.verdict) == {"good"}
        assert set(found.how) == {"importance" if how == "auto" else how}

    def test_a_grid_says_how_exact_it_is(self):
        found = self.found("quadrature", k=1000)
        assert found.error is not None
        assert found.k == 21 * 21
        assert float(found.error.max()) < 1e-8
        assert bool(found.ess.isnan().all())
        assert bool(found.khat.isnan().all())

    def test_laplace_draws_have_equal_weights(self):
        found = self.found("laplace", k=400)
        assert found.draws.shape == (400, 8, 2)
        torch.testing.assert_close(found.log_weights, torch.full_like(found.log_weights, -math.log(400.0)))

    def test_what_cannot_be_had_is_refused(self):
        with pytest.raises(DataError, match="no such means"):
            self.found("magic")
        with pytest.raises(DataError, match="no encoder"):
            self.found("encoder")
        with pytest.raises(DataError, match="at least 25 nodes"):
            self.found("quadrature", k=20)
        without = nl.Problem(Without(), nl.read_nonmem(straight_table(4)))
        with pytest.raises(DataError, match="no random effects"):
            posterior(without, without.values(without.start))


class Without(Straight):
    """No random effects."""

    iiv = None  # type: ignore[assignment]

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb, slope=theta.tvs, cl=1.0, v=1.0)


class Skewed(Oral):
    """Absorption that varies widely, seen late: posteriors far from any Gaussian."""

    iiv = nl.Omega(ka=0.8, cl=0.09, v=0.04)
    cp = nl.Combined(additive=0.4, proportional=0.1)


def skewed() -> nl.Problem:
    return nl.Problem(Skewed(), nl.read_nonmem(oral_table(12, times=(2.0, 8.0, 24.0))))


def test_laplace_says_where_it_is_wrong():
    problem = skewed()
    values = problem.values(problem.start)
    gauss, grid = (posterior(problem, values, how=how, k=4000) for how in ("laplace", "quadrature"))
    assert set(grid.verdict) == {"good"}
    assert "refine" in gauss.verdict
    assert float((gauss.log_likelihood - grid.log_likelihood).abs().max()) > 0.05


class Lost:
    """An encoder that points far away from every patient."""

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def suits(self, problem):
        return True

    def posterior(self, problem, values, k, seed):
        centre = StudentLaplace.at_modes(problem, values)
        narrow = StudentLaplace(centre.mode + self.shift, 0.2 * centre.scale, 5)
        eta, log_q = narrow.sample(k, torch.Generator().manual_seed(seed))
        ratio = log_joint(problem, eta, values) - log_q
        return Posterior.weigh(tuple(problem.population.ids), tuple(problem.eta_names), eta, ratio)


def test_patients_whom_an_encoder_misses_are_taken_elsewhere():
    problem, truth = straight_problem(8), exact(straight_problem(8))
    values = problem.values(problem.start)
    alone = posterior(problem, values, how="encoder", encoder=Lost(3.0))
    assert set(alone.how) == {"encoder"}
    assert "refine" in alone.verdict
    mended = posterior(problem, values, encoder=Lost(3.0))
    assert set(mended.how) == {"importance"}
    assert set(mended.verdict) == {"good"}
    torch.testing.assert_close(mended.mean, truth.mean, rtol=0, atol=0.1)
    kept = posterior(problem, values, encoder=Lost(0.0))
    good = [word != "refine" for word in posterior(problem, values, how="encoder", encoder=Lost(0.0)).verdict]
    assert [how == "encoder" for how in kept.how] == good


@pytest.mark.parametrize(("etas", "last"), [(3, "quadrature"), (0, "importance")])
def test_the_last_resorts(etas: int, last: str, monkeypatch: pytest.MonkeyPatch):
    """With importance sampling spoilt: a grid, or many more draws."""
    calls = []

    def spoilt(problem, values, k, seed):
        calls.append(k)
        if k > 1000:
            return weighted(problem, values, k, seed)
        return Lost(3.0).posterior(problem, values, k, seed)

    monkeypatch.setattr("nlmegen.inference.posteriors.weighted", spoilt)
    monkeypatch.setattr("nlmegen.inference.posteriors.GRID_ETAS", etas)
    problem, truth = straight_problem(8), exact(straight_problem(8))
    found = posterior(problem, problem.values(problem.start), k=500)
    assert set(found.verdict) == {"good"}
    assert last in found.how
    assert max(calls) == (500 if etas else 10_000)
    torch.testing.assert_close(found.mean, truth.mean, rtol=0, atol=0.15)
    torch.testing.assert_close(found.log_likelihood, truth.log_likelihood, rtol=0, atol=0.15)
    assert found.draws.shape == (500, 8, 2)
    torch.testing.assert_close(found.log_weights.exp().sum(0), torch.ones(8, dtype=F64))


@pytest.mark.parametrize("khat", [math.inf, math.nan])
def test_a_khat_that_could_not_be_computed_vouches_for_nothing(khat: float):
    one, shape = torch.zeros(1, dtype=F64), torch.tensor([khat], dtype=F64)
    ess = torch.full((1,), 100.0, dtype=F64)
    weights = torch.full((100, 1), -math.log(100.0), dtype=F64)
    draws = torch.zeros(100, 1, 1, dtype=F64)
    assert Posterior(("1",), ("a",), draws, weights, one, ess, shape).verdict == ("refine",)
    assert Posterior(("1",), ("a",), draws, weights, one, ess, one - math.inf).verdict == ("good",)


def test_draws_that_cannot_be_predicted_have_no_density():
    problem = straight_problem(4)
    values = problem.values(problem.start)
    eta = torch.zeros(700, 4, 2, dtype=F64)
    eta[5, 2] = math.nan
    found = log_joint(problem, eta, values)
    expected = problem.log_joint(torch.zeros(4, 2, dtype=F64), values)
    torch.testing.assert_close(found[0], expected)
    assert found[5, 2].item() == -math.inf
    assert int(found.isfinite().sum()) == 700 * 4 - 1


def test_the_log_of_a_mean_is_not_the_mean_of_a_log():
    ratio = torch.tensor([[0.0], [math.log(3.0)]], dtype=F64)
    posterior = Posterior.weigh(("1",), ("a",), torch.tensor([[[0.0]], [[4.0]]], dtype=F64), ratio)
    assert posterior.log_likelihood.item() == pytest.approx(math.log(2.0))
    assert posterior.mean.item() == pytest.approx(3.0)
    assert posterior.cov.item() == pytest.approx(3.0)
    assert posterior.ess.item() == pytest.approx(1.6)
