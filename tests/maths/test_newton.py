from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nlmegen.maths.newton import direction, minimise

F64 = torch.float64


@dataclass(frozen=True)
class Expanded:
    value: Tensor
    gradient: Tensor
    hessian: Tensor

    def fallback(self) -> Tensor:
        eigenvalues, axes = torch.linalg.eigh(self.hessian)
        return (axes * eigenvalues.abs().clamp(min=1e-3).unsqueeze(-2)) @ axes.mT


class Batch:
    """Any function of q variables and an element's own constants, expanded by autograd."""

    def __init__(self, function, constants: Tensor) -> None:
        self.function, self.constants, self.calls = function, constants, 0

    def __call__(self, x: Tensor) -> Expanded:
        self.calls += 1
        flat, constants = x.reshape(-1, x.shape[-1]), self.constants.reshape(-1, self.constants.shape[-1])
        one = torch.func.vmap(self.function)(flat, constants)
        gradient = torch.func.vmap(torch.func.grad(self.function))(flat, constants)
        hessian = torch.func.vmap(torch.func.hessian(self.function))(flat, constants)
        shape = x.shape[:-1]
        return Expanded(one.reshape(shape), gradient.reshape(x.shape), hessian.reshape(*x.shape, x.shape[-1]))

    def select(self, index: Tensor) -> Batch:
        return Batch(self.function, self.constants.reshape(-1, self.constants.shape[-1])[index])


def parabola(x: Tensor, c: Tensor) -> Tensor:
    return 0.5 * ((x - c) ** 2 * torch.tensor([1.0, 4.0], dtype=F64)).sum() + 3.0


def rosenbrock(x: Tensor, c: Tensor) -> Tensor:
    return (c[0] - x[0]) ** 2 + c[1] * (x[1] - x[0] ** 2) ** 2


def double_well(x: Tensor, c: Tensor) -> Tensor:
    return (x**4 - c * x**2).sum()


def logarithm(x: Tensor, c: Tensor) -> Tensor:
    return (x - c * torch.log(x)).sum()


def test_a_parabola_takes_one_step() -> None:
    target = torch.randn(3, 5, 2, dtype=F64)
    found = minimise(Batch(parabola, target), torch.zeros(3, 5, 2, dtype=F64))
    assert torch.allclose(found.x, target, atol=1e-12)
    assert found.iterations == 2
    assert bool(found.converged.all())
    assert torch.allclose(found.expansion.value, torch.full((3, 5), 3.0, dtype=F64))


def test_hard_valleys_from_many_starts_end_at_their_minimum() -> None:
    constants = torch.tensor([[1.0, 100.0], [2.0, 10.0], [-1.0, 30.0]], dtype=F64).repeat(20, 1)
    found = minimise(Batch(rosenbrock, constants), 2 * torch.randn(60, 2, dtype=F64))
    a = constants[:, 0]
    assert bool(found.converged.all())
    assert torch.allclose(found.x, torch.stack((a, a**2), -1), atol=1e-6)
    assert float(found.decrement.max()) < 1e-16


def test_indefinite_start_goes_downhill_and_the_flag_is_about_the_end() -> None:
    c = torch.tensor([[1.0], [2.0]], dtype=F64)
    found = minimise(Batch(double_well, c), torch.full((2, 1), 0.1, dtype=F64))
    assert torch.allclose(found.x, (c / 2).sqrt(), atol=1e-9)
    assert not bool(found.indefinite.any())
    saddle = minimise(Batch(double_well, c), torch.zeros(2, 1, dtype=F64))
    assert bool(saddle.indefinite.all())


def test_an_undefined_element_stays_and_hurts_no_other() -> None:
    c = torch.tensor([[2.0], [3.0], [1.0]], dtype=F64)
    found = minimise(Batch(logarithm, c), torch.tensor([[1.0], [-1.0], [7.0]], dtype=F64))
    assert torch.allclose(found.x[[0, 2]], c[[0, 2]], atol=1e-9)
    assert found.converged.tolist() == [True, False, True]
    assert float(found.x[1]) == -1.0


def test_steps_out_of_the_domain_are_cut_back() -> None:
    c = torch.full((4, 1), 0.01, dtype=F64)
    found = minimise(Batch(logarithm, c), torch.tensor([[1.0], [10.0], [100.0], [1e-5]], dtype=F64))
    assert torch.allclose(found.x, c, atol=1e-9)


def test_leaving_the_batch_changes_nothing_but_the_work() -> None:
    constants = torch.tensor([[1.0, 100.0]], dtype=F64).repeat(64, 1)
    start = torch.randn(8, 8, 2, dtype=F64)
    start[:6] = 1.0  # most are done at once
    whole, compact = Batch(rosenbrock, constants), Batch(rosenbrock, constants)
    whole.constants = compact.constants = constants.reshape(8, 8, 2)
    together = minimise(whole, start, compact_above=10**9)
    apart = minimise(compact, start, compact_above=10)
    assert torch.allclose(together.x, apart.x, atol=1e-8)
    assert torch.allclose(apart.expansion.value, compact(apart.x).value)
    assert bool(apart.converged.all())
    assert compact.calls < whole.calls


def test_a_limit_shortens_steps_along_their_line() -> None:
    target = torch.tensor([[10.0, 10.0]], dtype=F64)
    batch = Batch(parabola, target)
    first = minimise(
        batch, torch.zeros(1, 2, dtype=F64), limit=torch.tensor([[0.5, 5.0]], dtype=F64), max_iterations=2
    )
    assert first.x.tolist() == [[0.5, 0.5]]
    assert not bool(first.converged)
    assert torch.allclose(minimise(batch, torch.zeros(1, 2, dtype=F64), limit=0.5).x, target)


def test_the_iteration_limit_is_a_verdict() -> None:
    found = minimise(
        Batch(rosenbrock, torch.tensor([[1.0, 100.0]], dtype=F64)),
        torch.full((1, 2), -1.2, dtype=F64),
        max_iterations=3,
    )
    assert found.iterations == 3
    assert not bool(found.converged)


def test_direction_is_the_newton_step_and_its_decrement() -> None:
    x = torch.tensor([[0.3, -0.2]], dtype=F64)
    at = Batch(rosenbrock, torch.tensor([[1.0, 5.0]], dtype=F64))(x)
    step, decrement, indefinite = direction(at)
    assert torch.allclose(step, -torch.linalg.solve(at.hessian, at.gradient))
    assert float(decrement) == pytest.approx(-float((step * at.gradient).sum()))
    assert not bool(indefinite)


def test_nothing_to_vary() -> None:
    class Constant:
        def __call__(self, x: Tensor) -> Expanded:
            return Expanded(torch.full(x.shape[:-1], 2.0, dtype=F64), x, x.unsqueeze(-1).expand(*x.shape, 0))

        def select(self, index: Tensor) -> Constant:
            return self

    found = minimise(Constant(), torch.zeros(4, 0, dtype=F64))
    assert bool(found.converged.all())
    assert found.expansion.value.tolist() == [2.0] * 4
    assert not math.isnan(float(found.decrement.sum()))
