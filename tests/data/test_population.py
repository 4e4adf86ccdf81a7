"""Population: padding, masks, covariates, selection, the way back to the table."""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data.tables import frame, walked
from torch import Tensor

from nlmegen.data.columns import DataWarning
from nlmegen.data.population import Population
from nlmegen.errors import DataError

UNEQUAL = frame([
    dict(id="p1", amt=10, evid=1, wt=70, age=30), dict(id="p1", time=1, dv=1.5, wt=70, age=30),
    dict(id="p1", time=2, dv=2.5, wt=70, age=31),
    dict(id="p2", time=3, dv=3.5, wt=60, age=40),
    dict(id="p3", time=4, amt=20, evid=1, wt=50, age=50), dict(id="p3", time=5, amt=20, evid=1, wt=50, age=50),
    dict(id="p4", amt=5, evid=1, wt=55, age=1), dict(id="p4", time=1, dv=4.5, wt=55, age=1),
    dict(id="p4", time=2, dv=5.5, wt=55, age=1), dict(id="p4", time=9, dv=6.5, wt=55, age=1),
])  # fmt: skip


@pytest.fixture
def population() -> Population:
    return Population.from_table(UNEQUAL, warn=False, time_unit="h", amount_unit="mg", dv_unit="mg/L")


def tensors(population: Population) -> dict[str, Tensor]:
    names = ("time", "dv", "mask", "dvid", "row", "segment")
    found = {name: getattr(population, name) for name in names}
    found |= {f"events.{name}": value for name, value in vars(population.events).items()}
    for name, covariate in population.covariates.items():
        found |= {f"{name}.observation": covariate.observation, f"{name}.segment": covariate.segment}
    return found


def same(left: Population, right: Population) -> bool:
    pairs = zip(tensors(left).values(), tensors(right).values(), strict=True)
    return left.ids == right.ids and all(torch.equal(a, b) for a, b in pairs)


def test_unequal_records_are_padded(population: Population) -> None:
    assert population.ids == ("p1", "p2", "p3", "p4")
    assert (population.n_subjects, len(population), population.n_observations, population.n_doses) == (
        4,
        4,
        6,
        4,
    )
    assert population.mask.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]
    assert population.time.tolist() == [[1, 2, 2], [3, 3, 3], [4, 4, 4], [1, 2, 9]]
    assert population.dv.tolist() == [[1.5, 2.5, 0], [3.5, 0, 0], [0, 0, 0], [4.5, 5.5, 6.5]]
    assert population.row.tolist() == [[1, 2, -1], [3, -1, -1], [-1, -1, -1], [7, 8, 9]]
    assert population.time.dtype == population.dv.dtype == torch.float64
    assert population.mask.dtype == torch.bool
    assert population.row.dtype == population.segment.dtype == population.dvid.dtype == torch.int64


def test_padding_never_lies_before_its_segment(population: Population) -> None:
    opened = population.events.time.gather(1, population.segment)
    assert (population.time >= opened).all()


def test_every_observation_finds_its_record(population: Population) -> None:
    table = population.table
    for n, t in torch.nonzero(population.mask).tolist():
        record = table.iloc[int(population.row[n, t])]
        assert record["time"] == population.time[n, t].item()
        assert record["dv"] == population.dv[n, t].item()
        assert record["id"] == population.ids[n]


def test_constant_covariates_have_width_one(population: Population) -> None:
    weight, age = population.covariates["wt"], population.covariates["age"]
    assert not weight.varies
    assert weight.observation.tolist() == weight.segment.tolist() == [[70], [60], [50], [55]]
    assert age.varies
    assert age.observation.shape == population.time.shape
    assert age.segment.shape == population.events.time.shape


def test_subjects_without_doses_or_observations_are_kept_with_a_warning() -> None:
    with pytest.warns(DataWarning) as caught:
        population = Population.from_table(UNEQUAL)
    assert [str(warning.message) for warning in caught] == list(population.warnings)
    assert population.warnings == (
        "1 of 4 subjects without doses: id p2; kept",
        "1 of 4 subjects without observations: id p3; kept",
    )
    assert population.events.kind[1, 0] == 5  # CHANGE: every subject has an event at its first record


def test_no_observations_and_no_doses_at_all() -> None:
    doses = Population.from_table(UNEQUAL[UNEQUAL.evid == 1], warn=False)
    assert doses.mask.shape == (3, 1)
    assert doses.n_observations == 0
    samples = Population.from_table(UNEQUAL[UNEQUAL.evid == 0], warn=False)
    assert samples.n_doses == 0
    assert samples.compartments == (0,)


