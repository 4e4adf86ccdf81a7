"""The likelihood on fixed draws: exact values, scores and Hessian against differences, its maximum against the
known one.
"""

from __future__ import annotations

import math

import pytest
import torch
from inference.cases import curved_problem, exact_log_likelihood, exact_maximum, oral_problem
from problems import F64, Straight, straight_table

import nlmegen as nl
from nlmegen.inference.families import Gaussian
from nlmegen.inference.linearise import linearise
from nlmegen.inference.marginal import quadrature
from nlmegen.inference.maximise import inverse_information, maximise
from nlmegen.inference.posterior import Approximation
from nlmegen.inference.settle import expected_loss, settle
from nlmegen.inference.simulated import SimulatedLikelihood


def likelihood_of(problem, free, k: int, widen: float = 1.2, seed: int = 0) -> SimulatedLikelihood:
    values = problem.values(free)
    here = linearise(problem, values, problem.y, problem.mask, steps=6)
    raw = torch.zeros(problem.n_subjects, Gaussian().outputs(problem.q), dtype=F64)
    location, scale = here.mean @ values.factor.mT, widen * values.factor @ here.factor
    eta, log_q = Approximation(Gaussian(), raw, location, scale).draw(k, torch.Generator().manual_seed(seed))
    return SimulatedLikelihood(problem, free, eta, log_q)


class Limp(Straight):
    """Random effects of correlation .9995: of their second whitened effect the data say nothing."""

    iiv = nl.Omega(b=0.5, s=0.1, cov=[0.2235])


def limp_problem() -> nl.Problem:
    return nl.Problem(Limp(), nl.read_nonmem(straight_table(8)))


def test_draws_follow_a_block_of_which_the_data_say_nothing() -> None:
    problem = limp_problem()
    chart = likelihood_of(problem, problem.start, 64).chart
    assert chart.limp == {0, 1}
    assert [(i, j) for _, i, j in chart.followed] == [(0, 0), (1, 0), (1, 1)]
    assert chart.paired == {}
    rich = likelihood_of(curved_problem(), curved_problem().start, 64).chart
    assert rich.limp == frozenset()


@pytest.mark.parametrize(
    "problem", [curved_problem(), oral_problem(), limp_problem()], ids=["curved", "oral", "limp"]
)
class TestScores:
    def test_each_subjects_score_is_the_derivative_of_its_term(self, problem):
        free = problem.start
        likelihood = likelihood_of(problem, free, 16)
        found = likelihood(free)

        def terms(x):
            total = torch.logsumexp(likelihood(x).log_weights.flatten(0, 1), 0)
            return total - torch.tensor(16.0, dtype=F64).log()

        torch.testing.assert_close(terms(free).sum().item(), found.log_likelihood)
        for a in range(problem.P):
            step = torch.zeros(problem.P, dtype=F64)
            step[a] = 1e-5
            slope = (terms(free + step) - terms(free - step)) / 2e-5
            torch.testing.assert_close(found.scores[:, a], slope, rtol=1e-5, atol=1e-6)

    def test_away_from_where_the_draws_were_made(self, problem):
        free = problem.start + 0.05 * torch.randn(
            problem.P, generator=torch.Generator().manual_seed(4), dtype=F64
        )
        likelihood = likelihood_of(problem, problem.start, 16)
        found = likelihood(free).gradient
        step = torch.eye(problem.P, dtype=F64) * 1e-5
        slope = [
            (likelihood(free + s).log_likelihood - likelihood(free - s).log_likelihood) / 2e-5 for s in step
        ]
        torch.testing.assert_close(found, torch.tensor(slope, dtype=F64), rtol=1e-5, atol=1e-5)

    def test_carried_draws_agree_to_second_order(self, problem):
        likelihood = likelihood_of(problem, problem.start, 64)
        off = torch.randn(problem.P, generator=torch.Generator().manual_seed(5), dtype=F64)
        gaps = []
        for size in (0.02, 0.01):
            free = problem.start + size * off
            gaps.append(abs(likelihood(free).log_likelihood - likelihood.carried(free)(free).log_likelihood))
        assert gaps[1] < 0.3 * gaps[0] + 1e-9

    def test_the_hessian_is_that_of_the_carried_function(self, problem):
        free = problem.start
        likelihood = likelihood_of(problem, free, 64)
        if likelihood.chart.followed:
            pytest.skip("a shift and a map of the draws do not commute: the same only as K grows")
        found = likelihood.hessian(free)

        def value(x):
            return likelihood.carried(x)(x).log_likelihood

        h = 1e-3
        directions = torch.randn(4, problem.P, generator=torch.Generator().manual_seed(6), dtype=F64)
        for d in directions:
            curve = (value(free + h * d) - 2 * value(free) + value(free - h * d)) / h**2
            assert float(d @ found @ d) == pytest.approx(curve, rel=2e-3, abs=0.05)


