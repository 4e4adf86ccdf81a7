"""The parts of SAEM: its kernels leave posteriors as they are, its expectations and its M-step are those of EM."""

from __future__ import annotations

import math
from functools import cache

import pandas as pd
import pytest
import torch
from inference.cases import curved_problem, exact_log_likelihood, exact_maximum, exact_posterior
from problems import F64, curve_problem, exact, exact_scores, maximum_likelihood, straight_problem

import nlmegen as nl
from nlmegen.inference.averages import Average, Metric
from nlmegen.inference.chains import Chains
from nlmegen.inference.expectation import Sweeper, expectation
from nlmegen.inference.families import log_diagonal
from nlmegen.inference.kernels import Proposal, anchored, chosen, pick, walk
from nlmegen.inference.mstep import closed_sigmas, maximisation
from nlmegen.inference.transport import Chart
from nlmegen.maths.quadrature import tensor_grid
from nlmegen.model.problem import LOG_2PI


class Twofold(nl.Model):
    """y = (tvb + eta.b)^2 + eps: two modes, at plus and minus the root of y."""

    tvb = nl.Theta(0.15)
    iiv = nl.Omega(b=1.0)
    cp = nl.Additive(0.5)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(base=(theta.tvb + eta.b) ** 2, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + 0.0 * t)


def twofold_problem() -> nl.Problem:
    rows = []
    for i, y in enumerate((1.2, 2.0, 0.3, 1.6)):
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1})
        rows += [{"ID": i + 1, "TIME": 1.0 + j, "AMT": 0.0, "DV": y + 0.2 * j, "EVID": 0} for j in range(2)]
    return nl.Problem(Twofold(), nl.read_nonmem(pd.DataFrame(rows)))


def sweeps(problem, proposal, state, count, generator, walking=True):
    """States `[sweep, chain, subject, q]` and weighted expectations of chains that start at `state`."""
    free, values = problem.start, problem.values(problem.start)
    chart = Chart(problem)
    sweeper = Sweeper(chart, proposal.draws * len(state))
    moves = torch.zeros(problem.n_subjects, problem.q, problem.P, dtype=F64)
    states, means, seconds = [], [], []
    for k in range(count):
        eta, log_q = proposal.around(state, generator)
        found = sweeper(free, moves, eta, log_q)
        index = pick(found.log_weights, generator)
        state, height = chosen(eta, index), chosen(found.log_weights + log_q, index)
        if walking:
            root = values.factor[None] if k % 2 else proposal.root[0]
            state, _ = walk(problem, values, state, height, root, generator)
        states.append(state)
        means.append(found.mean)
        seconds.append(found.second)
    return torch.stack(states), torch.stack(means), torch.stack(seconds)


def within(estimates, truth, errors=5.0):
    """Averages over chains (axis 0), each chain an independent estimate, lie within so many standard errors."""
    se = estimates.std(0) / math.sqrt(len(estimates))
    assert bool(((estimates.mean(0) - truth).abs() < errors * se + 1e-12).all())
    assert bool((se < 0.2 * (truth.abs() + 0.5)).all())  # or nothing was tested


@pytest.mark.parametrize("walking", [True, False])
def test_a_wrong_proposal_leaves_a_gaussian_posterior_as_it_is(walking):
    problem, generator = curved_problem(), torch.Generator().manual_seed(1)
    mean, cov = exact_posterior(problem, problem.start)
    root = torch.linalg.cholesky(cov)
    sd = cov.diagonal(dim1=-2, dim2=-1).sqrt()
    centre = torch.stack((mean + 0.8 * sd, mean - 1.5 * sd))
    proposal = Proposal(centre, torch.stack((0.7 * root, 1.4 * root)), (2, 1))
    normal = torch.randn(1500, *mean.shape, generator=generator, dtype=F64)
    begin = mean + torch.einsum("nij,cnj->cni", root, normal)
    states, means, seconds = sweeps(problem, proposal, begin, 6, generator, walking)
    second = cov + mean.unsqueeze(-1) * mean.unsqueeze(-2)
    within(states[-1], mean)
    within(states[-1].unsqueeze(-1) * states[-1].unsqueeze(-2), second)
    within(means.mean(0), mean)
    within(seconds.mean(0), second)
    assert float((states[-1] == begin).all(-1).to(F64).mean()) < 0.8  # the chains did move


