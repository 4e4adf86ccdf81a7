"""Conditional modes (empirical Bayes estimates): the eta of each subject that its data and the prior make most likely.

With Omega = L L' and eta = L z, the mode of subject i minimises

    l(z) = 1/2 sum_t [ (y - f)^2 / R + log R ] + 1/2 z' z

which is -log_joint without its constants; f = f(L z) and R = R(f) is the residual variance. In the whitened z nothing
is divided by Omega, so a variance may go to zero and a correlation to one without harm. All subjects, and all parameter
vectors asked for, are one batch `[*draw, subject]` of Newton minimisations with exact Hessians; where a Hessian is
indefinite the expected information I + J' W J, with J = df/dz and W = 1/R + (R'/R)^2 / 2, takes its place.

Where observations are not Gaussian, not measured or not independent, their log density and its derivatives
(`Problem.local`) stand in for the residual part; J and W then belong to the rows of a prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import Status
from ..maths.newton import Minimum, minimise
from ..model.likelihood import Curvature
from ..model.parameters import Values
from ..model.problem import LOG_2PI, Directions, Prediction, Problem

STEP_LIMIT = 6.0
"""Longest Newton step of a whitened random effect, in prior standard deviations."""

STEP_FREE = 1.0
"""A step of eta of this length is always allowed: on the log scale, a factor of e."""

ROUGH, ROUGH_ITERATIONS = 1e-2, 12
"""Newton decrement at which Gauss-Newton steps give way to Newton steps, and how many of them at most."""

ROUGH_ABOVE = 30_000
"""Second derivatives in a batch from which a second-order prediction costs much more than a first-order one."""


class Terms:
    """The residual part of the conditional density and its derivatives in f, at one prediction.

    With phi(f) = 1/2 [ (y - f)^2 / R + log R ] and R = R(f), every attribute is `[*draw, subject, time]`.

    Attributes:
        residual: y - f, zero where padded.
        variance: R; `slope` and `bend` are its first and second derivative in f.
        inverse: 1/R; `scaled` is (y - f)/R, `relative` R'/R.
        first: d phi / df.
        weight: W = 1/R + (R'/R)^2 / 2, the expected second derivative.

    Where R is `held` it does not depend on f: R' = R'' = 0.
    """

    def __init__(self, problem: Problem, f: Tensor, values: Values, held: Tensor | None = None) -> None:
        if held is None:
            self.variance, self.slope, self.bend = (x.expand(f.shape) for x in problem.variance(f, values))
        else:
            self.variance = held.expand(f.shape)
            self.slope = self.bend = torch.zeros((), dtype=f.dtype, device=f.device).expand(f.shape)
        self.residual = (problem.y - f) * problem.mask
        self.inverse = 1 / self.variance
        self.scaled = self.residual * self.inverse
        self.relative = self.slope * self.inverse
        self.first = 0.5 * (self.relative - self.scaled * self.residual * self.relative) - self.scaled
        self.weight = self.inverse + 0.5 * self.relative**2

    @property
    def phi(self) -> Tensor:
        """1/2 [ (y - f)^2 / R + log R ]."""
        return 0.5 * (self.scaled * self.residual + self.variance.log())

    @property
    def second(self) -> Tensor:
        """d2 phi / df2."""
        square = self.scaled * self.residual
        curved = self.bend * self.inverse * (1 - square)
        bent = self.relative**2 * (2 * square - 1)
        return self.inverse + 2 * self.scaled * self.relative + 0.5 * (curved + bent)


class LocalTerms:
    """The same for any kind of observation, in the rows of a prediction: phi = -log p, less log(2 pi)/2 where Gaussian.

    Attributes:
        phi: `[*draw, subject, time]`.
        first: d phi / d row, `[*draw, subject, row]`.
        weight, second: the expected and the observed second derivative, `Curvature`s.
    """

    def __init__(
        self, problem: Problem, f: Tensor, values: Values, held: Tensor | None = None, exact: bool = True
    ) -> None:
        at = problem.local(f, values, observed=exact, held=held)
        self.phi = -at.log_p - 0.5 * LOG_2PI * problem.gaussian.to(at.log_p.dtype)
        self.first = -at.score
        self.weight = at.weight
        self.second = at.weight if at.second is None else at.second


def terms_of(
    problem: Problem, f: Tensor, values: Values, held: Tensor | None = None, exact: bool = True
) -> Terms | LocalTerms:
    """The residual part at rows `f`; `exact` where second derivatives will be asked for."""
    if problem.plain:
        return Terms(problem, f, values, held)
    return LocalTerms(problem, f, values, held, exact)


def predict_along(problem: Problem, eta: Tensor, values: Values, factor: Tensor, order: int) -> Prediction:
    """Predictions at `eta [*draw, subject, q]` with derivatives in z, where eta = L z (none when q = 0).

    Args:
        problem: the binding of page and data.
        eta, values: where.
        factor: L, `[*draw, subject or 1, q, q]`.
        order: 1 or 2.
    """
    if not eta.shape[-1]:
        return problem.predict(eta, values)
    along = factor.reshape((1,) * (eta.ndim + 1 - factor.ndim) + factor.shape).movedim(-1, 0)
    return problem.predict(eta, values, order, Directions(along.contiguous(), {}))


class ConditionalExpansion:
    """The conditional density of a batch of subjects at one z: value, gradient and exact Hessian, in z.

    Args:
        problem: the binding of page and data.
        values: the population parameters.
        factor: Cholesky factor L of Omega, `[*draw, subject or 1, q, q]`.
        z: whitened random effects, `[*draw, subject, q]`.
        exact: carry second derivatives; otherwise the Hessian is the expected information (Gauss-Newton).
        held: residual variances that do not move with the prediction, `[*draw, subject, time]`; None for R(f).

    Attributes:
        eta: L z, `[*draw, subject, q]`.
        value, gradient, hessian: of l, `[*draw, subject]` and with one and two axes of q.
        jac: J = df/dz, `[*draw, subject, q, row]`; None when q = 0.
        hess: d2f/dz2, `[q, q, *draw, subject, row]`; None when q = 0 or not exact.
        terms: the `Terms` at the prediction (`LocalTerms` where the problem is not plain).
    """

    def __init__(
        self,
        problem: Problem,
        values: Values,
        factor: Tensor,
        z: Tensor,
        exact: bool = True,
        held: Tensor | None = None,
    ) -> None:
        self.z, self.factor = z, factor
        self.eta = torch.matmul(factor, z.unsqueeze(-1)).squeeze(-1)
        prediction = predict_along(problem, self.eta, values, factor, 2 if exact else 1)
        self.hess = prediction.hess
        self.terms = terms = terms_of(problem, prediction.f, values, held, exact)
        self.value = terms.phi.sum(-1) + 0.5 * (z * z).sum(-1)
        self.jac = None if prediction.jac is None else prediction.jac.movedim(0, -2)
        self.gradient = z
        if self.jac is not None:
            self.gradient = torch.matmul(self.jac, terms.first.unsqueeze(-1)).squeeze(-1) + z

    @cached_property
    def hessian(self) -> Tensor:
        """d2 l / dz2, or the expected information when this expansion carries no second derivatives."""
        if self.hess is None:
            return self.information
        curved = (self.hess * self.terms.first).sum(-1).movedim((0, 1), (-2, -1))
        return self._with_identity(self.terms.second) + curved

    @cached_property
    def information(self) -> Tensor:
        """I + J' W J, the expected information in z: positive definite, `[*draw, subject, q, q]`."""
        return self._with_identity(self.terms.weight)

    def _with_identity(self, weight: Tensor | Curvature) -> Tensor:
        identity = torch.eye(self.z.shape[-1], dtype=self.z.dtype, device=self.z.device)
        if self.jac is None:
            return identity.expand(*self.z.shape, 0)
        if isinstance(weight, Curvature):
            return torch.matmul(weight.times(self.jac), self.jac.mT) + identity
        return torch.matmul(self.jac * weight.unsqueeze(-2), self.jac.mT) + identity

    def fallback(self) -> Tensor:
        """What stands in for an indefinite Hessian: the expected information."""
        return self.information


@dataclass(frozen=True)
class Conditional:
    """The conditional densities of all subjects of a problem at given parameters, as a batch to minimise over z.

    Attributes:
        problem: the binding of page and data.
        values: the population parameters (thetas and sigmas; Omega is in `factor`).
        factor: Cholesky factor L of Omega, `[*draw, subject or 1, q, q]`.
        shape: of the batch, `[*draw, subject]`.
        exact: whether expansions carry exact Hessians or the expected information.
        held: residual variances that do not move with the prediction, `[*draw, subject, time]` (FOCE takes those at
            eta = 0); None where they are R(f).
    """

    problem: Problem
    values: Values
    factor: Tensor
    shape: tuple[int, ...]
    exact: bool = True
    held: Tensor | None = None

    @classmethod
    def of(cls, problem: Problem, values: Values, held: Tensor | None = None) -> Conditional:
        """The densities under `values`, whose Omega has the shape `[*draw, q, q]`."""
        factor = values.factor.unsqueeze(-3)
        return cls(problem, values, factor, (*factor.shape[:-3], problem.n_subjects), held=held)

    def __call__(self, z: Tensor) -> ConditionalExpansion:
        """The expansion at `z [*draw, subject, q]`."""
        return ConditionalExpansion(self.problem, self.values, self.factor, z, self.exact, self.held)

    def select(self, index: Tensor) -> Conditional:
        """The densities at the positions `index [M]` of the flattened batch."""
        q = self.factor.shape[-1]

        def flat(x: Tensor) -> Tensor:
            return x.expand(*self.shape, 1).reshape(-1, 1)[index]

        values = replace(
            self.values,
            theta={name: flat(x) for name, x in self.values.theta.items()},
            sigma={name: flat(x) for name, x in self.values.sigma.items()},
        )
        factor = self.factor.expand(*self.shape, q, q).reshape(-1, q, q)[index]
        problem = self.problem.select(index % self.problem.n_subjects)
        held = self.held
        if held is not None:
            held = held.expand(*self.shape, held.shape[-1]).reshape(-1, held.shape[-1])[index]
        return Conditional(problem, values, factor, (len(index),), self.exact, held)

    def whitened(self, eta: Tensor | None) -> Tensor:
        """z = L^-1 eta, `[*draw, subject, q]`; zero for None."""
        shape = (*self.shape, self.factor.shape[-1])
        if eta is None or not shape[-1]:
            return torch.zeros(shape, dtype=torch.float64)
        column = eta.expand(shape).unsqueeze(-1)
        z: Tensor = torch.linalg.solve_triangular(self.factor, column, upper=False).squeeze(-1)
        return z


def find_modes(
    conditional: Conditional,
    eta: Tensor | None,
    *,
    near: bool = False,
    tolerance: float = 1e-16,
    max_iterations: int = 200,
) -> Minimum[ConditionalExpansion]:
    """The conditional modes reached from `eta [*draw, subject, q]` (zero for None), as a minimum over z.

    Where the page has machine code and is searched more than once, Newton's method runs compiled (`machine`). Else, in
    a large batch, the first steps are Gauss-Newton steps, which cost a first-order prediction and are always
    downhill; they end where Newton's method is safely in its quadratic phase. `near` skips them. A subject whose
    density is not finite at `eta` starts from zero instead. The modes are `found.expansion.eta`.
    """
    from .machine import by_machine, programs_for  # which builds on this module

    factor = conditional.factor
    limit = (STEP_FREE / torch.linalg.vector_norm(factor, dim=-1)).clamp(min=STEP_LIMIT)
    if (programs := programs_for(conditional)) is not None:
        start = factor.new_zeros(()) if eta is None else eta
        shape = (*conditional.shape, factor.shape[-1])
        return by_machine(programs, conditional, start.expand(shape), limit, tolerance, max_iterations)
    return in_torch(conditional, conditional.whitened(eta), limit, near, tolerance, max_iterations)


def in_torch(
    conditional: Conditional, z: Tensor, limit: Tensor, near: bool, tolerance: float, max_iterations: int
) -> Minimum[ConditionalExpansion]:
    """The search from `z [*draw, subject, q]` in torch, its steps no longer than `limit`; see `find_modes`."""
    rough = not near and z.numel() * z.shape[-1] * conditional.problem.y.shape[-1] > ROUGH_ABOVE

    def search(start: Tensor) -> Minimum[ConditionalExpansion]:
        if rough:
            downhill = replace(conditional, exact=False)
            start = minimise(downhill, start, tolerance=ROUGH, max_iterations=ROUGH_ITERATIONS, limit=limit).x
        return minimise(conditional, start, tolerance=tolerance, max_iterations=max_iterations, limit=limit)

    found = search(z)
    lost = ~torch.isfinite(found.expansion.value)
    if bool(lost.any()) and bool((z != 0).any()):
        found = search(torch.where(lost[..., None], 0.0, found.x))
    return found


def status_of(problem: Problem, value: Tensor, converged: Tensor, indefinite: Tensor) -> Tensor:
    """The `Status` flags of every subject after a search for its mode.

    Args:
        problem: the binding of page and data.
        value, converged, indefinite: l at the mode and how the search ended, each `[*draw, subject]`.

    Returns:
        `[*draw, subject]` int64.
    """
    status = torch.zeros(value.shape, dtype=torch.int64)
    finite = torch.isfinite(value)
    for where, flag in (
        (finite & ~converged, Status.NOT_CONVERGED),
        (finite & indefinite, Status.INDEFINITE),
        (~finite, Status.NOT_FINITE),
        ((problem.mask.sum(-1) == 0).expand(finite.shape), Status.NO_OBSERVATIONS),
    ):
        status |= where.to(torch.int64) * int(flag)
    return status


def modes(
    problem: Problem,
    values: Values,
    eta0: Tensor | None = None,
    *,
    second_starts: Sequence[float | Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Conditional modes (EBEs) of every subject and their `Status` flags.

    Args:
        problem: the binding of page and data.
        values: the population parameters; leading axes of its Omega `[*draw, q, q]` are parameter vectors.
        eta0: where to start, broadcast to `[*draw, subject, q]`; zero when not given.
        second_starts: further starts, themselves or as multiples of the mode found first (0 restarts from zero, -1
            from the reflected mode). The best mode is kept; a subject that has another is flagged `SECOND_MODE`.

    Returns:
        The modes `[*draw, subject, q]` and the flags `[*draw, subject]` (int64).

    Example:
        >>> eta, status = modes(problem, problem.values(problem.start), second_starts=(0.0, -1.0))  # doctest: +SKIP
    """
    conditional = Conditional.of(problem, values)
    found = find_modes(conditional, eta0)
    first = best = found.expansion.eta
    value, status = found.expansion.value, _status(problem, found)
    for start in second_starts if problem.q else ():
        other = find_modes(conditional, start if isinstance(start, Tensor) else start * first)
        rival = other.expansion.value
        margin = 1e-6 * (1 + value.abs())
        usable = other.converged & torch.isfinite(rival)
        apart = usable & ~((rival - value).abs() <= margin)
        better = usable & ~(rival >= value - margin)
        best = torch.where(better[..., None], other.expansion.eta, best)
        status = torch.where(better, _status(problem, other), status) | apart * int(Status.SECOND_MODE)
        value = torch.where(better, rival, value)
    return best, status


def _status(problem: Problem, found: Minimum[ConditionalExpansion]) -> Tensor:
    return status_of(problem, found.expansion.value, found.converged, found.indefinite)
