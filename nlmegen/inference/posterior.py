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

from ..model.levels import column
from .families import Family, log_diagonal, times
from .lattice import shifted_lattice
from .pareto import pareto_shape

if TYPE_CHECKING:
    import pandas as pd

    from ..model.parameters import Values
    from ..model.problem import Problem


FEWEST_DRAWS = 25
"""Fewer draws than this leave no tail from which k-hat could judge the weights."""

GOOD, USABLE = 0.02, 0.1
"""Errors of a quadrature, in log likelihood and posterior SD, under which it is good, or usable."""

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
        eta_names: the random effects, q of them, as `Problem.eta_names` has them.
        draws: etas drawn from q, `[K, subject, q]`.
        log_weights: log of normalised weights p(y, eta) / q(eta), `[K, subject]`; each column sums to one when
            exponentiated.
        log_likelihood: log mean weight, the estimate of log p(y), `[subject]`.
        ess: effective sample size out of K, `[subject]`.
        khat: Pareto shape of the largest weights, `[subject]`.
        how: by what means, a word a patient: "encoder", "importance", "quadrature" (nodes with their weights), or
            "laplace" (a Gaussian at the mode).
        error: of a quadrature, the change that two nodes fewer make: the largest of log p(y) and, in posterior SD, the
            means, `[subject]`; NaN for patients with random draws, None where all have them. Effective sample size
            and khat of a quadrature are NaN.

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
    how: tuple[str, ...] = ()
    error: Tensor | None = None

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

    def replaced(self, index: Tensor, other: Posterior) -> Posterior:
        """With the patients at `index` taken from another posterior of them alone, unless that is no better.

        The other may have fewer draws than this one: draws of weight zero fill it up.
        """
        word = {"refine": 0, "usable": 1, "good": 2}
        better = [word[other.verdict[j]] > word[self.verdict[i]] for j, i in enumerate(index.tolist())]
        kept = torch.tensor(better, dtype=torch.bool)
        index, source = index[kept], kept.nonzero().flatten()
        missing = self.k - other.k
        draws = torch.cat([other.draws, other.draws[:1].expand(missing, -1, -1)])[:, source]
        empty = torch.full_like(other.log_weights[:1], -math.inf).expand(missing, -1)
        how, error = list(self.how or ("",) * len(self.ids)), self.error
        for i, j in zip(index.tolist(), source.tolist(), strict=True):
            how[i] = other.how[j]
        if other.error is not None:
            error = torch.full_like(self.ess, math.nan) if error is None else error
            error = error.index_copy(0, index, other.error[source])
        return Posterior(
            self.ids,
            self.eta_names,
            self.draws.index_copy(1, index, draws),
            self.log_weights.index_copy(1, index, torch.cat([other.log_weights, empty])[:, source]),
            self.log_likelihood.index_copy(0, index, other.log_likelihood[source]),
            self.ess.index_copy(0, index, other.ess[source]),
            self.khat.index_copy(0, index, other.khat[source]),
            tuple(how),
            error,
        )

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
        equal weights. A quadrature is judged by its error. Draws of a Laplace approximation are not weighted, so that
        the weights they would need must be nearly equal: a share of .95 is a mean some .2 standard deviations off.
        """
        limit = min(1.0 - 1.0 / math.log10(max(self.k, 11)), 0.7)
        share = self.ess / self.k
        plain = torch.tensor([how == "laplace" for how in self.how or [""] * len(self.ids)], dtype=torch.bool)
        heavy = self.khat > limit
        unknown = self.khat.isnan() | self.khat.isposinf()
        poor = (share < 0.1) | (heavy & (share < 0.5)) | unknown | ~self.log_likelihood.isfinite()
        poor |= plain & (share < 0.7)
        good = ~heavy & (share >= torch.where(plain, 0.95, 0.5))
        if self.error is not None:
            grid = ~self.error.isnan()
            poor = torch.where(grid, ~(self.error < USABLE) | ~self.log_likelihood.isfinite(), poor)
            good = torch.where(grid, self.error < GOOD, good)
        return tuple(
            "refine" if bad else "good" if fine else "usable"
            for bad, fine in zip(poor.tolist(), good.tolist(), strict=True)
        )

    def table(self) -> pd.DataFrame:
        """One row a patient: id, eta_NAME_mean, eta_NAME_sd (kappa_NAME_1_mean, ...), ess (of K draws), khat, verdict.

        A patient with fewer occasions than others has the prior for those it lacks.
        """
        import pandas as pd

        sd = self.cov.diagonal(dim1=-2, dim2=-1).sqrt()
        columns: dict[str, object] = {"id": list(self.ids)}
        for j, name in enumerate(self.eta_names):
            columns[f"{column(name)}_mean"] = self.mean[:, j].numpy()
            columns[f"{column(name)}_sd"] = sd[:, j].numpy()
        columns |= {"ess": self.ess.numpy(), "khat": self.khat.numpy(), "verdict": list(self.verdict)}
        return pd.DataFrame(columns)
