"""Amounts of linear systems in sixty digits: matrix exponentials of mpmath, events applied by hand, differences.

Shares no formula with the package: no modes, no divided differences, no recurrences over tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath as mp
import numpy as np
import torch
from torch import Tensor

from nlmegen.structure.closed import Closed

DIGITS = 60
STEP = mp.mpf(10) ** -16

Event = tuple[float, str, float, str]
"""Time, what ("bolus", "rate" or "reset"), amount or change of the rate, compartment."""


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


def amounts(structure: Closed, p: Mapping[str, Any], events: Sequence[Event], times: Sequence[float]) -> list[Any]:
    """Amounts at each time, a column of numbers a time; events at a time come before an observation at that time."""
    a, names = flow_matrix(structure, p), list(structure.compartments)
    c = len(names)
    x, rate, now = mp.zeros(c, 1), mp.zeros(c, 1), mp.mpf(events[0][0])
    out, pending = [], list(events)

    def advanced(to: Any) -> Any:
        if to == now:
            return x.copy()
        whole = mp.zeros(c + 1)
        whole[:c, :c], whole[:c, c] = a, rate
        state = mp.zeros(c + 1, 1)
        state[:c, 0], state[c] = x, 1
        return (mp.expm(whole * (to - now)) * state)[:c, 0]

    for t in times:
        while pending and pending[0][0] <= t:
            when, what, size, where = pending.pop(0)
            x, now = advanced(mp.mpf(when)), mp.mpf(when)
            if what == "bolus":
                x[names.index(where)] += mp.mpf(size)
            elif what == "rate":
                rate[names.index(where)] += mp.mpf(size)
            else:
                x, rate = mp.zeros(c, 1), mp.zeros(c, 1)
        out.append(list(advanced(mp.mpf(t))))
    return out


def in_log_parameters(
    structure: Closed, values: Mapping[str, float], events: Sequence[Event], times: Sequence[float]
) -> Callable[[Sequence[Any]], Any]:
    """The amounts `[compartment, time]` as a function of shifts of the log parameters."""

    def f(shift: Sequence[Any]) -> Any:
        p = {k: mp.mpf(values[k]) * mp.exp(s) for k, s in zip(structure.parameters, shift, strict=True)}
        return np.array(amounts(structure, p, events, times), dtype=object).T

    return f


def derivatives(f: Callable[[Sequence[Any]], Any], q: int, order: int = 2) -> tuple[Tensor, Tensor, Tensor | None]:
    """Value, Jacobian `[q, ...]` and Hessian `[q, q, ...]` of f at 0, by central differences in sixty digits."""
    with mp.workdps(DIGITS):
        unit = [[STEP if i == j else mp.mpf(0) for j in range(q)] for i in range(q)]

        def at(*moves: tuple[int, int]) -> Any:
            return f([sum((s * unit[i][k] for i, s in moves), mp.mpf(0)) for k in range(q)])

        value = at()
        plus, minus = [at((i, 1)) for i in range(q)], [at((i, -1)) for i in range(q)]
        jac = [(a - b) / (2 * STEP) for a, b in zip(plus, minus, strict=True)]
        if order == 1:
            return _tensor(value), _tensor(np.array(jac)), None
        hess = np.empty((q, q, *value.shape), dtype=object)
        for i in range(q):
            hess[i, i] = (plus[i] - 2 * value + minus[i]) / STEP**2
            for j in range(i):
                corners = at((i, 1), (j, 1)) + at((i, -1), (j, -1)) - at((i, 1), (j, -1)) - at((i, -1), (j, 1))
                hess[i, j] = hess[j, i] = corners / (4 * STEP**2)
        return _tensor(value), _tensor(np.array(jac)), _tensor(hess)


def _tensor(x: Any) -> Tensor:
    return torch.tensor(np.vectorize(float)(x), dtype=torch.float64)
