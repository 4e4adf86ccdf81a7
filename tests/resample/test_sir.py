"""Sampling importance resampling against the posterior on a grid, and its warnings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from resample.oneway import Layout, fitted
from torch.distributions import LogNormal

import nlmegen as nl
from nlmegen.fit import Fit
from nlmegen.resample.proposal import Proposal, moments, resample
from nlmegen.resample.sir import sir


@pytest.fixture(scope="module")
def fit() -> nl.Fit:
    return fitted()


@pytest.mark.parametrize("degrees", [5, None])
def test_resamples_follow_the_likelihood(fit: nl.Fit, degrees: int | None) -> None:
    result = sir(fit, samples=4000, resamples=4000, iterations=2, seed=1, degrees=degrees)
    expected, summary = Layout.of(fit.population).posterior(), result.summary()
    ess = float(result.diagnostics["ess"].iloc[-1])
    assert ess > 2000
    for name, row in expected.iterrows():
        spread = float(row["se"])
        assert summary.loc[name, "mean"] == pytest.approx(row["mean"], abs=4.5 * spread / math.sqrt(ess))
        assert summary.loc[name, "se"] == pytest.approx(spread, rel=0.12), name
    if (
        degrees is not None
    ):  # a normal proposal has lighter tails than the likelihood: mended, not recommended
        assert result.diagnostics["khat"].iloc[-1] < 0.5
        assert result.notes == []


def test_rises_of_the_objective_beside_chi_square(fit: nl.Fit) -> None:
    """With mu alone free the likelihood is quadratic: dOFV is chi-square with one degree of freedom."""

    class Known(type(fit.model)):  # type: ignore[misc]
        mu = nl.Theta(5.0)
        iiv = nl.Omega(b=1.0, fixed=True)
        cp = nl.Additive(0.7, fixed=True)

    result = sir(nl.fit(Known(), fit.population, nl.FOCEI()), samples=4000, resamples=4000, iterations=1)
    dofv = result.dofv()
    share = np.array([(result.table["dofv"] < x).mean() for x in dofv["chi2"]])
    error = np.sqrt(dofv.index * (1 - dofv.index) / result.diagnostics["ess"].iloc[-1])
    assert (abs(share - dofv.index) < 4.5 * error).all()
    exact = math.sqrt((1.0 + 0.49 / 4) / 12)
    assert result.summary().loc["mu", "se"] == pytest.approx(exact, rel=0.06)


def test_the_same_seed_gives_the_same_numbers(fit: nl.Fit) -> None:
    first, second = (sir(fit, samples=100, resamples=50, seed=4) for _ in range(2))
    assert first.table.equals(second.table)
    assert not sir(fit, samples=100, resamples=50, seed=5).table.equals(first.table)


def test_priors_are_densities_of_the_natural_parameters(fit: nl.Fit) -> None:
    """Strong priors, the posterior on a grid of logarithms: the prior of log x has the density of x times x."""
    priors = {"mu": (6.0, 0.05), "omega.b": (0.6, 0.2), "cp.additive": (1.0, 0.1)}

    class Informed(type(fit.model)):  # type: ignore[misc]
        mu = nl.Theta(5.0, lower=0, prior=LogNormal(math.log(6.0), 0.05))
        iiv = nl.Omega(b=1.0, prior=LogNormal(math.log(0.6), 0.2))
        cp = nl.Additive(1.0, prior=LogNormal(math.log(1.0), 0.1))

    layout = Layout.of(fit.population)
    axes = [math.log(x) + np.linspace(-5 * s, 5 * s, 81) for x, s in priors.values()]
    logs = np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")])
    mu, sd, sigma = np.exp(logs)
    tau2 = sd**2 + sigma**2 / layout.m
    log = -0.5 * (
        layout.n * np.log(tau2)
        + ((layout.means - mu[:, None]) ** 2).sum(1) / tau2
        + layout.n * (layout.m - 1) * np.log(sigma**2)
        + layout.within / sigma**2
    )
    for x, (centre, spread) in zip(logs, priors.values(), strict=True):
        log -= 0.5 * ((x - math.log(centre)) / spread) ** 2
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    result = sir(nl.fit(Informed(), fit.population, nl.FOCEI()), samples=3000, resamples=3000, seed=1)
    summary, ess = result.summary(), float(result.diagnostics["ess"].iloc[-1])
    for name, x in zip(priors, (mu, sd**2, sigma), strict=True):
        mean = float(weight @ x)
        spread = math.sqrt(float(weight @ x**2) - mean**2)
        assert summary.loc[name, "mean"] == pytest.approx(mean, abs=4.5 * spread / math.sqrt(ess)), name
        assert summary.loc[name, "se"] == pytest.approx(spread, rel=0.1), name


def test_a_page_without_free_parameters_is_refused(fit: nl.Fit) -> None:
    class Known(type(fit.model)):  # type: ignore[misc]
        mu = nl.Theta(5.0, fixed=True)
        iiv = nl.Omega(b=1.0, fixed=True)
        cp = nl.Additive(0.7, fixed=True)

    with pytest.raises(nl.DataError, match="no free parameter"):
        sir(nl.fit(Known(), fit.population, nl.FOCEI()))


class TestResampling:
    weights = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()

    def test_systematic_counts_are_the_weights(self) -> None:
        kept = resample(self.weights, 800, None, torch.Generator().manual_seed(1))
        assert torch.bincount(kept).tolist() == [400, 200, 100, 100]

    def test_without_replacement_each_comes_once(self) -> None:
        source = torch.Generator().manual_seed(1)
        assert resample(self.weights, 4, 1, source).tolist() == [0, 1, 2, 3]
        first = torch.stack([resample(self.weights, 1, 1, source) for _ in range(4000)]).flatten()
        share = torch.bincount(first) / 4000
        torch.testing.assert_close(share, self.weights.exp().float(), atol=0.035, rtol=0)

    def test_nothing_of_weight_zero_is_kept(self) -> None:
        log_weight = torch.tensor([0.0, -math.inf, 0.0], dtype=torch.float64)
        for cap in (None, 2):
            kept = resample(log_weight, 4, cap, torch.Generator().manual_seed(1))
            assert set(kept.tolist()) == {0, 2}


class TestTheProposal:
    mean = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    covariance = torch.tensor([[4.0, 0.0, 1e-3], [0.0, 0.0, 0.0], [1e-3, 0.0, 1e-6]], dtype=torch.float64)

    @pytest.mark.parametrize("degrees", [None, 8])
    def test_it_has_its_moments_and_density(self, degrees: int | None) -> None:
        proposal = Proposal.of(self.mean, self.covariance, degrees)
        free, log_q = proposal.draw(40_000, torch.Generator().manual_seed(2))
        assert bool((free[:, 1] == -2.0).all()), "variance zero stays"
        torch.testing.assert_close(free.mean(0), self.mean, atol=0.05, rtol=0)
        torch.testing.assert_close(
            free.T.cov()[[0, 0, 2], [0, 2, 2]], self.covariance[[0, 0, 2], [0, 2, 2]], rtol=0.08, atol=0
        )
        inner = self.covariance[[0, 2]][:, [0, 2]]
        off = free[:, [0, 2]] - self.mean[[0, 2]]
        if degrees is None:
            theirs = torch.distributions.MultivariateNormal(
                torch.zeros(2, dtype=torch.float64), inner
            ).log_prob(off)
        else:
            square = (off @ torch.linalg.inv(inner * (degrees - 2) / degrees) * off).sum(-1)
            theirs = -0.5 * (degrees + 2) * torch.log1p(square / degrees)
        difference = log_q - theirs
        torch.testing.assert_close(difference, difference[:1].expand(40_000), rtol=0, atol=1e-6)

    def test_what_does_not_move_stays_so_in_the_next_one(self) -> None:
        """Rounding in a weighted mean must not make a direction of its own of it, in which nothing bounds a weight."""
        generator = torch.Generator().manual_seed(0)
        free, log_q = Proposal.of(self.mean, self.covariance, 5).draw(500, generator)
        centre, next_one = moments(free, -0.1 * log_q, self.mean, self.covariance)
        assert float(centre[1]) == -2.0
        assert bool((next_one[1] == 0.0).all() and (next_one[:, 1] == 0.0).all())
        assert Proposal.of(centre, next_one, 5).factor.shape == (3, 2)

    def test_too_few_weights_widen_it(self) -> None:
        covariance = torch.eye(2, dtype=torch.float64)
        free = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        lonely = torch.full((50,), -math.inf, dtype=torch.float64)
        lonely[3] = 0.0
        mean, wider = moments(free, lonely, torch.zeros(2, dtype=torch.float64), covariance)
        assert mean.tolist() == [0.0, 0.0]
        assert torch.equal(wider, 2 * covariance)


class TestWarnings:
    def test_a_fit_that_is_not_at_its_minimum(self, fit: nl.Fit) -> None:
        moved = fit.estimate.free + torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
        off = Fit(
            fit.model.with_free(moved), fit.population, fit.settings, replace(fit.estimate, free=moved), 0.0
        )
        result = sir(off, samples=200, resamples=50, iterations=1)
        assert any("the fit is not at its minimum" in note for note in result.notes)

    def test_weights_that_cannot_be_relied_upon(self, fit: nl.Fit) -> None:
        result = sir(fit, samples=200, resamples=50, iterations=1, inflation=0.02, degrees=None)
        assert any("k-hat" in note for note in result.notes)
        assert "cannot be relied upon" in result._repr_html_()

    def test_few_effective_samples(self, fit: nl.Fit) -> None:
        result = sir(fit, samples=50, resamples=50, iterations=1)
        assert any("effective sample size" in note for note in result.notes)
        assert "SIR of oneway by focei: 1 x 50 samples, 50 resamples, seed 0" in repr(result)

    def test_a_parameter_at_its_boundary_is_held(self) -> None:
        edge = fitted(n=8, m=3, omega=0.02, seed=2)
        result = sir(edge, samples=100, resamples=50, iterations=2)
        assert "omega.b: held at the boundary" in result.notes
        assert result.table["omega.b"].max() == pytest.approx(result.table["omega.b"].min(), rel=1e-12)
        assert math.isfinite(float(result.summary().loc["mu", "se"]))
        bare = nl.fit(type(edge.model)(), edge.population, nl.FOCEI(covariance=None))
        assert "omega.b: held at the boundary" in sir(bare, samples=100, resamples=50).notes


def test_a_fit_without_standard_errors_will_do(fit: nl.Fit) -> None:
    bare = nl.fit(type(fit.model)(), fit.population, nl.FOCEI(covariance=None))
    mine, theirs = (sir(x, samples=200, resamples=100, iterations=1) for x in (bare, fit))
    assert mine.summary()["se"].tolist() == pytest.approx(theirs.summary()["se"].tolist(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(samples=10), "samples: expected a whole number of 25"),
        (dict(samples=100, resamples=300, cap=2), "100 samples kept 2 times at most"),
        (dict(inflation=0.0), "inflation: expected a positive"),
        (dict(degrees=0), "degrees: expected"),
        (dict(level=0.0), "level: expected"),
        (dict(iterations=0), "iterations: expected"),
    ],
)
def test_what_means_nothing_is_refused(fit: nl.Fit, options: dict[str, Any], message: str) -> None:
    with pytest.raises(nl.DataError, match=message):
        sir(fit, **options)
