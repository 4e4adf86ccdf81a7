from __future__ import annotations

import math

import pytest
import torch

from nlmegen.maths.quadrature import affordable_nodes, hermite, tensor_grid


@pytest.mark.parametrize("n", [1, 2, 5, 9, 41])
def test_moments_up_to_twice_the_nodes_are_exact(n: int) -> None:
    x, log_w = hermite(n)
    w = log_w.exp()
    assert float(w.sum()) == pytest.approx(1.0, abs=1e-14)
    for degree in range(min(2 * n, 24)):
        exact = 0.0 if degree % 2 else float(math.prod(range(1, degree, 2)))
        assert float((w * x**degree).sum()) == pytest.approx(
            exact, rel=1e-11, abs=1e-9 * max(exact, 1.0) + 1e-12
        )


def test_the_next_even_moment_is_not_exact() -> None:
    x, log_w = hermite(3)
    assert abs(float((log_w.exp() * x**6).sum()) - 15.0) > 1.0


def test_a_smooth_integral_in_three_dimensions() -> None:
    x, log_w = tensor_grid(15, 3)
    a = torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)
    value = (log_w.exp() * torch.exp(x @ a)).sum()
    assert float(value) == pytest.approx(math.exp(0.5 * float(a @ a)), rel=1e-12)
    assert x.shape == (15**3, 3)


def test_the_empty_integral_is_its_integrand() -> None:
    x, log_w = tensor_grid(9, 0)
    assert x.shape == (1, 0)
    assert log_w.tolist() == [0.0]


def test_nodes_are_reduced_to_what_a_budget_buys() -> None:
    assert affordable_nodes(9, 3, 20_000) == 9
    assert affordable_nodes(9, 5, 20_000) == 7
    assert affordable_nodes(9, 20, 20_000) == 1


def test_no_nodes_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        hermite(0)
