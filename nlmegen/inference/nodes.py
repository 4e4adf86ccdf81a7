"""Laplace's approximation and adaptive Gauss-Hermite quadrature as objective functions, with their exact gradients.

In the whitened effects z (eta = L z, Omega = L L') the integral of a subject is that of exp(-l(z)) (see `ebe`). With
nodes x_k and weights w_k of a rule against N(0, I), the mode z* and a scale S, S S' = M^-1, for M the exact Hessian H
of l at the mode,

    O_i = -2 log sum_k w_k exp( |x_k|^2 / 2 - l_i(z* + S x_k) ) + log det M .

S is the Cholesky factor of M^-1 (the order of its columns does not matter to a grid): on theophylline and warfarin it
leaves half the error of C^-T with M = C C', and unlike eigenvectors it moves smoothly with M.

One node is Laplace's approximation 2 l(z*) + log det H; many are -2 log L. Where H is indefinite the expected
information K = I + J' W J is M, and the subject is flagged. A grid (not one node) is laid by K for all where the page
has no third derivatives.

The grid moves with the parameters psi, and so does the objective with the grid. Its derivative takes z* and M as
variables of their own first. With the posterior weights p_k of the nodes, reverse mode gives

    partial O_i = 2 sum_k p_k dl_i(z_k) in psi, z* and M (through S),    and  M^-1  more in M from log det M.

The cotangent of M goes back through a second-order Taylor prediction at the mode, which gives third derivatives of the
model in z and second ones with psi; what has then gathered in z*, call it w, is carried by implicit differentiation of
dl/dz = 0: with u = H^-1 w,

    d O_i / d psi = partial O_i / partial psi - u' partial^2 l_i / partial z partial psi .

The grid is taken some nodes at a time: parts of it are put together as their sums are.

See Pinheiro & Bates, J Comput Graph Stat 4:12-35 (1995), doi:10.1080/10618600.1995.10474663.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..errors import ModelError
from ..maths.quadrature import tensor_grid
from ..model.parameters import Values
from ..model.problem import Problem
from . import objective as pieces
from .carried import carried, laid_by
from .conditional import FOCEIObjective
from .ebe import Conditional, find_modes, terms_of
from .objective import Evaluation, Objective, Request, by_subject, copied


class QuadratureObjective(Objective):
    """-2 log L by quadrature around the conditional modes.

    Args:
        problem: the binding of page and data.
        nodes: a dimension; one is Laplace's approximation.

    Raises:
        ModelError: for one node, where the page has no third derivatives.
    """

    def __init__(self, problem: Problem, nodes: int) -> None:
        super().__init__(problem)
        self.nodes, self.source = nodes, "quadrature" if nodes > 1 else "laplace"
        self.lacking = problem.structure.no_third_derivatives(problem.varies) if problem.q else ""
        if self.lacking and nodes == 1:
            raise ModelError(
                f"Laplace's approximation needs third derivatives of the predictions: {self.lacking}; solve the page by"
                ' nl.Solver(route="torch"), or use AGQ(nodes=3) or FOCEI()'
            )
        x, log_weight = tensor_grid(nodes, problem.q)
        self.grid = Grid(x, log_weight + 0.5 * (x**2).sum(-1))

    def on(self, problem: Problem) -> Self:
        """See `Objective`."""
        return type(self)(problem, self.nodes)

    @property
    def modal(self) -> Objective:
        """FOCEI has the same modes and needs no grid."""
        return FOCEIObjective(self.problem)

    @property
    def remarks(self) -> list[str]:
        """See `Objective`."""
        return (
            [f"the grid of quadrature is laid by the expected information: {self.lacking}"]
            if self.lacking
            else []
        )

    @property
    def cost(self) -> int:
        """See `Objective`: third derivatives at the modes, and a prediction at every node."""
        own = THIRD * self.share
        if self.nodes > 1:
            own += len(self.grid.x) * self.problem.y.shape[-1]
        return own * self.problem.n_subjects

    def evaluate(self, problem: Problem, free: Tensor, eta: Tensor, ask: Request) -> Evaluation:
        """See `Objective`."""
        with torch.no_grad():
            density = Conditional.of(problem, problem.values(free))
            found = find_modes(density, eta, near=ask.near, tolerance=ask.tolerance)
            at = found.expansion
            expected = found.indefinite if not self.lacking else torch.ones_like(found.indefinite)
            matrix = laid_by(at, expected)
            root, _ = torch.linalg.cholesky_ex(matrix)
            log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        copies = copied(free, problem.n_subjects)
        total, by_mode, by_scale = -at.value, torch.zeros_like(at.z), torch.zeros_like(matrix)
        average = spread = None
        score = torch.zeros_like(copies)
        if len(self.grid.x) > 1:
            part = self.grid.sum(problem, copies, at.z, matrix, ask.scores)
            total, average, spread = part.total, part.mean, part.cov
            score, by_mode, by_scale = -2 * part.score, -2 * part.by_mode, -2 * part.by_scale
        objective = log_det - 2 * total - 2 * problem.log_jacobian
        objective = torch.where(torch.isfinite(objective), objective, torch.inf)
        if ask.scores:
            by_scale = by_scale + torch.cholesky_inverse(root)
            direct = 2.0 if average is None else 0.0
            score = score + carried(problem, (copies,), found, expected, by_mode, by_scale, direct)[0]
        return Evaluation(
            objective,
            score if ask.scores else None,
            at.eta,
            at.value,
            found.converged,
            found.indefinite,
            at.factor.expand_as(root),
            root,
            average=average,
            spread=spread,
        )


class LaplaceObjective(QuadratureObjective):
    """Laplace's approximation with the exact Hessian: quadrature with one node."""

    def __init__(self, problem: Problem, nodes: int = 1) -> None:
        super().__init__(problem, nodes)


