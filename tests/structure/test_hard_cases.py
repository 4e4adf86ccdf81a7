"""Pages and data that have gone wrong once, on every route, against closed forms and the same data otherwise."""

from __future__ import annotations

import copy

import pandas as pd
import pytest
import torch
from torch import Tensor, exp

import nlmegen as nl
from nlmegen.errors import DataError

ROUTES = [
    nl.Solver(route="compiled", method="explicit"),
    nl.Solver(route="compiled", method="stiff"),
    nl.Solver(route="torch", method="explicit"),
    nl.Solver(route="torch", method="stiff"),
    nl.Solver(route="expm"),
]
GENERAL = ROUTES[2:]
"""The routes that take modelled doses together with parameters that vary in time."""


class Oral(nl.Model):
    """Oral, elimination by weight."""

    tvka = nl.Theta(1.2)
    tvke = nl.Theta(0.1)
    iiv = nl.Omega(ka=0.1, ke=0.1)
    cp = nl.Additive(0.1)

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka * exp(eta.ka), ke=theta.tvke * exp(eta.ke) * cov.wt / 70)

    def dynamics(self, t, a, p):
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.ke * a.central)

    def observe(self, t, a, p):
        return dict(cp=a.central)


class Late(Oral):
    """The same with a lag, by weight too, that a random effect can make negative."""

    tvlag = nl.Theta(3.0)
    late = nl.Omega(lag=1.0)

    def individual(self, theta, eta, cov):
        lag = (theta.tvlag + eta.lag) * cov.wt / 70
        return dict(super().individual(theta, eta, cov), lag=lag)

    def dosing(self, p):
        return dict(depot=nl.Dose(lag=p.lag))


def data(*rows: tuple[float, ...]) -> nl.Population:
    """A subject of (time, amount, compartment, weight); amount 0 is an observation."""
    table = pd.DataFrame([dict(zip(("time", "amt", "cmt", "wt"), row, strict=True)) for row in rows])
    return nl.Population.from_table(table.assign(id=1, dv=1.0, evid=(table.amt > 0).astype(int)), warn=False)


def predict(
    model: nl.Model, population: nl.Population, order: int = 1, **eta: float
) -> tuple[Tensor, Tensor | None]:
    """Values and Jacobian of the one subject, with these random effects."""
    problem = nl.Problem(model, population)
    effects = torch.tensor([[eta.get(name, 0.0) for name in problem.eta_names]], dtype=torch.float64)
    found = problem.predict(effects, problem.values(problem.start), order)
    return found.f[0], None if found.jac is None else found.jac[:, 0]


@pytest.mark.parametrize("solver", ROUTES, ids=str)
def test_a_covariate_changes_with_boluses_alone(solver) -> None:
    """Weight 70 to time 2, then 35, by hand; the first observation lies inside the first segment."""
    seen = data((0.0, 100.0, 2, 70.0), (1.0, 0.0, 2, 70.0), (2.0, 0.0, 2, 70.0), (6.0, 0.0, 2, 35.0))
    f, jac = predict(Oral().with_solver(solver), seen)
    area = torch.tensor([0.1, 0.2, 0.2 + 0.05 * 4], dtype=torch.float64)
    assert float((f - 100 * exp(-area)).abs().max()) < 1e-4
    assert jac is not None
    assert float((jac[1] + 100 * area * exp(-area)).abs().max()) < 1e-3


@pytest.mark.parametrize("solver", GENERAL, ids=str)
def test_a_late_dose_finds_the_parameters_of_the_time_at_which_it_comes(solver) -> None:
    """A dose at 0 that comes at 3, weight changing at 2 and 5, is a dose at 3."""
    seen = [(2.0, 0.0, 2, 70.0), (5.0, 0.0, 2, 35.0), (9.0, 0.0, 2, 140.0), (12.0, 0.0, 2, 70.0)]
    late, _ = predict(Late().with_solver(solver), data((0.0, 100.0, 1, 70.0), (0.0, 50.0, 2, 70.0), *seen))
    rows = [(0.0, 50.0, 2, 70.0), *seen[:1], (3.0, 100.0, 1, 35.0), *seen[1:]]
    same, _ = predict(Oral().with_solver(nl.Solver(route="expm")), data(*rows))
    assert float((late - same).abs().max()) < 1e-5 * float(same.max())


@pytest.mark.parametrize("solver", ROUTES, ids=str)
def test_something_is_observed_at_the_moment_of_a_late_dose(solver) -> None:
    times = torch.tensor([1.0, 3.0, 4.0, 8.0], dtype=torch.float64)
    f, jac = predict(
        Late().with_solver(solver), data((0.0, 100.0, 1, 70.0), *((float(t), 0.0, 2, 70.0) for t in times))
    )
    since = (times - 3).clamp(min=0)
    bateman = 100 * 1.2 / 1.1 * (exp(-0.1 * since) - exp(-1.2 * since))
    slope = 100 * 1.2 / 1.1 * (-0.1 * exp(-0.1 * since) + 1.2 * exp(-1.2 * since))
    assert float((f - bateman).abs().max()) < 1e-4
    assert jac is not None
    assert float((jac[2] + slope)[2:].abs().max()) < 1e-3


