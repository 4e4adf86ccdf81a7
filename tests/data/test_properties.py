"""Properties of any table: what must not change when the same records are written differently."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data.tables import (
    AMOUNTS,
    INTERVALS,
    RULES,
    frame,
    superposed,
    tables,
    walked,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nlmegen.data.events import Kind
from nlmegen.data.nonmem import read_nonmem, write_nonmem
from nlmegen.data.population import Population

pytestmark = pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")


@settings(max_examples=60)
@given(table=tables(), rule=RULES)
def test_walking_along_the_events_gives_the_superposition(table: pd.DataFrame, rule: str) -> None:
    population = Population.from_table(table, rule, warn=False)
    assert walked(population) == pytest.approx(superposed(table), rel=1e-10, abs=1e-10)


@settings(max_examples=30)
@given(table=tables(), rule=RULES)
def test_round_trip_through_a_file(table: pd.DataFrame, rule: str) -> None:
    population = Population.from_table(table, rule, warn=False)
    with tempfile.TemporaryDirectory() as folder:
        again = read_nonmem(write_nonmem(population, Path(folder) / "table.csv"), interpolation=rule)
    pd.testing.assert_frame_equal(again.table, population.table)
    assert again.sha256 == population.sha256
    assert torch.equal(again.events.time, population.events.time)
    assert torch.equal(again.dv, population.dv)


@settings(max_examples=30)
@given(table=tables(), rule=RULES, data=st.data())
def test_permuting_subjects_permutes_rows(table: pd.DataFrame, rule: str, data: st.DataObject) -> None:
    population = Population.from_table(table, rule, warn=False)
    order = data.draw(st.permutations(range(len(population))))
    permuted = pd.concat([table[table.id == population.ids[k]] for k in order], ignore_index=True)
    direct, selected = Population.from_table(permuted, rule, warn=False), population.select(order)
    assert direct.ids == selected.ids
    for name in ("time", "dv", "mask", "segment", "row"):
        assert torch.equal(getattr(direct, name), getattr(selected, name))
    for name, values in vars(direct.events).items():
        assert torch.equal(values, getattr(selected.events, name))
    for name, covariate in direct.covariates.items():
        assert torch.equal(covariate.segment, selected.covariates[name].segment)


@settings(max_examples=30)
@given(table=tables(), rule=RULES)
def test_company_only_adds_padding(table: pd.DataFrame, rule: str) -> None:
    together = Population.from_table(table, rule, warn=False)
    for n, name in enumerate(together.ids):
        alone = Population.from_table(table[table.id == name], rule, warn=False)
        width, events = int(alone.mask.sum()), int((alone.events.kind != Kind.PAD).sum())
        assert int(together.mask[n].sum()) == width
        assert int((together.events.kind[n] != Kind.PAD).sum()) == events
        assert torch.equal(together.dv[n, :width], alone.dv[0, :width])
        assert torch.equal(together.segment[n, :width], alone.segment[0, :width])
        assert torch.equal(together.events.time[n, :events], alone.events.time[0, :events])
        assert torch.equal(together.events.rate[n, :events], alone.events.rate[0, :events])
        assert not together.events.amount[n, events:].any()
        assert not together.events.rate[n, events:].any()
        assert (together.events.time[n, events:] == together.events.time[n, events - 1]).all()


@settings(max_examples=40)
@given(amount=AMOUNTS, rate=st.sampled_from((0.0, 2.5, 40.0)), number=st.integers(0, 5), every=INTERVALS)
def test_additional_doses_equal_doses_written_out(
    amount: float, rate: float, number: int, every: float
) -> None:
    last = dict(time=number * every + 3.3, dv=2.0)
    short = frame([dict(amt=amount, rate=rate, evid=1, addl=number, ii=every if number else 0.0), last])
    long = frame([*(dict(time=k * every, amt=amount, rate=rate, evid=1) for k in range(number + 1)), last])
    one, other = (Population.from_table(table, warn=False) for table in (short, long))
    for name, values in vars(one.events).items():
        assert name == "additional" or torch.equal(values, getattr(other.events, name)), name
    assert torch.equal(one.segment, other.segment)


@settings(max_examples=40)
@given(rate=st.integers(1, 50), parts=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_a_split_infusion_is_the_same_infusion(rate: int, parts: list[int]) -> None:
    ends = np.cumsum(parts)
    whole = frame(
        [dict(amt=rate * ends[-1], rate=rate, evid=1), dict(time=float(ends[-1]) / 2), dict(time=500)]
    )
    pieces = [
        dict(time=float(e - p), amt=rate * p, rate=rate, evid=1) for p, e in zip(parts, ends, strict=True)
    ]
    rows = sorted([*pieces, dict(time=float(ends[-1]) / 2), dict(time=500)], key=lambda row: row["time"])
    one, other = (Population.from_table(table, warn=False) for table in (whole, frame(rows)))
    for population in (one, other):
        assert population.events.rate.sum() == 0
        lengths = population.events.time.diff(dim=1)
        running = population.events.rate.cumsum(1)[:, :-1]
        assert (lengths * running).sum() == rate * ends[-1]
    assert walked(one) == pytest.approx(walked(other), rel=1e-11)


@settings(max_examples=30)
@given(table=tables(), rule=RULES)
def test_segments_are_ordered_and_finite(table: pd.DataFrame, rule: str) -> None:
    population = Population.from_table(table, rule, warn=False)
    kind, step = population.events.kind, population.events.time.diff(dim=1)
    assert ((step >= 0) | (kind[:, 1:] == Kind.RESET)).all()
    assert (kind[:, 0] != Kind.PAD).all()
    assume(bool(population.mask.any()))
    assert (population.segment >= 0).all()
    assert (population.segment < (kind != Kind.PAD).sum(1, keepdim=True)).all()
    assert (population.time - population.events.time.gather(1, population.segment) >= 0).all()


@settings(max_examples=30)
@given(table=tables(), rule=RULES, shift=st.integers(-400, 400).map(lambda k: k / 4))
def test_shifting_time_shifts_events_alone(table: pd.DataFrame, rule: str, shift: float) -> None:
    one = Population.from_table(table, rule, warn=False)
    other = Population.from_table(table.assign(time=table["time"] + shift), rule, warn=False)
    for name, values in vars(one.events).items():
        moved = values + shift if name in ("time", "given") else values
        torch.testing.assert_close(getattr(other.events, name), moved, rtol=1e-12, atol=1e-12)
    assert torch.equal(one.segment, other.segment)
    assert walked(other) == pytest.approx(walked(one), rel=1e-8, abs=1e-8)


@settings(max_examples=30)
@given(table=tables(), rule=RULES, data=st.data())
def test_the_order_of_columns_changes_nothing(table: pd.DataFrame, rule: str, data: st.DataObject) -> None:
    one = Population.from_table(table, rule, warn=False)
    other = Population.from_table(table[data.draw(st.permutations(list(table.columns)))], rule, warn=False)
    for name in ("time", "dv", "mask", "segment", "row", "cens", "lower", "upper", "lloq", "l2"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True)
    for name, values in vars(one.events).items():
        assert torch.equal(values, getattr(other.events, name)), name
    assert one.covariates.keys() == other.covariates.keys()


@settings(max_examples=30)
@given(table=tables(), data=st.data())
def test_simultaneous_records_act_in_the_order_of_the_file(table: pd.DataFrame, data: st.DataObject) -> None:
    """All records at one time: every order of them is the superposition in that order."""
    together = table.assign(time=5.0, addl=0)
    order = data.draw(st.permutations(range(len(table))))
    mixed = together.iloc[order].sort_values("id", kind="stable").reset_index(drop=True)
    assert walked(Population.from_table(mixed, warn=False)) == pytest.approx(
        superposed(mixed), rel=1e-10, abs=1e-10
    )


@settings(max_examples=30)
@given(table=tables(), rule=RULES)
def test_flags_levels_and_occasions_survive_a_selection(table: pd.DataFrame, rule: str) -> None:
    whole = Population.from_table(table, rule, warn=False)
    index = list(range(len(whole)))[::-1]
    lean = whole.with_covariates([]).select(index)
    for name in ("cens", "lower", "upper", "lloq", "uloq", "l2"):
        torch.testing.assert_close(
            getattr(lean, name), getattr(whole, name)[index], rtol=0, atol=0, equal_nan=True
        )
    turned = pd.concat([table[table.id == name] for name in lean.ids], ignore_index=True)
    assert walked(lean) == pytest.approx(superposed(turned), rel=1e-10, abs=1e-10)
    if whole.occasions is not None:
        assert lean.occasions is not None
        assert torch.equal(lean.occasions.observation, whole.occasions.observation[index])
    one = whole.with_covariates([], occasions=False)
    assert one.occasions is None
    assert walked(one) == pytest.approx(walked(whole), rel=1e-10, abs=1e-10)
