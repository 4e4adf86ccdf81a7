"""A VPC covers the data under the true model, fails a wrong one, and its percentiles are numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from check.frozen import frozen
from scipy import stats

import nlmegen as nl
from nlmegen.check.vpc import vpc
from nlmegen.errors import DataError
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.trial import simulate


def _trial(seed: int, n: int = 80) -> nl.Population:
    cohort = Cohort(n, {"low": "100", "high": "300"}, times=[0.5, 1, 2, 4, 8, 12, 24])
    return nl.read_nonmem(simulate(nl.load_model("theophylline"), cohort, seed=seed))


@pytest.fixture(scope="module")
def fit() -> Any:
    return frozen(nl.load_model("theophylline"), _trial(1))


def test_coverage_under_the_true_model() -> None:
    inside = total = 0
    for seed in range(12):
        check = vpc(
            frozen(nl.load_model("theophylline"), _trial(100 + seed)), draws=200, interval=(0.5,), seed=seed
        )
        table = check.table.iloc[::3]  # every third bin: neighbours share their subjects
        inside += int(table["observed"].between(table["simulated_lower"], table["simulated_upper"]).sum())
        total += len(table)
    assert stats.binomtest(inside, total, 0.95).pvalue > 0.001, (inside, total)


@pytest.mark.parametrize(
    "wrong",
    [
        {"theta": {"tvcl": 3.0}},
        {"omega": {"ka": 2.0, "cl": 1.0, "v": 0.5}},
        {"sigma": {"cp.proportional": 0.6}},
    ],
)
def test_a_wrong_model_falls_outside(fit: Any, wrong: dict[str, Any]) -> None:
    right = vpc(fit, draws=200)
    off = vpc(frozen(fit.model.with_values(**wrong), fit.population), draws=200)
    assert right.inside > 0.8
    assert off.inside < 0.6


def test_percentiles_are_those_of_numpy(fit: Any) -> None:
    check = vpc(fit, draws=40, stratify="arm", interval=(0.1, 0.5, 0.9), ci=0.8, seed=4)
    again = simulate_like_vpc(fit, 40, 4)
    data = fit.population.table[fit.population.table["evid"] == 0].reset_index(drop=True)
    for _, row in check.table.iterrows():
        here = (("arm = " + data["arm"]) == row["stratum"]) & np.isclose(data["time"], row["time"])
        assert row["n"] == here.sum() == 40
        assert row["observed"] == pytest.approx(np.quantile(data.loc[here, "dv"], row["quantile"]))
        over = np.quantile(again[:, here.to_numpy()], row["quantile"], axis=1)
        assert row["simulated"] == pytest.approx(np.median(over))
        assert row["simulated_lower"] == pytest.approx(np.quantile(over, 0.1))
        assert row["simulated_upper"] == pytest.approx(np.quantile(over, 0.9))


def simulate_like_vpc(fit: Any, draws: int, seed: int) -> Any:
    """[draws, observations] the replicates a VPC sees."""
    from nlmegen.simulate.trial import replicate

    chunks = list(replicate(fit.problem, fit.values, draws, seed, "vpc"))
    return np.concatenate([chunk.numpy()[:, fit.population.mask.numpy()] for chunk in chunks])


def test_prediction_correction_takes_the_dose_out(fit: Any) -> None:
    plain, corrected = (vpc(fit, draws=30, prediction_corrected=flag) for flag in (False, True))
    seen = corrected.observations.assign(arm=np.repeat(["low", "high"], 40 * 7))
    pred = {
        "low": 1.0,
        "high": 3.0,
    }  # predictions of the arms differ by the dose, and their median is between
    middle = (pred["low"] + pred["high"]) / 2
    expected = seen["dv"] * middle / seen["arm"].map(pred)
    np.testing.assert_allclose(seen["value"], expected, rtol=1e-9)

    def width(check: Any) -> float:
        wide = check.table.pivot(index="time", columns="quantile", values="observed")
        return float(((wide[0.95] - wide[0.05]) / wide[0.5]).median())

    assert width(corrected) < 0.8 * width(plain)


class Two(nl.Model):
    """Bolus; the logarithm of the concentration (DVID 1) and the amount left (DVID 2)."""

    tvcl = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.LogNormal(0.2, dv="log")
    left = nl.Proportional(0.1)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * torch.exp(eta.cl), v=10.0)

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / p.v, left=a.central)


def test_endpoints_stay_apart_and_logarithms_are_shifted() -> None:
    cohort = Cohort(40, {"low": "100", "high": "300"}, times=[1.0, 5.0])
    fit = frozen(Two(), nl.read_nonmem(simulate(Two(), cohort, seed=2)))
    check = vpc(fit, draws=60, prediction_corrected=True)
    assert list(dict.fromkeys(check.table["stratum"])) == ["cp", "left"]
    seen = check.observations.assign(dose=np.repeat([100.0, 300.0], 20 * 4))
    middle = {"cp": np.log(np.sqrt(100 * 300)), "left": 200.0}
    logs, plain = (seen[seen["stratum"] == stratum] for stratum in middle)
    np.testing.assert_allclose(logs["value"], logs["dv"] + middle["cp"] - np.log(logs["dose"]), rtol=1e-9)
    np.testing.assert_allclose(plain["value"], plain["dv"] * middle["left"] / plain["dose"], rtol=1e-9)
    assert check.inside > 0.8


class Backwards(Two):
    """The same, the DVIDs of its endpoints the other way round, and none first in every subject."""

    cp = nl.LogNormal(0.2, dv="log", dvid=2)
    left = nl.Proportional(0.1, dvid=1)


def test_panels_are_endpoints_in_the_order_of_the_page() -> None:
    table = simulate(Backwards(), Cohort(30, "100", times=[1.0, 5.0]), seed=2)
    table = table.sort_values(["id", "time", "evid", "dvid"], ascending=[True, True, False, True])
    table["group"] = np.where(table["id"] > 15, "b", "a")
    fit = frozen(Backwards(), nl.read_nonmem(table))
    check = vpc(fit, draws=20)
    assert check.observations["stratum"].iloc[0] == "left"
    assert check.strata == ("cp", "left")
    assert list(dict.fromkeys(check.table["stratum"])) == ["cp", "left"]
    seen = check.observations
    assert (seen["dvid"].astype(int) == np.where(seen["stratum"] == "cp", 2, 1)).all()
    assert [axes.get_title(loc="left") for axes in check.plot().axes] == ["cp", "left"]
    assert vpc(fit, draws=20, stratify="group").strata == (
        "cp, group = a",
        "cp, group = b",
        "left, group = a",
        "left, group = b",
    )


def test_strata_of_a_number_and_of_several_endpoints(fit: Any) -> None:
    table = fit.population.table.assign(wt=40.0 + fit.population.table["id"])
    heavy = frozen(fit.model, nl.read_nonmem(table))
    names = list(dict.fromkeys(vpc(heavy, draws=20, stratify="WT").table["stratum"]))
    assert names == ["wt <= 80.5", "wt > 80.5"]


def test_subjects_without_a_value_are_a_stratum(fit: Any) -> None:
    ids = fit.population.table["id"]
    table = fit.population.table.assign(
        crp=np.where(ids % 4 == 0, np.nan, ids),
        site=np.where(ids % 4 == 0, None, "x"),
        sex=np.where(ids < 9, np.nan, 1),
    )
    source = nl.Population.from_table(table, covariates=[], warn=False)
    gaps = frozen(fit.model, source, modes=False)
    middle = float(np.median([k for k in range(1, 81) if k % 4]))
    halves = {f"crp <= {middle:g}", f"crp > {middle:g}"}
    expected = {"crp": halves, "site": {"site = x"}, "sex": {"sex = 1"}}
    for name, known in expected.items():
        strata = vpc(gaps, draws=20, stratify=name).observations.groupby("stratum")["id"].nunique()
        assert set(strata.index) == {*known, f"{name} missing"}
        assert strata[f"{name} missing"] == (8 if name == "sex" else 20)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"stratify": "amr"}, "Did you mean 'arm'"),
        ({"stratify": "time"}, "changes within a subject"),
        ({"interval": (0.5, 1.0)}, "interval"),
        ({"interval": ()}, "interval"),
        ({"ci": 95}, "ci"),
        ({"ci": "a"}, "ci: expected a fraction"),
        ({"interval": 0.5}, "interval: expected fractions"),
        ({"interval": ("a",)}, "interval: expected fractions"),
        ({"stratify": 3}, "stratify: expected the name"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"bins": ["a"]}, "bins"),
        ({"bins": True}, "bins"),
        ({"draws": 3}, "draws"),
        ({"draws": 50.5}, "draws"),
        ({"draws": "x"}, "draws"),
        ({"bins": [0, 1]}, "bins"),
    ],
)
def test_options_that_cannot_be(fit: Any, options: dict[str, Any], word: str) -> None:
    with pytest.raises(DataError, match=word):
        vpc(fit, **options)


def test_same_seed_same_table(fit: Any) -> None:
    first, again, other = (vpc(fit, draws=30, seed=seed).table for seed in (2, 2, 3))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
