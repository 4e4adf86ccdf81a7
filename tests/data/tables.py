"""Tables for the tests of the data room, and an amount in the body computed without its code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import strategies as st
from torch import Tensor

from nlmegen.data.events import Kind
from nlmegen.data.population import Population

ELIMINATION = 0.13  # per time unit
PAGE_RATE, PAGE_DURATION = 7.0, 2.5  # what a page would give for RATE -1 and -2
TIMES = st.integers(0, 96).map(lambda k: k / 4)
AMOUNTS = st.integers(1, 800).map(lambda k: k / 8)
INTERVALS = TIMES.filter(bool)
RULES = st.sampled_from(("nonmem", "locf", "linear"))
PLAIN = ("observation", "bolus", "infusion", "other", "reset", "reset-dose")
WHOLE = (*PLAIN, "modelled", "steady bolus", "steady infusion", "steady modelled", "constant", "off", "on")


@st.composite
def records(draw: st.DrawFn, kinds: tuple[str, ...] = PLAIN) -> dict[str, Any]:
    """One record without its subject."""
    kind = draw(st.sampled_from(kinds))
    row: dict[str, Any] = dict(time=draw(TIMES))
    if kind == "observation":
        return row | dict(dv=draw(st.floats(-1e6, 1e6)))
    if kind in ("other", "reset"):
        return row | dict(evid=2 if kind == "other" else 3)
    if kind in ("off", "on"):
        return row | dict(evid=2, cmt=-1 if kind == "off" else 1)
    row |= dict(evid=4 if kind == "reset-dose" or draw(st.integers(0, 9)) == 0 else 1)
    if kind == "constant":
        return row | dict(rate=draw(AMOUNTS), ss=draw(st.sampled_from((1, 2))))
    row |= dict(amt=draw(AMOUNTS))
    if kind.endswith("infusion"):
        row["rate"] = draw(AMOUNTS)
    if kind.endswith("modelled"):
        row["rate"] = draw(st.sampled_from((-1.0, -2.0)))
    if kind.startswith("steady"):
        row |= dict(ss=draw(st.sampled_from((1, 2))), ii=draw(INTERVALS))
    if draw(st.booleans()):
        row |= dict(addl=draw(st.integers(1, 6)), ii=draw(INTERVALS))
    return row


@st.composite
def plain_tables(draw: st.DrawFn, kinds: tuple[str, ...] = PLAIN) -> pd.DataFrame:
    """Valid tables of 1 to 4 subjects with a covariate that may change in time."""
    rows: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 4))):
        weight = draw(st.sampled_from((50.0, 62.5, 70.0)))
        for row in sorted(
            draw(st.lists(records(kinds), min_size=1, max_size=9)), key=lambda row: row["time"]
        ):
            weight = draw(st.sampled_from((weight, weight, 80.0)))
            rows.append(dict(id=f"s{number}", **row, wt=weight))
    return frame(rows)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Valid tables with every event of the grammar, occasions, levels, groups, limits and flags."""
    table = draw(plain_tables(WHOLE))
    size = len(table)

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=size, max_size=size))

    if draw(st.booleans()):
        table["occ"] = column(st.integers(1, 3))
    if draw(st.booleans()):
        table["sex"] = column(st.sampled_from(("female", "male")))
    if draw(st.booleans()):
        table["l2"] = column(st.integers(0, 2))
    if draw(st.booleans()):
        table["lloq"] = column(st.sampled_from((np.nan, 0.5, 2.0)))
    if draw(st.booleans()):
        below = np.array(column(st.booleans())) & (table["evid"] == 0)
        limit = table["lloq"].fillna(1.0) if "lloq" in table else 1.0
        table = table.assign(cens=below.astype(int), dv=np.where(below, limit, table["dv"]))
    return table


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of records; what a row does not name is 0, DV is missing."""
    defaults: dict[str, Any] = dict(id=1, time=0.0, amt=0.0, dv=np.nan, evid=0, rate=0.0, addl=0, ii=0.0)
    for name, blank in (("ss", 0), ("cmt", 1)):
        if any(name in row for row in rows):
            defaults[name] = blank
    records = [{**defaults, **row} for row in rows]
    for record in records:
        if record["evid"] == 0 and math.isnan(record["dv"]):
            record["dv"] = 1.0
    return pd.DataFrame(records)


def superposed(table: pd.DataFrame) -> list[float]:
    """The amount of one compartment at each observation, one dose at a time from the records themselves.

    Rules used: simultaneous records in file order; an additional dose at a record's time comes before it; a reset, and
    a steady state with SS=1, removes every earlier dose, pending ones too; a steady state is that of all earlier doses
    of its series; a compartment that is switched off loses what was given so far.
    """
    found = []
    for _, subject in table.groupby("id", sort=False):
        given: list[tuple[float, float, float]] = []
        for record in subject.to_dict("records"):
            now, steady = record["time"], record.get("ss", 0)
            if record["evid"] in (3, 4) or steady == 1:
                given = []
            if record["evid"] == 2 and record.get("cmt", 0) < 0:
                given = [dose for dose in given if dose[0] > now]
            if record["evid"] in (1, 4):
                rate = _rate(record["rate"], record["amt"])
                if steady:
                    given += before(now, record["amt"], rate, record["ii"])
                for k in range(int(record["addl"]) + 1 if record["amt"] else 0):
                    given.append((now + k * record["ii"], record["amt"], rate))
            if record["evid"] == 0:
                found.append(sum(_remaining(now, *dose) for dose in given))
    return found


def before(now: float, amount: float, rate: float, interval: float) -> list[tuple[float, float, float]]:
    """The doses before a steady-state record that still matter, as (time, amount, rate)."""
    if not interval:  # a constant infusion that ends now: 400 time units are 52 time constants
        return [(now - 400.0, 400.0 * rate, rate)]
    reach = 330.0 + (amount / rate if rate else 0.0)
    return [(now - k * interval, amount, rate) for k in range(1, math.ceil(reach / interval) + 1)]


def _rate(rate: float, amount: float) -> float:
    """The rate of an infusion; a page would say PAGE_RATE for RATE -1 and PAGE_DURATION for RATE -2."""
    return {-1: PAGE_RATE, -2: amount / PAGE_DURATION}.get(rate, rate)


def _remaining(now: float, start: float, amount: float, rate: float) -> float:
    since = now - start
    if since < -1e-9:
        return 0.0
    if rate == 0:
        return amount * math.exp(-ELIMINATION * since)
    running = min(max(since, 0.0), amount / rate)
    return (
        rate
        / ELIMINATION
        * (1 - math.exp(-ELIMINATION * running))
        * math.exp(-ELIMINATION * (since - running))
    )


def walked(population: Population) -> list[float]:
    """The same amount, carried from event to event; what a steady state or a page adds is superposed."""
    events, found = population.events, []
    for n in range(len(population)):
        state, rate, opened = 0.0, 0.0, []
        beside: list[tuple[float, float, float]] = []
        for e in range(events.time.shape[1]):
            kind, now = int(events.kind[n, e]), float(events.time[n, e])
            if kind == Kind.PAD:
                break
            amount, change = float(events.amount[n, e]), float(events.rate[n, e])
            if kind == Kind.RESET:
                state, rate, beside = 0.0, 0.0, []
            elif opened:
                state = _advance(state, rate, now - opened[-1][0])
            if kind == Kind.BOLUS:
                state += amount
            elif kind == Kind.OFF or (kind == Kind.STEADY and int(events.steady[n, e]) == 1):
                state, rate, beside = 0.0, 0.0, []
            modelled = int(events.modelled[n, e])
            if kind == Kind.STEADY:
                of_page = change if not modelled else _rate(-modelled, amount)
                beside = beside + before(now, amount, of_page, float(events.interval[n, e]))
            elif modelled and kind == Kind.START:
                beside = [*beside, (now, amount, _rate(-modelled, amount))]
                assert int(events.kind[n, e + 1]) == Kind.STOP
                assert events.given[n, e + 1] == events.time[n, e + 1] == now
            elif kind in (Kind.START, Kind.STOP):
                rate += change
                if kind == Kind.STOP and change:
                    assert now == pytest.approx(float(events.given[n, e]) - amount / change, rel=1e-12)
            opened.append((now, state, rate, beside))
        for t, segment in _observations(population, n):
            start, amount, running, others = opened[segment]
            assert t >= start - 1e-9
            found.append(_advance(amount, running, t - start) + sum(_remaining(t, *dose) for dose in others))
    return found


def _advance(state: float, rate: float, length: float) -> float:
    assert length >= 0
    faded = math.exp(-ELIMINATION * length)
    return state * faded + rate / ELIMINATION * (1 - faded)


def _observations(population: Population, n: int) -> list[tuple[float, int]]:
    mask: Tensor = population.mask[n]
    return list(zip(population.time[n, mask].tolist(), population.segment[n, mask].tolist(), strict=True))
