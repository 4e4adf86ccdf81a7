"""The compiled stiff step: order conditions, stiff problems against references that share no code with it, edges."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from structure.kernel.pages import NO_WEIGHTS, saturable, timeline

from nlmegen.structure.equations import Equations
from nlmegen.structure.kernel import rosenbrock
from nlmegen.structure.kernel.machine import Kernel, Solved
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Point
from nlmegen.structure.trace import Untraceable

DEFAULT = Solver(method="stiff", rtol=1e-7, floor=1e-4)
Array = np.ndarray[Any, np.dtype[np.float64]]
Dose = tuple[Any, Point, int, Any]
BOLUS, RATE = Point.BOLUS, Point.RATE


def run(
    kernel: Kernel, p: Array, times: Array, doses: Sequence[Dose] = (), solver: Solver = DEFAULT
) -> tuple[Array, Solved]:
    """Components [row, T, C] of parameters p [row, n] at times [T] or [row, T] (the doses then come first)."""
    columns = torch.tensor(np.atleast_2d(times)).split(1, 1)
    points = [*doses, *((t, Point.OBSERVE, 0, 0.0) for t in columns)]
    if np.ndim(times) == 1:
        points = sorted(points, key=lambda x: float(x[0]))
    line = timeline(points, len(p))
    solved = kernel.solve(torch.tensor(p), NO_WEIGHTS, line, torch.arange(len(p)), solver)
    return solved.components.numpy(), solved


def built(
    dynamics: Callable[..., Any],
    initial: Callable[..., Any] | None = None,
    order: int = 1,
    method: str = "stiff",
) -> Kernel:
    return Kernel.build(Equations.trace(dynamics, initial).components(order), method)


def first(kernel: Kernel, out: Array, i: int, name: str) -> Array:
    """Sensitivity of state i in a parameter, [row, T]."""
    components = kernel.components
    place = components.index.get((i, (components.equations.parameters.index(name),)))
    return np.zeros(out.shape[:2]) if place is None else out[:, :, place]


# -- the method ----------------------------------------------------------------------------------------------
def trees(order: int) -> list[Any]:
    """Rooted trees of an order, as nested tuples."""
    if order == 1:
        return [()]
    found = set()
    for count in range(1, order):
        for sizes in itertools.combinations_with_replacement(range(1, order), count):
            if sum(sizes) == order - 1:
                for branches in itertools.product(*(trees(k) for k in sizes)):
                    found.add(tuple(sorted(branches)))
    return sorted(found)


def density(tree: Any) -> int:
    size = repr(tree).count("(")  # every node is one tuple
    return size * int(np.prod([density(branch) for branch in tree], dtype=int))


def square(rows: Sequence[Sequence[float]]) -> Array:
    return np.array([list(row) + [0.0] * (rosenbrock.COUNT - len(row)) for row in rows])


def test_coefficients_meet_the_order_conditions() -> None:
    """A node with one branch takes beta = alpha + gamma, one with several alpha (Hairer & Wanner, section IV.7)."""
    gamma = np.linalg.inv(np.eye(rosenbrock.COUNT) / rosenbrock.GAMMA - square(rosenbrock.COUPLING))
    alpha = square(rosenbrock.STAGES) @ gamma
    beta = alpha + gamma
    weights, error = np.array(rosenbrock.WEIGHTS) @ gamma, np.array(rosenbrock.ERROR) @ gamma

    def elementary(tree: Any) -> Array:
        if len(tree) == 1:
            return beta @ elementary(tree[0])
        return np.prod([np.ones(rosenbrock.COUNT), *(alpha @ elementary(x) for x in tree)], axis=0)

    np.testing.assert_allclose(alpha.sum(1), rosenbrock.NODES, atol=1e-13)
    np.testing.assert_allclose(gamma.sum(1), rosenbrock.SLOPES, atol=1e-13)
    assert [len(trees(k)) for k in range(1, 6)] == [1, 1, 2, 4, 9]
    for k in range(1, 6):
        for tree in trees(k):
            assert weights @ elementary(tree) == pytest.approx(1 / density(tree), abs=1e-13)
            if k < 5:
                assert (weights - error) @ elementary(tree) == pytest.approx(1 / density(tree), abs=1e-13)
    assert max(abs((weights - error) @ elementary(x) - 1 / density(x)) for x in trees(5)) > 1e-3
    # L-stable: the stability function vanishes at infinity, and does not exceed 1 on the imaginary axis
    one = np.ones(rosenbrock.COUNT)
    assert abs(1 - weights @ np.linalg.solve(beta, one)) < 1e-12
    for y in 10.0 ** np.linspace(-1, 4, 101):
        stability = 1 + 1j * y * weights @ np.linalg.solve(np.eye(rosenbrock.COUNT) - 1j * y * beta, one)
        assert abs(stability) <= 1 + 1e-12


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_order_survives_in_sensitivities(order: int) -> None:
    """From rtol 1e-6 to 1e-10 a method of order 5 takes 10^(4/5) = 6.3 times the steps; a wrong Jacobian far more."""

    def dynamics(t: Any, a: Any, p: Any) -> Any:
        rate = p.v * a.x**p.h / (p.k + a.x**p.h) * (1 + 0.5 * torch.sin(t))
        return dict(x=-rate * torch.exp(-a.y), y=rate - p.k * a.y)

    kernel = built(dynamics, order=order)
    p = np.array([[1.3, 1.7, 0.9]])
    taken = []
    for rtol in (1e-6, 1e-10):
        solved = run(kernel, p, np.array([6.0]), [(0.0, BOLUS, 0, 4.0)], Solver(rtol=rtol))[1]
        taken.append(int(solved.steps[0]))
    assert taken[1] / taken[0] < 8.5


# -- target-mediated disposition -----------------------------------------------------------------------------
TMDD = ("kel", "kon", "koff", "kin", "kout", "kint")


def tmdd(t: Any, a: Any, p: Any) -> Any:
    binding = p.kon * a.ligand * a.receptor - p.koff * a.complex
    return dict(
        ligand=-p.kel * a.ligand - binding,
        receptor=p.kin - p.kout * a.receptor - binding,
        complex=binding - p.kint * a.complex,
    )


def tmdd_start(p: Any) -> Any:
    return dict(receptor=p.kin / p.kout)


def tmdd_rates(t: float, y: Array, p: Array) -> Array:
    """Amounts [3] and sensitivities [3, 6], by hand."""
    kel, kon, koff, kin, kout, kint = p
    (x, r, c), s = y[:3], y[3:].reshape(3, 6)
    b = kon * x * r - koff * c
    rows = (
        [-kel - kon * r, -kon * x, koff],
        [-kon * r, -kout - kon * x, koff],
        [kon * r, kon * x, -koff - kint],
    )
    jac = np.array(rows)
    direct = np.zeros((3, 6))
    direct[:, 1], direct[:, 2] = np.array([-1, -1, 1]) * x * r, np.array([1, 1, -1]) * c
    direct[0, 0], direct[1, 3], direct[1, 4], direct[2, 5] = -x, 1.0, -r, -c
    return np.concatenate(([-kel * x - b, kin - kout * r - b, b - kint * c], (jac @ s + direct).ravel()))


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_tmdd_keeps_its_accuracy_relative_to_what_is_observed(factor: float) -> None:
    """The free ligand falls by up to seven decades from its first spike before it is observed."""
    rng = np.random.default_rng(3)
    p = np.array([0.05, 0.091 * factor, 0.001, 0.11, 0.0089, 0.003]) * np.exp(0.3 * rng.normal(size=(6, 6)))
    dose, times = 10 ** (1 + 2 * rng.random(6)), np.sort(300 * rng.random((6, 5)), 1)
    kernel = built(tmdd, tmdd_start)
    order = [TMDD.index(name) for name in kernel.components.equations.parameters]
    out, solved = run(kernel, p[:, order], times, [(0.0, BOLUS, 0, torch.tensor(dose)[:, None])])
    assert solved.status.tolist() == [0] * 6
    assert int(solved.steps.max()) < 2000
    for n in range(6):
        start = np.zeros(21)
        start[:2], start[12], start[13] = (dose[n], p[n, 3] / p[n, 4]), 1 / p[n, 4], -p[n, 3] / p[n, 4] ** 2
        tight = np.concatenate((np.full(3, 1e-15), np.tile(1e-15 / p[n], 3)))
        exact = solve_ivp(
            tmdd_rates, (0, times[n, -1]), start, "LSODA", times[n], args=(p[n],), rtol=1e-12, atol=tight
        ).y
        peak = np.abs(exact[:3]).max(1)
        for i in range(3):
            assert np.abs(out[n, :, i] - exact[i]).max() < 1e-6 * peak[i]
            for q, name in enumerate(TMDD):
                wrong = first(kernel, out[n : n + 1], i, name)[0] - exact[3 + 6 * i + q]
                assert np.abs(wrong).max() * p[n, q] < 1e-5 * peak[i]


# -- textbook problems ---------------------------------------------------------------------------------------
def test_robertson() -> None:
    def dynamics(t: Any, a: Any, p: Any) -> Any:
        slow, fast, back = p.k1 * a.x, p.k2 * a.y * a.y, p.k3 * a.y * a.z
        return dict(x=back - slow, y=slow - back - fast, z=fast)

    def rates(t: float, y: Array) -> Array:
        (a, b, c), (sa, sb, sc) = y[:3], y[3:]
        slow, fast, back = 0.04 * a, 3e7 * b * b, 1e4 * b * c
        # sensitivity in k3
        dslow, dfast, dback = 0.04 * sa, 6e7 * b * sb, 1e4 * (sb * c + b * sc) + b * c
        return np.array([back - slow, slow - back - fast, fast, dback - dslow, dslow - dback - dfast, dfast])

    kernel = built(dynamics)
    times = np.array([0.4, 4.0, 400.0, 4e5])
    values = dict(k1=0.04, k2=3e7, k3=1e4)
    p = np.array([[values[name] for name in kernel.components.equations.parameters]])
    out, solved = run(kernel, p, times, [(0.0, BOLUS, 0, 1.0)])
    tight = [1e-15, 1e-20, 1e-15] + [1e-20] * 3
    exact = solve_ivp(rates, (0, 4e5), [1.0, 0, 0, 0, 0, 0], "LSODA", times, rtol=1e-11, atol=tight).y
    assert solved.status.tolist() == [0]
    assert int(solved.steps[0]) < 800
    np.testing.assert_allclose(out[0, :, :3].T, exact[:3], rtol=1e-6)
    for i in range(3):
        wrong = np.abs(first(kernel, out, i, "k3")[0] - exact[3 + i]) * 1e4
        assert (wrong < 1e-5 * np.abs(exact[i])).all()


def test_van_der_pol() -> None:
    def dynamics(t: Any, a: Any, p: Any) -> Any:
        return dict(x=a.y, y=p.mu * (1 - a.x * a.x) * a.y - a.x)

    def rates(t: float, y: Array) -> Array:
        x, v, sx, sv = y
        damping = 1 - x * x
        return np.array(
            [v, 1e3 * damping * v - x, sv, damping * v + 1e3 * (damping * sv - 2 * x * v * sx) - sx]
        )

    times = np.array([200.0, 700.0, 900.0])
    kernel = built(dynamics)
    out, solved = run(kernel, np.array([[1e3]]), times, [(0.0, BOLUS, 0, 2.0)])
    exact = solve_ivp(rates, (0, 900.0), [2.0, 0, 0, 0], "LSODA", times, rtol=1e-12, atol=1e-15).y
    assert solved.status.tolist() == [0]
    assert exact[0, 0] > 1 > -1 > exact[0, 2]
    np.testing.assert_allclose(out[0, :, 0], exact[0], rtol=1e-6)
    np.testing.assert_allclose(first(kernel, out, 0, "mu")[0], exact[2], rtol=1e-5)


def test_linear_chain_with_rates_over_nine_decades() -> None:
    """Bateman's formula for x -> y -> z under a bolus and an infusion, in 50 digits, with its derivatives."""

    def dynamics(t: Any, a: Any, p: Any) -> Any:
        return dict(x=-p.k0 * a.x, y=p.k0 * a.x - p.k1 * a.y, z=p.k1 * a.y - p.k2 * a.z)

    def last(t: float, k0: Any, k1: Any, k2: Any) -> Any:
        k = (k0, k1, k2)

        def response(u: Any, n: int, powers: int) -> Any:
            """n-th amount after a unit bolus into the first (powers = 0) or its integral (1)."""
            total = mpmath.mpf(0)
            for i in range(n + 1):
                others = mpmath.fprod([k[j] - k[i] for j in range(n + 1) if j != i])
                decay = mpmath.exp(-k[i] * u)
                total += ((1 - decay) / k[i] if powers else decay) / others
            return total * mpmath.fprod(k[:n])

        infused = response(t, 2, 1) - (response(t - 2, 2, 1) if t > 2 else 0)
        return 10 * response(t, 2, 0) + 3 * infused

    k = (1e6, 0.7, 1e-3)
    times = np.array([1e-6, 1e-2, 1.0, 5.0, 200.0])
    kernel = built(dynamics)
    assert kernel.components.equations.parameters == ("k0", "k1", "k2")
    doses = [(0.0, BOLUS, 0, 10.0), (0.0, RATE, 0, 3.0), (2.0, RATE, 0, 0.0)]
    out, solved = run(kernel, np.array([k]), times, doses)
    assert solved.status.tolist() == [0]
    with mpmath.workdps(50):
        numbers = [mpmath.mpf(x) for x in k]
        exact = [float(last(mpmath.mpf(t), *numbers)) for t in times]
        slopes = [
            [float(mpmath.diff(lambda *u, t=t: last(mpmath.mpf(t), *u), numbers, unit)) for t in times]
            for unit in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
        ]
    np.testing.assert_allclose(out[0, :, 2], exact, rtol=1e-6)
    for q, name in enumerate(("k0", "k1", "k2")):
        wrong = np.abs(first(kernel, out, 2, name)[0] - slopes[q]) * k[q]
        assert (wrong < 1e-5 * np.abs(exact)).all()


