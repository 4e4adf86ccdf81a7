"""What is said of a page on its data: rates nobody asks for, empty categories, and why a prediction is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from model.single_endpoints import bound
from torch import exp

import nlmegen as nl
from nlmegen.data.columns import DataWarning
from nlmegen.errors import DataError, ModelError
from nlmegen.model.remarks import remarks


class Bolus(nl.Model):
    """Bolus into one compartment."""

    tvcl = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.1)
    cp = nl.Additive(0.3)
    structure = nl.OneCompartment()

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        return dict(cl=theta.tvcl * exp(eta.cl), v=10.0, d=2.0 * exp(eta.cl))

    def observe(self, t: Any, a: Any, p: Any) -> Any:
        return dict(cp=a.central / 10.0)


class Lasting(Bolus):
    """Infusions of a duration that the page gives."""

    def dosing(self, p: Any) -> Any:
        return dict(central=nl.Dose(duration=p.d))


class Late(Bolus):
    """Doses that come 20 later."""

    def dosing(self, p: Any) -> Any:
        return dict(central=nl.Dose(lag=10.0 * p.d))


class Weighed(Bolus):
    """Clearance by a power of weight, a factor for a sex."""

    def individual(self, theta: Any, eta: Any, cov: Any) -> Any:
        cl = theta.tvcl * exp(eta.cl) * (cov.wt / 70) ** 0.75 * (1 + 0.1 * cov.sex)
        return dict(cl=cl, v=10.0, d=1.0)


def table(rate: float = 0.0, n: int = 4, **columns: Any) -> pd.DataFrame:
    """A dose of 100 and two samples a subject."""
    rows = [
        dict(id=i, time=t, amt=100.0 * (t == 0), rate=rate * (t == 0), evid=int(t == 0), dv=5.0 * (t > 0))
        for i in range(1, n + 1)
        for t in (0.0, 1.0, 5.0)
    ]
    return pd.DataFrame(rows).assign(**columns)


def problem(page: type[nl.Model], data: pd.DataFrame) -> nl.Problem:
    return nl.Problem(page(), nl.read_nonmem(data))


def stepped(page: type[nl.Model]) -> Callable[[], nl.Model]:
    return lambda: page().as_ode()


@pytest.mark.parametrize("form", [Lasting, stepped(Lasting)])
def test_a_duration_that_no_record_asks_for_is_noted(form: Any) -> None:
    for rate in (0.0, 50.0):
        (note,) = remarks(problem(form, table(rate)))
        assert note.startswith(
            "the page gives a duration for doses into central, and no record of central asks"
        )
        assert "(RATE -2)" in note
    assert remarks(problem(form, table(-2.0))) == []
    assert remarks(problem(Bolus, table())) == []


def test_the_notes_of_a_fit_hold_these_and_the_warnings_of_the_data_once() -> None:
    data = table(n=6)
    data.loc[data["evid"] == 0, "dv"] = [7.0, 4.0, 8.0, 5.0, 6.5, 4.4, 7.7, 5.1, 7.1, 4.2, 8.3, 5.5]
    data = data[~((data["id"] == 6) & (data["evid"] == 1))]
    with pytest.warns(DataWarning) as told:
        population = nl.read_nonmem(data)
    fit = nl.fit(Lasting(), population, nl.FOCEI(evaluate=True))
    assert [note for note in fit.notes if note.startswith("data: ")] == [
        f"data: {one.message}" for one in told
    ]
    assert sum("the page gives a duration" in note for note in fit.notes) == 1
    from nlmegen.report.words import concerns

    said = concerns(fit)
    assert len(set(said)) == len(said)
    assert all(f"data: {text}" in said for text in population.warnings)


def test_categories_counted_from_one() -> None:
    page = nl.Ordered(gaps=[1.0, 1.5])
    with pytest.raises(DataError, match="categories start at 0: subtract 1; or correct"):
        bound(page, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(DataError, match="subtract 1, and declare 3 gaps for 5 categories"):
        bound(page, [1.0, 2.0, 3.0, 4.0, 5.0])
    with pytest.raises(DataError, match="0 to 3: 6 categories need 4 gaps"):
        bound(page, [0.0, 5.0])
    with pytest.raises(DataError, match="got DV 1.5 at id 1 time [^;]*; correct these records"):
        bound(page, [1.0, 1.5])


def test_categories_at_the_ends_that_nobody_is_in_are_noted() -> None:
    page = nl.Ordered(gaps=[1.0, 1.5])
    assert remarks(bound(page, [0.0, 2.0, 3.0])) == []
    (low,) = remarks(bound(page, [1.0, 2.0, 3.0]))
    assert "no observation is in category 0 (the page has 0 to 3)" in low
    assert "subtract 1" in low
    (high,) = remarks(bound(page, [0.0, 1.0, 2.0]))
    assert "no observation is in category 3, the highest of the page" in high


@pytest.mark.parametrize("form", [Late, stepped(Late)])
def test_a_lag_beyond_the_interval_of_a_steady_state_is_named(form: Any) -> None:
    data = table()
    data["ii"] = 12.0 * ((data["evid"] == 1) & (data["id"] == 3))
    data["ss"] = (data["ii"] > 0).astype(int)
    bad = problem(form, data)
    with pytest.raises(DataError, match=r"id 3 time .*a lag as long as or longer than .* II .*\(id 3\)"):
        bad.check(bad.values(bad.start))
    data["ii"] *= 3
    fine = problem(form, data)
    fine.check(fine.values(fine.start))


def test_covariates_that_a_power_cannot_take_are_named() -> None:
    data = table(wt=70.0, sex=-0.5)
    data.loc[data["id"] == 2, ["wt", "sex"]] = [-99.0, -0.5]
    bad = problem(Weighed, data)
    with pytest.raises(DataError, match=r"0 or less: wt -99 \(id 2\); correct them"):
        bad.check(bad.values(bad.start))
    # of the first subject it is seen before anything is computed; others have that sex too, without harm
    data["id"] = data["id"].map({2: 1, 1: 2, 3: 3, 4: 4})
    data = data.sort_values("id", kind="stable")
    with pytest.raises(ModelError, match=r"'cl' is not finite.*0 or less: wt -99 \(id 1\); correct them"):
        problem(Weighed, data)


def test_without_either_nothing_is_added() -> None:
    fine = problem(Weighed, table(wt=70.0, sex=0.0))
    assert fine.covariates_read == {"wt", "sex"}
    values = fine.values(torch.full_like(fine.start, torch.nan))
    with pytest.raises(DataError, match="before|precedes") as error:
        fine.check(values)
    assert "covariates" not in str(error.value)
    assert "lag" not in str(error.value)
