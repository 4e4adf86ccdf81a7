"""Virtual patients of clinical studies: steady state, occasions, limits of quantification, counts and categories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import exp

import nlmegen as nl
from nlmegen.data.columns import DataWarning
from nlmegen.errors import DataError
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.limits import limits
from nlmegen.simulate.trial import simulate


class Bolus(nl.Model):
    """Bolus into one compartment."""

    tvcl = nl.Theta(1.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.05)
    cp = nl.LogNormal(0.3)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / p.v)


class Modelled(Bolus):
    """The same, infusions of a duration (and a rate) that the page says."""

    def dosing(self, p: Any) -> Any:
        return dict(central=nl.Dose(duration=2.0 * p.v / p.v, rate=25.0 * p.v / p.v))


class Sexes(Bolus):
    """The same, clearance by a categorical covariate."""

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl) * (1 + cov.sex["f"]), v=theta.tvv * exp(eta.v))


class Occasional(Bolus):
    """The same, volume varies between occasions."""

    iov = nl.Omega(v=0.04, level="occ")

    def individual(self, theta: Any, eta: Any, cov: Any, kappa: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v + kappa.v))


class Scores(nl.Model):
    """A score, a count and an event, each with its own random effect."""

    base = nl.Theta(0.5)
    mean = nl.Theta(1.5, lower=0)
    iiv = nl.Omega(score=0.8, count=0.3)
    score = nl.Ordered(gaps=[1.0, 1.5], dvid=1)
    count = nl.Poisson(dvid=2)
    event = nl.Bernoulli(dvid=3)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=1.0 + 0 * eta.score, v=1.0, f=theta.base + eta.score, m=theta.mean * exp(eta.count))

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(
            score=p.f + 0 * a.central, count=p.m + 0 * a.central, event=torch.sigmoid(p.f) + 0 * a.central
        )


def seen(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["evid"] == 0].reset_index(drop=True)


def test_a_steady_state_and_what_follows() -> None:
    table = seen(
        simulate(Bolus(), Cohort(20, "100 every 12 ss x 2", times=[0, 12, 20]), residual=False, truth=True)
    )
    k = table["true_cl"] / table["true_v"]
    peak = 100 / table["true_v"] / (1 - np.exp(-12 * k))
    since = table["time"].map({0.0: 0.0, 12.0: 0.0, 20.0: 8.0})
    np.testing.assert_allclose(table["dv"], peak * np.exp(-k * since), rtol=1e-9)


def test_terms_at_steady_state_add_up() -> None:
    """A morning and an evening dose, each every 24 h: the sum of the two courses."""
    both = simulate(
        Bolus(), Cohort(5, "100 every 24 ss x 2 + 50 every 24 ss at 12", times=[30]), residual=False
    )
    assert both.loc[both["ss"] > 0, "ss"].tolist() == [1, 2] * 5
    apart = [
        simulate(Bolus(), Cohort(5, text, times=[30]), residual=False)
        for text in ("100 every 24 ss x 2", "50 every 24 ss at 12")
    ]
    np.testing.assert_allclose(seen(both)["dv"], sum(seen(one)["dv"] for one in apart), rtol=1e-9)


@pytest.mark.parametrize(("word", "duration"), [("duration", 2.0), ("rate", 4.0)])
def test_infusions_that_the_page_says(word: str, duration: float) -> None:
    made, plain = (
        simulate(Modelled(), Cohort(4, f"100 over {over} every 12 x 2", times="0:24:3"), residual=False)
        for over in (word, duration)
    )
    assert set(made.loc[made["evid"] == 1, "rate"]) == {{"rate": -1.0, "duration": -2.0}[word]}
    np.testing.assert_allclose(made["dv"], plain["dv"], rtol=1e-9)


def test_an_amount_per_kg_leaves_a_modelled_rate_alone() -> None:
    cohort = Cohort(3, "2/kg over rate every 12 ss", times=[1.0], covariates=pd.DataFrame({"wt": [50.0]}))
    doses = cohort.population().table.query("evid == 1")
    assert doses[["amt", "rate", "ii", "ss"]].to_numpy().tolist() == [[100.0, -1.0, 12.0, 1.0]] * 3


def test_the_fraction_below_the_limit_is_its_integral() -> None:
    """At time 0, log y is normal: mean log(100/10), variance omega_v + sd^2."""
    n, limit = 20_000, 8.0
    table = seen(simulate(Bolus(), Cohort(n, "100", times=[0.0], lloq=limit), seed=2))
    share = stats.norm.cdf((np.log(limit) - np.log(10.0)) / np.sqrt(0.05 + 0.09))
    below = int((table["cens"] == 1).sum())
    assert stats.binomtest(below, n, share).pvalue > 0.001
    wider = stats.norm.cdf((np.log(limit) - np.log(10.0)) / np.sqrt(1.5 * 0.05 + 0.09))
    assert stats.binomtest(below, n, wider).pvalue < 0.001
    assert (table.loc[table["cens"] == 1, "dv"] == limit).all()
    assert (table.loc[table["cens"] == 0, "dv"] >= limit).all()


def mixture(law: Any, sd: float, most: int) -> np.ndarray[Any, Any]:
    """Probabilities of 0, 1, ..., most - 1 and of more, over a random effect of that standard deviation."""
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    each = np.array([law(sd * x) for x in node])
    share = weight / weight.sum() @ each
    return np.append(share[:most], 1 - share[:most].sum())


def test_counts_and_categories_have_their_frequencies() -> None:
    n = 6000
    table = seen(simulate(Scores(), Cohort(n, "1", times=[1.0]), seed=3))

    def ordered(eta: float) -> Any:
        at_least = 1 / (1 + np.exp(-(0.5 + eta - np.array([0.0, 1.0, 2.5]))))
        return -np.diff(np.concatenate([[1.0], at_least, [0.0]]))

    laws = {
        1: (ordered, np.sqrt(0.8), 3),
        2: (lambda eta: stats.poisson.pmf(np.arange(40), 1.5 * np.exp(eta)), np.sqrt(0.3), 8),
        3: (
            lambda eta: np.array([1 / (1 + np.exp(0.5 + eta)), 1 / (1 + np.exp(-0.5 - eta))]),
            np.sqrt(0.8),
            1,
        ),
    }
    for label, (law, sd, most) in laws.items():
        values = table.loc[table["dvid"].astype(int) == label, "dv"].to_numpy()
        assert (values == np.floor(values)).all()
        counted = np.bincount(np.minimum(values, most).astype(int), minlength=most + 1)
        assert stats.chisquare(counted, n * mixture(law, sd, most)).pvalue > 0.001, label
        if label != 3:
            assert stats.chisquare(counted, n * mixture(law, 1.5 * sd, most)).pvalue < 0.001, label


def test_kappas_of_a_cohort() -> None:
    n = 3000
    cohort = Cohort(n, "100 every 24 x 3", times=[2, 26, 50], occasions="dose")
    table = seen(simulate(Occasional(), cohort, seed=4, truth=True, residual=False))
    assert table["occ"].tolist() == [1, 2, 3] * n
    kappas = table.groupby("id")[[name for name in table if name.startswith("kappa")]].first().to_numpy()
    assert kappas.shape == (n, 3)
    low, high = stats.chi2.ppf([0.0005, 0.9995], n - 1) / (n - 1)
    assert ((kappas.var(0, ddof=1) > 0.04 * low) & (kappas.var(0, ddof=1) < 0.04 * high)).all()
    assert not (
        (kappas.var(0, ddof=1) * 1.5 > 0.04 * low) & (kappas.var(0, ddof=1) * 1.5 < 0.04 * high)
    ).any()
    assert np.abs(np.corrcoef(kappas.T)[np.triu_indices(3, 1)]).max() < 4 / np.sqrt(n)
    eta = table["eta_v"].to_numpy().reshape(n, 3)
    np.testing.assert_allclose(table["true_v"].to_numpy().reshape(n, 3), 10 * np.exp(eta + kappas), rtol=1e-9)


@pytest.mark.parametrize(
    ("occasions", "expected"),
    [
        ("dose", [1, 1, 2, 3, 3]),
        (10, [1, 2, 3, 4, 5]),
        ("0, 20", [1, 1, 2, 2, 2]),
        ([5, 11], [1, 1, 2, 2, 2]),
    ],
)
def test_where_occasions_begin(occasions: Any, expected: list[int]) -> None:
    cohort = Cohort(1, "100 every 15 x 3", times=[1, 10, 20, 30, 40], occasions=occasions)
    table = cohort.population().table
    assert table.loc[table["evid"] == 0, "occ"].tolist() == expected


def test_an_occasion_holds_up_to_its_end() -> None:
    """The interval that ends at the second dose is the first occasion's: an empty sample of EVID 2 says so."""
    population = Cohort(1, "100 every 24 x 2", times=[12, 36], occasions="dose").population()
    occasions = population.occasions
    assert occasions is not None
    at = population.events.time[0]
    assert occasions.segment[0][at < 24].tolist() == [0] * int((at < 24).sum())
    assert int(occasions.segment[0][-1]) == 1


