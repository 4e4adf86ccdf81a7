"""Checks of a fit whose data are censored, counts, categories, correlated or scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from check.frozen import frozen
from scipy import stats
from simulate.test_clinical import Bolus, Scores
from torch import exp

import nlmegen as nl
from nlmegen.check.kinds import percentiles
from nlmegen.check.npde import npde, uniformity
from nlmegen.check.residuals import residuals
from nlmegen.check.vpc import vpc
from nlmegen.errors import DataError
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.trial import simulate

TIMES = [1, 5, 10, 20, 30]


def cut(n: int, seed: int, lloq: float | None = 1.2) -> nl.Population:
    return nl.read_nonmem(simulate(Bolus(), Cohort(n, "100", times=TIMES, lloq=lloq), seed=seed))


@pytest.fixture(scope="module")
def censored() -> Any:
    return frozen(Bolus(), cut(200, 1), modes=False)


@pytest.fixture(scope="module")
def scored() -> Any:
    data = nl.read_nonmem(simulate(Scores(), Cohort(200, "1", times=[1, 2, 3]), seed=2))
    return frozen(Scores(), data, modes=False)


def test_percentiles_of_values_that_are_known_by_rank() -> None:
    values = np.random.default_rng(1).normal(size=(4, 31))
    at = np.array([0.05, 0.5, 0.93])
    np.testing.assert_array_equal(percentiles(values, at), np.quantile(values, at, axis=-1))
    low = np.where(values < -0.5, -np.inf, values)
    got, whole = percentiles(low, at), np.quantile(values, at, axis=-1)
    # the order statistic below a percentile is censored: so is the percentile
    below = np.sort(low, -1)[:, np.floor(at * 30).astype(int)].T
    np.testing.assert_allclose(got, np.where(np.isinf(below), -np.inf, whole), rtol=1e-12)
    np.testing.assert_allclose(percentiles(-low, 1 - at), -got, rtol=1e-12)
    assert percentiles(low, 0.5).shape == (4,)


def test_shares_below_the_limit(censored: Any) -> None:
    check = vpc(censored, draws=100)
    data = censored.population
    for _, row in check.shares.iterrows():
        here = data.mask & (data.time == row["time"])
        assert row["observed"] == pytest.approx(float((data.cens[here] == 1).to(torch.float64).mean()))
    assert (check.shares["category"] == "below limit").all()
    assert check.shares["observed"].is_monotonic_increasing
    last = check.table[check.table["time"] == 30].set_index("quantile")
    assert last.loc[0.05, "observed"] == -np.inf
    assert last.loc[0.05, "simulated_lower"] == -np.inf
    assert np.isfinite(last.loc[0.95, "observed"])
    assert check.inside > 0.85
    slow = vpc(frozen(Bolus().with_values(theta={"tvcl": 0.8}), data, modes=False), draws=100)
    assert (
        not slow.shares["observed"]
        .between(slow.shares["simulated_lower"], slow.shares["simulated_upper"])
        .all()
    )


def test_leaving_censored_records_out_leaves_the_check_as_it_is(censored: Any) -> None:
    """M1 is a way to estimate; what is compared are all records."""

    class Out(Bolus):
        """The same."""

        cp = nl.LogNormal(0.3, blq="M1")

    fit = frozen(Out(), censored.population, modes=False)
    assert fit.problem.n_observations < censored.problem.n_observations
    np.testing.assert_array_equal(
        vpc(fit, draws=20).shares["simulated"], vpc(censored, draws=20).shares["simulated"]
    )
    assert np.isfinite(npde(fit, draws=50).npde[censored.population.mask]).all()


def test_shares_of_categories(scored: Any) -> None:
    check = vpc(scored, draws=100)
    by = check.shares.groupby("stratum")["category"].unique()
    assert list(by["score"]) == ["0", "1", "2", "3"]
    assert list(by["count"]) == ["0"]
    assert list(by["event"]) == ["0", "1"]
    assert set(check.table["stratum"]) == {"count"}
    whole = check.shares[check.shares["stratum"] != "count"].groupby(["stratum", "bin"])[
        ["observed", "simulated"]
    ]
    np.testing.assert_allclose(whole.sum()["observed"], 1.0)
    assert check.inside > 0.85
    off = vpc(frozen(Scores().with_values(theta={"base": -0.5}), scored.population, modes=False), draws=100)
    assert off.inside < 0.6
    with pytest.raises(DataError, match="counts and categories are not divided"):
        vpc(scored, draws=20, prediction_corrected=True)


def test_scores_of_censored_values_are_uniform_under_the_true_model(censored: Any) -> None:
    found = npde(censored, draws=600)
    mask = censored.population.mask.numpy()
    assert (censored.population.cens != 0).sum() > 150
    for column in (0, 4):  # nearly nothing censored, nearly everything
        assert stats.kstest(found.npd[:, column], "norm").pvalue > 0.001
    assert stats.kstest(found.npde[mask], "norm").pvalue > 0.001
    slow = frozen(Bolus().with_values(theta={"tvcl": 0.8}), censored.population, modes=False)
    assert stats.kstest(npde(slow, draws=600).npde[mask], "norm").pvalue < 0.001


def test_omega_half_as_large_again_is_rejected() -> None:
    """Early samples of little residual error show the variance of the volume; some are below the limit."""
    true = Bolus().with_values(sigma={"cp.sd": 0.05})
    data = nl.read_nonmem(simulate(true, Cohort(400, "100", times=[0.1, 8], lloq=3.5), seed=7))
    assert 0.1 < float((data.cens[:, 1] == 1).double().mean()) < 0.6
    right = npde(frozen(true, data, modes=False), draws=400)
    wrong = npde(frozen(true.with_values(omega={"cl": 0.15, "v": 0.075}), data, modes=False), draws=400)
    for column in (0, 1):
        assert uniformity(right.npd[:, column]).loc["global", "p"] > 0.001
        assert uniformity(wrong.npd[:, column]).loc["variance", "p"] < 0.001


def test_scores_of_counts_and_categories(scored: Any) -> None:
    found = npde(scored, draws=400)
    first = scored.population.mask.numpy() & (scored.population.time.numpy() == 1)
    assert stats.kstest(found.npd[first], "norm").pvalue > 0.001
    assert np.isnan(found.pwres[first]).all()
    wrong = frozen(Scores().with_values(theta={"base": 1.5, "mean": 3.0}), scored.population, modes=False)
    assert stats.kstest(npde(wrong, draws=400).npd[first], "norm").pvalue < 0.001
    again = npde(scored, draws=400)
    np.testing.assert_array_equal(again.npde, found.npde)


def test_residuals_of_censored_records(censored: Any) -> None:
    table = residuals(censored, draws=40)
    rows = table[table["evid"] == 0]
    cut_ = rows["cens"] == 1
    for name in ("res", "iwres", "wres", "cwres", "pwres"):
        assert rows.loc[cut_, name].isna().all(), name
        assert rows.loc[~cut_, name].notna().all(), name
    assert rows[["pred", "ipred", "epred", "npde"]].notna().all().all()
    assert {"cens", "lloq"} <= set(table)
    # the record of one subject, its censored samples left out, whitened by numpy
    problem, values = censored.problem, censored.values
    prediction = problem.predict(torch.zeros_like(censored.ebe), values, order=1)
    i = int(np.flatnonzero((censored.population.cens == 1).sum(1) == 2)[0])
    keep = (censored.population.cens[i] == 0).numpy()
    j = prediction.jac[:, i].numpy()[:, keep]
    cov = j.T @ values.omega.numpy() @ j + 0.09 * np.eye(keep.sum())
    value, vector = np.linalg.eigh(cov)
    raw = (problem.y[i] - prediction.f[i]).numpy()[keep]
    own = rows[rows["id"] == int(censored.population.ids[i])]
    np.testing.assert_allclose(own["wres"].dropna(), vector @ (vector.T @ raw / np.sqrt(value)), rtol=1e-9)


def test_randomised_quantile_residuals_lie_between_their_bounds(scored: Any) -> None:
    table = residuals(scored, draws=0, seed=3)
    rows = table[(table["evid"] == 0) & (table["dvid"].astype(int) == 2)]
    law = stats.poisson(rows["ipred"].to_numpy())
    u = stats.norm.cdf(rows["iwres"].to_numpy())
    y = rows["dv"].to_numpy()
    assert ((u >= law.cdf(y - 1) - 1e-12) & (u <= law.cdf(y) + 1e-12)).all()
    position = (u - law.cdf(y - 1)) / law.pmf(y)
    assert stats.kstest(position, "uniform").pvalue > 0.001
    score = table[(table["evid"] == 0) & (table["dvid"].astype(int) == 1)]
    cuts = np.array([0.0, 1.0, 2.5])
    at_least = 1 / (1 + np.exp(-(0.5 - cuts)))
    cdf = np.concatenate([[0.0], 1 - at_least, [1.0]])
    u, y = stats.norm.cdf(score["iwres"].to_numpy()), score["dv"].to_numpy().astype(int)
    assert ((u >= cdf[y] - 1e-12) & (u <= cdf[y + 1] + 1e-12)).all()
    assert score[["res", "wres", "cwres"]].isna().all().all()


class Pair(nl.Model):
    """Two endpoints with correlated residuals, scaled by a random effect."""

    tvcl = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.1, noise=0.2)
    cp = nl.Additive(0.5, dvid=1)
    urine = nl.Proportional(0.1, dvid=2)
    link = nl.Correlation("cp", "urine", 0.6)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=10.0 + 0 * eta.cl, scale=exp(eta.noise))

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=nl.Predicted(a.central / p.v, scale=p.scale), urine=100 - a.central + 0 * p.v)


def test_correlated_and_scaled_residuals() -> None:
    data = nl.read_nonmem(simulate(Pair(), Cohort(150, "100", times=[1, 4, 12]), seed=5))
    fit = frozen(Pair(), data, modes=False)
    fit.ebe = torch.tensor([[0.1, 0.3]], dtype=torch.float64).expand(150, 2).contiguous()
    table = residuals(fit, draws=0)
    rows = table[(table["evid"] == 0) & (table["id"] == 1)]
    cl = np.exp(0.1)
    time = np.repeat([1.0, 4.0, 12.0], 2)
    left = 100 * np.exp(-cl * time / 10)
    slope = -left * cl * time / 10  # d left / d eta_cl
    one = np.tile([True, False], 3)
    f, j = np.where(one, left / 10, 100 - left), np.where(one, slope / 10, -slope)
    sd = np.where(one, 0.5 * np.exp(0.3), 0.1 * f)
    np.testing.assert_allclose(rows["iwres"], (rows["dv"] - f) / sd, rtol=1e-9)
    noise = np.diag(sd**2)
    for k in (0, 2, 4):
        noise[k, k + 1] = noise[k + 1, k] = 0.6 * sd[k] * sd[k + 1]
    value, vector = np.linalg.eigh(0.1 * np.outer(j, j) + noise)
    expected = vector @ (vector.T @ (rows["dv"].to_numpy() - f + 0.1 * j) / np.sqrt(value))
    np.testing.assert_allclose(rows["cwres"], expected, rtol=1e-8)
    assert stats.kstest(npde(fit, draws=300).npde[data.mask.numpy()], "norm").pvalue > 0.001
