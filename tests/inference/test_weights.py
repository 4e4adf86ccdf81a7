"""Network weights beside the parameters: gradients, metric, estimation by FOCEI and by ELBO, and what a fit says."""

from __future__ import annotations

import functools
import math

import pandas as pd
import pytest
import torch
from inference.cases import exact_log_likelihood, oral_table
from problems import F64
from torch import exp

import nlmegen as nl
from nlmegen.inference import objective
from nlmegen.inference.conditional import FOCEIObjective
from nlmegen.inference.estimate import Progress
from nlmegen.inference.joint import Point, descend
from nlmegen.inference.learn import bound_step, drawn_steps, learn_on_the_bound
from nlmegen.inference.vem import expectation_step, start_at
from nlmegen.inference.weights import Linear, describe


class Straight(nl.Model):
    """y = net(x) + eta.b + (tvs + eta.s) t + eps: linear in the weights and in eta."""

    tvs = nl.Theta(0.3)
    iiv = nl.Omega(b=0.5, s=0.2)
    cp = nl.Additive(0.5)
    structure = nl.OneCompartment()
    net = nl.Neural(inputs=1, hidden=())

    def individual(self, theta, eta, cov):
        return dict(level=self.net(cov.x) + eta.b, slope=theta.tvs + eta.s, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.level + p.slope * t)


class Bent(Straight):
    """The same with a penalty, in which the coefficient of x is felt."""

    net = nl.Neural(inputs=1, hidden=(), penalty=8.0)


class Sized(nl.Model):
    """An oral dose whose clearance depends on weight by a network, with combined error."""

    tvka = nl.Theta(1.2, lower=0)
    tvcl = nl.Theta(3.0, lower=0, fixed=True)
    tvv = nl.Theta(30.0, lower=0)
    iiv = nl.Omega(ka=0.16, cl=0.09)
    cp = nl.Combined(additive=0.05, proportional=0.15)
    structure = nl.OneCompartment(absorption="first-order")
    net = nl.Neural(inputs=1, hidden=(3,), scale=70.0, penalty=0.5, seed=2)

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * exp(self.net(cov.wt) + eta.cl),
            v=theta.tvv,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def straight_table(n: int = 16, seed: int = 3, inputs: int = 1) -> pd.DataFrame:
    """3 to 5 samples, y = 1 + 0.8 x + b + (0.4 + s) t + eps with x normal."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        x, b, s, *more = torch.randn(2 + inputs, generator=generator, dtype=F64).tolist()
        given = {"X": x, **{f"X{k}": z for k, z in enumerate(more, 2)}}
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1, **given})
        for j in range(3 + i % 3):
            t = 0.8 * (j + 1) + 0.1 * (i % 3)
            noise = torch.randn((), generator=generator, dtype=F64).item()
            y = 1.0 + 0.8 * x + 0.7 * b + (0.4 + 0.5 * s) * t + 0.4 * noise
            rows.append({"ID": i + 1, "TIME": t, "AMT": 0.0, "DV": y, "EVID": 0, **given})
    return pd.DataFrame(rows)


def straight_problem(page: type[nl.Model] = Straight, n: int = 16) -> nl.Problem:
    return nl.Problem(page(), nl.read_nonmem(straight_table(n)))


def sized_problem(n: int = 10) -> nl.Problem:
    return nl.Problem(Sized(), nl.read_nonmem(oral_table(n)))


@functools.cache
def exact_penalised_maximum(page: type[nl.Model]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(free, weights, log likelihood) that maximise the exact likelihood less half the penalty, by Newton's method."""
    problem = straight_problem(page)
    p = problem.P

    def total(x):
        there = problem.with_weights(x[p:])
        penalty = problem.model.networks.penalty(x[p:])
        return exact_log_likelihood(there, x[:p]).sum() - 0.5 * penalty

    x = torch.cat((problem.start, problem.weights))
    for _ in range(40):
        gradient = torch.func.grad(total)(x)
        curvature, axes = torch.linalg.eigh(torch.func.jacrev(torch.func.grad(total))(x))
        step, size = axes @ ((axes.mT @ gradient) / curvature.abs().clamp_min(1e-3)), 1.0
        while total(x + size * step) < total(x) and size > 1e-8:
            size /= 2
        x = x + size * step
        if float(gradient.abs().max()) < 1e-8:
            break
    log_likelihood = exact_log_likelihood(problem.with_weights(x[p:]), x[:p]).sum()
    return x[:p], x[p:], float(log_likelihood)


