"""Bins: the least squares are the least, nominal times stay themselves, nothing falls outside."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nlmegen as nl
from nlmegen.check.bins import assign, clusters, edges
from nlmegen.errors import DataError


def _cost(place: Any, cuts: tuple[int, ...]) -> float:
    return sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(place, cuts))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=4, max_size=11, unique=True), st.integers(2, 4))
def test_clusters_are_the_best_of_all_partitions(times: list[float], count: int) -> None:
    time = np.sort(np.array(times))
    place = (time - time[0]) / np.ptp(time) + np.arange(len(time)) / (len(time) - 1)
    best = min(_cost(place, cuts) for cuts in combinations(range(1, len(time)), count - 1))
    edge = clusters(time, count)
    got = _cost(place, tuple(np.flatnonzero(np.diff(assign(time, edge))) + 1))
    assert got <= best + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=300), st.integers(1, 12))
def test_every_observation_has_a_bin(times: list[float], count: int) -> None:
    time = np.array(times)
    for bins in ("auto", count):
        edge = edges(time, bins, 3.0)
        assert (np.diff(edge) > 0).all()
        assert edge[0] <= time.min()
        assert time.max() <= edge[-1]
        place = assign(time, edge)
        assert ((edge[place] <= time) & (time <= edge[place + 1])).all()


def test_a_schedule_with_jitter_falls_into_its_samples() -> None:
    data = nl.load_data("theophylline")
    time = data.time[data.mask].numpy()
    counts = np.bincount(assign(time, edges(time, "auto", 11)))
    np.testing.assert_array_equal(counts, np.full(11, 12))


def test_nominal_times_are_bins_of_their_own() -> None:
    time = np.repeat([0.0, 1.0, 4.0, 24.0], 30)
    np.testing.assert_array_equal(edges(time, "auto", 4), [0.0, 0.5, 2.5, 14.0, 24.0])


@pytest.mark.parametrize("bins", ["many", 0, [1.0], [0.0, 5.0, 5.0], [0.0, 3.0], [1.0, 9.0]])
def test_edges_that_cannot_be(bins: Any) -> None:
    with pytest.raises(DataError, match="bins"):
        edges(np.array([0.5, 4.0, 8.0]), bins, 2.0)
