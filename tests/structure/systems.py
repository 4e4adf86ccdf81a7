"""The family of closed forms, regimens in two spellings (a table, and events by hand), and parameters for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from structure.exact import Event
from torch import Tensor

from nlmegen.data.population import Population
from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.closed import Closed, OneCompartment, ThreeCompartment, TwoCompartment
from nlmegen.structure.schedule import Schedule

STRUCTURES: list[Closed] = [
    kind(absorption)
    for kind in (OneCompartment, TwoCompartment, ThreeCompartment)
    for absorption in (None, "first-order")
]
GRID = tuple(np.linspace(0.0, 30.0, 25))
VALUES = dict(cl=3.0, v=30.0, q=5.0, v2=50.0, q3=1.0, v3=100.0, ka=1.1)


@dataclass(frozen=True)
class Dose:
    """An amount into a compartment at a time, at once or (rate > 0) by infusion."""

    time: float
    amount: float
    to: str
    rate: float = 0.0


@dataclass(frozen=True)
class Regimen:
    """What one subject gets, and when it is observed; what is given at a time comes before the observation then."""

    doses: Sequence[Dose]
    times: Sequence[float]
    resets: Sequence[float] = ()

    def events(self) -> list[Event]:
        """Events in order; a reset ends the infusions that run."""
        found: list[Event] = [(t, "reset", 0.0, "") for t in self.resets]
        for dose in self.doses:
            if dose.rate == 0:
                found.append((dose.time, "bolus", dose.amount, dose.to))
                continue
            end = dose.time + dose.amount / dose.rate
            found.append((dose.time, "rate", dose.rate, dose.to))
            if not any(dose.time < t < end for t in self.resets):
                found.append((end, "rate", -dose.rate, dose.to))
        return sorted(found, key=lambda e: e[0])

    def records(self, name: int) -> pd.DataFrame:
        """The same as NONMEM records."""
        rows: list[dict[str, Any]] = [dict(time=t, evid=3) for t in self.resets]
        rows += [dict(time=d.time, evid=1, amt=d.amount, rate=d.rate, cmt=d.to) for d in self.doses]
        rows += [dict(time=t, evid=0, dv=1.0) for t in self.times]
        blank = dict(id=name, amt=0.0, rate=0.0, cmt=0, dv=np.nan)
        frame = pd.DataFrame([blank | row for row in rows])
        return frame.sort_values("time", kind="stable")


def busy(structure: Closed) -> Regimen:
    """Boluses, overlapping infusions into every compartment, a reset during one, doses after it."""
    names = structure.compartments
    doses = [Dose(0.0, 100.0, names[0])]
    doses += [Dose(2.0 + 0.5 * k, 60.0, c, rate=20.0) for k, c in enumerate(names)]
    doses += [Dose(7.0, 50.0, c) for c in names]
    doses += [
        Dose(9.5, 80.0, names[0], rate=40.0),
        Dose(11.0, 70.0, names[-1]),
        Dose(13.0, 100.0, names[0], rate=50.0),
    ]
    return Regimen(doses, (0.0, 0.5, 3.2, 6.0, 7.0, 9.9, 10.5, 11.0, 14.0, 24.0, 40.0), resets=(10.2,))


def population(*regimens: Regimen) -> Population:
    """One subject a regimen."""
    frame = pd.concat([r.records(k) for k, r in enumerate(regimens, 1)], ignore_index=True)
    return Population.from_table(frame, warn=False)


def schedule(structure: Closed, *regimens: Regimen) -> Schedule:
    """The schedule of these subjects."""
    return Schedule.build(population(*regimens), structure.compartments)


def constant(structure: Closed, values: Mapping[str, float] = VALUES, n: int = 1) -> SimpleNamespace:
    """Parameters that are the same for n subjects."""
    return SimpleNamespace(
        **{k: torch.full((n, 1), values[k], dtype=torch.float64) for k in structure.parameters}
    )


def log_normal(
    structure: Closed, shift: Sequence[Number], values: Mapping[str, float] = VALUES
) -> SimpleNamespace:
    """Parameters v exp(shift), a shift a parameter."""
    named = zip(structure.parameters, shift, strict=True)
    return SimpleNamespace(**{k: values[k] * torch.exp(s) for k, s in named})  # type: ignore[arg-type]


def shifted(structure: Closed, eta: Tensor) -> SimpleNamespace:
    """Parameters from shifts of their logarithms `[*draw, subject, parameter]`, as tensors."""
    return log_normal(structure, [eta[..., k : k + 1] for k in range(eta.shape[-1])])


def seeded(structure: Closed, eta: Tensor, order: int) -> SimpleNamespace:
    """The same as Taylor numbers in the shifts."""
    return log_normal(structure, Taylor.seed(eta, order))


def crowd(structure: Closed) -> Schedule:
    """Three subjects: busy, a single dose, several doses."""
    first = structure.compartments[0]
    simple = Regimen([Dose(0.0, 100.0, first)], (1.0, 4.0))
    several = Regimen([Dose(6.0 * k, 50.0, first) for k in range(5)], (1.0, 13.0, 40.0))
    return schedule(structure, busy(structure), simple, several)


def spread(structure: Closed, n: int, *draws: int, seed: int = 1, sd: float = 0.3) -> Tensor:
    """Random shifts of the log parameters `[*draws, n, parameter]`."""
    generator = torch.Generator().manual_seed(seed)
    return sd * torch.randn(*draws, n, len(structure.parameters), generator=generator, dtype=torch.float64)


def solved(structure: Closed, p: Any, plan: Schedule) -> Tensor:
    """Values `[compartment, *draw, subject, time]`."""
    solution = structure.solve(p, plan)
    return torch.stack(
        list(torch.broadcast_tensors(*(value_of(solution[c]) for c in structure.compartments)))
    )


def solved_taylor(structure: Closed, p: Any, plan: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """Value, Jacobian and Hessian with the compartment axis behind the directions."""
    amounts: list[Taylor] = []
    solution = structure.solve(p, plan)
    like = next(x for x in (solution[c] for c in structure.compartments) if isinstance(x, Taylor))
    for c in structure.compartments:
        x = solution[c]
        zero = torch.zeros_like(like.jac[(slice(None),) + (slice(0, 1),) * like.ndim])
        amounts.append(x if isinstance(x, Taylor) else Taylor(x, zero, None, like.order))
    value = torch.stack([x.value for x in amounts])
    jac = torch.stack([x.full()[1] for x in amounts], 1)
    hess = torch.stack([x.dense_hess() for x in amounts], 2) if like.order == 2 else torch.zeros(())
    return value, jac, hess


def derivatives_along(
    structure: Closed, values: Mapping[str, float], plan: Schedule, direction: Sequence[float]
) -> list[Tensor]:
    """Amounts of one subject and three derivatives `[compartment, time]` along a direction of the log parameters.

    The first two from the Taylor number, the third by reverse mode through its Hessian.
    """
    q = len(structure.parameters)
    u = torch.tensor(direction, dtype=torch.float64)
    move = torch.zeros((), dtype=torch.float64, requires_grad=True)
    seeds = Taylor.seed(torch.zeros(1, q, dtype=torch.float64), 2)
    shift = [seed + move * u[k] for k, seed in enumerate(seeds)]
    value, jac, hess = solved_taylor(structure, log_normal(structure, shift, values), plan)
    first, second = torch.einsum("k,kcnt->ct", u, jac), torch.einsum("k,l,klcnt->ct", u, u, hess)
    third = [torch.autograd.grad(x, move, retain_graph=True)[0] for x in second.flatten()]
    return [x.detach() for x in (value[:, 0], first, second, torch.stack(third).reshape(second.shape))]


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest error over the largest number."""
    return float((got - expected).abs().max() / expected.abs().max())