THIRD = 3
"""Cost of third derivatives at the modes, as a multiple of that of second ones."""


@dataclass(frozen=True)
class Part:
    """What a part of a grid adds up to, subject by subject.

    Attributes:
        total: log of the sum over nodes of w_k exp( |x_k|^2 / 2 - l(z_k) ), `[draw, subject]`.
        mean, cov: of eta under the nodes' shares of the sum, `[draw, subject, q]` and `[draw, subject, q, q]`.
        score, by_mode, by_scale: derivatives of `total` in psi `[draw, subject, P]`, z* `[draw, subject, q]` and M
            `[draw, subject, q, q]`.
    """

    total: Tensor
    mean: Tensor
    cov: Tensor
    score: Tensor
    by_mode: Tensor
    by_scale: Tensor

    def with_(self, other: Part) -> Part:
        """This part and another."""
        total = torch.logaddexp(self.total, other.total)
        mine, its = (torch.exp(part.total - total).nan_to_num(0.0) for part in (self, other))

        def mixed(a: Tensor, b: Tensor) -> Tensor:
            extra = (...,) + (None,) * (a.ndim - mine.ndim)
            return mine[extra] * a + its[extra] * b

        apart = self.mean - other.mean
        between = (mine * its)[..., None, None] * apart.unsqueeze(-1) * apart.unsqueeze(-2)
        return Part(
            total,
            mixed(self.mean, other.mean),
            mixed(self.cov, other.cov) + between,
            mixed(self.score, other.score),
            mixed(self.by_mode, other.by_mode),
            mixed(self.by_scale, other.by_scale),
        )