@pytest.mark.parametrize("occasions", ["doses", 0, -1, True, [], [5, 5], "1, x", float("nan")])
def test_occasions_that_are_none(occasions: Any) -> None:
    with pytest.raises(DataError, match="occasions: cannot read"):
        Cohort(1, "100", times=[1], occasions=occasions)


@pytest.mark.parametrize("lloq", [0, float("inf"), "1", True, {1: "x"}])
def test_limits_that_are_none(lloq: Any) -> None:
    with pytest.raises(DataError, match="lloq: expected a limit"):
        Cohort(1, "100", times=[1], lloq=lloq)


def test_a_clinical_table_reads_back(tmp_path: Path) -> None:
    donors = pd.DataFrame({"wt": [50.0, 60, 70, 80], "sex": ["f", "m", "m", "f"]})
    cohort = Cohort(
        40, "2/kg every 12 ss x 3", times="1:36:7", covariates=donors, occasions="dose", lloq=12.0
    )
    table = simulate(Sexes(), cohort, seed=1)
    assert 0.1 < (seen(table)["cens"] == 1).mean() < 0.9
    read = nl.read_nonmem(nl.write_nonmem(table, tmp_path / "cohort.csv"))
    direct = cohort.population(seed=1)
    for name in ("time", "kind", "amount", "rate", "interval", "steady"):
        torch.testing.assert_close(getattr(read.events, name), getattr(direct.events, name))
    assert read.covariates["sex"].levels == ("f", "m")
    torch.testing.assert_close(read.covariates["sex"].observation, direct.covariates["sex"].observation)
    assert read.occasions is not None
    assert direct.occasions is not None
    torch.testing.assert_close(read.occasions.observation, direct.occasions.observation)
    rows = seen(table)
    assert read.cens[read.mask].tolist() == rows["cens"].tolist()
    np.testing.assert_array_equal(read.dv[read.mask], rows["dv"])
    assert bool((read.lloq[read.mask] == 12.0).all())


