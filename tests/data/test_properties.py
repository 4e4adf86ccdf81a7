"""Properties of any table: what must not change when the same records are written differently."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from data.tables import frame, superposed, walked
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nlmegen.data.events import Kind
from nlmegen.data.nonmem import read_nonmem, write_nonmem
from nlmegen.data.population import Population

pytestmark = pytest.mark.filterwarnings("ignore::nlmegen.data.columns.DataWarning")

TIMES = st.integers(0, 96).map(lambda k: k / 4)
AMOUNTS = st.integers(1, 800).map(lambda k: k / 8)


@st.composite
def record(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(("observation", "bolus", "infusion", "other", "reset", "reset-dose")))
    row: dict[str, Any] = dict(time=draw(TIMES))
    if kind == "observation":
        return row | dict(dv=draw(st.floats(-1e6, 1e6)))
    if kind in ("other", "reset"):
        return row | dict(evid=2 if kind == "other" else 3)
    row |= dict(evid=4 if kind == "reset-dose" else 1, amt=draw(AMOUNTS))
    if kind == "infusion":
        row["rate"] = draw(AMOUNTS)
    if draw(st.booleans()):
        row |= dict(addl=draw(st.integers(1, 6)), ii=draw(TIMES.filter(bool)))
    return row


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        weight = draw(st.sampled_from((50.0, 62.5, 70.0)))
        for row in sorted(draw(st.lists(record(), min_size=1, max_size=9)), key=lambda row: row["time"]):
            weight = draw(st.sampled_from((weight, weight, 80.0)))
            rows.append(dict(id=f"s{number}", **row, wt=weight))
    return frame(rows)


RULES = st.sampled_from(("nonmem", "locf", "linear"))


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
@given(
    amount=AMOUNTS, rate=st.sampled_from((0.0, 2.5, 40.0)), number=st.integers(0, 5), every=TIMES.filter(bool)
)
def test_additional_doses_equal_doses_written_out(
    amount: float, rate: float, number: int, every: float
) -> None:
    last = dict(time=number * every + 3.3, dv=2.0)
    short = frame([dict(amt=amount, rate=rate, evid=1, addl=number, ii=every if number else 0.0), last])
    long = frame([*(dict(time=k * every, amt=amount, rate=rate, evid=1) for k in range(number + 1)), last])
    one, other = (Population.from_table(table, warn=False) for table in (short, long))
    for name, values in vars(one.events).items():
        assert torch.equal(values, getattr(other.events, name)), name
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
    assert walked(one) == pytest.approx(walked(other), rel=1e-12)


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
