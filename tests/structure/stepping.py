"""Pages to step, and their amounts and sensitivities by scipy at 1e-12: the sensitivity equations by complex step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from structure.exact import Event
from structure.systems import Dose, Regimen, schedule
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Timeline


@dataclass(frozen=True)
class Written:
    """A page written as a function: what a solver is handed, and what scipy is."""

    compartments: tuple[str, ...]
    values: Mapping[str, float]
    right: Callable[[Any, Any, Any], Sequence[Any]]
    first: Callable[[Any], Sequence[Any]] | None = None

    def rates(self, t: Number, y: Sequence[Number], p: Mapping[str, Number]) -> list[Number]:
        return list(self.right(t, y, SimpleNamespace(**p)))

    def initial(self, p: Mapping[str, Number]) -> list[Number]:
        given = self.first(SimpleNamespace(**p)) if self.first else [0.0] * len(self.compartments)
        zero = torch.zeros(1, 1, dtype=torch.float64)
        return [zero + x if isinstance(x, float) else x for x in given]

    def at(self, shift: Sequence[Any]) -> dict[str, Any]:
        """Parameters, their logarithms shifted."""
        return {
            name: value * (torch.exp(s) if isinstance(s, (Tensor, Taylor)) else np.exp(s))
            for (name, value), s in zip(self.values.items(), shift, strict=True)
        }


def _mm(t: Any, y: Any, p: Any) -> Sequence[Any]:
    c = y[1] / p.v
    return [-p.ka * y[0], p.ka * y[0] - p.vm * c / (p.km + c)]


def _turnover(t: Any, y: Any, p: Any) -> Sequence[Any]:
    inhibition = 1 - y[0] / (p.ic50 + y[0])
    return [-p.k * y[0], p.kin * inhibition - p.kout * y[1]]


def _tmdd(t: Any, y: Any, p: Any) -> Sequence[Any]:
    bound = p.kon * y[0] * y[1] - p.koff * y[2]
    return [-p.kel * y[0] - bound, p.kin - p.kout * y[1] - bound, bound - p.kint * y[2]]


def _chain(t: Any, y: Any, p: Any) -> Sequence[Any]:
    inputs = [0 * y[0], *(p.ktr * x for x in y[:-1])]
    return [a - p.ktr * b for a, b in zip(inputs, y, strict=True)]


def _clock(t: Any, y: Any, p: Any) -> Sequence[Any]:
    return [-p.k * (1 + 0.1 * t) * y[0]]


MM = Written(("depot", "central"), dict(ka=1.0, vm=10.0, v=20.0, km=0.5), _mm)
TURNOVER = Written(
    ("central", "effect"),
    dict(k=0.3, kin=2.0, kout=0.5, ic50=10.0),
    _turnover,
    lambda p: [0.0, p.kin / p.kout],
)
TRANSIT = Written(tuple(f"c{k}" for k in range(7)), dict(ktr=2.0), _chain)
CLOCK = Written(("central",), dict(k=0.2), _clock)


def tmdd(factor: float) -> Written:
    """Full target-mediated disposition, its association rate times a factor."""
    values = dict(kel=0.05, kon=0.091 * factor, koff=0.001, kin=0.11, kout=0.0089, kint=0.003)
    return Written(("ligand", "receptor", "bound"), values, _tmdd, lambda p: [0.0, p.kin / p.kout, 0.0])


def regimens(case: Written) -> list[Regimen]:
    """Irregular doses, infusions that overlap, several compartments, a reset during one, a single dose."""
    first, last = case.compartments[0], case.compartments[-1]
    busy = Regimen(
        [
            Dose(0.0, 80.0, first),
            Dose(2.0, 60.0, last, rate=20.0),
            Dose(3.5, 40.0, first, rate=10.0),
            Dose(7.0, 50.0, last),
            Dose(9.0, 60.0, last, rate=20.0),
            Dose(11.0, 70.0, first),
            Dose(12.0, 30.0, first, rate=60.0),
        ],
        (0.0, 0.5, 3.2, 6.0, 7.0, 9.9, 11.0, 14.0, 24.0),
        resets=(10.2,),
    )
    irregular = Regimen(
        [Dose(t, a, first) for t, a in ((1.0, 50.0), (1.7, 20.0), (9.0, 100.0))], (0.5, 2.0, 9.0, 20.0, 30.0)
    )
    return [busy, irregular, Regimen([Dose(0.0, 100.0, first)], (1.0, 4.0, 12.0))]


def timeline(case: Written, plans: Sequence[Regimen], **kwargs: Any) -> Timeline:
    """The timeline of these subjects."""
    return Timeline.build(schedule(case, *plans), **kwargs)  # type: ignore[arg-type]


def shifts(case: Written, *axes: int, seed: int = 1, sd: float = 0.3) -> Tensor:
    """Random shifts of log parameters `[*axes, parameter]`."""
    generator = torch.Generator().manual_seed(seed)
    return sd * torch.randn(*axes, len(case.values), generator=generator, dtype=torch.float64)


def given(case: Written, eta: Tensor, order: int) -> dict[str, Number]:
    """Parameters at shifts `[*draw, subject, parameter]`, as tensors or Taylor numbers in the shifts."""
    parts = Taylor.seed(eta, order) if order else [eta[..., k : k + 1] for k in range(eta.shape[-1])]
    return case.at(parts)


def run(
    solve: Callable[..., Any], case: Any, p: Mapping[str, Number], line: Timeline, **settings: Any
) -> tuple[Number, Tensor]:
    """Amounts `[*draw, subject, T, compartment]` and the status."""
    amounts, status = solve(case, lambda k: p, line, Solver(**settings))
    return torch.stack(amounts, -1), status  # type: ignore[arg-type]


def reference(
    case: Written,
    shift: Sequence[float],
    events: Sequence[Event],
    times: Sequence[float],
    method: str = "DOP853",
) -> np.ndarray:
    """Amounts and their derivatives in the shifts `[1 + parameter, time, compartment]`, event by event."""
    d, n, h = len(case.compartments), len(case.values), 1e-30

    def along(function: Callable[[Any, Any], Sequence[Any]], z: np.ndarray) -> np.ndarray:
        """A function of (amounts, parameters) and its derivative along each sensitivity, by complex step."""
        plain = SimpleNamespace(**case.at(shift))
        out = [np.real(np.array(function(list(z[0]), plain), dtype=complex))]
        for q in range(n):
            moved = np.array(shift, dtype=complex)
            moved[q] += 1j * h
            y = list(z[0] + 1j * h * z[1 + q])
            out.append(np.imag(np.array(function(y, SimpleNamespace(**case.at(moved))), dtype=complex)) / h)
        return np.array(out)

    def start() -> np.ndarray:
        if case.first is None:
            return np.zeros((1 + n, d))
        return along(lambda y, p: case.first(p), np.zeros((1 + n, d)))  # type: ignore[misc]

    z, rate, now = start(), np.zeros(d), events[0][0]

    def advanced(z: np.ndarray, to: float) -> np.ndarray:
        if to <= now:
            return z

        def f(t: float, flat: np.ndarray) -> np.ndarray:
            out = along(lambda y, p: case.right(t, y, p), flat.reshape(1 + n, d))
            out[0] += rate
            return out.ravel()

        found = solve_ivp(f, (now, to), z.ravel(), method=method, rtol=1e-12, atol=1e-12)
        return found.y[:, -1].reshape(1 + n, d)

    out, done = [], 0
    for t in times:
        while done < len(events) and events[done][0] <= t:
            time, what, amount, place = events[done]
            z, now, done = advanced(z, time), time, done + 1
            if what == "reset":
                z, rate = start(), np.zeros(d)
            elif what == "bolus":
                z = z.copy()
                z[0, case.compartments.index(place)] += amount
            else:
                rate = rate.copy()
                rate[case.compartments.index(place)] += amount
        z, now = advanced(z, t), t
        out.append(z)
    return np.stack(out, 1)


def curvature(case: Written, shift: Tensor, regimen: Regimen) -> np.ndarray:
    """Second derivatives in the shifts `[parameter, parameter, time, compartment]`, by differences of the first."""
    h, rows = 1e-4, []
    for q in range(len(case.values)):
        up, down = shift.clone(), shift.clone()
        up[q] += h
        down[q] -= h
        both = [reference(case, s.tolist(), regimen.events(), regimen.times)[1:] for s in (up, down)]
        rows.append((both[0] - both[1]) / (2 * h))
    return np.array(rows)
