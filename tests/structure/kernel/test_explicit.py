"""The explicit step: its order, what its error control holds, and problems where step control is tempted to err."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from structure.kernel.pages import NO_WEIGHTS, log_normal, oral, saturable, stepped, timeline
from torch import Tensor

from nlmegen.structure.equations import Equations
from nlmegen.structure.kernel.explicit import ERROR, NODES, STAGES
from nlmegen.structure.kernel.machine import Kernel
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Point

OBSERVE, BOLUS = Point.OBSERVE, Point.BOLUS
TIMES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 50.0)
POINTS = [(0.0, BOLUS, 0, 100.0), *((t, OBSERVE, 0, 0.0) for t in TIMES)]


def solve(
    dynamics: Any, p: Tensor, solver: Solver, order: int = 0, points: Any = POINTS
) -> tuple[Kernel, Any]:
    k = Kernel.build(Equations.trace(dynamics).components(order))
    return k, k.solve(p, NO_WEIGHTS, timeline(points, p.shape[0]), torch.arange(p.shape[0]), solver)


def bateman(p: Tensor) -> Tensor:
    """Amounts `[row, time, compartment]` of the oral one-compartment model after 100, from (ka, cl, v)."""
    ka, ke = p[:, :1], p[:, 1:2] / p[:, 2:]
    t = torch.tensor(TIMES, dtype=torch.float64)
    depot = 100 * torch.exp(-ka * t)
    return torch.stack((depot, 100 * ka / (ka - ke) * (torch.exp(-ke * t) - torch.exp(-ka * t))), -1)


def test_tableau() -> None:
    """Order conditions up to five for the solution and four for the embedded one: bushes, chains, some between."""
    a = np.zeros((7, 7))
    for i, row in enumerate(STAGES):
        a[i, : len(row)] = row
    c, b = np.array(NODES), a[6]
    np.testing.assert_allclose(a.sum(1), c, atol=1e-14)
    for k in range(1, 6):
        assert b @ c ** (k - 1) == pytest.approx(1 / k, abs=1e-14)
        if k < 5:
            assert np.array(ERROR) @ c ** (k - 1) == pytest.approx(0, abs=1e-14)
    power, factorial = np.ones(7), 1.0
    for k in range(1, 6):
        factorial *= k
        assert b @ power == pytest.approx(1 / factorial, abs=1e-14)
        power = a @ power
    assert b @ (c * (a @ c)) == pytest.approx(1 / 8, abs=1e-14)
    assert b @ (c * (a @ c**2)) == pytest.approx(1 / 15, abs=1e-14)
    assert b @ ((a @ c) ** 2) == pytest.approx(1 / 20, abs=1e-14)


def test_closed_form_with_derivatives() -> None:
    p = log_normal((1.0, 4.0, 40.0), 16)
    k, got = solve(oral, p, Solver(rtol=1e-12, floor=1e-4, max_steps=100_000), 2)
    torch.testing.assert_close(got.components[..., :2], bateman(p), rtol=1e-9, atol=1e-10)
    first = torch.func.vmap(torch.func.jacfwd(lambda x: bateman(x[None])[0]))(p)
    second = torch.func.vmap(torch.func.jacfwd(torch.func.jacfwd(lambda x: bateman(x[None])[0])))(p)
    for (i, directions), c in k.components.index.items():
        if directions:
            want = first if len(directions) == 1 else second
            for q in directions:
                want = want.select(3, q)
            torch.testing.assert_close(got.components[..., c], want[..., i], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("rtol", "floor"), [(1e-5, 1e-2), (1e-7, 1e-3), (1e-9, 1e-3)])
def test_tolerance_is_kept(rtol: float, floor: float) -> None:
    """Errors of value and scaled sensitivities relative to the peak stay near the tolerance; low values keep theirs."""
    p = log_normal((1.0, 4.0, 40.0), 64)
    k, got = solve(oral, p, Solver(rtol=rtol, floor=floor), 1)
    want, peak = bateman(p), bateman(p).amax(1, keepdim=True)
    assert ((got.components[..., :2] - want) / peak).abs().max() < 3 * rtol
    seen = want[..., 1] > floor * peak[..., 1]
    assert (got.components[..., 1] / want[..., 1] - 1).abs()[seen].max() < 30 * rtol
    slopes = torch.func.vmap(torch.func.jacfwd(lambda x: bateman(x[None])[0]))(p)
    for q in range(3):
        error = (got.components[..., k.components.index[1, (q,)]] - slopes[:, :, 1, q]) * p[:, q, None]
        assert (error / peak[..., 1]).abs().max() < 10 * rtol


def test_floor_is_where_relative_accuracy_ends() -> None:
    p = log_normal((1.0, 4.0, 40.0), 32)
    late = bateman(p)[:, -1, 1]
    relative = {}
    for floor in (1.0, 1e-5):
        _, got = solve(oral, p, Solver(rtol=1e-6, floor=floor))
        relative[floor] = float((got.components[:, -1, 1] / late - 1).abs().max())
    assert relative[1e-5] < 1e-5
    assert relative[1.0] > 10 * relative[1e-5]


def test_sensitivities_are_in_the_norm() -> None:
    """A parameter of weight in the sensitivities alone makes steps shorter."""
    p = log_normal((1.0, 40.0, 6.0, 1.0), 16)
    (_, plain), (_, first), (_, second) = (solve(saturable, p, Solver(), order) for order in (0, 1, 2))
    assert (first.steps > plain.steps).all()
    assert (second.steps > first.steps).all()


def chain(t: Any, a: Any, p: Any) -> dict[str, Any]:
    """A dose that passes through twelve compartments."""
    flows = [p.k * a[f"c{i}"] for i in range(12)]
    return {f"c{i}": (flows[i - 1] if i else 0.0) - flows[i] for i in range(12)}


def test_long_empty_chain() -> None:
    """Twelve compartments that fill one after the other, c_n = dose (kt)^n e^(-kt) / n!, from nothing at all."""
    p = torch.tensor([[0.5], [2.0], [30.0]], dtype=torch.float64)
    _, got = solve(chain, p, Solver(max_steps=1500))
    assert got.status.eq(0).all()
    x = p[:, :, None] * torch.tensor(TIMES, dtype=torch.float64)[None, :, None]
    n = torch.arange(12, dtype=torch.float64)
    want = 100 * torch.exp(n * torch.log(x) - x - torch.lgamma(n + 1))
    assert ((got.components - want) / 100).abs().max() < 1e-7


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_units_do_not_matter(unit: float) -> None:
    """Time, amounts and volumes in other units: the same steps but for sensitivities that begin at nothing."""
    p = log_normal((1.0, 40.0, 6.0, 1.0), 4)  # ka, v, vmax, km
    _, here = solve(saturable, p, Solver(), 1)
    other = p * torch.tensor([1 / unit, 1.0, unit / unit, unit], dtype=torch.float64)
    points = [(t * unit, kind, c, x * unit) for t, kind, c, x in POINTS]
    _, there = solve(saturable, other, Solver(), 1, points)
    assert there.status.eq(0).all()
    assert (there.steps - here.steps).abs().max() <= 4
    torch.testing.assert_close(
        there.components[..., :2] / unit, here.components[..., :2], rtol=1e-5, atol=1e-5
    )


def test_rest_and_long_gaps() -> None:
    """Nothing there, then nothing happening, then a dose after a thousand half-lives."""
    points = [
        (0.0, OBSERVE, 0, 0.0),
        (500.0, OBSERVE, 0, 0.0),
        (500.0, BOLUS, 0, 1.0),
        (501.0, OBSERVE, 0, 0.0),
    ]
    points = [*points, (9000.0, BOLUS, 0, 100.0), (9001.0, OBSERVE, 0, 0.0)]
    p = log_normal((1.0, 40.0, 6.0, 1.0), 5)
    _, got = solve(saturable, p, Solver(), 0, points)
    assert got.status.eq(0).all()
    assert got.components[:, :2].eq(0).all()
    for m in range(5):
        ka, v, vmax, km = p[m].tolist()

        def rates(
            t: float, y: np.ndarray, ka: float = ka, v: float = v, vm: float = vmax, km: float = km
        ) -> Any:
            c = y[1] / v
            return np.array([-ka * y[0], ka * y[0] - vm * c / (km + c)])

        want = stepped(rates, np.zeros(2), points)
        np.testing.assert_allclose(got.components[m, 2:].numpy(), want[2:], rtol=1e-5, atol=1e-8)
