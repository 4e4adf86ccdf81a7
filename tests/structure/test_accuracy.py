"""Values and three derivatives against fifty digits: busy regimens, meeting rates, extreme rates, short infusions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from structure.exact import along
from structure.systems import (
    STRUCTURES,
    VALUES,
    Dose,
    Regimen,
    busy,
    derivatives_along,
    relative_error,
    schedule,
)

from nlmegen.structure.closed import Closed, OneCompartment, ThreeCompartment, TwoCompartment

ORAL, TWO_ORAL = OneCompartment("first-order"), TwoCompartment("first-order")
DIRECTION = (0.7, -0.4, 1.1, 0.3, -0.8, 0.5, -1.2)
TIMES = (0.0, 0.1, 5.0, 40.0)


def check(
    structure: Closed,
    values: Mapping[str, float],
    regimen: Regimen,
    tolerances: tuple[float, float, float, float],
) -> None:
    events, direction = regimen.events(), DIRECTION[: len(structure.parameters)]
    expected = along(structure, [values] * len(events), events, regimen.times, direction)
    got = derivatives_along(structure, values, schedule(structure, regimen), direction)
    for order, (x, y, tolerance) in enumerate(zip(got, expected, tolerances, strict=True)):
        assert relative_error(x, y) <= tolerance, f"derivative {order}: {relative_error(x, y):.1e}"


def one_dose(structure: Closed, amount: float = 100.0) -> Regimen:
    return Regimen([Dose(0.0, amount, structure.compartments[0])], TIMES)


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_a_busy_regimen(structure: Closed) -> None:
    check(structure, VALUES, busy(structure), (1e-13, 1e-12, 1e-11, 1e-10))


@pytest.mark.parametrize(
    "separation", [0.0, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 0.02, 0.049, 0.051, 0.2, -1e-6, -0.2]
)
def test_absorption_as_fast_as_elimination(separation: float) -> None:
    # the worst is just outside the range of the series: 20 to the power of (order + 1) times the rounding error
    values = VALUES | dict(ka=VALUES["cl"] / VALUES["v"] * (1 + separation))
    check(ORAL, values, one_dose(ORAL), (1e-14, 1e-12, 1e-11, 1e-9))


def modes(values: Mapping[str, float]) -> tuple[float, float]:
    """Rates of two compartments by the textbook formula."""
    k10, k12, k21 = (values["cl"] / values["v"], values["q"] / values["v"], values["q"] / values["v2"])
    total = k10 + k12 + k21
    root = (total**2 - 4 * k10 * k21) ** 0.5
    return (total + root) / 2, (total - root) / 2


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("separation", [0.0, 1e-12, 1e-6, 1e-3, 0.051])
def test_absorption_as_fast_as_a_mode_of_two_compartments(mode: int, separation: float) -> None:
    values = VALUES | dict(ka=modes(VALUES)[mode] * (1 + separation))
    check(TWO_ORAL, values, one_dose(TWO_ORAL), (1e-14, 1e-12, 1e-11, 1e-9))


@pytest.mark.parametrize("q", [1e-12, 1e-6, 1e-3, 0.1, 1.0, 1e3])
def test_a_vanishing_or_immense_flow(q: float) -> None:
    check(TWO_ORAL, VALUES | dict(q=q), one_dose(TWO_ORAL), (1e-14, 1e-13, 1e-12, 1e-10))


@pytest.mark.parametrize("q", [1e-12, 1e-9, 1e-6, 1e-3, 1e-2, 0.1, 1.0])
def test_meeting_modes_of_two_compartments(q: float) -> None:
    """q to 0 with q/v2 = cl/v: the two rates differ by 2 sqrt(q/v cl/v), 1e-6 of them at q = 1e-12."""
    values = VALUES | dict(q=q, v2=q * VALUES["v"] / VALUES["cl"])
    regimen = Regimen([Dose(0.0, 100.0, "depot"), Dose(3.0, 50.0, "central", rate=25.0)], TIMES)
    check(TWO_ORAL, values, regimen, (1e-13, 1e-13, 1e-11, 1e-8))


@pytest.mark.parametrize("structure", [ThreeCompartment(), ThreeCompartment("first-order")], ids=repr)
@pytest.mark.parametrize(
    "changed",
    [
        dict(q3=5.0, v3=50.0),  # twins: the middle rate is theirs
        dict(q3=5.0, v3=50.0 * (1 + 1e-12)),
        dict(q3=5.0, v3=50.0 * (1 + 1e-6)),
        dict(q3=5.0, v3=50.0 * (1 + 1e-3)),
        dict(q3=1e-12),
        dict(q3=1e-6, v3=1e-6 / modes(VALUES)[0]),  # a third mode that meets the first
        dict(q3=1e-3, v3=1e-3 / modes(VALUES)[1]),
        dict(q3=1e3),
        dict(v3=1e6),
    ],
    ids=str,
)
def test_three_compartments_at_the_edges(structure: Closed, changed: Mapping[str, float]) -> None:
    check(structure, VALUES | changed, one_dose(structure), (1e-13, 1e-12, 1e-11, 1e-9))


@pytest.mark.parametrize("ka", [1e-9, 1e-4, 1e4, 1e9])
def test_very_slow_and_very_fast_absorption(ka: float) -> None:
    check(ORAL, VALUES | dict(ka=ka), one_dose(ORAL), (1e-14, 1e-14, 1e-14, 1e-14))


@pytest.mark.parametrize("cl", [1e-9, 1e-3, 1e4])
def test_very_slow_and_very_fast_elimination(cl: float) -> None:
    check(TWO_ORAL, VALUES | dict(cl=cl), one_dose(TWO_ORAL), (1e-13, 1e-13, 1e-12, 1e-11))


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
@pytest.mark.parametrize("duration", [1e-6, 1e-2, 2.0])
def test_an_infusion_short_against_every_rate(structure: Closed, duration: float) -> None:
    """The integrals over the infusion are differences of nearly equal numbers if written carelessly."""
    doses = [Dose(0.0, 100.0, c, rate=100.0 / duration) for c in structure.compartments]
    times = (0.5 * duration, duration, 2 * duration, 2 * duration + 3.0)
    check(structure, VALUES, Regimen(doses, times), (1e-13, 1e-12, 1e-12, 1e-11))


@pytest.mark.parametrize("t", [1e-8, 1e-4])
def test_what_has_just_come_through_keeps_its_digits(t: float) -> None:
    """Soon after an oral dose the central amount is dose * ka * t, though both exponentials are nearly 1."""
    regimen = Regimen([Dose(0.0, 100.0, "depot")], (t,))
    got = derivatives_along(ORAL, VALUES, schedule(ORAL, regimen), (0.0, 0.0, 1.0))[0][1]
    expected = along(ORAL, [VALUES], regimen.events(), regimen.times, (0.0, 0.0, 1.0))[0][1]
    torch.testing.assert_close(got, expected, rtol=1e-15 / t, atol=0.0)
