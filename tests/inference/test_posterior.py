"""Weighted draws of eta against the exact posterior of a linear page."""

from __future__ import annotations

import math

import pytest
import torch
from problems import exact, straight_problem

from nlmegen.inference.families import Gaussian
from nlmegen.inference.posterior import Approximation, Posterior, log_joint

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

    def test_laplace_on_a_linear_page_is_exact(self):
        problem = self.problem
        posterior, truth = Posterior.laplace(problem, problem.values(problem.start), k=20_000), exact(problem)
        sd = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        assert float(((posterior.mean - truth.mean) / sd).abs().max()) < 0.05
        torch.testing.assert_close(posterior.log_likelihood, truth.log_likelihood, rtol=0, atol=0.03)


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
