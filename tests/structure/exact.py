"""Amounts of linear systems in fifty digits: matrix exponentials of mpmath, events applied by hand.

Shares no formula with the package: no modes, no divided differences, no recurrences over tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mpmath as mp
import numpy as np
import torch
from torch import Tensor

from nlmegen.structure.closed import Closed

DIGITS = 50
STEP = "1e-9"  # of differences: 1e-18 of error in fifty digits that lose at most thirty

Event = tuple[float, str, float, str]
"""Time, what ("bolus", "rate", "reset", "change"), amount or change of the rate, compartment."""


def flow_matrix(structure: Closed, p: Mapping[str, Any]) -> Any:
    """A of dx/dt = A x, written from the flows of the system."""
    names = list(structure.compartments)
    a = mp.zeros(len(names))

    def flow(source: str, target: str | None, rate: Any) -> None:
        j = names.index(source)
        a[j, j] -= rate
        if target is not None:
            a[names.index(target), j] += rate

    flow("central", None, p["cl"] / p["v"])
    if "depot" in names:
        flow("depot", "central", p["ka"])
    for peripheral, q, v in (("peripheral", "q", "v2"), ("peripheral2", "q3", "v3")):
        if peripheral in names:
            flow("central", peripheral, p[q] / p["v"])
            flow(peripheral, "central", p[q] / p[v])
    return a


def amounts(
    structure: Closed, p: Sequence[Mapping[str, Any]], events: Sequence[Event], times: Sequence[float]
) -> Any:
    """Amounts `[compartment, time]`, as an array of mpmath numbers.

    Args:
        structure: whose compartments and parameters.
        p: parameters in the segment that each event opens.
        events: in order; those at the time of an observation come before it.
        times: of observations, in order.
    """
    names = list(structure.compartments)
    c = len(names)
    x, rate, now = mp.zeros(c, 1), mp.zeros(c, 1), mp.mpf(events[0][0])
    a = flow_matrix(structure, p[0])
    out, done = [], 0

    def advanced(to: Any) -> Any:
        if to == now:
            return x.copy()
        whole = mp.zeros(c + 1)
        whole[:c, :c], whole[:c, c] = a, rate
        state = mp.zeros(c + 1, 1)
        state[:c, 0], state[c] = x, 1
        return (mp.expm(whole * (to - now)) * state)[:c, 0]

    for t in times:
        while done < len(events) and events[done][0] <= t:
            when, what, size, where = events[done]
            x, now = advanced(mp.mpf(when)), mp.mpf(when)
            if what == "bolus":
                x[names.index(where)] += mp.mpf(size)
            elif what == "rate":
                rate[names.index(where)] += mp.mpf(size)
            elif what == "reset":
                x, rate = mp.zeros(c, 1), mp.zeros(c, 1)
            a, done = flow_matrix(structure, p[done]), done + 1
        out.append(list(advanced(mp.mpf(t))))
    return np.array(out, dtype=object).T


def along(
    structure: Closed,
    values: Sequence[Mapping[str, float]],
    events: Sequence[Event],
    times: Sequence[float],
    direction: Sequence[float],
) -> list[Tensor]:
    """Amounts and their first three derivatives `[compartment, time]` as all log parameters move along `direction`."""
    with mp.workdps(DIGITS):
        h = mp.mpf(STEP)

        def at(k: int) -> Any:
            moved = [
                {
                    name: mp.mpf(p[name]) * mp.exp(k * h * mp.mpf(d))
                    for name, d in zip(structure.parameters, direction, strict=True)
                }
                for p in values
            ]
            return amounts(structure, moved, events, times)

        x = {k: at(k) for k in (-2, -1, 0, 1, 2)}
        first = (x[1] - x[-1]) / (2 * h)
        second = (x[1] - 2 * x[0] + x[-1]) / h**2
        third = (x[2] - 2 * x[1] + 2 * x[-1] - x[-2]) / (2 * h**3)
        return [torch.from_numpy(d.astype(float)) for d in (x[0], first, second, third)]
