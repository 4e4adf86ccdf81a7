"""Conditional modes by machine code, and what it gives at them: scores of the FOCEI objective in one pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..maths.newton import Minimum
from ..model import compiled
from ..model.problem import Prediction, Problem
from .ebe import Conditional, ConditionalExpansion, Terms, in_torch, predict_along

if TYPE_CHECKING:
    from ..structure.kernel.closed import Programs


class FoundExpansion(ConditionalExpansion):
    """The expansion at a mode that machine code has found; predictions are made when they are asked for.

    Args:
        conditional: the densities.
        z: the modes, `[*draw, subject, q]`.
        value, gradient, hessian, information: there.
        inverses: of the information, and of what stands for the Hessian, `[2, *draw, subject, q, q]`.
        left: rows that were searched in torch, and have no inverses, `[*draw, subject]`; None for none.
    """

    def __init__(
        self,
        conditional: Conditional,
        z: Tensor,
        value: Tensor,
        gradient: Tensor,
        hessian: Tensor,
        information: Tensor,
        inverses: Tensor,
        left: Tensor | None,
    ) -> None:
        self.inverses, self.left = inverses, left
        self.conditional, self.z, self.factor = conditional, z, conditional.factor
        self.value, self.gradient = value, gradient
        self.__dict__["hessian"], self.__dict__["information"] = hessian, information

    @cached_property
    def eta(self) -> Tensor:  # type: ignore[override]
        """L z, `[*draw, subject, q]`."""
        return torch.matmul(self.factor, self.z.unsqueeze(-1)).squeeze(-1)

    @cached_property
    def _prediction(self) -> Prediction:
        return predict_along(self.conditional.problem, self.eta, self.conditional.values, self.factor, 2)

    @cached_property
    def hess(self) -> Tensor | None:  # type: ignore[override]
        """d2f/dz2, `[q, q, *draw, subject, time]`."""
        return self._prediction.hess

    @cached_property
    def jac(self) -> Tensor | None:  # type: ignore[override]
        """df/dz, `[*draw, subject, q, time]`."""
        jac = self._prediction.jac
        return None if jac is None else jac.movedim(0, -2)

    @cached_property
    def terms(self) -> Terms:  # type: ignore[override]
        """The `Terms` at the prediction."""
        given = self.conditional
        return Terms(given.problem, self._prediction.f, given.values, given.held)


def programs_for(conditional: Conditional) -> Programs | None:
    """The machine code that can search these densities, where there is any and they are searched more than once."""
    problem, values = conditional.problem, conditional.values
    route = problem.route
    if route.programs is None:
        route.searches += 1
        if route.searches > 1:
            route.prepare(problem)
        if route.programs is None:
            return None
    given = (conditional.factor, *values.theta.values(), *values.sigma.values())
    plain = conditional.exact and problem.y.ndim == 2 and compiled.readable(given)
    return route.programs if plain and not any(x.requires_grad for x in given) else None


def by_machine(
    programs: Programs,
    conditional: Conditional,
    eta: Tensor,
    limit: Tensor,
    tolerance: float,
    max_iterations: int,
) -> Minimum[ConditionalExpansion]:
    """The search compiled; rows in which modes of disposition meet are searched in torch."""
    problem, values = conditional.problem, conditional.values
    found = programs.search(
        compiled.patients_of(problem),
        [values.theta[name] for name in problem.layout.theta_names],
        [values.sigma[name] for name in problem.layout.sigma_names],
        conditional.factor,
        eta,
        limit,
        conditional.held,
        tolerance,
        max_iterations,
    )
    partly = problem.route.parts and bool(found.left.any())
    if partly:
        index = found.left.flatten().nonzero().squeeze(-1)
        q = eta.shape[-1]
        some = conditional.select(index)
        some = replace(some, problem=some.problem.uncompiled())
        steps = limit.expand(eta.shape).reshape(-1, q)[index]
        rest = in_torch(
            some, some.whitened(eta.reshape(-1, q)[index]), steps, False, tolerance, max_iterations
        )
        at = rest.expansion
        for whole, part in (
            (found.z, rest.x),
            (found.value, at.value),
            (found.gradient, at.gradient),
            (found.hessian, at.hessian),
            (found.information, at.information),
            (found.decrement, rest.decrement),
            (found.converged, rest.converged),
            (found.indefinite, rest.indefinite),
        ):
            whole.flatten(0, eta.ndim - 2)[index] = part
    expansion = FoundExpansion(
        conditional,
        found.z,
        found.value,
        found.gradient,
        found.hessian,
        found.information,
        found.inverses,
        found.left if partly else None,
    )
    return Minimum(found.z, expansion, found.decrement, found.converged, found.indefinite, found.iterations)


Alone = Callable[[Problem, Tensor, ConditionalExpansion, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
"""Scores in torch: of a problem at free vectors and modes, from the factors of K and H, without those of weights."""

FEW = 64
"""Rows without machine code up to which these alone are left to torch."""


def scores(problem: Problem, free: Tensor, at: ConditionalExpansion, alone: Alone) -> Tensor | None:
    """d O_i / d free `[draw, subject, free]` of the FOCEI objective, None where machine code cannot tell.

    The programs differentiate in theta, in the Cholesky factor of Omega and in sigma; each of these is a function of
    one free parameter alone.

    Args:
        problem: the binding of page and data.
        free: parameter vectors `[draw, P]`.
        at: the expansion at the modes.
        alone: computes, in torch, the scores of a row whose modes of disposition meet.
    """
    if not isinstance(at, FoundExpansion) or at.conditional.held is not None:
        return None
    if at.left is not None and int(at.left.sum()) > FEW:
        return None
    layout, values, programs = problem.layout, at.conditional.values, problem.route.programs
    if programs is None:
        return None
    with torch.no_grad():
        natural = programs.score(
            compiled.patients_of(problem),
            [values.theta[name] for name in layout.theta_names],
            [values.sigma[name] for name in layout.sigma_names],
            at.factor,
            at.z,
            at.inverses,
        )
        slopes = layout.slopes(problem.full(free))
        found = natural * slopes.unsqueeze(-2)
        if len(layout.names) != problem.P:
            found = found.index_select(-1, problem.free_index)
    for draw, subject in [] if at.left is None else at.left.nonzero().tolist():
        vector, one = free[draw : draw + 1], problem.select(torch.tensor([subject])).uncompiled()
        with torch.no_grad():
            there = Conditional.of(one, one.values(vector))(at.z[draw : draw + 1, subject : subject + 1])
            root, _ = torch.linalg.cholesky_ex(there.information)
            exact, indefinite = torch.linalg.cholesky_ex(there.hessian)
            exact = torch.where(indefinite[..., None, None] > 0, root, exact)
        found[draw, subject] = alone(one, vector, there, root, exact, False)[0][0, 0]
    return found
