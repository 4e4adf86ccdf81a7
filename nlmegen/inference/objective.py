"""What the classic methods minimise: an approximation of -2 log L, evaluated for batches of parameter vectors.

Every member of the family gives each subject's share O_i of the objective function and its exact derivatives in the
free parameters,

    sum_i O_i  ~  -2 log L - n_obs log 2 pi ,

and differs from the others in `evaluate` alone. Here is what they share: subjects and vectors are worked on in pieces
of bounded memory, and -2 log of the priors on the page joins the sum, with its derivatives, in the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ..model.parameters import Values
from ..model.problem import Problem
from .penalty import penalty_gradient, penalty_hessian

PIECE = 400_000
"""Numbers in a second-order prediction that are worked on at once: more only costs memory and cache misses."""


@dataclass(frozen=True)
class Request:
    """What is wanted of an evaluation.

    Attributes:
        scores: also the derivatives in the free parameters.
        near: the modes are known to be close to where their search starts.
        weights: also the derivative in the network weights, for one parameter vector, with the scores.
        tolerance: Newton decrement of the modes; the objective errs by the square root of it.
    """

    scores: bool = False
    near: bool = False
    weights: bool = False
    tolerance: float = 1e-16


@dataclass(frozen=True)
class Evaluation:
    """The objective at a batch of parameter vectors.

    Attributes:
        objective: O_i, `[*draw, subject]`; infinite where the density is not finite at the mode.
        score: d O_i / d free, `[*draw, subject, free]`; None when not asked for.
        eta: conditional modes, `[*draw, subject, q]`; zero where the method has none.
        depth: l_i at the modes, by which modes are compared, `[*draw, subject]`.
        converged, indefinite: of the search for the modes, `[*draw, subject]` bool.
        factor: Cholesky factor L of Omega, `[*draw, subject, q, q]`.
        root: Cholesky factor of H (of K where H is indefinite), `[*draw, subject, q, q]`.
        weight_gradient: d sum_i O_i / d weights, `[1, W]`; None when not asked for.
        average, spread: posterior mean `[*draw, subject, q]` and covariance `[*draw, subject, q, q]` of eta where the
            method has better ones than the mode and the curvature there.
        penalty: -2 log prior `[*draw]`, and `pull` its derivative `[*draw, free]`; None on a page without priors.
    """

    objective: Tensor
    score: Tensor | None
    eta: Tensor
    depth: Tensor
    converged: Tensor
    indefinite: Tensor
    factor: Tensor
    root: Tensor
    weight_gradient: Tensor | None = None
    average: Tensor | None = None
    spread: Tensor | None = None
    penalty: Tensor | None = None
    pull: Tensor | None = None

    @property
    def ofv(self) -> Tensor:
        """The objective function of every parameter vector without the priors, `[*draw]`."""
        return self.objective.sum(-1)

    @property
    def total(self) -> Tensor:
        """What is minimised: the objective function and -2 log prior, `[*draw]`."""
        return self.ofv if self.penalty is None else self.ofv + self.penalty

    @property
    def slope(self) -> Tensor:
        """The derivative of `ofv` in the free parameters, `[*draw, free]`."""
        if self.score is None:
            raise ValueError("this evaluation was made without scores; ask for them with scores=True")
        return self.score.sum(-2)

    @property
    def gradient(self) -> Tensor:
        """The derivative of `total` in the free parameters, `[*draw, free]`."""
        return self.slope if self.pull is None else self.slope + self.pull

    @property
    def mean(self) -> Tensor:
        """Posterior mean of eta `[*draw, subject, q]`, the mode where the method knows no better."""
        return self.eta if self.average is None else self.average

    @property
    def cov(self) -> Tensor:
        """Posterior covariance of eta `[*draw, subject, q, q]`, Laplace's L H^-1 L' where there is no better."""
        if self.spread is not None:
            return self.spread
        half: Tensor = torch.linalg.solve_triangular(self.root, self.factor.mT, upper=False)
        return half.mT @ half

    def first(self) -> Evaluation:
        """The evaluation at the first parameter vector alone, the leading axis kept."""
        own: dict[str, Any] = {name: getattr(self, name) for name in _NAMES}
        first: dict[str, Any] = {name: None if x is None else x[:1] for name, x in own.items()}
        return Evaluation(**first)


_NAMES = tuple(field.name for field in fields(Evaluation))


class Objective(ABC):
    """An objective function of a problem, evaluated for batches of parameter vectors.

    Args:
        problem: the binding of page and data.

    Attributes:
        source: what `Estimate.ofv_source` calls it.
        conditional: whether subjects have conditional modes, that move with the parameters.
        learns: whether it has derivatives in the weights of networks.

    Example:
        >>> FOCEIObjective(problem)(problem.start[None], scores=True).gradient.shape[-1] == problem.P  # doctest: +SKIP
        True
    """

    source: str
    conditional: ClassVar[bool] = True
    learns: ClassVar[bool] = False

    def __init__(self, problem: Problem) -> None:
        self.problem = problem.hasten()
        size = max(1, PIECE // self.share)
        self._subjects = [torch.arange(problem.n_subjects)] if size >= problem.n_subjects else []
        self._pieces = [problem]
        if not self._subjects:
            self._subjects = list(torch.split(torch.arange(problem.n_subjects), size))
            self._pieces = [problem.select(index) for index in self._subjects]
        self._vectors = max(1, size // problem.n_subjects)

    def on(self, problem: Problem) -> Self:
        """The same objective of another problem."""
        return type(self)(problem)

    @property
    def modal(self) -> Objective:
        """An objective with the same conditional modes that costs little more than these."""
        return self

    @property
    def remarks(self) -> list[str]:
        """What a fit has to say of this objective, in words."""
        return []

    @property
    def share(self) -> int:
        """Numbers that one subject adds to a prediction at one parameter vector, derivatives included."""
        return self.problem.y.shape[-1] * max(self.problem.q, 1) ** 2

    @property
    def cost(self) -> int:
        """What an evaluation at one parameter vector costs, in numbers of second-order predictions."""
        return self.share * self.problem.n_subjects

    @abstractmethod
    def evaluate(self, problem: Problem, free: Tensor, eta: Tensor, ask: Request) -> Evaluation:
        """Evaluate one piece of the subjects.

        Args:
            problem: these subjects.
            free: parameter vectors `[draw, P]`.
            eta: where the searches for the modes start, `[draw, subject, q]`.
            ask: what is wanted.
        """

    def __call__(
        self,
        free: Tensor,
        eta: Tensor | None = None,
        *,
        scores: bool = False,
        near: bool = False,
        weights: bool = False,
        tolerance: float = 1e-16,
    ) -> Evaluation:
        """Evaluate at `free [draw, P]`, searching the modes from `eta [draw or 1, subject, q]` (zero when None).

        The other arguments are those of a `Request`.
        """
        if weights and len(free) != 1:
            raise ValueError(
                f"the derivative in the weights is that of one parameter vector, got {len(free)}"
            )
        ask = Request(scores, near, weights, tolerance)
        shape = (free.shape[0], self.problem.n_subjects, self.problem.q)
        eta = free.new_zeros(shape) if eta is None else eta.expand(shape)
        rows = []
        for some, start in zip(
            torch.split(free, self._vectors), torch.split(eta, self._vectors), strict=True
        ):
            parts = [
                self.evaluate(piece, some, start[:, index], ask)
                for piece, index in zip(self._pieces, self._subjects, strict=True)
            ]
            rows.append(_joined(parts, 1))
        found = _joined(rows, 0)
        return self._penalised(found, free) if self.problem.penalised else found

    def _penalised(self, found: Evaluation, free: Tensor) -> Evaluation:
        penalty, pull = penalty_gradient(self.problem, free)
        return replace(found, penalty=penalty, pull=pull)

    def penalty_hessian(self, free: Tensor) -> Tensor:
        """Second derivatives of -2 log prior at `free [P]`, `[P, P]`; zero on a page without priors."""
        return penalty_hessian(self.problem, free)

    def tension(self, free: Tensor, evaluation: Evaluation) -> float:
        """Squared standardised residuals and random effects at the modes, summed, for each observation.

        Its expectation at the truth is about 1; not finite where the density is not.

        Args:
            free: one parameter vector `[P]`.
            evaluation: the objective there, leading axis of length one.
        """
        problem = self.problem
        values = problem.values(free[None])
        f = problem.predict(evaluation.eta, values).f
        if problem.plain:
            variance = problem.variance(f, values)[0]
            squares = ((problem.y - f) ** 2 / variance * problem.mask).sum()
        else:
            squares = _surprise(problem, f, values)
        if problem.q:
            white = torch.linalg.solve_triangular(
                values.factor.unsqueeze(-3), evaluation.eta.unsqueeze(-1), upper=False
            )
            squares = squares + (white**2).sum()
        return float(squares) / max(float(problem.mask.sum()), 1.0)


def _surprise(problem: Problem, f: Tensor, values: Values) -> Tensor:
    """Squared scores of all observations about their predictions in units of their information: 1 each at the truth
    where they were measured, less where only limits are known.
    """
    at = problem.local(f, values)
    times = problem.y.shape[-1]
    score, weight = at.score[..., :times], at.weight.diagonal[..., :times]
    lost = torch.isfinite(at.log_p).logical_not() & problem.observed
    squares = torch.where(weight > 0, score**2 / torch.where(weight > 0, weight, 1.0), 0.0)
    return torch.where(lost, torch.inf, squares).sum()


def _joined(parts: list[Evaluation], dim: int) -> Evaluation:
    """Evaluations of several pieces as one, along the axis of the vectors (0) or of the subjects (1)."""
    if len(parts) == 1:
        return parts[0]
    whole: dict[str, Any] = {}
    for name in _NAMES:
        several = [x for x in (getattr(part, name) for part in parts) if x is not None]
        if name == "weight_gradient" and several:
            whole[name] = torch.stack(several).sum(0)
        else:
            whole[name] = torch.cat(several, dim) if several else None
    return Evaluation(**whole)


def by_subject(problem: Problem, copies: Tensor) -> Values:
    """The values of a parameter vector for every subject, `[*draw, subject, P]`, as a page takes them.

    Reverse mode through them gives every subject its own derivatives in one pass.
    """
    values = problem.values(copies)
    return replace(
        values,
        theta={name: x.squeeze(-1) for name, x in values.theta.items()},
        sigma={name: x.squeeze(-1) for name, x in values.sigma.items()},
    )


def copied(free: Tensor, subjects: int) -> Tensor:
    """A copy of each parameter vector for every subject, `[draw, subject, P]`, whose gradient is kept."""
    return free.detach().unsqueeze(-2).repeat(1, subjects, 1).requires_grad_()
