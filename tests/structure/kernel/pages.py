"""Pages, timelines and references for tests of compiled kernels; references share no code with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.timeline import Point, Timeline

NO_WEIGHTS = torch.zeros(0, dtype=torch.float64)


def oral(t: Any, a: Any, p: Any) -> dict[str, Any]:
    """One compartment with first-order absorption."""
    absorbed = p.ka * a.depot
    return dict(depot=-absorbed, central=absorbed - p.cl / p.v * a.central)


def saturable(t: Any, a: Any, p: Any) -> dict[str, Any]:
    """The same with Michaelis-Menten elimination."""
    absorbed = p.ka * a.depot
    c = a.central / p.v
    return dict(depot=-absorbed, central=absorbed - p.vmax * c / (p.km + c))


def turnover(t: Any, a: Any, p: Any) -> dict[str, Any]:
    """An effect compartment that inhibits the production of a response, not autonomous."""
    absorbed = p.ka * a.depot
    c = a.central / p.v
    effect = a.effect**1.5
    inhibition = effect / (p.ic50**1.5 + effect)
    kin = p.kin * (1 + 0.3 * torch.cos(2 * torch.pi * t / 24 + torch.as_tensor(0.4)))
    return dict(
        depot=-absorbed,
        central=absorbed - p.cl / p.v * a.central,
        effect=p.ke0 * (c - a.effect),
        response=kin * (1 - inhibition) - p.kout * a.response,
    )


def timeline(points: Sequence[tuple[Number, Point, int, Number]], n_rows: int) -> Timeline:
    """Points (time, kind, compartment, amount) in the order in which they act, the same for all rows.

    Times and amounts are floats, tensors or Taylor numbers `[row, 1]`.
    """
    zero = torch.zeros(n_rows, 1, dtype=torch.float64)
    kind = torch.tensor([[int(k) for _, k, _, _ in points]]).expand(n_rows, -1)
    observed = kind == Point.OBSERVE
    return Timeline(
        time=torch.cat([t + zero for t, _, _, _ in points], -1),
        kind=kind,
        compartment=torch.tensor([[c for _, _, c, _ in points]]).expand(n_rows, -1),
        amount=torch.cat([x + zero for _, _, _, x in points], -1),
        slot=torch.where(observed, observed.cumsum(-1) - 1, -1),
        segment=torch.zeros_like(kind),
        count=torch.full((n_rows,), len(points)),
        n_slots=int(observed[0].sum()),
    )


def plain(line: Timeline) -> Timeline:
    """A timeline without the derivatives of its times and amounts."""
    return Timeline(**{**line.__dict__, "time": value_of(line.time), "amount": value_of(line.amount)})


def log_normal(center: Sequence[float], n_rows: int, sd: float = 0.3, seed: int = 1) -> Tensor:
    """Parameters `[row, n]` around a centre."""
    g = torch.Generator().manual_seed(seed)
    middle = torch.tensor(center, dtype=torch.float64)
    return middle * torch.exp(sd * torch.randn(n_rows, len(center), generator=g, dtype=torch.float64))


def seeded(p: Tensor, order: int) -> list[Taylor]:
    """The columns of `p [row, n]` as independent Taylor numbers `[row, 1]`."""
    return Taylor.seed(p, order)


def stepped(
    rates: Callable[..., np.ndarray],
    start: np.ndarray,
    points: Sequence[tuple[float, Point, int, float]],
    restart: np.ndarray | None = None,
    rtol: float = 1e-12,
) -> np.ndarray:
    """Amounts of one row at its observations `[time, state]` by scipy's DOP853; times may be complex (complex step).

    Between two points the clock is u from 0 to 1, so that derivatives with respect to a point's time are those of a
    smooth function.
    """
    y, infusion, now = np.array(start), np.zeros_like(start), points[0][0]
    out = []
    for time, kind, compartment, amount in points:
        length = time - now
        if kind == Point.RESET:
            y, infusion, now = np.array(start if restart is None else restart), np.zeros_like(start), time
            continue
        if abs(length) > 0:
            done = solve_ivp(
                lambda u, x, now=now, length=length, infusion=infusion: (
                    length * (rates(now + u * length, x) + infusion)
                ),
                (0.0, 1.0),
                y,
                method="DOP853",
                rtol=rtol,
                atol=1e-13,
            )
            y = done.y[:, -1]
        now = time
        if kind == Point.OBSERVE:
            out.append(y.copy())
        elif kind == Point.BOLUS:
            y = y.copy()
            y[compartment] += amount
        elif kind == Point.RATE:
            infusion = infusion.copy()
            infusion[compartment] = amount
    return np.array(out)
