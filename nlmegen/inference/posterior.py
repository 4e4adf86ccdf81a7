"""Families of q(eta | record), and the posterior of a set of patients that importance sampling makes of them.

A family is a density of a standardised effect w in q dimensions whose numbers come from a network. The affine map

    eta = location + scale w

carries it to the etas; location and scale (lower triangular) are a patient's own linearised posterior, so that w = 0
with unit spread is already a fair guess and the network only has to say what is left.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .lattice import shifted_lattice
from .marginal import StudentLaplace
from .pareto import pareto_shape

if TYPE_CHECKING:
    import pandas as pd

    from ..model.problem import Problem, Values

LOG_2PI = math.log(2.0 * math.pi)


def kl_divergence(mean: Tensor, factor: Tensor, prior_factor: Tensor) -> Tensor:
    """KL(N(mean, C) || N(0, Omega)) for C = factor factor', Omega = prior_factor prior_factor'.

        KL = 1/2 [tr(Omega^-1 C) + mean' Omega^-1 mean - q + log det Omega - log det C]

    Args:
        mean: `[..., q]`.
        factor: `[..., q, q]`, lower triangular.
        prior_factor: `[..., q, q]`, lower triangular.

    Returns:
        `[...]`, never negative.
    """
    z = torch.linalg.solve_triangular(prior_factor, mean.unsqueeze(-1), upper=False)
    a = torch.linalg.solve_triangular(prior_factor, factor, upper=False)
    square = (z * z).sum((-2, -1)) + (a * a).sum((-2, -1))
    return 0.5 * (square - mean.shape[-1]) + log_diagonal(prior_factor) - log_diagonal(factor)


def log_diagonal(factor: Tensor) -> Tensor:
    """Log determinant of a triangular matrix with a positive diagonal, `[..., q, q]` -> `[...]`."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def times(triangle: Tensor, vector: Tensor) -> Tensor:
    """Each subject's lower triangle times its vectors, `[subject, q, q]` and `[*draw, subject, q]` to `[*draw, subject, q]`."""
    if vector.ndim == 2:
        return (triangle @ vector.unsqueeze(-1)).squeeze(-1)
    # many draws of few etas: whole rows of draws at a time, the axis of etas outermost in memory
    x = vector.unbind(-1)
    rows = []
    for i in range(len(x)):
        row = triangle[:, i, 0] * x[0]
        for j in range(1, i + 1):
            row = torch.addcmul(row, triangle[:, i, j], x[j])
        rows.append(row)
    return torch.stack(rows).movedim(0, -1)


class Family(abc.ABC):
    """A density of w in q dimensions, told by `outputs(q)` numbers a patient; stateless.

    Methods take `raw [subject, outputs]` (any float type, gradients pass) and draws `w [*draw, subject, q]`.
    """

    name: str

    @abc.abstractmethod
    def outputs(self, q: int) -> int:
        """How many numbers the network must give."""

    @abc.abstractmethod
    def coordinates(self, q: int) -> int:
        """How many uniform coordinates one draw takes."""

    @abc.abstractmethod
    def log_density(self, raw: Tensor, w: Tensor) -> Tensor:
        """log q(w), `[*draw, subject]`."""

    @abc.abstractmethod
    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """Draws `[*draw, subject, q]` from uniform points `[*draw, subject, coordinates]`."""

    @abc.abstractmethod
    def moments(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """Mean `[subject, q]` and covariance `[subject, q, q]` of w."""


def _triangle(diagonal: Tensor, lower: Tensor) -> Tensor:
    """Lower triangular `[..., q, q]` from log diagonal `[..., q]` and strict lower part, row by row."""
    q = diagonal.shape[-1]
    matrix = torch.diag_embed(diagonal.clamp(-4.0, 4.0).exp())
    rows, columns = torch.tril_indices(q, q, -1)
    if len(rows):
        matrix[..., rows, columns] = lower
    return matrix


def _inverse(triangle: Tensor) -> Tensor:
    identity = torch.eye(triangle.shape[-1], dtype=triangle.dtype).expand_as(triangle)
    return torch.linalg.solve_triangular(triangle, identity, upper=False)


def _normals(uniform: Tensor) -> Tensor:
    normal: Tensor = torch.special.ndtri(uniform)
    return normal


class Gaussian(Family):
    """One Gaussian of full covariance: P (w - m) is standard normal, P lower triangular."""

    name = "gaussian"

    def outputs(self, q: int) -> int:
        """A mean, a log diagonal and a strict lower triangle."""
        return 2 * q + q * (q - 1) // 2

    def coordinates(self, q: int) -> int:
        """One a dimension."""
        return q

    def _parts(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        return raw[..., :q], _triangle(raw[..., q : 2 * q], raw[..., 2 * q :])

    def log_density(self, raw: Tensor, w: Tensor) -> Tensor:
        """-1/2 |P (w - m)|^2 + log det P - q/2 log 2 pi."""
        q = w.shape[-1]
        mean, precision = self._parts(raw, q)
        z = times(precision, w - mean)
        return -0.5 * (z * z).sum(-1) + log_diagonal(precision) - 0.5 * q * LOG_2PI

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """m + P^-1 z; differentiable in raw."""
        mean, precision = self._parts(raw, uniform.shape[-1])
        return mean + times(_inverse(precision), _normals(uniform))

    def moments(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """m and (P' P)^-1."""
        mean, precision = self._parts(raw, q)
        inverse = _inverse(precision)
        return mean, inverse @ inverse.mT


class Mixture(Family):
    """A mixture of Gaussians of full covariance, for posteriors with shoulders or two modes.

    Args:
        components: how many; three carry a sparse oral record.
    """

    name = "mixture"

    def __init__(self, components: int = 3) -> None:
        self.components = components

    def outputs(self, q: int) -> int:
        """A weight and a Gaussian a component."""
        return self.components * (1 + Gaussian().outputs(q))

    def coordinates(self, q: int) -> int:
        """One a dimension, and one that picks the component (so that components are drawn evenly too)."""
        return q + 1

    def _parts(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
        part = raw.reshape(*raw.shape[:-1], self.components, -1)
        mean, precision = Gaussian()._parts(part[..., 1:], q)
        return part[..., 0].log_softmax(-1), mean, precision

    def log_density(self, raw: Tensor, w: Tensor) -> Tensor:
        """Log of the weighted sum of the components' densities."""
        q = w.shape[-1]
        weight, mean, precision = self._parts(raw, q)
        level = weight + log_diagonal(precision) - 0.5 * q * LOG_2PI
        parts = []
        for c in range(self.components):
            z = times(precision[:, c], w - mean[:, c])
            parts.append(level[:, c] - 0.5 * (z * z).sum(-1))
        return torch.logsumexp(torch.stack(parts), 0)

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """A component from the first coordinate, a Gaussian draw of it from the others."""
        q = uniform.shape[-1] - 1
        weight, mean, precision = self._parts(raw, q)
        edges = weight.exp().cumsum(-1)[..., :-1]
        pick = (uniform[..., :1] > edges).sum(-1, keepdim=True)
        z, inverse = _normals(uniform[..., 1:]), _inverse(precision)
        w = mean[:, 0] + times(inverse[:, 0], z)
        for c in range(1, self.components):
            w = torch.where(pick == c, mean[:, c] + times(inverse[:, c], z), w)
        return w

    def moments(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """Moments of the mixture: within plus between components."""
        weight, means, precision = self._parts(raw, q)
        share = weight.exp().unsqueeze(-1)
        inverse = _inverse(precision)
        mean = (share * means).sum(-2)
        off = (means - mean.unsqueeze(-2)).unsqueeze(-1)
        within = inverse @ inverse.mT + off @ off.mT
        return mean, (share.unsqueeze(-1) * within).sum(-3)


FAMILIES: dict[str, type[Family]] = {"gaussian": Gaussian, "mixture": Mixture}
"""The families by name."""


@dataclass(frozen=True)
class Approximation:
    """q(eta | record) of N subjects: a family's numbers and the affine map eta = location + scale w, all float64.

    Args:
        family: the family of w.
        raw: its numbers, `[subject, outputs]`.
        location: `[subject, q]`.
        scale: `[subject, q, q]`, lower triangular.
    """

    family: Family
    raw: Tensor
    location: Tensor
    scale: Tensor

    def draw(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws of eta `[k / shifts, shifts, subject, q]` on shifted lattices, and their log q `[k / shifts, shifts, subject]`."""
        n, q = self.location.shape
        uniform = shifted_lattice(k, n, self.family.coordinates(q), generator)
        w = self.family.draw(self.raw, uniform)
        return self.location + times(self.scale, w), self.family.log_density(self.raw, w) - log_diagonal(self.scale)

    def log_density(self, eta: Tensor) -> Tensor:
        """log q(eta), `[*draw, subject, q]` -> `[*draw, subject]`."""
        off = (eta - self.location).unsqueeze(-1)
        w = torch.linalg.solve_triangular(self.scale, off, upper=False).squeeze(-1)
        return self.family.log_density(self.raw, w) - log_diagonal(self.scale)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean `[subject, q]` and covariance `[subject, q, q]` of eta under q."""
        mean, cov = self.family.moments(self.raw, self.location.shape[-1])
        return self.location + times(self.scale, mean), self.scale @ cov @ self.scale.mT


@dataclass(frozen=True)
class Posterior:
    """What is known of each patient's etas: weighted draws, their moments, and how far to trust them.

    Args:
        ids: the patients, N of them.
        eta_names: the etas, q of them.
        draws: etas drawn from q, `[K, subject, q]`.
        log_weights: log of normalised weights p(y, eta) / q(eta), `[K, subject]`; each column sums to one when exponentiated.
        log_likelihood: log mean weight, the estimate of log p(y), `[subject]`.
        ess: effective sample size out of K, `[subject]`.
        khat: Pareto shape of the largest weights, `[subject]`.

    Example:
        >>> posterior = fit.posterior(new_patients)           # doctest: +SKIP
        >>> posterior.table()                                 # doctest: +SKIP
    """

    ids: tuple[str, ...]
    eta_names: tuple[str, ...]
    draws: Tensor
    log_weights: Tensor
    log_likelihood: Tensor
    ess: Tensor
    khat: Tensor

    @classmethod
    def weigh(
        cls, ids: tuple[str, ...], eta_names: tuple[str, ...], draws: Tensor, log_ratio: Tensor
    ) -> Posterior:
        """From draws `[K, subject, q]` and log p(y, eta) - log q(eta) `[K, subject]`."""
        k = draws.shape[0]
        total = torch.logsumexp(log_ratio, 0)
        log_weights = log_ratio - total
        ess = 1.0 / (2.0 * log_weights).exp().sum(0)
        return cls(ids, eta_names, draws, log_weights, total - math.log(k), ess, pareto_shape(log_ratio))

    @classmethod
    def laplace(cls, problem: Problem, values: Values, k: int = 1000, seed: int = 0) -> Posterior:
        """Of any page, without an encoder: draws from a Student t at each conditional mode.

        Args:
            problem: the page bound to the patients.
            values: the parameters, without draw axes.
            k: draws a patient.
            seed: of the draws.
        """
        proposal = StudentLaplace.at_modes(problem, values)
        eta, log_q = proposal.sample(k, torch.Generator().manual_seed(seed))
        ratio = problem.log_joint(eta, values) - log_q
        return cls.weigh(tuple(problem.population.ids), tuple(problem.eta_names), eta, ratio)

    @property
    def k(self) -> int:
        """Draws a patient, K."""
        return self.draws.shape[0]

    @property
    def mean(self) -> Tensor:
        """Posterior mean of eta, `[subject, q]`."""
        return (self.log_weights.exp().unsqueeze(-1) * self.draws).sum(0)

    @property
    def cov(self) -> Tensor:
        """Posterior covariance of eta, `[subject, q, q]`."""
        off = self.draws - self.mean
        return torch.einsum("kn,kni,knj->nij", self.log_weights.exp(), off, off)

    @property
    def verdict(self) -> tuple[str, ...]:
        """A word a patient: "good", "usable", or "refine" (the weights say that q misses this record: draw more, or use quadrature).

        The limit on khat is min(1 - 1 / log10 K, 0.7) (Vehtari et al. 2024, JMLR 25:72).
        """
        limit = min(1.0 - 1.0 / math.log10(max(self.k, 11)), 0.7)
        share = self.ess / self.k
        poor = (self.khat > limit) | (share < 0.1) | ~self.log_likelihood.isfinite()
        good = (self.khat <= min(0.5, limit)) & (share >= 0.5)
        return tuple(
            "refine" if bad else "good" if fine else "usable"
            for bad, fine in zip(poor.tolist(), good.tolist(), strict=True)
        )

    def table(self) -> pd.DataFrame:
        """One row a patient: id, eta_NAME_mean, eta_NAME_sd, ess (out of K draws), khat, verdict."""
        import pandas as pd

        sd = self.cov.diagonal(dim1=-2, dim2=-1).sqrt()
        columns: dict[str, object] = {"id": list(self.ids)}
        for j, name in enumerate(self.eta_names):
            columns[f"eta_{name}_mean"] = self.mean[:, j].numpy()
            columns[f"eta_{name}_sd"] = sd[:, j].numpy()
        columns |= {"ess": self.ess.numpy(), "khat": self.khat.numpy(), "verdict": list(self.verdict)}
        return pd.DataFrame(columns)
