"""Dosing histories of every kind, told as records and by hand, and a page whose likelihood they leave exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from problems import F64, Exact
from torch import exp
from torch.distributions import MultivariateNormal

import nlmegen as nl


class LogDose(nl.Model):
    """A bolus or infusion into one compartment, eta on the volume: log y = log g(t) - log tvv - eta.v + eps.

    The rate constant k = tvk (wt / 70)^power has no eta, so that g, the amount, is known for each subject and log y is
    Gaussian whatever the doses, resets and covariates were.
    """

    tvk = nl.Theta(0.15, lower=0)
    tvv = nl.Theta(20.0, lower=0)
    power = nl.Theta(1.5)
    iiv = nl.Omega(v=0.2)
    cp = nl.LogNormal(0.3)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        v = theta.tvv * exp(eta.v)
        return dict(v=v, cl=theta.tvk * (cov.wt / 70) ** theta.power * v)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


Dose = tuple[float, float, float]
"""Time, amount, duration (0: a bolus)."""


@dataclass(frozen=True)
class History:
    """One patient of `LogDose`, told twice: as doses and steps of weight, and as records of a NONMEM table.

    Attributes:
        doses: every single dose given.
        weights: (until when, weight): the weight that governs the interval that ends there.
        times: of the observations.
        records: rows of dosing records; "wt" is filled in.
        reset: time at which the system is emptied, or None.
    """

    doses: Sequence[Dose]
    weights: Sequence[tuple[float, float]]
    times: Sequence[float]
    records: Sequence[dict[str, float]]
    reset: float | None = None

    def weight(self, t: float) -> float:
        """The weight that governs the interval ending at t."""
        return next(w for until, w in self.weights if t <= until)


HISTORIES = {
    "bolus": History([(0, 100, 0)], [(99, 60)], (1, 4, 9, 20), [dict(time=0, amt=100)]),
    "additional doses": History(
        [(0, 100, 0), (6, 100, 0), (12, 100, 0), (18, 100, 0)],
        [(99, 80)],
        (1, 5.5, 6.5, 13, 17, 30),
        [dict(time=0, amt=100, addl=3, ii=6)],
    ),
    "infusion": History([(0, 100, 4)], [(99, 70)], (1, 3.5, 5, 12), [dict(time=0, amt=100, rate=25)]),
    "overlapping infusions": History(
        [(0, 100, 8), (5, 60, 6), (2, 30, 0)],
        [(99, 75)],
        (1, 4, 6, 7.5, 9, 10.5, 15),
        [dict(time=0, amt=100, rate=12.5), dict(time=2, amt=30), dict(time=5, amt=60, rate=10)],
    ),
    "additional infusions": History(
        [(0, 80, 3), (8, 80, 3)],
        [(99, 65)],
        (2, 5, 9, 12, 20),
        [dict(time=0, amt=80, rate=80 / 3, addl=1, ii=8)],
    ),
    "weight in steps": History(
        [(0, 100, 0), (7, 50, 0)],
        [(3, 60), (7, 90), (99, 40)],
        (3, 7.5, 14),
        [dict(time=0, amt=100), dict(time=7, amt=50)],
    ),
    "reset": History(
        [(0, 100, 10), (6, 70, 0)],
        [(99, 70)],
        (2, 4, 7, 12),
        [dict(time=0, amt=100, rate=10, addl=3, ii=7), dict(time=6, amt=70, evid=4)],
        reset=6,
    ),
}
"""Each rule of dosing has a patient of its own; values by hand."""


def amount_left(history: History, t: float, rate: Callable[[float], float]) -> float:
    """The amount at time t by superposition; `rate(t)` is the rate constant of the interval that ends at t.

    Each dose decays by exp(-k dt) over pieces of constant k; an infusion is followed piece by piece,
    a' = r - k a.
    """
    cuts = sorted({0.0, t, *(u for u, _ in history.weights if u < t)})
    total = 0.0
    for start, amount, duration in history.doses:
        if start > t or (history.reset is not None and start < history.reset <= t):
            continue
        stop = start + duration
        marks = sorted({start, *(x for x in (*cuts, stop) if start < x <= t)})
        a = 0.0 if duration else amount
        for left, right in zip(marks, marks[1:], strict=False):
            k, span = rate(right), right - left
            inflow = amount / duration if duration and right <= stop + 1e-12 else 0.0
            a = a * math.exp(-k * span) + inflow / k * (1 - math.exp(-k * span))
        total += a
    return total


@lru_cache(maxsize=1)
def log_dose_frame() -> tuple[pd.DataFrame, tuple[tuple[str, tuple[float, ...]], ...]]:
    """The table of all `HISTORIES` (two patients each), and log g of each patient's observations."""
    rng = np.random.default_rng(11)
    rows: list[dict[str, Any]] = []
    log_amounts = []
    for number, (name, history) in enumerate(list(HISTORIES.items()) * 2):
        logs = []
        effect = rng.normal(0, math.sqrt(0.2))
        for record in history.records:
            rows.append(
                {"id": number + 1, "evid": 1, "dv": np.nan, "rate": 0.0, "addl": 0, "ii": 0.0, **record}
                | {"wt": history.weight(record["time"])}
            )
        for t in history.times:
            g = amount_left(history, t, lambda u, h=history: 0.15 * (h.weight(u) / 70) ** 1.5)  # type: ignore[misc]
            logs.append(math.log(g))
            y = math.exp(logs[-1] - math.log(20.0) - effect + 0.3 * rng.normal())
            rows.append(
                {
                    "id": number + 1,
                    "evid": 0,
                    "dv": y,
                    "rate": 0.0,
                    "addl": 0,
                    "ii": 0.0,
                    "time": t,
                    "amt": 0.0,
                }
                | {"wt": history.weight(t)}
            )
        log_amounts.append((name, tuple(logs)))
    frame = pd.DataFrame(rows).sort_values(["id", "time"], kind="stable").reset_index(drop=True)
    return frame, tuple(log_amounts)


def log_dose_problem() -> nl.Problem:
    """`LogDose` bound to the table of all histories."""
    return nl.Problem(LogDose(), nl.read_nonmem(log_dose_frame()[0]))


def exact_log_dose() -> Exact:
    """log p(y), posterior mean and variance of eta.v of every patient at the declared values."""
    frame, log_amounts = log_dose_frame()
    logs, means, variances = [], [], []
    for number, (_, log_g) in enumerate(log_amounts):
        dv = frame.loc[(frame["id"] == number + 1) & (frame["evid"] == 0), "dv"].to_numpy()
        y, mean = torch.tensor(np.log(dv), dtype=F64), torch.tensor(log_g, dtype=F64) - math.log(20.0)
        marginal = 0.2 * torch.ones(len(y), len(y), dtype=F64) + 0.09 * torch.eye(len(y), dtype=F64)
        logs.append(MultivariateNormal(mean, marginal).log_prob(y) - y.sum())
        variances.append(1 / (1 / 0.2 + len(y) / 0.09))
        means.append(-variances[-1] * float((y - mean).sum()) / 0.09)
    return Exact(
        torch.stack(logs),
        torch.tensor(means, dtype=F64)[:, None],
        torch.tensor(variances, dtype=F64)[:, None, None],
    )