def test_the_value_is_the_marginal_likelihood():
    problem = oral_problem()
    free = problem.start
    found = likelihood_of(problem, free, 8000)(free)
    truth = quadrature(problem, problem.values(free), 15)
    assert found.log_likelihood == pytest.approx(truth.total, abs=4 * found.log_likelihood_se + 1e-3)
    assert found.log_likelihood_se < 0.02
    assert bool((found.ess > 0.4).all())


def test_the_noise_of_the_gradient_is_what_it_is_from_seed_to_seed():
    problem = oral_problem()
    free = problem.start
    gradients, claimed = [], []
    for seed in range(60):
        found = likelihood_of(problem, free, 64, widen=1.5, seed=seed)(free)
        gradients.append(found.gradient)
        claimed.append(found.score_noise)
    spread = torch.stack(gradients).var(0)
    mean = torch.stack(claimed).mean(0).diagonal()
    assert bool((mean / spread < 2.0).all())
    assert bool((mean / spread > 0.5).all())


def test_the_maximum_of_a_linear_page_is_the_exact_one():
    problem = curved_problem(20)
    truth, best = exact_maximum(problem)
    likelihood, found = settle(likelihood_of(problem, truth + 0.05, 2000), truth + 0.05)
    loss = best - float(exact_log_likelihood(problem, found.free).sum())
    assert loss < 0.01
    assert found.evaluation.log_likelihood == pytest.approx(best, abs=0.05)
    torch.testing.assert_close(
        -likelihood.hessian(found.free), -_exact_hessian(problem, found.free), rtol=0.05, atol=0.5
    )


def _exact_hessian(problem, free):
    def total(x):
        return exact_log_likelihood(problem, x).sum()

    return torch.func.jacrev(torch.func.grad(total))(free)


def test_draws_without_a_prediction_count_for_nothing():
    problem = oral_problem()
    free = problem.start
    whole = likelihood_of(problem, free, 64)
    eta, log_q = whole.eta.clone(), whole.log_q
    eta[3, 1, :, 0] = 800.0  # exp overflows
    broken = SimulatedLikelihood(problem, free, eta, log_q)(free)
    assert bool((broken.log_weights[3, 1] == -math.inf).all())
    assert bool(broken.scores.isfinite().all())
    kept = whole(free).log_weights.clone()
    kept[3, 1] = -math.inf
    expected = torch.logsumexp(kept.flatten(0, 1), 0).sum() - problem.n_subjects * math.log(64)
    assert broken.log_likelihood == pytest.approx(float(expected))


def test_the_loss_to_noise_is_its_quadratic_form_but_for_flat_directions():
    problem = oral_problem()
    found = likelihood_of(problem, problem.start, 64)(problem.start)
    information = 100.0 * torch.eye(problem.P, dtype=F64)
    assert expected_loss(found, information) == pytest.approx(float(found.score_noise.trace()) / 100)
    flat = information.clone()
    flat[0, 0] = 1e-6
    without = float(found.score_noise.diagonal()[1:].sum()) / 100
    assert expected_loss(found, flat) == pytest.approx(without + 1e-6, rel=1e-6)


def test_reach_bounds_the_move():
    problem = oral_problem()
    far = problem.start.clone()
    far[0] += 2.0
    found = maximise(likelihood_of(problem, far, 64), far, reach=0.25)
    assert float((found.free - far).abs().max()) <= 0.25 + 1e-12
    assert not found.settled or found.moved > 0


def test_an_information_matrix_is_inverted():
    matrix = torch.tensor([[400.0, 30.0], [30.0, 90.0]], dtype=F64)
    torch.testing.assert_close(
        inverse_information(matrix) @ matrix, torch.eye(2, dtype=F64), rtol=0, atol=1e-4
    )
