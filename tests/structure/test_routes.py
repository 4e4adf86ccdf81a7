"""One table of ODE problems, every route to the same answers: values, Jacobians, Hessians, gradients.

Routes: closed form, matrix exponential, torch (explicit, stiff), compiled kernel (explicit, stiff). The answers are
`references.py`, which is held against closed forms and other integrators first.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.special import lambertw
from structure.doses import PATTERNS
from structure.odes import PROBLEMS, Ode, Trial, reference
from structure.references import Array, derivatives, march
from torch import Tensor

import nlmegen as nl
from nlmegen.model.problem import Prediction, Problem

ROUTES = {
    "closed": None,
    "expm": nl.Solver(route="expm"),
    "torch explicit": nl.Solver(route="torch", method="explicit"),
    "torch stiff": nl.Solver(route="torch", method="stiff"),
    "compiled explicit": nl.Solver(route="compiled", method="explicit"),
    "compiled stiff": nl.Solver(route="compiled", method="stiff"),
}
EXACT = {"closed": (1e-10, 1e-8, 1e-6), "expm": (1e-10, 1e-8, 1e-6)}
"""Errors allowed over the peak, value, Jacobian, Hessian, where nothing is stepped: what the references err by."""
STEPPED = (1e-6, 1e-5, 2e-5)
OWN_STEPS = ("compiled explicit", "compiled stiff")
"""Each subject has steps of its own, the same to the last bit whoever else is solved."""
QUICK = {
    "torch explicit": {
        "one-compartment oral": "resets",
        "Michaelis-Menten": "additional doses",
        "sigmoid turnover": "late dose",
        "circadian": "overlapping infusions",
        "parent and metabolite": "infusion elsewhere",
    },
    "torch stiff": {
        "stiff target binding": "irregular boluses",
        "Michaelis-Menten": "resets",
        "autoinduction": "overlapping infusions",
        "effect site": "late dose",
    },
}
"""What the routes that take their time are tried with in every run: problems and dosing patterns."""


def applies(ode: Ode, route: str) -> bool:
    if route == "closed":
        return ode.closed is not None
    return (route != "expm" or ode.linear) and not (ode.stiff and "explicit" in route)


def page(ode: Ode, route: str) -> nl.Model:
    if "compiled" in route and importlib.util.find_spec("llvmlite") is None:
        pytest.skip("the compiled route needs llvmlite")
    if route == "closed":
        assert ode.closed is not None
        return ode.closed()
    solver = ROUTES[route]
    assert solver is not None
    return ode.page().with_solver(solver)


def cases(*routes: str, problems: Sequence[str] = tuple(PROBLEMS)) -> list[Any]:
    return [
        pytest.param(PROBLEMS[name], route, id=f"{name}-{route}")
        for name in problems
        for route in routes
        if applies(PROBLEMS[name], route)
    ]


def bound(ode: Ode, route: str, patterns: Sequence[str] | None = None) -> tuple[Trial, Problem]:
    trial = Trial.of(ode, patterns)
    return trial, trial.problem(page(ode, route))


def peaks(value: Array, ode: Ode) -> Array:
    """Largest prediction of each subject, endpoints apart `[subject, observation of all endpoints]`; 1 if all are 0."""
    endpoints = len(ode.page.layout.endpoints)
    apart = np.abs(value.reshape(len(value), -1, endpoints))
    peak = np.nanmax(apart, 1, keepdims=True)
    return np.broadcast_to(np.where(peak > 0, peak, 1.0), apart.shape).reshape(value.shape)


def errors(trial: Trial, got: Prediction, observed: Tensor) -> tuple[float, float, float]:
    """Largest errors of value, Jacobian and Hessian over the peak of the subject."""
    expected, mask = trial.reference(), observed.numpy()
    assert (np.isfinite(expected.value) == mask).all()
    assert got.jac is not None
    assert got.hess is not None
    q, scale = trial.eta.shape[1], peaks(expected.value, trial.ode)
    found = []
    for x, y in (
        (got.f, expected.value),
        (got.jac, expected.jac[:q]),
        (got.hess, expected.hess[:, :q]),
    ):
        ratio = np.abs(x.detach().numpy() - y) / scale
        found.append(float(ratio[..., mask].max()))
    return found[0], found[1], found[2]


def check(ode: Ode, route: str, patterns: Sequence[str] | None = None) -> None:
    trial, problem = bound(ode, route, patterns)
    got = problem.predict(trial.eta, problem.model.values, order=2)
    worst = errors(trial, got, problem.observed)
    assert all(e <= limit for e, limit in zip(worst, EXACT.get(route, STEPPED), strict=True)), (
        "value {:.1e}, Jacobian {:.1e}, Hessian {:.1e} of the peak".format(*worst)
    )


# -- every route, every problem ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ode", "route"), cases("closed", "expm", "compiled explicit", "compiled stiff"))
def test_answers(ode: Ode, route: str) -> None:
    check(ode, route)


@pytest.mark.parametrize(
    ("name", "route", "pattern"), [(n, r, p) for r, few in QUICK.items() for n, p in few.items()]
)
def test_answers_through_torch(name: str, route: str, pattern: str) -> None:
    check(PROBLEMS[name], route, [pattern])


@pytest.mark.slow
@pytest.mark.parametrize(("ode", "route"), cases("torch explicit", "torch stiff"))
def test_every_problem_through_torch(ode: Ode, route: str) -> None:
    place = list(PROBLEMS).index(ode.name)
    check(ode, route, [ode.patterns[(2 * place + k) % len(ode.patterns)] for k in range(2)])


# -- reverse mode -----------------------------------------------------------------------------------------------------
REVERSED = (
    "one-compartment oral",
    "Michaelis-Menten oral",
    "turnover I",
    "quasi-steady target",
    "stiff target binding",
)
IN_TORCH = [
    pytest.param(PROBLEMS[name], route, id=f"{name}-{route}")
    for name, route in (("Michaelis-Menten oral", "torch explicit"), ("quasi-steady target", "torch stiff"))
]


@pytest.mark.parametrize(
    ("ode", "route"), [*cases("closed", "expm", *OWN_STEPS, problems=REVERSED), *IN_TORCH]
)
def test_gradients_in_theta(ode: Ode, route: str) -> None:
    # of the sum of cotangents times predictions and Jacobians, for each subject's own copy of every theta
    patterns = ("irregular boluses",) if "torch" in route else ("irregular boluses", "resets")
    trial, problem = bound(ode, route, patterns)
    names = [f"tv{name}" for name in trial.names]
    n, q = len(names), trial.eta.shape[1]
    leaves = {
        name: problem.model.values.theta[name].expand(len(patterns), 1).clone().requires_grad_()
        for name in names
    }
    got = problem.predict(trial.eta, replace(problem.model.values, theta=leaves), order=1)
    assert got.jac is not None
    expected, mask = trial.reference(), problem.mask
    draw = np.random.default_rng(5)
    by_value, by_jac = (draw.normal(size=(k, *mask.shape)) * mask.numpy() for k in (1, q))
    total = (torch.from_numpy(by_value[0]) * got.f).sum() + (torch.from_numpy(by_jac) * got.jac).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    jac, hess = np.nan_to_num(expected.jac), np.nan_to_num(expected.hess)
    right = np.einsum("ust,jst->js", by_value, jac) + np.einsum("ist,ijst->js", by_jac, hess)
    scale = np.einsum("ust,jst->js", abs(by_value), abs(jac)) + np.einsum(
        "ist,ijst->js", abs(by_jac), abs(hess)
    )
    for j in range(n):
        wrong = np.abs(gradients[j][:, 0].numpy() * trial.theta[j] - right[j])
        assert (wrong <= 1e-5 * scale[j].max()).all(), f"{names[j]}: {(wrong / scale[j].max()).max():.1e}"


# -- subjects and draws stand alone -----------------------------------------------------------------------------------
APART = ("Michaelis-Menten oral", "turnover III", "circadian")


def same(x: Tensor | None, y: Tensor | None, route: str) -> None:
    assert x is not None
    assert y is not None
    if route in OWN_STEPS:
        assert torch.equal(x, y)
    else:
        torch.testing.assert_close(x, y, rtol=0, atol=2e-6 * float(y.abs().max()))


@pytest.mark.parametrize(
    ("ode", "route"),
    [*cases(*OWN_STEPS, problems=APART), *cases(*QUICK, problems=["Michaelis-Menten"])],
)
def test_alone_permuted_and_among_draws(ode: Ode, route: str) -> None:
    patterns = ("resets", "single bolus", "late dose")
    trial, problem = bound(ode, route, patterns)
    values = problem.model.values
    whole = problem.predict(trial.eta, values, order=2)
    assert whole.jac is not None
    assert whole.hess is not None
    for index in ([1], [2, 0, 1]) if route in OWN_STEPS else ([1],):
        part = problem.select(torch.tensor(index)).predict(trial.eta[index], values, order=2)
        same(part.f, whole.f[index], route)
        same(part.jac, whole.jac[:, index], route)
        same(part.hess, whole.hess[:, :, index], route)
    alone = Trial.of(ode, patterns[1:2])
    small = alone.problem(problem.model).predict(alone.eta, values, order=2)
    same(small.f, whole.f[1:2, : small.f.shape[1]], route)
    draws = torch.stack(
        [trial.eta, -0.5 * trial.eta, *([0.2 * trial.eta] * (4 if route in OWN_STEPS else 0))]
    )
    stacked = problem.predict(draws, values, order=2)
    assert stacked.jac is not None
    assert stacked.hess is not None
    other = problem.predict(-0.5 * trial.eta, values, order=2)
    for k, one in enumerate((whole, other)):
        same(stacked.f[k], one.f, route)
        same(stacked.jac[:, k], one.jac, route)
        same(stacked.hess[:, :, k], one.hess, route)


def test_the_stiff_method_takes_over_where_explicit_steps_are_too_many() -> None:
    ode = PROBLEMS["stiff target binding"]
    page_ = page(ode, "compiled explicit")
    trial = Trial.of(ode)
    problem = trial.problem(page_.with_solver(nl.Solver()))
    got = problem.predict(trial.eta, problem.model.values, order=2)
    assert all(e <= limit for e, limit in zip(errors(trial, got, problem.observed), STEPPED, strict=True))
    assert "stiff" in " ".join(problem.structure.notes())
    # asked for explicit steps alone, every subject fails, and nothing is made up
    failed = trial.problem(page_.with_solver(nl.Solver(method="explicit", max_steps=300)))
    got = failed.predict(trial.eta, failed.model.values, order=1)
    assert got.f[problem.observed].isnan().any()
    assert "failed" in " ".join(failed.structure.notes())


# -- the references, against closed forms and other integrators -------------------------------------------------------
Terms = list[tuple[Any, Any]]
"""A sum of coefficient times exp(-rate t)."""


def one_oral(p: Any, into: str) -> Terms:
    k = p["cl"] / p["v"]
    if into == "central":
        return [(1 / p["v"], k)]
    share = p["ka"] / (p["ka"] - k) / p["v"]
    return [(share, k), (-share, p["ka"])]


def two_oral(p: Any, into: str) -> Terms:
    k10, k12, k21, ka = p["cl"] / p["v"], p["q"] / p["v"], p["q"] / p["v2"], p["ka"]
    total = k10 + k12 + k21
    root = np.sqrt(total**2 - 4 * k10 * k21)
    fast, slow = (total + root) / 2, (total - root) / 2
    a, b = (fast - k21) / root / p["v"], (k21 - slow) / root / p["v"]
    if into == "central":
        return [(a, fast), (b, slow)]
    a, b = a * ka / (ka - fast), b * ka / (ka - slow)
    return [(a, fast), (b, slow), (-a - b, ka)]


@pytest.mark.parametrize(
    ("name", "terms"), [("one-compartment oral", one_oral), ("two-compartment oral", two_oral)]
)
def test_references_by_superposition(name: str, terms: Any) -> None:
    trial = Trial.of(PROBLEMS[name])
    expected, q = reference(name), trial.eta.shape[1]
    for n, pattern in enumerate(trial.patterns):

        def predicted(logs: Array, n: int = n, pattern: str = pattern) -> Array:
            p = dict(zip(trial.names, np.exp(logs[:, 0]), strict=True))
            given: list[tuple[float, bool, float, str]] = []
            out = []
            for time, what, size, into in trial.ode.plan(pattern):
                if what == "reset":
                    given = []
                elif what == "observe":
                    f = 0 * p["v"]
                    for when, at_once, amount, to in given:
                        for coefficient, rate in terms(p, to):
                            decayed = np.exp(-rate * (time - when))
                            f = f + amount * coefficient * (decayed if at_once else (1 - decayed) / rate)
                    out.append(f)
                else:
                    given.append((time, what == "bolus", size, into))
            return np.stack(out)

        logs = np.log(trial.theta)
        logs[:q] += trial.eta[n].numpy()
        exact = derivatives(predicted, logs[:, None], q, 0.01)
        used = slice(0, exact.value.shape[0])
        for x, y in ((exact.value, expected.value), (exact.jac, expected.jac), (exact.hess, expected.hess)):
            np.testing.assert_allclose(y[..., n, used, 0], x, rtol=0, atol=1e-9)


def test_references_by_lambert_and_by_variations() -> None:
    # one bolus, saturable elimination: a closed form; and equations of variation by hand under a complex step
    ode = PROBLEMS["Michaelis-Menten"]
    trial = Trial.of(ode, ["single bolus"])
    expected, plan = reference(ode.name), ode.plan("single bolus")
    times = np.array([t for t, what, _, _ in plan if what == "observe"])
    logs = np.log(trial.theta) + trial.eta[0].numpy()
    row = list(PATTERNS).index("single bolus")

    def closed(x: Array) -> Array:
        vmax, km, v = (np.exp(x[trial.names.index(name), 0]) for name in ("vmax", "km", "v"))
        start = ode.dose / v / km
        return np.stack([km * lambertw(start * np.exp(start - vmax * t / v / km)) for t in times])

    exact = derivatives(closed, logs[:, None], 3, 0.01)
    for x, y in ((exact.value, expected.value), (exact.jac, expected.jac), (exact.hess, expected.hess)):
        np.testing.assert_allclose(y[..., row, : len(times), 0], x, rtol=0, atol=1e-8)

    def varied(x: Array) -> Array:
        vmax, km, v = np.exp(x)

        def flow(t: float, y: Array) -> Array:
            c, by = y[0], y[1:]  # the concentration and its derivatives in log vmax, log km, log v
            rate = vmax / v * c / (km + c)
            slope = vmax / v * km / (km + c) ** 2
            return np.array([-rate, *(-slope * by - rate * np.array([1, -km / (km + c), -1]))])

        y0 = np.array([ode.dose / v, 0, 0, -ode.dose / v])
        return solve_ivp(flow, (0, times[-1]), y0, "DOP853", times, rtol=1e-12, atol=1e-13).y

    assert trial.names == ("vmax", "km", "v")
    jac = varied(logs + 0j)[1:].real
    hess = np.stack([varied(logs + 1e-30j * np.eye(3)[i])[1:].imag / 1e-30 for i in range(3)])
    np.testing.assert_allclose(expected.jac[:, row, : len(times), 0], jac, rtol=0, atol=1e-7)
    np.testing.assert_allclose(expected.hess[:, :, row, : len(times), 0], hess, rtol=0, atol=1e-7)


def test_stiff_references_by_scipy() -> None:
    ode = PROBLEMS["stiff target binding"]
    trial = Trial.of(ode, ["irregular boluses"])
    p = {name: np.array([[x]]) for name, x in zip(trial.names, trial.theta, strict=True)}
    plan = ode.plan("irregular boluses")[:5]
    got = march(ode, [plan], p, ode.dose)[:, 0, :, 0]
    kel, kon, ksyn, koff, kdeg, kint = (
        float(p[k][0, 0]) for k in ("kel", "kon", "ksyn", "koff", "kdeg", "kint")
    )

    def flow(t: float, y: Array) -> list[float]:
        bind = kon * y[0] * y[1] - koff * y[2]
        return [-kel * y[0] - bind, ksyn - kdeg * y[1] - bind, bind - kint * y[2]]

    y, now, seen = np.array([0.0, ksyn / kdeg, 0.0]), 0.0, []
    for time, what, size, _ in plan:
        if time > now:
            y = solve_ivp(flow, (now, time), y, "Radau", rtol=1e-10, atol=1e-11).y[:, -1]
            now = time
        if what == "bolus":
            y = y + np.array([size, 0, 0])
        else:
            seen.append((y[0] + y[2], y[1]))
    np.testing.assert_allclose(got, np.array(seen).T, rtol=0, atol=2e-7)
