"""The compiled route behind a page: chain rule, reverse mode, parameters that vary, doses that move, rows that fail."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import exp

import nlmegen as nl
from nlmegen.model.problem import Problem
from nlmegen.structure.batch import Kernels
from nlmegen.structure.trace import Untraceable

pytest.importorskip("llvmlite")


class Oral(nl.Model):
    """Oral, one compartment; clearance and volume follow a weight that may vary in time."""

    tvcl = nl.Theta(2.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    tvka = nl.Theta(1.2, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.1, ka=0.2)
    cp = nl.Additive(0.5)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        size = cov.wt / 70
        return dict(
            cl=theta.tvcl * size**0.75 * exp(eta.cl),
            v=theta.tvv * size * exp(eta.v),
            ka=theta.tvka * exp(eta.ka),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def histories(varying: bool) -> nl.Population:
    """Boluses, an infusion, for one subject a reset with time going back; weights that change every third record."""
    rows = []
    for i in range(4):
        for k, t in enumerate([0.0, 0.5, 1, 2, 3, 4, 6, 8, 9, 12, 15]):
            back = i == 2 and k >= 8
            evid = 4 if back and k == 8 else 1 if k in (0, 4, 6) else 0
            rows.append(
                {
                    "id": i + 1,
                    "time": t - 9 if back else t,
                    "evid": evid,
                    "amt": {0: 0.0, 1: 100.0 if k != 6 else 40.0, 4: 100.0}[evid],
                    "rate": 20.0 if k == 6 else 0.0,
                    "cmt": 2 if k == 6 or evid == 0 else 1,
                    "dv": 1.0 if evid == 0 else 0.0,
                    "wt": 60 + 5 * ((k + i) // 3 if varying else i),
                }
            )
    return nl.Population.from_table(pd.DataFrame(rows))


def draws(problem: Problem, k: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return 0.2 * torch.randn(k, problem.n_subjects, problem.q, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("route", ["compiled", "torch"])
def test_the_equations_of_a_closed_form_give_its_amounts(varying: bool, route: str) -> None:
    data = histories(varying)
    closed = nl.Problem(Oral(), data)
    stepped = nl.Problem(Oral().as_ode(nl.Solver(route=route)), data)
    eta = draws(closed)
    a = closed.predict(eta, closed.values(closed.start), order=2)
    b = stepped.predict(eta, stepped.values(stepped.start), order=2)
    peak = a.f.amax(-1, keepdim=True)
    for x, y, most in ((a.f, b.f, 1e-6), (a.jac, b.jac, 1e-5), (a.hess, b.hess, 1e-5)):
        assert x is not None
        assert y is not None
        assert float(((x - y) / peak).abs().max()) < most


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize("order", [0, 1])
def test_reverse_mode_passes_through_values_and_derivatives(varying: bool, order: int) -> None:
    data = histories(varying)
    gradients = []
    for page in (Oral(), Oral().as_ode(nl.Solver(route="compiled"))):
        problem = nl.Problem(page, data)
        free = problem.start.clone().requires_grad_()
        prediction = problem.predict(draws(problem), problem.values(free), order)
        total = torch.sin(prediction.f).sum()
        if prediction.jac is not None:
            total = total + (prediction.jac**2).sum()
        gradients.append(torch.autograd.grad(total, free)[0])
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-6 * float(gradients[0].abs().max())


class Late(nl.Model):
    """Oral with a lag and a bioavailability, both with random effects."""

    tvcl = nl.Theta(2.0, lower=0)
    tvlag = nl.Theta(0.4, lower=0)
    tvf = nl.Theta(0.8, lower=0)
    iiv = nl.Omega(cl=0.1, lag=0.1, f=0.1)
    cp = nl.Additive(0.5)

    def individual(self, theta, eta, cov):
        return dict(
            k=theta.tvcl / 10 * exp(eta.cl), ka=1.3, lag=theta.tvlag * exp(eta.lag), f=theta.tvf * exp(eta.f)
        )

    def dynamics(self, t, a, p):
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.k * a.central)

    def dosing(self, p):
        return dict(depot=nl.Dose(bioavailability=p.f, lag=p.lag))

    def observe(self, t, a, p):
        return dict(cp=a.central / 10)


def late_concentration(t: torch.Tensor, cl, lag, f) -> torch.Tensor:
    """Superposition of two doses of 100 at 0 and 50 at 5, by the textbook's formula."""
    k, ka = 0.2 * torch.exp(cl), 1.3
    total = torch.zeros_like(t)
    for amount, at in ((100.0, 0.0), (50.0, 5.0)):
        since = t - at - 0.4 * torch.exp(lag)
        course = ka / (ka - k) * (torch.exp(-k * since) - torch.exp(-ka * since))
        total = total + torch.where(since > 0, amount * 0.8 * torch.exp(f) * course / 10, 0.0)
    return total


