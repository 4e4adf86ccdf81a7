"""The priors' part of an objective: value, gradient and Hessian of -2 log prior in the free parameters.

A maximum a posteriori estimate minimises -2 log L + penalty, so that with R = 1/2 d2O/dpsi2 (see `uncertainty`) half
the Hessian of the penalty belongs to R. Scores by subject, and with them S, know nothing of priors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..model.problem import Problem


def penalty_gradient(problem: Problem, free: Tensor) -> tuple[Tensor, Tensor]:
    """-2 sum log prior at `free [*b, P]`, `[*b]`, and its gradient `[*b, P]`; zeros on a page without priors."""
    if not problem.penalised:
        return free.new_zeros(free.shape[:-1]), torch.zeros_like(free)
    with torch.enable_grad():
        at = free.detach().clone().requires_grad_()
        value = problem.penalty(at)
        (gradient,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), gradient


def penalty_hessian(problem: Problem, free: Tensor) -> Tensor:
    """Hessian of -2 sum log prior at `free [P]`, `[P, P]`; zeros on a page without priors."""
    if not problem.penalised:
        return torch.zeros(len(free), len(free), dtype=free.dtype)
    with torch.enable_grad():
        hessian: Tensor = torch.autograd.functional.hessian(problem.penalty, free.detach())  # type: ignore[no-untyped-call]
    return hessian