def test_time_in_the_rates() -> None:
    """x' = -k (x - cos w t) - w sin w t has the solution cos w t for every k, with dx/dw = -t sin w t and dx/dk = 0."""

    def dynamics(t: Any, a: Any, p: Any) -> Any:
        return dict(x=-p.k * (a.x - torch.cos(p.w * t)) - p.w * torch.sin(p.w * t))

    kernel = built(dynamics)
    p = np.array([[k, 1.3] for k in (1.0, 1e3, 1e7)])
    assert kernel.components.equations.parameters == ("k", "w")
    times = np.linspace(0.5, 10, 20)
    out, solved = run(kernel, p, times, [(0.0, BOLUS, 0, 1.0)])
    assert solved.status.tolist() == [0] * 3
    assert int(solved.steps.max()) < 500
    for n in range(3):
        np.testing.assert_allclose(out[n, :, 0], np.cos(1.3 * times), atol=1e-6)
        np.testing.assert_allclose(first(kernel, out, 0, "w")[n], -times * np.sin(1.3 * times), atol=1e-5)
        assert np.abs(first(kernel, out, 0, "k")[n] * p[n, 0]).max() < 1e-5


def test_both_methods_agree_on_a_mild_page_at_second_order() -> None:
    kernels = [built(saturable, order=2, method=method) for method in ("stiff", "explicit")]
    p = np.array([[1.2, 10.0, 9.0, 1.4], [0.4, 8.0, 20.0, 0.4]])  # ka, v, vmax, km
    times = np.array([0.1, 1.0, 5.0, 20.0])
    doses = [(0.0, BOLUS, 0, 100.0), (3.0, BOLUS, 1, 20.0), (4.0, RATE, 1, 5.0), (6.0, RATE, 1, 0.0)]
    tight = Solver(rtol=1e-11, floor=1e-4)
    ours, theirs = (run(kernel, p, times, doses, tight)[0] for kernel in kernels)
    keys = kernels[0].components.keys
    assert {len(along) for _, along in keys} == {0, 1, 2}
    for c, (i, along) in enumerate(keys):
        scale = np.abs(theirs[:, :, i]).max(1)
        scaled = np.abs(ours[:, :, c] - theirs[:, :, c]).max(1) * np.prod(p[:, list(along)], 1)
        assert (scaled < 1e-7 * scale).all()


