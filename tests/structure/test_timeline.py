"""Timelines against lists of points written by hand."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from nlmegen.data.population import Population
from nlmegen.maths.taylor import Taylor
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.timeline import Moved, Point, Timeline

OBSERVE, BOLUS, RATE, RESET, MARK, ZERO = Point


def schedule(**columns) -> Schedule:
    table = pd.DataFrame({"id": 1} | columns)
    return Schedule.build(Population.from_table(table), ("depot", "central"))


def points(line: Timeline, row: int = 0) -> list[tuple[float, int, int, float, int]]:
    """(time, kind, compartment, amount, slot) of one row."""
    value = [x.value if isinstance(x, Taylor) else x for x in (line.time, line.amount)]
    n = int(line.count[row])
    parts = (value[0], line.kind, line.compartment, value[1], line.slot)
    return list(zip(*(x[row, :n].tolist() for x in parts), strict=True))


def test_doses_and_observations_act_in_the_order_of_the_records() -> None:
    line = Timeline.build(
        schedule(
            time=[0.0, 0, 2, 2, 5],
            amt=[0.0, 100, 0, 50, 0],
            evid=[0, 1, 0, 1, 0],
            cmt=[2, 1, 2, 2, 2],
            dv=[1.0, 0, 2, 0, 3],
        )
    )
    assert points(line) == [
        (0, MARK, 0, 0, -1),
        (0, OBSERVE, 0, 0, 0),
        (0, BOLUS, 0, 100, -1),
        (2, OBSERVE, 0, 0, 1),
        (2, BOLUS, 1, 50, -1),
        (5, OBSERVE, 0, 0, 2),
    ]


def test_overlapping_infusions_set_totals_and_a_reset_ends_them() -> None:
    line = Timeline.build(
        schedule(
            time=[0.0, 1, 2, 3, 4.5],
            amt=[40.0, 30, 0, 7, 0],
            rate=[10.0, 10, 0, 0, 0],
            evid=[1, 1, 0, 4, 0],
            cmt=[2, 2, 2, 1, 2],
            dv=[0.0, 0, 2, 0, 3],
        )
    )
    assert points(line) == [
        (0, RATE, 1, 10, -1),
        (1, RATE, 1, 20, -1),
        (2, OBSERVE, 0, 0, 0),
        (3, RESET, 0, 0, -1),
        (3, BOLUS, 0, 7, -1),
        (4.5, OBSERVE, 0, 0, 1),
    ]


def test_the_end_of_overlapping_infusions_leaves_no_rounding() -> None:
    line = Timeline.build(
        schedule(
            time=[0.0, 0.5, 9], amt=[0.1, 0.4, 0], rate=[0.1, 0.2, 0], evid=[1, 1, 0], cmt=2, dv=[0.0, 0, 1]
        )
    )
    assert points(line) == [
        (0, RATE, 1, 0.1, -1),
        (0.5, RATE, 1, pytest.approx(0.3), -1),
        (1, RATE, 1, pytest.approx(0.2), -1),
        (2.5, RATE, 1, 0.0, -1),
        (9, OBSERVE, 0, 0, 0),
    ]


def test_a_reset_starts_its_own_clock() -> None:
    line = Timeline.build(
        schedule(
            time=[0.0, 3, 0, 2],
            amt=[10.0, 0, 20, 0],
            evid=[1, 0, 4, 0],
            cmt=[1, 2, 1, 2],
            dv=[0.0, 1, 0, 2],
        )
    )
    assert points(line) == [
        (0, BOLUS, 0, 10, -1),
        (3, OBSERVE, 0, 0, 0),
        (0, RESET, 0, 0, -1),
        (0, BOLUS, 0, 20, -1),
        (2, OBSERVE, 0, 0, 1),
    ]


def test_lags_move_doses_past_observations_and_carry_derivatives() -> None:
    plan = schedule(
        time=[0.0, 1, 3, 3.5], amt=[100.0, 0, 50, 0], evid=[1, 0, 1, 0], cmt=[1, 2, 1, 2], dv=[0.0, 1, 0, 2]
    )
    (lag, factor) = Taylor.seed(torch.tensor([[1.25, 0.5]], dtype=torch.float64), 1)
    line = Timeline.build(plan, {0: Moved(lag, factor)})
    assert points(line) == [
        (0, MARK, 0, 0, -1),
        (1, OBSERVE, 0, 0, 0),
        (1.25, BOLUS, 0, 50, -1),
        (3.5, OBSERVE, 0, 0, 1),
        (4.25, BOLUS, 0, 25, -1),
    ]
    assert isinstance(line.time, Taylor)
    assert isinstance(line.amount, Taylor)
    time = line.time.jac.expand(2, *line.time.shape)
    amount = line.amount.jac.expand(2, *line.amount.shape)
    assert time[:, 0].tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    assert amount[:, 0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 100, 0, 50]]


def test_a_lagged_dose_does_not_outlive_its_reset() -> None:
    plan = schedule(
        time=[0.0, 2, 0, 3], amt=[100.0, 0, 60, 0], evid=[1, 0, 4, 0], cmt=[1, 2, 1, 2], dv=[0.0, 1, 0, 2]
    )
    lag = torch.tensor([[2.5]], dtype=torch.float64)
    kinds = [p[:4] for p in points(Timeline.build(plan, {0: Moved(lag, None)}))]
    assert kinds == [
        (0, MARK, 0, 0),
        (2, OBSERVE, 0, 0),
        (2.5, BOLUS, 0, 100),
        (0, RESET, 0, 0),
        (2.5, BOLUS, 0, 60),
        (3, OBSERVE, 0, 0),
    ]


@pytest.mark.parametrize("moved", [None, {0: Moved(torch.zeros(1, 1, dtype=torch.float64), None)}])
def test_subjects_do_not_see_each_other(moved) -> None:
    table = pd.DataFrame(
        {
            "id": [1, 1, 1, 2, 2, 3, 3, 3, 3],
            "time": [0.0, 1, 2, 0, 4, 0, 1, 2, 3],
            "amt": [5.0, 0, 0, 6, 0, 7, 0, 8, 0],
            "evid": [1, 0, 0, 1, 0, 1, 0, 1, 0],
            "dv": [0.0, 1, 1, 0, 1, 0, 1, 0, 1],
        }
    )
    together = Timeline.build(Schedule.build(Population.from_table(table), ("depot",)), moved)
    for row, name in enumerate((1, 2, 3)):
        alone = Timeline.build(
            Schedule.build(Population.from_table(table[table.id == name]), ("depot",)), moved
        )
        own = [p for p in points(together, row) if p[4] < alone.n_slots]  # the rest is padding
        assert own == points(alone)
    chosen = together.select(torch.tensor([2, 0]))
    assert points(chosen, 0) == points(together, 2)


def test_a_selected_schedule_remembers_where_it_comes_from() -> None:
    table = pd.DataFrame(
        {"id": [1, 1, 2, 2, 3, 3], "time": [0.0, 1] * 3, "amt": [5.0, 0, 6, 0, 7, 0], "dv": [0.0, 1] * 3}
    )
    whole = Schedule.build(Population.from_table(table), ("depot",))
    part = whole.select(torch.tensor([2, 0])).select(torch.tensor([1]))
    root, places = part.root
    assert root is whole
    assert places.tolist() == [0]
    assert part.bolus[0] is not None
    assert part.bolus[0].tolist() == [[5.0]]


def number(x: float) -> torch.Tensor:
    return torch.full((1, 1), x, dtype=torch.float64)


def test_bioavailability_shortens_infusions_and_the_page_gives_rates_and_durations() -> None:
    plan = schedule(
        time=[0.0, 1, 2, 20],
        amt=[40.0, 30, 30, 0],
        rate=[10.0, -1, -2, 0],
        evid=[1, 1, 1, 0],
        cmt=[2, 1, 2, 2],
        dv=[0.0, 0, 0, 1],
    )
    said = {
        0: Moved(lag=number(0.5), bioavailability=number(0.5), rate=number(6.0)),
        1: Moved(bioavailability=number(0.5), duration=number(4.0)),
    }
    assert points(Timeline.build(plan, said)) == [
        (0, MARK, 1, 0, -1),
        (0, RATE, 1, 10, -1),
        (1.5, RATE, 0, 6, -1),
        (2, RATE, 1, 0, -1),
        (2, RATE, 1, 3.75, -1),
        (4, RATE, 0, 0, -1),
        (6, RATE, 1, 0, -1),
        (20, OBSERVE, 0, 0, 0),
    ]


def test_switching_off_empties_a_compartment_and_ends_its_infusions() -> None:
    plan = schedule(
        time=[0.0, 1, 3, 4, 9],
        amt=[60.0, 0, 7, 20, 0],
        rate=[10.0, 0, 0, 5, 0],
        evid=[1, 2, 1, 1, 0],
        cmt=[1, -1, 2, 1, 2],
        dv=[0.0, 0, 0, 0, 1],
    )
    found = points(Timeline.build(plan))
    assert [p[:4] for p in found if p[1] != MARK] == [
        (0, RATE, 0, 10),
        (1, ZERO, 0, 0),
        (1, RATE, 0, 0),
        (3, BOLUS, 1, 7),
        (4, RATE, 0, 5),
        (8, RATE, 0, 0),
        (9, OBSERVE, 0, 0),
    ]


def test_a_steady_state_starts_afresh_and_earlier_infusions_run_on() -> None:
    plan = schedule(
        time=[0.0, 5, 30],
        amt=[9.0, 50, 0],
        rate=[0.0, 2, 0],
        evid=[1, 1, 0],
        cmt=[1, 2, 2],
        dv=[0.0, 0, 1],
        ss=[0, 1, 0],
        ii=[0.0, 10, 0],
    )

    def steady(doses):
        assert doses.duration.tolist() == [[25]]
        assert doses.interval.tolist() == [[10]]
        assert doses.time.tolist() == [[5]]
        return [number(3.0), number(4.0)]

    found = points(Timeline.build(plan, {1: Moved(lag=number(1.0))}, steady))
    assert [p[:4] for p in found if p[1] != MARK] == [
        (0, BOLUS, 0, 9),
        (5, RESET, 1, 0),
        (5, BOLUS, 0, 3),
        (5, BOLUS, 1, 4),
        (5, RATE, 1, 2),
        (5, RATE, 1, 4),
        (6, RATE, 1, 6),
        (11, RATE, 1, 4),
        (21, RATE, 1, 2),
        (30, OBSERVE, 0, 0),
        (31, RATE, 1, 0),
    ]