def test_the_gradient_in_the_weights_is_that_of_the_objective(monkeypatch) -> None:
    problem = sized_problem()
    free = problem.start + 0.1
    found = FOCEIObjective(problem)(free[None], scores=True, weights=True)

    def value(weights):
        return float(FOCEIObjective(problem.with_weights(weights))(free[None], found.eta).total[0])

    for k in range(len(problem.weights)):
        move = torch.zeros_like(problem.weights)
        move[k] = 1e-4
        difference = (value(problem.weights + move) - value(problem.weights - move)) / 2e-4
        assert float(found.weight_gradient[0, k]) == pytest.approx(difference, rel=1e-6, abs=1e-6)
    monkeypatch.setattr(objective, "PIECE", 60)  # three subjects at a time
    pieces = FOCEIObjective(problem)(free[None], found.eta, scores=True, weights=True)
    torch.testing.assert_close(pieces.weight_gradient, found.weight_gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pieces.score, found.score, rtol=1e-9, atol=1e-9)


def test_the_linear_model_is_exact_where_the_page_is_linear() -> None:
    problem = straight_problem()
    free = problem.start
    linear = Linear.at(problem, free, 0.3 * torch.ones(problem.n_subjects, 2, dtype=F64))
    assert linear.thetas == [0]

    def total(x):
        there = problem.with_weights(problem.weights + x[1:])
        return exact_log_likelihood(there, torch.cat((free[:1] + x[:1], free[1:]))).sum()

    hessian = torch.func.jacrev(torch.func.grad(total))(torch.zeros(3, dtype=F64))
    torch.testing.assert_close(linear.information, -hessian, rtol=1e-6, atol=1e-6)

    def modes(x):
        there = problem.with_weights(problem.weights + x[1:])
        moved = torch.cat((free[:1] + x[:1], free[1:]))
        return FOCEIObjective(there)(moved[None]).eta[0]

    move = torch.tensor([0.3, -0.5, 0.2], dtype=F64)
    torch.testing.assert_close(modes(move) - modes(0 * move), linear.carry @ move, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("page", [Straight, Bent])
def test_focei_reaches_the_exact_optimum_of_a_linear_page(page) -> None:
    free, weights, log_likelihood = exact_penalised_maximum(page)
    fit = nl.fit(page(), nl.read_nonmem(straight_table()), nl.FOCEI())
    assert fit.converged
    # the weights stop short of the optimum by less than the tolerance of the search
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=0.02)
    torch.testing.assert_close(fit.model.weights, weights, atol=0.02, rtol=0.02)
    torch.testing.assert_close(fit.estimate.free, free, atol=0.03, rtol=0.03)
    # what is reported is the objective function of the weights alone, without their penalty
    again = nl.fit(fit.model, fit.population, nl.FOCEI(evaluate=True))
    assert again.ofv == pytest.approx(fit.ofv, abs=1e-6)
    assert torch.equal(again.model.weights, fit.model.weights)


def test_a_penalty_pulls_the_weights_and_not_the_bias() -> None:
    plain, bent = (exact_penalised_maximum(page)[1] for page in (Straight, Bent))
    data = nl.read_nonmem(straight_table())
    found = [nl.fit(page(), data, nl.FOCEI()).model.weights for page in (Straight, Bent)]
    assert abs(float(bent[0])) < 0.8 * abs(float(plain[0]))
    assert abs(float(found[1][0])) < 0.8 * abs(float(found[0][0]))
    assert float(found[1][1]) == pytest.approx(float(found[0][1]), rel=0.2)


def test_standard_errors_are_those_at_fixed_weights() -> None:
    fit = nl.fit(Sized(), nl.read_nonmem(oral_table(24)), nl.FOCEI(covariance="R"))
    assert fit.converged
    assert fit.estimate.weights is not None
    again = nl.fit(fit.model, fit.population, nl.FOCEI(evaluate=True, covariance="R"))
    torch.testing.assert_close(again.uncertainty.se, fit.uncertainty.se, rtol=1e-3, atol=0.0)
    words = " ".join(fit.notes)
    assert "the standard errors of the parameters hold given these weights" in words
    penalty = float(fit.model.networks.penalty(fit.model.weights))
    assert f"the penalty on the weights is {penalty:.4g}" in words
    assert "no part of the objective function" in words