def test_all_draws_together_say_more_than_the_states():
    problem, generator = curved_problem(), torch.Generator().manual_seed(5)
    mean, cov = exact_posterior(problem, problem.start)
    proposal = Proposal(mean[None], torch.linalg.cholesky(cov)[None], (8,))
    states, means, _ = sweeps(problem, proposal, mean.expand(100, -1, -1), 6, generator)
    assert float(means[1:].std(1).mean()) < 0.4 * float(states[1:].std(1).mean())


def test_both_modes_of_a_posterior_get_their_mass():
    problem, generator = twofold_problem(), torch.Generator().manual_seed(2)
    values = problem.values(problem.start)
    grid = torch.linspace(-6.0, 6.0, 4001, dtype=F64)
    log_joint = problem.log_joint(grid[:, None, None].expand(-1, problem.n_subjects, 1), values)
    density = torch.softmax(log_joint, 0)
    left = (density * (grid < -0.15)[:, None]).sum(0)
    mean, second = (density * grid[:, None]).sum(0), (density * grid[:, None] ** 2).sum(0)
    assert bool(((left > 0.05) & (left < 0.95)).all())
    # the Laplace component knows one mode of each subject
    anchor = anchored(problem, values, torch.ones(1, problem.n_subjects, 1, dtype=F64))
    for _ in range(4):
        anchor = anchored(problem, values, torch.stack((anchor.ahead, anchor.eta)))
    assert bool((anchor.eta > 0).all())
    centre = torch.stack((anchor.eta, torch.zeros_like(anchor.eta)))
    roots = torch.stack((anchor.root, values.factor.expand_as(anchor.root)))
    proposal = Proposal(centre, roots, (3, 1))
    begin = grid[torch.multinomial(density.T, 1500, replacement=True, generator=generator).T]
    states, means, seconds = sweeps(problem, proposal, begin[..., None], 6, generator)
    within((states[-1, ..., 0] < -0.15).to(F64), left)
    within(means[..., 0].mean(0), mean)
    within(seconds[..., 0, 0].mean(0), second)
    # and chains that all begin in one mode find the other
    states, _, _ = sweeps(problem, proposal, 0.0 * begin[:300, ..., None] + 1.0, 40, generator)
    within((states[-1, ..., 0] < -0.15).to(F64), left)


def test_draws_of_the_mixture_have_its_density():
    generator = torch.Generator().manual_seed(3)
    centre = torch.tensor([[[0.5, -1.0]], [[-2.0, 0.3]]], dtype=F64)
    root = torch.tensor([[[[0.6, 0.0], [0.3, 0.4]]], [[[1.0, 0.0], [-0.5, 0.8]]]], dtype=F64)
    proposal = Proposal(centre, root, (300, 100))
    # a state that q itself drew takes its place among draws of q
    state = (centre[0] + 0.0).expand(50, 1, 2)
    eta, log_q = proposal.around(state, generator)
    assert torch.equal(log_q, proposal.log_density(eta))
    # integral of a density with finite variance over q's draws: E_q[N(eta) / q(eta)] = 1
    target = torch.distributions.MultivariateNormal(
        torch.tensor([-0.5, -0.5], dtype=F64), torch.eye(2, dtype=F64)
    )
    ratio = (target.log_prob(eta[:, :, 0]) - log_q[..., 0]).exp().mean(0)
    assert abs(float(ratio.mean()) - 1.0) < 5.0 * float(ratio.std()) / math.sqrt(len(ratio))


def exact_draws(problem, free):
    """Quadrature nodes of every subject's Gaussian posterior as weighted draws of one chain."""
    mean, cov = exact_posterior(problem, free)
    x, log_weight = tensor_grid(7, problem.q)
    factor = torch.linalg.cholesky(cov)
    eta = mean + torch.einsum("nij,kj->kni", factor, x)
    log_q = (-0.5 * (x * x).sum(-1) - 0.5 * problem.q * LOG_2PI - log_weight - math.log(len(x)))[:, None]
    return eta[:, None], (log_q - log_diagonal(factor))[:, None]


