"""The stiff route where stiffness is real: association a thousand times faster than everything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from structure.stepping import Written, given, reference, run, shifts, timeline, tmdd
from structure.systems import Dose, Regimen

from nlmegen.maths.taylor import Taylor
from nlmegen.structure.implicit import stiff
from nlmegen.structure.ode import explicit

FAST = tmdd(1e3)
TIMES = (0.01, 1.0, 5.0, 24.0, 48.0, 100.0, 300.0)


def plans() -> list[Regimen]:
    """A dose above the target's capacity, one far below it, two doses."""
    return [
        Regimen([Dose(0.0, 300.0, "ligand")], TIMES),
        Regimen([Dose(0.0, 2.0, "ligand")], TIMES),
        Regimen([Dose(0.0, 20.0, "ligand"), Dose(60.0, 100.0, "ligand", rate=10.0)], TIMES),
    ]


def test_stiff_binding_against_scipy() -> None:
    """Relative to the largest amount seen, not to the dose: what is left free is a millionth of it."""
    eta = shifts(FAST, 3)
    got, status = run(stiff, FAST, given(FAST, eta, 1), timeline(FAST, plans()), floor=1e-6)
    assert isinstance(got, Taylor)
    assert status.tolist() == [0, 0, 0]
    for i, plan in enumerate(plans()):
        truth = reference(FAST, eta[i].tolist(), plan.events(), plan.times, "LSODA")
        peak = np.abs(truth[0]).max(0)
        np.testing.assert_array_less(np.abs(got.value[i].numpy() - truth[0]).max(0) / peak, 1e-6)
        np.testing.assert_array_less(np.abs(got.jac[:, i].numpy() - truth[1:]).max((0, 1)) / peak, 1e-5)


def test_explicit_steps_are_too_many() -> None:
    eta = shifts(FAST, 3)
    _, status = run(explicit, FAST, given(FAST, eta, 0), timeline(FAST, plans()), max_steps=500)
    assert status.tolist() == [1, 1, 1]


def test_cap_of_steps() -> None:
    got, status = run(stiff, FAST, given(FAST, shifts(FAST, 3), 0), timeline(FAST, plans()), max_steps=10)
    assert status.tolist() == [1, 1, 1]
    assert bool(got.isnan().all())


def test_gradient_of_a_stiff_solve() -> None:
    """Reverse mode through values and Jacobians equals forward mode of one order more."""
    line = timeline(FAST, [Regimen([Dose(0.0, 300.0, "ligand")], (0.01, 5.0, 48.0))])
    eta = shifts(FAST, 1).requires_grad_()
    got, _ = run(stiff, FAST, given(FAST, eta, 1), line)
    truth, _ = run(stiff, FAST, given(FAST, eta.detach(), 2), line)
    assert isinstance(got, Taylor)
    assert isinstance(truth, Taylor)
    (gradient,) = torch.autograd.grad(got.value[..., 0].sum() + got.jac[1, ..., 0].sum(), eta)
    expected = truth.jac[..., 0].sum((1, 2)) + truth.dense_hess()[1, ..., 0].sum((1, 2))
    torch.testing.assert_close(gradient[0], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_very_fast_decay_is_followed_to_its_end() -> None:
    """Rates from 1e-2 to 1e8 in one page, no oscillation left by any of them (L-stability)."""
    page = Written(
        ("a", "b"),
        dict(fast=1e8, slow=1e-2),
        lambda t, y, p: [-p.fast * (y[0] - y[1]), -p.slow * y[1]],
        lambda p: [1.0, 1.0],
    )
    line = timeline(page, [Regimen([Dose(0.0, 1.0, "b")], (1e-9, 1.0, 100.0))])
    got, status = run(stiff, page, given(page, torch.zeros(1, 2, dtype=torch.float64), 1), line)
    assert isinstance(got, Taylor)
    assert status.tolist() == [0]
    t = np.array([1e-9, 1.0, 100.0])
    gain = 1e8 / (1e8 - 1e-2)
    truth = 2 * gain * np.exp(-1e-2 * t) + (1 - 2 * gain) * np.exp(-1e8 * t)
    np.testing.assert_allclose(got.value[0, :, 0].numpy(), truth, rtol=1e-6)
    slope = 2 * np.exp(-1e-2 * t) * -1e-2 * t
    assert got.jac[1, 0, 1:, 0].numpy() == pytest.approx(slope[1:], rel=1e-5)