def test_elimination_of_a_hub_and_its_tissues_creates_no_entries() -> None:
    arrow = {(i, j) for i in range(8) for j in range(8) if i == j or i == 0 or j == 0}
    entries = rosenbrock._elimination(arrow, 8)[1]
    assert entries == arrow


def test_an_order_of_elimination_that_is_not_the_page_s_own() -> None:
    """Blood (the first state) and four tissues: y' = A y by the matrix exponential, derivatives by complex steps."""

    def dynamics(t: Any, a: Any, p: Any) -> Any:
        flows = [getattr(p, f"q{i}") * (a.blood - getattr(a, f"x{i}") / p.kp) for i in range(1, 5)]
        return dict(blood=-sum(flows) - p.cl * a.blood, **{f"x{i + 1}": flow for i, flow in enumerate(flows)})

    def exact(p: Any, t: float) -> Any:
        q = np.array([p[f"q{i}"] for i in range(1, 5)])
        matrix = np.zeros((5, 5), dtype=complex)
        matrix[0, 0], matrix[0, 1:] = -q.sum() - p["cl"], q / p["kp"]
        matrix[1:, 0], matrix[range(1, 5), range(1, 5)] = q, -q / p["kp"]
        return (expm(matrix * t) @ np.eye(5)[0]) * 10

    kernel = built(dynamics)
    names = kernel.components.equations.parameters
    values = dict(q1=30.0, q2=5.0, q3=900.0, q4=0.2, kp=1.7, cl=0.4)
    times = np.array([0.01, 0.5, 6.0])
    out, _ = run(kernel, np.array([[values[name] for name in names]]), times, [(0.0, BOLUS, 0, 10.0)])
    for k, t in enumerate(times):
        reference = exact(values, t).real
        np.testing.assert_allclose(out[0, k, :5], reference, rtol=1e-6)
        for name in names:
            slope = exact({**values, name: values[name] + 1e-30j}, t).imag / 1e-30
            for i in range(5):
                wrong = abs(first(kernel, out, i, name)[0, k] - slope[i]) * values[name]
                assert wrong < 1e-5 * reference[i]


