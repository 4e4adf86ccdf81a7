"""Cohorts: who is dosed how, sampled when, and takes whose covariates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

import nlmegen as nl
from nlmegen.errors import DataError
from nlmegen.simulate.cohort import Cohort, parse_times
from nlmegen.simulate.regimen import Regimen


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ("0:168:2", np.arange(0, 169, 2)),
        ("0:1:0.1", np.linspace(0, 1, 11)),
        ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
        ("0:5:2", [0, 2, 4]),
        ("3:3:1", [3]),
        ("0.5, 2,1", [0.5, 1, 2]),
        (range(0, 10, 3), [0, 3, 6, 9]),
        (np.array([2.0, 1.0, 2.0]), [1, 2]),
    ],
)
def test_times(times: Any, expected: Any) -> None:
    np.testing.assert_allclose(parse_times(times), expected, atol=1e-12)


@pytest.mark.parametrize(
    "times", ["", "0:10", "0:10:0", "10:0:1", "a:b:c", [], [-1.0], [np.nan], "1;2", None, [None]]
)
def test_times_that_cannot_be(times: Any) -> None:
    with pytest.raises(DataError, match="times"):
        parse_times(times)


def test_doses_come_before_samples_of_the_same_time() -> None:
    table = Cohort(2, "100 every 12 x 2 + 50 over 2 into central at 12", times="0:24:12").population().table
    own = table[table["id"] == 1]
    np.testing.assert_array_equal(own["time"], [0, 0, 12, 12, 12, 24])
    np.testing.assert_array_equal(own["evid"], [1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(own["amt"], [100, 0, 100, 50, 0, 0])
    np.testing.assert_array_equal(own["rate"], [0, 0, 0, 25, 0, 0])
    assert own["cmt"].astype(str).tolist() == ["0", "0", "0", "central", "0", "0"]
    np.testing.assert_array_equal(own["mdv"], own["evid"])


def test_arms_share_the_patients() -> None:
    cohort = Cohort(7, {"low": "100", "mid": Regimen(200), "high": "300"}, times=[1.0])
    table = cohort.population().table
    doses = table[table["evid"] == 1]
    assert doses["arm"].tolist() == ["low"] * 3 + ["mid"] * 2 + ["high"] * 2
    np.testing.assert_array_equal(doses["amt"], [100] * 3 + [200] * 2 + [300] * 2)
    np.testing.assert_array_equal(doses["id"], np.arange(1, 8))


def test_whole_rows_of_covariates_are_drawn() -> None:
    donors = pd.DataFrame({"wt": [3.0, 5.0, 70.0, 90.0], "age": [1, 2, 40, 50], "name": list("abcd")})
    population = Cohort(4000, "2/kg over 4", times=[1.0], covariates=donors).population(seed=9)
    drawn = population.table[population.table["evid"] == 1]
    pairs = set(zip(drawn["wt"], drawn["age"], strict=True))
    assert pairs == {(3, 1), (5, 2), (70, 40), (90, 50)}
    counts = drawn["wt"].value_counts()
    assert ((counts - 1000).abs() < 4 * np.sqrt(4000 * 0.25 * 0.75)).all()
    np.testing.assert_allclose(drawn["amt"], 2 * drawn["wt"])
    np.testing.assert_allclose(drawn["rate"], drawn["wt"] / 2)
    assert list(population.covariates) == ["wt", "age"]


def test_covariates_of_a_population() -> None:
    data = nl.load_data("phenobarbital")
    population = Cohort(300, "20/kg", times=[2.0], covariates=data).population(seed=1)
    real = {tuple(row) for row in data.table[["wt", "apgr"]].to_numpy()}
    drawn = {tuple(row) for row in population.table[["wt", "apgr"]].to_numpy()}
    assert drawn <= real
    assert len(drawn) > 0.8 * len(real)


@pytest.mark.parametrize("rule", ["nonmem", "locf", "linear"])
def test_a_covariate_that_varies_keeps_its_course(rule: str) -> None:
    table = pd.DataFrame(
        {
            "id": 1,
            "time": [0.0, 5.0, 10.0, 30.0],
            "amt": [1.0, 0, 0, 0],
            "evid": [1, 0, 0, 0],
            "dv": [np.nan, 1, 1, 1],
            "crcl": [100.0, 100.0, 50.0, 80.0],
        }
    )
    source = nl.read_nonmem(table, interpolation=rule)
    drawn = Cohort(3, "100", times="0:40:1", covariates=source).population()
    assert drawn.interpolation == rule
    t = drawn.time[0].numpy()
    expected = {
        "nonmem": np.select([t <= 5, t <= 10], [100.0, 50.0], 80.0),
        "locf": np.select([t < 10, t < 30], [100.0, 50.0], 80.0),
        "linear": np.interp(t, table["time"], table["crcl"]),
    }[rule]
    np.testing.assert_allclose(drawn.covariates["crcl"].observation[0].numpy(), expected)
    segment = drawn.covariates["crcl"].segment[0].numpy()
    changes = drawn.events.time[0].numpy()
    if rule == "nonmem":
        assert sorted(set(changes[np.flatnonzero(np.diff(segment)) + 1])) == [5.0, 10.0]
    if rule == "locf":
        assert sorted(set(changes[np.flatnonzero(np.diff(segment)) + 1])) == [10.0, 30.0]


def test_same_seed_same_patients() -> None:
    donors = pd.DataFrame({"wt": np.arange(50.0, 90.0)})
    cohort = Cohort(50, "1/kg", times=[1.0], covariates=donors)
    first, again, other = (cohort.population(seed).table for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": 0}, "patients"),
        ({"n": 1.5}, "patients"),
        ({"regimen": {}}, "arm"),
        ({"regimen": "soon"}, "soon"),
        ({"regimen": 100}, "expected a Regimen"),
    ],
)
def test_cohorts_that_cannot_be(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(DataError, match=word):
        Cohort(**({"n": 3, "regimen": "100", "times": [1.0]} | arguments))


@pytest.mark.parametrize(
    ("covariates", "word"),
    [
        (None, "No covariates were given"),
        (pd.DataFrame({"weight": [70.0]}), "Did you mean 'weight'"),
        (pd.DataFrame({"wt": [70.0, np.nan]}), "missing in subject 2"),
        (pd.DataFrame({"wt": []}), "at least one subject"),
    ],
)
def test_an_amount_per_kg_needs_weight(covariates: Any, word: str) -> None:
    with pytest.raises(DataError, match=word):
        Cohort(3, "5/kg", times=[1.0], covariates=covariates).population()


def test_donors_of_a_bootstrap_keep_their_weights() -> None:
    table = pd.DataFrame({"id": [1, 2], "time": 0.0, "dv": 1.0, "wt": [50.0, 80.0]})
    source = nl.Population.from_table(table, warn=False).select([0] * 9 + [1])
    drawn = Cohort(4000, "100", times=[1.0], covariates=source).population().covariates["wt"].observation
    assert abs(int((drawn == 50).sum()) - 3600) < 4 * np.sqrt(4000 * 0.9 * 0.1)


@pytest.mark.parametrize("evid", [3, 4])
def test_a_donor_whose_time_restarts_lends_its_first_period(evid: int) -> None:
    table = pd.DataFrame(
        {
            "id": 1,
            "time": [0.0, 5.0, 10.0, 0.0, 4.0, 9.0],
            "amt": [1.0, 0, 0, evid - 3.0, 0, 0],
            "evid": [1, 0, 0, evid, 0, 0],
            "dv": [np.nan, 1, 1, np.nan, 1, 1],
            "crcl": [100.0, 100.0, 60.0, 20.0, 30.0, 40.0],
        }
    )
    source = nl.Population.from_table(table, interpolation="linear", warn=False)
    drawn = Cohort(1, "100", times="0:12:1", covariates=source).population()
    expected = np.interp(np.arange(13), [0, 5, 10], [100, 100, 60])
    np.testing.assert_allclose(drawn.covariates["crcl"].observation[0].numpy(), expected)


def test_a_dose_that_rounding_delays_still_comes_first() -> None:
    table = Cohort(1, "100 every 0.1 x 7 at 0.1", times="0.3, 0.6, 0.7").population().table
    for time in (0.3, 0.6, 0.7):
        assert table.loc[table["time"] == time, "evid"].tolist() == [1, 0]


@pytest.mark.parametrize("varies", [False, True])
def test_covariates_may_have_any_name_that_is_free(varies: bool) -> None:
    names = ["mark", "bound", "donor", "per_kg"]
    table = pd.DataFrame(
        {
            "id": 1,
            "time": [0.0, 4.0],
            "dv": 1.0,
            **{name: [k + 2.0, k + 2.0 + varies] for k, name in enumerate(names)},
        }
    )
    source = nl.Population.from_table(table, warn=False)
    drawn = Cohort(2, "100", times=[0.0, 3.0], covariates=source).population()
    assert list(drawn.covariates) == names
    for k, name in enumerate(names):
        expected = [k + 2.0, k + 2.0 + varies]
        got = drawn.table.loc[drawn.table["evid"] == 0, name].to_numpy().reshape(2, 2)
        np.testing.assert_array_equal(got, [expected, expected])


def test_a_covariate_arm_is_not_mixed_up_with_the_arms() -> None:
    donors = pd.DataFrame({"arm": [5.0, 6.0]})
    assert list(Cohort(2, "100", times=[1.0], covariates=donors).population().covariates) == ["arm"]
    with pytest.raises(DataError, match="tells several arms apart"):
        Cohort(2, {"a": "100", "b": "200"}, times=[1.0], covariates=donors).population()


@pytest.mark.parametrize("name", ["dv", "AMT", "rate", "evid", "mdv", "cmt", "time", "ii"])
def test_a_row_a_subject_has_no_columns_of_records(name: str) -> None:
    donors = pd.DataFrame({"wt": [70.0], name: [5.0]})
    with pytest.raises(DataError, match=f"got the column '{name.lower()}'"):
        Cohort(2, "100", times=[1.0], covariates=donors).population()


def test_names_that_differ_in_case_only_are_refused() -> None:
    donors = pd.DataFrame({"SEX": [1.0], "wt": [70.0], "sex": [0.0]})
    with pytest.raises(DataError, match="'SEX', 'sex' are one name"):
        Cohort(2, "100", times=[1.0], covariates=donors).population()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": np.nan}, "n .patients.: expected a whole number of 1 or more, got nan"),
        ({"n": np.inf}, "got inf"),
        ({"n": None}, "got None"),
        ({"n": "5"}, "got '5'"),
        ({"n": 10**11}, "at most 100,000,000"),
        ({"covariates": 5}, "covariates: expected a Population.* got int"),
        ({"dvid": 2}, "dvid: expected a tuple"),
        ({"dvid": ()}, "dvid: expected a tuple"),
        ({"dvid": "cp"}, "dvid: expected a tuple"),
        ({"times": b"0:1:1"}, "times: cannot read"),
        ({"times": "0:1e12:1e-3"}, "expected at most 1,000,000 times"),
    ],
)
def test_arguments_of_another_kind(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(DataError, match=word):
        Cohort(**({"n": 3, "regimen": "100", "times": [1.0]} | arguments))


def test_a_whole_number_may_be_a_float() -> None:
    assert Cohort(2.0, "100", times=[1.0]).population().n_subjects == 2  # type: ignore[arg-type]
