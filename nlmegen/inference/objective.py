"""The FOCEI objective function and its exact gradient.

The integral over eta of each subject is approximated at its conditional mode (see `ebe`; eta = L z, Omega = L L'):

    O_i = 2 l_i(z*) + log det K_i ,    K = I + J' W J ,    J = df/dz ,    W = 1/R + (R'/R)^2 / 2

and sum_i O_i = -2 log L - n_obs log 2 pi is NONMEM's objective function (first-order conditional estimation with
interaction; log det K is its log det Omega + log det(J' W J + Omega^-1)). The modes move with the parameters psi. With
w = d log det K / dz and u = H^-1 w, where H is the exact Hessian of l at the mode, implicit differentiation gives each
subject's total derivative

    d O_i / d psi = partial O_i / partial psi - u' partial^2 l_i / partial z partial psi

whose right side is one reverse pass through a first-order Taylor prediction in which every subject has its own copy of
the parameters (the same pass gives the derivative of the sum in network weights, which all share): the cotangents of f,
J, R and R' are written out below, so reverse mode sees the page alone. The error of this gradient is first order in the
error of the mode, which is why the modes are so tight.

See Almquist, Leander & Jirstrand, J Pharmacokinet Pharmacodyn 42:191-209 (2015), doi:10.1007/s10928-015-9409-1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..model.problem import Problem
from .ebe import Conditional, ConditionalExpansion, Terms, find_modes, predict_along

PIECE = 400_000
"""Numbers in a second-order prediction that are worked on at once: more only costs memory and cache misses."""


@dataclass(frozen=True)
class Evaluation:
    """The objective at a batch of parameter vectors.

    Attributes:
        objective: O_i, `[*draw, subject]`; infinite where the density is not finite at the mode.
        score: d O_i / d free, `[*draw, subject, free]`; None when not asked for.
        weight_gradient: d sum_i O_i / d weights, `[1, W]`; None when not asked for.
        eta: conditional modes, `[*draw, subject, q]`.
        depth: l_i at the modes, by which modes are compared, `[*draw, subject]`.
        converged, indefinite: of the search for the modes, `[*draw, subject]` bool.
        factor: Cholesky factor L of Omega, `[*draw, subject, q, q]`.
        root: Cholesky factor of H (of K where H is indefinite), `[*draw, subject, q, q]`.
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

    @property
    def total(self) -> Tensor:
        """The objective function of every parameter vector, `[*draw]`."""
        return self.objective.sum(-1)

    @property
    def gradient(self) -> Tensor:
        """Its derivative in the free parameters, `[*draw, free]`."""
        if self.score is None:
            raise ValueError("this evaluation was made without scores; ask for them with scores=True")
        return self.score.sum(-2)

    @property
    def cov(self) -> Tensor:
        """Covariance of eta under the Laplace approximation, L H^-1 L', `[*draw, subject, q, q]`."""
        half: Tensor = torch.linalg.solve_triangular(self.root, self.factor.mT, upper=False)
        return half.mT @ half

    def first(self) -> Evaluation:
        """The evaluation at the first parameter vector alone, the leading axis kept."""
        return Evaluation(
            self.objective[:1],
            None if self.score is None else self.score[:1],
            self.eta[:1],
            self.depth[:1],
            self.converged[:1],
            self.indefinite[:1],
            self.factor[:1],
            self.root[:1],
            self.weight_gradient,
        )


class Objective:
    """The FOCEI objective of a problem, evaluated for batches of parameter vectors.

    Args:
        problem: the binding of page and data.

    Example:
        >>> Objective(problem)(problem.start[None], scores=True).gradient.shape[-1] == problem.P  # doctest: +SKIP
        True
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        per_subject = problem.y.shape[-1] * max(problem.q, 1) ** 2
        size = max(1, PIECE // per_subject)
        self._subjects = [torch.arange(problem.n_subjects)] if size >= problem.n_subjects else []
        self._pieces = [problem]
        if not self._subjects:
            self._subjects = list(torch.split(torch.arange(problem.n_subjects), size))
            self._pieces = [problem.select(index) for index in self._subjects]
        self._vectors = max(1, size // problem.n_subjects)

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

        Args:
            free: parameter vectors.
            eta: where the searches for the modes start.
            scores: also the derivatives.
            near: the modes are known to be close to `eta`.
            weights: also the derivative in the network weights, for one parameter vector, with the scores.
            tolerance: Newton decrement of the modes; the objective errs by the square root of it.
        """
        if weights and len(free) != 1:
            raise ValueError(
                f"the derivative in the weights is that of one parameter vector, got {len(free)}"
            )
        shape = (free.shape[0], self.problem.n_subjects, self.problem.q)
        eta = free.new_zeros(shape) if eta is None else eta.expand(shape)
        rows = []
        for some, start in zip(
            torch.split(free, self._vectors), torch.split(eta, self._vectors), strict=True
        ):
            parts = [
                _evaluate(piece, some, start[:, index], scores, near, weights, tolerance)
                for piece, index in zip(self._pieces, self._subjects, strict=True)
            ]
            rows.append(_joined(parts, 1))
        return _joined(rows, 0)


