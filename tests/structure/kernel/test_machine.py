"""Compiled kernels against scipy and closed forms: doses of every kind, failures, rows that must not see each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from structure.kernel.pages import (
    NO_WEIGHTS,
    log_normal,
    oral,
    plain,
    saturable,
    seeded,
    stepped,
    timeline,
    turnover,
)
from torch import Tensor

from nlmegen.maths.taylor import Number
from nlmegen.structure.equations import Equations
from nlmegen.structure.kernel.machine import Kernel, Solved
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Point, Timeline

OBSERVE, BOLUS, RATE, RESET, MARK, ZERO = Point
TIGHT = Solver(rtol=1e-11, floor=1e-4, max_steps=100_000)
Points = Sequence[tuple[Any, Point, int, Any]]


def kernel(
    dynamics: Callable[..., Any],
    order: int = 0,
    initial: Callable[..., Any] | None = None,
    also: Sequence[str] = (),
    injected: frozenset[tuple[int, int]] = frozenset(),
) -> Kernel:
    return Kernel.build(Equations.trace(dynamics, initial, also=also).components(order, injected))


def solve(k: Kernel, p: Tensor, line: Timeline, solver: Solver = TIGHT, **more: Any) -> Solved:
    return k.solve(p, NO_WEIGHTS, line, torch.arange(p.shape[0]), solver, **more)


def observations(times: Sequence[float]) -> list[tuple[Any, Point, int, Any]]:
    return [(t, OBSERVE, 0, 0.0) for t in times]


def component(solved: Solved, k: Kernel, state: int, *directions: int) -> Tensor:
    return solved.components[..., k.components.index[state, directions]]


def test_every_kind_of_point() -> None:
    """Boluses and overlapping infusions into two compartments, simultaneous points, resets that set the clock back."""
    points: Points = [
        (0.0, BOLUS, 0, 100.0),
        (0.0, OBSERVE, 0, 0.0),
        (0.0, RATE, 1, 8.0),
        (1.5, OBSERVE, 0, 0.0),
        (2.0, RATE, 0, 20.0),
        (2.0, BOLUS, 1, 50.0),
        (2.0, OBSERVE, 0, 0.0),
        (3.0, RATE, 1, 0.0),
        (3.0, MARK, 0, 0.0),
        (5.0, RATE, 0, 0.0),
        (7.0, OBSERVE, 0, 0.0),
        (8.0, RATE, 0, 33.0),
        (9.0, RESET, 0, 0.0),
        (1.0, RESET, 0, 0.0),
        (1.0, BOLUS, 0, 30.0),
        (4.0, OBSERVE, 0, 0.0),
        (4.0, OBSERVE, 0, 0.0),
        (12.0, OBSERVE, 0, 0.0),
    ]
    p = log_normal((1.0, 6.0, 40.0, 1.0), 11)
    k = kernel(saturable)
    assert k.components.equations.parameters == ("ka", "v", "vmax", "km")
    p = p[:, [0, 2, 1, 3]]
    got = solve(k, p, timeline(points, 11))
    assert got.status.tolist() == [0] * 11
    for m in range(11):
        ka, v, vmax, km = p[m].tolist()

        def rates(
            t: float, y: np.ndarray, ka: float = ka, v: float = v, vm: float = vmax, km: float = km
        ) -> Any:
            c = y[1] / v
            return np.array([-ka * y[0], ka * y[0] - vm * c / (km + c)])

        want = stepped(rates, np.zeros(2), points)
        np.testing.assert_allclose(got.components[m].numpy(), want, rtol=1e-8, atol=1e-8)
    assert torch.equal(got.components[:, 4], got.components[:, 5])


def test_initial_states_and_time() -> None:
    """A page that reads the clock and starts at values that depend on parameters; first and second derivatives."""
    names = ("kin", "kout", "base", "ka", "v", "ic50", "cl", "ke0")
    center = dict(kin=5.0, kout=0.1, base=45.0, ka=1.0, v=40.0, ic50=1.0, cl=4.0, ke0=0.3)

    def initial(p: Any) -> dict[str, Any]:
        return dict(response=p.base + 0.1 * p.kin / p.kout, effect=0.01 * p.base)

    points: Points = [(3.0, BOLUS, 0, 100.0), *observations((3.0, 5.0)), (6.0, RESET, 0, 0.0)]
    points = [*points, (7.0, BOLUS, 0, 60.0), *observations((7.0, 9.0))]
    k = kernel(turnover, 2, initial)
    order = k.components.equations.parameters
    assert set(order) == set(names)
    p = log_normal([center[name] for name in order], 1, 0.2)
    got = solve(k, p, timeline(points, 1), dataclasses.replace(TIGHT, rtol=1e-12))
    assert got.status.tolist() == [0]

    def reference(values: np.ndarray) -> np.ndarray:
        x = dict(zip(order, values, strict=True))

        def rates(t: float, y: np.ndarray) -> np.ndarray:
            c = y[1] / x["v"]
            inhibited = y[2] ** 1.5 / (x["ic50"] ** 1.5 + y[2] ** 1.5)
            kin = x["kin"] * (1 + 0.3 * np.cos(2 * np.pi * t / 24 + 0.4))
            gain = [-x["ka"] * y[0], x["ka"] * y[0] - x["cl"] / x["v"] * y[1], x["ke0"] * (c - y[2])]
            return np.array([*gain, kin * (1 - inhibited) - x["kout"] * y[3]])

        start = np.array([0, 0, 0.01 * x["base"], x["base"] + 0.1 * x["kin"] / x["kout"]])
        return stepped(rates, start, points)

    check_derivatives(k, got, p, lambda _m, values: reference(values))


def check_derivatives(
    k: Kernel, got: Solved, p: Tensor, reference: Callable[[int, np.ndarray], np.ndarray], first: float = 1e-7
) -> None:
    """Values, complex-step first derivatives, and central differences of those, all times |p|, against a row's peak."""
    n, h = p.shape[1], 1e-4
    for m in range(p.shape[0]):
        values = p[m].numpy().astype(complex)
        base = reference(m, values)
        peak = np.abs(base).max(0)

        def slope(q: int, at: np.ndarray, m: int = m) -> np.ndarray:
            moved = at.copy()
            moved[q] += 1e-30j
            return reference(m, moved).imag / 1e-30

        for (i, directions), c in k.components.index.items():
            result = got.components[m, :, c].numpy()
            if not directions:
                want, scale, bound = base[:, i].real, 1.0, 1e-8
            elif len(directions) == 1:
                want, scale, bound = slope(directions[0], values)[:, i], abs(values[directions[0]]), first
            else:
                q, r = directions
                above, below = values.copy(), values.copy()
                above[r] *= 1 + h
                below[r] *= 1 - h
                want = (slope(q, above) - slope(q, below))[:, i] / (2 * h * values[r].real)
                scale, bound = abs(values[q] * values[r]), 1e-6
            np.testing.assert_array_less(np.abs(result - want) * scale, bound * peak[i] + 1e-300)
        # what is left out is structurally zero
        for i in range(base.shape[1]):
            for q in range(n):
                if (i, (q,)) not in k.components.index:
                    assert not slope(q, values)[:, i].any()


