"""The marginal likelihood of every subject, as exactly as one can pay for.

    log L_i = log integral exp( log_joint_i(eta) ) d eta

by adaptive Gauss-Hermite quadrature (few random effects; the arbiter of this package) or by importance sampling with
any proposal. Both also give the posterior mean and covariance of eta. Laplace's approximation is quadrature with one
node.

See Pinheiro & Bates (1995), J Comput Graph Stat 4:12-35, doi:10.1080/10618600.1995.10474663.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..errors import FitError
from ..maths.quadrature import affordable_nodes, tensor_grid
from ..model.parameters import Values
from ..model.problem import LOG_2PI, Problem
from .ebe import Conditional, ConditionalExpansion, find_modes, status_of
from .lattice import shifted_lattice
from .pareto import pareto_shape
from .scan import deepest

GRID = 20_000
"""Nodes a subject that a tensor grid may have; more random effects than this allows take fewer nodes a dimension."""

FEWEST_NODES = 3
"""A rule with fewer nodes than this a dimension is not worth the name of an arbiter."""

GRID_ETAS = 3
"""Up to so many random effects a grid is laid for every subject; beyond, draws are preferred."""

PIECE = 1_000_000
"""Predictions that are worked on at once."""


@dataclass(frozen=True)
class Marginal:
    """The marginal likelihood by quadrature.

    Attributes:
        log_likelihood: `[subject]`.
        mean: posterior mean of eta, `[subject, q]`.
        cov: posterior covariance of eta, `[subject, q, q]`.
        status: `Status` flags `[subject]`; `INDEFINITE` where the grid was laid by absolute eigenvalues.
        nodes: nodes a dimension in use (fewer than asked for when the grid would have been too large).
    """

    log_likelihood: Tensor
    mean: Tensor
    cov: Tensor
    status: Tensor
    nodes: int

    @property
    def total(self) -> float:
        """log L, the sum over subjects."""
        return float(self.log_likelihood.sum())


def quadrature(
    problem: Problem, values: Values, nodes: int = 9, *, rounds: int = 1, eta0: Tensor | None = None
) -> Marginal:
    """log L_i by adaptive Gauss-Hermite quadrature, with the posterior mean and covariance of eta.

    The grid is centred at the conditional mode and scaled by the exact Hessian H of -log_joint there,
    eta = mode + L U |D|^(-1/2) x with H = U D U' in the whitened effects z = L^-1 eta, Omega = L L'. Where H is
    indefinite the absolute eigenvalues stand in, flagged. It is then laid anew by the posterior mean and covariance
    that it found: on sparse records, whose posteriors are skewed, that takes most off its error.

    Args:
        problem: the binding of page and data.
        values: one parameter vector.
        nodes: nodes a dimension; reduced, with `Marginal.nodes` saying so, to keep the grid under `GRID` nodes.
        rounds: how often to lay the grid anew; 0 for the textbook's grid at the mode. Fewer than three nodes a
            dimension have no covariance worth using, and are never laid anew.
        eta0: the conditional modes where they are known, `[subject, q]`; else they are searched from several starts.

    Returns:
        A `Marginal`.

    Raises:
        FitError: when there are too many random effects for a grid.

    Example:
        >>> quadrature(problem, problem.values(problem.start)).total  # doctest: +SKIP
        -180.36
    """
    used = affordable_nodes(nodes, problem.q, GRID)
    if used < min(nodes, FEWEST_NODES):
        raise FitError(
            f"quadrature over {problem.q} random effects needs a grid of {min(nodes, FEWEST_NODES)}^{problem.q} nodes a"
            f" subject; at most {GRID} are allowed. Use importance sampling for so many random effects"
        )
    conditional = Conditional.of(problem, values)
    if math.prod(conditional.shape) != problem.n_subjects:
        raise FitError("quadrature takes one parameter vector at a time; call it once for each")
    found = deepest(problem, values) if eta0 is None else find_modes(conditional, eta0)
    centre, scale = laplace_scale(found.expansion)
    result = _integrate(problem, values, centre, scale, used)
    for _ in range(rounds if used >= FEWEST_NODES else 0):
        centre, scale = result[1], root(result[2])
        result = _integrate(problem, values, centre, scale, used)
    status = status_of(problem, found.expansion.value, found.converged, found.indefinite).flatten()
    return Marginal(*result, status=status, nodes=used)


@dataclass(frozen=True)
class Laid:
    """A subject's grid as weighted points.

    Attributes:
        eta: nodes, `[K, subject, q]`; log_weights: log of their normalised posterior weights, `[K, subject]`.
        log_likelihood, mean, cov: as in `Marginal`.
    """

    eta: Tensor
    log_weights: Tensor
    log_likelihood: Tensor
    mean: Tensor
    cov: Tensor


def lay(problem: Problem, values: Values, nodes: int, rounds: int = 2) -> Laid:
    """The last of the grids of `quadrature`, kept in full, with `nodes` nodes a dimension."""
    found = quadrature(problem, values, nodes, rounds=rounds - 1)
    x, log_weight = tensor_grid(nodes, problem.q)
    log_weight = log_weight + 0.5 * (x**2).sum(-1) + 0.5 * problem.q * LOG_2PI
    scale = root(found.cov)
    eta = found.mean + torch.einsum("nij,kj->kni", scale, x)
    size = max(1, PIECE // max(1, problem.y.numel()))
    parts = [problem.log_joint(some, values) for some in torch.split(eta, size)]
    level = torch.cat(parts).nan_to_num(nan=-math.inf, posinf=-math.inf) + log_weight.unsqueeze(-1)
    total, mean, cov = moments(level, eta)
    return Laid(eta, level - total, total + torch.linalg.slogdet(scale)[1], mean, cov)


def laplace_scale(at: ConditionalExpansion) -> tuple[Tensor, Tensor]:
    """Centre `[subject, q]` and scale S `[subject, q, q]`, S S' = H^-1 in eta, of the Laplace approximation at a mode.

    H is taken in the whitened z = L^-1 eta, where H = U D U' gives S = L U |D|^(-1/2).
    """
    q = at.eta.shape[-1]
    eigenvalues, axes = torch.linalg.eigh(at.hessian)
    scale = at.factor @ (axes * eigenvalues.abs().clamp(min=1e-12).rsqrt().unsqueeze(-2))
    return at.eta.reshape(-1, q), scale.reshape(-1, q, q)


def root(covariance: Tensor) -> Tensor:
    """A root S of each covariance, S S' `[subject, q, q]`; flat directions get a little width."""
    eigenvalues, axes = torch.linalg.eigh(covariance)
    root: Tensor = axes * eigenvalues.clamp(min=1e-12).sqrt().unsqueeze(-2)
    return root


