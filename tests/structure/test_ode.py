"""The torch routes, explicit and stiff, against scipy: values, derivatives forward and back, events, failures."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from structure.stepping import (
    CLOCK,
    MM,
    TRANSIT,
    TURNOVER,
    Written,
    curvature,
    given,
    reference,
    regimens,
    run,
    shifts,
    timeline,
)
from structure.systems import Dose, Regimen
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.implicit import stiff
from nlmegen.structure.ode import explicit
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Moved, Timeline

SOLVES = [explicit, stiff]
CASES = {"mm": MM, "turnover": TURNOVER, "transit": TRANSIT, "clock": CLOCK}
Solve = Callable[..., Any]


@functools.cache
def truth_of(name: str) -> tuple[Tensor, Tensor]:
    """What scipy gives for the regimens, at the shifts of seed 1."""
    plans = regimens(CASES[name])
    return expected(CASES[name], shifts(CASES[name], len(plans)), plans)


@functools.cache
def truth_of_second_order() -> tuple[Tensor, Tensor, Tensor]:
    """Value, Jacobian and Hessian of the turnover page under the first regimen."""
    plans, eta = regimens(TURNOVER)[:1], shifts(TURNOVER, 1)
    hess = torch.from_numpy(curvature(TURNOVER, eta[0], plans[0])).unsqueeze(2)
    return *expected(TURNOVER, eta, plans), hess


def expected(case: Written, eta: Tensor, plans: list[Regimen]) -> tuple[Tensor, Tensor]:
    """Values `[subject, T, compartment]` and Jacobians `[parameter, ...]`, NaN in the padding."""
    longest = max(len(r.times) for r in plans)
    found = np.full((1 + eta.shape[-1], len(plans), longest, len(case.compartments)), np.nan)
    for i, r in enumerate(plans):
        found[:, i, : len(r.times)] = reference(case, eta[i].tolist(), r.events(), r.times)
    both = torch.from_numpy(found)
    return both[0], both[1:]


def close(got: Tensor, truth: Tensor, value: Tensor, share: float) -> None:
    """Within a share of each subject's and compartment's peak, at the observations that there are."""
    peak = value.nan_to_num(nan=0.0).abs().amax(-2, keepdim=True)
    error = ((got - truth).abs() / peak)[~truth.isnan()]
    assert float(error.max()) <= share


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("name", CASES)
def test_against_scipy(solve: Solve, name: str) -> None:
    case = CASES[name]
    plans = regimens(case)
    eta = shifts(case, len(plans))
    value, jac = truth_of(name)
    got, status = run(solve, case, given(case, eta, 1), timeline(case, plans))
    assert isinstance(got, Taylor)
    assert status.tolist() == [0, 0, 0]
    close(got.value, value, value, 1e-6)
    close(got.jac, jac, value, 1e-5)
    plain, _ = run(solve, case, given(case, eta, 0), timeline(case, plans))
    assert isinstance(plain, Tensor)
    close(plain, value, value, 1e-6)


@pytest.mark.parametrize("solve", SOLVES)
def test_second_order(solve: Solve) -> None:
    plans = [regimens(TURNOVER)[0]]
    eta = shifts(TURNOVER, 1)
    got, _ = run(solve, TURNOVER, given(TURNOVER, eta, 2), timeline(TURNOVER, plans))
    assert isinstance(got, Taylor)
    value, jac, truth = truth_of_second_order()
    close(got.value, value, value, 1e-6)
    close(got.full()[1], jac, value, 1e-5)
    close(got.dense_hess(), truth, value, 1e-4)


@pytest.mark.parametrize("solve", SOLVES)
@pytest.mark.parametrize("order", [0, 1])
def test_reverse_mode(solve: Solve, order: int) -> None:
    """The gradient of a sum over values and Jacobians is a sum over Jacobians and Hessians."""
    plans = [regimens(TURNOVER)[0]]
    eta = shifts(TURNOVER, 1).requires_grad_()
    got, _ = run(solve, TURNOVER, given(TURNOVER, eta, order), timeline(TURNOVER, plans))
    _, jac, hess = truth_of_second_order()
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(jac.shape[1:], generator=generator, dtype=torch.float64)
    truth = (weight * jac).flatten(1).sum(-1)
    if isinstance(got, Taylor):
        weights = torch.randn(jac.shape, generator=generator, dtype=torch.float64)
        total = (weight * got.value).sum() + (weights * got.jac).sum()
        truth = truth + (weights * hess).flatten(1).sum(-1)
    else:
        total = (weight * got).sum()
    (gradient,) = torch.autograd.grad(total, eta)
    torch.testing.assert_close(gradient[0], truth, rtol=1e-5, atol=1e-5 * float(truth.abs().max()))


@pytest.mark.parametrize("solve", SOLVES)
def test_weights_inside_the_page(solve: Solve) -> None:
    """A tensor that the page holds, shared by all rows, gets its gradient, and a failed row does not spoil it."""
    weight = torch.tensor(MM.values["vm"], dtype=torch.float64, requires_grad=True)
    rest = {k: v for k, v in MM.values.items() if k != "vm"}
    page = Written(
        MM.compartments,
        rest,
        lambda t, y, p: MM.right(t, y, SimpleNamespace(ka=p.ka, v=p.v, km=p.km, vm=weight)),
    )
    plans = regimens(MM)
    eta = shifts(MM, 3)
    eta[:, 1] = 0.0  # that of vm
    p = given(page, eta[:, [0, 2, 3]], 1)
    p["v"] = torch.where(torch.tensor([[False], [True], [False]]), torch.nan, p["v"])  # type: ignore[call-overload]
    got, status = run(solve, page, p, timeline(MM, plans))
    assert isinstance(got, Taylor)
    assert status.tolist() == [0, 3, 0]
    assert bool(got.value[1].isnan().all())
    total = got.value[0, :, 1].sum() + got.value[2, :3, 1].sum() + got.jac[1, 0, :, 1].sum()
    (gradient,) = torch.autograd.grad(total, weight)
    truth = 0.0
    for i, n in ((0, len(plans[0].times)), (2, 3)):
        truth += reference(MM, eta[i].tolist(), plans[i].events(), plans[i].times)[2, :n, 1].sum()
    truth += curvature(MM, eta[0], plans[0])[1, 2, :, 1].sum()
    assert float(gradient) == pytest.approx(truth / MM.values["vm"], rel=1e-6)


@pytest.mark.parametrize("solve", SOLVES)
def test_draws_order_and_company(solve: Solve) -> None:
    """Draws in front, subjects permuted, a subject alone: the same amounts."""
    plans = regimens(MM)
    eta = shifts(MM, 2, 3)
    line = timeline(MM, plans)
    whole, status = run(solve, MM, given(MM, eta, 1), line)
    assert isinstance(whole, Taylor)
    assert status.shape == (2, 3)
    assert whole.value.shape == (2, 3, line.n_slots, 2)
    order = torch.tensor([2, 0, 1])
    turned, _ = run(solve, MM, given(MM, eta[:, order], 1), line.select(order))
    assert isinstance(turned, Taylor)
    scale = dict(rtol=1e-6, atol=1e-5)  # of amounts around 100
    torch.testing.assert_close(turned.value, whole.value[:, order], **scale)
    torch.testing.assert_close(turned.jac, whole.jac[:, :, order], **scale)
    alone, _ = run(solve, MM, given(MM, eta[1, 1:2], 1), line.select(torch.tensor([1])))
    assert isinstance(alone, Taylor)
    torch.testing.assert_close(alone.value[0], whole.value[1, 1], **scale)
    shared = given(MM, eta[:, :1], 1)
    common, _ = run(solve, MM, shared, line)
    assert isinstance(common, Taylor)
    torch.testing.assert_close(common.value[:, 0], whole.value[:, 0], **scale)


@pytest.mark.parametrize("solve", SOLVES)
def test_bad_rows_fail_alone(solve: Solve) -> None:
    plans = [*regimens(MM), regimens(MM)[2]]
    eta = shifts(MM, 4)
    line = timeline(MM, plans)
    fine, _ = run(solve, MM, given(MM, eta, 1), line)
    eta[1, 2] = torch.nan
    eta[3, 0] = np.log(1e9)
    got, status = run(solve, MM, given(MM, eta, 1), line, max_steps=400)
    assert isinstance(got, Taylor)
    assert isinstance(fine, Taylor)
    assert status.tolist()[:3] == [0, 3, 0]
    assert status[3] == (1 if solve is explicit else 0)
    bad = status != 0
    for part, whole in ((got.value, fine.value), (got.jac[0], fine.jac[0])):
        assert bool(part[bad].isnan().all())
        torch.testing.assert_close(part[[0, 2]], whole[[0, 2]], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("solve", SOLVES)
def test_explosion_is_a_status(solve: Solve) -> None:
    """y' = y^2 from 1 is infinite at time 1: no number may come back, and the row beside it is not harmed."""
    page = Written(("y",), dict(rate=1.0), lambda t, y, p: [p.rate * y[0] * y[0]], lambda p: [0.0])
    plans = [Regimen([Dose(0.0, 1.0, "y")], (0.5, 2.0)), Regimen([Dose(0.0, 0.1, "y")], (0.5, 2.0))]
    got, status = run(
        solve, page, given(page, torch.zeros(2, 1, dtype=torch.float64), 0), timeline(page, plans)
    )
    assert isinstance(got, Tensor)
    assert status[0] != 0
    assert status[1] == 0
    assert bool(got[0].isnan().all())
    torch.testing.assert_close(
        got[1, :, 0], 1 / (10 - torch.tensor([0.5, 2.0], dtype=torch.float64)), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("solve", SOLVES)
def test_lag_and_bioavailability(solve: Solve) -> None:
    """Doses that move with a parameter: derivatives against differences of scipy, first and second order."""
    plan = Regimen(
        [Dose(0.0, 80.0, "depot"), Dose(4.0, 60.0, "depot"), Dose(5.0, 40.0, "central", rate=20.0)],
        (1.0, 3.0, 4.2, 6.0, 9.0),
    )
    base = shifts(MM, 1)[0]

    def truth(s: np.ndarray) -> np.ndarray:
        lag, f = 0.7 * np.exp(s[0]), 0.6 * np.exp(s[1])
        events = [(t + lag, w, f * a, c) if c == "depot" else (t, w, a, c) for t, w, a, c in plan.events()]
        events = [(0.0, "rate", 0.0, "depot"), *sorted(events, key=lambda e: e[0])]
        return reference(MM, base.tolist(), events, plan.times)[0]

    lag_shift, f_shift = Taylor.seed(torch.zeros(1, 2, dtype=torch.float64), 2)
    lag, f = 0.7 * torch.exp(lag_shift), 0.6 * torch.exp(f_shift)  # type: ignore[call-overload]
    line = timeline(MM, [plan], moved={0: Moved(lag, f)})
    got, status = run(solve, MM, given(MM, base.unsqueeze(0), 0), line)
    assert isinstance(got, Taylor)
    assert status.tolist() == [0]
    h, unit = 1e-3, np.eye(2)
    value = torch.from_numpy(truth(np.zeros(2))).unsqueeze(0)
    close(got.value, value, value, 1e-6)
    for i in range(2):
        near = [truth(k * h * unit[i]) for k in (-2, -1, 1, 2)]
        slope = (near[0] - 8 * near[1] + 8 * near[2] - near[3]) / (12 * h)
        close(got.full()[1][i], torch.from_numpy(slope).unsqueeze(0), value, 1e-5)
        bend = (-near[0] + 16 * near[1] - 30 * value[0].numpy() + 16 * near[2] - near[3]) / (12 * h**2)
        close(got.dense_hess()[i, i], torch.from_numpy(bend).unsqueeze(0), value, 1e-4)


@pytest.mark.parametrize("solve", SOLVES)
def test_an_observation_at_the_very_time_of_a_lagged_dose(solve: Solve) -> None:
    """The way from the dose to the observation has no length but a derivative."""
    shift = Taylor.seed(torch.zeros(1, 1, dtype=torch.float64), 2)[0]
    line = timeline(
        CLOCK, [Regimen([Dose(0.0, 10.0, "central")], (2.0,))], moved={0: Moved(2.0 + shift, None)}
    )
    page = replace(CLOCK, right=lambda t, y, p: [-p.k * y[0]])
    got, _ = run(solve, page, given(page, torch.zeros(1, 1, dtype=torch.float64), 0), line)
    assert isinstance(got, Taylor)
    k = CLOCK.values["k"]  # y(2) = 10 exp(-k (2 - lag))
    assert got.value.item() == pytest.approx(10.0)
    assert got.full()[1].item() == pytest.approx(10 * k)
    assert got.dense_hess().item() == pytest.approx(10 * k * k)


@pytest.mark.parametrize("solve", SOLVES)
def test_time_set_back_by_a_reset(solve: Solve) -> None:
    time = torch.tensor([[0.0, 3.0, 0.0, 0.0, 1.5, 1.5]], dtype=torch.float64)
    line = Timeline(
        time=time,
        kind=torch.tensor([[1, 0, 3, 1, 0, 0]]),
        compartment=torch.zeros(1, 6, dtype=torch.int64),
        amount=torch.tensor([[100.0, 0.0, 0.0, 40.0, 0.0, 0.0]], dtype=torch.float64),
        slot=torch.tensor([[-1, 0, -1, -1, 1, -1]]),
        segment=torch.zeros(1, 6, dtype=torch.int64),
        count=torch.tensor([5]),
        n_slots=2,
    )
    got, status = run(solve, CLOCK, given(CLOCK, torch.zeros(1, 1, dtype=torch.float64), 0), line)
    assert isinstance(got, Tensor)
    assert status.tolist() == [0]
    # integral of k (1 + t / 10), the clock starting again
    t = torch.tensor([3.0, 1.5], dtype=torch.float64)
    truth = torch.tensor([100.0, 40.0], dtype=torch.float64) * torch.exp(-0.2 * (t + 0.05 * t**2))
    torch.testing.assert_close(got[0, :, 0], truth, rtol=1e-7, atol=0)


@pytest.mark.parametrize("solve", SOLVES)
def test_parameters_that_change_from_point_to_point(solve: Solve) -> None:
    plan = Regimen([Dose(0.0, 100.0, "central"), Dose(4.0, 50.0, "central")], (1.0, 3.0, 6.0))
    page = replace(CLOCK, right=lambda t, y, p: [-p.k * y[0]])
    line = timeline(page, [plan, plan])
    shift = Taylor.seed(torch.zeros(2, 1, dtype=torch.float64), 1)[0]
    level = torch.tensor([[0.1], [0.3]], dtype=torch.float64)
    early: dict[str, Number] = {"k": level * torch.exp(shift)}  # type: ignore[call-overload]
    late: dict[str, Number] = {"k": 2.0 * early["k"]}
    # points: dose, observations at 1 and 3, dose at 4, observation at 6
    amounts, _ = solve(page, lambda k: late if k >= 3 else early, line, Solver())
    k = level[:, 0]
    whole = (100.0 * torch.exp(-4 * k) + 50.0) * torch.exp(-2 * 2 * k)
    slope = -4 * k * 100.0 * torch.exp(-4 * k) * torch.exp(-4 * k) - 4 * k * whole
    torch.testing.assert_close(amounts[0].value[:, 2], whole, rtol=1e-7, atol=0)
    torch.testing.assert_close(amounts[0].jac[0, :, 2], slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize("solve", SOLVES)
def test_no_observations(solve: Solve) -> None:
    line = timeline(MM, [regimens(MM)[2]])
    none = replace(line, slot=torch.full_like(line.slot, -1), n_slots=0)
    got, status = run(solve, MM, given(MM, shifts(MM, 1), 1), none)
    assert got.shape == (1, 0, 2)
    assert status.tolist() == [0]
