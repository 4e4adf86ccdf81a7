"""The matrix exponential route against scipy, mpmath and the closed forms, derivatives included."""

from __future__ import annotations

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy.linalg import expm
from structure.systems import STRUCTURES, Dose, Regimen, busy, log_normal, schedule, solved_taylor, spread
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.closed import Closed
from nlmegen.structure.linear import exponential, linear_amounts, product
from nlmegen.structure.spectrum import Disposition, micro_constants


def flows(seed: int, c: int, scale: float = 1.0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    a = scale * torch.rand(c, c, generator=g, dtype=torch.float64)
    return a - torch.diag(a.sum(0) + 0.1 * scale)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 30.0, 1e3])
def test_exponential(scale: float) -> None:
    a = flows(1, 4, scale)
    torch.testing.assert_close(exponential(a), torch.from_numpy(expm(a.numpy())), rtol=1e-11, atol=1e-12)


def test_small_entries_keep_their_digits() -> None:
    """A chain of slow steps: the entry far from the diagonal is 1e-16 of the largest."""
    a = torch.diag(torch.full((4,), -1.0, dtype=torch.float64)) + torch.diag(
        torch.full((3,), 1e-5, dtype=torch.float64), -1
    )
    with mp.workdps(50):
        exact = np.array(mp.expm(mp.matrix(a.tolist()) * 20).tolist(), dtype=float)
    np.testing.assert_allclose(exponential(a * 20).numpy(), exact, rtol=1e-13)


def test_derivatives_of_the_exponential() -> None:
    base, moves = flows(2, 3), [flows(k, 3) for k in (3, 4)]

    def at(s: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(base + s[0] * moves[0] + s[0] * s[1] * moves[1] + s[1] ** 2 * moves[0])

    zero = torch.zeros(2, dtype=torch.float64)
    hess = torch.stack([torch.stack([0 * base, moves[1]]), torch.stack([moves[1], 2 * moves[0]])])
    got = exponential(Taylor(base, torch.stack([moves[0], 0 * base]), hess, 2))
    assert isinstance(got, Taylor)
    jac = torch.func.jacfwd(at)
    torch.testing.assert_close(got.jac, jac(zero).movedim(-1, 0), rtol=1e-12, atol=1e-13)
    second = torch.func.jacfwd(jac)(zero).movedim((-2, -1), (0, 1))
    torch.testing.assert_close(got.dense_hess(), second, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True), (False, False)])
def test_product(which: tuple[bool, bool]) -> None:
    g = torch.Generator().manual_seed(1)

    def random() -> Taylor:
        h = torch.randn(2, 2, 3, 3, generator=g, dtype=torch.float64)
        value, jac = (torch.randn(*s, 3, 3, generator=g, dtype=torch.float64) for s in ((), (2,)))
        return Taylor(value, jac, h + h.transpose(0, 1), 2)

    a, b = (x if taylor else x.value for x, taylor in zip((random(), random()), which, strict=True))
    got: Number = product(a, b)
    expected = (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)
    if isinstance(got, Taylor):
        torch.testing.assert_close(got.dense_hess(), expected.dense_hess(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.jac, expected.jac, rtol=1e-12, atol=1e-12)
        got, expected = got.value, expected.value
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
@pytest.mark.parametrize("single", [False, True])
def test_equals_the_closed_form(structure: Closed, single: bool) -> None:
    first = structure.compartments[0]
    one = Regimen([Dose(0.0, 100.0, first), Dose(0.0, 30.0, first, rate=2.0)], (0.0, 1.0, 4.0))
    plan = schedule(structure, one) if single else schedule(structure, busy(structure), one)
    eta = spread(structure, plan.n_subjects)
    p = log_normal(structure, Taylor.seed(eta, 2))
    pairs = [(p.q, p.v2), (p.q3, p.v3)] if hasattr(p, "q3") else [(p.q, p.v2)] if hasattr(p, "q") else []
    matrix = Disposition(micro_constants(p.cl, p.v, pairs)).matrix(getattr(p, "ka", None))
    got = linear_amounts(matrix, plan)
    assert isinstance(got, Taylor)
    value, jac, hess = solved_taylor(structure, p, plan)
    torch.testing.assert_close(got.value, value, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(got.full()[1], jac, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.dense_hess(), hess, rtol=1e-9, atol=1e-9)
