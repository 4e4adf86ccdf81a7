"""`compare`: one arbiter for all fits, errors beside its numbers, refusals where likelihoods cannot be compared."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from problems import Straight, exact, straight_table

import nlmegen as nl
from nlmegen.errors import DataError
from nlmegen.fit import arbiter
from nlmegen.inference import marginal

DATA = nl.read_nonmem(straight_table(30))


def variant(**changes) -> type[nl.Model]:
    return type("Variant", (Straight,), {"__module__": __name__, **changes})


@pytest.fixture(scope="module")
def fits() -> tuple[nl.Fit, nl.Fit]:
    diagonal = variant(iiv=nl.Omega(b=0.5, s=0.1))
    return nl.fit(Straight, DATA, nl.FOCEI()), nl.fit(diagonal, DATA, nl.FOCEI())


@pytest.mark.parametrize("arbiter", ["quadrature", "importance"])
def test_both_arbiters_find_the_closed_form(fits: tuple[nl.Fit, nl.Fit], arbiter: str) -> None:
    table = nl.compare(*fits, arbiter=arbiter, k=2000).table
    for label, fit in zip(table.index, fits, strict=True):
        expected = -2 * float(exact(fit.problem).log_likelihood.sum())
        error = max(5 * table.loc[label, "minus2ll_se"], 1e-6)
        assert table.loc[label, "minus2ll"] == pytest.approx(expected, abs=error)
    if arbiter == "importance":
        assert 0 < table["minus2ll_se"].max() < 0.2


def test_common_random_numbers_make_the_difference_surer_than_its_parts(fits: tuple[nl.Fit, nl.Fit]) -> None:
    table = nl.compare(*fits, arbiter="importance", k=500).table
    worst = table["delta"].idxmax()
    assert 0 < table.loc[worst, "paired_se"] < table["minus2ll_se"].max() * 1.5
    exact_delta = -2 * (
        exact(fits[1].problem).log_likelihood.sum() - exact(fits[0].problem).log_likelihood.sum()
    )
    assert table.loc[worst, "delta"] == pytest.approx(
        abs(float(exact_delta)), abs=5 * table.loc[worst, "paired_se"]
    )


def test_the_labels_are_unique_and_the_tables_complete(fits: tuple[nl.Fit, nl.Fit]) -> None:
    compared = nl.compare(*fits)
    assert compared.table.index.is_unique
    assert compared.table["delta"].min() == 0
    assert compared.arbiter == "quadrature"
    assert compared.parameters.shape == (6, 4)
    assert "quadrature" in repr(compared)
    assert "<table" in compared._repr_html_()
    named = nl.compare(*fits, names=["full", "diagonal"]).table
    assert list(named.index) == ["full", "diagonal"]
    assert named.loc["full", "aic"] == pytest.approx(named.loc["full", "minus2ll"] + 12)


def test_a_capped_grid_has_an_error_and_tells_its_nodes(
    fits: tuple[nl.Fit, nl.Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = type("Log", (Straight,), {"__module__": __name__, "cp": nl.Combined(0.3, 0.2)})
    curved = nl.fit(page, DATA, nl.FOCEI(evaluate=True))
    monkeypatch.setattr(marginal, "GRID", 49)
    capped = nl.compare(curved, fits[1], arbiter="quadrature")
    assert "7 nodes a dimension (errors: change from 5 nodes; 9 asked for" in capped.detail
    values = [marginal.quadrature(curved.problem, curved.values, n).total for n in (7, 5)]
    assert capped.table["minus2ll_se"].iloc[0] == pytest.approx(2 * abs(values[0] - values[1]))
    assert capped.table["minus2ll_se"].iloc[0] > 0


@pytest.mark.parametrize("nodes", [1, 2])
def test_without_a_second_rule_the_error_is_not_known(fits: tuple[nl.Fit, nl.Fit], nodes: int) -> None:
    compared = nl.compare(*fits, arbiter="quadrature", nodes=nodes)
    assert compared.table["minus2ll_se"].isna().all()
    assert compared.table["minus2ll"].notna().all()
    assert "errors unknown" in compared.detail
    with pytest.raises(DataError, match="at least 1 node"):
        nl.compare(*fits, nodes=0)


def test_a_fit_without_a_likelihood_does_not_spoil_the_others(
    fits: tuple[nl.Fit, nl.Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(problem: nl.Problem, values: object, nodes: int) -> marginal.Marginal:
        found = marginal.quadrature(problem, values, nodes)
        if problem is fits[0].problem:
            return replace(found, log_likelihood=found.log_likelihood * math.nan)
        return found

    monkeypatch.setattr(arbiter, "quadrature", broken)
    table = nl.compare(*fits, fits[1], arbiter="quadrature").table
    assert table["delta"].isna().tolist() == [True, False, False]
    assert table["delta"].iloc[1:].tolist() == [0.0, 0.0]


def test_what_cannot_be_compared_is_refused(fits: tuple[nl.Fit, nl.Fit]) -> None:
    with pytest.raises(DataError, match="two fits or more"):
        nl.compare(fits[0])
    other = nl.fit(Straight, nl.read_nonmem(straight_table(29)), nl.FOCEI())
    with pytest.raises(DataError, match="different data"):
        nl.compare(fits[0], other)
    with pytest.raises(DataError, match="expected 'auto'"):
        nl.compare(*fits, arbiter="elbo")
    with pytest.raises(DataError, match="expected 2 labels"):
        nl.compare(*fits, names=["one"])


def test_natural_and_logarithmic_observations_are_not_compared() -> None:
    def observe(self, t, a, p):
        return dict(cp=(p.base + p.slope * t).exp())

    positive = straight_table(30).assign(DV=lambda t: t.DV.abs() + 0.5)
    data = nl.read_nonmem(positive)
    natural = nl.fit(variant(cp=nl.LogNormal(0.4), observe=observe), data, nl.FOCEI(evaluate=True))
    logged = nl.fit(variant(cp=nl.LogNormal(0.4, dv="log"), observe=observe), data, nl.FOCEI(evaluate=True))
    with pytest.raises(DataError, match="different scales"):
        nl.compare(natural, logged)


def test_own_objectives_are_compared_where_they_are_of_one_kind(fits: tuple[nl.Fit, nl.Fit]) -> None:
    own = nl.compare(*fits, arbiter="own")
    assert own.arbiter == "own"
    assert own.table["minus2ll"].tolist() == [-2 * f.log_likelihood for f in fits]
    assert own.table["minus2ll_se"].tolist() == [0.0, 0.0]
    other = copy.copy(fits[1])
    other.ofv_source, other.ofv_se = "importance", 0.3
    with pytest.raises(DataError, match=r"different kinds \(focei, importance\)"):
        nl.compare(fits[0], other, arbiter="own")
    third = copy.copy(other)
    third.ofv_se = 0.4
    table = nl.compare(other, third, arbiter="own").table
    assert table["minus2ll_se"].tolist() == [0.3, 0.4]
    assert sorted(table["paired_se"]) == pytest.approx([0.0, 0.5])


def test_a_page_without_random_effects_needs_no_arbiter(fits: tuple[nl.Fit, nl.Fit]) -> None:
    class Plain(nl.Model):
        """y = b + s t + eps."""

        tvb = nl.Theta(1.0)
        tvs = nl.Theta(0.5)
        cp = nl.Additive(0.9)
        structure = nl.OneCompartment()

        def individual(self, theta, eta, cov):
            return dict(base=theta.tvb, slope=theta.tvs, cl=1.0, v=1.0)

        def observe(self, t, a, p):
            return dict(cp=p.base + p.slope * t)

    plain = nl.fit(Plain, DATA, nl.FOCEI())
    y, t = DATA.dv[DATA.mask], DATA.time[DATA.mask]
    mean = plain.model.theta.tvb + plain.model.theta.tvs * t
    exactly = -2 * float(torch.distributions.Normal(mean, plain.model.sigma["cp.additive"]).log_prob(y).sum())
    for judge in ("quadrature", "importance"):
        row = nl.compare(fits[0], plain, arbiter=judge, k=50).table.iloc[1]
        assert row["minus2ll"] == pytest.approx(exactly, abs=1e-8)
        assert row["minus2ll_se"] == pytest.approx(0.0, abs=1e-10)


def test_akaike_weights(fits: tuple[nl.Fit, nl.Fit]) -> None:
    compared = nl.compare(*fits, names=["full", "diagonal"])
    weights, table = compared.weights, compared.table
    assert weights.sum() == pytest.approx(1.0)
    ratio = math.exp(0.5 * (table.loc["full", "aic"] - table.loc["diagonal", "aic"]))
    assert weights["diagonal"] / weights["full"] == pytest.approx(ratio)


def test_what_is_in_doubt_is_noted(fits: tuple[nl.Fit, nl.Fit]) -> None:
    assert nl.compare(*fits).notes == []
    stopped = copy.copy(fits[1])
    stopped.converged = False
    compared = nl.compare(fits[0], stopped, names=["full", "stopped"])
    assert compared.notes == ["stopped did not converge: its likelihood is not at a maximum"]
    assert "note: stopped did not converge" in repr(compared)
    assert "<li>stopped did not converge" in compared._repr_html_()
    with pytest.raises(DataError, match="labels that differ"):
        nl.compare(*fits, names=["same", "same"])
    with pytest.raises(DataError, match="at least 2 draws"):
        nl.compare(*fits, arbiter="importance", k=1)