@pytest.mark.parametrize("solver", ROUTES, ids=str)
def test_a_negative_lag_is_no_dose_in_the_past(solver) -> None:
    seen = data((0.0, 100.0, 1, 70.0), (1.0, 0.0, 2, 70.0), (2.0, 0.0, 2, 70.0))
    f, _ = predict(Late().with_solver(solver), seen, 0, lag=-3.5)
    assert f.isnan().all()


class Wave(nl.Model):
    """Elimination that oscillates as much as an additive random effect says: not at all in a typical subject."""

    tvke = nl.Theta(0.05)
    iiv = nl.Omega(e=0.3)
    cp = nl.Additive(0.1)

    def individual(self, theta, eta, cov):
        return dict(ke=theta.tvke, e=eta.e)

    def dynamics(self, t, a, p):
        return dict(central=-p.ke * (1 + p.e * torch.sin(6 * t)) * a.central)

    def observe(self, t, a, p):
        return dict(cp=a.central)


@pytest.mark.parametrize("solver", ROUTES[:4], ids=str)
@pytest.mark.parametrize("order", [1, 2])
def test_the_derivative_in_a_parameter_that_is_zero_is_held_to_the_tolerance(solver, order) -> None:
    times = torch.tensor([10.0, 24.0, 48.0], dtype=torch.float64)
    rows = [(0.0, 100.0, 1, 70.0), *((float(t), 0.0, 1, 70.0) for t in times)]
    _, jac = predict(Wave().with_solver(solver), data(*rows), order)
    exact = 100 * exp(-0.05 * times) * -0.05 * (1 - torch.cos(6 * times)) / 6
    assert jac is not None
    assert float((jac[0] - exact).abs().max()) < 1e-5 * float(exact.abs().max())


class Growing(Oral):
    """Amounts that grow without bound."""

    def dynamics(self, t, a, p):
        return dict(central=a.central**2 - p.ke * a.central + 0 * p.ka)


def test_what_cannot_be_solved_at_the_start_says_so() -> None:
    seen = data((0.0, 100.0, 1, 70.0), (1.0, 0.0, 1, 70.0))
    problem = nl.Problem(Growing(), seen)
    with pytest.raises(
        DataError,
        match=r"at the start, at id 1 time 1; the differential equations cannot be solved.*max_steps",
    ):
        problem.check(problem.values(problem.start))


def test_a_model_that_has_been_solved_can_be_copied() -> None:
    seen = data((0.0, 100.0, 1, 70.0), (1.0, 0.0, 2, 70.0))
    model = Oral()
    before, _ = predict(model, seen)
    other = copy.deepcopy(model)
    assert other.structure is not model.structure
    assert torch.equal(before, predict(other, seen)[0])


class Switched(Oral):
    """Elimination that stops below an amount."""

    def dynamics(self, t, a, p):
        out = torch.where(a.central > 20, p.ke * a.central, 0 * a.central)
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - out)


class Fast(Oral):
    """Elimination that is of another kind above an amount."""

    def dynamics(self, t, a, p):
        out = torch.where(a.central > 50, 6 * p.ka + 0 * a.central, p.ke * a.central)
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - out)


@pytest.mark.parametrize(("page", "said"), [(Oral, False), (Switched, True)])
def test_rates_that_jump_are_said_to_lack_derivatives(page, said) -> None:
    problem = nl.Problem(page(), data((0.0, 100.0, 1, 70.0), (1.0, 0.0, 2, 70.0)))
    words = " ".join(problem.structure.notes())
    assert ("at moments that depend on amounts" in words) == said


@pytest.mark.parametrize(
    ("route", "method"), [("compiled", "explicit"), ("compiled", "stiff"), ("torch", "stiff")]
)
def test_a_row_is_the_same_in_company(route, method) -> None:
    """Rows that fail to converge at the jump are given no more iterations because others need them."""
    seen = data((0.0, 100.0, 2, 70.0), *((t, 0.0, 2, 70.0) for t in (5.0, 12.0, 20.0, 40.0)))
    eta = 0.1 * torch.randn(9, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    problem = nl.Problem(Fast(), seen)
    problem.structure = Fast().with_solver(nl.Solver(route=route, method=method)).structure
    values = problem.values(problem.start)
    alone = torch.cat([problem.predict(x[None], values).f for x in eta])
    assert float((problem.predict(eta, values).f - alone).abs().max()) < 1e-12
