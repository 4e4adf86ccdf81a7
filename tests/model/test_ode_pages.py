"""Pages with `dynamics`: what is understood, what is refused with the page's line, and what changes with a copy."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch import exp

import nlmegen as nl
from nlmegen.errors import ModelError


class Oral(nl.Model):
    """Oral dose, Michaelis-Menten elimination."""

    tvvm = nl.Theta(8.0, lower=0)
    tvkm = nl.Theta(2.0, lower=0)
    tvv = nl.Theta(30.0, lower=0)
    tvka = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(vm=0.1, v=0.05)
    cp = nl.Combined(additive=0.1, proportional=0.1)
    solver = nl.Solver(route="torch")

    def individual(self, theta, eta, cov):
        return dict(vm=theta.tvvm * exp(eta.vm), km=theta.tvkm, v=theta.tvv * exp(eta.v), ka=theta.tvka)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.vm * c / (p.km + c))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def extend(**changes):
    return type("Changed", (Oral,), {"__doc__": "Changed.", "__module__": __name__, **changes})


def table(**columns) -> nl.Population:
    base = dict(
        id=[1, 1, 1, 2, 2],
        time=[0.0, 1.0, 4.0, 0.0, 3.0],
        amt=[100.0, 0, 0, 50.0, 0],
        dv=[0, 2.0, 1.5, 0, 1.0],
    )
    return nl.Population.from_table(pd.DataFrame(base | columns))


def test_compartments_and_parameters_are_read_off_the_page() -> None:
    structure = Oral().structure
    assert structure.compartments == ("depot", "central")
    assert set(structure.parameters) == {"ka", "vm", "v", "km"}
    assert "depot, central" in repr(Oral())


def test_a_closed_form_and_its_equations_are_the_same_page() -> None:
    closed = nl.load_model("theophylline").with_values(theta={"tvka": 1.4})
    stepped = closed.as_ode(nl.Solver(route="torch"))
    data = nl.load_data("theophylline")
    one, two = nl.Problem(closed, data), nl.Problem(stepped, data)
    eta = 0.2 * torch.randn(12, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = (x.predict(eta, x.values(x.start), order=1) for x in (one, two))
    peak = a.f.amax(-1, keepdim=True)
    assert float(((a.f - b.f) / peak).abs().max()) < 1e-6
    assert a.jac is not None
    assert b.jac is not None
    assert float(((a.jac - b.jac) / peak).abs().max()) < 1e-5
    assert stepped.name == closed.name
    assert stepped.as_ode() is stepped


@pytest.mark.parametrize(
    "closed", [nl.OneCompartment(), nl.TwoCompartment("first-order"), nl.ThreeCompartment("first-order")]
)
def test_equations_of_the_closed_forms_conserve_mass(closed) -> None:
    """What leaves is cl/v times the central amount: the rates add up to its negative."""
    amounts = {name: torch.tensor(2.0 + k) for k, name in enumerate(closed.compartments)}
    p = {name: torch.tensor(0.5 + k) for k, name in enumerate(closed.parameters)}
    rates = closed.dynamics(0.0, _Namespace(amounts), _Namespace(p))
    assert tuple(rates) == closed.compartments
    assert float(sum(rates.values())) == pytest.approx(float(-p["cl"] / p["v"] * amounts["central"]))


class _Namespace:
    def __init__(self, values) -> None:
        self.__dict__.update(values)


WRONG = {
    "no dict": (dict(dynamics=lambda self, t, a, p: [a.central]), "must return a dict"),
    "nothing": (dict(dynamics=lambda self, t, a, p: {}), "compartment"),
    "misspelt compartment": (
        dict(dynamics=lambda self, t, a, p: dict(depot=-p.ka * a.depto, central=-a.central)),
        "Did you mean 'depot'",
    ),
    "math.exp": (dict(dynamics=lambda self, t, a, p: dict(central=-math.exp(p.vm) * a.central)), "torch.exp"),
    "an if": (
        dict(dynamics=lambda self, t, a, p: dict(central=-a.central if a.central > 1 else p.vm)),
        "torch.where",
    ),
    "initial of no compartment": (dict(initial=lambda self, p: dict(effect=p.vm)), "effect"),
    "dose of no compartment": (dict(dosing=lambda self, p: dict(gut=nl.Dose(lag=p.ka))), "gut"),
    "dosing without Dose": (dict(dosing=lambda self, p: dict(depot=p.ka)), "nl.Dose"),
    "expm of a curved page": (dict(solver=nl.Solver(route="expm")), "not linear"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_page_refuses_when_it_is_made(name: str) -> None:
    changes, says = WRONG[name]
    page = extend(**changes)
    with pytest.raises(ModelError, match=says):
        page()


def test_a_parameter_that_individual_does_not_return_is_named() -> None:
    page = extend(dynamics=lambda self, t, a, p: dict(depot=-p.kaa * a.depot, central=-a.central))
    with pytest.raises(ModelError, match="needs the parameter 'kaa'"):
        nl.Problem(page(), table())


def test_bioavailability_of_an_infusion_changes_its_length() -> None:
    """Half of 100 at a rate of 50 is what an infusion of 50 at that rate brings."""
    page = extend(dosing=lambda self, p: dict(depot=nl.Dose(bioavailability=0.5 + 0.0 * p.ka)))
    rate = [50.0, 0, 0, 25.0, 0]
    one = nl.Problem(page(), table(rate=rate))
    two = nl.Problem(Oral(), table(rate=rate, amt=[50.0, 0, 0, 25.0, 0]))
    eta = torch.zeros(2, one.q, dtype=torch.float64)
    a, b = (x.predict(eta, x.values(x.start)).f for x in (one, two))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(route="fast"),
        dict(method="rk4"),
        dict(rtol=0.0),
        dict(floor=2.0),
        dict(max_steps=0),
        dict(threads=0),
        dict(max_steps=1.5),
        dict(rtol="tight"),
        dict(floor=True),
    ],
)
def test_settings_outside_their_range_are_refused(wrong) -> None:
    with pytest.raises(ModelError, match=next(iter(wrong))):
        nl.Solver(**wrong)


def test_a_solver_is_exchanged_on_a_copy() -> None:
    model = Oral()
    other = model.with_solver(nl.Solver(route="torch", rtol=1e-4))
    assert (model.solver.rtol, other.solver.rtol) == (3e-7, 1e-4)
    assert other.structure.solver.rtol == 1e-4
    with pytest.raises(ModelError, match="closed form"):
        nl.load_model("theophylline").with_solver(nl.Solver())


class Learned(Oral):
    """The rate is a network's."""

    net = nl.Neural(inputs=1, hidden=(3,), seed=4)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.vm * c * exp(self.net(c)) / p.km)