def test_select_equals_reading_those_subjects(population: Population) -> None:
    for index in ([3], [3, 0], [0, 1, 2, 3], [2, 2, 0]):
        chosen = population.select(index)
        assert chosen.ids == tuple(population.ids[k] for k in index)
        expected = pd.concat([UNEQUAL[UNEQUAL.id == population.ids[k]] for k in index], ignore_index=True)
        pd.testing.assert_frame_equal(chosen.table, expected, check_dtype=False)
        assert walked(chosen) == [x for k in index for x in walked(population.select([k]))]
        for n, t in torch.nonzero(chosen.mask).tolist():
            assert chosen.table["dv"].iloc[int(chosen.row[n, t])] == chosen.dv[n, t].item()


def test_select_of_a_selection(population: Population) -> None:
    twice = population.select([3, 1, 0]).select(torch.tensor([2, 0]))
    once = population.select([0, 3])
    assert same(twice, once)
    pd.testing.assert_frame_equal(twice.table, once.table)


def test_select_takes_masks_negative_positions_and_arrays(population: Population) -> None:
    assert population.select(torch.tensor([True, False, False, True])).ids == ("p1", "p4")
    assert population.select([-1]).ids == ("p4",)
    assert population.select(np.array([1, 2])).ids == ("p2", "p3")
    with pytest.raises(DataError, match="from 0 to 3, got \\[4\\]"):
        population.select([4])


def test_with_covariates_drops_their_segments(population: Population) -> None:
    assert population.events.time.shape[1] == 2
    kept = population.with_covariates(["wt"])
    assert list(kept.covariates) == ["wt"]
    assert kept.events.kind[0].tolist() == [1, 0]
    assert kept.ids == population.ids
    assert kept.sha256 == population.sha256
    direct = Population.from_table(UNEQUAL, covariates=["wt"], warn=False)
    assert same(kept, direct)
    repeated = population.select([0, 0]).with_covariates([])
    assert repeated.ids == ("p1", "p1")
    assert repeated.mask.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert population.with_covariates(["age"]).covariates.keys() == {"age"}
    with pytest.raises(DataError, match="Did you mean 'wt'"):
        population.with_covariates(["wgt"])


def test_with_covariates_keeps_the_observations_of_a_selection() -> None:
    def patient(name: str, count: int, label: str, compartment: str) -> list[dict[str, Any]]:
        dose = dict(id=name, amt=5, evid=1, cmt=compartment, age=0, dvid=label)
        return [
            dose,
            *(dict(id=name, time=k, dv=k, cmt=".", age=k % 4, dvid=label) for k in range(1, count + 1)),
        ]

    rows = patient("a", 2, "cp", "depot") + patient("b", 4, "pca", "central") + patient("c", 6, "cp", "gut")
    whole = Population.from_table(frame(rows))
    assert whole.covariates["age"].varies
    for index in ([0, 1], [1], [1, 1, 0], [0, 1, 2]):
        chosen = whole.select(index)
        for names in ([], ["age"]):
            lean = chosen.with_covariates(names)
            assert (lean.ids, lean.dvids, lean.compartments) == (chosen.ids, whole.dvids, whole.compartments)
            for name in ("time", "dv", "mask", "dvid", "row"):
                assert torch.equal(getattr(lean, name), getattr(chosen, name)), name
            pd.testing.assert_frame_equal(lean.table, chosen.table)
        lean = chosen.with_covariates([])
        expected = whole.with_covariates([]).select(index)
        assert same(lean, expected)
        assert walked(lean) == pytest.approx(walked(chosen), rel=1e-12)
        assert lean.select([0]).sha256 == chosen.select([0]).sha256
    assert len(whole.select([]).with_covariates([])) == 0


def test_with_covariates_widens_a_covariate_that_still_varies() -> None:
    rows = [dict(id=n, time=k, dv=1.0, wt=70 + k, n=k * k) for n, m in ((1, 2), (2, 4)) for k in range(m)]
    whole = Population.from_table(frame(rows), "locf", warn=False)
    lean = whole.select([0]).with_covariates(["wt"])
    assert lean.covariates["wt"].observation.tolist() == [[70, 71, 71, 71]]
    assert lean.segment.tolist() == [[0, 1, 1, 1]]
    assert lean.covariates["wt"].segment.shape == lean.events.time.shape


