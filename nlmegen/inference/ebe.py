"""Conditional modes (empirical Bayes estimates): the eta of each subject that its data and the prior make most likely.

For subject i the mode minimises

    l(eta) = 1/2 sum_t [ (y - f)^2 / R + log R ] + 1/2 eta' Omega^-1 eta

which is -log_joint without its constants; f = f(eta) and R = R(f) is the residual variance. All subjects, and all
parameter vectors asked for, are one batch `[*draw, subject]` of Newton minimisations with exact Hessians; where a
Hessian is indefinite its Gauss-Newton part J' W J + Omega^-1 with W = 1/R + (R'/R)^2 / 2, the expected information,
takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import Status
from ..maths.newton import Minimum, minimise
from ..model.problem import Problem, Values

STEP_LIMIT = 6.0
"""Longest Newton step of a random effect, in prior standard deviations (but never under `STEP_FREE`)."""

STEP_FREE = 1.0
"""A step of this length is always allowed: on the log scale, a factor of e."""


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
        relative: R'/R.
        first: d phi / df.
        weight: W = 1/R + (R'/R)^2 / 2, the expected second derivative.
    """

    def __init__(self, problem: Problem, f: Tensor, values: Values) -> None:
        self.variance, self.slope, self.bend = (x.expand(f.shape) for x in problem.variance(f, values))
        self.residual = (problem.y - f) * problem.mask
        self.inverse = 1 / self.variance
        self.scaled = self.residual * self.inverse  # e / R
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


class ConditionalExpansion:
    """The conditional density of a batch of subjects at one eta: value, gradient and exact Hessian.

    Args:
        problem: the binding of page and data.
        values: the population parameters.
        precision: inverse of Omega, `[*draw, subject or 1, q, q]`.
        eta: random effects, `[*draw, subject, q]`.
        exact: carry second derivatives; otherwise the Hessian is the expected information (Gauss-Newton).

    Attributes:
        value, gradient, hessian: of l(eta), `[*draw, subject]` and with one and two axes of q.
        jac: df/deta, `[*draw, subject, q, time]`; None when q = 0.
        hess: d2f/deta2, `[q, q, *draw, subject, time]`; None when q = 0 or not exact.
        terms: the `Terms` at the prediction.
    """

    def __init__(
        self, problem: Problem, values: Values, precision: Tensor, eta: Tensor, exact: bool = True
    ) -> None:
        self.eta, self.precision = eta, precision
        prediction = problem.predict(eta, values, order=(2 if exact else 1) if eta.shape[-1] else 0)
        self.f, self.hess = prediction.f, prediction.hess
        self.terms = terms = Terms(problem, self.f, values)
        pull = torch.matmul(precision, eta.unsqueeze(-1)).squeeze(-1)
        self.value = terms.phi.sum(-1) + 0.5 * (pull * eta).sum(-1)
        if prediction.jac is None:
            self.jac, self.gradient, self.hessian = None, pull, precision.expand(*eta.shape, 0)
            return
        self.jac = prediction.jac.movedim(0, -2)
        self.gradient = torch.matmul(self.jac, terms.first.unsqueeze(-1)).squeeze(-1) + pull
        if self.hess is None:
            self.hessian = self.information
            return
        curved = (self.hess * terms.first).sum(-1).movedim((0, 1), (-2, -1))
        self.hessian = self._information(terms.second) + curved

    def _information(self, weight: Tensor) -> Tensor:
        if self.jac is None:
            return self.precision.expand(*self.eta.shape, 0)
        return torch.matmul(self.jac * weight.unsqueeze(-2), self.jac.mT) + self.precision

    @cached_property
    def information(self) -> Tensor:
        """J' W J + Omega^-1, the expected information: positive definite, `[*draw, subject, q, q]`."""
        return self._information(self.terms.weight)

    def fallback(self) -> Tensor:
        """What stands in for an indefinite Hessian: the expected information."""
        return self.information