def _integrate(
    problem: Problem, values: Values, centre: Tensor, scale: Tensor, nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """log integral, mean and covariance from one grid a subject, chunk by chunk."""
    x, log_weight = tensor_grid(nodes, problem.q)
    log_weight = log_weight + 0.5 * (x**2).sum(-1) + 0.5 * problem.q * LOG_2PI
    size = max(1, PIECE // (len(x) * problem.y.shape[-1]))
    parts = []
    for index in torch.split(torch.arange(problem.n_subjects), size):
        piece = problem if len(index) == problem.n_subjects else problem.select(index)
        eta = centre[index] + torch.einsum("nij,kj->kni", scale[index], x)
        log_joint = torch.nan_to_num(piece.log_joint(eta, values), nan=-math.inf, posinf=-math.inf)
        volume = torch.linalg.slogdet(scale[index])[1]
        parts.append((*moments(log_joint + log_weight.unsqueeze(-1), eta), volume))
    total, mean, cov, volume = (torch.cat(column) for column in zip(*parts, strict=True))
    return total + volume, mean, cov


def moments(log_weight: Tensor, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log sum of the weights `[K, subject]`, and the weighted mean and covariance of eta `[K, subject, q]`."""
    total = torch.logsumexp(log_weight, 0)
    weight = torch.exp(log_weight - total)
    mean = torch.einsum("kn,kni->ni", weight, eta)
    centred = eta - mean
    return total, mean, torch.einsum("kn,kni,knj->nij", weight, centred, centred)


# -- importance sampling -------------------------------------------------------------------------------------------
class Proposal(Protocol):
    """Anything that draws random effects and knows their density."""

    def sample(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """k draws a subject, independent between subjects: eta `[k, subject, q]` and log density `[k, subject]`."""


@dataclass(frozen=True)
class Sampled:
    """The marginal likelihood by importance sampling, w_k = exp(log_joint(eta_k) - log q(eta_k)).

    Attributes:
        log_likelihood: log mean weight, corrected for its bias, `[subject]`.
        bias_correction: v / 2K, what was added: the log of a mean is biased low (v is the relative variance of a
            weight).
        se: standard error of `log_likelihood`, sqrt(v / K), `[subject]`.
        mean, cov: posterior mean `[subject, q]` and covariance `[subject, q, q]` of eta.
        ess: effective sample size K / (1 + v), `[subject]`.
        khat: Pareto shape of the largest weights (above .7 the sums cannot be trusted), `[subject]`.
        k: draws a subject.
    """

    log_likelihood: Tensor
    bias_correction: Tensor
    se: Tensor
    mean: Tensor
    cov: Tensor
    ess: Tensor
    khat: Tensor
    k: int

    @property
    def total(self) -> float:
        """log L, the sum over subjects, corrected for bias."""
        return float(self.log_likelihood.sum())

    @property
    def total_se(self) -> float:
        """Monte Carlo standard error of `total`: the draws of different subjects are independent."""
        return float((self.se**2).sum().sqrt())


def importance(problem: Problem, values: Values, proposal: Proposal, k: int = 1000, seed: int = 0) -> Sampled:
    """log L_i by importance sampling, with the measures that say whether to believe it.

    Args:
        problem: the binding of page and data.
        values: one parameter vector.
        proposal: draws of eta with their density, for example a `StudentLaplace` or an encoder's q.
        k: draws a subject.
        seed: of the draws.

    Returns:
        An `Sampled`. Draws without a finite joint density count with weight zero.

    Example:
        >>> values = problem.values(problem.start)  # doctest: +SKIP
        >>> importance(problem, values, StudentLaplace.at_modes(problem, values), k=2000).total  # doctest: +SKIP
        -180.4
    """
    generator = torch.Generator().manual_seed(seed)
    eta, log_q = proposal.sample(k, generator)
    size = max(1, PIECE // (problem.n_subjects * problem.y.shape[-1]))
    log_joint = torch.cat([problem.log_joint(some, values) for some in torch.split(eta, size)])
    log_weight = torch.nan_to_num(log_joint - log_q, nan=-math.inf, posinf=-math.inf)
    total, mean, cov = moments(log_weight, eta)
    relative = torch.exp(log_weight - total) * k
    variance = ((relative - 1) ** 2).sum(0) / max(k - 1, 1)
    bias = variance / (2 * k)
    return Sampled(
        log_likelihood=total - math.log(k) + bias,
        bias_correction=bias,
        se=(variance / k).sqrt(),
        mean=mean,
        cov=cov,
        ess=k**2 / (relative**2).sum(0),
        khat=pareto_shape(log_weight),
        k=k,
    )


@dataclass(frozen=True)
class StudentLaplace:
    """A multivariate Student t at the conditional mode, scaled by the Hessian there: thick tails for any joint.

    Attributes:
        mode: its centre, `[subject, q]`.
        scale: a root S of the scale matrix, S S' = H^-1, `[subject, q, q]`.
        df: degrees of freedom, a whole number.
    """

    mode: Tensor
    scale: Tensor
    df: int = 5

    @classmethod
    def at_modes(
        cls, problem: Problem, values: Values, df: int = 5, eta0: Tensor | None = None
    ) -> StudentLaplace:
        """The proposal for a problem at one parameter vector; the modes are searched from `eta0 [subject, q]`."""
        return cls(*laplace_scale(deepest(problem, values, eta0).expansion), df)

    def sample(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """k independent draws a subject: eta `[k, subject, q]` and log density `[k, subject]`."""
        n, q = self.mode.shape
        normal = torch.randn(k, n, q, dtype=torch.float64, generator=generator)
        chi_square = (torch.randn(k, n, self.df, dtype=torch.float64, generator=generator) ** 2).sum(-1)
        return self._at(normal * (self.df / chi_square).sqrt().unsqueeze(-1))

    def draw(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws on shifted lattices, evener than `sample`: eta `[k / shifts, shifts, subject, q]` and log density.

        The chi-square of df degrees of freedom is a sum of df / 2 exponential variables (and a squared normal one, if
        df is odd), each with a coordinate of its own.
        """
        n, q = self.mode.shape
        pairs, single = divmod(self.df, 2)
        uniform = shifted_lattice(k, n, q + pairs + single, generator)
        normal: Tensor = torch.special.ndtri(uniform[..., : q + single])
        chi_square = -2.0 * uniform[..., q + single :].log().sum(-1)
        if single:
            chi_square = chi_square + normal[..., q] ** 2
        return self._at(normal[..., :q] * (self.df / chi_square).sqrt().unsqueeze(-1))

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """eta = mode + S x and its log density, for standard t variables `x [*draw, subject, q]`."""
        return self.mode + torch.einsum("nij,...nj->...ni", self.scale, x), self._density(x)

    def log_density(self, eta: Tensor) -> Tensor:
        """log q(eta), `[*draw, subject, q]` -> `[*draw, subject]`."""
        inverse = torch.linalg.inv(self.scale)
        return self._density(torch.einsum("nij,...nj->...ni", inverse, eta - self.mode))

    def _density(self, x: Tensor) -> Tensor:
        q = self.mode.shape[-1]
        half = 0.5 * (self.df + q)
        constant = math.lgamma(half) - math.lgamma(0.5 * self.df) - 0.5 * q * math.log(self.df * math.pi)
        tail: Tensor = half * torch.log1p((x**2).sum(-1) / self.df)
        density: Tensor = constant - tail - torch.linalg.slogdet(self.scale)[1]
        return density
