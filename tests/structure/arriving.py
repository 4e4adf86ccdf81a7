"""Modelled doses told twice: as records with a page's `dosing`, and by hand as what arrives, in fifty digits.

The hand's way is a list of stretches. A stretch starts from nothing at a time, goes through its events (boluses and
changes of rates at the times at which they arrive; hundreds of them before the first observation stand for "for ever"),
and is observed until the next one starts. Nothing of the package is used: the matrix exponential by its
series, in integers that stand for numbers of 48 digits, and differences of these for derivatives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mpmath as mp
import numpy as np
import pandas as pd
import torch
from structure.exact import Event, flow_matrix
from torch import Tensor

from nlmegen.data.population import Population
from nlmegen.maths.taylor import Taylor
from nlmegen.structure.closed import Closed
from nlmegen.structure.dose import Dose

SINCE = 200.0
"""Hours of doses that stand for "for ever": the slowest mode of all, 0.2 an hour, leaves 1e-17."""

DIGITS, STEP, BITS = 40, "1e-7", 160
"""Of differences: 1e-14 of error in forty digits that lose 21; bits behind the point of what stands for amounts."""

VALUES = dict(cl=15.0, v=30.0, q=12.0, v2=20.0, q3=9.0, v3=18.0, ka=1.1)
SAID = dict(lag=0.7, f=0.8, lag2=1.3, f2=1.2, d=6.6, r=31.0)
USUAL = VALUES | SAID
TIMES = (0.0, 0.4, 1.0, 2.2, 3.5, 5.0, 7.9, 9.0, 11.0, 13.5, 16.5, 20.0, 26.0, 33.0)

P = Mapping[str, Any]
Stretch = tuple[float, list[Event]]


@dataclass(frozen=True)
class Story:
    """What one subject gets.

    Attributes:
        records: rows of the table (observations left out), compartments "main" and "other".
        arriving: from parameters to stretches.
        says: what the page's dosing says, by "main" or "other": the words of `Dose` and the parameters they are.
        changes: a time from which on `cl` is three times as large.
    """

    records: Sequence[dict[str, Any]]
    arriving: Callable[[P], list[Stretch]]
    says: Mapping[str, Mapping[str, str]]
    changes: float | None = None


BOTH = {"main": dict(lag="lag", bioavailability="f"), "other": dict(lag="lag2", bioavailability="f2")}
RUNNING = {
    "main": dict(lag="lag", bioavailability="f", duration="d"),
    "other": dict(rate="r", bioavailability="f2"),
}


def bolus(time: Any, amount: Any, to: str = "main") -> list[Event]:
    """An amount at once."""
    return [(time, "bolus", amount, to)]


def infusion(time: Any, rate: Any, duration: Any, to: str = "main") -> list[Event]:
    """A rate for a while."""
    return [(time, "rate", rate, to), (time + duration, "rate", -rate, to)]


def before(time: Any, interval: float, one: Callable[[Any], list[Event]]) -> list[Event]:
    """One dose every interval up to, and without, the time."""
    return [event for k in range(int(SINCE / interval), 0, -1) for event in one(time - k * interval)]


def dose(time: float, amt: float, to: str = "main", evid: int = 1, **more: float) -> dict[str, Any]:
    """A record."""
    return dict(time=time, evid=evid, amt=amt, cmt=to, **more)


STORIES: dict[str, Story] = {
    "lagged boluses into two compartments": Story(
        [dose(0, 100, addl=2, ii=8), dose(3, 40, "other")],
        lambda p: [
            (
                0.0,
                [e for k in range(3) for e in bolus(8 * k + p["lag"], 100 * p["f"])]
                + bolus(3 + p["lag2"], 40 * p["f2"], "other"),
            )
        ],
        BOTH,
    ),
    "recorded rates keep their rate": Story(
        [dose(1, 60, rate=20.0, addl=1, ii=8), dose(2, 30, "other", rate=10.0)],
        lambda p: [
            (
                0.0,
                [e for k in range(2) for e in infusion(1 + 8 * k + p["lag"], 20, 3 * p["f"])]
                + infusion(2 + p["lag2"], 10, 3 * p["f2"], "other"),
            )
        ],
        BOTH,
    ),
    "modelled rate and duration": Story(
        [dose(0, 60, rate=-2, addl=1, ii=9), dose(2, 80, "other", rate=-1), dose(4, 10)],
        lambda p: [
            (
                0.0,
                [e for k in range(2) for e in infusion(9 * k + p["lag"], 60 * p["f"] / p["d"], p["d"])]
                + infusion(mp.mpf(2), p["r"], 80 * p["f2"] / p["r"], "other")
                + bolus(4 + p["lag"], 10 * p["f"]),
            )
        ],
        RUNNING,
    ),
    "steady boluses with lag, then more": Story(
        [dose(0, 70, "other"), dose(5, 100, ss=1, ii=8, addl=1)],
        lambda p: [
            (0.0, bolus(p["lag2"], 70 * p["f2"], "other")),
            (
                5.0,
                before(5 + p["lag"], 8, lambda t: bolus(t, 100 * p["f"]))
                + [e for k in range(2) for e in bolus(5 + 8 * k + p["lag"], 100 * p["f"])],
            ),
        ],
        BOTH,
    ),
    "steady state on top of another": Story(
        [dose(0, 50, ss=1, ii=6), dose(2, 80, "other", ss=2, ii=12)],
        lambda p: [
            (
                0.0,
                before(p["lag"], 6, lambda t: bolus(t, 50 * p["f"])) + bolus(p["lag"], 50 * p["f"]),
            ),
            (
                2.0,
                before(p["lag"], 6, lambda t: bolus(t, 50 * p["f"]))
                + bolus(p["lag"], 50 * p["f"])
                + before(2 + p["lag2"], 12, lambda t: bolus(t, 80 * p["f2"], "other"))
                + bolus(2 + p["lag2"], 80 * p["f2"], "other"),
            ),
        ],
        BOTH,
    ),
    "steady infusions shorter than the interval": Story(
        [dose(1, 40, ss=1, ii=8, rate=10.0), dose(13, 30, "other", ss=2, ii=12, rate=20.0)],
        lambda p: [
            (
                1.0,
                before(1 + p["lag"], 8, lambda t: infusion(t, 10, 4 * p["f"]))
                + infusion(1 + p["lag"], 10, 4 * p["f"]),
            ),
            (
                13.0,
                before(1 + p["lag"], 8, lambda t: infusion(t, 10, 4 * p["f"]))
                + infusion(1 + p["lag"], 10, 4 * p["f"])
                + before(13 + p["lag2"], 12, lambda t: infusion(t, 20, 1.5 * p["f2"], "other"))
                + infusion(13 + p["lag2"], 20, 1.5 * p["f2"], "other"),
            ),
        ],
        BOTH,
    ),
    "steady infusions that run into each other": Story(
        [dose(0.5, 120, ss=1, ii=5, rate=8.0, addl=1)],
        lambda p: [
            (
                0.5,
                before(0.5 + p["lag"], 5, lambda t: infusion(t, 8, 15 * p["f"]))
                + [e for k in range(2) for e in infusion(0.5 + 5 * k + p["lag"], 8, 15 * p["f"])],
            )
        ],
        BOTH,
    ),
    "steady infusions whose modelled duration exceeds the interval": Story(
        [dose(0.5, 30, ss=1, ii=4, rate=-2), dose(4, 160, "other", ss=2, ii=3, rate=-1)],
        lambda p: [
            (
                0.5,
                before(0.5 + p["lag"], 4, lambda t: infusion(t, 30 * p["f"] / p["d"], p["d"]))
                + infusion(0.5 + p["lag"], 30 * p["f"] / p["d"], p["d"]),
            ),
            (
                4.0,
                before(0.5 + p["lag"], 4, lambda t: infusion(t, 30 * p["f"] / p["d"], p["d"]))
                + infusion(0.5 + p["lag"], 30 * p["f"] / p["d"], p["d"])
                + before(mp.mpf(4), 3, lambda t: infusion(t, p["r"], 160 * p["f2"] / p["r"], "other"))
                + infusion(mp.mpf(4), p["r"], 160 * p["f2"] / p["r"], "other"),
            ),
        ],
        RUNNING,
    ),
    "resets cancel what is to come": Story(
        [
            dose(0, 100, addl=3, ii=4),
            dose(1, 60, "other", rate=10.0),
            dict(time=8.3, evid=3),
            dose(11, 50, "other", evid=4, rate=25.0),
        ],
        lambda p: [
            (
                0.0,
                [e for k in range(3) for e in bolus(4 * k + p["lag"], 100 * p["f"])]
                + infusion(1 + p["lag2"], 10, 6 * p["f2"], "other"),
            ),
            (8.3, []),
            (11.0, infusion(11 + p["lag2"], 25, 2 * p["f2"], "other")),
        ],
        BOTH,
    ),
    "parameters change in time": Story(
        [
            dose(0, 100, ss=1, ii=12, rate=40.0),
            dose(1, 30, "other", rate=10.0),
            dose(8.8, 60),
            dose(12, 80, "other"),
        ],
        lambda p: [
            (
                0.0,
                before(p["lag"], 12, lambda t: infusion(t, 40, 2.5 * p["f"]))
                + infusion(p["lag"], 40, 2.5 * p["f"])
                + infusion(1 + p["lag2"], 10, 3 * p["f2"], "other")
                + bolus(8.8 + p["lag"], 60 * p["f"])
                + bolus(12 + p["lag2"], 80 * p["f2"], "other"),
            ),
        ],
        BOTH,
        changes=9.0,
    ),
}


def amounts(structure: Closed, story: Story, p: P) -> Any:
    """Amounts `[compartment, time]`, as an array of mpmath numbers."""
    names = list(structure.compartments)
    places = {"main": names[0], "other": names[-1]}
    size, kept = len(names), {}
    flows = [flow_matrix(structure, p), flow_matrix(structure, {**p, "cl": 3 * p["cl"]})]
    matrices = [np.array([[fixed(x) for x in row] for row in a.tolist()], dtype=object) for a in flows]

    def crossed(state: Any, rate: Any, span: int, which: int) -> Any:
        key = (which, span, *rate)
        if key not in kept:
            whole = np.zeros((size + 1, size + 1), dtype=object)
            whole[:size, :size], whole[:size, size] = matrices[which], rate
            kept[key] = exponential(whole * span >> BITS)
        return (kept[key] @ np.array([*state, 1 << BITS], dtype=object) >> BITS)[:size]

    def moved(state: Any, rate: Any, start: int, end: int) -> Any:
        turn = end if story.changes is None else fixed(story.changes)
        if start < turn < end:
            state, start = crossed(state, rate, turn - start, 0), turn
        return crossed(state, rate, end - start, int(story.changes is not None and start >= turn))

    stretches = story.arriving(p)
    out = [[0] * size for t in TIMES if t < stretches[0][0]]
    for begins, (since, given) in enumerate(stretches):
        ends = stretches[begins + 1][0] if begins + 1 < len(stretches) else np.inf
        events = sorted(((fixed(t), what, fixed(x), names.index(places[c])) for t, what, x, c in given))
        state, rate, now = np.array([0] * size, dtype=object), np.array([0] * size, dtype=object), None
        for t in (t for t in TIMES if since <= t < ends):
            while events and events[0][0] <= fixed(t):
                when, what, much, place = events.pop(0)
                state = state if now is None else moved(state, rate, now, when)
                now = when
                if what == "empty":
                    state[place] = rate[place] = 0
                else:
                    (state if what == "bolus" else rate)[place] += much
            if now is not None:
                state, now = moved(state, rate, now, fixed(t)), fixed(t)
            out.append(list(state))
    return np.array([[mp.mpf(x) / (1 << BITS) for x in row] for row in out], dtype=object).T


def fixed(x: Any) -> int:
    """A number as an integer."""
    return int(mp.nint(mp.mpf(x) * (1 << BITS)))


def exponential(a: Any) -> Any:
    """exp(a) of a matrix of such integers: its series at a small norm, squared. Far quicker than mpmath's."""
    unit = np.array([[(1 << BITS) * (i == j) for j in range(len(a))] for i in range(len(a))], dtype=object)
    halvings = max(int(abs(a).sum(0).max()).bit_length() - BITS + 3, 0)
    total, term = unit, unit
    for k in range(1, 36):
        term = (term @ (a >> halvings) >> BITS) // k
        total = total + term
    for _ in range(halvings):
        total = total @ total >> BITS
    return total