# -- edges --------------------------------------------------------------------------------------
def test_a_vanishing_pivot_is_refused() -> None:
    """The first pivot 1/(gamma h) - 1000 vanishes at the spacing of the observations; the solution itself is smooth."""
    a, b, d = 1000.0, 900.0, 1001.0
    c = (a * d + 1) / b  # characteristic polynomial s^2 + s + 1

    def dynamics(t: Any, x: Any, p: Any) -> Any:
        return dict(u=p.a * x.u - p.b * x.v, v=p.c * x.u - p.d * x.v)

    kernel = built(dynamics)
    values = dict(a=a, b=b, c=c, d=d)
    p = np.array([[values[name] for name in kernel.components.equations.parameters]])
    times = np.arange(1, 21) / (a * rosenbrock.GAMMA)
    out, solved = run(kernel, p, times, [(0.0, BOLUS, 0, 1.0), (0.0, BOLUS, 1, 1.1)])
    with mpmath.workdps(40):
        matrix = mpmath.matrix([[a, -b], [c, -d]])
        exact = [mpmath.expm(matrix * t) * mpmath.matrix([1.0, 1.1]) for t in times]
    assert solved.status.tolist() == [0]
    np.testing.assert_allclose(out[0, :, 0], [float(x[0]) for x in exact], rtol=1e-6, atol=1e-6)


