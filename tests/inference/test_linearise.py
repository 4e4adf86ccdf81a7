"""The linearised posterior is the exact one of a linear page, and close to the mode of any other."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from inference.cases import curved_problem, exact_posterior, oral_problem
from problems import F64

from nlmegen.inference.ebe import modes
from nlmegen.inference.linearise import gaussian_score, linearise


@pytest.mark.parametrize("steps", [0, 8])
def test_a_linear_page_is_solved_by_steps_no_longer_than_one_prior_sd(steps: int):
    problem = curved_problem()
    values = problem.values(problem.start)
    here = linearise(problem, values, problem.y, problem.mask, steps=steps)
    mean, covariance = exact_posterior(problem, problem.start)
    scale = values.factor @ here.factor
    torch.testing.assert_close(scale @ scale.mT, covariance)
    reached = here.mean @ values.factor.mT
    if steps:
        torch.testing.assert_close(reached, mean)
    else:
        white = torch.linalg.solve(values.factor, mean.mT).mT
        near = white.abs().amax(1) < 1.0
        assert bool(near.any())
        assert not bool(near.all())
        torch.testing.assert_close(reached[near], mean[near])
        torch.testing.assert_close(here.mean[~near].abs().amax(1), torch.ones(int((~near).sum()), dtype=F64))


def test_wider_populations_noisier_samples_and_samples_left_out():
    problem = curved_problem()
    values = problem.values(problem.start)
    n = problem.n_subjects
    spread = torch.full((n, 2), 1.5, dtype=F64)
    noise = torch.full((n, 1), 0.7, dtype=F64)
    mask = problem.mask.clone()
    mask[4, 1:3] = 0.0
    here = linearise(problem, values, problem.y, mask, steps=8, spread=spread, noise=noise)
    # the same posterior from a page with omega_sd x 1.5, sigma x 0.7 and those samples missing
    free = problem.start.clone()
    for name, factor in (("omega.b", 1.5), ("omega.s", 1.5), ("cp.additive", 0.7)):
        free[problem.names.index(name)] += torch.tensor(factor, dtype=F64).log()
    free[problem.names.index("omega.s,b")] *= 1.5
    other = problem.select(torch.arange(n))
    other.mask = mask
    mean, covariance = exact_posterior(other, free)
    scale = values.factor @ here.factor
    torch.testing.assert_close(here.mean @ values.factor.mT, mean)
    torch.testing.assert_close(scale @ scale.mT, covariance)


def test_it_ends_near_the_conditional_mode():
    problem = oral_problem()
    values = problem.values(problem.start)
    here = linearise(problem, values, problem.y, problem.mask, steps=8)
    mode, _ = modes(problem, values)
    sd = (values.factor @ here.factor).square().sum(-1).sqrt()
    assert float(((here.mean @ values.factor.mT - mode) / sd).abs().max()) < 0.2


def test_score_and_information_against_autograd():
    problem = oral_problem()
    values = problem.values(problem.start)
    f = problem.predict(torch.zeros(problem.n_subjects, 2, dtype=F64), values).f.clone().requires_grad_()
    variance, slope, _ = problem.variance(f, values)
    density = -0.5 * ((problem.y - f) ** 2 / variance + variance.log()) * problem.mask
    (expected,) = torch.autograd.grad(density.sum(), f)
    score, weight = (x.detach() for x in gaussian_score(problem.y - f, variance, slope))
    torch.testing.assert_close(score * problem.mask, expected)
    # the information is the variance of the score over observations
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(1), dtype=F64)
    r = variance[0, 0].detach()
    drawn, _ = gaussian_score(noise * r.sqrt(), r.expand(200_000), slope[0, 0].detach().expand(200_000))
    assert float(drawn.var()) == pytest.approx(float(weight[0, 0]), rel=0.02)
    assert float(drawn.mean()) == pytest.approx(0.0, abs=0.02 * float(weight[0, 0]) ** 0.5)


def test_nothing_of_the_padding_gets_in():
    problem = oral_problem()
    values = problem.values(problem.start)
    y = torch.where(problem.mask > 0, problem.y, torch.full_like(problem.y, 1e6))
    clean = linearise(problem, values, problem.y, problem.mask, steps=3)
    dirty = linearise(problem, values, y, problem.mask, steps=3)
    for name in ("mean", "factor", "design"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name)), name
    assert dataclasses.is_dataclass(clean)
