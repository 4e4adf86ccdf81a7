"""Pages: what a class declares, what its instances hold, and what is refused when the class is created."""

from __future__ import annotations

import pytest
import torch
from torch import exp, nn

import nlmegen as nl
from nlmegen.errors import ModelError


class Bolus(nl.Model):
    """A bolus into one compartment."""

    tvcl = nl.Theta(2.0, lower=0, unit="L/h")
    tvv = nl.Theta(20.0, lower=0, unit="L")
    iiv = nl.Omega(cl=0.1, v=0.04)
    cp = nl.Combined(additive=0.5, proportional=0.1)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def extend(**changes):
    return type("Changed", (Bolus,), {"__doc__": "Changed.", "__module__": __name__, **changes})


def test_values_are_read_by_name() -> None:
    model = Bolus()
    assert float(model.theta.tvcl) == pytest.approx(2.0)
    torch.testing.assert_close(model.omega, torch.diag(torch.tensor([0.1, 0.04], dtype=torch.float64)))
    assert {k: float(v) for k, v in model.sigma.items()} == pytest.approx(
        {"cp.additive": 0.5, "cp.proportional": 0.1}
    )
    assert model.eta_names == ("cl", "v")
    assert "tvcl" in repr(model)
    assert "<table>" in model._repr_html_()
    with pytest.raises(ModelError, match="Did you mean 'tvcl'"):
        _ = model.theta.tvlc


def test_with_values_starts_elsewhere_and_leaves_the_model_alone() -> None:
    model = Bolus()
    other = model.with_values(theta={"tvcl": 3.0}, omega={"v": 0.09}, sigma={"cp.additive": 0.2})
    assert float(other.theta.tvcl) == pytest.approx(3.0)
    assert other.omega.diagonal().tolist() == pytest.approx([0.1, 0.09])
    assert float(model.theta.tvcl) == pytest.approx(2.0)
    again = model.with_values(other)
    torch.testing.assert_close(again.free, other.free)
    with pytest.raises(ModelError, match="not a Theta"):
        model.with_values(theta={"tvk": 1.0})
    for matrix in ([[0.1, 0.08], [0.08, 0.1]], [[0.1, 0.0], [0.01, 0.1]], [[0.1, 0.0], [0.0, -0.1]], [[0.1]]):
        with pytest.raises(ModelError, match="with_values: omega must be"):
            model.with_values(omega=torch.tensor(matrix))
    with pytest.raises(ModelError, match="outside its bounds"):
        model.with_values(theta={"tvcl": -1.0})


def test_a_subclass_overrides_one_line() -> None:
    changed = extend(cp=nl.Additive(0.4))
    assert changed().sigma_names == ("cp.additive",)
    assert Bolus().sigma_names == ("cp.additive", "cp.proportional")


REFUSED = {
    "a name that torch has": (dict(half=nl.Theta(1.0)), "taken by torch"),
    "train": (dict(train=nl.Theta(1.0)), "taken by torch"),
    "raw module": (dict(net=nn.Linear(2, 1)), "silently untrained"),
    "misspelt method": (dict(individuals=lambda self, theta, eta, cov: {}), "Did you mean 'individual'"),
    "dynamics beside a structure": (
        dict(dynamics=lambda self, t, a, p: {}, structure=nl.OneCompartment()),
        "either a closed form .* or dynamics, not both",
    ),
    "arguments of dynamics": (dict(dynamics=lambda self, a, p: {}), r"dynamics\(self, t, a, p\)"),
    "initial of a closed form": (dict(initial=lambda self, p: {}), "belongs to pages with dynamics"),
    "solver of a closed form": (dict(solver=nl.Solver()), "belongs to pages with dynamics"),
    "solver of another kind": (dict(solver="stiff"), r"solver must be nl.Solver"),
    "misplaced solver": (dict(settings=nl.Solver()), r"solver = nl.Solver"),
    "kappa": (dict(individual=lambda self, theta, eta, cov, kappa: {}), "kappa"),
    "wrong arguments": (dict(observe=lambda self, a, p: {}), r"observe\(self, t, a, p\)"),
    "twice the same eta": (dict(more=nl.Omega(cl=0.1)), "declared twice"),
    "structure of another kind": (dict(structure=3), "closed form"),
    "misplaced structure": (dict(model=nl.OneCompartment()), "must be called structure"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_page_refuses_at_class_creation(name: str) -> None:
    changes, says = REFUSED[name]
    with pytest.raises(ModelError, match=says):
        extend(**changes)


def test_valid_neighbours_are_accepted() -> None:
    extend(half_life=nl.Theta(1.0))
    extend(more=nl.Omega(ka=0.1))
    extend(helper=lambda self, x: x)
    extend(structure=nl.OneCompartment(absorption="first-order"))
    extend(dynamics=lambda self, t, a, p: {"central": -p.cl / p.v * a.central}, solver=nl.Solver(rtol=1e-6))


def test_missing_parts_name_what_to_write() -> None:
    with pytest.raises(ModelError, match="no method individual"):
        type("Empty", (nl.Model,), {"__module__": __name__})
    with pytest.raises(ModelError, match="no endpoint"):
        extend(cp=None)
    with pytest.raises(ModelError, match="base of pages"):
        nl.Model()