@dataclass(frozen=True)
class Grid:
    """A rule against N(0, I).

    Attributes:
        x: nodes `[node, q]`.
        log_weight: log w_k + |x_k|^2 / 2, `[node]`.
    """

    x: Tensor
    log_weight: Tensor

    def sum(self, problem: Problem, copies: Tensor, z: Tensor, matrix: Tensor, scores: bool) -> Part:
        """The sum over all nodes around z `[draw, subject, q]`, scaled by M `[draw, subject, q, q]`.

        Args:
            problem: the binding of page and data.
            copies: the parameters of every subject, `[draw, subject, P]`.
            z, matrix: where the grid is laid.
            scores: also the derivatives.
        """
        most = max(1, pieces.PIECE // (copies.shape[0] * problem.y.numel()))
        whole: Part | None = None
        for x, log_weight in zip(torch.split(self.x, most), torch.split(self.log_weight, most), strict=True):
            part = _part(problem, copies, z, matrix, x, log_weight, scores)
            whole = part if whole is None else whole.with_(part)
        assert whole is not None
        return whole


def _part(
    problem: Problem, copies: Tensor, z: Tensor, matrix: Tensor, x: Tensor, log_weight: Tensor, scores: bool
) -> Part:
    """The sum over the nodes `x [node, q]`.

    The cotangents of f and R are written out, so that reverse mode sees the page, the scale and sigma alone.
    """
    leaves = (copies, z.detach().clone().requires_grad_(), matrix.detach().clone().requires_grad_())
    with torch.set_grad_enabled(scores):
        values = by_subject(problem, copies)
        root, _ = torch.linalg.cholesky_ex(leaves[2].flip(-2, -1))
        offset = torch.linalg.solve_triangular(root.mT, x.mT.expand(*root.shape[:-1], len(x)), upper=True)
        points = leaves[1] + offset.flip(-2).movedim(-1, 0)
        eta = torch.matmul(values.factor, points.unsqueeze(-1)).squeeze(-1)
        f = problem.predict(eta, values).f
    if not problem.plain:
        return _by_density(problem, values, f, eta, points, leaves, log_weight, scores)
    with torch.set_grad_enabled(scores):
        variance, slope, _ = problem.variance(f.detach(), values)
    with torch.no_grad():
        inverse = 1 / variance
        residual = (problem.y - f) * problem.mask
        scaled = residual * inverse
        square = scaled * residual
        phi = 0.5 * (square + variance.log()).sum(-1)
        share, total, mean, cov = _shares(phi, points, eta, log_weight)
    grads = [torch.zeros_like(leaf) for leaf in leaves]
    if scores:
        each = share.unsqueeze(-1)
        half = -0.5 * each * inverse
        by_variance = torch.where(each > 0, half * (1 - square), 0.0)  # a node without weight may be anywhere
        by_f = torch.where(each > 0, each * scaled, 0.0) + slope.detach() * by_variance
        pairs = [(f, by_f), (variance, by_variance)]
        pairs = [(y, cotangent.sum_to_size(y.shape)) for y, cotangent in pairs if y.requires_grad]
        tensors, cotangents = zip(*pairs, (points, -each * points), strict=True)
        grads = list(
            torch.autograd.grad(tensors, leaves, cotangents, allow_unused=True, materialize_grads=True)
        )
    return Part(total, mean, cov, *grads)


def _shares(
    phi: Tensor, points: Tensor, eta: Tensor, log_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each node's share of the sum, its logarithm, and the mean and covariance of eta under the shares."""
    log_joint = -phi - 0.5 * (points * points).sum(-1)
    log_joint = torch.where(torch.isfinite(log_joint), log_joint, -torch.inf) + log_weight[:, None, None]
    total = torch.logsumexp(log_joint, 0)
    share = torch.exp(log_joint - total).nan_to_num(0.0)
    mean = (share.unsqueeze(-1) * eta).sum(0)
    apart = eta - mean
    return share, total, mean, torch.einsum("kdn,kdni,kdnj->dnij", share, apart, apart)


def _by_density(
    problem: Problem,
    values: Values,
    f: Tensor,
    eta: Tensor,
    points: Tensor,
    leaves: tuple[Tensor, Tensor, Tensor],
    log_weight: Tensor,
    scores: bool,
) -> Part:
    """The same by the density of the observations, through which reverse mode passes with the page."""
    rows = f.detach().requires_grad_(scores)
    with torch.set_grad_enabled(scores):
        phi = terms_of(problem, rows, values, exact=False).phi.sum(-1)
    with torch.no_grad():
        share, total, mean, cov = _shares(phi.detach(), points, eta, log_weight)
    grads = [torch.zeros_like(leaf) for leaf in leaves]
    if scores:
        each = share.unsqueeze(-1)
        wanted = [rows, leaves[0]]
        by_f, by_sigma = torch.autograd.grad(
            phi, wanted, -share, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        by_f = torch.where(each > 0, by_f, 0.0)  # a node without weight may be anywhere
        pairs = [(f, by_f)] if f.requires_grad else []
        tensors, cotangents = zip(*pairs, (points, -each * points), strict=True)
        grads = list(
            torch.autograd.grad(tensors, leaves, cotangents, allow_unused=True, materialize_grads=True)
        )
        grads[0] = grads[0] + by_sigma
    return Part(total, mean, cov, *grads)