MOVED = ("ka", "v", "vmax", "km", "lag", "f", "dur")


def moved_points(lag: Any, f: Any, dur: Any) -> Points:
    """Lagged doses (one at the very first time), fractions of them, an infusion of modelled duration, a plain dose."""
    return [
        (0.0, MARK, 0, 0.0),
        (0.0, BOLUS, 1, 15.0),
        (0.0 + lag, BOLUS, 0, 100.0 * f),
        (2.0, OBSERVE, 0, 0.0),
        (4.0 + lag, RATE, 1, 60.0 / dur),
        (4.0 + lag, BOLUS, 0, 40.0 * f),
        (5.0, OBSERVE, 0, 0.0),
        (5.0, BOLUS, 1, 20.0),
        (4.0 + lag + dur, RATE, 1, 0.0 * lag),
        (12.0, OBSERVE, 0, 0.0),
        (12.0 + 0.3 * lag * lag, BOLUS, 1, 30.0 * f * f),
        (20.0, OBSERVE, 0, 0.0),
    ]


@pytest.mark.parametrize("order", [1, 2])
def test_modelled_doses(order: int) -> None:
    """Derivatives in lag, bioavailability and duration, first and second, with Michaelis-Menten elimination."""
    p = log_normal((1.0, 40.0, 6.0, 1.0, 0.7, 0.8, 3.0), 3, 0.2)[: 3 if order == 1 else 1]
    injected = frozenset((i, q) for i in (0, 1) for q in (4, 5, 6))
    k = kernel(saturable, order, also=MOVED, injected=injected)
    assert k.components.equations.parameters == MOVED
    line = timeline(moved_points(*seeded(p, order)[4:]), p.shape[0])
    got = solve(k, p, line, dataclasses.replace(TIGHT, rtol=1e-12))
    assert not got.status.any()

    def reference(_: int, values: np.ndarray) -> np.ndarray:
        ka, v, vm, km, lag, f, dur = values

        def rates(t: Any, y: np.ndarray) -> np.ndarray:
            c = y[1] / v
            return np.array([-ka * y[0], ka * y[0] - vm * c / (km + c)])

        return stepped(rates, np.zeros(2, dtype=complex), moved_points(lag, f, dur))

    check_derivatives(k, got, p, reference)