def test_the_search_lowers_the_penalised_objective_and_settles() -> None:
    problem = sized_problem(14)
    seen = []
    start = Point.at(FOCEIObjective(problem), problem.start, None)
    found = descend(start, tolerance=1e-2, iterations=200, watch=lambda point, step: seen.append(point.value))
    assert found.settled
    assert seen == sorted(seen, reverse=True)
    assert found.point.value < start.value - 1.0
    penalty = float(problem.model.networks.penalty(found.point.problem.weights))
    assert found.point.value - found.point.ofv == pytest.approx(penalty, rel=1e-9)
    assert torch.equal(problem.weights, Sized().weights)  # the problem handed over is as it was
    short = descend(start, tolerance=1e-2, iterations=3)
    assert not short.settled
    assert short.iterations == 3


def test_an_interrupted_fit_keeps_its_weights() -> None:
    def stop(progress: Progress) -> None:
        if "networks" in progress.stage and progress.step == 5:
            raise KeyboardInterrupt

    fit = nl.fit(Sized(), nl.read_nonmem(oral_table(14)), nl.FOCEI(), progress=stop)
    assert not fit.converged
    assert "interrupted" in fit.reason
    assert not torch.equal(fit.model.weights, Sized().weights)
    again = nl.fit(fit.model, fit.population, nl.FOCEI(evaluate=True))
    assert again.ofv == pytest.approx(fit.ofv, abs=1e-6)


# -- what the weights can take up -----------------------------------------------------------------------------------
class Wide(Straight):
    """A network that reads eight covariates of which one matters."""

    net = nl.Neural(inputs=8, hidden=())

    def individual(self, theta, eta, cov):
        x = [cov.x, *(cov[f"x{k}"] for k in range(2, 9))]
        return dict(level=self.net(*x) + eta.b, slope=theta.tvs + eta.s, cl=1.0, v=1.0)


class Reined(Wide):
    """The same with a penalty that leaves little freedom."""

    net = nl.Neural(inputs=8, hidden=(), penalty=200.0)


def test_the_share_absorbed_is_that_of_a_regression() -> None:
    """With precise data a linear network is a regression of eta.b on covariates: k of N degrees of freedom."""
    n = 40
    data = nl.read_nonmem(straight_table(n, inputs=8))
    model = Wide().with_values(sigma={"cp.additive": 1e-4})
    eta = torch.zeros(n, 2, dtype=F64)
    problem = nl.Problem(model, data)
    share = Linear.at(problem, problem.start, eta).absorbed(model.networks.penalties)
    assert float(share[0]) == pytest.approx(9 / n, rel=1e-3)
    assert float(share[1]) == pytest.approx(0.0, abs=1e-6)
    # a ridge regression: trace of X (X'X + lambda omega^2)^-1 X', the constant free
    x = torch.cat([problem.cov_observation[k][:, :1] for k in ("x", *(f"x{j}" for j in range(2, 9)))], 1)
    x = torch.cat((x, torch.ones(n, 1, dtype=F64)), 1)
    ridge = torch.diag(torch.tensor([200.0 * 0.5] * 8 + [0.0], dtype=F64))
    wanted = torch.trace(x @ torch.linalg.solve(x.mT @ x + ridge, x.mT)) / n
    reined = Linear.at(problem, problem.start, eta).absorbed(Reined().networks.penalties)
    assert float(reined[0]) == pytest.approx(float(wanted), rel=1e-3)
    assert float(reined[0]) < 0.5 * float(share[0])


class Greedy(Sized):
    """Seventy-one weights that read weight and four numbers without meaning."""

    net = nl.Neural(inputs=5, hidden=(10,), scale=(70.0, 1.0, 1.0, 1.0, 1.0))

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * exp(self.net(cov.wt, cov.x1, cov.x2, cov.x3, cov.x4) + eta.cl),
            v=theta.tvv,
        )


