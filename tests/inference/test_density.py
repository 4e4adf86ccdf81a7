"""One seam for every density: scores, information and reverse passes against differences and dense algebra."""

from __future__ import annotations

import math

import pytest
import torch
from inference.cases import oral_problem
from inference.kinds import Counts, Events, Grades, Joined, Limited, Scattered, Thick, table, two_endpoints
from problems import F64

import nlmegen as nl
from nlmegen.inference.density import (
    is_deviation,
    log_density,
    measured_information,
    score_and_weight,
    sigma_information,
    sigma_scores,
    weigh,
    without_lost,
)
from nlmegen.inference.expectation import expectation
from nlmegen.inference.simulated import SimulatedLikelihood
from nlmegen.inference.transport import Chart


def problem_of(kind: type[nl.Model]) -> nl.Problem:
    if kind in (Joined, Thick):
        return two_endpoints(kind)
    return nl.Problem(kind(), nl.read_nonmem(table(kind, 8)))


KINDS = [Counts, Scattered, Events, Grades, Limited, Joined, Thick]


def drawn(problem: nl.Problem, free: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A few draws from the prior, in two groups, and their log density."""
    values = problem.values(free)
    normal = torch.randn(
        9, 2, problem.n_subjects, problem.q, generator=torch.Generator().manual_seed(3), dtype=F64
    )
    eta = 0.6 * normal @ values.factor.mT
    return eta, -0.5 * normal.square().sum(-1)


def test_the_seam_knows_a_gaussian_page_by_both_ways():
    problem = oral_problem()
    values = problem.values(problem.start)
    f = problem.predict(0.2 * torch.ones(3, problem.n_subjects, problem.q, dtype=F64), values).f
    score, weight = score_and_weight(problem, f, values)
    other = problem.local(f, values)
    torch.testing.assert_close(score, other.score)
    torch.testing.assert_close(weight, other.weight.diagonal)
    fit = problem.log_likelihood(0.2 * torch.ones(3, problem.n_subjects, problem.q, dtype=F64), values)
    torch.testing.assert_close(log_density(problem, f, values) + problem.log_jacobian, fit)
    jac = torch.randn(3, *f.shape[1:], 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    torch.testing.assert_close(weigh(weight, jac), weigh(other.weight, jac))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_residual_parameters_are_those_of_differences(kind):
    problem = problem_of(kind)
    chart, free = Chart(problem), problem.start + 0.1
    eta, _ = drawn(problem, free)
    f = problem.predict(eta, problem.values(free)).f
    weight = torch.rand(f.shape[:3], generator=torch.Generator().manual_seed(2), dtype=F64)

    def total(x: torch.Tensor) -> torch.Tensor:
        return (weight * log_density(problem, f, problem.values(x))).sum((0, 1, 2))

    scores = sigma_scores(problem, f, free, chart.sigmas, weight).sum((0, 1))
    assert len(scores) == len(problem.layout.sigma_names)
    for k, a in enumerate(chart.sigmas):
        step = torch.zeros_like(free)
        step[a] = 1e-5
        assert float(scores[k]) == pytest.approx(
            float(total(free + step) - total(free - step)) / 2e-5, rel=1e-6, abs=1e-6
        )
    metric = sigma_information(problem, f, free, chart.sigmas, weight)
    assert bool((torch.linalg.eigvalsh(metric) > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_simulated_likelihood_are_those_of_differences(kind):
    problem = problem_of(kind)
    free = problem.start + 0.05
    likelihood = SimulatedLikelihood(problem, free, *drawn(problem, free))
    scores = likelihood(free).scores.sum(0)
    for a in range(problem.P):
        step = torch.zeros_like(free)
        step[a] = 1e-5
        ahead, behind = (likelihood.carried(x)(x).log_likelihood for x in (free + step, free - step))
        assert float(scores[a]) == pytest.approx((ahead - behind) / 2e-5, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_expectations_give_the_scores_of_the_simulated_likelihood(kind):
    problem = problem_of(kind)
    chart, free = Chart(problem), problem.start + 0.05
    eta, log_q = drawn(problem, free)
    moves = chart.transport(free, problem.values(free), eta.mean((0, 1)))
    found = expectation(chart, free, moves, eta, log_q)
    other = SimulatedLikelihood(problem, free, eta, log_q, chart)(free)
    torch.testing.assert_close(found.scores, other.group_scores, rtol=1e-9, atol=1e-9)
    assert bool((torch.linalg.eigvalsh(found.information) > -1e-9).all())


def test_draws_without_a_density_harm_nothing():
    problem = nl.Problem(Counts(), nl.read_nonmem(table(Counts, 4)))
    free = problem.start
    eta, log_q = drawn(problem, free)
    eta[2, 0, 1] = 400.0  # a mean beyond every count
    likelihood = SimulatedLikelihood(problem, free, eta, log_q, Chart(problem))
    found = likelihood(free)
    assert float(found.log_weights[2, 0, 1]) == -math.inf
    kept = [k for k in range(9) if k != 2]
    fewer = SimulatedLikelihood(problem, free, eta[kept], log_q[kept], Chart(problem))
    fewer._linearise(free, eta[kept], likelihood.moves)
    torch.testing.assert_close(found.group_scores[0, 1], fewer(free).group_scores[0, 1])
    direct = expectation(likelihood.chart, free, likelihood.moves, eta, log_q)
    torch.testing.assert_close(direct.scores, found.group_scores)
    f = torch.tensor([1.0, 2.0, torch.inf], dtype=F64).reshape(3, 1, 1, 1)
    lost = torch.tensor([False, False, True]).reshape(3, 1, 1)
    height = torch.tensor([0.1, 0.9, 5.0], dtype=F64).reshape(3, 1, 1)
    assert without_lost(f, lost, height).flatten().tolist() == [1.0, 2.0, 2.0]


def test_a_censored_record_has_less_information_than_a_measured_one():
    problem = nl.Problem(Limited(), nl.read_nonmem(table(Limited)))
    values = problem.values(problem.start)
    f = problem.predict(torch.zeros(problem.n_subjects, 1, dtype=F64), values).f
    weight = problem.local(f, values).weight.diagonal
    measured = measured_information(problem, f, values)
    censored = problem.limits.censored
    assert bool(censored.any())
    torch.testing.assert_close(weight[~censored], measured[~censored])
    assert bool((weight[censored] < measured[censored]).all())
    variance, slope, _ = problem.variance(f, values)
    torch.testing.assert_close(measured, 1 / variance + 0.5 * (slope / variance) ** 2)


def test_only_standard_deviations_are_called_so():
    problem = two_endpoints(Joined)
    flags = {name: is_deviation(problem, name) for name in problem.layout.sigma_names}
    assert flags == {
        "cp.additive": True,
        "cp.proportional": True,
        "met.additive": True,
        "link.correlation": False,
    }
    assert Chart(two_endpoints(Thick)).deviations == Chart(two_endpoints(Thick)).sigmas[:2]
