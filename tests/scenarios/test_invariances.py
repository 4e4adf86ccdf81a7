"""What must be the same whatever the numbers: alone or in company, shifted, tripled, split, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scenarios.models import MODELS, Kinetics
from scenarios.table import SCENARIOS, dose, infusion, record, see, steady
from scenarios.test_scenarios import LINEAR, QUICK, available, cases, served
from scenarios.trials import Trial, trial, worst

import nlmegen as nl
from nlmegen.model.problem import Problem

FEW = (
    "overlapping infusions",
    "additional doses across resets",
    "steady state of two regimens",
    "late additional doses",
)


@pytest.mark.parametrize("variant", ["plain", "modelled"])
@pytest.mark.parametrize(
    ("model", "route"),
    [*cases(*QUICK, models=("two oral",)), *cases("compiled explicit", models=("turnover",))],
)
def test_a_subject_alone_is_its_row_of_the_batch(model: str, route: str, variant: str) -> None:
    available(route)
    whole = trial(model, variant)
    problem = whole.problem(route)
    got = problem.predict(torch.from_numpy(whole.eta), problem.model.values, order=1)
    assert got.jac is not None
    for name in FEW:
        n = whole.names.index(name)
        one = Trial(model, variant, (name,)).predict(route, 1)
        picked = problem.select(torch.tensor([n])).predict(
            torch.from_numpy(whole.eta[[n]]), problem.model.values, order=1
        )
        assert one.jac is not None
        width, peak = one.f.shape[-1], float(one.f.abs().max())
        for f, jac in ((one.f[0], one.jac[:, 0]), (picked.f[0, :width], picked.jac[:, 0, :width])):
            assert float((f - got.f[n, :width]).abs().max()) <= 1e-12 * peak, name
            assert float((jac - got.jac[:, n, :width]).abs().max()) <= 1e-11 * peak, name


@pytest.mark.parametrize(("model", "route"), cases("closed", "compiled explicit", models=("two oral",)))
def test_draws_are_as_if_alone(model: str, route: str) -> None:
    available(route)
    whole = trial(model, "modelled")
    problem = whole.problem(route)
    eta = torch.from_numpy(whole.eta)
    draws = problem.predict(torch.stack((eta, -eta)), problem.model.values).f
    for k, sign in enumerate((1.0, -1.0)):
        alone = problem.predict(sign * eta, problem.model.values).f
        assert float((draws[k] - alone).abs().max()) <= 1e-12 * float(alone.abs().max())


@pytest.mark.parametrize("shift", [-1000.0, 17.25])
@pytest.mark.parametrize(("model", "route"), cases(*QUICK, models=("one oral",)))
def test_all_times_shifted(model: str, route: str, shift: float) -> None:
    available(route)
    names = trial(model, "modelled").names
    here = Trial(model, "modelled", names).predict(route, 1)
    there = Trial(model, "modelled", names, shift=shift).predict(route, 1)
    assert float((here.f - there.f).abs().max()) <= 1e-9 * float(here.f.abs().max())


@pytest.mark.parametrize("model", LINEAR, ids=str)
@pytest.mark.parametrize("route", ["closed", "expm", "compiled explicit"])
def test_doses_are_linear(model: Kinetics, route: str) -> None:
    if not served(model, route):
        route = "expm"
    available(route)
    which = trial(model.name, "modelled")
    table = which.table.assign(
        amt=3.0 * which.table.amt, rate=which.table.rate.where(which.table.rate < 0, 3.0 * which.table.rate)
    )
    # a rate that the page models does not grow with the dose
    keep = [
        n for n, name in enumerate(which.names) if not (which.table[which.table.id == n + 1].rate == -1).any()
    ]
    tripled = Problem(which.page(route), nl.Population.from_table(table, warn=False))
    f = tripled.predict(torch.from_numpy(which.eta), tripled.model.values).f[keep]
    once = which.predict(route, 0).f[keep]
    assert float((f - 3.0 * once).abs().max()) <= 3e-8 * float(f.abs().max())


@pytest.mark.parametrize(
    ("model", "route"),
    [
        *cases("closed", models=("three oral",)),
        *cases("compiled explicit", models=("Michaelis-Menten", "turnover")),
    ],
)
@pytest.mark.parametrize(
    "given",
    [dict(), dict(rate=100 / 3), dict(rate=100 / 30), dict(rate=-2.0)],
    ids=["boluses", "short infusions", "long infusions", "modelled durations"],
)
def test_a_steady_state_is_two_hundred_doses(model: str, route: str, given: dict[str, float]) -> None:
    available(route)

    class Other(Trial):
        def records(self, name: str) -> list[dict[str, Any]]:
            before = [] if name == "bolus" else [dose(-12.0 * 200, addl=200, ii=12, **given)]
            first = steady(0, **given) if name == "bolus" else record(0, 2)
            return [r | dict(cmt=1, cov_wt=70.0) for r in (*before, first, *see(0.4, 1.9, 6, 11, 20, 37))]

    which = Other(model, "modelled", ("bolus", "boluses"))
    patient = which.page(route)
    if route != "closed":
        patient = patient.with_solver(nl.Solver(route="compiled", rtol=1e-9, max_steps=100_000))
    problem = Problem(patient, which.population)
    f = problem.predict(torch.zeros(2, which.eta.shape[1], dtype=torch.float64), problem.model.values).f
    count = 6 * which.endpoints
    peak = float(f.abs().max())
    assert float((f[0, :count] - f[1, :count]).abs().max()) <= (1e-10 if route == "closed" else 1e-7) * peak


@pytest.mark.parametrize(
    ("model", "route"),
    [
        *cases("closed", "expm", models=("two oral",)),
        *cases("compiled explicit", models=("Michaelis-Menten oral",)),
    ],
)
def test_an_infusion_is_two_infusions_of_half_the_rate(model: str, route: str) -> None:
    available(route)

    class Other(Trial):
        def records(self, name: str) -> list[dict[str, Any]]:
            whole = [infusion(0, 90, 5, addl=2, ii=7)]
            halves = [infusion(0, 45, 5, addl=2, ii=7), infusion(0, 45, 5, addl=2, ii=7)]
            given = whole if name == "bolus" else halves
            return [r | dict(cmt=1, cov_wt=70.0) for r in (*given, *see(1, 4.2, 6.6, 9, 14.2, 22))]

    which = Other(model, "modelled", ("bolus", "boluses"))
    problem = Problem(which.page(route), which.population)
    f = problem.predict(torch.zeros(2, which.eta.shape[1], dtype=torch.float64), problem.model.values).f
    assert float((f[0] - f[1]).abs().max()) <= 1e-8 * float(f.abs().max())


def test_two_infusions_one_after_the_other_are_one() -> None:
    class Other(Trial):
        def records(self, name: str) -> list[dict[str, Any]]:
            given = [infusion(0, 90, 6)] if name == "bolus" else [infusion(0, 30, 2), infusion(2, 60, 4)]
            return [r | dict(cmt=1, cov_wt=70.0) for r in (*given, record(2.5, 2), *see(3, 4.2, 6.6, 9))]

    which = Other("two oral", "plain", ("bolus", "boluses"))
    problem = which.problem("closed")
    f = problem.predict(torch.zeros(2, which.eta.shape[1], dtype=torch.float64), problem.model.values).f
    assert float((f[0] - f[1]).abs().max()) <= 1e-12 * float(f.abs().max())


@pytest.mark.parametrize("model", [m.name for m in MODELS.values() if m.closed is not None])
def test_the_compiled_closed_form_serves_what_is_plain(model: str) -> None:
    """Machine code for boluses, infusions and resets; anything else keeps to Taylor arithmetic, to the same answers."""
    available("compiled")
    plain = Trial(model, "plain", tuple(n for n in trial(model, "plain").names if SCENARIOS[n].plain))
    for which, compiled in ((plain, True), (trial(model, "plain"), False), (trial(model, "modelled"), False)):
        problem = which.problem("closed").hasten()
        assert (problem.route.programs is not None) == (compiled and not model.startswith("three"))
        got = problem.predict(torch.from_numpy(which.eta), problem.model.values, order=2)
        assert not (found := worst(which.errors(got))), f"\n{found}"
