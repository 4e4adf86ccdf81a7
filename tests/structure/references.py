"""Solutions of ODE problems and their derivatives, to about 1e-9, by nothing that the package uses.

Right-hand sides are written by hand in numpy and read complex parameters; events are applied by hand; the integrator is
scipy's DOP853 at rtol 1e-13, or, for stiff problems, seven-point Radau collocation on a graded mesh. Derivatives
come from values on a circle in the complex plane: with z_j = r exp(i pi (2j + 1) / 6) and d a direction,

    d^k f / k! = mean_j f(x + z_j d) z_j^-k + O(r^6) ,

six points of which three are needed, since f(conj z) = conj f(z) (Lyness & Moler 1967, doi:10.1137/0704019); of
this family of formulas the complex step is the smallest. All points share the steps of one integration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from structure.doses import Point

Array = NDArray[Any]
Rates = Callable[[Any, Array], Array]
"""From the fraction of an interval and amounts [compartment, subject, column] to their derivative."""

CIRCLE = np.exp(1j * np.pi / 6 * np.array([1.0, 3.0, 5.0]))


class System(Protocol):
    """What the integrators are given; everything is an array `[subject, column]`, real or complex."""

    compartments: tuple[str, ...]
    stiff: bool

    def rates(self, t: Any, a: Sequence[Array], p: Any) -> Sequence[Any]:
        """Derivatives of the amounts."""

    def initial(self, p: Any) -> Sequence[Any]:
        """Amounts before anything is given."""

    def observe(self, t: Any, a: Sequence[Array], p: Any) -> Sequence[Any]:
        """One prediction an endpoint."""


@dataclass(frozen=True)
class Reference:
    """Predictions `[endpoint, subject, observation]` and derivatives in the logarithms of all n parameters.

    `jac [n, ...]`, `hess [q, n, ...]`: second derivatives in the first q (those with a random effect) and all. What is
    not observed is NaN.
    """

    value: Array
    jac: Array
    hess: Array


def march(system: System, plans: Sequence[Sequence[Point]], p: Mapping[str, Array], scale: float) -> Array:
    """Predictions `[endpoint, subject, observation, column]` at parameters `[subject, column]`.

    All subjects go from point to point together, each over its own interval.

    Args:
        system: whose equations.
        plans: what happens to each subject, times and amounts in full.
        p: parameters by name.
        scale: of the amounts, for the absolute tolerance.
    """
    named = SimpleNamespace(**p)
    shape, dtype = next(iter(p.values())).shape, next(iter(p.values())).dtype
    start = np.stack([np.broadcast_to(x, shape) for x in system.initial(named)]).astype(dtype)
    state, rate = start.copy(), np.zeros((len(start), shape[0], 1))
    now = np.array([plan[0][0] for plan in plans])
    slots = [0] * len(plans)
    n_slots = max(sum(what == "observe" for _, what, _, _ in plan) for plan in plans)
    out = np.full(
        (len(system.observe(now[:, None], state, named)), shape[0], n_slots, shape[1]), np.nan, dtype
    )
    for k in range(max(len(plan) for plan in plans)):
        there = now.copy()
        for n, plan in enumerate(plans):
            if k < len(plan) and plan[k][1] != "reset":
                there[n] = plan[k][0]
        length = (there - now)[:, None]
        if (length > 0).any():
            begin, moved = now[:, None], (length > 0)[:, 0]

            def flow(s: Any, y: Array, begin: Array = begin, length: Array = length) -> Array:
                slopes = np.broadcast_arrays(*system.rates(begin + s * length, y, named), y[0])[:-1]
                return (np.stack(slopes) + rate) * length

            advance = radau if system.stiff else dop853
            state = np.where(moved[:, None], advance(flow, state, scale), state)
        now = there
        for n, plan in enumerate(plans):
            if k >= len(plan):
                continue
            time, what, size, where = plan[k]
            if what == "observe":
                here = SimpleNamespace(**{name: x[n : n + 1] for name, x in p.items()})
                for e, f in enumerate(system.observe(time, state[:, n : n + 1], here)):
                    out[e, n, slots[n]] = f
                slots[n] += 1
            elif what == "bolus":
                state[system.compartments.index(where), n] += size
            elif what == "rate":
                rate[system.compartments.index(where), n] += size
            else:
                now[n], state[:, n], rate[:, n] = time, start[:, n], 0.0
    return out


def dop853(flow: Rates, y: Array, scale: float) -> Array:
    """Amounts after an interval, by scipy."""
    solved = solve_ivp(
        lambda s, x: flow(s, x.reshape(y.shape)).ravel(),
        (0.0, 1.0),
        y.ravel(),
        method="DOP853",
        rtol=1e-13,
        atol=1e-15 * scale,
    )
    assert solved.success, solved.message
    return solved.y[:, -1].reshape(y.shape)


STAGES, FIRST, RATIO, LONGEST = 7, 2e-6, 2.5, 0.2


@cache
def collocation() -> tuple[Array, Array]:
    """Nodes c and weights A of the Radau IIA method of seven stages: order 13, stiffly accurate."""
    legendre = np.polynomial.legendre.Legendre.basis
    c = np.sort(((legendre(STAGES) - legendre(STAGES - 1)).roots().real + 1) / 2)
    c[-1] = 1.0
    powers = np.vander(c, STAGES, increasing=True)  # A c^k = c^(k+1) / (k+1)
    order = np.arange(1, STAGES + 1)
    return c, (powers * c[:, None] / order) @ np.linalg.inv(powers)


def radau(flow: Rates, y: Array, scale: float) -> Array:
    """Amounts after an interval by collocation; steps grow from 2e-6 of it, fine enough for what a dose sets off."""
    c, weights = collocation()
    d, identity = len(y), np.eye(STAGES * len(y))
    s, h = 0.0, FIRST
    while s < 1.0:
        h = min(h, 1.0 - s) if 1.0 - s > 1.3 * h else 1.0 - s
        stages = np.repeat(y[None], STAGES, 0)
        for _ in range(25):
            slopes = np.stack([flow(s + ci * h, x) for ci, x in zip(c, stages, strict=True)])
            residual = stages - y - h * np.einsum("ij,j...->i...", weights, slopes)
            slope = np.stack([jacobian(flow, s + ci * h, x, scale) for ci, x in zip(c, stages, strict=True)])
            # [stage, i, stage, j] for every subject and column
            matrix = identity - h * np.einsum("kl,lij...->...kilj", weights, slope).reshape(
                *y.shape[1:], STAGES * d, STAGES * d
            )
            right = np.moveaxis(residual, (0, 1), (-2, -1)).reshape(*y.shape[1:], STAGES * d, 1)
            change = np.linalg.solve(matrix, right)[..., 0].reshape(*y.shape[1:], STAGES, d)
            stages = stages - np.moveaxis(change, (-2, -1), (0, 1))
            if np.abs(change).max() < 1e-13 * scale:
                break
        else:
            raise AssertionError("the collocation equations were not solved")
        y, s, h = stages[-1], s + h, min(RATIO * h, LONGEST)
    return y


def jacobian(flow: Rates, s: float, y: Array, scale: float) -> Array:
    """df_i/dy_j `[i, j, ...]` by differences: Newton's iteration forgives their error."""
    columns, base, step = [], flow(s, y), 1e-7 * scale
    for j in range(len(y)):
        moved = y.copy()
        moved[j] += step
        columns.append((flow(s, moved) - base) / step)
    return np.stack(columns, 1)


