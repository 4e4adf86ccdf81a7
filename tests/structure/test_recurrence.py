"""Linear recurrences against a loop of Taylor arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import stack, unbind
from nlmegen.structure.recurrence import matrix_recurrence, scalar_recurrence

Q, N = 3, 4


def random(seed: int, *shape: int, order: int) -> Number:
    g = torch.Generator().manual_seed(seed)
    value = torch.rand(*shape, generator=g, dtype=torch.float64)
    if order == 0:
        return value
    jac = torch.randn(Q, *shape, generator=g, dtype=torch.float64)
    hess = torch.randn(Q, Q, *shape, generator=g, dtype=torch.float64)
    return Taylor(value, jac, hess + hess.transpose(0, 1) if order == 2 else None, order)


def same(a: Number, b: Number) -> None:
    torch.testing.assert_close(value_of(a), value_of(b), rtol=1e-12, atol=1e-12)
    assert isinstance(a, Taylor) == isinstance(b, Taylor)
    if isinstance(a, Taylor) and isinstance(b, Taylor):
        torch.testing.assert_close(a.full()[1], b.full()[1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(a.dense_hess(), b.dense_hess(), rtol=1e-12, atol=1e-12)


def columns(x: Number) -> list[Number]:
    return [x[..., k : k + 1] for k in range(x.shape[-1])]


@pytest.mark.parametrize("events", [2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("orders", [(0, 0), (2, 2), (2, 0), (0, 2), (1, 1), (1, 0)])
def test_scalar(events: int, orders: tuple[int, int]) -> None:
    m, g = random(1, N, events - 1, order=orders[0]), random(2, N, events - 1, order=orders[1])
    first = torch.rand(N, 1, dtype=torch.float64)
    x: Number = first
    steps: list[Number] = [x]
    for m_e, g_e in zip(columns(m), columns(g), strict=True):
        x = m_e * x + g_e
        steps.append(x)
    same(scalar_recurrence(m, g, first), torch.cat(steps, -1))  # type: ignore[arg-type]


def test_scalar_without_inputs_and_with_draws() -> None:
    m = random(1, 2, N, 5, order=2)
    first = torch.rand(N, 1, dtype=torch.float64)
    x: Number = first
    steps: list[Number] = [x * torch.ones(2, 1, 1, dtype=torch.float64)]
    for m_e in columns(m):
        x = m_e * x
        steps.append(x)
    same(scalar_recurrence(m, None, first), torch.cat(steps, -1))  # type: ignore[arg-type]


@pytest.mark.parametrize("orders", [(0, 0), (2, 2), (2, 0), (1, 1)])
@pytest.mark.parametrize("draws", [(), (2,)])
def test_matrix(orders: tuple[int, int], draws: tuple[int, ...]) -> None:
    c, events = 3, 5
    m = random(1, c, c, *draws, N, events - 1, order=orders[0])
    g = random(2, c, *draws, N, events - 1, order=orders[1])
    first = torch.rand(c, N, 1, dtype=torch.float64)
    rows = [unbind(row) for row in unbind(m)]
    inputs = unbind(g)
    x: list[Number] = [f.expand(*draws, N, 1) for f in first]
    steps: list[list[Number]] = [[y] for y in x]
    for e in range(events - 1):
        at = slice(e, e + 1)
        new = []
        for i in range(c):
            total: Number = inputs[i][..., at]
            for j in range(c):
                total = total + rows[i][j][..., at] * x[j]
            new.append(total)
        x = new
        for step, y in zip(steps, x, strict=True):
            step.append(y)
    expected = stack([torch.cat(step, -1) for step in steps])  # type: ignore[arg-type]
    same(matrix_recurrence(m, g, first), expected)


def test_a_factor_of_zero_forgets() -> None:
    m = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64)
    g = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    got = scalar_recurrence(m, g, torch.tensor([[1e300]], dtype=torch.float64))
    assert value_of(got)[0, 2:].tolist() == [2.0, 4.0]


@pytest.mark.parametrize("kind", ["scalar", "matrix"])
def test_reverse_mode(kind: str) -> None:
    g = torch.Generator().manual_seed(3)
    first = torch.rand(2, N, 1, generator=g, dtype=torch.float64)
    m = torch.rand(2, 2, N, 4, generator=g, dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, N, 4, generator=g, dtype=torch.float64, requires_grad=True)

    def solve(m: Tensor, u: Tensor) -> Tensor:
        if kind == "scalar":
            return value_of(scalar_recurrence(m[0, 0], u[0], first[0]))
        return value_of(matrix_recurrence(m, u, first))

    assert torch.autograd.gradcheck(solve, (m, u))
    assert torch.autograd.gradgradcheck(solve, (m, u))
