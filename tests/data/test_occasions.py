"""Occasions and groups of correlated observations, numbered within each subject."""

from __future__ import annotations

import pytest
from data.tables import frame

from nlmegen.data.population import Population

ROWS = [
    dict(id=1, amt=9, evid=1, occ="b"), dict(id=1, time=2, occ="b"), dict(id=1, time=4, amt=9, evid=1, occ="a"),
    dict(id=1, time=6, occ="a"), dict(id=1, time=8, occ="b"), dict(id=2, amt=9, evid=1, occ="a"),
    dict(id=2, time=2, occ="a"),
]  # fmt: skip


def test_occasions_are_numbered_in_order_of_appearance() -> None:
    found = Population.from_table(frame(ROWS)).occasions
    assert found is not None
    assert found.observation.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert (found.number.tolist(), found.count, found.varies) == ([2, 1], 2, True)
    assert found.labels == (("b", "a"), ("a",))
    assert found.select(found.number.argsort()).labels == (("a",), ("b", "a"))


@pytest.mark.parametrize(
    ("rule", "times", "number"),
    [
        ("nonmem", [0, 2, 4, 6], [0, 1, 1, 0]),
        ("locf", [0, 4, 8], [0, 1, 0]),
        ("linear", [0, 2, 4, 6], [0, 1, 1, 0]),
    ],
)
def test_a_change_of_occasion_bounds_a_segment(rule: str, times: list[float], number: list[int]) -> None:
    population = Population.from_table(frame(ROWS), rule)
    assert population.occasions is not None
    assert population.events.time[0].tolist() == times
    assert population.occasions.segment[0].tolist() == number


def test_without_occasions_their_segments_go() -> None:
    population = Population.from_table(frame(ROWS).assign(wt=70))
    lean = population.with_covariates(["wt"], occasions=False)
    assert lean.occasions is None
    assert lean.events.time[0].tolist() == [0, 4]
    assert population.with_covariates([]).occasions is population.occasions
    varying = population.select([1, 0]).to_table().assign(wt=[70.0, 71, 70, 70, 71, 72, 73])
    whole = Population.from_table(varying)
    kept = whole.select([0]).with_covariates([]).occasions
    assert kept is not None
    assert kept.observation.tolist() == [[0, 0, 0]]


def test_numbers_and_one_occasion_throughout() -> None:
    one = Population.from_table(frame(ROWS).assign(occ=3.0))
    assert one.occasions is not None
    assert (one.occasions.count, one.occasions.labels) == (1, (("3",), ("3",)))
    assert Population.from_table(frame(ROWS).assign(occ=None)).occasions is None
    assert Population.from_table(frame(ROWS).drop(columns="occ")).occasions is None


def test_groups_are_runs_of_one_number() -> None:
    l2 = [0, 1, 1, 1, 2, 2, 0, 1, 1, 7]
    subject = [1] * 7 + [2] * 3
    evid = [1, 0, 0, 2, 0, 0, 0, 0, 0, 0]
    rows = [
        dict(id=i, time=k, l2=g, evid=e, amt=9.0 * (e == 1))
        for k, (i, g, e) in enumerate(zip(subject, l2, evid, strict=True))
    ]
    found = Population.from_table(frame(rows), warn=False)
    assert found.l2.tolist() == [[0, 0, 1, 1, -1], [0, 0, 1, -1, -1]]
    assert found.select([1]).l2.tolist() == [[0, 0, 1, -1, -1]]
    assert Population.from_table(frame(rows).assign(l2=0), warn=False).l2.unique().tolist() == [-1]
