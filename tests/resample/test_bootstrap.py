"""Replicates against the closed form of their own data, and what is said of those that are lost."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from resample.oneway import Layout, OneWay, fitted, table

import nlmegen as nl
from nlmegen.inference.estimate import Estimate
from nlmegen.resample.bootstrap import bootstrap
from nlmegen.resample.carry import Parcel
from nlmegen.resample.criterion import influence
from nlmegen.resample.intervals import acceleration, bca, percentiles
from nlmegen.resample.scatter import Bootstrap
from nlmegen.resample.worlds import worlds

NAMES = ["mu", "omega.b", "cp.additive"]


@pytest.fixture(scope="module")
def fit() -> nl.Fit:
    return fitted()


def numbers(result: Bootstrap) -> pd.DataFrame:
    """All but the time it took."""
    return result.table.drop(columns="seconds")


@pytest.mark.parametrize("kind", ["case", "parametric"])
def test_every_replicate_is_the_maximum_likelihood_of_its_data(fit: nl.Fit, kind: str) -> None:
    result = bootstrap(fit, n=5, kind=kind, seed=3)
    world = worlds(fit.model, fit.population, kind, 3)
    assert result.counts == {"converged": 5, "not converged": 0, "failed": 0}
    for k in range(1, 6):
        population, seed = world.draw(k)
        assert seed == result.table.loc[k, "seed"]
        expected = Layout.of(population)
        mu, omega, sigma = result.table.loc[k, NAMES].astype(float)
        assert [mu, sigma] == pytest.approx([expected.estimates[0], expected.estimates[2]], rel=1e-5)
        assert omega == pytest.approx(expected.estimates[1], rel=1e-4, abs=1e-6)
        assert expected.minus2ll(mu, omega, sigma) - expected.lowest < 1e-6


def test_subjects_are_drawn_with_replacement_and_within_strata(fit: nl.Fit) -> None:
    n, world = 12, worlds(fit.model, fit.population, "case", 0, stratify="ARM")
    counts = torch.zeros(n)
    for k in range(1, 401):
        drawn = world.draw(k)[0]
        assert len(drawn) == n
        arm = drawn.covariates["arm"].observation[:, 0]
        assert int(arm.sum()) == n // 2
        places = torch.tensor([int(name) - 1 for name in drawn.ids])
        counts += torch.bincount(places, minlength=n)
    # each is drawn once on average; the variance of a count is 1 - 1/6, of a mean of 400 of them .0021
    assert bool(((counts / 400 - 1).abs() < 4.5 * math.sqrt(5 / 6 / 400)).all())


def test_simulated_data_have_the_moments_of_the_fit(fit: nl.Fit) -> None:
    world = worlds(fit.model, fit.population, "parametric", 0)
    y = torch.stack([world.draw(k)[0].dv for k in range(1, 301)])
    mu, omega, sigma = (float(fit.parameters["estimate"][name]) for name in NAMES)
    within = y.var(-1).mean()
    between = y.mean(-1).var()
    assert float(y.mean()) == pytest.approx(mu, abs=4.5 * math.sqrt(omega / 3600))
    assert float(within) == pytest.approx(sigma**2, rel=4.5 * math.sqrt(2 / (3600 * 3)))
    assert float(between) == pytest.approx(omega + sigma**2 / 4, rel=4.5 * math.sqrt(2 / 3600))


def test_numbers_depend_neither_on_the_executor_nor_on_the_order_nor_on_n(fit: nl.Fit) -> None:
    alone = bootstrap(fit, n=4)
    with ThreadPoolExecutor(2) as executor:
        pd.testing.assert_frame_equal(numbers(bootstrap(fit, n=4, executor=executor)), numbers(alone))
    pd.testing.assert_frame_equal(numbers(bootstrap(fit, n=2)), numbers(alone).iloc[:2])
    assert not numbers(bootstrap(fit, n=2, seed=1)).equals(numbers(alone).iloc[:2])


def test_standard_errors_are_those_of_theory(fit: nl.Fit) -> None:
    """The ideal bootstrap of a mean has the variance sum (Y_i - Y)^2 / n^2. The estimates are closed forms here."""
    world, layout = worlds(fit.model, fit.population, "case", 0), Layout.of(fit.population)
    rows = []
    for k in range(1, 1001):
        population, seed = world.draw(k)
        rows.append((k, seed, "converged", "", 0.0, *Layout.of(population).estimates, 0.0))
    result = Bootstrap.of(fit, fit.settings, "case", 0, 1000, 0.95, rows, False)
    ideal = float(layout.means.std()) / math.sqrt(layout.n)
    summary = result.summary()
    assert summary.loc["mu", "se"] == pytest.approx(ideal, rel=4.5 / math.sqrt(2000))
    assert summary.loc["mu", "bias"] == pytest.approx(0.0, abs=4.5 * ideal / math.sqrt(1000))
    assert result.covariance.loc["mu", "mu"] == pytest.approx(summary.loc["mu", "se"] ** 2)
    assert result.correlation.loc["mu", "mu"] == pytest.approx(1.0)
    values = result.estimates()["mu"].to_numpy()
    assert summary.loc["mu", ["lower", "upper"]].tolist() == np.quantile(values, (0.025, 0.975)).tolist()
    # scipy's BCa interval of the mean of the subjects' means, from the same replicates
    given = scipy.stats.bootstrap((layout.means,), np.mean, n_resamples=2, method="percentile")
    given.bootstrap_distribution = values
    theirs = scipy.stats.bootstrap(
        (layout.means,), np.mean, n_resamples=0, bootstrap_result=given, method="BCa"
    ).confidence_interval
    assert summary.loc["mu", ["bca_lower", "bca_upper"]].tolist() == pytest.approx(list(theirs), rel=1e-3)


def test_influence_is_what_a_subject_adds(fit: nl.Fit) -> None:
    found, why = influence(fit)
    assert found is not None
    assert why == ""
    layout = Layout.of(fit.population)
    np.testing.assert_allclose(found[:, 0], (layout.means - layout.means.mean()) / layout.n, atol=1e-5)
    assert acceleration(found)[0] == pytest.approx(
        scipy.stats.skew(layout.means) / 6 / math.sqrt(layout.n), rel=1e-2
    )


def test_an_interval_without_replicates_on_both_sides_is_not_corrected() -> None:
    values = np.stack((np.arange(100.0), np.arange(100.0)), 1)
    ends = bca(values, np.array([50.0, 200.0]), np.array([0.1, 0.1]), 0.95)
    assert np.isfinite(ends[:, 0]).all()
    assert np.isnan(ends[:, 1]).all()
    assert np.isnan(percentiles(values[:1], 0.95)).all()


def test_variances_at_zero_are_counted(fit: nl.Fit) -> None:
    rows = [
        (k, 0, "converged", "", 0.0, 5.0, omega, 0.7, 0.0) for k, omega in enumerate((1.0, 1e-9, 0.4, 1e-7))
    ]
    result = Bootstrap.of(fit, fit.settings, "parametric", 0, 4, 0.95, rows, False)
    assert "omega.b is 0 in 2 of 4 replicates" in result.notes


@dataclass(frozen=True)
class Moody:
    """FOCEI that fails, or does not converge, when it does not like the data."""

    covariance: str | None = "R"
    name: str = "moody"

    def estimate(self, problem: nl.Problem, progress: Any = None) -> Estimate:
        assert self.covariance is None, "replicates need no standard errors"
        mood = int(abs(float(problem.y.sum())) * 1e6) % 3
        if mood == 0:
            raise nl.FitError("no, thank you")
        found = nl.FOCEI(covariance=None).estimate(problem, progress)
        return found if mood == 1 else replace(found, converged=False, reason="not today")


def test_lost_replicates_are_kept_counted_and_shown(fit: nl.Fit) -> None:
    result = bootstrap(fit, n=15, method=Moody())
    counts = result.counts
    assert sum(counts.values()) == 15
    assert min(counts.values()) > 0
    lost = result.table[result.table["status"] == "failed"]
    assert (lost["reason"] == "FitError: no, thank you").all()
    assert lost[NAMES].isna().all().all()
    assert len(result.estimates()) == counts["converged"]
    assert len(result.estimates(unconverged=True)) == 15 - counts["failed"]
    text = repr(result)
    assert (
        f"{counts['converged']} converged, {counts['not converged']} not, {counts['failed']} failed" in text
    )
    assert f"{counts['failed']} failed: FitError: no, thank you" in text
    assert "with those that did not converge" in text
    assert "replicates are by moody, the fit by focei" in text
    assert "are lost" in text
    assert "not today" in result._repr_html_()


def test_an_interrupt_keeps_what_is_there(fit: nl.Fit, tmp_path: Path) -> None:
    def stop(progress: Any) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    result = bootstrap(fit, n=8, out=tmp_path, progress=stop)
    assert len(result.table) == 3
    assert "interrupted after 3 of 8" in repr(result)
    pd.testing.assert_frame_equal(numbers(bootstrap(fit, n=5, out=tmp_path)), numbers(bootstrap(fit, n=5)))


@dataclass(frozen=True)
class Stopped(Moody):
    """A method during which the user presses Ctrl-C."""

    def estimate(self, problem: nl.Problem, progress: Any = None) -> Estimate:
        found = nl.FOCEI(covariance=None).estimate(problem, progress)
        return replace(found, converged=False, reason="interrupted by the user")


def test_an_interrupt_inside_an_estimation_is_no_replicate(fit: nl.Fit) -> None:
    result = bootstrap(fit, n=4, method=Stopped())
    assert len(result.table) == 0
    assert "interrupted after 0 of 4" in result.notes[0]
    assert math.isnan(result.summary().loc["mu", "se"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n=1), "n .replicates.: expected a whole number of 2"),
        (dict(kind="bayes"), "expected 'case' or 'parametric'"),
        (dict(kind="parametric", stratify="arm"), "nothing to stratify"),
        (dict(stratify="sex"), "no column 'sex'"),
        (dict(stratify="dv"), "changes within a subject"),
        (dict(stratify="id"), "hardly anything would be drawn anew"),
        (dict(stratify=3), "expected the name of a column, got 3"),
        (dict(seed=-1), "seed: expected"),
        (dict(level=95), "level: expected a fraction"),
        (dict(out="nowhere/at/all.csv"), "there is no directory"),
        (dict(out="here.txt"), "expected a folder that exists, or a name that ends in .csv"),
        (dict(method=nl.FOCEI(evaluate=True)), "every replicate would have the same estimates"),
    ],
)
def test_what_cannot_be_done_is_refused(fit: nl.Fit, options: dict[str, Any], message: str) -> None:
    with pytest.raises((nl.DataError, nl.FitError), match=message):
        bootstrap(fit, **options)


class TestTheParcel:
    def test_it_holds_the_same_model(self, fit: nl.Fit) -> None:
        made = Parcel.of(fit.model).open()
        assert type(made) is not OneWay
        assert made.name == fit.model.name
        assert torch.equal(made.free, fit.model.free)
        stepped = nl.load_model("theophylline").as_ode(nl.Solver(rtol=1e-8))
        again = Parcel.of(stepped).open()
        assert again.stepped
        assert again.solver.rtol == 1e-8

    def test_a_page_that_does_not_stand_alone_is_refused(self) -> None:
        base = type(nl.load_model("theophylline"))
        hidden: nl.Model = type("Hidden", (base,), {"__module__": "nowhere"})()
        with pytest.raises(nl.ModelError, match="without an executor"):
            Parcel.of(hidden)


def test_fits_that_did_not_converge_are_said_to_be_such() -> None:
    rough = nl.fit(OneWay(), nl.read_nonmem(table()), nl.FOCEI(max_iterations=0))
    assert not rough.converged
    result = bootstrap(rough, n=2, method=nl.FOCEI())
    assert any("did not converge" in note for note in result.notes)
