"""Tables for the tests of the data room, and an amount in the body computed without its code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from nlmegen.data.events import Kind
from nlmegen.data.population import Population

ELIMINATION = 0.13  # per time unit


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table of records; what a row does not name is 0, DV is missing."""
    defaults: dict[str, Any] = dict(id=1, time=0.0, amt=0.0, dv=np.nan, evid=0, rate=0.0, addl=0, ii=0.0)
    records = [{**defaults, **row} for row in rows]
    for record in records:
        if record["evid"] == 0 and math.isnan(record["dv"]):
            record["dv"] = 1.0
    return pd.DataFrame(records)


def superposed(table: pd.DataFrame) -> list[float]:
    """The amount of one compartment at each observation, one dose at a time from the records themselves.

    Rules used: simultaneous records in file order; an additional dose at a record's time comes before it; a reset
    removes every earlier dose.
    """
    found = []
    for _, subject in table.groupby("id", sort=False):
        given: list[tuple[float, float, float]] = []
        for record in subject.to_dict("records"):
            if record["evid"] in (3, 4):
                given = []
            if record["evid"] in (1, 4):
                for k in range(int(record["addl"]) + 1):
                    given.append((record["time"] + k * record["ii"], record["amt"], record["rate"]))
            if record["evid"] == 0:
                found.append(sum(_remaining(record["time"], *dose) for dose in given))
    return found


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
    """The same amount, carried from event to event."""
    events, found = population.events, []
    for n in range(len(population)):
        state, rate, opened = 0.0, 0.0, []
        for e in range(events.time.shape[1]):
            kind = int(events.kind[n, e])
            if kind == Kind.PAD:
                break
            if kind == Kind.RESET:
                state, rate = 0.0, 0.0
            elif opened:
                state = _advance(state, rate, float(events.time[n, e]) - opened[-1][0])
            state += float(events.amount[n, e])
            rate += float(events.rate[n, e])
            opened.append((float(events.time[n, e]), state, rate))
        for t, segment in _observations(population, n):
            start, amount, running = opened[segment]
            assert t >= start - 1e-9
            found.append(_advance(amount, running, t - start))
    return found


def _advance(state: float, rate: float, length: float) -> float:
    assert length >= 0
    faded = math.exp(-ELIMINATION * length)
    return state * faded + rate / ELIMINATION * (1 - faded)


def _observations(population: Population, n: int) -> list[tuple[float, int]]:
    mask: Tensor = population.mask[n]
    return list(zip(population.time[n, mask].tolist(), population.segment[n, mask].tolist(), strict=True))
