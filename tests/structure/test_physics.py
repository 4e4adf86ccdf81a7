"""What every closed form must do as a system of compartments: an ODE, superposition, mass, limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import solve_ivp
from structure.exact import flow_matrix
from structure.systems import (
    GRID,
    STRUCTURES,
    VALUES,
    Dose,
    Regimen,
    busy,
    constant,
    schedule,
    solved,
)

from nlmegen.data.population import Population
from nlmegen.structure.closed import Closed, OneCompartment, ThreeCompartment, TwoCompartment
from nlmegen.structure.schedule import Schedule

family = pytest.mark.parametrize("structure", STRUCTURES, ids=repr)


@family
def test_equals_an_ode_solved_by_hand(structure: Closed) -> None:
    regimen = busy(structure)
    a = np.array(flow_matrix(structure, VALUES).tolist(), dtype=float)
    names = structure.compartments
    x, rate, now = np.zeros(len(a)), np.zeros(len(a)), 0.0
    found, events = [], regimen.events()

    def run(x: Any, start: float, end: float) -> Any:
        if end == start:
            return x
        return solve_ivp(
            lambda t, y: a @ y + rate, (start, end), x, method="DOP853", rtol=1e-12, atol=1e-12
        ).y[:, -1]

    for t in regimen.times:
        while events and events[0][0] <= t:
            when, what, size, where = events.pop(0)
            x, now = run(x, now, when).copy(), when
            if what == "bolus":
                x[names.index(where)] += size
            elif what == "rate":
                rate[names.index(where)] += size
            else:
                x, rate = np.zeros(len(a)), np.zeros(len(a))
        found.append(run(x, now, t))
    got = solved(structure, constant(structure), schedule(structure, regimen))[:, 0]
    torch.testing.assert_close(got, torch.tensor(np.array(found).T), rtol=1e-9, atol=1e-9)


@family
def test_doses_superpose_and_scale(structure: Closed) -> None:
    doses = [d for d in busy(structure).doses if d.time < 10]
    p = constant(structure)
    whole = solved(structure, p, schedule(structure, Regimen(doses, GRID)))
    # each alone: the first event keeps the clock of the whole
    parts = [solved(structure, p, schedule(structure, Regimen([d], GRID))) for d in doses]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=1e-11, atol=1e-11)
    double = [Dose(d.time, 2 * d.amount, d.to, 2 * d.rate) for d in doses]
    torch.testing.assert_close(
        solved(structure, p, schedule(structure, Regimen(double, GRID))), 2 * whole, rtol=1e-12, atol=0.0
    )


@family
def test_mass_is_conserved(structure: Closed) -> None:
    """What was given is what is there and what has left, cl/v times the area under the central amount."""
    doses = [Dose(0.0, 100.0, structure.compartments[0]), Dose(1.0, 50.0, "central", rate=10.0)]
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = (0.0, 1.0, 6.0, 20.0)
    times = np.concatenate([a + (b - a) * (nodes + 1) / 2 for a, b in zip(edges, edges[1:], strict=False)])
    area = np.concatenate([(b - a) / 2 * weights for a, b in zip(edges, edges[1:], strict=False)])
    plan = schedule(structure, Regimen(doses, (*times, 20.0)))
    x = solved(structure, constant(structure), plan)[:, 0]
    central = x[structure.compartments.index("central")]
    left = VALUES["cl"] / VALUES["v"] * (central[:-1] * torch.tensor(area)).sum()
    torch.testing.assert_close((x[:, -1].sum() + left).item(), 150.0, rtol=1e-12, atol=0.0)


@family
def test_an_infusion_in_two_halves_is_the_infusion(structure: Closed) -> None:
    for where in structure.compartments:
        times = (0.0, 1.0, 2.0, 3.5, 8.0)
        whole = schedule(structure, Regimen([Dose(0.0, 60.0, where, rate=20.0)], times))
        halves = [Dose(0.0, 30.0, where, rate=20.0), Dose(1.5, 30.0, where, rate=20.0)]
        p = constant(structure)
        torch.testing.assert_close(
            solved(structure, p, schedule(structure, Regimen(halves, times))),
            solved(structure, p, whole),
            rtol=1e-12,
            atol=1e-12,
        )


@family
def test_a_long_infusion_reaches_its_steady_state(structure: Closed) -> None:
    plan = schedule(structure, Regimen([Dose(0.0, 4e5, structure.compartments[0], rate=10.0)], (2e4,)))
    amount = dict(
        zip(structure.compartments, solved(structure, constant(structure), plan)[:, 0, 0], strict=True)
    )
    concentration = 10.0 / VALUES["cl"]
    expected = dict(
        depot=10.0 / VALUES["ka"],
        central=concentration * VALUES["v"],
        peripheral=concentration * VALUES["v2"],
        peripheral2=concentration * VALUES["v3"],
    )
    for name, x in amount.items():
        torch.testing.assert_close(x.item(), expected[name], rtol=1e-12, atol=0.0)


@family
def test_a_short_infusion_is_a_bolus(structure: Closed) -> None:
    for where in structure.compartments:
        times = (1.0, 5.0)
        short = schedule(structure, Regimen([Dose(0.0, 100.0, where, rate=1e10)], times))
        bolus = schedule(structure, Regimen([Dose(0.0, 100.0, where)], times))
        p = constant(structure)
        torch.testing.assert_close(
            solved(structure, p, short), solved(structure, p, bolus), rtol=1e-7, atol=0.0
        )


def test_a_compartment_that_does_nothing() -> None:
    """With q so small that nothing is exchanged, more compartments are one."""
    plan = schedule(OneCompartment(), Regimen([Dose(0.0, 100.0, "central")], GRID))
    one = solved(OneCompartment(), constant(OneCompartment()), plan)[0]
    for larger in (TwoCompartment(), ThreeCompartment()):
        p = constant(larger, VALUES | dict(q=1e-15, q3=1e-15))
        wide = schedule(larger, Regimen([Dose(0.0, 100.0, "central")], GRID))
        torch.testing.assert_close(solved(larger, p, wide)[0], one, rtol=1e-13, atol=0.0)


@family
def test_without_doses_there_is_nothing(structure: Closed) -> None:
    table = pd.DataFrame(
        {"id": [1, 1], "time": [0.0, 1.0], "amt": [0.0, 0.0], "dv": [1.0, 2.0], "evid": [0, 0]}
    )
    plan = Schedule.build(Population.from_table(table, warn=False), structure.compartments)
    assert solved(structure, constant(structure), plan).abs().max() == 0.0
    with_dose = schedule(structure, Regimen([Dose(5.0, 10.0, structure.compartments[0])], (0.0, 4.9, 6.0)))
    x = solved(structure, constant(structure), with_dose)[:, 0]
    assert x[:, :2].abs().max() == 0.0
    assert x[structure.compartments.index("central"), 2] > 0


@pytest.mark.parametrize("kind", [OneCompartment, TwoCompartment, ThreeCompartment])
def test_at_the_time_of_an_oral_dose_nothing_has_come_through(kind: type[Closed]) -> None:
    """Exactly 0, not a rounding error: a proportional error needs to see it."""
    structure = kind("first-order")
    x = solved(
        structure, constant(structure), schedule(structure, Regimen([Dose(0.0, 320.0, "depot")], (0.0, 1.0)))
    )
    assert x[:, 0, 0].tolist() == [320.0] + [0.0] * (len(structure.compartments) - 1)