def _joined(parts: list[Evaluation], dim: int) -> Evaluation:
    if len(parts) == 1:
        return parts[0]

    def cat(take: Callable[[Evaluation], Tensor]) -> Tensor:
        return torch.cat([take(part) for part in parts], dim)

    scores = [part.score for part in parts if part.score is not None]
    pulls = [part.weight_gradient for part in parts if part.weight_gradient is not None]
    return Evaluation(
        cat(lambda e: e.objective),
        torch.cat(scores, dim) if scores else None,
        cat(lambda e: e.eta),
        cat(lambda e: e.depth),
        cat(lambda e: e.converged),
        cat(lambda e: e.indefinite),
        cat(lambda e: e.factor),
        cat(lambda e: e.root),
        torch.stack(pulls).sum(0) if pulls else None,
    )


def _evaluate(
    problem: Problem, free: Tensor, eta: Tensor, scores: bool, near: bool, weights: bool, tolerance: float
) -> Evaluation:
    with torch.no_grad():
        found = find_modes(Conditional.of(problem, problem.values(free)), eta, near=near, tolerance=tolerance)
        at = found.expansion
        root, _ = torch.linalg.cholesky_ex(at.information)
        objective = 2 * (at.value + root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - problem.log_jacobian)
        objective = torch.where(torch.isfinite(objective), objective, torch.inf)
        hessian = torch.where(found.indefinite[..., None, None], at.information, at.hessian)
        hessian_root, _ = torch.linalg.cholesky_ex(hessian)
    score = pull = None
    if scores:
        score, pull = _scores(problem, free, at, root, hessian_root, weights)
    factor = at.factor.expand_as(hessian_root)
    return Evaluation(
        objective, score, at.eta, at.value, found.converged, found.indefinite, factor, hessian_root, pull
    )


def _scores(
    problem: Problem,
    free: Tensor,
    at: ConditionalExpansion,
    root: Tensor,
    hessian_root: Tensor,
    weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """d O_i / d free `[draw, subject, free]` by one reverse pass with a copy of the parameters for every subject.

    The network weights have no copies: the same pass returns the derivative of the sum over subjects, `[1, W]`, when
    asked for.
    """
    copies = free.unsqueeze(-2).repeat(1, at.z.shape[-2], 1).requires_grad_()
    leaves = [copies]
    if weights:
        leaves.append(problem.weights.detach().clone().requires_grad_())
        problem = problem.with_weights(leaves[1])
    with torch.enable_grad():
        values = problem.values(copies)
        values = replace(
            values,
            theta={name: x.squeeze(-1) for name, x in values.theta.items()},
            sigma={name: x.squeeze(-1) for name, x in values.sigma.items()},
        )
        eta = torch.matmul(values.factor, at.z.unsqueeze(-1)).squeeze(-1)
        prediction = predict_along(problem, eta, values, values.factor, 1)
        f = prediction.f
        variance, slope, _ = (x.expand(f.shape) for x in problem.variance(f.detach(), values))
    with torch.no_grad():
        pairs = _cotangents(at, root, hessian_root)
    outputs = {"f": f, "jac": prediction.jac, "variance": variance, "slope": slope}
    used = [(x, pairs[k]) for k, x in outputs.items() if k in pairs and x is not None and x.requires_grad]
    if not used:
        return torch.zeros_like(copies), torch.zeros_like(leaves[1])[None] if weights else None
    tensors, cotangents = zip(*used, strict=True)
    found = torch.autograd.grad(tensors, leaves, cotangents, allow_unused=True, materialize_grads=True)
    return found[0], found[1][None] if weights else None


def _cotangents(at: ConditionalExpansion, root: Tensor, hessian_root: Tensor) -> dict[str, Tensor]:
    """Partial derivatives of O_i - u' dl_i/dz (u held) in f, J, R and R'."""
    terms: Terms = at.terms
    e, r, scaled, relative = terms.residual, terms.inverse, terms.scaled, terms.relative
    square = scaled * e
    explained = torch.zeros_like(e)  # a' K^-1 a, for the column a of J at one time
    across = torch.zeros_like(e)  # u' a
    out: dict[str, Tensor] = {}
    if at.jac is not None and at.hess is not None:
        solved = torch.cholesky_solve(at.jac, root)
        explained = (solved * at.jac).sum(-2)
        turned = relative * (terms.bend * r - relative**2) - terms.slope * r**2  # dW/df
        bent = (at.hess * solved.movedim(-2, 0)).sum(1).movedim(0, -2)
        pull = torch.matmul(at.jac, (turned * explained).unsqueeze(-1))
        pull = pull + 2 * torch.matmul(bent, terms.weight.unsqueeze(-1))
        u = torch.cholesky_solve(pull, hessian_root)
        across = torch.matmul(u.mT, at.jac).squeeze(-2)
        jac = 2 * terms.weight.unsqueeze(-2) * solved - u * terms.first.unsqueeze(-2)
        out["jac"] = jac.movedim(-2, 0)
    first_r = r * (scaled * (1 + e * relative) - 0.5 * relative)  # d phi' / dR
    first_s = 0.5 * r * (1 - square)  # d phi' / dR'
    weight_r = -(r**2) - relative**2 * r
    weight_s = relative * r
    out["variance"] = r * (1 - square) + weight_r * explained - across * first_r
    out["slope"] = weight_s * explained - across * first_s
    direct = -2 * scaled - across * (r + scaled * relative)
    out["f"] = direct + terms.slope * out["variance"] + terms.bend * out["slope"]
    return out
