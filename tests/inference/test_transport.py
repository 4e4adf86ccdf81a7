"""Carried draws: exact on a linear page (volume preserved, weights constant), directions against differences."""

from __future__ import annotations

import torch
from inference.cases import curved_problem, exact_log_likelihood, exact_posterior, oral_problem
from problems import F64

from nlmegen.inference.families import Gaussian
from nlmegen.inference.posterior import Approximation
from nlmegen.inference.simulated import SimulatedLikelihood
from nlmegen.inference.transport import Chart


def draws_of_the_exact_posterior(problem, free, k: int = 8):
    mean, covariance = exact_posterior(problem, free)
    raw = torch.zeros(problem.n_subjects, Gaussian().outputs(2), dtype=F64)
    approximation = Approximation(Gaussian(), raw, mean, torch.linalg.cholesky(covariance))
    return approximation.draw(k, torch.Generator().manual_seed(0))


def test_what_each_parameter_is():
    chart = Chart(oral_problem())
    names = chart.problem.names
    assert {names[a]: k for a, k in chart.paired.items()} == {"tvka": 0, "tvcl": 1}
    assert [names[a] for a in chart.others] == ["tvv", "power"]
    assert [names[a] for a in chart.sigmas] == ["cp.additive", "cp.proportional"]


def test_moving_a_theta_without_eta_keeps_every_weight_of_a_linear_page_exact():
    problem = curved_problem()
    free = problem.start
    eta, log_q = draws_of_the_exact_posterior(problem, free)
    likelihood = SimulatedLikelihood(problem, free, eta, log_q)
    moved = free.clone()
    moved[problem.names.index("tvc")] += 0.15
    there = likelihood(moved)
    exact = exact_log_likelihood(problem, moved)
    assert float((exact - exact_log_likelihood(problem, free)).abs().min()) > 0.01
    # q carried along is the exact posterior at the new theta, so that each single weight is the likelihood
    torch.testing.assert_close(there.log_weights, exact.expand_as(there.log_weights), rtol=0, atol=1e-9)


def test_carried_draws_keep_their_density():
    """With the draws of any q, and whatever parameter moves, the mean weight is the likelihood."""
    problem = curved_problem()
    free = problem.start
    mean, covariance = exact_posterior(problem, free)
    raw = torch.zeros(problem.n_subjects, Gaussian().outputs(2), dtype=F64)
    wide = Approximation(Gaussian(), raw, mean, 1.6 * torch.linalg.cholesky(covariance))
    likelihood = SimulatedLikelihood(problem, free, *wide.draw(40_000, torch.Generator().manual_seed(7)))
    moved = free + torch.tensor([0.3, -0.2, 0.1, 0.2, 0.1, -0.2, 0.1], dtype=F64)
    found = likelihood(moved)
    exact = exact_log_likelihood(problem, moved)
    mean_weight = torch.logsumexp(found.group_log_likelihood, 0) - torch.tensor(4.0, dtype=F64).log()
    torch.testing.assert_close(mean_weight, exact, rtol=0, atol=0.03)


def test_a_mu_referenced_pair_leaves_the_prediction_where_it_is():
    problem = oral_problem()
    chart = Chart(problem)
    values = problem.values(problem.start)
    moves = chart.transport(problem.start, values, torch.zeros(problem.n_subjects, 2, dtype=F64))
    step = torch.zeros(problem.P, dtype=F64)
    step[:2] = torch.tensor([0.4, -0.3])
    eta = 0.2 * torch.randn(3, problem.n_subjects, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    before = problem.predict(eta, values).f
    after = problem.predict(eta + moves @ step, problem.values(problem.start + step)).f
    torch.testing.assert_close(before, after, rtol=1e-12, atol=1e-14)


def test_a_theta_whose_eta_the_data_hardly_see_is_carried_like_the_others():
    problem = oral_problem()
    omega = problem.omega(problem.start)
    seen = 0.3 * omega.diagonal().expand(problem.n_subjects, 2)
    unseen = seen.clone()
    unseen[:, 0] = 0.95 * omega[0, 0]
    assert Chart.of(problem, omega, seen).paired == {0: 0, 1: 1}
    chart = Chart.of(problem, omega, unseen)
    assert chart.paired == {1: 1}
    assert [problem.names[a] for a in chart.others] == ["tvka", "tvv", "power"]
    # as omega -> 0 nothing is left to carry: the prediction moves with the theta instead
    narrow = problem.start.clone()
    narrow[problem.names.index("omega.ka")] = -12.0
    moves = chart.transport(narrow, problem.values(narrow), torch.zeros(problem.n_subjects, 2, dtype=F64))
    assert float(moves[:, 0, 0].abs().max()) < 1e-6


def test_a_vanishing_variance_leaves_the_score_of_its_theta_quiet():
    """Held in phi, the draws of an eta with omega near zero would give its mean a score of order 1 / omega."""
    problem = curved_problem()
    free = problem.start.clone()
    free[problem.names.index("omega.s")] = -7.0
    free[problem.names.index("omega.s,b")] = 0.0
    mean, covariance = exact_posterior(problem, free)
    raw = torch.zeros(problem.n_subjects, Gaussian().outputs(2), dtype=F64)
    wide = Approximation(Gaussian(), raw, mean, 1.1 * torch.linalg.cholesky(covariance))
    eta, log_q = wide.draw(400, torch.Generator().manual_seed(9))
    found = SimulatedLikelihood(problem, free, eta, log_q)(free)
    exact = torch.func.jacrev(lambda x: exact_log_likelihood(problem, x))(free)
    slope = problem.names.index("tvs")
    torch.testing.assert_close(found.scores[:, slope], exact[:, slope], rtol=0.02, atol=0.1)
    held = SimulatedLikelihood(problem, free, eta, log_q, Chart(problem))(free)
    assert float(held.score_noise[slope, slope]) > 100 * float(found.score_noise[slope, slope])


def test_directions_are_derivatives_along_a_joint_move():
    problem = oral_problem()
    chart = Chart(problem)
    free = problem.start
    eta = 0.2 * torch.randn(2, problem.n_subjects, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    along = torch.randn(2, 1, problem.n_subjects, 2, generator=torch.Generator().manual_seed(3), dtype=F64)
    found = problem.predict(eta, problem.values(free), 1, chart.directions(free, along)).jac
    h = 1e-5
    for d, a in enumerate(chart.others):
        unit = torch.zeros(problem.P, dtype=F64)
        unit[a] = h
        ahead = problem.predict(eta + h * along[d], problem.values(free + unit)).f
        behind = problem.predict(eta - h * along[d], problem.values(free - unit)).f
        torch.testing.assert_close(found[d], (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-8)


def test_omega_takes_the_part_its_structure_has():
    problem = curved_problem()
    wanted = torch.tensor([[0.7, -0.1], [-0.1, 0.2]], dtype=F64)
    free = Chart(problem).with_omega(problem.start, wanted)
    torch.testing.assert_close(problem.omega(free), wanted)
    diagonal = oral_problem()
    free = Chart(diagonal).with_omega(diagonal.start, wanted)
    torch.testing.assert_close(diagonal.omega(free), torch.diag(wanted.diagonal()))
    kept = [n for n in range(diagonal.P) if not diagonal.names[n].startswith("omega")]
    assert torch.equal(free[kept], diagonal.start[kept])
