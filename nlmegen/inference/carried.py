"""Derivatives that come by way of the conditional modes and of the matrices laid there, by reverse mode.

A share O_i of an objective depends on the parameters psi directly, through the mode z* and through a matrix M (the
Hessian H of l there, or the expected information K). Reverse mode takes z* and M as variables of their own; what has
gathered in z*, call it w, is carried by implicit differentiation of dl/dz = 0: with u = H^-1 w,

    d O_i / d psi = partial O_i / partial psi - u' partial^2 l_i / partial z partial psi .
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..maths.newton import Minimum
from ..model.parameters import Values
from ..model.problem import Problem
from .ebe import ConditionalExpansion
from .objective import by_subject

Held = Callable[[Problem, Values], Tensor | None]
"""Residual variances that do not move with z, as a function of the parameters; None where they are R(f)."""


def laid_by(at: ConditionalExpansion, expected: Tensor) -> Tensor:
    """M: the exact Hessian, or the expected information where `expected [draw, subject]`."""
    if not bool(expected.any()):
        return at.hessian
    return torch.where(expected[..., None, None], at.information, at.hessian)


def carried(
    problem: Problem,
    leaves: Sequence[Tensor],
    found: Minimum[ConditionalExpansion],
    expected: Tensor,
    by_mode: Tensor | float,
    by_scale: Tensor,
    direct: float,
    held: Held | None = None,
) -> list[Tensor]:
    """The derivatives in psi that come by way of z* and M, one for each leaf.

    Args:
        problem: the binding of page and data; its weights are the second leaf, if there is one.
        leaves: the parameters of every subject, `[draw, subject, P]`, and weights of networks.
        found: the modes.
        expected: where M is the expected information, `[draw, subject]`.
        by_mode, by_scale: cotangents of z* `[draw, subject, q]` and of M `[draw, subject, q, q]`.
        direct: cotangent of l at the mode, in psi at fixed z.
        held: what the residual variances are held at.
    """
    z = found.x.detach().clone().requires_grad_()
    with torch.enable_grad():
        values = by_subject(problem, leaves[0])
        fixed = None if held is None else held(problem, values)
        exact = not bool(expected.all())
        at = ConditionalExpansion(problem, values, values.factor, z, exact=exact, held=fixed)
        whole = (by_scale * laid_by(at, expected)).sum() + direct * at.value.sum()
        gradient = at.gradient
    if not problem.q:
        return _grad(whole, leaves)
    *score, more = torch.autograd.grad(
        whole, (*leaves, z), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    by_mode = by_mode + more - direct * gradient.detach()  # dl/dz = 0 at a mode, to its tolerance
    with torch.no_grad():
        root, _ = torch.linalg.cholesky_ex(laid_by(found.expansion, found.indefinite))
        u = torch.cholesky_solve(by_mode.unsqueeze(-1), root).squeeze(-1)
    with torch.enable_grad():
        moved = (u * gradient).sum()
    return [a - b for a, b in zip(score, _grad(moved, leaves), strict=True)]


def _grad(whole: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(whole, leaves, allow_unused=True, materialize_grads=True))
