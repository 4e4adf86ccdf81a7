"""Taylor numbers against nested forward mode of torch, which shares none of their rules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Taylor, value_of

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.5, 1.0, 4.0, 9.0], dtype=F64)


def bateman(ka, cl, v):
    k = cl / v
    return 100 * ka / (v * (ka - k)) * (torch.exp(-k * TIMES) - torch.exp(-ka * TIMES))


FORMULAS = {
    "bateman": lambda a, b, c: bateman(a.exp() * 1.5, b.exp() * 2.7, c.exp() * 32),
    "arithmetic": lambda a, b, c: (2 - a) * (b + 3) / (1 + c * c) - (-a) + 1 / (b + 4) + 5 / (2 + c),
    "powers": lambda a, b, c: (
        (a + 2) ** 3 + (b + 2) ** 0.5 + (c + 2) ** 1.7 + (a + 2) ** (b + 1) + 2.0**c + (a + 3) ** -1
    ),
    "elementary": lambda a, b, c: (
        torch.log(a + 2)
        + torch.log1p(b + 1) * torch.expm1(c)
        + torch.sqrt(a + 2) * torch.sin(b)
        + torch.cos(c) * torch.tanh(a)
    ),
    "more": lambda a, b, c: (
        torch.sigmoid(a) * torch.reciprocal(b + 3) + torch.square(c) * abs(a - 5) + torch.erf(b) * c
    ),
    "choices": lambda a, b, c: (
        torch.where(a > b, a * c, torch.exp(b))
        + torch.maximum(a, b) * torch.minimum(b, c)
        + a.clamp(min=-0.1, max=0.2) * c
    ),
    "rearranged": lambda a, b, c: (
        torch.stack([a, b * c, a * a], -1).sum(-1)
        + torch.cat([a, b], -1).gather(-1, torch.tensor([[1], [0]]).expand(*a.shape[:-1], 1)) * c
        + (a * TIMES)[..., 1:4].sum(-1, keepdim=True)
        + (b * TIMES).index_select(-1, torch.tensor([2])) * (c * TIMES).unsqueeze(-1).squeeze(-1)
    ),
    "constants": lambda a, b, c: (
        a * torch.tensor(3.0, dtype=F64)
        + torch.tensor([[1.0], [2.0]], dtype=F64) * b
        - 4
        + c.expand((*c.shape[:-1], 5))
    ),
    "fallback": lambda a, b, c: (
        torch.special.gammaln(a + 3) * torch.atan2(b + 2, c + 2) + torch.logaddexp(a, b)
    ),
}


def nested(formula, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = eta.shape[-1]

    def whole(x: Tensor) -> Tensor:
        return formula(*(x[..., k : k + 1] for k in range(q)))

    unit = [torch.zeros_like(eta).index_fill_(-1, torch.tensor(k), 1.0) for k in range(q)]
    jac = [jvp(whole, (eta,), (u,))[1] for u in unit]
    hess = [[jvp(lambda x, u=u: jvp(whole, (x,), (u,))[1], (eta,), (w,))[1] for w in unit] for u in unit]
    return whole(eta), torch.stack(jac), torch.stack([torch.stack(row) for row in hess])


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("draws", [(), (3,)])
def test_derivatives_equal_nested_forward_mode(name: str, draws: tuple[int, ...]) -> None:
    formula = FORMULAS[name]
    eta = 0.3 * torch.randn(*draws, 2, 3, dtype=F64)
    value, jac, hess = nested(formula, eta)
    y = formula(*Taylor.seed(eta, 2))
    torch.testing.assert_close(y.value, value, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(y.full()[1], jac, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(y.dense_hess(), hess, rtol=1e-10, atol=1e-10)
    first = formula(*Taylor.seed(eta, 1))
    assert first.hess is None
    torch.testing.assert_close(first.full()[1], jac, rtol=1e-11, atol=1e-11)


def test_reverse_mode_passes_through_the_jacobian() -> None:
    scale = torch.tensor(1.3, dtype=F64, requires_grad=True)
    eta = 0.2 * torch.randn(2, 3, dtype=F64)

    def total(s: Tensor) -> Tensor:
        a, b, c = Taylor.seed(eta, 2)
        y = bateman(s * a.exp(), 2.7 * b.exp(), 32 * c.exp())
        return y.full()[1].square().sum() + y.dense_hess().sin().sum()

    (gradient,) = torch.autograd.grad(total(scale), scale)
    h = 1e-4
    with torch.no_grad():
        steps = [total(scale + k * h) for k in (-2, -1, 1, 2)]
    difference = (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)
    assert gradient.item() == pytest.approx(difference.item(), rel=1e-8)


def test_directions_need_not_be_unit_vectors() -> None:
    eta = 0.2 * torch.randn(2, 3, dtype=F64)
    direction = torch.tensor([0.4, -1.0, 2.0], dtype=F64)
    a, b, c = (Taylor(eta[:, k : k + 1], direction[k].reshape(1, 1, 1)) for k in range(3))
    along = bateman(a.exp(), b.exp(), 9 * c.exp())
    plain = bateman(*(x * s for x, s in zip((y.exp() for y in Taylor.seed(eta, 1)), (1, 1, 9), strict=True)))
    torch.testing.assert_close(along.full()[1][0], torch.einsum("d,dnt->nt", direction, plain.full()[1]))


def test_where_keeps_the_derivative_of_the_chosen_side_alone() -> None:
    (x,) = Taylor.seed(torch.tensor([[0.0], [2.0]], dtype=F64), 2)
    y = torch.where(x > 1, torch.log(torch.where(x > 1, x, 1.0)), 0.0)
    assert y.full()[1].flatten().tolist() == [0.0, 0.5]
    assert y.dense_hess().flatten().tolist() == [0.0, -0.25]


def test_what_a_quantity_refuses_names_the_remedy() -> None:
    (x,) = Taylor.seed(torch.ones(2, 1, dtype=F64), 1)
    with pytest.raises(ModelError, match=r"torch\.where"):
        bool(x > 0 if False else x)
    with pytest.raises(ModelError, match=r"torch\.exp"):
        math.exp(x)
    with pytest.raises(ModelError, match="in-place"):
        x.exp_()
    with pytest.raises(AttributeError, match="no attribute"):
        x.nonsense()


def test_value_of_reads_through() -> None:
    (x,) = Taylor.seed(torch.ones(2, 1, dtype=F64), 1)
    assert value_of(x) is x.value
    assert value_of(3.0) == 3.0


@pytest.mark.parametrize("exponent", [1.5, torch.tensor([[1.5]], dtype=F64), None])
def test_a_power_of_a_base_that_rests_at_zero(exponent: object) -> None:
    # an amount before the first dose: it and its derivatives are 0, and so are those of its power
    x, gamma = Taylor.seed(torch.tensor([[2.0, 1.5], [3.0, 1.7]], dtype=F64), 2)
    dosed = torch.tensor([[0.0, 1.0]], dtype=F64)
    y = (x * dosed) ** (gamma if exponent is None else exponent)  # type: ignore[operator]
    assert y.value[:, 0].tolist() == [0.0, 0.0]
    assert not y.full()[1][..., 0].any()
    assert not y.dense_hess()[..., 0].any()
    torch.testing.assert_close(y.full()[1][0, 0, 1].item(), 1.5 * 2.0**0.5, rtol=1e-14, atol=0)
    torch.testing.assert_close(y.dense_hess()[0, 0, 0, 1].item(), 0.75 * 2.0**-0.5, rtol=1e-14, atol=0)