def derivatives(function: Callable[[Array], Array], x: Array, q: int, radius: float) -> Reference:
    """Value, first and second derivatives of a function of n numbers for each of N subjects.

    Args:
        function: from `[n, subject, column]`, complex, to `[..., column]`.
        x: where, `[n, subject]`.
        q: second derivatives in the first q numbers and all.
        radius: of the circle.
    """
    n, circle = len(x), radius * CIRCLE
    pairs = [(i, j) for i in range(q) for j in range(i + 1, n)]
    eye = np.eye(n)
    directions = np.stack([*eye, *(eye[i] + eye[j] for i, j in pairs)])
    offsets = (directions[:, None] * circle[:, None]).reshape(-1, n)
    columns = np.concatenate([np.zeros((1, n)), offsets]).T
    out = function(x[:, :, None] + columns[:, None, :])
    around = out[..., 1:].reshape(*out.shape[:-1], len(directions), len(CIRCLE))
    first = np.moveaxis((around / circle).real.mean(-1), -1, 0)
    second = np.moveaxis(2 * (around / circle**2).real.mean(-1), -1, 0)
    hess = np.empty((q, n, *out.shape[:-1]))
    for i in range(q):
        hess[i, i] = second[i]
    for k, (i, j) in enumerate(pairs, n):
        hess[i, j] = (second[k] - second[i] - second[j]) / 2
        if j < q:
            hess[j, i] = hess[i, j]
    return Reference(out[..., 0].real, first[:n], hess)