def test_levels_of_donors_that_were_not_drawn_stay_known() -> None:
    donors = pd.DataFrame({"sex": ["f", *["m"] * 200]})
    table = simulate(Sexes(), Cohort(2, "100", times=[1.0], covariates=donors), seed=1)
    assert set(table["sex"]) == {"m"}


def test_donors_of_a_population_keep_their_levels() -> None:
    real = simulate(
        Sexes(), Cohort(6, "100", times=[1.0, 5.0], covariates=pd.DataFrame({"sex": ["f", "m"]})), seed=2
    )
    table = simulate(Sexes(), Cohort(50, "100", times=[2.0], covariates=nl.read_nonmem(real)), seed=1)
    assert set(table["sex"]) == {"f", "m"}


def test_records_are_cut_at_their_own_limits() -> None:
    """A table of censored values without LLOQ: the limit is that of the censored records."""
    table = simulate(Bolus(), Cohort(60, "100", times=[1.0, 20, 30], lloq=1.0), seed=5)
    population = nl.read_nonmem(table.drop(columns="lloq"))
    low, high = limits(population)
    assert bool((low[population.mask] == 1.0).all())
    assert bool(torch.isnan(high).all())
    for again in (simulate(Bolus(), population, seed=6), simulate(Bolus(), nl.read_nonmem(table), seed=6)):
        rows = seen(again)
        assert 0.1 < rows["cens"].mean() < 0.6
        assert ((rows["dv"] == 1.0) == (rows["cens"] == 1)).all()
        assert (rows["dv"] >= 1.0).all()
        assert nl.read_nonmem(again).cens.sum() == rows["cens"].sum()


def test_limits_by_endpoint() -> None:
    with pytest.raises(DataError, match="no endpoint is called 7"):
        simulate(Bolus(), Cohort(1, "100", times=[1], lloq={7: 1.0}))
    assert (seen(simulate(Bolus(), Cohort(5, "100", times=[40], lloq={1: 9.0})))["cens"] == 1).all()


class Lasting(Bolus):
    """The same, infusions of a duration that the page says."""

    def dosing(self, p: Any) -> Any:
        return dict(central=nl.Dose(duration=2.0 * p.v / p.v))


@pytest.mark.parametrize("into", ["", " into central", " into 1"])
def test_boluses_where_the_page_gives_a_duration_are_said(into: str) -> None:
    expected = (
        rf'the page gives a duration for doses into central.*write "100 over duration{into} every 12 x 2"'
    )
    with pytest.warns(DataWarning, match=expected):
        simulate(Lasting(), Cohort(2, f"100{into} every 12 x 2", times=[1.0]))
    with pytest.warns(DataWarning, match='write "100 over rate" or "100 over duration"'):
        simulate(Modelled(), Cohort(2, "100", times=[1.0]))


@pytest.mark.parametrize(
    "regimen", ["100 over duration", "100 over 3", "200 + 100 over duration every 12 x 2 at 12"]
)
def test_infusions_and_boluses_beside_them_are_meant(regimen: str) -> None:
    assert len(simulate(Lasting(), Cohort(2, regimen, times=[1.0])))  # a warning fails


def test_one_occasion_is_said() -> None:
    with pytest.warns(DataWarning, match=r"between occasions \(v\).*occasions= .*--occasions"):
        simulate(Occasional(), Cohort(2, "100 every 24 x 3", times=[2, 26, 50]))
    simulate(Occasional(), Cohort(2, "100 every 24 x 3", times=[2, 26, 50], occasions="dose"))


def test_the_grammar_in_errors_lists_what_may_be_written() -> None:
    for text in ("100 evry 12", "100 over", "100 over lunch"):
        with pytest.raises(DataError, match=r"over NUMBER \| over duration \| over rate\].*\[ss\]"):
            nl.Regimen.parse(text)
    with pytest.raises(DataError, match="expected 'duration', 'rate', or the duration of the infusion"):
        nl.Regimen.parse("100 over lunch")