def test_covariates_by_name() -> None:
    assert list(Population.from_table(UNEQUAL, covariates=["WT"], warn=False).covariates) == ["wt"]
    for names, says in (
        (["wgt"], "'wgt'. Did you mean 'wt'"),
        ("wt", r"write \['wt'\]"),
        (["dv"], "got 'dv'"),
    ):
        with pytest.raises(DataError, match=says):
            Population.from_table(UNEQUAL, covariates=names, warn=False)
    with pytest.raises(DataError, match=r"write \['wt'\]"):
        Population.from_table(UNEQUAL, warn=False).with_covariates("wt")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ([0.7, 1.2], "whole numbers"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
        (["p1"], "whole numbers"),
        (2, "whole numbers"),
        ([[0], [1]], "whole numbers"),
        ([True, False], "each of the 4 subjects, got 2"),
        (torch.ones(5, dtype=torch.bool), "each of the 4 subjects, got 5"),
    ],
)
def test_select_refuses_what_is_no_position(population: Population, index: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        population.select(index)
    assert population.select([True, False, False, True]).ids == ("p1", "p4")
    assert population.select(np.array([3, 0], dtype=np.uint16)).ids == ("p4", "p1")
    assert population.select([]).ids == ()


@pytest.mark.parametrize("name", ["F1", "D1", "S2", "R1", "ALAG1", "TLAG", "tinf"])
def test_columns_that_mean_something_elsewhere_are_covariates_with_a_warning(name: str) -> None:
    table = frame([dict(amt=1, evid=1), dict(time=1)])
    with pytest.warns(DataWarning, match=f"{name} is read as a covariate only.*rename={{'{name}': 'drop'}}"):
        population = Population.from_table(table.assign(**{name: [0.5, 0.5]}))
    assert list(population.covariates) == [name.lower()]
    Population.from_table(table.assign(**{name: 0.0}))  # not used: nothing to say
    Population.from_table(table.assign(**{name: 0.5}), covariates=[name])  # asked for: nothing to say


def test_table_and_hash(population: Population) -> None:
    copy = population.to_table()
    copy["dv"] = 0.0
    assert population.table["dv"].iloc[1] == 1.5
    again = Population.from_table(population.to_table(), warn=False)
    assert same(population, again)
    text = UNEQUAL.to_csv(index=False, na_rep=".", lineterminator="\n", float_format="%g")
    assert population.sha256 == again.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert (
        Population.from_table(UNEQUAL.assign(wt=UNEQUAL.wt.astype(float)), warn=False).sha256 == again.sha256
    )
    assert Population.from_table(UNEQUAL.assign(wt=UNEQUAL.wt + 1), warn=False).sha256 != again.sha256


def test_representations(population: Population) -> None:
    text, html = repr(population), population._repr_html_()
    for words in (
        "4",
        "6 (0 to 3 a subject)",
        "1 to 9 h",
        "amount 5 to 20 mg",
        "wt 50 to 70, constant",
        "varies in time",
    ):
        assert words in text
        assert words in html
    odd = Population.from_table(UNEQUAL.rename(columns={"wt": "<b>"}), warn=False)
    assert "&lt;b&gt;" in odd._repr_html_()


def test_pickles(population: Population) -> None:
    again = pickle.loads(pickle.dumps(population))
    assert same(population, again)
    assert again.sha256 == population.sha256


def test_endpoints_by_number_and_name() -> None:
    table = frame(
        [dict(amt=1, evid=1, dvid=0), dict(time=1, dvid=2), dict(time=2, dvid=1), dict(time=3, dvid=2)]
    )
    population = Population.from_table(table)
    assert population.dvids == (1, 2)
    assert population.dvid.tolist() == [[1, 0, 1]]
    named = Population.from_table(table.assign(dvid=[None, "pca", "cp", "pca"]))
    assert named.dvids == ("pca", "cp")
    assert named.dvid.tolist() == [[0, 1, 0]]
    assert Population.from_table(table.drop(columns="dvid")).dvids == (1,)
    assert "1: 1, 2: 2" in repr(population)


def test_evid_is_derived_from_amount_and_mdv() -> None:
    table = pd.DataFrame(
        {"id": 1, "time": [0, 1, 2, 3], "amt": [9, 0, None, 0], "dv": [None, 1, 2, 3], "mdv": [1, 0, 0, 1]}
    )
    population = Population.from_table(table)
    assert (population.n_doses, population.n_observations) == (1, 2)
    bare = Population.from_table(table.drop(columns="mdv"))
    assert (bare.n_doses, bare.n_observations) == (1, 3)


def test_columns_of_a_fit_and_text_are_no_covariates() -> None:
    extra = dict(
        pred=[None, 1.0],
        cwres=[None, 0.1],
        eta_cl=[0.1, 0.1],
        true_v=[8.0, 8.0],
        site=["A", None],
        note=[None, None],
        smoker=[True, False],
    )
    table = frame([dict(amt=1, evid=1), dict(time=1)]).assign(**extra)
    population = Population.from_table(table)
    assert list(population.covariates) == ["smoker"]
    assert population.covariates["smoker"].observation.tolist() == [[0.0]]
    assert {"pred", "cwres", "site", "note"} <= set(population.table.columns)


def test_used_twice_an_occasion_is_refused_but_one_occasion_is_none() -> None:
    table = frame([dict(amt=1, evid=1, occ=1), dict(time=1, occ=1)])
    assert Population.from_table(table).covariates == {}


def test_mixed_column_stays_text_with_a_warning() -> None:
    table = frame([dict(amt=1, evid=1), dict(time=1)]).assign(dose_group=["10", "placebo"])
    with pytest.warns(DataWarning, match="dose_group mixes numbers with text \\('placebo' on line 3\\)"):
        population = Population.from_table(table)
    assert "dose_group" not in population.covariates
    assert population.table["dose_group"].tolist() == ["10", "placebo"]
