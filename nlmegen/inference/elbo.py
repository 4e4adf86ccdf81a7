"""The variational method: an encoder and the population parameters from one object of settings.

    import nlmegen as nl
    fit = nl.fit(model, data, nl.ELBO(seed=1))

Objective "iwml" (the default) ends at the maximum likelihood: importance-weighted, on draws of the encoder (see
`iwml`). Objective "elbo" maximises the plain bound by joint Adam (see `bound`); it is quick to state, and biased.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from ..errors import FitError, nearest
from ..model.problem import Problem
from .bound import ascend
from .encoder import Encoder
from .estimate import Estimate, Progress, Report, refuse_priors
from .families import FAMILIES
from .iwml import Course, Note, train_and_maximise
from .ladder import conclude
from .weights import refuse_unused

OBJECTIVES: dict[str, Callable[..., None]] = {"iwml": train_and_maximise, "elbo": ascend}
COVARIANCES = ("sandwich", "R", "S")


@dataclass(frozen=True)
class ELBO:
    """Variational estimation with an amortized encoder.

    Priors of the page make the estimates of "iwml" maximum a posteriori.

    Networks of the page are learned with the parameters: on the bound of variational EM, then (objective "iwml") on the
    importance-weighted draws; they are frozen before the finish, and every number reported holds at the final weights.

    Args:
        seed: of everything random; the same seed gives the same fit.
        objective: "iwml", importance-weighted maximum likelihood, or "elbo", the plain bound.
        family: of q(eta | record), "mixture" or "gaussian"; by default a mixture for "iwml" and a Gaussian for "elbo".
        width: of the network.
        steps: training steps over which the learning rate decays, after the search.
        draws: a patient and refresh; few patients get more.
        most_draws: a patient, at most, in the finish.
        precision: expected loss of -2 log L to Monte Carlo error at which the finish stops.
        k: samples of the bound, objective "elbo" alone.
        covariance: standard errors by "sandwich", "R", "S", or None.
        batch, rate, block: simulated patients a step, learning rate, steps between refreshes in the search.
        varied: share of simulated patients with varied designs.
        linearisations: Gauss-Newton steps by which a record is read.
        flip_flop: accept absorption slower than elimination as a start and as an end, as in `FOCEI`.

    Raises:
        FitError: on a setting outside its choices.

    Example:
        >>> ELBO(seed=1).name
        'elbo'
    """

    seed: int = 0
    objective: str = "iwml"
    family: str | None = None
    width: int = 64
    steps: int = 600
    draws: int = 100
    most_draws: int = 4000
    precision: float = 0.01
    k: int = 1
    covariance: str | None = "sandwich"
    batch: int = 256
    rate: float = 3e-3
    block: int = 100
    varied: float = 0.3
    linearisations: int = 4
    flip_flop: bool = False

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise FitError(
                f"ELBO(objective={self.objective!r}): no such objective.{nearest(self.objective, OBJECTIVES)}"
            )
        if self.family is not None and self.family not in FAMILIES:
            raise FitError(f"ELBO(family={self.family!r}): no such family.{nearest(self.family, FAMILIES)}")
        if self.covariance is not None and self.covariance not in COVARIANCES:
            raise FitError(
                f"ELBO(covariance={self.covariance!r}): no such covariance.{nearest(self.covariance, COVARIANCES)}"
            )
        if self.objective == "elbo" and self.family == "mixture":
            raise FitError(
                "ELBO(objective='elbo', family='mixture'): the choice of a component cannot be reparametrised; "
                "use family='gaussian', or objective='iwml'"
            )
        if self.objective == "iwml" and self.k != 1:
            raise FitError("ELBO(k=...) belongs to objective='elbo'; 'iwml' takes draws= and most_draws=")
        small = {
            "width": 8,
            "steps": 10,
            "draws": 20,
            "most_draws": 20,
            "k": 1,
            "batch": 8,
            "block": 10,
            "linearisations": 0,
        }
        for name, least in {"seed": 0, **small}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise FitError(f"ELBO({name}={value!r}): expected a whole number, at least {least}")
        for name, low, high in (("rate", 1e-6, 1.0), ("precision", 1e-6, 1.0), ("varied", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise FitError(f"ELBO({name}={value!r}): expected a number between {low:g} and {high:g}")
        if self.most_draws < self.draws:
            raise FitError(f"ELBO(most_draws={self.most_draws}): fewer than draws={self.draws}")
        self._refuse_what_the_bound_ignores()

    def _refuse_what_the_bound_ignores(self) -> None:
        if self.objective != "elbo":
            return
        ignored = ("most_draws", "precision", "covariance", "flip_flop")
        for name, default in ((f.name, f.default) for f in fields(self) if f.name in ignored):
            if getattr(self, name) not in (default, None):
                raise FitError(
                    f"ELBO({name}=...) belongs to objective='iwml'; the plain bound does not use it"
                )

    @property
    def name(self) -> str:
        """The method's name on the command line."""
        return "elbo"

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate every free parameter of `problem` from the model's present values, and train an encoder.

        Args:
            problem: the binding of page and data.
            progress: called with a `Progress` now and then. Ctrl-C returns the best so far, not converged.

        Raises:
            FitError: when the page has no random effects, or no finite likelihood at the start.
            ModelError: when the page has a prior and the objective is "elbo".
        """
        if problem.q == 0:
            raise FitError(
                "the page has no random effects, so there is nothing to encode; use FOCEI (method focei)"
            )
        if self.objective == "elbo":
            refuse_priors(problem, "ELBO(objective='elbo')")
        refuse_unused(problem)
        problem.check(problem.values(problem.start))
        family = self.family or ("mixture" if self.objective == "iwml" else "gaussian")
        encoder = Encoder.of(problem, family, self.width, self.linearisations, self.seed)
        course = Course(problem, encoder, problem.start.clone())
        try:
            OBJECTIVES[self.objective](course, self, _teller(progress))
        except KeyboardInterrupt:
            course.reason = f"interrupted by the user during {course.stage}; the best so far is kept"
        try:
            return conclude(course, self)
        except KeyboardInterrupt:  # the fit is done: what describes it is computed again
            course.reason = course.reason or "interrupted by the user while the results were computed"
            return conclude(course, self)


def _teller(progress: Report | None) -> Note:
    """A callback that takes the parts of a `Progress`, and does nothing where nobody listens."""

    def tell(stage: str, step: int, total: int | None, objective: float | None, note: str = "") -> None:
        if progress is not None:
            progress(Progress(stage, step, total, objective, note))

    return tell