def along(
    structure: Closed, story: Story, direction: Mapping[str, float], values: Mapping[str, float] = USUAL
) -> list[Tensor]:
    """Amounts and their first three derivatives as the logarithms of all parameters move along a direction."""
    with mp.workdps(DIGITS):
        h = mp.mpf(STEP)

        def at(k: int) -> Any:
            return amounts(
                structure,
                story,
                {n: mp.mpf(v) * mp.exp(k * h * mp.mpf(direction.get(n, 0.0))) for n, v in values.items()},
            )

        x = {k: at(k) for k in (-2, -1, 0, 1, 2)}
        first = (x[1] - x[-1]) / (2 * h)
        second = (x[1] - 2 * x[0] + x[-1]) / h**2
        third = (x[2] - 2 * x[1] + 2 * x[-1] - x[-2]) / (2 * h**3)
        return [torch.from_numpy(d.astype(float)) for d in (x[0], first, second, third)]


class Page:
    """A page of which only `dosing` is asked."""

    def __init__(self, says: Mapping[str, Mapping[str, str]]) -> None:
        self.says = says

    def dosing(self, p: Any) -> dict[str, Dose]:
        """Doses by compartment."""
        return {
            name: Dose(**{word: getattr(p, parameter) for word, parameter in words.items()})
            for name, words in self.says.items()
        }