def test_weights_live_beside_the_free_vector() -> None:
    model = Learned()
    assert model.weights.shape == (10,)
    other = model.with_weights(torch.zeros(10, dtype=torch.float64))
    assert float(model.weights.abs().max()) > 0
    one, two = nl.Problem(model, table()), nl.Problem(other, table())
    assert one.P == two.P == 8
    eta = torch.zeros(2, 2, dtype=torch.float64)
    a, b = (x.predict(eta, x.values(x.start)).f for x in (one, two))
    assert float((a - b).abs().max()) > 1e-6
    again = one.with_weights(two.weights).predict(eta, one.values(one.start)).f
    torch.testing.assert_close(again, b, rtol=0, atol=0)
    with pytest.raises(ModelError, match="10 weights"):
        model.with_weights(torch.zeros(3))


def test_reverse_mode_reaches_the_weights() -> None:
    # so tight that the steps of two solves differ by less than the solves
    model = Learned().with_solver(nl.Solver(route="torch", rtol=1e-11))
    problem = nl.Problem(model, table())
    eta, values = torch.zeros(2, 2, dtype=torch.float64), problem.values(problem.start)
    weights = problem.weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.with_weights(weights).predict(eta, values).f.sum(), weights)
    step = 1e-5 * torch.eye(10, dtype=torch.float64)[3]
    ahead, behind = (
        problem.with_weights(problem.weights + s * step).predict(eta, values).f.sum() for s in (1, -1)
    )
    assert float(gradient[3]) == pytest.approx(float(ahead - behind) / 2e-5, rel=1e-4)
