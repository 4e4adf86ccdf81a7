"""Steady states, modelled infusions and compartments switched off, on every route, against scipy by hand."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from structure.byhand import CASES, VALUES, Case, Hand, Linear, Settled, directions, errors, modelled, solved
from torch import Tensor, exp

import nlmegen as nl
from nlmegen.data.population import Population
from nlmegen.errors import DataError, ModelError
from nlmegen.maths.taylor import Taylor
from nlmegen.model.named import Named
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solver import Solver
from nlmegen.structure.stepped import Stepped

ROUTES = {
    "expm": dict(route="expm"),
    "torch explicit": dict(route="torch", method="explicit"),
    "torch stiff": dict(route="torch", method="stiff"),
    "compiled explicit": dict(route="compiled", method="explicit"),
    "compiled stiff": dict(route="compiled", method="stiff"),
}
ALLOWED = (3e-6, 1e-5, 1e-5)
"""Errors of value, first and second derivatives over what is seen of the peak of each compartment."""
QUICK = {
    "torch explicit": ("late infusions, saturable", "switched off, saturable", "without end, turnover"),
    "torch stiff": ("boluses, linear", "without end, saturable"),
}


def cases() -> list[Any]:
    found = []
    for name in CASES:
        for route in ROUTES:
            if route == "expm" and "linear" not in name:
                continue
            quick = "torch" not in route or name in QUICK[route]
            marks = [] if quick else [pytest.mark.slow]
            found.append(pytest.param(name, route, id=f"{name}-{route}", marks=marks))
    return found


def settings(route: str) -> dict[str, Any]:
    if "compiled" in route and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("the compiled route needs llvmlite")
    return ROUTES[route]


@pytest.mark.parametrize(("name", "route"), cases())
def test_amounts_and_derivatives_are_those_by_hand(name: str, route: str) -> None:
    for order in (0, 1, 2):
        found = errors(name, order, **settings(route))
        assert (found <= ALLOWED[: order + 1]).all(), (order, found)


def amounts(
    case: Case, eta: Tensor, order: int, who: Tensor | None = None, **options: Any
) -> tuple[Stepped, Tensor, Tensor]:
    """The last part that an order asks for (value, Jacobian, Hessian), compartments in front; and the status."""
    structure = case.structure(**options)
    schedule = case.schedule(structure)
    if who is not None:
        schedule, eta = schedule.select(who), eta[..., who, :]
    values = case.values(structure.parameters)
    seeds = Taylor.seed(eta, order) if order else [eta[..., k : k + 1] for k in range(len(values))]
    p = {n: v * exp(s) for n, v, s in zip(structure.parameters, values, seeds, strict=True)}
    out = structure.solve(Named("p", p), schedule)
    found = [out[name] for name in structure.compartments]
    part = [x if not isinstance(x, Taylor) else x.full()[1] if order == 1 else x.dense_hess() for x in found]
    return structure, torch.stack(part), out.status  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("name", "route"),
    [
        ("late infusions, linear", "expm"),
        ("late infusions, saturable", "compiled explicit"),
        ("boluses, turnover", "compiled stiff"),
        pytest.param("boluses, saturable", "torch explicit", marks=pytest.mark.slow),
        ("without end, turnover", "torch explicit"),
        ("switched off, saturable", "compiled explicit"),
        ("modelled infusions, saturable", "compiled explicit"),
        ("without end, saturable", "torch stiff"),
    ],
)
def test_reverse_mode_gives_the_derivatives_carried_forward(name: str, route: str, order: int) -> None:
    case, options = CASES[name], settings(route)
    eta = torch.zeros(1, len(case.structure(**options).parameters), dtype=torch.float64)
    forward = amounts(case, eta, order + 1, **options)[1]
    eta.requires_grad_()
    got = amounts(case, eta, order, **options)[1]
    weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient = torch.autograd.grad((weight * got).sum(), eta)[0][0]
    # directions stand behind the compartment; the new one first
    expected = (forward.movedim(1, 0) * weight).flatten(1).sum(1)
    assert (gradient - expected).abs().max() < 1e-5 * expected.abs().max()


def crowd(case: Case, count: int) -> Case:
    """The same records for several subjects, doses smaller from one to the next, some seen for a shorter time."""
    tables = []
    for i in range(count):
        table = case.table.assign(id=i + 1)
        table["amt"] *= 1 - 0.03 * i
        tables.append(table.iloc[: len(table) - i % 2])
    records = pd.concat(tables).to_dict("records")
    return Case(case.name, case.page, records, case.hand, case.steady)


@pytest.mark.parametrize(
    "name", ["late infusions, linear", "late infusions, turnover", "switched off, saturable"]
)
@pytest.mark.parametrize("order", [0, 2])
def test_compiled_rows_do_not_see_each_other(name: str, order: int) -> None:
    case, options = crowd(CASES[name], 4), settings("compiled explicit")
    n = len(case.structure(**options).parameters)
    eta = 0.2 * torch.randn(2, 4, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = amounts(case, eta, order, **options)[1]
    for who in ([2], [3, 0, 1, 2]):
        index = torch.tensor(who)
        alone = amounts(case, eta, order, index, **options)[1]
        assert torch.equal(alone, together[..., index, :])


@pytest.mark.parametrize("route", ["torch explicit", "compiled explicit"])
def test_more_than_can_be_eliminated_has_no_steady_state(route: str) -> None:
    case, options = crowd(CASES["boluses, saturable"], 3), settings(route)
    eta = torch.zeros(3, len(case.structure(**options).parameters), dtype=torch.float64)
    names = list(case.structure(**options).parameters)
    eta[1, names.index("vm")] = np.log(7.0 / VALUES["vm"])  # 7 an hour go out at most, and 7.3 come in
    for order in (0, 1):
        structure, found, status = amounts(case, eta, order, **options)
        assert (status != 0).tolist() == [False, True, False]
        assert found[..., 1, :].isnan().all()
        assert found[..., [0, 2], :].isfinite().all()
    assert any("no steady state" in note and "ADDL" in note for note in structure.notes())


def test_an_infusion_that_outruns_elimination_has_none_either() -> None:
    case = CASES["without end, saturable"]
    names = case.structure(route="torch").parameters
    eta = torch.zeros(1, len(names), dtype=torch.float64)
    eta[0, names.index("vm")] = np.log(5.9 / VALUES["vm"])
    assert bool((amounts(case, eta, 0, route="torch")[2] != 0).all())


class Daily(Linear):
    """Elimination with a rhythm of 24."""

    def dynamics(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        k = p.k * (1 + 0.3 * torch.sin(2 * np.pi / 24 * (t + 0 * p.k)))
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - k * a.central)


def test_a_rhythm_is_steady_where_it_repeats_with_the_doses() -> None:
    for interval, steady in ((24.0, True), (48.0, True), (8.0, False)):
        records = [dict(time=3.0, evid=1, amt=60.0, cmt="depot", ss=1, ii=interval), dict(time=4.0)]
        case = Case("", Daily, records, lambda p: [])
        structure = case.structure(route="torch")
        p = {n: torch.full((1, 1), VALUES[n], dtype=torch.float64) for n in structure.parameters}
        out = structure.solve(Named("p", p), case.schedule(structure))
        assert (out.status == 0).tolist() == [steady]  # type: ignore[attr-defined]
        if steady:  # many doses instead
            doses = [dict(time=3.0 - interval * k, evid=1, amt=60.0, cmt="depot") for k in range(6, -1, -1)]
            many = Case("", Daily, [*doses, dict(time=4.0)], lambda p: [])
            expected = structure.solve(Named("p", p), many.schedule(structure))["central"]
            assert float(out["central"][0, 0]) == pytest.approx(float(expected[0, 0]), rel=1e-6)


class Switching(modelled(Linear)):  # type: ignore[misc]
    """Elimination doubles at time 5, for scipy alone."""

    def dynamics(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        k = 2 * p.k if isinstance(t, float) and t >= 5.0 else p.k
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - k * a.central)


@pytest.mark.parametrize("route", ["torch explicit", "expm", "auto"])
def test_parameters_that_vary_in_time_meet_late_doses_and_steady_states(route: str) -> None:
    dose = dict(time=0.0, evid=1, amt=60.0, rate=-2.0, cmt="central", ss=1, ii=12.0)
    records = [dose, *(dict(time=t) for t in (0.5, 2.0, 5.0, 7.0, 11.0, 20.0))]

    def by_hand(p: Any) -> list[Any]:
        rate = 60 * p.f2 / p.duration
        running = [(p.lag2, "rate", rate, "central"), (p.lag2 + p.duration, "rate", -rate, "central")]
        return [(0, "steady", 0, ""), *running, (5, "rate", 0, "central")]

    case = Case(
        "", Switching, records, by_hand, lambda p: [Settled(60 * p.f2, "central", p.duration, 12, p.lag2)]
    )
    table = case.table.assign(wt=[1.0, 1, 1, 1, 2, 2, 2])
    structure = Stepped(modelled(Linear)(), Solver(**ROUTES.get(route, {})), Named)
    population = Population.from_table(table, warn=False)
    schedule = Schedule.build(population, structure.compartments)
    hand = Hand(case)
    (u, *_) = directions(len(hand.names))
    expected = hand.along(u)
    (move,) = Taylor.seed(torch.zeros(1, 1, dtype=torch.float64), 2)
    p = {
        n: v * exp(move * x) for n, v, x in zip(hand.names, case.values(hand.names), u.tolist(), strict=True)
    }
    p["k"] = p["k"] * population.covariates["wt"].segment
    got = structure.solve(Named("p", p), schedule)["central"].full()
    peak = np.abs(expected[0]).max()
    for k, allowed in enumerate(ALLOWED):
        assert np.abs(got[k].reshape(-1).numpy() - expected[k][1]).max() < allowed * peak


def test_records_ask_for_what_the_page_must_say() -> None:
    case = CASES["modelled infusions, linear"]
    plain = Case(case.name, Linear, case.records, case.hand)
    with pytest.raises(DataError, match=r"rate of doses into depot.*RATE -1.*nl.Dose\(rate="):
        solved(plain, 0, route="torch")


def test_a_compartment_that_something_flows_into_cannot_be_switched_off() -> None:
    case = CASES["switched off, linear"]
    records = [row | (dict(cmt=-2) if row.get("evid") == 2 else {}) for row in case.records]
    with pytest.raises(DataError, match="switches central off.*something flows into central"):
        solved(Case(case.name, Linear, records, case.hand), 0, route="torch")


@pytest.mark.parametrize("word", ["duration", "rate"])
def test_a_duration_is_positive(word: str) -> None:
    with pytest.raises(ModelError, match=rf"Dose\({word}=0\)"):
        nl.Dose(**{word: 0})
    case = CASES["modelled infusions, saturable"]
    structure = case.structure(route="torch")
    values = dict(zip(structure.parameters, case.values(structure.parameters), strict=True)) | {word: -1.0}
    p = {n: torch.full((1, 1), v, dtype=torch.float64) for n, v in values.items()}
    out = structure.solve(Named("p", p), case.schedule(structure))
    assert bool((out.status != 0).all())  # type: ignore[attr-defined]


def test_a_lag_beyond_the_interval_cannot_be_solved() -> None:
    case = CASES["late infusions, saturable"]
    structure = case.structure(route="torch")
    values = dict(zip(structure.parameters, case.values(structure.parameters), strict=True)) | {"lag2": 7.5}
    p = {n: torch.full((1, 1), v, dtype=torch.float64) for n, v in values.items()}
    assert bool((structure.solve(Named("p", p), case.schedule(structure)).status != 0).all())  # type: ignore[attr-defined]


class Learned(nl.Model):
    """Elimination by a network, which moves the lag too where `late` is set."""

    tvk = nl.Theta(0.3, lower=0)
    tvka = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(k=0.1)
    net = nl.Neural(inputs=1, hidden=(3,), outputs=1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(k=theta.tvk * exp(eta.k), ka=theta.tvka)

    def dynamics(self, t, a, p):
        k = p.k * exp(0.3 * self.net(a.central / 20.0))
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - k * a.central)

    def observe(self, t, a, p):
        return dict(cp=a.central)


class LearnedLag(Learned):
    """The lag by a network."""

    def dosing(self, p):
        return dict(depot=nl.Dose(lag=0.5 * exp(0.3 * self.net(p.ka))))


@pytest.mark.parametrize(
    ("page", "name"),
    [(Learned, "boluses, linear"), (Learned, "switched off, linear"), (LearnedLag, "boluses, linear")],
)
def test_weights_have_gradients_through_events(page: type[nl.Model], name: str) -> None:
    model = page().with_solver(Solver(rtol=1e-10))
    problem = nl.Problem(model, Population.from_table(CASES[name].table, warn=False))
    eta, values = torch.zeros(1, 1, dtype=torch.float64), problem.values(problem.start)

    def total(weights: Tensor) -> Tensor:
        return problem.with_weights(weights).predict(eta, values).f.sum()

    weights = (model.weights.detach() + 0.1).requires_grad_()
    (gradient,) = torch.autograd.grad(total(weights), weights)
    step = torch.linspace(1, -1, len(weights), dtype=torch.float64)
    with torch.no_grad():
        difference = (total(weights + 1e-4 * step) - total(weights - 1e-4 * step)) / 2e-4
    assert float(gradient @ step) == pytest.approx(float(difference), rel=1e-5)


def test_the_compiled_route_alone_refuses_weights_at_steady_state() -> None:
    pytest.importorskip("llvmlite")
    model = Learned().with_solver(Solver(route="compiled"))
    problem = nl.Problem(model, Population.from_table(CASES["boluses, linear"].table, warn=False))
    weights = model.weights.detach().clone().requires_grad_()
    with pytest.raises(ModelError, match="no gradient in network weights"):
        problem.with_weights(weights).predict(
            torch.zeros(1, 1, dtype=torch.float64), problem.values(problem.start)
        )


@pytest.mark.slow
def test_a_saturable_page_has_third_derivatives_at_steady_state() -> None:
    """Reverse mode through second derivatives: no compiled form, and served all the same."""
    case = CASES["boluses, saturable"]
    n = len(case.structure().parameters)
    direction = torch.linspace(0.5, -0.5, n, dtype=torch.float64)

    def curvature(move: Tensor) -> Tensor:
        return amounts(case, (move * direction)[None], 2)[1].sum()

    move = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (third,) = torch.autograd.grad(curvature(move), move)
    with torch.no_grad():
        h = 1e-3
        difference = (curvature(torch.tensor(h)) - curvature(torch.tensor(-h))) / (2 * h)
    assert float(third) == pytest.approx(float(difference), rel=1e-4)
