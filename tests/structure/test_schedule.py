"""Schedules: labels of compartments, running rates, resets, boundaries, selection."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from structure.systems import STRUCTURES, Dose, Regimen, busy, constant, population, schedule, solved

from nlmegen.data.population import Population
from nlmegen.errors import DataError
from nlmegen.structure.closed import Closed, OneCompartment, TwoCompartment
from nlmegen.structure.schedule import Schedule

NAMES = ("depot", "central", "peripheral")


def with_label(label: object) -> Schedule:
    table = pd.DataFrame(
        {"id": [1, 1], "time": [0.0, 1.0], "amt": [100.0, 0.0], "dv": [0.0, 1.0], "cmt": [label, 0]}
    )
    return Schedule.build(Population.from_table(table, warn=False), NAMES)


@pytest.mark.parametrize(
    ("label", "place"), [(0, 0), (1, 0), (2, 1), (3, 2), ("depot", 0), ("central", 1), ("peripheral", 2)]
)
def test_a_label_is_a_position_a_name_or_zero(label: object, place: int) -> None:
    bolus = with_label(label).bolus
    assert [b is not None for b in bolus] == [k == place for k in range(3)]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (4, ["got CMT 4", "1 = depot, 2 = central, 3 = peripheral"]),
        ("centrl", ["'centrl'", "Did you mean 'central'?", "depot, central, peripheral"]),
    ],
)
def test_an_unknown_label_is_named_with_the_legal_ones(label: object, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        with_label(label)
    assert caught.value.column == "cmt"
    for word in words:
        assert word in str(caught.value)


def test_running_rates_overlap_stop_and_end_with_a_reset() -> None:
    doses = [Dose(0.0, 1.0, "central", 0.1), Dose(2.0, 1.6, "central", 0.2), Dose(12.0, 8.0, "central", 2.0)]
    plan = schedule(OneCompartment(), Regimen(doses, (20.0,), resets=(13.0,)))
    rate = plan.rate[0]
    assert rate is not None
    at = {float(t): float(r) for t, r in zip(plan.start[0], rate[0], strict=True)}
    # the first ends before the second: 0.1 + 0.2 - 0.1 - 0.2 is not 0 in floating point
    assert sorted(at) == [0.0, 2.0, 10.0, 12.0, 13.0]
    assert at == pytest.approx({0.0: 0.1, 2.0: 0.3, 10.0: 0.0, 12.0: 2.0, 13.0: 0.0})
    assert at[10.0] == 0.0, "a rounding error must not run on"
    assert plan.keep.sum() == plan.keep.numel() - 1
    assert plan.resets


def test_one_dose_at_the_first_record_is_one_segment() -> None:
    plan = schedule(OneCompartment(), Regimen([Dose(0.0, 1.0, "central")], (0.0, 1.0, 4.0)))
    assert plan.single
    assert plan.elapsed.tolist() == [[0.0, 1.0, 4.0]]
    assert not schedule(OneCompartment(), Regimen([Dose(1.0, 1.0, "central")], (0.0, 4.0))).single


def test_time_may_go_back_at_a_reset() -> None:
    """However far: the segment that the reset ends has no length, and nothing grows in it."""
    table = pd.DataFrame(
        {
            "id": 1,
            "time": [0.0, 9e5, 9e5, 0.0, 8.0],
            "amt": [100.0, 0.0, 100.0, 100.0, 0.0],
            "evid": [1, 0, 1, 4, 0],
            "dv": [0.0, 1.0, 0.0, 0.0, 1.0],
        }
    )
    plan = Schedule.build(Population.from_table(table, warn=False), ("central",))
    x = solved(OneCompartment(), constant(OneCompartment()), plan)[0, 0]
    assert x[0] == 0.0
    torch.testing.assert_close(x[1].item(), 100 * math.exp(-0.8), rtol=1e-14, atol=0.0)


def changing(structure: Closed) -> Population:
    """A busy subject and a simple one, with a column that changes on every record and no one uses."""
    whole = population(busy(structure), Regimen([Dose(1.0, 5.0, structure.compartments[0])], (0.0, 2.0, 3.0)))
    table = whole.to_table()
    table["temperature"] = range(len(table))
    return Population.from_table(table, warn=False)


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_boundaries_that_change_nothing_are_left_out(structure: Closed) -> None:
    plan = Schedule.build(changing(structure), structure.compartments)
    short = plan.essential
    assert short.start.shape[-1] < plan.start.shape[-1]
    assert short.essential is short

    asked = []

    class Unabridged(Schedule):
        essential = property(lambda self: asked.append(self) or self)  # type: ignore[assignment]

    unabridged = Unabridged(**{k: getattr(plan, k) for k in Schedule.__dataclass_fields__})
    p = constant(structure, n=2)
    whole = solved(structure, p, unabridged)
    torch.testing.assert_close(solved(structure, p, plan), whole, rtol=1e-12, atol=1e-12)
    assert len(asked) == 1
    p.cl = p.cl.expand(plan.start.shape)
    solved(structure, p, unabridged)
    assert len(asked) == 1, "parameters that vary need every boundary"


def test_select_repeats_and_permutes() -> None:
    structure = TwoCompartment("first-order")
    plan = Schedule.build(changing(structure), structure.compartments)
    index = torch.tensor([1, 0, 1])
    got = solved(structure, constant(structure, n=3), plan.select(index))
    whole = solved(structure, constant(structure, n=2), plan)
    torch.testing.assert_close(got, whole[:, index], rtol=1e-14, atol=0.0)