def test_a_fit_says_that_its_network_ate_omega() -> None:
    """Sixty patients, omega_cl^2 = .09 in truth: a large network on covariates leaves nothing of it."""
    table = oral_table(60).drop(columns="WT")
    generator = torch.Generator().manual_seed(8)
    for k in range(5):
        draws = torch.randn(60, generator=generator, dtype=F64).tolist()
        name, middle = ("WT", 70.0) if k == 0 else (f"X{k}", 0.0)
        spread = 10.0 if k == 0 else 1.0
        table[name] = table["ID"].map({i + 1: middle + spread * x for i, x in enumerate(draws)})
    data = nl.read_nonmem(table)
    problem = nl.Problem(Greedy(), data)
    point = Point.at(FOCEIObjective(problem), problem.start, None)
    modest = describe(problem, problem.start, point.evaluation.eta[0])
    found = descend(point, tolerance=0.05, iterations=60).point
    assert float(found.problem.omega(found.free)[1, 1]) < 0.03
    words = describe(found.problem, found.free, found.evaluation.eta[0])
    assert any("eta.cl" in w and "can absorb random effects" in w for w in words)
    assert not any("eta.ka" in w for w in words + modest)
    small = nl.fit(Sized(), data, nl.FOCEI(covariance=None))
    assert float(small.model.omega[1, 1]) > 0.04
    assert not any("absorb" in note for note in small.notes)


# -- variational fits -----------------------------------------------------------------------------------------------
def test_a_step_on_the_bound_raises_it_and_carries_the_means() -> None:
    problem = sized_problem(14)
    at = start_at(problem, problem.start)
    for _ in range(6):
        at = expectation_step(problem, at)
    there, ahead, promise = bound_step(problem, at)
    assert promise > 0.0
    assert float(ahead.bound.sum()) > float(at.bound.sum())
    assert not torch.equal(there.weights, problem.weights)
    assert not torch.equal(ahead.mean, at.mean)
    assert torch.equal(ahead.factor, at.factor)


def test_variational_em_learns_the_weights_of_a_linear_page() -> None:
    """With a Gaussian posterior the bound is the likelihood: the same optimum, penalty and all."""
    problem = straight_problem(Bent)
    free, weights, log_likelihood = exact_penalised_maximum(Bent)
    there, at = learn_on_the_bound(problem, problem.start, tolerance=1e-5, iterations=400)
    assert float(at.bound.sum()) == pytest.approx(log_likelihood, abs=1e-2)
    torch.testing.assert_close(there.weights, weights, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(at.free, free, atol=3e-2, rtol=3e-2)


def test_steps_on_draws_climb_the_simulated_likelihood() -> None:
    """From draws of the exact posteriors at poor weights: towards the optimum of the weights at these parameters."""
    problem = straight_problem(Bent)
    free, weights, _ = exact_penalised_maximum(Bent)
    poor = problem.with_weights(weights + torch.tensor([0.15, -0.1], dtype=F64))
    found = FOCEIObjective(poor)(free[None])
    root = torch.linalg.cholesky(found.cov[0])
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(100, 4, problem.n_subjects, 2, generator=generator, dtype=F64)
    eta = found.eta[0] + (root @ normal.unsqueeze(-1)).squeeze(-1)
    log_q = (
        -0.5 * normal.square().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - math.log(2 * math.pi)
    )
    there, carried, length = drawn_steps(poor, free, eta, log_q)
    assert float((there.weights - weights).abs().max()) < 0.02
    assert length > 0.0
    # carried draws are the posterior's at the new weights
    now = FOCEIObjective(there)(free[None]).eta[0]
    torch.testing.assert_close(carried - eta, (now - found.eta[0]).expand_as(eta), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_elbo_and_focei_agree_on_a_linear_page() -> None:
    data = nl.read_nonmem(straight_table())
    _, weights, log_likelihood = exact_penalised_maximum(Bent)
    fit = nl.fit(Bent(), data, nl.ELBO(seed=1, steps=200))
    assert fit.log_likelihood == pytest.approx(log_likelihood, abs=0.1)
    torch.testing.assert_close(fit.model.weights, weights, atol=0.03, rtol=0.05)
    assert any("the penalty on the weights is" in note for note in fit.notes)
    assert fit.bounds["elbo"] <= fit.log_likelihood + 0.1
