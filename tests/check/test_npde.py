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
from nlmegen.data.columns import DataWarning
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


def test_a_linear_model_has_known_pwres_and_epred(truth: Any) -> None:
    draws = 20_000
    few = frozen(Straight(), truth.population.select(range(10)))
    scores = npde(few, draws=draws, seed=4)
    omega = np.array([[0.5, 0.12], [0.12, 0.1]])
    for subject in range(10):
        seen = few.population.mask[subject].numpy()
        t, y = few.population.time[subject].numpy()[seen], few.population.dv[subject].numpy()[seen]
        z = np.stack([np.ones_like(t), t], 1)
        cov = z @ omega @ z.T + 0.16 * np.eye(len(t))
        value, vector = np.linalg.eigh(cov)
        exact = (vector / np.sqrt(value)) @ vector.T @ (y - (1 + 0.5 * t))
        off = np.abs(scores.epred[subject][seen] - (1 + 0.5 * t))
        assert (off < 5 * np.sqrt(np.diag(cov) / draws)).all()
        # of the mean, and of the root of the covariance
        tolerance = 5 * (1 + np.linalg.norm(exact)) / np.sqrt(draws)
        assert (np.abs(scores.pwres[subject][seen] - exact) < tolerance).all()
    assert np.isnan(scores.pwres[~few.population.mask.numpy()]).all()


def test_pwres_has_mean_0_and_variance_1_under_the_true_model(truth: Any) -> None:
    pwres = npde(truth, draws=1000, seed=2).pwres
    pwres = pwres[np.isfinite(pwres)]
    n = len(pwres)
    assert abs(pwres.mean()) < 4 / np.sqrt(n)
    assert (
        abs(pwres.var() - 1) < 4 * np.sqrt(2 / n) + 30 / 1000
    )  # the second part for covariances of 1000 draws


TIMES = np.array([0.5, 1.0, 3.0, 8.0, 24.0])
OMEGA_SD = np.array([0.6, 0.3, 0.2])


def _absorbed(draws: int, rng: Any) -> Any:
    """[draws, time] simulated records of one compartment with absorption, 320 mg at 0, by numpy alone."""
    ka, cl, v = (np.array([1.5, 2.8, 32.0]) * np.exp(OMEGA_SD * rng.standard_normal((draws, 3)))).T[..., None]
    k = cl / v
    f = 320 * ka / (v * (ka - k)) * (np.exp(-k * TIMES) - np.exp(-ka * TIMES))
    return f + np.sqrt(0.2**2 + (0.1 * f) ** 2) * rng.standard_normal(f.shape)


@pytest.fixture(scope="module")
def absorbed() -> Any:
    """1,000 such records as data, with the model that made them."""
    y = _absorbed(1000, np.random.default_rng(12))
    n, t = y.shape
    rows = pd.DataFrame(
        {
            "id": np.repeat(np.arange(1, n + 1), t),
            "time": np.tile(TIMES, n),
            "amt": 0.0,
            "dv": y.ravel(),
            "evid": 0,
        }
    )
    dose = pd.DataFrame({"id": np.arange(1, n + 1), "time": 0.0, "amt": 320.0, "dv": np.nan, "evid": 1})
    table = pd.concat([dose, rows]).sort_values(["id", "time"], kind="stable", ignore_index=True)
    model = nl.load_model("theophylline").with_values(
        theta={"tvka": 1.5, "tvcl": 2.8, "tvv": 32.0},
        omega=dict(zip(("ka", "cl", "v"), OMEGA_SD**2, strict=True)),
        sigma={"cp.additive": 0.2, "cp.proportional": 0.1},
    )
    return frozen(model, nl.read_nonmem(table), modes=False)


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_an_independent_computation(absorbed: Any, root: str) -> None:
    draws = 20_000
    few = frozen(absorbed.model, absorbed.population.select(range(20)), modes=False)
    ours = npde(few, draws=draws, seed=3, root=root)  # type: ignore[arg-type]
    simulated = _absorbed(draws, np.random.default_rng(99))
    mean, cov = simulated.mean(0), np.cov(simulated.T)
    value, vector = np.linalg.eigh(cov)
    symmetric = (vector / np.sqrt(value)) @ vector.T
    inverse = symmetric if root == "symmetric" else np.linalg.inv(np.linalg.cholesky(cov))
    spread = np.sort((simulated - mean) @ inverse.T, 0)
    for subject, y in enumerate(few.population.dv.numpy()):
        star = inverse @ (y - mean)
        p = np.array([np.searchsorted(spread[:, j], star[j]) for j in range(len(y))]) / draws
        z = stats.norm.ppf(p.clip(0.5 / draws, 1 - 0.5 / draws))
        tolerance = (
            7 * (np.sqrt(p * (1 - p) + 1 / draws) / stats.norm.pdf(z) + 1 + np.abs(z)) / np.sqrt(draws)
        )
        assert (np.abs(ours.npde[subject] - z) < tolerance).all(), subject
        np.testing.assert_allclose(ours.pwres[subject], symmetric @ (y - mean), atol=0.15)
    np.testing.assert_allclose(ours.epred[0], mean, atol=5 * np.sqrt(2 * np.diag(cov).max() / draws))


@pytest.mark.parametrize("root", ["cholesky", "symmetric"])
def test_the_null_distribution_of_a_nonlinear_model(absorbed: Any, root: str) -> None:
    """At each time npde is N(0, 1) across subjects, and uncorrelated between times."""
    z = npde(absorbed, draws=1000, seed=5, root=root).npde  # type: ignore[arg-type]
    for k in range(len(TIMES)):
        assert stats.kstest(z[:, k], "norm").pvalue > 0.001, TIMES[k]
    off = np.corrcoef(z.T)[np.triu_indices(len(TIMES), 1)]
    assert (np.abs(off) < 4 / np.sqrt(len(z))).all()
    wrong = frozen(
        absorbed.model.with_values(omega={"cl": (1.5 * 0.3) ** 2}), absorbed.population, modes=False
    )
    assert npde(wrong, draws=1000, seed=5, root=root).test().loc["global", "p"] < 1e-3  # type: ignore[arg-type]


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


def test_a_subject_without_observations_has_no_scores() -> None:
    """It is kept in the data, and the scores of the others are those that they have with it observed."""
    table = straight_table(5)
    first = frozen(Straight(), nl.read_nonmem(table))
    table["MDV"] = table["EVID"].where(table["ID"] != 3, 1)
    with pytest.warns(DataWarning, match="without observations: id 3"):
        silent = frozen(Straight(), nl.read_nonmem(table))
    assert silent.population.mask.any(1).tolist() == [True, True, False, True, True]
    whole, part = npde(first, draws=200), npde(silent, draws=200)
    assert np.isnan(part.npde[2]).all()
    assert np.isnan(part.npd[2]).all()
    assert len(part.table) == int(silent.population.mask.sum())
    np.testing.assert_allclose(part.npde[[0, 1, 3, 4]], whole.npde[[0, 1, 3, 4]], rtol=0, atol=0)


def test_draws_that_cannot_be(truth: Any) -> None:
    for draws in (1, 10.5, "many"):
        with pytest.raises(DataError, match="draws: expected a whole number"):
            npde(truth, draws=draws)  # type: ignore[arg-type]
    with pytest.raises(DataError, match='root: expected "cholesky" or "symmetric"'):
        npde(truth, root="polar")  # type: ignore[arg-type]
