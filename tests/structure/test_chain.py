"""Sums of weighted functions against Taylor arithmetic on the same formulas."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import Term, accumulate, each, last, stack, take, unbind

N, T, Q = 3, 5, 2
TIME = torch.linspace(0.1, 2.0, N * T, dtype=torch.float64).reshape(N, T)


def random_taylor(seed: int, *shape: int, order: int = 2) -> Taylor:
    g = torch.Generator().manual_seed(seed)
    value = 0.5 + torch.rand(*shape, generator=g, dtype=torch.float64)
    jac = torch.randn(Q, *shape, generator=g, dtype=torch.float64)
    hess = torch.randn(Q, Q, *shape, generator=g, dtype=torch.float64)
    return Taylor(value, jac, hess + hess.transpose(0, 1) if order == 2 else None, order)


def same(a: Number, b: Number, rtol: float = 1e-12) -> None:
    assert isinstance(a, Taylor) == isinstance(b, Taylor)
    torch.testing.assert_close(value_of(a), value_of(b), rtol=rtol, atol=1e-13)
    if isinstance(a, Taylor) and isinstance(b, Taylor):
        assert a.order == b.order
        torch.testing.assert_close(a.full()[1], b.full()[1], rtol=rtol, atol=1e-13)
        if a.order == 2:
            torch.testing.assert_close(a.dense_hess(), b.dense_hess(), rtol=rtol, atol=1e-13)


def decay(r: Tensor) -> list[Tensor]:
    e = torch.exp(-r * TIME)
    return [e, -TIME * e, TIME**2 * e]


def product_of_powers(x: Tensor, y: Tensor) -> list[Tensor]:
    """x^2 y^3 t and its derivatives in x and y."""
    return [
        x**2 * y**3 * TIME,
        2 * x * y**3 * TIME,
        3 * x**2 * y**2 * TIME,
        2 * y**3 * TIME,
        6 * x * y**2 * TIME,
        6 * x**2 * y * TIME,
    ]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("which", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("width", [1, T])
def test_accumulate_is_taylor_arithmetic(order: int, which: tuple[bool, bool, bool], width: int) -> None:
    """Any of weight and rates may be plain; weights and rates with or without a time axis."""
    numbers = [random_taylor(k, N, width if k == 0 else 1, order=order) for k in range(3)]
    c, x, y = (n if taylor else n.value for n, taylor in zip(numbers, which, strict=True))
    got = accumulate(
        [
            Term(c, (x, y), product_of_powers(value_of(x), value_of(y))),
            Term(None, (y,), decay(value_of(y))),
        ]
    )
    expected = c * x * x * y * y * y * TIME + torch.exp(-(y * TIME))  # type: ignore[arg-type]
    same(got, expected)


def test_draws_of_weights_and_rates_broadcast() -> None:
    c, r = random_taylor(1, 4, N, 1), random_taylor(2, N, 1)
    got = accumulate([Term(None, (r,), decay(r.value)), Term(c, (r,), decay(r.value))])
    assert got.shape == (4, N, T)
    same(got, torch.exp(-(r * TIME)) + c * torch.exp(-(r * TIME)))  # type: ignore[arg-type]


def test_reverse_mode_passes_through_the_sum() -> None:
    start = torch.full((N, 1), 0.7, dtype=torch.float64)

    def hessian(shift: Tensor, route: str) -> Tensor:
        r, c = (
            Taylor(x.value + shift, x.jac, x.hess, 2)
            for x in (random_taylor(1, N, 1), random_taylor(2, N, 1))
        )
        if route == "sum":
            got = accumulate([Term(c, (r,), decay(r.value)), Term(c, (r,), decay(r.value))])
        else:
            got = 2 * (c * torch.exp(-(r * TIME)))  # type: ignore[arg-type]
        assert isinstance(got, Taylor)
        return got.dense_hess()

    gradients = []
    for route in ("sum", "arithmetic"):
        shift = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad((hessian(shift, route) * TIME.sin()).sum(), shift)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_stack_and_unbind() -> None:
    a, b, c = random_taylor(1, N, 1), torch.ones(1, 1, dtype=torch.float64), random_taylor(3, 4, N, 1)
    stacked = stack([a, b, c])
    assert stacked.shape == (3, 4, N, 1)
    back = unbind(stacked)
    same(back[0], a.expand(4, N, 1))
    same(back[1], 0 * c + b)
    same(back[2], c)
    assert isinstance(stack([b, b]), Tensor)
    same(unbind(stacked, 2)[1], stacked[:, :, 1])


def test_take_and_last() -> None:
    index = torch.tensor([[0, 2], [1, 1], [2, 0]])
    x = random_taylor(1, 4, N, 3)
    same(take(x, index), x.gather(-1, index.expand(4, N, 2)))
    narrow = Taylor(x.value[:1, :1], x.jac[:, :1, :1], None, 2)  # one subject's values for all
    assert take(narrow, index).shape == (1, N, 2)
    constant = random_taylor(1, N, 1)
    assert take(constant, index) is constant
    assert last(constant, 2) is constant
    same(last(x, 2), x[..., :2])


def test_each_tells_the_leading_axes() -> None:
    x = random_taylor(1, N, 4)
    same(each(x, lambda y, lead: y.movedim(lead, -1)), each(x, lambda y, lead: y.transpose(-1, -2)))
