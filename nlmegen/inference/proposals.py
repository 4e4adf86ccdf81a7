"""What eta is drawn from without an encoder: two Student t densities a subject, each seeing what the other misses.

    q(eta) = 1/2 t(mode, H^-1) + 1/2 t(mean, C)

the first at the conditional mode with Laplace's Hessian H, the second at the posterior mean with the posterior
covariance C. On rich records they are the same. On sparse ones the posterior is skewed: Laplace's t then lies beside
the mass, and wastes draws; that of the moments lies on it, but its tails can be too thin on the long side, which shows
in no effective sample size and in few draws. Weights p(y, eta) / q(eta) of a mixture are bounded by twice those of
either component (Owen & Zhou 2000, doi:10.1080/01621459.2000.10473909).

The moments come from a small grid up to three random effects, beyond from a pilot of draws. Neither enters what is
drawn later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .marginal import GRID_ETAS, StudentLaplace, moments, quadrature, root

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem

DF = 4
"""Degrees of freedom of a component: thick tails, and a chi-square that is twice the sum of two exponentials."""

NODES = {0: 3, 1: 9, 2: 7, 3: 5}
"""Nodes a dimension of the grid that finds the moments, by the number of random effects."""

PILOT, PILOTS = 400, 2
"""Draws of a pilot, and pilots: each from the mixture that the last one made."""


@dataclass(frozen=True)
class TwoStudents:
    """The even mixture of two Student t densities.

    Attributes:
        modal: at the conditional modes.
        central: at the posterior moments.
    """

    modal: StudentLaplace
    central: StudentLaplace

    @property
    def mode(self) -> Tensor:
        """Conditional modes, `[subject, q]`."""
        return self.modal.mode

    def log_density(self, eta: Tensor) -> Tensor:
        """log q(eta), `[*draw, subject, q]` -> `[*draw, subject]`."""
        both = torch.logaddexp(self.modal.log_density(eta), self.central.log_density(eta))
        return both - math.log(2.0)

    def sample(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """k independent draws a subject: eta `[k, subject, q]` and log density `[k, subject]`."""
        modal, central = (part.sample(k, generator)[0] for part in (self.modal, self.central))
        heads = torch.rand(k, len(self.mode), 1, generator=generator, dtype=torch.float64) < 0.5
        eta = torch.where(heads, modal, central)
        return eta, self.log_density(eta)

    def draw(self, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As many draws of each component, on shifted lattices: eta `[k / shifts, shifts, subject, q]`, log density."""
        halves = [part.draw(-(-k // 2), generator)[0] for part in (self.modal, self.central)]
        eta = torch.cat(halves)
        return eta, self.log_density(eta)


def proposal(
    problem: Problem,
    values: Values,
    df: int = DF,
    *,
    generator: torch.Generator,
    eta0: Tensor | None = None,
) -> TwoStudents:
    """The proposal for a problem at one parameter vector.

    Args:
        problem: the binding of page and data.
        values: one parameter vector.
        df: degrees of freedom of both components, a whole number.
        generator: of the pilots, where there are too many random effects for a grid.
        eta0: where the search for the modes starts, `[subject, q]`.

    Example:
        >>> q = proposal(problem, values, generator=torch.Generator().manual_seed(1))  # doctest: +SKIP
        >>> importance(problem, values, q, k=2000).total  # doctest: +SKIP
        -180.4
    """
    modal = StudentLaplace.at_modes(problem, values, df, eta0)
    found = TwoStudents(modal, modal)
    if problem.q <= GRID_ETAS:
        grid = quadrature(problem, values, NODES[problem.q], eta0=modal.mode)
        return TwoStudents(modal, _central(grid.mean, grid.cov, modal))
    for _ in range(PILOTS):
        eta, log_q = (x.flatten(0, 1) for x in found.draw(PILOT, generator))
        log_weight = (problem.log_joint(eta, values) - log_q).nan_to_num(nan=-math.inf, posinf=-math.inf)
        total, mean, cov = moments(log_weight, eta)
        effective = torch.exp(2.0 * total - torch.logsumexp(2.0 * log_weight, 0)).nan_to_num()
        # moments of few effective draws are poor: they are drawn towards Laplace's
        trust = effective / (effective + 4.0 * problem.q)
        own = modal.scale @ modal.scale.mT
        mean, cov = torch.lerp(modal.mode, mean, trust[:, None]), torch.lerp(own, cov, trust[:, None, None])
        found = TwoStudents(modal, _central(mean, cov, modal))
    return found


def _central(mean: Tensor, cov: Tensor, modal: StudentLaplace) -> StudentLaplace:
    """The Student t of these moments; Laplace's for a subject whose moments are not finite."""
    known = mean.isfinite().all(-1) & cov.isfinite().all(-1).all(-1)
    cov = torch.where(known[:, None, None], cov, torch.eye(mean.shape[-1], dtype=mean.dtype))
    scale = torch.where(known[:, None, None], root(cov), modal.scale)
    return StudentLaplace(torch.where(known[:, None], mean, modal.mode), scale, modal.df)
