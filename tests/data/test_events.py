"""Events: what they are, and that walking along them gives what the records say."""

from __future__ import annotations

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
    assert events(table) == [(0, "START", 0, 10), (3, "STOP", 0, -10)]
    assert Population.from_table(table).segment.tolist() == [[0, 1, 1]]


def test_back_to_back_infusions_stop_before_they_start() -> None:
    table = frame([dict(amt=10, rate=5, evid=1, addl=1, ii=2), dict(time=9)])
    assert events(table) == [(0, "START", 0, 5), (2, "STOP", 0, -5), (2, "START", 0, 5), (4, "STOP", 0, -5)]


def test_an_infusion_shorter_than_rounding_still_starts_before_it_stops() -> None:
    table = frame(
        [dict(time=1000), dict(time=1000, amt=1e-15, rate=10, evid=1), dict(time=1000), dict(time=1001)]
    )
    assert events(table) == [(1000, "CHANGE", 0, 0), (1000, "START", 0, 10), (1000, "STOP", 0, -10)]
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
        (0, "BOLUS", 10, 0), (1, "START", 0, 10), (5, "BOLUS", 10, 0), (7, "RESET", 0, 0), (21, "RESET", 0, 0),
        (21, "BOLUS", 7, 0),
    ]  # fmt: skip
    assert walked(Population.from_table(table))[1:] == [0.0, 7.0]


def test_time_may_restart_at_a_reset() -> None:
    table = frame([
        dict(amt=10, evid=1, addl=3, ii=24), dict(time=5), dict(time=0, amt=20, rate=5, evid=4), dict(time=2),
        dict(time=1, evid=3), dict(time=1),
    ])  # fmt: skip
    assert events(table) == [
        (0, "BOLUS", 10, 0), (0, "RESET", 0, 0), (0, "START", 0, 5), (1, "RESET", 0, 0),
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