@pytest.mark.parametrize("route", ["compiled", "torch"])
def test_moved_doses_have_exact_derivatives(route: str) -> None:
    times = [0.2, 1.0, 3.0, 5.2, 6.0, 9.0]
    table = pd.DataFrame(
        {
            "id": 1,
            "time": [0.0, *times[:3], 5.0, *times[3:]],
            "amt": [100.0, 0, 0, 0, 50, 0, 0, 0],
            "cmt": [1, 2, 2, 2, 1, 2, 2, 2],
            "dv": [0.0, 1, 1, 1, 0, 1, 1, 1],
        }
    )
    page = Late().with_solver(nl.Solver(route=route))
    problem = nl.Problem(page, nl.Population.from_table(table))
    eta = torch.tensor([[0.1, -0.2, 0.15]], dtype=torch.float64)
    got = problem.predict(eta, problem.values(problem.start), order=2)
    t = torch.tensor(times, dtype=torch.float64)

    def exact(x: torch.Tensor) -> torch.Tensor:
        return late_concentration(t, *x)

    jac = torch.autograd.functional.jacobian(exact, eta[0])
    hess = torch.stack(
        [torch.autograd.functional.hessian(lambda x, j=j: exact(x)[j], eta[0]) for j in range(len(t))], -1
    )
    peak = float(exact(eta[0]).max())
    assert float((got.f[0] - exact(eta[0])).abs().max()) < 1e-6 * peak
    assert got.jac is not None
    assert got.hess is not None
    assert float((got.jac[:, 0] - jac.mT).abs().max()) < 1e-5 * peak
    assert float((got.hess[:, :, 0] - hess).abs().max()) < 1e-4 * peak


def test_a_row_that_fails_is_not_a_number_and_alone() -> None:
    data = histories(varying=False)
    problem = nl.Problem(Oral().as_ode(nl.Solver(route="compiled", method="explicit", max_steps=2000)), data)
    values = problem.values(problem.start)
    eta = draws(problem, 1)[0]
    good = problem.predict(eta, values).f
    eta[1, 2] = 25.0  # an absorption rate constant of 1e11
    bad = problem.predict(eta, values).f
    assert bool(bad[1].isnan().any())
    others = torch.tensor([0, 2, 3])
    assert torch.equal(bad[others], good[others])
    assert problem.unsolved(eta, values).tolist() == [False, True, False, False]


def test_where_explicit_steps_are_too_many_the_stiff_method_takes_over() -> None:
    data = histories(varying=False)
    eta = torch.zeros(4, 3, dtype=torch.float64)
    eta[1, 2] = 12.0  # ka = 2e5
    closed = nl.Problem(Oral(), data)
    stepped = nl.Problem(Oral().as_ode(nl.Solver(route="compiled", max_steps=3000)), data)
    exact, got = (x.predict(eta, x.values(x.start), order=1) for x in (closed, stepped))
    peak = exact.f.amax(-1, keepdim=True)
    assert float(((exact.f - got.f) / peak).abs().max()) < 1e-6
    assert any("the stiff method took over" in words for words in stepped.structure.notes())


