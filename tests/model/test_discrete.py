"""Counts and categories: scipy's laws, sums to one, derivatives, draws, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from model.single_endpoints import F64, bound, by_autograd, dense, local
from scipy import special, stats

import nlmegen as nl

CASES = [
    (nl.Poisson(), 2.3, range(60)),
    (nl.NegativeBinomial(0.7), 2.3, range(400)),
    (nl.NegativeBinomial(1e-7), 2.3, range(60)),
    (nl.Bernoulli(), 0.3, range(2)),
    (nl.Bernoulli(scale="logit"), -1.3, range(2)),
    (nl.Ordered(gaps=[0.8, 1.7]), 0.6, range(4)),
    (nl.Ordered(), 0.6, range(2)),
]


def masses(endpoint, f: float, y: np.ndarray) -> np.ndarray:
    """P(Y = y) by scipy."""
    if isinstance(endpoint, nl.NegativeBinomial):
        size = 1 / endpoint.dispersion
        return stats.nbinom.pmf(y, size, size / (size + f))
    if isinstance(endpoint, nl.Poisson):
        return stats.poisson.pmf(y, f)
    if isinstance(endpoint, nl.Bernoulli):
        return stats.bernoulli.pmf(y, f if endpoint.scale == "probability" else special.expit(f))
    cuts = np.concatenate(([0.0], np.cumsum(endpoint.gaps)))
    above = np.concatenate(([1.0], special.expit(f - cuts), [0.0]))
    return (above[:-1] - above[1:])[y]


@pytest.mark.parametrize(("endpoint", "f", "support"), CASES)
def test_the_law_is_scipys_and_sums_to_one(endpoint, f: float, support: range) -> None:
    y = np.array(support)
    problem = bound(endpoint, y.astype(float).tolist())
    found, rows = local(problem, [f] * len(y))
    mass = found.log_p.exp().flatten().numpy()
    assert mass.sum() == pytest.approx(1.0, rel=1e-12)
    some = mass > 1e-200
    tolerance = 1e-7 if isinstance(endpoint, nl.NegativeBinomial) and endpoint.dispersion < 1e-3 else 1e-11
    np.testing.assert_allclose(mass[some], masses(endpoint, f, y)[some], rtol=tolerance)
    score, second = by_autograd(problem, rows)
    torch.testing.assert_close(found.score.flatten(), score, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(
        dense(found.second, len(y)).diagonal(), second.diagonal(), rtol=1e-10, atol=1e-12
    )
    information = mass @ found.score.flatten().numpy() ** 2
    np.testing.assert_allclose(found.weight.diagonal.flatten(), information, rtol=1e-9)
    mean = float(problem.natural(rows.detach())[0, 0, 0])
    assert mean == pytest.approx(mass @ y, rel=1e-10)
    variance, _, _ = problem.variance(rows.detach(), problem.values(problem.start))
    assert float(variance.flatten()[0]) == pytest.approx(mass @ (y - mean) ** 2, rel=1e-9)
    assert problem.n_gaussian == 0
    assert problem.ofv(-3.0) == 6.0


@pytest.mark.parametrize(("endpoint", "f", "support"), CASES)
def test_derivatives_of_the_variance(endpoint, f: float, support: range) -> None:
    sigma = {k: torch.tensor(v, dtype=F64) for k, v in endpoint.start.items()}
    x = torch.tensor([f], dtype=F64, requires_grad=True)
    value, slope, bend = (part.expand(1) for part in endpoint.variance(x, sigma))
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    torch.testing.assert_close(slope, first)
    second = torch.autograd.grad(first.sum(), x)[0] if first.requires_grad else torch.zeros_like(x)
    torch.testing.assert_close(bend.detach(), second)


@pytest.mark.parametrize("dispersion", [1e-9, 1e-5, 2e-4, 1e-3, 0.05, 3.0])
def test_the_negative_binomial_law_close_to_poissons(dispersion: float) -> None:
    """sum over j < y of log(1 + dispersion j), and its derivative in the dispersion."""
    problem = bound(nl.NegativeBinomial(dispersion), [0.0, 1.0, 7.0, 40.0])
    free = problem.start.clone().requires_grad_()
    f = torch.full((1, 1, 4), 5.0, dtype=F64)
    log_p = problem.local(f, problem.values(free)).log_p.flatten()
    for k, y in enumerate((0, 1, 7, 40)):
        j = np.arange(y)
        truth = np.log1p(dispersion * j).sum() + y * math.log(5.0) - math.lgamma(y + 1)
        truth -= (y + 1 / dispersion) * math.log1p(5.0 * dispersion)
        assert log_p[k].item() == pytest.approx(truth, abs=1e-6 if dispersion < 1e-6 else 1e-9)
        slope = (j / (1 + dispersion * j)).sum() - (y + 1 / dispersion) * 5.0 / (1 + 5.0 * dispersion)
        if dispersion > 1e-6:
            slope += math.log1p(5.0 * dispersion) / dispersion**2
            (found,) = torch.autograd.grad(log_p[k], free, retain_graph=True)
            at = problem.names.index("y.dispersion")
            assert found[at].item() == pytest.approx(slope * dispersion, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("endpoint", "f", "support"), CASES)
def test_draws_follow_the_law(endpoint, f: float, support: range) -> None:
    problem = bound(endpoint, [0.0])
    rows = torch.full((20_000, 1, 1), f, dtype=F64)
    dv = problem.simulate_dv(rows, problem.values(problem.start), torch.Generator().manual_seed(3))
    counts = np.bincount(dv.flatten().numpy().astype(int), minlength=len(support)).astype(float)
    expected = 20_000 * masses(endpoint, f, np.array(support))
    common = expected > 5
    rest = expected[~common].sum()
    seen = np.append(counts[: len(support)][common], 20_000 - counts[: len(support)][common].sum())
    ideal = np.append(expected[common], rest)
    if rest < 1:
        seen, ideal = seen[:-1], ideal[:-1]
    assert stats.chisquare(seen, ideal * seen.sum() / ideal.sum()).pvalue > 1e-3


def test_a_logit_far_out_is_exact_where_a_probability_is_rounded() -> None:
    problem = bound(nl.Bernoulli(scale="logit"), [0.0, 1.0])
    found, rows = local(problem, [40.0, -745.0])
    np.testing.assert_allclose(found.log_p.flatten(), [-40.0, -745.0], rtol=1e-14)
    assert bool(torch.isfinite(by_autograd(problem, rows)[1]).all())
    rounded, _ = local(bound(nl.Bernoulli(), [0.0, 1.0]), [1.0, 0.0])
    assert bool(torch.isneginf(rounded.log_p).all())
    assert bool(torch.isfinite(rounded.score).all())


@pytest.mark.parametrize(
    ("endpoint", "dv", "says"),
    [
        (nl.Poisson(), 1.5, "takes a count, got DV 1.5 at id 1 time 1"),
        (nl.NegativeBinomial(0.5), -1.0, "takes a count, got DV -1"),
        (nl.Bernoulli(), 2.0, "takes 0 or 1, got DV 2"),
        (nl.Ordered(gaps=[1.0]), 3.0, "takes a category, got DV 3"),
    ],
)
def test_what_counts_and_categories_refuse(endpoint, dv: float, says: str) -> None:
    with pytest.raises(nl.DataError, match=says):
        bound(endpoint, [dv])
    with pytest.raises(nl.DataError, match="takes whole numbers and no limits"):
        bound(endpoint, [1.0], cens=[1])


def test_a_prediction_that_is_no_probability_is_refused_before_a_fit() -> None:
    problem = bound(nl.Bernoulli(), [1.0])
    problem = problem.starting(problem.start + torch.tensor([2.0, 0.0], dtype=F64))
    with pytest.raises(nl.DataError, match="a probability between 0 and 1"):
        problem.check(problem.values(problem.start))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: nl.Ordered(gaps=[1.0, -1.0]), "gap2.*positive number"),
        (lambda: nl.NegativeBinomial(0.0), "dispersion.*positive number"),
        (lambda: nl.Bernoulli(scale="odds"), "expected 'probability' or 'logit'"),
        (lambda: nl.StudentT(df=4), "needs a scale"),
        (lambda: nl.StudentT(0.3, df=0), "expected a positive number"),
        (lambda: nl.BoxCox(0.3, math.inf), "expected a number"),
        (lambda: nl.Additive(0.3, blq="M2"), "expected one of 'M3', 'M4', 'M1', 'half'"),
        (lambda: nl.Correlation("a", "a"), "expected two endpoints"),
        (lambda: nl.Correlation("a", "b", 1.0), "between -1 and 1"),
    ],
)
def test_what_a_declaration_refuses(make, says: str) -> None:
    with pytest.raises(nl.ModelError, match=says):
        make()
