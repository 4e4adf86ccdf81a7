"""q(eta | record) of a set of patients, and the posterior that importance sampling makes of it.

A family is a density of a standardised effect w (`families`). The affine map

    eta = location + scale w

carries it to the etas; location and scale (lower triangular) are a patient's own linearised posterior, so that w = 0
with unit spread is already a fair guess and the network only has to say what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .families import Family, log_diagonal, times
from .lattice import shifted_lattice
from .marginal import StudentLaplace
from .pareto import pareto_shape

if TYPE_CHECKING:
    import pandas as pd

    from ..model.parameters import Values
    from ..model.problem import Problem


FEWEST_DRAWS = 25
"""Fewer draws than this leave no tail from which k-hat could judge the weights."""

PIECE = 2_000_000
"""Predictions made at once: more only costs memory."""


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
        """Draws of eta `[k / shifts, shifts, subject, q]` on shifted lattices, and their log q `[k / shifts,
        shifts, subject]`.
        """
        n, q = self.location.shape
        uniform = shifted_lattice(k, n, self.family.coordinates(q), generator)
        w = self.family.draw(self.raw, uniform)
        return self.location + times(self.scale, w), self.family.log_density(self.raw, w) - log_diagonal(
            self.scale
        )

    def log_density(self, eta: Tensor) -> Tensor:
        """log q(eta), `[*draw, subject, q]` -> `[*draw, subject]`."""
        off = (eta - self.location).unsqueeze(-1)
        w = torch.linalg.solve_triangular(self.scale, off, upper=False).squeeze(-1)
        return self.family.log_density(self.raw, w) - log_diagonal(self.scale)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean `[subject, q]` and covariance `[subject, q, q]` of eta under q."""
        mean, cov = self.family.moments(self.raw, self.location.shape[-1])
        return self.location + times(self.scale, mean), self.scale @ cov @ self.scale.mT


def log_joint(problem: Problem, eta: Tensor, values: Values) -> Tensor:
    """`Problem.log_joint` of many draws `[draw, ..., subject, q]`, some at a time; minus infinity where it is lost."""
    size = max(1, PIECE // max(1, problem.y.numel()))
    parts = [problem.log_joint(some, values) for some in torch.split(eta, size)]
    return torch.cat(parts).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


@dataclass(frozen=True)
class Posterior:
    """What is known of each patient's etas: weighted draws, their moments, and how far to trust them.

    Args:
        ids: the patients, N of them.
        eta_names: the etas, q of them.
        draws: etas drawn from q, `[K, subject, q]`.
        log_weights: log of normalised weights p(y, eta) / q(eta), `[K, subject]`; each column sums to one when
            exponentiated.
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
        ratio = log_joint(problem, eta, values) - log_q
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
        """A word a patient: "good", "usable", or "refine" (q misses this record: draw more, or use quadrature).

        The limit on khat is min(1 - 1 / log10 K, 0.7) (Vehtari et al. 2024, JMLR 25:72). A heavy tail of weights
        that are nearly equal does no harm, so khat counts against a patient together with a low effective sample
        size. A khat that could not be computed (NaN or infinite) vouches for nothing; minus infinity is that of
        equal weights.
        """
        limit = min(1.0 - 1.0 / math.log10(max(self.k, 11)), 0.7)
        share = self.ess / self.k
        heavy = self.khat > limit
        unknown = self.khat.isnan() | self.khat.isposinf()
        poor = (share < 0.1) | (heavy & (share < 0.5)) | unknown | ~self.log_likelihood.isfinite()
        good = ~heavy & (share >= 0.5)
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
