"""Pages with a closed form and a method `dosing`: the numbers of their equations stepped, and errors with lines."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import exp

import nlmegen as nl
from nlmegen.data.population import Population
from nlmegen.errors import DataError, ModelError
from nlmegen.model.problem import Problem


class Lagged(nl.Model):
    """Oral doses that come late, some of them over a time of their own."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(30.0, lower=0)
    tvka = nl.Theta(1.0, lower=0)
    tvlag = nl.Theta(0.7, lower=0)
    tvd = nl.Theta(1.6, lower=0)
    tvf = nl.Theta(0.8, lower=0, upper=1)
    iiv = nl.Omega(cl=0.1, ka=0.2, lag=0.1, d=0.1)
    cp = nl.Combined(additive=0.05, proportional=0.1)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv,
            ka=theta.tvka * exp(eta.ka),
            lag=theta.tvlag * exp(eta.lag),
            d=theta.tvd * exp(eta.d),
            f=theta.tvf,
        )

    def dosing(self, p):
        return dict(depot=nl.Dose(lag=p.lag, bioavailability=p.f, duration=p.d))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def patients(n: int = 3, **more: object) -> Population:
    """A bolus, an additional one, an infusion over a modelled duration."""
    rows = []
    for k in range(1, n + 1):
        rows += [
            dict(id=k, time=0.0, amt=100.0 * k, addl=1, ii=10.0, evid=1),
            dict(id=k, time=5.0, amt=80.0, rate=-2, evid=1),
        ]
        rows += [dict(id=k, time=t, evid=0, dv=1.0) for t in np.linspace(0.9, 30.0, 9)]
    table = pd.DataFrame(rows).fillna(0.0).sort_values(["id", "time"], kind="stable")
    return Population.from_table(table.assign(**more), warn=False)


def test_a_closed_form_with_dosing_is_its_equations_stepped() -> None:
    page = Lagged()
    closed = Problem(page, patients())
    stepped = Problem(page.as_ode(nl.Solver(route="torch", rtol=1e-10)), patients())
    generator = torch.Generator().manual_seed(4)
    eta = 0.2 * torch.randn(2, 3, closed.q, generator=generator, dtype=torch.float64)
    values = closed.values(closed.start)
    found, expected = (problem.predict(eta, values, 1) for problem in (closed, stepped))
    peak = float(expected.f.max())
    torch.testing.assert_close(found.f, expected.f, rtol=0.0, atol=1e-8 * peak)
    assert found.jac is not None
    assert expected.jac is not None
    torch.testing.assert_close(found.jac, expected.jac, rtol=0.0, atol=1e-6 * float(expected.jac.abs().max()))


def test_it_is_not_compiled_and_says_why() -> None:
    """The compiled closed forms know plain doses alone: taking them would leave lags out in silence."""
    problem = Problem(Lagged(), patients()).hasten()
    assert problem.route.programs is None
    assert problem.route.reason == "the page models its doses"


def test_copies_and_other_values_keep_the_doses() -> None:
    page = Lagged()
    data = patients()
    eta = torch.zeros(3, 4, dtype=torch.float64)
    later = page.with_values(theta=dict(tvlag=1.4))
    for model in (later, copy.deepcopy(later), later.with_weights(later.weights)):
        problem = Problem(model, data)
        f = problem.predict(eta, problem.values(problem.start)).f
        assert float(f[0, 0]) == 0.0, "nothing has come at 0.9"
    problem = Problem(page, data)
    assert float(problem.predict(eta, problem.values(problem.start)).f[0, 0]) > 0


def test_a_rate_that_the_page_does_not_give_is_named() -> None:
    data = pd.DataFrame(
        dict(id=1, time=[0.0, 1.0], amt=[10.0, 0.0], rate=[-1.0, 0.0], evid=[1, 0], dv=[0.0, 1.0])
    )
    with pytest.raises(DataError, match="the rate of doses into depot.*RATE -1"):
        Problem(Lagged(), Population.from_table(data, warn=False))


def test_a_page_without_dosing_refuses_modelled_infusions() -> None:
    class Plain(Lagged):
        def dosing(self, p):
            return {}

    with pytest.raises(DataError, match=r"the duration of doses into depot.*nl.Dose\(duration=...\)"):
        Problem(Plain(), patients())


def test_a_compartment_that_is_not_there_is_named_with_the_line() -> None:
    class Wrong(Lagged):
        def dosing(self, p):
            return dict(dept=nl.Dose(lag=p.lag))

    with pytest.raises(ModelError, match="dosing names dept.*Did you mean 'depot'") as caught:
        Wrong()
    assert caught.value.page == "test_dosed_pages.py"


def test_a_parameter_that_individual_does_not_return_is_named() -> None:
    class Wrong(Lagged):
        def dosing(self, p):
            return dict(depot=nl.Dose(lag=p.tlag, duration=p.d))

    with pytest.raises(ModelError, match="tlag"):
        Problem(Wrong(), patients())
