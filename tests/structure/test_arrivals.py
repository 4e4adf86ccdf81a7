"""Closed forms under modelled doses and steady states, against what arrives applied by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import pytest
import torch
from structure.arriving import (
    BOTH,
    STORIES,
    TIMES,
    USUAL,
    Page,
    Story,
    along,
    before,
    bolus,
    direction,
    dose,
    dosed,
    infusion,
    namespace,
    population,
    seeded,
)
from structure.systems import STRUCTURES
from torch import Tensor

from nlmegen.data.population import Population
from nlmegen.errors import DataError, ModelError
from nlmegen.maths.taylor import value_of
from nlmegen.structure.closed import Closed, OneCompartment, TwoCompartment
from nlmegen.structure.dose import Dose
from nlmegen.structure.schedule import Schedule

# with one compartment, "main" and "other" are the same and cannot have two lags
CASES = [
    (structure, name)
    for structure in STRUCTURES
    for name, story in STORIES.items()
    if len(structure.compartments) > 1 or not any(r.get("cmt") == "other" for r in story.records)
]
WITH_DEPOT = STRUCTURES[3]


def check(
    page: Closed,
    data: Population,
    by_hand: list[Tensor],
    d: dict[str, float],
    values: Mapping[str, float] = USUAL,
    least: float = 1e-11,
) -> None:
    """Amounts and three derivatives along a direction, the third by reverse mode through the second."""
    along_d = torch.tensor(list(d.values()), dtype=torch.float64)
    eta = torch.zeros(1, len(d), dtype=torch.float64, requires_grad=True)
    weights = torch.linspace(0.3, 1.7, by_hand[0].shape[-1], dtype=torch.float64)
    solution = page.solve(seeded(page, data, eta, 2, values), Schedule.build(data, page.compartments))
    peak = by_hand[0].max()
    for c, compartment in enumerate(page.compartments):
        value, jac, hess = solution[compartment].full()
        second = torch.einsum("ijnt,i,j->nt", hess, along_d, along_d)
        (gradient,) = torch.autograd.grad((second * weights).sum(), eta, retain_graph=True)
        found = [value[0], torch.einsum("int,i->nt", jac, along_d)[0], second[0]]
        for k, (x, y) in enumerate(zip(found, by_hand, strict=False)):
            scale = max(peak, y[c].abs().max())
            assert float((x.detach() - y[c]).abs().max() / scale) < least * 10**k, (compartment, k)
        third = (by_hand[3][c] * weights).sum()
        size = max(peak, (by_hand[3][c] * weights).abs().sum())
        assert float((gradient[0] @ along_d - third).abs() / size) < 1e4 * least, compartment


@pytest.mark.parametrize(("structure", "name"), CASES, ids=str)
def test_amounts_and_three_derivatives_are_those_by_hand(structure: Closed, name: str) -> None:
    story = STORIES[name]
    page, data = dosed(structure, story), population(structure, story)
    d = direction(page)
    check(page, data, along(page, story, d), d)


HARD = {
    # the peripheral compartment keeps the rate of the central one as the flow between them vanishes
    "modes that meet": (STRUCTURES[3], USUAL | dict(q=1e-9, v2=2e-9)),
    "absorption at the rate of elimination": (STRUCTURES[1], USUAL | dict(ka=0.5)),
    "absorption near a mode": (STRUCTURES[3], USUAL | dict(ka=0.2377)),
}


@pytest.mark.parametrize("name", ["modelled rate and duration", "steady infusions shorter than the interval"])
@pytest.mark.parametrize("hard", HARD)
def test_rates_that_meet(hard: str, name: str) -> None:
    structure, values = HARD[hard]
    story = STORIES[name]
    page, data = dosed(structure, story), population(structure, story)
    d = direction(page)
    check(page, data, along(page, story, d, values), d, values, least=1e-10)


def test_modes_that_meet_while_parameters_change() -> None:
    structure, values = HARD["modes that meet"]
    story = STORIES["parameters change in time"]
    page, data = dosed(structure, story), population(structure, story)
    d = direction(page)
    check(page, data, along(page, story, d, values), d, values, least=1e-10)


OFF = Story(
    [
        *(dose(0, 100), dose(0, 30, "other"), dose(1, 60, rate=10.0), dose(2, 80, rate=10.0)),
        dict(time=5, evid=2, cmt="off"),
        dose(10, 50),
    ],
    lambda p: [
        (
            0.0,
            [
                *bolus(p["lag"], 100 * p["f"]),
                *((1 + p["lag"], "rate", 10, "main"), (2 + p["lag"], "rate", 10, "main")),
                *bolus(p["lag2"], 30 * p["f2"], "other"),
                (5, "empty", 0, "main"),
                *bolus(10 + p["lag"], 50 * p["f"]),
            ],
        )
    ],
    BOTH,
)


@pytest.mark.parametrize("structure", [s for s in STRUCTURES if s.absorption], ids=str)
def test_a_depot_is_switched_off_and_on_again_by_a_dose(structure: Closed) -> None:
    page, data = dosed(structure, OFF), population(structure, OFF)
    d = direction(page)
    check(page, data, along(page, OFF, d), d)


def test_a_single_compartment_is_switched_off() -> None:
    table = pd.DataFrame(
        dict(id=1, time=[0.0, 2.0, 3.0, 4.0], evid=[1, 0, 2, 0], amt=[10.0, 0, 0, 0], dv=1.0)
    )
    table["cmt"] = [1, 0, -1, 0]
    structure = OneCompartment()
    plan = Schedule.build(Population.from_table(table, warn=False), structure.compartments)
    p = seeded(structure, population(structure, OFF), torch.zeros(1, 2, dtype=torch.float64), 0)
    assert float(structure.solve(p, plan)["central"][0, 0]) == pytest.approx(10 * 2.718281828459045**-1)
    assert float(structure.solve(p, plan)["central"][0, 1]) == 0.0


@pytest.mark.parametrize(
    ("structure", "number"),
    [(OneCompartment("first-order"), 2), (TwoCompartment(), 1), (TwoCompartment(), 2)],
)
def test_a_compartment_that_others_flow_into_stays_on(structure: Closed, number: int) -> None:
    table = pd.DataFrame(dict(id=1, time=[0.0, 2.0, 3.0], evid=[1, 2, 0], amt=[10.0, 0, 0], dv=1.0))
    table["cmt"] = [1, -number, 0]
    plan = Schedule.build(Population.from_table(table, warn=False), structure.compartments)
    eta = torch.zeros(1, len(structure.parameters), dtype=torch.float64)
    with pytest.raises(DataError, match=f"switches {structure.compartments[number - 1]} off.*dynamics"):
        structure.solve(seeded(structure, population(structure, OFF), eta, 0), plan)


def test_a_page_without_dosing_knows_steady_states() -> None:
    """Doses straight from the records, no derivative in any time."""
    structure = STRUCTURES[3]
    story = Story(
        [
            dose(1, 100, ss=1, ii=8),
            dose(3, 60, "other", ss=2, ii=12, rate=20.0),
            dict(dose(9, 0, "other", rate=4.0), ss=1),
        ],
        lambda p: [
            (1.0, before(1, 8, lambda t: bolus(t, 100)) + bolus(1, 100)),
            (
                3.0,
                before(1, 8, lambda t: bolus(t, 100))
                + bolus(1, 100)
                + before(3, 12, lambda t: infusion(t, 20, 3, "other"))
                + infusion(3, 20, 3, "other"),
            ),
            (9.0, [(-200, "rate", 4, "other"), (9, "rate", -4, "other")]),
        ],
        {},
    )
    data = population(structure, story)
    d = direction(structure)
    check(structure, data, along(structure, story, d), d)


def crowd() -> tuple[Closed, Population]:
    """Subjects with all stories that one page serves."""
    stories = [story for story in STORIES.values() if story.says is BOTH]
    return dosed(WITH_DEPOT, stories[0]), population(WITH_DEPOT, *stories)


def test_draws_and_subjects_are_solved_apart() -> None:
    page, data = crowd()
    plan = Schedule.build(data, page.compartments)
    n = plan.n_subjects
    generator = torch.Generator().manual_seed(2)
    eta = 0.1 * torch.randn(3, n, len(page.parameters), generator=generator, dtype=torch.float64)
    whole = page.solve(seeded(page, data, eta, 2), plan)["central"].full()
    for k in range(n):
        alone = torch.tensor([k])
        one = data.select(alone)
        found = page.solve(seeded(page, one, eta[1:2, alone], 2), plan.select(alone))["central"].full()
        for x, y in zip(found, whole, strict=True):
            torch.testing.assert_close(x[..., 0, 0, :], y[..., 1, k, :], rtol=1e-11, atol=1e-11)


def test_gradients_of_amounts_are_the_jacobian() -> None:
    page, data = crowd()
    plan = Schedule.build(data, page.compartments)
    eta = torch.zeros(plan.n_subjects, len(page.parameters), dtype=torch.float64, requires_grad=True)
    jac = page.solve(seeded(page, data, eta.detach(), 1), plan)["peripheral"].full()[1]
    values = page.solve(seeded(page, data, eta, 0), plan)["peripheral"]
    for k in range(3, len(TIMES), 4):
        (gradient,) = torch.autograd.grad(values[:, k].sum(), eta, retain_graph=True)
        torch.testing.assert_close(gradient, jac[..., k].mT, rtol=1e-10, atol=1e-10)


def test_a_lag_as_long_as_the_interval_of_a_steady_state_has_no_answer() -> None:
    """Of that subject alone."""
    page, data = crowd()
    plan = Schedule.build(data, page.compartments)
    p = seeded(page, data, torch.zeros(plan.n_subjects, len(page.parameters), dtype=torch.float64), 0)
    p.lag = p.lag.clone()
    steady = int((plan.events.steady == 1).any(-1).nonzero()[0])
    p.lag[steady] = 8.0
    found = page.solve(p, plan)["central"].isnan().any(-1)
    assert found.nonzero().flatten().tolist() == [steady]


@pytest.mark.parametrize("name", ["lag", "f"])
def test_a_negative_lag_or_bioavailability_has_no_answer(name: str) -> None:
    page, data = crowd()
    p = seeded(page, data, torch.zeros(len(data.ids), len(page.parameters), dtype=torch.float64), 0)
    setattr(p, name, -getattr(p, name))
    assert page.solve(p, Schedule.build(data, page.compartments))["central"].isnan().any(-1).all()


@pytest.mark.parametrize(("rate", "word"), [(-1, "rate"), (-2, "duration")])
def test_what_the_page_must_say_of_modelled_infusions(rate: int, word: str) -> None:
    story = Story([dose(0, 10, "other", rate=rate)], lambda p: [], {"other": dict(lag="lag")})
    page, data = dosed(WITH_DEPOT, story), population(WITH_DEPOT, story)
    p = seeded(page, data, torch.zeros(1, len(page.parameters), dtype=torch.float64), 0)
    plan = Schedule.build(data, page.compartments)
    with pytest.raises(DataError, match=f"the {word} of doses into peripheral.*RATE {rate}") as caught:
        page.solve(p, plan)
    assert caught.value.column == "rate"
    assert f"nl.Dose({word}=...)" in str(caught.value)


@pytest.mark.parametrize(
    ("dosing", "words"),
    [
        (lambda p: {"dept": Dose(lag=p.lag)}, "dosing names dept.*Did you mean 'depot'"),
        (lambda p: {"depot": p.lag}, "depot must be nl.Dose"),
        (lambda p: [Dose(lag=p.lag)], "must return a dict of nl.Dose by compartment, got list"),
    ],
)
def test_a_wrong_dosing_is_named(dosing: Any, words: str) -> None:
    page = Page({})
    page.dosing = dosing  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=words):
        WITH_DEPOT.dosed_by(page, namespace)


def test_parameters_of_dosing_join_those_of_the_structure() -> None:
    page = Page({"depot": dict(lag="ka", bioavailability="f")})
    dosed_structure = WITH_DEPOT.dosed_by(page, namespace)
    assert dosed_structure.parameters == (*WITH_DEPOT.parameters, "f")
    assert WITH_DEPOT.doses is None, "the page's structure is its own"
    assert value_of(dosed_structure.doses.moved({"ka": torch.ones(1, 1), "f": 2.0})[0].bioavailability) == 2.0
