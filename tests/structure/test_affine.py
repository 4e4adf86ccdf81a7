"""The matrix exponential of linear pages: against mpmath, scipy and the stepped route."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from structure.stepping import Written, given, reference, regimens, shifts, timeline
from structure.systems import Dose, Regimen

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.affine import affine, exponential
from nlmegen.structure.equations import Equations
from nlmegen.structure.ode import explicit
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Moved, Point


class Page:
    """Absorption, two compartments, an effect compartment (fed without loss), a turnover that the effect inhibits."""

    values = dict(ka=1.0, k=0.2, k12=0.3, k21=0.1, ke0=0.5, kin=2.0, kout=0.3)

    def dynamics(self, t: Any, a: Any, p: Any) -> Mapping[str, Any]:
        return dict(
            depot=-p.ka * a.depot,
            central=p.ka * a.depot - (p.k + p.k12) * a.central + p.k21 * a.deep,
            deep=p.k12 * a.central - p.k21 * a.deep,
            effect=p.ke0 * (a.central - a.effect),
            response=p.kin - p.kout * a.response - 0.01 * a.effect,
        )

    def initial(self, p: Any) -> Mapping[str, Any]:
        return dict(response=p.kin / p.kout)


PAGE = Page()
EQUATIONS = Equations.trace(PAGE.dynamics, PAGE.initial)
NAMES = EQUATIONS.compartments


def _right(t: Any, y: Any, p: Any) -> list[Any]:
    return list(PAGE.dynamics(t, SimpleNamespace(**dict(zip(NAMES, y, strict=True))), p).values())


def _first(p: Any) -> list[Any]:
    return [PAGE.initial(p).get(name, 0.0) for name in NAMES]


CASE = Written(NAMES, Page.values, _right, _first)


def test_against_scipy() -> None:
    """Irregular doses, infusions into both ends, a reset: values and Jacobians."""
    plan = regimens(CASE)[0]
    eta = shifts(CASE, 1)
    line = timeline(CASE, [plan])
    amounts, status = affine(EQUATIONS, given(CASE, eta, 1), line, Solver())
    assert status.tolist() == [0]
    truth = reference(CASE, eta[0].tolist(), plan.events(), plan.times)
    for c, x in enumerate(amounts):
        assert isinstance(x, Taylor)
        peak = np.abs(truth[0, :, c]).max()
        np.testing.assert_allclose(x.value[0].numpy(), truth[0, :, c], atol=1e-9 * peak)
        np.testing.assert_allclose(x.full()[1][:, 0].numpy(), truth[1:, :, c], atol=1e-8 * peak)


def test_equals_the_stepped_route() -> None:
    """Second order, draws in front, parameters shared by subjects, moving doses."""
    plans = regimens(CASE)[1:]
    eta = shifts(CASE, 2, 1)[..., :2]
    seeds = Taylor.seed(eta, 2)
    p: dict[str, Number] = {k: torch.tensor([[v]], dtype=torch.float64) for k, v in Page.values.items()}
    p |= {"ka": p["ka"] * torch.exp(seeds[0]), "k12": p["k12"] * torch.exp(seeds[1])}  # type: ignore[call-overload]
    moved = {0: Moved(0.3 * p["ka"], 0.5 * p["k12"])}
    line = timeline(CASE, plans, moved=moved)
    got, status = affine(EQUATIONS, p, line, Solver())
    stepped, _ = explicit(CASE, lambda k: p, line, Solver(rtol=1e-9))
    assert status.tolist() == [[0, 0], [0, 0]]
    for x, y in zip(got, stepped, strict=True):
        assert isinstance(x, Taylor)
        assert isinstance(y, Taylor)
        scale = float(y.value.abs().max())
        torch.testing.assert_close(x.value, y.value, rtol=0, atol=1e-8 * scale)
        torch.testing.assert_close(x.full()[1], y.full()[1], rtol=0, atol=1e-7 * scale)
        torch.testing.assert_close(x.dense_hess(), y.dense_hess(), rtol=0, atol=1e-6 * scale)


def test_reverse_mode() -> None:
    plan = regimens(CASE)[0]
    eta = shifts(CASE, 1).requires_grad_()
    line = timeline(CASE, [plan])
    plain, _ = affine(EQUATIONS, given(CASE, eta, 0), line, Solver())
    forward, _ = affine(EQUATIONS, given(CASE, eta.detach(), 2), line, Solver())
    (gradient,) = torch.autograd.grad(plain[4].sum(), eta)
    torch.testing.assert_close(gradient[0], forward[4].jac.sum((1, 2)), rtol=1e-10, atol=1e-10)
    first, _ = affine(EQUATIONS, given(CASE, eta, 1), line, Solver())
    (mixed,) = torch.autograd.grad(first[4].jac[3].sum(), eta)
    torch.testing.assert_close(mixed[0], forward[4].dense_hess()[3].sum((1, 2)), rtol=1e-9, atol=1e-9)


def test_parameters_that_change_from_event_to_event() -> None:
    plan = regimens(CASE)[0]
    line = timeline(CASE, [plan])
    base = given(CASE, shifts(CASE, 1), 1)

    def at(point: int) -> dict[str, Number]:
        return {**base, "k": base["k"] * (1.0 + 0.1 * point)}

    event = 0
    kept = []
    for k, kind in enumerate(line.kind[0].tolist()):
        event = event if kind == Point.OBSERVE else k
        kept.append(at(event))
    got, _ = affine(EQUATIONS, lambda k: kept[k], line, Solver())
    stepped, _ = explicit(CASE, lambda k: kept[k], line, Solver(rtol=1e-9))
    for x, y in zip(got, stepped, strict=True):
        scale = float(y.value.abs().max())
        torch.testing.assert_close(x.value, y.value, rtol=0, atol=1e-8 * scale)
        torch.testing.assert_close(x.full()[1], y.full()[1], rtol=0, atol=1e-7 * scale)


def test_a_bad_row_fails_alone_and_a_fast_one_does_not() -> None:
    doses = [(1.0, 50.0), (1.7, 20.0), (9.0, 100.0)]
    times = (0.5, 2.0, 8.0, 20.0, 30.0)
    plans = [Regimen([Dose(t, a, "depot") for t, a in doses], times)] * 3
    eta = shifts(CASE, 3)
    line = timeline(CASE, plans)
    fine, _ = affine(EQUATIONS, given(CASE, eta, 1), line, Solver())
    eta[0, 1] = torch.nan
    eta[2, 0] = np.log(1e9)
    got, status = affine(EQUATIONS, given(CASE, eta, 1), line, Solver())
    assert status.tolist() == [3, 0, 0]
    for x, y in zip(got, fine, strict=True):
        assert bool(x.value[0].isnan().all())
        torch.testing.assert_close(x.value[1], y.value[1], rtol=1e-11, atol=1e-11)
    # absorbed at once: what the page gives with the dose in the central compartment
    eta[2, 0] = 0.0
    direct = timeline(CASE, [Regimen([Dose(t, a, "central") for t, a in doses], times)] * 3)
    other, _ = affine(EQUATIONS, given(CASE, eta, 0), direct, Solver())
    torch.testing.assert_close(got[1].value[2], other[1][2], rtol=1e-7, atol=1e-7)


def exact(a: np.ndarray) -> np.ndarray:
    with mp.workdps(60):
        return np.array(mp.expm(mp.matrix(a.tolist())).tolist(), dtype=float)


MATRICES = {
    "defective": np.array([[-1.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]),
    "signs": np.array([[-0.5, -2.0, 0.3], [2.0, -0.5, -0.1], [0.7, -0.2, -1.0]]),
    "spread": np.array([[-1e6, 3.0, 0.0], [1e6, -3.2, 1e-4], [0.0, 0.1, -1e-4]]),
    "spread, signs": np.array([[-1e6, 3.0, 0.0], [1e6, -3.2, -1e-4], [0.0, 0.1, -1e-4]]),
    "oscillation": np.array([[0.0, -50.0], [50.0, -0.1]]),
    "zero": np.zeros((2, 2)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_exponential(name: str) -> None:
    a = MATRICES[name]
    np.testing.assert_allclose(exponential(torch.from_numpy(a)).numpy(), exact(a), rtol=1e-11, atol=3e-13)


def test_small_entries_keep_their_digits() -> None:
    """A chain of slow steps: the entry far from the diagonal is 1e-16 of the largest."""
    a = np.diag([-20.0] * 4) + np.diag([2e-4] * 3, -1)
    np.testing.assert_allclose(exponential(torch.from_numpy(a)).numpy(), exact(a), rtol=1e-13)


@pytest.mark.parametrize("name", ["defective", "signs", "spread"])
def test_derivatives_of_the_exponential(name: str) -> None:
    """Along a matrix and twice: against the exponential of a block matrix, in sixty digits."""
    a = MATRICES[name]
    b = np.abs(np.sin(1.0 + np.arange(9.0))).reshape(3, 3) * (a != 0)
    zero = np.zeros_like(a)
    # exp of [[a, b, 0], [0, a, b], [0, 0, a]] holds the first derivative and half of the second
    block = exact(np.block([[a, b, zero], [zero, a, b], [zero, zero, a]]))
    number = Taylor(torch.from_numpy(a), torch.from_numpy(b)[None], None, 2)
    got = exponential(number)
    assert isinstance(got, Taylor)
    np.testing.assert_allclose(got.jac[0].numpy(), block[:3, 3:6], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(got.dense_hess()[0, 0].numpy(), 2 * block[:3, 6:], rtol=1e-9, atol=1e-11)
