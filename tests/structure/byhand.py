"""Small pages, records that do more than give a dose, and what they come to by scipy with the events applied by hand.

Nothing is shared with the package but the pages' right sides: steady states are roots of the one-interval map of scipy,
and derivatives are central differences of order four.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import root

from nlmegen.data.population import Population
from nlmegen.maths.taylor import Taylor, value_of
from nlmegen.model.named import Named
from nlmegen.structure.dose import Dose
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solver import Solver
from nlmegen.structure.stepped import Stepped

Event = tuple[float, str, float, str]
"""Time, what ("bolus", "rate" (a change), "off", "reset"), how much, where."""


class Linear:
    """A depot and a central compartment."""

    weights = torch.zeros(0, dtype=torch.float64)

    def initial(self, p: Any) -> dict[str, Any]:
        return {}

    def dosing(self, p: Any) -> dict[str, Any]:
        return {}

    def dynamics(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.k * a.central)


class Saturable(Linear):
    """Michaelis-Menten elimination."""

    def dynamics(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        c = a.central / p.v
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.vm * c / (p.km + c))


class Turnover(Linear):
    """A response with a baseline, whose production the drug inhibits."""

    def initial(self, p: Any) -> dict[str, Any]:
        return dict(effect=p.kin / p.kout)

    def dynamics(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        inhibited = p.kin * p.ic50 / (p.ic50 + a.central)
        return dict(
            depot=-p.ka * a.depot,
            central=p.ka * a.depot - p.k * a.central,
            effect=inhibited - p.kout * a.effect,
        )


def modelled(page: type[Linear]) -> type[Linear]:
    """The same page with lag, bioavailability, rate and duration of doses into both compartments."""

    def dosing(self: Any, p: Any) -> dict[str, Any]:
        return dict(
            depot=Dose(lag=p.lag, bioavailability=p.f, rate=p.rate, duration=p.duration),
            central=Dose(lag=p.lag2, bioavailability=p.f2, rate=p.rate, duration=p.duration),
        )

    return type(f"Modelled{page.__name__}", (page,), {"dosing": dosing})


VALUES: dict[str, float] = dict(ka=1.0, k=0.3, vm=18.0, v=20.0, km=0.5, kin=2.0, kout=0.5, ic50=10.0)
DOSES: dict[str, float] = dict(lag=0.7, f=0.8, lag2=0.3, f2=0.9, rate=21.0, duration=2.6)


@dataclass(frozen=True)
class Settled:
    """Doses given for ever: how much, into what, for how long (0 at once), how often, how late after the record."""

    amount: float
    place: str
    duration: float
    interval: float
    lag: float = 0.0


@dataclass(frozen=True)
class Case:
    """Records of one subject, and the same by hand.

    Attributes:
        name: for messages.
        page: the page.
        records: NONMEM's, in order.
        hand: from parameters to events in order, before observations of the same time.
        steady: from parameters to doses given for ever up to an event "steady" (by its `amount`, an index).
    """

    name: str
    page: type[Linear]
    records: Sequence[Mapping[str, Any]]
    hand: Callable[[Any], Sequence[Event]]
    steady: Callable[[Any], Sequence[Settled]] = lambda p: ()

    @cached_property
    def table(self) -> pd.DataFrame:
        blank = dict(id=1, amt=0.0, rate=0.0, evid=0, cmt="central", ss=0, ii=0.0, addl=0, dv=1.0)
        return pd.DataFrame([blank | dict(row) for row in self.records])

    @property
    def times(self) -> list[float]:
        return [float(row["time"]) for row in self.records if row.get("evid", 0) == 0]

    def structure(self, **settings: Any) -> Stepped:
        return Stepped(self.page(), Solver(**settings), Named)

    def schedule(self, structure: Stepped) -> Schedule:
        return Schedule.build(Population.from_table(self.table, warn=False), structure.compartments)

    def values(self, names: Sequence[str]) -> list[float]:
        return [(VALUES | DOSES)[name] for name in names]


def solved(case: Case, order: int, **settings: Any) -> tuple[Stepped, list[Any]]:
    """Amounts `[1, T]` by compartment, with derivatives in the logarithms of all parameters."""
    structure = case.structure(**settings)
    eta = torch.zeros(1, len(structure.parameters), dtype=torch.float64)
    parts = Taylor.seed(eta, order) if order else [eta[..., k : k + 1] for k in range(eta.shape[-1])]
    values = case.values(structure.parameters)
    p = {n: v * torch.exp(s) for n, v, s in zip(structure.parameters, values, parts, strict=True)}
    out = structure.solve(Named("p", p), case.schedule(structure))
    return structure, [out[name] for name in structure.compartments]


def parts(amounts: Sequence[Any], order: int) -> list[np.ndarray]:
    """Value, Jacobian, Hessian `[..., compartment, T]` of one subject."""
    value = torch.stack([value_of(x)[0] for x in amounts]).numpy()
    if order == 0:
        return [value]
    full = [x.full() for x in amounts]
    jac = torch.stack([x[1][:, 0] for x in full], 1).numpy()
    if order == 1:
        return [value, jac]
    return [value, jac, torch.stack([x.dense_hess()[:, :, 0] for x in amounts], 2).numpy()]


class Hand:
    """One case by scipy."""

    def __init__(self, case: Case) -> None:
        self.case, self.page = case, case.page()
        structure = case.structure(route="torch")
        self.names, self.compartments = structure.parameters, structure.compartments
        self.start = np.array(case.values(self.names))
        self.warm: dict[int, np.ndarray] = {}

    def initial(self, p: Any) -> np.ndarray:
        given = self.page.initial(p)
        return np.array([given.get(name, 0.0) for name in self.compartments])

    def flow(self, p: Any, x: np.ndarray, rate: np.ndarray, begin: float, end: float) -> np.ndarray:
        if end <= begin:
            return x

        def f(t: float, y: np.ndarray) -> np.ndarray:
            out = self.page.dynamics(t, SimpleNamespace(**dict(zip(self.compartments, y, strict=True))), p)
            return np.array([out[name] for name in self.compartments]) + rate

        return solve_ivp(f, (begin, end), x, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]

    def settle(self, p: Any, number: int, dose: Settled) -> np.ndarray:
        """Amounts just before the record."""
        place = self.compartments.index(dose.place)
        unit = np.eye(len(self.compartments))[place]
        if dose.interval == 0:
            speed = lambda y: np.array(  # noqa: E731
                list(
                    self.page.dynamics(
                        0.0, SimpleNamespace(**dict(zip(self.compartments, y, strict=True))), p
                    ).values()
                )
            )
            guess = self.warm.get(number, self.flow(p, self.initial(p), unit * dose.amount, 0.0, 200.0))
            self.warm[number] = root(lambda y: speed(y) + unit * dose.amount, guess, tol=1e-14).x
            return self.warm[number]
        arrivals = [dose.lag - k * dose.interval for k in range(40)]  # the first falls into the interval
        rate = dose.amount / dose.duration if dose.duration else 0.0

        def interval(x: np.ndarray) -> np.ndarray:
            cuts = {0.0, dose.interval, dose.lag}
            cuts |= {a + dose.duration for a in arrivals}
            edges = sorted(c for c in cuts if 0 <= c <= dose.interval)
            for low, high in zip(edges[:-1], edges[1:], strict=True):
                if low == dose.lag and not dose.duration:
                    x = x + unit * dose.amount
                middle = 0.5 * (low + high)
                running = sum(a <= middle < a + dose.duration for a in arrivals)
                x = self.flow(p, x, unit * rate * running, low - dose.interval, high - dose.interval)
            return x

        x = self.warm.get(number)
        if x is None:
            x = self.initial(p)
            for _ in range(40):
                x = interval(x)
        self.warm[number] = root(lambda y: interval(y) - y, x, tol=1e-13).x
        return self.warm[number]

    def amounts(self, shift: np.ndarray) -> np.ndarray:
        """`[compartment, time]` at shifted logarithms of the parameters."""
        values = dict(zip(self.names, self.start * np.exp(shift), strict=True))
        p = SimpleNamespace(**values)
        events, doses = list(self.case.hand(p)), list(self.case.steady(p))
        x, rate, now, done, out = self.initial(p), np.zeros(len(self.compartments)), 0.0, 0, []
        for t in self.case.times:
            while done < len(events) and events[done][0] <= t:
                when, what, size, where = events[done]
                x, now, done = self.flow(p, x, rate, now, when), when, done + 1
                unit = np.eye(len(x))[self.compartments.index(where)] if where else np.zeros(len(x))
                if what == "bolus":
                    x = x + size * unit
                elif what == "rate":
                    rate = rate + size * unit
                elif what == "off":
                    x, rate = x * (1 - unit), rate * (1 - unit)
                elif what == "reset":
                    x, rate = self.initial(p), np.zeros(len(x))
                else:  # at steady state, in place of what is there or on top of it
                    settled = self.settle(p, int(size), doses[int(size)])
                    x = settled if what == "steady" else x + settled
                    rate = np.zeros(len(x)) if what == "steady" else rate
            x, now = self.flow(p, x, rate, now, t), t
            out.append(x)
        return np.array(out).T

    def along(self, u: np.ndarray, h: float = 5e-3) -> list[np.ndarray]:
        """Value, first and second derivative along a direction of the logarithms of the parameters."""
        y = {k: self.amounts(k * h * u) for k in (-2, -1, 0, 1, 2)}
        first = (8 * (y[1] - y[-1]) - (y[2] - y[-2])) / (12 * h)
        second = (-y[2] + 16 * y[1] - 30 * y[0] + 16 * y[-1] - y[-2]) / (12 * h**2)
        return [y[0], first, second]


def directions(count: int) -> list[np.ndarray]:
    """Two directions in which every parameter moves."""
    return [0.4 * np.cos(np.arange(count) * pace + 0.4) for pace in (1.3, 2.9)]


@functools.cache
def reference(name: str) -> list[list[np.ndarray]]:
    """A case along both directions."""
    hand = Hand(CASES[name])
    return [hand.along(u) for u in directions(len(hand.start))]


def errors(name: str, order: int, **settings: Any) -> np.ndarray:
    """Largest errors of value and derivatives to an order, over the peak of each compartment."""
    amounts = parts(solved(CASES[name], order, **settings)[1], order)
    found = np.zeros(order + 1)
    for expected, u in zip(reference(name), directions(len(amounts[1]) if order else 1), strict=True):
        got = [x if k == 0 else np.tensordot(u, x, 1) for k, x in enumerate(amounts)]
        if order == 2:
            got[2] = np.tensordot(u, got[2], 1)
        peak = np.abs(expected[0]).max(-1)[:, None]
        found = np.maximum(found, [np.abs((a - b) / peak).max() for a, b in zip(got, expected, strict=False)])
    return found


def _seen(*times: float) -> list[dict[str, Any]]:
    return [dict(time=t) for t in times]


def _dose(time: float, amt: float, cmt: str = "depot", **more: Any) -> dict[str, Any]:
    return dict(time=time, amt=amt, cmt=cmt, evid=1) | more


def _infusion(begin: float, amount: float, duration: float, where: str) -> list[Event]:
    return [(begin, "rate", amount / duration, where), (begin + duration, "rate", -amount / duration, where)]


def _sorted(*events: Event) -> list[Event]:
    return sorted(events, key=lambda e: e[0])


GRID = (0.25, 1.1, 3.0, 5.7, 7.9, 12.5, 19.0)


def _steady_bolus(page: type[Linear], name: str) -> Case:
    return Case(
        name,
        page,
        [_dose(0, 60, ss=1, ii=8, addl=1), *_seen(*GRID)],
        lambda p: [(0, "steady", 0, ""), (0, "bolus", 60, "depot"), (8, "bolus", 60, "depot")],
        lambda p: [Settled(60, "depot", 0, 8)],
    )


def _steady_infusion(page: type[Linear], name: str) -> Case:
    """The infusion lasts 1.4 intervals; a lag and a bioavailability move it."""
    span = lambda p: 80 * p.f2 / 8  # noqa: E731

    def hand(p: Any) -> list[Event]:
        d, rest = span(p), p.lag2 + span(p) - 7
        assert rest > 0
        first = [(2, "rate", 8, "central"), (2 + rest, "rate", -8, "central")]
        return [(2, "steady", 0, ""), *_sorted(*first, *_infusion(2 + p.lag2, 8 * d, d, "central"))]

    return Case(
        name,
        modelled(page),
        [
            _dose(0, 50),
            *_seen(1.5),
            _dose(2, 80, "central", rate=8, ss=1, ii=7),
            *_seen(*(2 + t for t in GRID)),
        ],
        lambda p: [(p.lag, "bolus", 50 * p.f, "depot"), *hand(p)],
        lambda p: [Settled(80 * p.f2, "central", span(p), 7, p.lag2)],
    )


def _modelled_infusions(page: type[Linear], name: str) -> Case:
    """A modelled rate, a modelled duration, a bolus and an infusion at its own rate, all late."""

    def hand(p: Any) -> list[Event]:
        return _sorted(
            *_infusion(p.lag, 50 * p.f, 50 * p.f / p.rate, "depot"),
            *_infusion(1 + p.lag2, 40 * p.f2, p.duration, "central"),
            (4 + p.lag, "bolus", 30 * p.f, "depot"),
            *_infusion(6 + p.lag2, 20 * p.f2, 20 * p.f2 / 5, "central"),
        )

    records = [
        _dose(0, 50, rate=-1),
        *_seen(0.25),
        _dose(1, 40, "central", rate=-2),
        *_seen(1.1, 3.0),
        _dose(4, 30),
        *_seen(5.7),
        _dose(6, 20, "central", rate=5),
        *_seen(7.9, 12.5, 19.0),
    ]
    return Case(name, modelled(page), records, hand)


def _off(page: type[Linear], name: str) -> Case:
    """The depot is switched off with an infusion into it running, and on again by a dose."""
    return Case(
        name,
        page,
        [
            *(_dose(0, 60), _dose(1, 40, rate=10), *_seen(1.6), dict(time=3, evid=2, cmt=-1), *_seen(3.5, 6)),
            *(_dose(7, 50), *_seen(8, 14)),
        ],
        lambda p: [
            (0, "bolus", 60, "depot"),
            (1, "rate", 10, "depot"),
            (3, "off", 0, "depot"),
            (7, "bolus", 50, "depot"),
        ],
    )


def _endless(page: type[Linear], name: str) -> Case:
    """An infusion without end, which ends with the record; then a dose."""
    return Case(
        name,
        page,
        [
            dict(time=1, evid=1, amt=0, rate=6, ss=1, cmt="central"),
            *_seen(1.5, 3),
            _dose(4, 30),
            *_seen(4.2, 6, 12),
        ],
        lambda p: [(1, "steady", 0, ""), (4, "bolus", 30, "depot")],
        lambda p: [Settled(6, "central", 0, 0)],
    )


def _added(page: type[Linear], name: str) -> Case:
    """One steady state on top of another: mornings and evenings."""
    return Case(
        name,
        page,
        [
            _dose(0, 60, ss=1, ii=24),
            *_seen(0.25),
            _dose(10, 30, "central", ss=2, ii=24),
            *_seen(10.5, 13, 23, 30),
        ],
        lambda p: [
            (0, "steady", 0, ""),
            (0, "bolus", 60, "depot"),
            (10, "added", 1, ""),
            (10, "bolus", 30, "central"),
        ],
        lambda p: [Settled(60, "depot", 0, 24), Settled(30, "central", 0, 24)],
    )


CASES = {
    case.name: case
    for case in (
        _steady_bolus(Linear, "boluses, linear"),
        _steady_bolus(Saturable, "boluses, saturable"),
        _steady_bolus(Turnover, "boluses, turnover"),
        _steady_infusion(Linear, "late infusions, linear"),
        _steady_infusion(Saturable, "late infusions, saturable"),
        _steady_infusion(Turnover, "late infusions, turnover"),
        _modelled_infusions(Linear, "modelled infusions, linear"),
        _modelled_infusions(Saturable, "modelled infusions, saturable"),
        _off(Linear, "switched off, linear"),
        _off(Saturable, "switched off, saturable"),
        _endless(Linear, "without end, linear"),
        _endless(Saturable, "without end, saturable"),
        _endless(Turnover, "without end, turnover"),
        _added(Linear, "added, linear"),
    )
}