def test_modelled_doses_where_the_clock_matters() -> None:
    """The second derivative in a lag needs f_t where rates depend on time, and the state's speed before the dose."""

    def clock(t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(x=-p.k * (1 + torch.sin(t)) * a.x)

    def points(lag: Any) -> Points:
        return [(0.5, MARK, 0, 0.0), (0.5, RATE, 0, 4.0), (1.0 + lag, BOLUS, 0, 10.0), (5.0, OBSERVE, 0, 0.0)]

    p = torch.tensor([[0.5, 0.3], [0.4, 0.0]], dtype=torch.float64)
    k = kernel(clock, 2, also=("k", "lag"), injected=frozenset({(0, 1)}))
    got = solve(k, p, timeline(points(seeded(p, 2)[1]), 2), dataclasses.replace(TIGHT, rtol=1e-12))

    def reference(_: int, values: np.ndarray) -> np.ndarray:
        k, lag = values
        return stepped(lambda t, y: -k * (1 + np.sin(t)) * y, np.zeros(1, dtype=complex), points(lag))

    shifted = dataclasses.replace(got, components=got.components[:1])
    check_derivatives(k, shifted, p[:1], reference)
    # the second row has lag 0: weighting by |p| would hide its derivative
    second = (reference(1, p[1].numpy() + np.array([0, 1e-30j])).imag / 1e-30)[0, 0]
    assert got.components[1, 0, k.components.index[0, (1,)]].item() == pytest.approx(second, rel=1e-8)


def busy(n_rows: int, seed: int = 3) -> tuple[Tensor, Timeline]:
    """Rows whose points differ in times."""
    g = torch.Generator().manual_seed(seed)

    def later(low: float, high: float) -> Number:
        return low + (high - low) * torch.rand(n_rows, 1, generator=g, dtype=torch.float64)

    points: Points = [
        (0.0, BOLUS, 0, 100.0),
        (later(0.1, 3), OBSERVE, 0, 0.0),
        (later(3, 9), OBSERVE, 0, 0.0),
    ]
    points = [*points, (later(9, 20), BOLUS, 0, 80.0), (later(20, 30), RATE, 1, 5.0), (40.0, RATE, 1, 0.0)]
    points = [*points, (later(40, 70), OBSERVE, 0, 0.0)]
    return log_normal((1.0, 40.0, 6.0, 1.0), n_rows), timeline(points, n_rows)


def test_rows_do_not_see_each_other() -> None:
    """Permuted, alone, in threads, beside rows that fail: the same bits."""
    p, line = busy(37)
    k, solver = kernel(saturable, 1), Solver()
    together = solve(k, p, line, solver)
    assert together.status.eq(0).all()
    who = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    permuted = k.solve(p[who], NO_WEIGHTS, line, who, solver)
    assert torch.equal(permuted.components, together.components[who])
    assert torch.equal(permuted.steps, together.steps[who])
    for m in (0, 17, 36):
        alone = k.solve(p[m : m + 1], NO_WEIGHTS, line, torch.tensor([m]), solver)
        assert torch.equal(alone.components[0], together.components[m])
    broken = p.clone()
    broken[5, 1], broken[20, 0], broken[21, 3] = torch.nan, 1e9, torch.inf
    beside = solve(k, broken, line, solver)
    well = torch.ones(37, dtype=torch.bool)
    well[[5, 20, 21]] = False
    assert torch.equal(beside.components[well], together.components[well])
    assert torch.equal(beside.status[well], together.status[well])


def test_rows_do_not_see_each_other_where_the_clock_matters() -> None:
    """A page that reads the time: another lane's dose must not refresh this lane's rates at another rounding.

    The sum of the steps to a point is not quite its time, late times above all. Pairs of rows go in step; one of each
    is observed where the other is given a dose.
    """
    k = kernel(turnover, 1)
    p = torch.tensor([[1.0, 40.0, 1.0, 5.0, 4.0, 0.3, 0.1]], dtype=torch.float64).expand(8, -1)
    at = torch.arange(8, dtype=torch.float64).div(2, rounding_mode="floor")[:, None] * 0.7 + 1e7 + 9.3
    line = timeline([(1e7, BOLUS, 0, 100.0), (at, OBSERVE, 0, 0.0), (1e7 + 30.0, OBSERVE, 0, 0.0)], 8)
    kind = line.kind.clone()
    kind[1::2, 1] = BOLUS
    line = dataclasses.replace(line, kind=kind, slot=torch.where(kind == OBSERVE, line.slot, -1))
    together = solve(k, p, line, Solver())
    assert together.status.eq(0).all()
    for m in range(8):
        alone = k.solve(p[m : m + 1], NO_WEIGHTS, line, torch.tensor([m]), Solver())
        assert torch.equal(alone.components[0], together.components[m])


def test_threads_share_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlmegen.structure.kernel.machine.WORTH_A_THREAD", 1)
    p, line = busy(53)
    k = kernel(saturable, 1)
    one, three = (solve(k, p, line, Solver(), n_threads=n) for n in (1, 3))
    assert torch.equal(one.components, three.components)
    assert torch.equal(one.steps, three.steps)


@pytest.mark.parametrize(
    ("place", "value", "status"),
    [(0, torch.nan, 3), (1, torch.inf, 3), (0, 1e9, 1), (3, torch.nan, 3), (1, 0.0, 3)],
)
def test_failure_is_one_rows_own(place: int, value: float, status: int) -> None:
    """NaN, infinite, absurd and forbidden parameters set a status and NaN; nothing hangs."""
    p, line = busy(9)
    k = kernel(saturable, 1)
    well = solve(k, p, line, Solver())
    p[4, place] = value
    got = solve(k, p, line, Solver(max_steps=2000))
    assert got.status.tolist() == [0] * 4 + [status] + [0] * 4
    assert got.components[4].isnan().any(-1).all()
    assert got.steps[4] <= 2000
    others = [m for m in range(9) if m != 4]
    assert torch.equal(got.components[others], well.components[others])


def test_failure_keeps_what_came_before() -> None:
    """A solution that ceases to exist: finite until then, NaN from then on."""

    def explosive(t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(x=p.k * a.x * a.x)

    k = kernel(explosive)
    points: Points = [(0.0, BOLUS, 0, 1.0), *observations((0.5, 0.9, 1.5, 2.0))]
    p = torch.tensor([[1.0], [0.1]], dtype=torch.float64)
    got = solve(k, p, timeline(points, 2), Solver(rtol=1e-9))
    assert got.status[0] != 0
    assert got.status[1] == 0
    torch.testing.assert_close(got.components[0, :2, 0], torch.tensor([2.0, 10.0], dtype=torch.float64))
    assert got.components[0, 2:].isnan().all()


def test_bad_times_and_amounts() -> None:
    """NaN or infinite times and amounts are that row's failure."""
    p, line = busy(8)
    k = kernel(saturable)
    assert isinstance(line.time, Tensor)
    assert isinstance(line.amount, Tensor)
    time, amount = line.time.clone(), line.amount.clone()
    time[1, 3], time[2, 4], amount[3, 0], amount[4, 4] = torch.nan, torch.inf, torch.nan, torch.nan
    got = solve(k, p, dataclasses.replace(line, time=time, amount=amount), Solver())
    assert got.status.tolist() == [0, 3, 3, 3, 3, 0, 0, 0]


def test_cap_counts_every_step() -> None:
    p, line = busy(5)
    k = kernel(saturable)
    needed = solve(k, p, line, Solver()).steps
    cap = int(needed.min()) - 1
    got = solve(k, p, line, Solver(max_steps=cap))
    assert got.status.eq(1).all()
    assert got.steps.eq(cap).all()


def test_timelines_are_shared_and_padded() -> None:
    """Draws of subjects follow their subject's timeline; unused columns and padding are left alone."""
    line = timeline([(0.0, BOLUS, 0, 100.0), *observations((1.0, 2.0, 4.0))], 2)
    short = dataclasses.replace(line, count=torch.tensor([4, 2]))
    p = log_normal((1.0, 4.0, 40.0), 6)
    got = kernel(oral).solve(p, NO_WEIGHTS, short, torch.tensor([0, 1, 0, 1, 0, 1]), Solver())
    assert got.components[0::2].ne(0).all()
    assert got.components[1::2, 0].ne(0).all()
    assert got.components[1::2, 1:].eq(0).all()
    nothing = dataclasses.replace(line, count=torch.zeros(2, dtype=torch.int64))
    empty = kernel(oral).solve(p, NO_WEIGHTS, nothing, torch.zeros(6, dtype=torch.int64), Solver())
    assert empty.status.eq(0).all()
    assert kernel(oral).solve(
        p[:0], NO_WEIGHTS, line, torch.zeros(0, dtype=torch.int64), Solver()
    ).steps.shape == (0,)


def test_derivatives_of_doses_are_ignored_at_order_0() -> None:
    p = log_normal((1.0, 40.0, 6.0, 1.0, 0.7, 0.8, 3.0), 3, 0.2)
    line = timeline(moved_points(*seeded(p, 1)[4:]), 3)
    k = kernel(saturable, 0, also=MOVED)
    assert torch.equal(solve(k, p, line).components, solve(k, p, plain(line)).components)


def test_wrong_arguments() -> None:
    k, line = kernel(oral), timeline(observations((1.0,)), 2)
    p = log_normal((1.0, 4.0, 40.0), 2)
    with pytest.raises(ValueError, match="3 parameters"):
        k.solve(p[:, :2], NO_WEIGHTS, line, torch.arange(2), Solver())
    with pytest.raises(ValueError, match="indices of 2 timelines"):
        k.solve(p, NO_WEIGHTS, line, torch.tensor([0, 2]), Solver())
    with pytest.raises(ValueError, match="explicit"):
        Kernel.build(k.components, "implicit")


def test_timelines_are_checked() -> None:
    """The driver does not look where it writes, so what it is given is looked at before."""
    k, line = kernel(oral), timeline([(0.0, BOLUS, 0, 1.0), *observations((1.0,))], 2)
    p = log_normal((1.0, 4.0, 40.0), 2)
    wrong = {
        "columns": dataclasses.replace(line, slot=line.slot + 1),
        "compartment": dataclasses.replace(line, compartment=line.compartment + 2),
        "points": dataclasses.replace(line, count=line.count + 1),
    }
    for words, bad in wrong.items():
        with pytest.raises(ValueError, match=words):
            solve(k, p, bad)


def test_a_timeline_is_read_once_and_a_new_one_again() -> None:
    k, p = kernel(oral), log_normal((1.0, 4.0, 40.0), 2)
    line = timeline([(0.0, BOLUS, 0, 1.0), *observations((1.0,))], 2)
    once = solve(k, p, line).components
    other = dataclasses.replace(line, amount=2 * line.amount)
    assert k.lines(line) is k.lines(line)
    torch.testing.assert_close(solve(k, p, other).components, 2 * once)
    assert torch.equal(solve(k, p, line).components, once)


def test_weights_are_shared_by_all_rows() -> None:
    """A small network inside: its weights as one vector give what they give as parameters of every row."""

    def network(a: Any, w: Sequence[Any]) -> dict[str, Any]:
        return dict(x=w[2] * torch.tanh(w[0] * a.x + w[1]) - a.x)

    def shared(t: Any, a: Any, p: Any) -> dict[str, Any]:
        rates = network(a, [a.x.graph.weight(k) for k in range(3)])
        return dict(x=p.k * rates["x"])

    def own(t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(x=p.k * network(a, [p.w0, p.w1, p.w2])["x"])

    line = timeline([(0.0, BOLUS, 0, 3.0), *observations((0.5, 2.0))], 9)
    p = log_normal((0.7,), 9)
    w = torch.tensor([0.8, -0.3, 1.7], dtype=torch.float64)
    one = Kernel.build(Equations.trace(shared, n_weights=3).components(0))
    other = Kernel.build(Equations.trace(own, also=("k", "w0", "w1", "w2")).components(0))
    assert set(other.components.equations.parameters) == {"k", "w0", "w1", "w2"}
    values = dict(zip(("w0", "w1", "w2"), w, strict=True))
    names = other.components.equations.parameters
    columns = [p if name == "k" else values[name].expand(9, 1) for name in names]
    got = one.solve(p, w, line, torch.arange(9), TIGHT)
    torch.testing.assert_close(
        got.components, solve(other, torch.cat(columns, -1), line).components, rtol=1e-12, atol=0
    )
    with pytest.raises(ValueError, match="3 weights"):
        one.solve(p, w[:2], line, torch.arange(9), TIGHT)


def test_adjoint_gives_what_sensitivities_give() -> None:
    p, line = busy(5)
    forward, back = kernel(saturable, 1), kernel(saturable, 0)
    solved = solve(forward, p, line, dataclasses.replace(TIGHT, rtol=1e-10))
    cotangent = torch.linspace(-1, 1, 5 * 3 * 2, dtype=torch.float64).reshape(5, 3, 2)
    solver = dataclasses.replace(TIGHT, rtol=1e-10)
    by_p, by_weights = back.adjoint(p, NO_WEIGHTS, line, torch.arange(5), solver, cotangent)
    assert by_weights.shape == (5, 0)
    for q in range(4):
        want = torch.zeros(5, dtype=torch.float64)
        for i in (0, 1):
            if (i, (q,)) in forward.components.index:
                want += (cotangent[..., i] * component(solved, forward, i, q)).sum(-1)
        torch.testing.assert_close(by_p[:, q], want, rtol=1e-6, atol=1e-8)