@pytest.mark.parametrize("make", [straight_problem, curve_problem])
def test_expected_scores_are_those_of_the_likelihood(make):
    problem = make()
    free = problem.start + 0.1 * torch.randn(problem.P, generator=torch.Generator().manual_seed(4), dtype=F64)
    chart = Chart(problem)
    for at in (chart, Chart(problem, frozenset({0}))):  # carried in two ways
        moves = at.transport(
            free, problem.values(free), torch.zeros(problem.n_subjects, problem.q, dtype=F64)
        )
        found = expectation(at, free, moves, *exact_draws(problem, free))
        torch.testing.assert_close(found.scores[0], exact_scores(problem, free), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(found.mean[0], exact(problem, free).mean, rtol=1e-8, atol=1e-8)
        assert found.log_likelihood == pytest.approx(exact(problem, free).total, abs=1e-8)


def one_step(problem, free):
    chart = Chart(problem)
    moves = chart.transport(free, problem.values(free), torch.zeros(problem.n_subjects, problem.q, dtype=F64))
    found = expectation(chart, free, moves, *exact_draws(problem, free))
    return maximisation(chart, free, moves, found, closed_sigmas(chart, free))


def test_the_m_step_of_pairs_is_that_of_the_textbook():
    problem = straight_problem(n=9)
    free = problem.start + 0.2
    assert problem.mu_pairs == [(0, 0), (1, 1)]
    known, values = exact(problem, free), problem.values(free)
    after = problem.values(one_step(problem, free))
    mean = known.mean.mean(0)
    for k, name in enumerate(("tvb", "tvs")):
        assert float(after.theta[name]) == pytest.approx(float(values.theta[name] + mean[k]), abs=1e-10)
    off = known.mean - mean
    moment = (known.covariance + off.unsqueeze(-1) * off.unsqueeze(-2)).mean(0)
    torch.testing.assert_close(after.omega, moment, rtol=1e-9, atol=1e-9)
    seen, t = problem.population.mask, problem.population.time
    z = torch.stack((torch.ones_like(t), t), -1) * seen[..., None]
    fit = float(values.theta["tvb"]) + float(values.theta["tvs"]) * t
    residual = (problem.population.dv - fit) * seen - (z @ known.mean[..., None])[..., 0]
    square = (residual**2).sum() + (z @ known.covariance @ z.mT).diagonal(dim1=-2, dim2=-1).sum()
    assert float(after.sigma["cp.additive"]) ** 2 == pytest.approx(float(square / seen.sum()), rel=1e-9)


@cache
def curved_maximum():
    return exact_maximum(curved_problem())[0]


@pytest.mark.parametrize(
    ("make", "maximum"),
    [(lambda: straight_problem(n=30), maximum_likelihood), (curved_problem, lambda _: curved_maximum())],
)
def test_the_m_step_stands_still_at_the_maximum_likelihood_and_climbs_elsewhere(make, maximum):
    problem = make()
    best = maximum(problem)
    torch.testing.assert_close(one_step(problem, best), best, rtol=0, atol=1e-7)
    free = best + 0.15 * torch.randn(problem.P, generator=torch.Generator().manual_seed(6), dtype=F64)
    for _ in range(5):
        after = one_step(problem, free)
        assert exact_log_likelihood(problem, after).sum() > exact_log_likelihood(problem, free).sum()
        free = after


def test_averages_close_in_on_the_maximum_with_the_noise_that_they_claim():
    problem = curved_problem()
    best = curved_maximum()
    losses, claimed = [], []
    for seed in range(6):
        chains = Chains(problem, best + 0.05, 4, torch.Generator().manual_seed(seed))
        chains.aim(2)
        average = Average(chains, Metric.at(chains, torch.zeros(problem.P, dtype=torch.bool)))
        for _ in range(32):
            average.advance()
        losses.append(average.metric.length(average.mean - best))
        claimed.append(average.loss)
    ratio = sum(losses) / sum(claimed)  # chi-squares on P degrees of freedom, six of them
    assert 0.3 < ratio < 3.0
    assert max(losses) < 0.1
