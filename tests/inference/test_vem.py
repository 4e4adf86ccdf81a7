"""Variational EM: the bound against Gaussian algebra for right and wrong q, its steps never fall, its end is the
maximum.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from inference.cases import (
    Oral,
    curved_problem,
    exact_log_likelihood,
    exact_maximum,
    exact_posterior,
    oral_problem,
    oral_table,
)
from problems import F64
from torch.distributions import MultivariateNormal, kl_divergence

import nlmegen as nl
from nlmegen.errors import FitError
from nlmegen.inference.marginal import quadrature
from nlmegen.inference.transport import Chart
from nlmegen.inference.vem import (
    cubature,
    expectation_step,
    gaussian_bound,
    maximisation_step,
    start_at,
    variational_em,
)


def wrong_ones(mean, covariance):
    """Means shifted 1.5 SD along axes and the diagonal, variances x 4 and / 16, correlations turned round."""
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    for shift in ((0.0, 0.0), (1.5, 0.0), (0.0, -1.5), (1.1, 1.1)):
        for scale in (1.0, 2.0, 0.25):
            yield mean + torch.tensor(shift, dtype=F64) * sd, covariance * scale**2
    flipped = covariance.clone()
    flipped[:, 0, 1] *= -1
    flipped[:, 1, 0] *= -1
    yield mean, flipped


def test_the_bound_falls_short_by_the_divergence_from_the_posterior():
    problem = curved_problem()
    free = problem.start
    mean, covariance = exact_posterior(problem, free)
    exact = exact_log_likelihood(problem, free)
    truth = MultivariateNormal(mean, covariance)
    for m, c in wrong_ones(mean, covariance):
        bound = gaussian_bound(problem, free, m, torch.linalg.cholesky(c))
        torch.testing.assert_close(bound, exact - kl_divergence(MultivariateNormal(m, c), truth))


def test_the_bound_stays_below_the_likelihood_of_a_curved_page():
    problem = oral_problem()
    free = problem.start
    truth = quadrature(problem, problem.values(free), 15)
    covariance = 0.5 * (truth.cov + truth.cov.mT)
    for m, c in itertools.islice(wrong_ones(truth.mean, covariance), 9):
        assert bool(
            (gaussian_bound(problem, free, m, torch.linalg.cholesky(c)) < truth.log_likelihood + 0.02).all()
        )


def test_cubature_integrates_cubics():
    factor = torch.tensor([[[0.7, 0.0], [-0.4, 0.3]]], dtype=F64)
    mean = torch.tensor([[0.2, -0.5]], dtype=F64)
    points = cubature(mean, factor)
    torch.testing.assert_close(points.mean(0), mean)
    off = points - mean
    torch.testing.assert_close(torch.einsum("kni,knj->nij", off, off) / 4, factor @ factor.mT)
    torch.testing.assert_close((off**3).mean(0), torch.zeros(1, 2, dtype=F64))


def test_expectation_steps_reach_the_exact_posterior_of_a_linear_page():
    problem = curved_problem()
    at = start_at(problem, problem.start)
    for _ in range(10):
        at = expectation_step(problem, at)
    mean, covariance = exact_posterior(problem, problem.start)
    torch.testing.assert_close(at.mean, mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(at.covariance, covariance, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(at.bound, exact_log_likelihood(problem, problem.start), rtol=0, atol=1e-8)


@pytest.mark.parametrize("problem", [curved_problem(), oral_problem()], ids=["curved", "oral"])
def test_no_step_lowers_the_bound(problem):
    chart = Chart(problem)
    at = start_at(problem, problem.start)
    for _ in range(6):
        new = expectation_step(problem, at)
        assert bool((new.bound >= at.bound).all())
        at = maximisation_step(problem, chart, new)
        assert float(at.bound.sum()) >= float(new.bound.sum())
        torch.testing.assert_close(at.bound, gaussian_bound(problem, at.free, at.mean, at.factor))


def test_the_end_is_the_maximum_likelihood_of_a_linear_page():
    problem = curved_problem(20, seed=3)
    _, best = exact_maximum(problem)
    seen = []
    at = variational_em(
        problem,
        problem.start,
        iterations=100,
        tolerance=1e-5,
        report=lambda step, at: seen.append(float(at.bound.sum())),
    )
    assert float(at.bound.sum()) == pytest.approx(best, abs=5e-3)
    assert seen == sorted(seen)


def test_a_poor_start_arrives_where_a_good_one_does():
    problem = oral_problem(20)
    good = variational_em(problem, problem.start, iterations=60, tolerance=1e-3)
    far = problem.start + torch.tensor([0.5, -0.5, 0.4, -0.5, 0.3, -0.4, 0.6, 0.4], dtype=F64)
    poor = variational_em(problem, far, iterations=60, tolerance=1e-3)
    assert float(poor.bound.sum()) == pytest.approx(float(good.bound.sum()), abs=0.2)


def test_fixed_parameters_stay():
    class Fixed(Oral):
        """`Oral` with a fixed volume and fixed variances."""

        tvv = nl.Theta(30.0, lower=0, fixed=True)
        iiv = nl.Omega(ka=0.16, cl=0.09, fixed=True)

    problem = nl.Problem(Fixed(), nl.read_nonmem(oral_table()))
    assert "tvv" not in problem.names
    at = variational_em(problem, problem.start)
    values = problem.values(at.free)
    assert float(values.theta["tvv"]) == pytest.approx(30.0)
    torch.testing.assert_close(values.omega, torch.diag(torch.tensor([0.16, 0.09], dtype=F64)))


def test_a_start_without_a_likelihood_is_named():
    problem = oral_problem()
    problem.y = problem.y.clone()
    problem.y[2, 0] = math.nan
    with pytest.raises(FitError, match=r"subjects 3; start closer"):
        variational_em(problem, problem.start)


def test_the_state_is_a_record():
    assert [f.name for f in dataclasses.fields(start_at(oral_problem(), oral_problem().start))] == [
        "free",
        "mean",
        "factor",
        "bound",
    ]
