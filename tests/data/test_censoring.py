"""Measurements beyond a limit: flags, limits and texts as intervals of the true value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from data.tables import frame

from nlmegen.data.population import Population

INF, NAN = float("inf"), float("nan")


def read(*rows: dict[str, Any], warn: bool = False) -> Population:
    table = frame([dict(amt=9, evid=1), *(dict(time=k + 1.0) | row for k, row in enumerate(rows))])
    return Population.from_table(table, warn=warn)


def told(population: Population) -> list[tuple[float, ...]]:
    names = ("cens", "dv", "lower", "upper")
    return list(zip(*(getattr(population, name)[0].tolist() for name in names), strict=True))


def same(found: list[tuple[float, ...]], expected: list[tuple[float, ...]]) -> None:
    np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_flags_and_limits_are_intervals() -> None:
    found = read(
        dict(dv=5.0, cens=0), dict(dv=2.0, cens=1), dict(dv=2.0, cens=1, limit=0.5), dict(dv=9.0, cens=-1),
        dict(dv=9.0, cens=-1, limit=12.0), dict(dv=3.0, cens=0, limit=1.0),
    )  # fmt: skip
    expected = [
        (0, 5, NAN, NAN),
        (1, 2, -INF, 2),
        (1, 2, 0.5, 2),
        (-1, 9, 9, INF),
        (-1, 9, 9, 12),
        (0, 3, NAN, NAN),
    ]
    same(told(found), expected)
    assert found.censored
    assert not read(dict(dv=5.0)).censored


@pytest.mark.parametrize("name", ["cens", "blq", "bql"])
def test_three_names_of_one_flag(name: str) -> None:
    same(told(read({name: 1, "dv": 2.0}, {name: 0, "dv": 3.0})), [(1, 2, -INF, 2), (0, 3, NAN, NAN)])


def test_a_measurement_beyond_its_limit_counts_as_censored_there() -> None:
    rows = [dict(dv=0.2, lloq=0.5, uloq=50.0), dict(dv=0.5, lloq=0.5), dict(dv=70.0, uloq=50.0), dict(dv=0.2)]
    found = read(*rows)
    same(told(found), [(1, 0.5, -INF, 0.5), (0, 0.5, NAN, NAN), (-1, 50, 50, INF), (0, 0.2, NAN, NAN)])
    assert found.lloq[0].tolist()[:2] == [0.5, 0.5]
    assert found.lloq[0].isnan().tolist() == [False, False, True, True]
    assert [text.split(",")[0] for text in found.warnings] == [
        "1 observations with DV below LLOQ and no flag",
        "1 observations with DV above ULOQ and no flag",
    ]


def test_a_limit_of_zero_is_none_and_said_where_it_would_have_counted() -> None:
    found = read(dict(dv=-0.7, lloq=0.0), dict(dv=1.2, lloq=0.0))
    assert not found.censored
    assert [text.split(",")[0] for text in found.warnings] == ["1 observations with a negative DV and LLOQ=0"]
    assert not read(dict(dv=0.7, lloq=0.0)).warnings


def test_the_limit_of_a_flagged_record_may_stand_in_lloq() -> None:
    rows = [dict(dv=0.0, cens=1, lloq=0.5), dict(dv=0.3, cens=1, lloq=0.5), dict(dv=9.0, cens=-1, uloq=8.0)]
    same(told(read(*rows)), [(1, 0.5, -INF, 0.5), (1, 0.5, -INF, 0.5), (-1, 8, 8, INF)])
    table = frame([dict(amt=9, evid=1), dict(time=1, cens=1, lloq=0.5)]).assign(dv=[np.nan, np.nan])
    same(told(Population.from_table(table)), [(1, 0.5, -INF, 0.5)])


@pytest.mark.parametrize(
    ("text", "extra", "expected"),
    [
        ("<0.5", {}, (1, 0.5, -INF, 0.5)), ("<= 0.5", {}, (1, 0.5, -INF, 0.5)), (">100", {}, (-1, 100, 100, INF)),
        ("BLQ", {"lloq": 0.5}, (1, 0.5, -INF, 0.5)), ("bql", {"lloq": 0.5}, (1, 0.5, -INF, 0.5)),
        ("<LLOQ", {"lloq": 2}, (1, 2, -INF, 2)), ("ALQ", {"uloq": 70}, (-1, 70, 70, INF)),
        ("<0.5", {"limit": 0}, (1, 0.5, 0, 0.5)), ("<-1.2", {}, (1, -1.2, -INF, -1.2)),
        ("<0.5", {"cens": 1}, (1, 0.5, -INF, 0.5)), ("<0.5", {"lloq": 0.5}, (1, 0.5, -INF, 0.5)),
    ],
)  # fmt: skip
def test_texts_in_dv(text: str, extra: dict[str, Any], expected: tuple[float, ...]) -> None:
    table = pd.DataFrame(
        [dict(id=1, time=0, amt=9, dv="."), dict(id=1, time=1, amt=0, dv=text), dict(id=1, time=2, dv=4)]
    )
    for name, value in extra.items():
        table[name] = [".", value, "."]
    found = Population.from_table(table, warn=False)
    same(told(found), [expected, (0, 4, NAN, NAN)])
    assert Population.from_table(found.to_table(), warn=False).sha256 == found.sha256


def test_a_flag_on_a_record_that_is_left_out_is_said() -> None:
    found = read(dict(dv=2.0, cens=1, mdv=1), dict(dv=2.0, cens=0, mdv=0))
    assert (found.n_observations, found.censored) == (1, False)
    assert "with cens, the first on line 3: they are left out" in found.warnings[0]
    assert "below a limit of 0" in read(dict(dv=0.0, cens=1)).warnings[0]


def test_padding_is_not_censored_and_selections_keep_their_limits() -> None:
    rows = [
        dict(id=1, amt=9, evid=1, cens=0),
        dict(id=1, time=1, dv=2, cens=1),
        dict(id=1, time=2, dv=2, cens=1),
    ]
    rows += [dict(id=2, amt=9, evid=1, cens=0), dict(id=2, time=1, dv=7, cens=-1)]
    found = Population.from_table(frame(rows))
    assert found.cens.tolist() == [[1, 1], [-1, 0]]
    assert found.upper[1].tolist()[0] == INF
    assert found.upper[1].isnan().tolist() == [False, True]
    chosen = found.select([1])
    assert (chosen.cens.tolist(), chosen.lower[0, 0].item()) == ([[-1, 0]], 7.0)
