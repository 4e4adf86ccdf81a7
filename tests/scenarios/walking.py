"""How the oracle's subjects are carried through the stretches that they ask for, and how derivatives are read."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from scenarios.oracle import Array, Equations, Stretch, Subject
from scipy.integrate import solve_ivp


def walk(subjects: Sequence[Subject], exact: bool = False) -> list[list[Array]]:
    """Walk all subjects together; per subject what it observed, each `[endpoint, K]`.

    Args:
        subjects: with the same equations and number of columns.
        exact: linear equations by the exponential of their matrix, else everything by DOP853 at rtol 1e-13.
    """
    going = [(n, s, s.walk()) for n, s in enumerate(subjects)]
    out: list[list[Array]] = [[] for _ in subjects]
    wanted: list[tuple[int, Any, Stretch]] = []

    def step(n: int, generator: Any, value: Array | None) -> None:
        try:
            wanted.append((n, generator, generator.send(value)))
        except StopIteration as done:
            out[n] = done.value

    for n, _, generator in going:
        step(n, generator, None)
    equations = subjects[0].equations
    solve = by_matrix if exact else by_dop853
    while wanted:
        now, wanted = wanted, []
        ends = solve(equations, [s for _, _, s in now])
        for (n, generator, _), end in zip(now, ends, strict=True):
            step(n, generator, end)
    return out


def stacked(stretches: Sequence[Stretch]) -> tuple[Array, Array, Array, Array, Any]:
    """begin, length `[S, K]`, start, rate `[compartment, S, K]`, p by name `[S, K]`."""
    names = vars(stretches[0].p)
    p = SimpleNamespace(**{k: np.stack([getattr(s.p, k) for s in stretches]) for k in names})
    return (
        np.stack([s.begin for s in stretches]),
        np.stack([s.length for s in stretches]),
        np.stack([s.start for s in stretches], 1),
        np.stack([s.rate for s in stretches], 1),
        p,
    )


def by_dop853(equations: Equations, stretches: Sequence[Stretch]) -> list[Array]:
    """Every stretch over its own length, all in one integration over the unit interval."""
    begin, length, start, rate, p = stacked(stretches)

    def flow(s: float, y: Array) -> Array:
        a = y.reshape(start.shape)
        slopes = np.broadcast_arrays(*equations.rates(begin + s * length, a, p), a[0])[:-1]
        return ((np.stack(slopes) + rate) * length).ravel()

    scale = max(np.abs(start).max() + np.abs(rate * length).max(), 1e-30)
    solved = solve_ivp(
        flow, (0.0, 1.0), start.astype(complex).ravel(), "DOP853", rtol=1e-13, atol=1e-16 * scale
    )
    assert solved.success, solved.message
    return list(np.moveaxis(solved.y[:, -1].reshape(start.shape), 1, 0))


def by_matrix(equations: Equations, stretches: Sequence[Stretch]) -> list[Array]:
    """Linear equations: x(t) from exp of [[A, b], [0, 0]] t, A and b read off the right-hand side."""
    begin, length, start, rate, p = stacked(stretches)
    d = len(start)
    zero = np.zeros(start.shape, dtype=complex)
    offset = np.stack(np.broadcast_arrays(*equations.rates(begin, zero, p), begin)[:-1]) + rate
    matrix = np.zeros((*length.shape, d + 1, d + 1), dtype=complex)
    for j in range(d):
        unit = zero.copy()
        unit[j] = 1.0
        column = np.stack(np.broadcast_arrays(*equations.rates(begin, unit, p), begin)[:-1]) + rate - offset
        matrix[..., :d, j] = np.moveaxis(column, 0, -1)
    matrix[..., :d, d] = np.moveaxis(offset, 0, -1)
    power = exponential(matrix * length[..., None, None])
    y = np.concatenate((np.moveaxis(start, 0, -1), np.ones((*length.shape, 1))), -1)
    end = np.einsum("...ij,...j->...i", power, y)[..., :d]
    return list(np.moveaxis(end, -1, 1))


def exponential(matrix: Array) -> Array:
    """exp of many small matrices: a Taylor polynomial of degree 18 at norm 1/2, squared."""
    norm = np.abs(matrix).sum(-1).max()
    squarings = max(0, int(np.ceil(np.log2(max(norm, 1e-300)))) + 1)
    small = matrix / 2**squarings
    power = total = np.broadcast_to(np.eye(matrix.shape[-1], dtype=complex), matrix.shape)
    for k in range(1, 19):
        power = power @ small / k
        total = total + power
    for _ in range(squarings):
        total = total @ total
    return total


CIRCLE = np.exp(1j * np.pi / 6 * np.array([1.0, 3.0, 5.0]))
"""Half of six points on a circle; the other half is their complex conjugates."""
RADIUS = 0.01


def columns(directions: Array) -> Array:
    """Moves `[n, K]` of n parameters: none, then three points on a circle along each direction `[D, n]`."""
    moves = directions[:, None, :] * (RADIUS * CIRCLE)[None, :, None]
    return np.concatenate((np.zeros((1, directions.shape[1])), moves.reshape(-1, directions.shape[1]))).T


def derivatives(values: Array) -> tuple[Array, Array, Array]:
    """Value `[...]`, first and second derivatives along the directions `[D, ...]` from columns `[..., K]`.

    f^(k)/k! is the mean of f(z) z^-k over the circle, up to r^6 (Lyness & Moler 1967, doi:10.1137/0704019).
    """
    around = values[..., 1:].reshape(*values.shape[:-1], -1, len(CIRCLE))
    z = RADIUS * CIRCLE
    first = (around / z).real.mean(-1)
    second = 2 * (around / z**2).real.mean(-1)
    return values[..., 0].real, np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
