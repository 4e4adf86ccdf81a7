"""Covariates: levels of texts, and missing values filled in by a rule that is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from data.tables import frame

from nlmegen.data.columns import DataWarning
from nlmegen.data.population import Population
from nlmegen.errors import DataError

PAIRS = frame([
    dict(id=k, time=t, evid=int(t == 0), amt=9.0 * (t == 0), sex="mf"[k % 2], site="ABC"[k % 3])
    for k in range(1, 7) for t in (0, 1)
])  # fmt: skip


def test_a_text_with_few_levels_is_a_covariate() -> None:
    found = Population.from_table(PAIRS).covariates
    assert (found["sex"].levels, found["site"].levels) == (("f", "m"), ("A", "B", "C"))
    assert found["sex"].observation[:, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert not found["sex"].varies
    assert "sex f or m, constant" in repr(Population.from_table(PAIRS))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([f"note {k}" for k in range(12)], "one subject alone"),
        ([f"note {k % 7} {'abcd'[k % 4]}" for k in range(12)], "one subject alone"),
        ([f"p{k // 2}" for k in range(12)], "one subject alone"),
        (["x"] * 11 + [None], "missing="),
        (["x"] * 11 + ["3"], "mixes numbers"),
    ],
)
def test_other_texts_are_no_covariates(values: list[Any], says: str) -> None:
    table = PAIRS.assign(text=values)
    assert "text" not in Population.from_table(table, warn=False).covariates
    assert "text" in Population.from_table(table, warn=False).table
    with pytest.raises(DataError, match=says):
        Population.from_table(table, covariates=["text"], warn=False)


def test_too_many_levels() -> None:
    table = pd.concat([PAIRS] * 3, ignore_index=True).assign(id=np.repeat(np.arange(18), 2))
    many = table.assign(text=[f"t{k % 13}" for k in range(36)])
    with pytest.raises(DataError, match="13 different texts, a covariate at most 12"):
        Population.from_table(many, covariates=["text"])
    assert (
        len(
            Population.from_table(table.assign(text=[f"t{k % 12}" for k in range(36)]))
            .covariates["text"]
            .levels
        )
        == 12
    )


def test_single_letters_are_logical_values_only_where_both_occur() -> None:
    for texts, levels in (
        (["F"] * 12, ("F",)),
        (["T", "F"] * 6, ()),
        (["TRUE"] * 12, ()),
        (["false"] * 12, ()),
    ):
        assert Population.from_table(PAIRS.assign(sex=texts)).covariates["sex"].levels == levels


def test_levels_survive_selection() -> None:
    table = PAIRS.assign(drug=["a", "b"] * 6, n=range(12))
    whole = Population.from_table(table)
    lean = whole.select([0]).with_covariates(["sex", "drug"])
    assert lean.covariates["sex"].levels == ("f", "m")
    women = whole.select([1]).with_covariates(["sex"])
    assert women.covariates["sex"].observation.tolist() == [[1.0]]
    assert lean.covariates["drug"].observation[0].tolist() == [1.0]


def test_a_level_has_no_middle() -> None:
    rows = [
        dict(amt=1, evid=1, food="no"),
        dict(time=2, food="no"),
        dict(time=4, food="yes"),
        dict(time=6, food="yes"),
    ]
    for rule, times, values in (
        ("nonmem", [0, 2], [0, 1]), ("locf", [0, 4], [0, 1]), ("linear", [0, 2], [0, 1]),
    ):  # fmt: skip
        population = Population.from_table(frame(rows), rule)
        assert population.events.time[0].tolist() == times
        assert population.covariates["food"].segment[0].tolist() == values


GAPS = frame([
    dict(id=1, amt=9, evid=1, wt=np.nan), dict(id=1, time=1, wt=60), dict(id=1, time=2, wt=np.nan),
    dict(id=1, time=3, wt=66), dict(id=2, amt=9, evid=1, wt=80), dict(id=2, time=1, wt=90),
    dict(id=3, amt=9, evid=1, wt=71), dict(id=3, time=1, wt=np.nan), dict(id=4, amt=9, evid=1, wt=np.nan),
    dict(id=4, time=2, wt=99),
])  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "values", "words"),
    [
        ("carry", [60, 60, 60, 66, 80, 90, 71, 71, 99, 99], "last value before"),
        ("median", [75.5, 60, 75.5, 66, 80, 90, 71, 75.5, 75.5, 99], "median 75.5"),  # of 60, 80, 71 and 99
        (70, [70, 60, 70, 66, 80, 90, 71, 70, 70, 99], r"filled in \(70\)"),
    ],
)
def test_missing_values_are_filled_in_by_a_rule_and_counted(
    rule: Any, values: list[float], words: str
) -> None:
    with pytest.warns(
        DataWarning, match=f"4 missing values of wt .3 subjects., the first on line 2.*{words}"
    ):
        found = Population.from_table(GAPS, missing={"WT": rule})
    assert found.table["wt"].tolist() == values
    assert Population.from_table(found.to_table()).sha256 == found.sha256
    assert Population.from_table(PAIRS.assign(wt=70.0), missing={"wt": rule}).warnings == ()


def test_a_text_is_carried() -> None:
    table = PAIRS.assign(sex=["m", None] * 3 + [None, "f"] * 3)
    found = Population.from_table(table, missing={"sex": "carry"}, warn=False)
    assert found.covariates["sex"].observation[:, 0].tolist() == [1, 1, 1, 0, 0, 0]


def test_ids_that_come_again_are_subjects_of_their_own() -> None:
    rows = [dict(id=n, time=t, evid=int(t == 0), amt=9.0 * (t == 0)) for n in (7, 8, 7, 9, 7) for t in (0, 1)]
    with pytest.warns(
        DataWarning, match="2 runs of records with an id met before, the first on line 6 .id 7 .2.."
    ):
        found = Population.from_table(frame(rows), repeated_ids="separate")
    assert found.ids == ("7", "8", "7 (2)", "9", "7 (3)")
    assert found.n_observations == 5
    assert Population.from_table(found.to_table()).ids == found.ids