def namespace(kind: str, values: Mapping[str, Any]) -> Any:
    """Values by name."""
    return SimpleNamespace(**values)


def dosed(structure: Closed, story: Story) -> Closed:
    """The structure for a page that says what the story says."""
    names = structure.compartments
    places = {"main": names[0], "other": names[-1]}
    says: dict[str, dict[str, str]] = {}
    for name, words in story.says.items():
        says[places[name]] = {**words, **says.get(places[name], {})}
    return structure.dosed_by(Page(says), namespace)


def population(structure: Closed, *stories: Story) -> Population:
    """One subject a story."""
    names = structure.compartments
    numbers = {"main": 1, "other": len(names), "off": -1}
    rows: list[dict[str, Any]] = []
    for subject, story in enumerate(stories, 1):
        blank = dict(id=subject, amt=0.0, rate=0.0, addl=0, ii=0.0, ss=0, cmt=0, dv=0.0)
        # by number: a negative one switches off
        records = [r | dict(cmt=numbers.get(r.get("cmt", ""), 0)) for r in story.records]
        records += [dict(time=t, evid=0) for t in TIMES]
        # an observation at the time of a record comes after it
        late = np.inf if story.changes is None else story.changes
        records = [r | dict(late=float(r["time"] > late)) for r in records]
        rows += [blank | r for r in sorted(records, key=lambda r: (r["time"], r["evid"] == 0))]
    return Population.from_table(pd.DataFrame(rows), warn=False)


def seeded(
    structure: Closed, data: Population, eta: Tensor, order: int, values: Mapping[str, float] = USUAL
) -> SimpleNamespace:
    """Parameters v exp(eta) as Taylor numbers in eta `[*draw, subject, parameter]`, as tensors at order 0."""
    shifts = [eta[..., k : k + 1] for k in range(eta.shape[-1])] if order == 0 else Taylor.seed(eta, order)
    named: dict[str, Any] = {
        k: values[k] * torch.exp(s)  # type: ignore[arg-type]
        for k, s in zip(structure.parameters, shifts, strict=True)
    }
    if bool(data.covariates["late"].varies):
        named["cl"] = named["cl"] * (1 + 2 * data.covariates["late"].segment)
    return SimpleNamespace(**named)


def direction(structure: Closed, seed: int = 1) -> dict[str, float]:
    """A random direction of the logarithms of all parameters."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(len(structure.parameters), generator=generator, dtype=torch.float64)
    return dict(zip(structure.parameters, found.tolist(), strict=True))