@dataclass(frozen=True)
class Conditional:
    """The conditional densities of all subjects of a problem at given parameters, as a batch to minimise.

    Attributes:
        problem: the binding of page and data.
        values: the population parameters.
        precision: inverse of Omega, `[*draw, subject or 1, q, q]`.
        prior_sd: prior standard deviations, `[*draw, subject or 1, q]`.
        shape: of the batch, `[*draw, subject]`.
        exact: whether expansions carry exact Hessians or the expected information.
    """

    problem: Problem
    values: Values
    precision: Tensor
    prior_sd: Tensor
    shape: tuple[int, ...]
    exact: bool = True

    @classmethod
    def of(cls, problem: Problem, values: Values) -> Conditional:
        """The densities under `values`, whose Omega has the shape `[*draw, q, q]`."""
        factor = values.factor
        precision = torch.cholesky_inverse(factor) if problem.q else factor
        prior_sd = torch.linalg.vector_norm(factor, dim=-1)
        shape = (*factor.shape[:-2], problem.n_subjects)
        return cls(problem, values, precision.unsqueeze(-3), prior_sd.unsqueeze(-2), shape)

    def __call__(self, eta: Tensor) -> ConditionalExpansion:
        return ConditionalExpansion(self.problem, self.values, self.precision, eta, self.exact)

    def select(self, index: Tensor) -> Conditional:
        """The densities at the positions `index [M]` of the flattened batch."""
        q = self.precision.shape[-1]

        def flat(x: Tensor) -> Tensor:
            return x.expand(*self.shape, 1).reshape(-1, 1)[index]

        values = replace(
            self.values,
            theta={name: flat(x) for name, x in self.values.theta.items()},
            sigma={name: flat(x) for name, x in self.values.sigma.items()},
        )
        precision = self.precision.expand(*self.shape, q, q).reshape(-1, q, q)[index]
        problem = self.problem.select(index % self.problem.n_subjects)
        prior_sd = self.prior_sd.expand(*self.shape, q).reshape(-1, q)[index]
        return Conditional(problem, values, precision, prior_sd, (len(index),), self.exact)


def find_modes(
    conditional: Conditional,
    eta: Tensor,
    *,
    near: bool = False,
    tolerance: float = 1e-16,
    max_iterations: int = 200,
) -> Minimum[ConditionalExpansion]:
    """The conditional modes reached from `eta [*draw, subject, q]`, with the expansion there.

    In a large batch the first steps are Gauss-Newton steps, which cost a first-order prediction and are always
    downhill; they end where Newton's method is safely in its quadratic phase. `near` skips them. A subject whose
    density is not finite at `eta` starts from zero instead.
    """
    limit = (STEP_LIMIT * conditional.prior_sd).clamp(min=STEP_FREE)
    rough = not near and eta.numel() * eta.shape[-1] * conditional.problem.y.shape[-1] > ROUGH_ABOVE

    def search(start: Tensor) -> Minimum[ConditionalExpansion]:
        if rough:
            downhill = replace(conditional, exact=False)
            start = minimise(downhill, start, tolerance=ROUGH, max_iterations=ROUGH_ITERATIONS, limit=limit).x
        return minimise(conditional, start, tolerance=tolerance, max_iterations=max_iterations, limit=limit)

    found = search(eta)
    lost = ~torch.isfinite(found.expansion.value)
    if bool(lost.any()) and bool((eta != 0).any()):
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
    problem: Problem, values: Values, eta0: Tensor | None = None, *, second_starts: Sequence[float] = ()
) -> tuple[Tensor, Tensor]:
    """Conditional modes (EBEs) of every subject and their `Status` flags.

    Args:
        problem: the binding of page and data.
        values: the population parameters; leading axes of `values.omega [*draw, q, q]` are parameter vectors.
        eta0: where to start, broadcast to `[*draw, subject, q]`; zero when not given.
        second_starts: further starts, as multiples of the mode found first (0 restarts from zero, -1 from the
            reflected mode). The best mode is kept; a subject that had a worse one is flagged `SECOND_MODE`.

    Returns:
        The modes `[*draw, subject, q]` and the flags `[*draw, subject]` (int64).

    Example:
        >>> eta, status = modes(problem, problem.values(problem.start), second_starts=(0.0, -1.0))  # doctest: +SKIP
    """
    conditional = Conditional.of(problem, values)
    shape = (*conditional.shape, problem.q)
    start = torch.zeros(shape, dtype=torch.float64) if eta0 is None else eta0.expand(shape)
    found = find_modes(conditional, start)
    best, value, status = found.x, found.expansion.value, _status(problem, found)
    for factor in second_starts if problem.q else ():
        other = find_modes(conditional, factor * found.x)
        rival = other.expansion.value
        margin = 1e-6 * (1 + value.abs())
        usable = other.converged & torch.isfinite(rival)
        apart = usable & ~((rival - value).abs() <= margin)
        better = usable & ~(rival >= value - margin)
        best = torch.where(better[..., None], other.x, best)
        status = torch.where(better, _status(problem, other), status) | apart * int(Status.SECOND_MODE)
        value = torch.where(better, rival, value)
    return best, status


def _status(problem: Problem, found: Minimum[ConditionalExpansion]) -> Tensor:
    return status_of(problem, found.expansion.value, found.converged, found.indefinite)
