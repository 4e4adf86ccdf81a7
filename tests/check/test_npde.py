"""npde is N(0, 1) under the true model and not under a wrong one; for a linear model it is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from check.frozen import frozen
from problems import Straight, straight_table
from scipy import stats

import nlmegen as nl
from nlmegen.check import npde as module
from nlmegen.check.npde import decorrelate, normal_score, npde, uniformity
from nlmegen.errors import DataError


@pytest.fixture(scope="module")
def truth() -> Any:
    return frozen(Straight(), nl.read_nonmem(straight_table(1200, seed=11)), modes=False)


def test_a_linear_model_has_known_npde(truth: Any) -> None:
    draws = 20_000
    few = frozen(Straight(), truth.population.select(range(10)))
    scores = npde(few, draws=draws, seed=3)
    omega = np.array([[0.5, 0.12], [0.12, 0.1]])
    for subject in range(10):
        seen = few.population.mask[subject].numpy()
        t, y = few.population.time[subject].numpy()[seen], few.population.dv[subject].numpy()[seen]
        z = np.stack([np.ones_like(t), t], 1)
        cov = z @ omega @ z.T + 0.16 * np.eye(len(t))
        exact = np.linalg.solve(np.linalg.cholesky(cov), y - (1 + 0.5 * t))
        alone = (y - (1 + 0.5 * t)) / np.sqrt(np.diag(cov))
        p = stats.norm.cdf(exact)
        # three parts of Monte Carlo error: the rank, the mean, the covariance
        tolerance = 5 * (np.sqrt(p * (1 - p)) / stats.norm.pdf(exact) + 1 + np.abs(exact)) / np.sqrt(draws)
        assert (np.abs(scores.npde[subject][seen] - exact) < tolerance).all()
        assert (np.abs(scores.npd[subject][seen] - alone) < tolerance + 5 / np.sqrt(draws)).all()


def test_uniform_under_the_true_model(truth: Any) -> None:
    test = npde(truth, draws=1000, seed=1).test()
    assert test.loc["global", "p"] > 0.05, test


@pytest.mark.parametrize(
    "wrong",
    [
        {"omega": {"b": 0.5 * 1.5, "s": 0.1 * 1.5}},
        {"omega": {"b": 0.5 / 1.5, "s": 0.1 / 1.5}},
        {"theta": {"tvs": 0.6}},
        {"sigma": {"cp.additive": 0.5}},
    ],
)
def test_a_wrong_model_is_rejected(truth: Any, wrong: dict[str, Any]) -> None:
    off = frozen(Straight().with_values(**wrong), truth.population, modes=False)
    test = npde(off, draws=1000, seed=1).test()
    assert test.loc["global", "p"] < 0.01, test


def test_the_test_keeps_its_level() -> None:
    noise = np.random.default_rng(5).standard_normal((1000, 60))
    p = np.stack([uniformity(row)["p"].to_numpy() for row in noise])
    for k in range(3):
        assert stats.kstest(p[:, k], "uniform").pvalue > 0.001
    assert stats.binomtest(int((p[:, 3] < 0.05).sum()), 1000, 0.05, alternative="greater").pvalue > 0.001


def test_decorrelation() -> None:
    source = torch.Generator().manual_seed(2)
    factor = torch.tensor([[2.0, 0, 0], [1.0, 1.0, 0], [-1.0, 0.5, 0.3]], dtype=torch.float64)
    simulated = torch.randn(500, 3, generator=source, dtype=torch.float64) @ factor.mT + 4
    y, rotated = decorrelate(torch.tensor([4.0, 5.0, 3.0], dtype=torch.float64), simulated)
    np.testing.assert_allclose(np.cov(rotated.numpy().T), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotated.mean(0).numpy(), 0, atol=1e-12)
    root = np.linalg.cholesky(np.cov(simulated.numpy().T))
    np.testing.assert_allclose(root @ y.numpy() + simulated.mean(0).numpy(), [4.0, 5.0, 3.0], atol=1e-12)


def test_an_observation_beyond_every_simulation_stays_finite() -> None:
    simulated = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None].expand(100, 3)
    score = normal_score(torch.tensor([-5.0, 0.5, 9.0], dtype=torch.float64), simulated)
    np.testing.assert_allclose(score.numpy(), [stats.norm.ppf(0.005), 0.0, stats.norm.ppf(0.995)], atol=1e-12)


def test_same_seed_same_scores(truth: Any) -> None:
    few = frozen(Straight(), truth.population.select(range(5)))
    first, again, other = (npde(few, draws=50, seed=seed).npde for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other, equal_nan=True)


def test_a_record_too_long_for_the_draws_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    table = nl.read_nonmem(straight_table(12, seed=4)).table
    richest = table[table["id"] == table["id"].value_counts().index[0]]
    more = [
        richest[richest["evid"] == 0].assign(time=lambda own, k=k: own["time"] + 20.0 * k)
        for k in range(1, 9)
    ]
    table = pd.concat([table, *more]).sort_values(["id", "time"], kind="stable", ignore_index=True)
    fit = frozen(Straight(), nl.Population.from_table(table, warn=False), modes=False)
    count = fit.population.mask.sum(-1)
    long = 2 * count + 2 > 40
    assert int(long.sum()) == 1
    scores = npde(fit, draws=40)
    assert np.isfinite(scores.npde[fit.population.mask.numpy()]).all()
    assert scores.notes == ()
    monkeypatch.setattr(module, "_LONGEST", 10)
    lost = npde(fit, draws=40)
    assert np.isnan(lost.npde[long.numpy()]).all()
    np.testing.assert_array_equal(lost.npde[~long.numpy()], scores.npde[~long.numpy()])
    np.testing.assert_array_equal(lost.npd, scores.npd)
    assert "npde is missing for 1 of 12 subjects" in lost.notes[0]


def test_draws_that_cannot_be(truth: Any) -> None:
    for draws in (1, 10.5, "many"):
        with pytest.raises(DataError, match="draws: expected a whole number"):
            npde(truth, draws=draws)  # type: ignore[arg-type]