def test_an_infinite_derivative_at_an_empty_compartment() -> None:
    """x^1.5 has a slope at 0 whose own slope is infinite there and meets a sensitivity of 0: no NaN may come of it."""

    def dynamics(t: Any, a: Any, p: Any) -> Any:
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.k * a.central**1.5)

    stiff, explicit = (built(dynamics, method=method) for method in ("stiff", "explicit"))
    p, times = np.array([[1.0, 0.3]]), np.array([0.5, 2.0, 8.0])
    ours, solved = run(stiff, p, times, [(0.0, BOLUS, 0, 10.0)])
    theirs = run(explicit, p, times, [(0.0, BOLUS, 0, 10.0)], Solver(rtol=1e-11))[0]
    assert solved.status.tolist() == [0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rows_do_not_see_each_other() -> None:
    kernel = built(tmdd, tmdd_start)
    order = [TMDD.index(name) for name in kernel.components.equations.parameters]
    typical = np.array([0.05, 91.0, 0.001, 0.11, 0.0089, 0.003])[order]
    p = typical * np.linspace(0.5, 2.0, 11)[:, None]
    p[4, 2] = np.nan
    times, doses = np.array([1.0, 50.0, 300.0]), [(0.0, BOLUS, 0, 100.0)]
    out, solved = run(kernel, p, times, doses)
    assert [int(x) != 0 for x in solved.status] == [n == 4 for n in range(11)]
    assert np.isnan(out[4]).all()
    alone = run(kernel, p[7:8], times, doses)[0]
    assert (alone[0] == out[7]).all()


def test_a_page_too_large_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rosenbrock, "LARGEST", 20)
    with pytest.raises(Untraceable, match="too large for the compiled stiff step"):
        built(saturable)