def test_without_a_stiff_method_explicit_steps_get_all_of_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first try ends early; where nothing can take over, the cap is the one that was asked for."""
    of = Kernels.of

    def explicit_alone(kernels: Kernels, order: int, method: str):
        if method == "stiff":
            raise Untraceable("too large")
        return of(kernels, order, method)

    monkeypatch.setattr(Kernels, "of", explicit_alone)
    page = Oral().as_ode(nl.Solver(route="compiled", max_steps=100_000))
    problem = nl.Problem(page, histories(varying=False))
    eta = torch.zeros(4, 3, dtype=torch.float64)
    eta[1, 2] = 6.5  # ka = 800: more steps than a first try has
    assert not bool(problem.unsolved(eta, problem.values(problem.start)).any())
    assert any("no stiff method to take over: too large" in words for words in problem.structure.notes())


def test_every_problem_keeps_its_own_record() -> None:
    page = Oral().as_ode(nl.Solver(route="compiled"))
    one, two = (nl.Problem(page, histories(varying=False)) for _ in range(2))
    eta = torch.zeros(4, 3, dtype=torch.float64)
    eta[1, 2] = 12.0
    before = two.structure.notes()
    one.with_weights(one.weights).select(torch.tensor([1])).predict(eta[1:2], one.values(one.start))
    assert any("took over" in words for words in one.structure.notes())
    assert two.structure.notes() == before
    assert page.structure.notes() == []
    assert two.structure.kernels is one.structure.kernels


def test_rows_do_not_depend_on_each_other() -> None:
    data = histories(varying=False)
    problem = nl.Problem(Oral().as_ode(nl.Solver(route="compiled")), data)
    values, eta = problem.values(problem.start), draws(problem, 3)
    whole = problem.predict(eta, values, order=1)
    index = torch.tensor([3, 1])
    part = problem.select(index).predict(eta[:, index], values, order=1)
    assert torch.equal(part.f, whole.f[:, index])
    assert part.jac is not None
    assert whole.jac is not None
    assert torch.equal(part.jac, whole.jac[:, :, index])


def test_modes_and_their_gradient_share_the_last_solve() -> None:
    """A second-order solve answers again for the same rows alone."""
    problem = nl.Problem(Oral().as_ode(nl.Solver(route="compiled")), histories(varying=False))
    values, eta = problem.values(problem.start), draws(problem, 1)
    first = problem.predict(eta, values, order=2)
    kept = problem.structure.kernels.last
    assert kept is not None
    again = problem.predict(eta, values, order=2)
    assert problem.structure.kernels.last is kept
    assert torch.equal(first.f, again.f)
    other = problem.predict(eta + 1e-9, values, order=2)
    assert problem.structure.kernels.last is not kept
    assert not np.array_equal(first.f.numpy(), other.f.numpy())


class Learned(Oral):
    """Elimination by a network, absorption as fast as wanted."""

    net = nl.Neural(inputs=1, hidden=(3,), scale=(5.0,), seed=2)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        absorbed = p.ka * a.depot
        return dict(depot=-absorbed, central=absorbed - p.cl * c * exp(self.net(c)))


@pytest.mark.parametrize("order", [0, 1])
def test_weights_have_gradients_under_both_methods_at_once(order: int) -> None:
    """One subject takes the stiff method; differences of the whole against the gradient, weight by weight."""
    data = histories(varying=False)
    problem = nl.Problem(Learned().with_solver(nl.Solver(route="compiled", max_steps=3000, rtol=1e-9)), data)
    values = problem.values(problem.start)
    eta = torch.zeros(4, 3, dtype=torch.float64)
    eta[1, 2] = 11.0

    def total(weights: torch.Tensor) -> torch.Tensor:
        prediction = problem.with_weights(weights).predict(eta, values, order)
        value = torch.sin(prediction.f).sum()
        return value if prediction.jac is None else value + (prediction.jac**2).sum()

    weights = problem.weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(weights), weights)
    assert problem.structure.record.stiff > 0
    for k in range(0, len(weights), 3):
        step = 1e-4 * torch.eye(len(weights), dtype=torch.float64)[k]
        far = float(total(problem.weights + 2 * step) - total(problem.weights - 2 * step))
        near = float(total(problem.weights + step) - total(problem.weights - step))
        difference = (8 * near - far) / 12e-4
        assert float(gradient[k]) == pytest.approx(difference, rel=1e-4, abs=1e-6)


def test_a_second_order_prediction_has_a_gradient() -> None:
    data = histories(varying=False)
    gradients = []
    for page in (Oral(), Oral().as_ode(nl.Solver(route="compiled"))):
        problem = nl.Problem(page, data)
        free = problem.start.clone().requires_grad_()
        prediction = problem.predict(draws(problem), problem.values(free), 2)
        assert prediction.hess is not None
        gradients.append(torch.autograd.grad((prediction.hess * torch.sin(prediction.f)).sum(), free)[0])
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-5 * float(gradients[0].abs().max())
