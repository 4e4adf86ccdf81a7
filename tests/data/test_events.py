"""Events: what they are, and that walking along them gives what the records say."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
from data.tables import frame, superposed, walked

from nlmegen.data.events import Kind
from nlmegen.data.population import Population


def events(table: pd.DataFrame, **options: Any) -> list[tuple[float, str, float, float]]:
    found = Population.from_table(table, warn=False, **options).events
    return [
        (
            found.time[0, e].item(),
            Kind(int(found.kind[0, e])).name,
            found.amount[0, e].item(),
            found.rate[0, e].item(),
        )
        for e in range(found.time.shape[1])
    ]


def test_one_bolus_is_one_event() -> None:
    table = frame([dict(amt=100, evid=1), dict(time=0), dict(time=3)])
    assert events(table) == [(0, "BOLUS", 100, 0)]
    assert Population.from_table(table).segment.tolist() == [[0, 0]]


def test_first_record_opens_a_segment() -> None:
    table = frame([dict(time=1), dict(time=2, amt=50, evid=1), dict(time=2), dict(time=5)])
    assert events(table) == [(1, "CHANGE", 0, 0), (2, "BOLUS", 50, 0)]
    assert Population.from_table(table).segment.tolist() == [[0, 1, 1]]


def test_simultaneous_records_keep_the_order_of_the_file() -> None:
    table = frame([dict(time=0), dict(time=0, amt=50, evid=1), dict(time=0)])
    assert Population.from_table(table).segment.tolist() == [[0, 1]]


def test_infusion_starts_and_stops() -> None:
    table = frame([dict(amt=30, rate=10, evid=1), dict(time=1), dict(time=3), dict(time=4)])
    assert events(table) == [(0, "START", 30, 10), (3, "STOP", 30, -10)]
    assert Population.from_table(table).segment.tolist() == [[0, 1, 1]]


def test_back_to_back_infusions_stop_before_they_start() -> None:
    table = frame([dict(amt=10, rate=5, evid=1, addl=1, ii=2), dict(time=9)])
    assert events(table) == [
        (0, "START", 10, 5),
        (2, "STOP", 10, -5),
        (2, "START", 10, 5),
        (4, "STOP", 10, -5),
    ]


def test_an_infusion_shorter_than_rounding_still_starts_before_it_stops() -> None:
    table = frame(
        [dict(time=1000), dict(time=1000, amt=1e-15, rate=10, evid=1), dict(time=1000), dict(time=1001)]
    )
    assert events(table) == [
        (1000, "CHANGE", 0, 0),
        (1000, "START", 1e-15, 10),
        (1000, "STOP", 1e-15, -10),
    ]
    assert Population.from_table(table).segment.tolist() == [[0, 2, 2]]


def test_additional_doses_are_written_out_up_to_the_last_record() -> None:
    table = frame([dict(amt=10, evid=1, addl=9, ii=12), dict(time=24), dict(time=30)])
    assert events(table) == [(0, "BOLUS", 10, 0), (12, "BOLUS", 10, 0), (24, "BOLUS", 10, 0)]


def test_additional_dose_comes_before_a_record_at_its_time() -> None:
    table = frame(
        [dict(amt=10, evid=1, addl=2, ii=12), dict(time=12), dict(time=24, amt=5, evid=1), dict(time=24)]
    )
    assert events(table) == [
        (0, "BOLUS", 10, 0),
        (12, "BOLUS", 10, 0),
        (24, "BOLUS", 10, 0),
        (24, "BOLUS", 5, 0),
    ]
    assert Population.from_table(table).segment.tolist() == [[1, 3]]


@pytest.mark.parametrize("interval", [0.1, 0.7, 1 / 3, 8.0])
def test_rounding_does_not_move_an_additional_dose_past_a_record(interval: float) -> None:
    times = [float(f"{k * interval:.15g}") for k in range(1, 40)]
    table = frame([dict(amt=1, evid=1, addl=50, ii=interval), *(dict(time=t) for t in times)])
    population = Population.from_table(table)
    assert population.segment[0].tolist() == list(range(1, 40))
    assert population.events.time[0, 1:].tolist() == times


def test_reset_cancels_infusions_and_additional_doses() -> None:
    table = frame([
        dict(amt=10, evid=1, addl=9, ii=5), dict(time=1, amt=100, rate=10, evid=1), dict(time=6),
        dict(time=7, evid=3), dict(time=20), dict(time=21, amt=7, evid=4), dict(time=21),
    ])  # fmt: skip
    assert events(table) == [
        (0, "BOLUS", 10, 0), (1, "START", 100, 10), (5, "BOLUS", 10, 0), (7, "RESET", 0, 0), (21, "RESET", 0, 0),
        (21, "BOLUS", 7, 0),
    ]  # fmt: skip
    assert walked(Population.from_table(table))[1:] == [0.0, 7.0]


def test_time_may_restart_at_a_reset() -> None:
    table = frame([
        dict(amt=10, evid=1, addl=3, ii=24), dict(time=5), dict(time=0, amt=20, rate=5, evid=4), dict(time=2),
        dict(time=1, evid=3), dict(time=1),
    ])  # fmt: skip
    assert events(table) == [
        (0, "BOLUS", 10, 0), (0, "RESET", 0, 0), (0, "START", 20, 5), (1, "RESET", 0, 0),
    ]  # fmt: skip
    assert Population.from_table(table).segment.tolist() == [[0, 2, 3]]


def test_other_records_change_nothing() -> None:
    table = frame([dict(amt=10, evid=1), dict(time=1, evid=2), dict(time=2)])
    assert events(table) == [(0, "BOLUS", 10, 0)]


@pytest.mark.parametrize(
    ("rule", "times", "values"),
    [
        ("nonmem", [0, 2], [70, 80]),
        ("locf", [0, 4], [70, 80]),
        ("linear", [0, 2, 4, 6], [70, 75, 80, 80]),
    ],
)
def test_covariate_bounds_segments(rule: str, times: list[float], values: list[float]) -> None:
    table = frame([dict(amt=1, evid=1, wt=70), dict(time=2, wt=70), dict(time=4, wt=80), dict(time=6, wt=80)])
    population = Population.from_table(table, rule)
    assert population.events.time[0].tolist() == times
    assert population.covariates["wt"].segment[0].tolist() == values
    assert population.covariates["wt"].observation[0].tolist() == [70, 80, 80]


def test_events_between_records_take_the_rule_of_their_interval() -> None:
    rows = [dict(amt=1, evid=1, addl=3, ii=1, wt=70), dict(time=2.5, wt=90), dict(time=9, wt=90)]
    expected = {"nonmem": [90, 90, 90, 90], "locf": [70, 70, 70, 90, 90], "linear": [80, 80, 80, 90, 90, 90]}
    for rule, values in expected.items():
        population = Population.from_table(frame(rows), rule)
        assert population.covariates["wt"].segment[0].tolist() == values, rule


def test_walking_gives_the_superposition_of_the_doses() -> None:
    table = frame([
        dict(id="a", time=-1), dict(id="a", amt=10, evid=1, addl=5, ii=6), dict(id="a", time=0),
        dict(id="a", time=2, amt=40, rate=3, evid=1, addl=1, ii=10), dict(id="a", time=12), dict(id="a", time=12),
        dict(id="a", time=17), dict(id="a", time=18), dict(id="a", time=40),
        dict(id="b", time=5), dict(id="b", time=6, amt=5, evid=1), dict(id="b", time=6, amt=5, rate=1, evid=1),
        dict(id="b", time=8), dict(id="b", time=0, amt=9, rate=2, evid=4, addl=3, ii=2), dict(id="b", time=3),
        dict(id="b", time=30),
    ])  # fmt: skip
    population = Population.from_table(table)
    assert walked(population) == pytest.approx(superposed(table), abs=1e-12)
    assert population.row[0].tolist() == [0, 2, 4, 5, 6, 7, 8]
    assert population.row[1].tolist() == [9, 12, 14, 15, -1, -1, -1]


def test_compartments_by_number_and_name() -> None:
    table = frame([dict(amt=1, evid=1, cmt=2), dict(time=1, amt=1, evid=1, cmt=1), dict(time=2, cmt=7)])
    population = Population.from_table(table)
    assert population.compartments == (1, 2)
    assert population.events.compartment.tolist() == [[1, 0]]
    named = table.assign(cmt=["depot", "2", "central"])
    assert Population.from_table(named).compartments == (2, "depot")
    assert Population.from_table(named).events.compartment.tolist() == [[1, 0]]
    assert Population.from_table(table.assign(cmt=[None, 0, 7])).compartments == (0,)
    assert Population.from_table(table.drop(columns="cmt")).compartments == (0,)


def kinds(table: pd.DataFrame) -> list[tuple[float, str]]:
    return [(time, name) for time, name, *_ in events(table)]


def test_a_steady_state_comes_before_its_dose_and_goes_on_with_additional_ones() -> None:
    table = frame([dict(time=2, amt=10, evid=1, ss=1, ii=12, addl=2), dict(time=2), dict(time=15)])
    found = Population.from_table(table).events
    assert kinds(table) == [(2, "STEADY"), (2, "BOLUS"), (14, "BOLUS")]
    assert found.amount.tolist() == [[10, 10, 10]]
    assert (found.interval.tolist(), found.steady.tolist()) == ([[12, 0, 0]], [[1, 0, 0]])
    assert Population.from_table(table).segment.tolist() == [[1, 2]]
    assert not found.plain
    assert Population.from_table(table.assign(ss=0)).events.plain


def test_a_steady_infusion_may_last_longer_than_its_interval() -> None:
    table = frame([dict(amt=60, rate=3, evid=1, ss=2, ii=12), dict(time=30)])
    assert events(table) == [(0, "STEADY", 60, 3), (0, "START", 60, 3), (20, "STOP", 60, -3)]


def test_a_constant_infusion_ends_at_its_record() -> None:
    table = frame([dict(time=1, rate=3, evid=1, ss=1), dict(time=1), dict(time=9)])
    assert events(table) == [(1, "STEADY", 0, 3)]
    population = Population.from_table(table)
    assert (population.n_doses, population.segment.tolist()) == (1, [[0, 0]])
    assert walked(population) == pytest.approx([3 / 0.13, 3 / 0.13 * math.exp(-0.13 * 8)], rel=1e-12)


def test_ss_1_cancels_what_was_pending_and_ss_2_does_not() -> None:
    rows = [dict(amt=10, evid=1, addl=9, ii=5), dict(amt=100, rate=10, evid=1), dict(time=4)]
    rows += [dict(time=7, amt=8, evid=1, ss=1, ii=6), dict(time=16)]
    assert kinds(frame(rows)) == [(0, "BOLUS"), (0, "START"), (7, "STEADY"), (7, "BOLUS")]
    rows[3]["ss"] = 2
    assert kinds(frame(rows)) == [
        (0, "BOLUS"), (0, "START"), (5, "BOLUS"), (7, "STEADY"), (7, "BOLUS"), (10, "STOP"), (10, "BOLUS"),
        (15, "BOLUS"),
    ]  # fmt: skip


def test_ss_1_keeps_additional_doses_that_came_before_it() -> None:
    rows = [
        dict(amt=10, evid=1, addl=9, ii=5),
        dict(time=6),
        dict(time=7, amt=8, evid=1, ss=1, ii=6),
        dict(time=9),
    ]
    assert kinds(frame(rows)) == [(0, "BOLUS"), (5, "BOLUS"), (7, "STEADY"), (7, "BOLUS")]


def test_a_steady_state_after_a_reset() -> None:
    rows = [dict(amt=10, evid=1), dict(time=4), dict(time=0, amt=8, rate=4, evid=4, ss=2, ii=6), dict(time=9)]
    assert kinds(frame(rows)) == [(0, "BOLUS"), (0, "RESET"), (0, "STEADY"), (0, "START"), (2, "STOP")]


def test_what_a_page_models_stops_right_after_it_starts() -> None:
    rows = [
        dict(amt=10, rate=-2, evid=1, addl=1, ii=5),
        dict(amt=4, rate=-1, evid=1, addl=1, ii=5),
        dict(time=5),
    ]
    found = Population.from_table(frame(rows)).events
    assert kinds(frame(rows)) == [
        (0, "START"), (0, "STOP"), (0, "START"), (0, "STOP"), (5, "START"), (5, "STOP"), (5, "START"), (5, "STOP"),
    ]  # fmt: skip
    assert found.modelled.tolist() == [[2, 2, 1, 1, 2, 2, 1, 1]]
    assert found.amount.tolist() == [[10, 10, 4, 4, 10, 10, 4, 4]]
    assert not found.rate.any()
    assert not found.plain
    assert Population.from_table(frame(rows)).segment.tolist() == [[7]]


def test_a_stop_knows_when_its_dose_was_given() -> None:
    table = frame([dict(amt=30, rate=10, evid=1, addl=1, ii=12), dict(time=20)])
    found = Population.from_table(table).events
    assert found.time.tolist() == [[0, 3, 12, 15]]
    assert found.given.tolist() == [[0, 0, 12, 12]]


@pytest.mark.parametrize("written", [[1, -1, 2, 1], ["depot", "-depot", "central", "depot"]])
def test_a_compartment_is_switched_off(written: list[Any]) -> None:
    rows = [
        dict(amt=30, rate=1, evid=1),
        dict(time=3, evid=2),
        dict(time=4, amt=5, rate=1, evid=1),
        dict(time=40),
    ]
    table = frame(rows).assign(cmt=written)
    found = Population.from_table(table)
    assert events(table) == [(0, "START", 30, 1), (3, "OFF", 0, 0), (4, "START", 5, 1), (9, "STOP", 5, -1)]
    assert [found.compartments[k] for k in found.events.compartment[0]] == [written[k] for k in (0, 0, 2, 2)]
    assert not found.events.plain
    positive = table.assign(cmt=[written[0], written[0], *written[2:]])
    assert [name for _, name in kinds(positive)] == ["START", "START", "STOP", "STOP"], (
        "switching on changes nothing"
    )


def test_switching_off_ends_only_what_runs_there() -> None:
    rows = [
        dict(amt=30, rate=1, evid=1, cmt=2), dict(amt=30, rate=1, evid=1, cmt=1, addl=1, ii=3),
        dict(time=3, evid=2, cmt=-1), dict(time=3, amt=2, rate=1, evid=1, cmt=1), dict(time=60, cmt=2),
    ]  # fmt: skip
    assert events(frame(rows)) == [
        (0, "START", 30, 1), (0, "START", 30, 1), (3, "START", 30, 1), (3, "OFF", 0, 0), (3, "START", 2, 1),
        (5, "STOP", 2, -1), (30, "STOP", 30, -1),
    ]  # fmt: skip


def test_time_after_dose_counts_additional_and_steady_state_doses() -> None:
    table = frame([
        dict(time=-1), dict(amt=10, evid=1, addl=3, ii=12), dict(time=5), dict(time=12), dict(time=26),
        dict(time=27, rate=3, evid=1, ss=2), dict(time=28.5), dict(time=30, evid=3), dict(time=31),
        dict(time=32, amt=4, rate=2, evid=1, ss=1, ii=6), dict(time=32), dict(time=35),
    ])  # fmt: skip
    found = Population.from_table(table).time_after_dose[0].tolist()
    assert found[1:5] == [5, 0, 2, 1.5]
    assert found[6:] == [0, 3]
    assert math.isnan(found[0])
    assert math.isnan(found[5])
