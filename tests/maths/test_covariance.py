"""The log-Cholesky chart: every vector is a covariance, every covariance a vector."""

from __future__ import annotations

import torch

from nlmegen.maths.covariance import LogCholesky, block_positions

F64 = torch.float64


def test_blocks_lie_along_the_diagonal() -> None:
    assert block_positions([(1, False), (2, True), (2, False)]) == [
        (0, 0),
        (1, 1),
        (2, 1),
        (2, 2),
        (3, 3),
        (4, 4),
    ]


def test_round_trip_of_a_block_matrix() -> None:
    chart = LogCholesky(4, block_positions([(1, False), (3, True)]))
    x = 0.4 * torch.randn(5, 7, dtype=F64)
    factor = chart.factor(x)
    omega = factor @ factor.mT
    assert bool((torch.linalg.eigvalsh(omega) > 0).all())
    assert bool((omega[:, 0, 1:] == 0).all())
    torch.testing.assert_close(chart.vector(omega), x, rtol=1e-10, atol=1e-10)


def test_a_diagonal_matrix_is_its_log_standard_deviations() -> None:
    chart = LogCholesky(2, block_positions([(2, False)]))
    x = torch.tensor([0.3, -1.2], dtype=F64)
    torch.testing.assert_close(chart.factor(x).diagonal().log(), x)
    torch.testing.assert_close(chart.vector(torch.diag((2 * x).exp())), x)


def test_the_gradient_through_a_block_is_finite_and_right() -> None:
    chart = LogCholesky(2, block_positions([(2, True)]))
    x = torch.tensor([0.3, -800.0, 0.1], dtype=F64, requires_grad=True)
    (g,) = torch.autograd.grad(chart.factor(x).sum(), x)
    torch.testing.assert_close(g, torch.tensor([0.3, 0.0, 0.1], dtype=F64).exp())
