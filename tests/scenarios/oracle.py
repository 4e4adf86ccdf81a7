"""Records of one subject read as PREDPP reads them, one after the other, and solved by scipy: slow and obvious.

Nothing here is shared with the package. Every rule stands beside the line that obeys it, with its source:

    [V]     NONMEM Users Guide VI (PREDPP, 2017), chapter V, by section ("V.F.1")
    [dose]  NONMEM help, "dose event record"     [ss] "SS data item"    [ssdose] "SS dose event record"
    [cmt]   "CMT data item"     [lag] "absorption lag parameter"     [rate] "rate parameter"        [procm2] "PROCM2"
    [run]   what NONMEM 7.4 to 7.6 printed, see `nonmem_runs`

Parameters are arrays of K columns: the values themselves, then the same parameters moved a little into the complex
plane, where derivatives are read (`walking.columns`). Times that depend on parameters are then complex too: the way
between two events is walked along the straight line in the complex plane, the analytic continuation of the real walk.

A subject is a generator: it hands out the stretches it wants solved (`Stretch`) and is handed back their ends, so that
subjects that know nothing of each other can be integrated in one call (`walking.walk`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Record = Mapping[str, Any]
"""time, evid, amt, rate, ii, addl, ss, cmt (number; negative: off) and covariates."""

SETTLED = 1e-13
"""Steady state has come when a cycle changes no amount by more, over the largest."""


class Equations(Protocol):
    """What is solved; amounts are `[compartment, ...]`, parameters arrays of the trailing shape."""

    compartments: tuple[str, ...]

    def rates(self, t: Any, a: Array, p: Any) -> Sequence[Any]:
        """Derivatives of the amounts."""

    def initial(self, p: Any) -> Sequence[Any]:
        """Amounts before anything is given."""

    def observe(self, a: Array, p: Any) -> Sequence[Any]:
        """One prediction an endpoint."""

    def dosing(self, p: Any) -> Mapping[int, SimpleNamespace]:
        """By compartment: lag, f, duration, rate (each a number or None)."""

    linear: bool


@dataclass
class Stretch:
    """Ask for the amounts after `length [K]` from `start`, parameters p and infusion rates constant."""

    begin: Array
    length: Array
    start: Array
    rate: Array
    p: Any


@dataclass(eq=False)
class Dose:
    """A dose that has not come yet."""

    time: Array
    place: int
    record: Record


@dataclass(eq=False)
class Running:
    """An infusion that has started."""

    end: Array
    place: int
    rate: Array


@dataclass
class Subject:
    """The interpreter of one subject's records.

    Args:
        equations: what is solved.
        records: in the order of the file.
        parameters: from a record's covariates to parameters by name, arrays `[K]`.
        rule: how covariates hold between records, "nonmem", "locf" or "linear".
    """

    equations: Equations
    records: Sequence[Record]
    parameters: Callable[[Record], Any]
    rule: str = "nonmem"
    x: Array = field(init=False)
    now: Array = field(init=False)
    running: list[Running] = field(init=False, default_factory=list)
    pending: list[Dose] = field(init=False, default_factory=list)
    ahead: int = field(init=False, default=0)
    """The record that comes next."""

    def walk(self) -> Generator[Stretch, Array, list[Array]]:
        """All records; returns what was observed, a list of `[endpoint, K]`."""
        seen: list[Array] = []
        before: Record | None = None
        for number, record in enumerate(self.records):
            self.ahead = number
            own, evid = self.parameters(record), record["evid"]
            time = np.full(np.shape(next(iter(vars(own).values()))), record["time"], dtype=complex)
            if before is None or evid in (3, 4):
                # V.B: a reset sets the time to whatever stands there and the amounts to where they started; running
                # infusions, additional doses and doses that are still lagged are forgotten [run: evid_reset_lag]
                self.x, self.now = (
                    np.array(np.broadcast_arrays(*self.equations.initial(own), time))[:-1],
                    time,
                )
                self.running, self.pending = [], []
            else:
                yield from self.advance(time, self.between(before, record))
            self.ahead += 1
            if evid in (1, 4):
                yield from self.dose(record, own, time)
            elif evid == 2 and record["cmt"] < 0:
                # [cmt]: a negative CMT turns the compartment off; its amount is lost and infusions into it end
                place = -record["cmt"] - 1
                self.x = self.x.copy()
                self.x[place] = 0.0
                self.running = [r for r in self.running if r.place != place]
            elif evid == 0:
                seen.append(np.array(np.broadcast_arrays(*self.equations.observe(self.x, own), time))[:-1])
            before = record
        return seen

    def between(self, before: Record, record: Record) -> Any:
        """The parameters in force on the way to a record.

        V.F.1 and [run: time-varying]: the advance to a record is governed by that record ("nonmem"); the other two
        rules are not NONMEM's: the record behind, or the value half-way.
        """
        if self.rule == "nonmem":
            return self.parameters(record)
        if self.rule == "locf":
            return self.parameters(before)
        middle = {
            k: (before[k] + v) / 2 if isinstance(v, float) and k.startswith("cov") else v
            for k, v in record.items()
        }
        return self.parameters(middle)

    def advance(self, until: Array, p: Any) -> Generator[Stretch, Array, None]:
        """Go to a time, meeting what happens before it or at it.

        A dose that comes at the time of a record comes before the record [run: ADDL at records; lagged arrivals].
        """
        while True:
            ahead = [*self.running, *self.pending]
            moment = min((when(item) for item in ahead), default=np.inf, key=float)
            if moment > until[0].real:
                break
            item = next(x for x in ahead if when(x) == moment)
            if isinstance(item, Running):
                yield from self.go(item.end, p)
                self.running.remove(item)
            else:
                yield from self.go(item.time, p)
                self.pending.remove(item)
                self.give(item.record, p, item.place)
        yield from self.go(until, p)

    def go(self, until: Array, p: Any) -> Generator[Stretch, Array, None]:
        """Solve up to a time at which, or before which, nothing happens."""
        if (until != self.now).any():
            self.x = yield Stretch(self.now, until - self.now, self.x, self.rate(), p)
        self.now = until

    def rate(self) -> Array:
        """The total infusion rate into every compartment."""
        total = np.zeros(self.x.shape, dtype=complex)
        for item in self.running:
            total[item.place] += item.rate
        return total

    def give(self, record: Record, p: Any, place: int) -> None:
        """The dose of a record comes now; p is in force at this moment.

        [dose]: amount is AMT times the bioavailability in effect when the dose is introduced; RATE > 0 lasts
        amount / RATE; RATE = -2 lasts D and flows at amount / D; RATE = -1 flows at R for amount / R. [rate]: R is that
        of the interval which begins now. NONMEM goes on to change it with the next interval; here it stays.
        """
        flow, duration = self.infusion(record, p, place, self.onward())
        if flow is None:
            self.x = self.x.copy()
            self.x[place] += self.amount(record, p, place)
        else:
            self.running.append(Running(self.now + duration, place, flow))

    def amount(self, record: Record, p: Any, place: int) -> Any:
        how = self.equations.dosing(p).get(place)
        return record["amt"] * (1.0 if how is None or how.f is None else how.f)

    def onward(self) -> Any:
        """The parameters in force right after this moment."""
        k = self.ahead
        while k < len(self.records) and self.records[k]["evid"] not in (3, 4):
            if self.records[k]["time"] > self.now[0].real:
                return self.between(self.records[k - 1], self.records[k])
            k += 1
        return self.parameters(self.records[k - 1])

    def infusion(self, record: Record, p: Any, place: int, onward: Any = None) -> tuple[Any, Any]:
        """Rate and duration, or None for a bolus; a modelled rate as `onward` has it."""
        amount, how, flow = self.amount(record, p, place), self.equations.dosing(p).get(place), record["rate"]
        if flow == 0:
            return None, 0.0
        if flow == -2:
            return amount / how.duration + 0 * self.now, how.duration + 0 * self.now
        if flow == -1:
            flow = how.rate if onward is None else self.equations.dosing(onward)[place].rate
        return flow + 0 * self.now, amount / flow + 0 * self.now

    def dose(self, record: Record, own: Any, time: Array) -> Generator[Stretch, Array, None]:
        """A dose record."""
        place = max(record["cmt"] - 1, 0)
        how = self.equations.dosing(own).get(place)
        # [dose]: the lag in effect at the record's time holds for the dose and for all its additional doses
        lag = 0.0 if how is None or how.lag is None else how.lag
        if record["ss"]:
            state, going = yield from self.settled(record, own, place, lag + 0 * time)
            if record["ss"] == 1:
                # [ss]: amounts are zeroed out, infusions in progress and pending doses are cancelled (a dose that
                # lags still is pending [run: ss_infusion_stop, ss_reset_tie])
                self.running, self.pending, self.x = [], [], 0 * self.x
            # [ss] 2: amounts are updated to this time, and the steady-state amounts are added to them
            self.x = self.x + state
            self.running += going
            if record["amt"] == 0:  # [ssdose]: a constant infusion terminates at the time of its record
                return
        if np.all(lag == 0.0):
            self.give(record, own, place)
        else:
            self.pending.append(Dose(time + lag, place, record))
        for k in range(1, int(record["addl"]) + 1):
            self.pending.append(Dose(time + k * record["ii"] + lag, place, record))

    def settled(
        self, record: Record, p: Any, place: int, lag: Array
    ) -> Generator[Stretch, Array, tuple[Array, list[Running]]]:
        """Steady-state amounts at the time of a record, and the infusions that run there.

        V.F.1: parameters have the values of the record for all implied doses. [ssdose]: steady state is computed as if
        there were no lag, then advanced to the point II - lag of the cycle.
        """
        zero = 0 * lag
        keep = self.x, self.now, self.running, self.pending
        start = np.array(np.broadcast_arrays(*self.equations.initial(p), zero))[:-1].astype(complex)
        if (
            record["amt"] == 0
        ):  # a constant infusion: what flows in flows out. It has neither lag nor bioavailability
            flow = self.equations.dosing(p)[place].rate if record["rate"] == -1 else record["rate"]
            rate = np.zeros(start.shape, dtype=complex)
            rate[place] = flow
            long, state, last = 20.0, start, start
            for _ in range(60):
                state = yield Stretch(zero, zero + long, state, rate, p)
                if unchanged(state, last):
                    break
                last, long = state, min(1.5 * long, 2000.0)
            else:
                raise AssertionError("a constant infusion does not settle")
            return state, []
        interval = record["ii"]
        assert 0 <= lag[0].real < interval
        flow, duration = self.infusion(record | {"amt": record["amt"]}, p, place)
        state = start
        for _ in range(4000):
            last = state
            # one cycle from the moment at which a dose comes, before it
            self.x, self.now, self.running, self.pending = state, zero, [], []
            self.arrive(record, p, place, flow, duration, interval)
            yield from self.advance(zero + interval, p)
            state = self.x
            if unchanged(state, last):
                break
        else:
            raise AssertionError("a regimen does not settle")
        phase = interval - lag
        if (lag != 0).any():
            self.x, self.now, self.running, self.pending = state, zero, [], []
            self.arrive(record, p, place, flow, duration, interval)
            yield from self.advance(phase, p)
            state = self.x
        going = []
        if flow is not None:
            k = 1  # the infusion that came k intervals before the record's own, at time + lag - k II
            while k * interval - (duration + lag)[0].real < 0:
                going.append(Running(record["time"] + lag - k * interval + duration, place, flow))
                k += 1
        self.x, self.now, self.running, self.pending = keep
        return state, going

    def arrive(self, record: Record, p: Any, place: int, flow: Any, duration: Any, interval: float) -> None:
        """Start a cycle: the dose comes, and earlier infusions that are longer than the interval still run."""
        if flow is None:
            self.give(record, p, place)
            return
        k = 0
        while k * interval < duration[0].real:
            self.running.append(Running(self.now + duration - k * interval, place, flow))
            k += 1


def when(item: Running | Dose) -> float:
    """The moment, real part of the first column, which decides the order of events."""
    time = item.end if isinstance(item, Running) else item.time
    return float(time[0].real)


def unchanged(new: Array, old: Array) -> bool:
    return bool(np.abs(new - old).max() <= SETTLED * np.abs(new).max())
