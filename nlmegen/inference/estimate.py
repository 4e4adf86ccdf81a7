"""What a method returns, how it reports progress, and what makes it a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..errors import ModelError
from ..model.problem import Problem

if TYPE_CHECKING:
    from .encoder import Encoder


@dataclass(frozen=True)
class Progress:
    """One report of a running method.

    Attributes:
        stage: what it is doing, in words.
        step: how far, of `total` (None: not known).
        objective: the present objective function or bound, if there is one.
        note: anything else worth a line.
    """

    stage: str
    step: int
    total: int | None = None
    objective: float | None = None
    note: str = ""


Report = Callable[[Progress], None]


@dataclass
class Estimate:
    """The outcome of a method on a problem.

    Attributes:
        free: estimates as a free vector `[P]`.
        ofv, log_likelihood, ofv_source, ofv_se: objective function (-2 log L - n log 2 pi), complete log-likelihood,
            how it was computed ("focei", "importance", ...), and the Monte Carlo standard error of `ofv`.
        converged, reason, iterations, notes: how the method stopped, in words.
        ebe: conditional modes `[subject, q]`; status: `Status` flags `[subject]`.
        eta_mean, eta_cov: posterior mean `[subject, q]` and covariance `[subject, q, q]` of eta (for a classic method
            those of the Laplace approximation).
        covariance, covariance_kind: of the free estimates `[P, P]`, and which ("sandwich", "R", "S").
        hessian_r, score_s: half the Hessian of -2 log L, and the sum of score outer products, `[P, P]`.
        encoder, bounds: of a variational fit: the trained encoder and the ladder of bounds.
        history: one dictionary an iteration.
        weights: of the page's networks `[W]`, where they were estimated.
        penalty: -2 log prior at the estimates, 0 on a page without priors; `ofv` and `log_likelihood` leave it out.
    """

    free: Tensor
    ofv: float
    log_likelihood: float
    ofv_source: str
    converged: bool
    reason: str
    iterations: int
    ebe: Tensor
    status: Tensor
    eta_mean: Tensor
    eta_cov: Tensor
    ofv_se: float | None = None
    notes: list[str] = field(default_factory=list)
    covariance: Tensor | None = None
    covariance_kind: str = ""
    hessian_r: Tensor | None = None
    score_s: Tensor | None = None
    encoder: Encoder | None = None
    bounds: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: Tensor | None = None
    penalty: float = 0.0


class Method(Protocol):
    """A frozen dataclass of settings that estimates."""

    @property
    def name(self) -> str:
        """The name on the command line, for example "focei"."""

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate the free parameters of `problem`, starting from the model's present values."""


def refuse_priors(problem: Problem, method: str) -> None:
    """Raise a ModelError when a Theta of the page carries a prior, which `method` cannot use."""
    with_prior = [name for name, theta in problem.layout.thetas.items() if theta.prior is not None]
    if with_prior:
        raise ModelError(
            f"{method} cannot use the prior on {', '.join(with_prior)} yet "
            "and will not ignore it; remove prior=... from the page"
        )
