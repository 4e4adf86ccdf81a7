"""SAEM: stochastic approximation expectation maximisation.

    explore    the chains move (`kernels`), the M-step follows them (`mstep`), standard deviations fall slowly at first
               (simulated annealing), until the parameters no longer travel
    average    stochastic approximation of the maximum from expected scores and the observed information (`averages`),
               until its Monte Carlo noise costs less than `precision` of -2 log L

The second phase has the root of SAEM's usual recursion, whose averages of sufficient statistics close in on it like
k^-(1 - lambda) where lambda is the share of missing information: on sparse data (lambda above .9) that is never. With
the observed information in place of the complete one the rate is 1/k whatever is missing (Gu & Kong 1998,
doi:10.1073/pnas.95.13.7270; Baey et al. 2023, arXiv:2206.09719).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import FitError, ModelError
from ..model.problem import Problem
from .averages import Average, Metric
from .chains import Chains
from .conclusion import conclude
from .estimate import Estimate, Progress, Report
from .expectation import Expectation
from .flipflop import absorbs_slowly, has_mirror, mirrored
from .mstep import closed_sigmas, maximisation
from .options import Options
from .starts import logarithmic
from .transport import Chart

COOLING = 0.9
"""Standard deviations fall at most by this factor in an iteration of the exploration."""

HOT, WIDE = 1.5, 0.6
"""By the first they are raised at the start; a random effect that moves a theta on a log scale to the second at least,
from where the chains see far."""

MEMORY = 0.3
"""Share of the last sweep in what the chains remember of the posteriors, while the parameters travel."""

LOOK, TRAVEL = 5, 1.0
"""Exploration ends when the parameters have travelled less than the second in so many iterations: a squared distance
in the metric of the scores' outer product."""

FIRST = 8
"""Iterations of the averages before the first look."""

RESTART, FAR = 0.02, 0.5
"""Averages begin anew from where they are when they have moved by the first (at the first look) or the second (later):
squared distances in units of -2 log L."""

ROUNDS = 60
"""Most times that the averages begin: what travels longer than that is not determined."""


@dataclass(frozen=True, kw_only=True)
class SAEM(Options):
    """Stochastic approximation EM: maximum likelihood (with priors: maximum a posteriori) for any page.

    Args:
        seed: of everything random; the same seed gives the same fit.
        chains: independent Markov chains a subject; their spread measures the Monte Carlo error.
        burn_in: most iterations of the exploration.
        max_iterations: most iterations in all.
        precision: expected loss of -2 log L to Monte Carlo error at which the averages end.

    The other options are those of `inference.options.Options`.

    Raises:
        FitError: on an unknown option, and by `estimate` where nothing can be estimated.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.SAEM())
        >>> round(-2 * result.log_likelihood, 1)
        347.1
    """

    seed: int = 0
    chains: int = 4
    burn_in: int = 300
    max_iterations: int = 2000
    precision: float = 0.005

    name: ClassVar[str] = "saem"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_whole(seed=0, chains=2, burn_in=1, max_iterations=1)
        if not 1e-6 <= self.precision <= 1.0:
            raise FitError(f"SAEM(precision={self.precision!r}): expected a number between 1e-6 and 1")

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate the free parameters of `problem`, starting from the model's present values.

        Args:
            problem: the binding of page and data.
            progress: called with a `Progress` now and then.

        Returns:
            An `Estimate`; after Ctrl-C the best so far, not converged.

        Raises:
            ModelError: the page has networks.
            FitError: the page has no random effects.
        """
        if problem.q == 0:
            raise FitError(
                "the page has no random effects, so there is nothing to draw; use FOCEI (method focei)"
            )
        if len(problem.weights):
            raise ModelError(
                "SAEM does not learn the networks of a page; use FOCEI (method focei) or ELBO (method elbo)"
            )
        problem.check(problem.values(problem.start))
        run = _Run(problem, self, progress)
        try:
            if not self.evaluate and problem.P:
                run.estimation()
        except KeyboardInterrupt:
            run.interrupt()
        try:
            return run.conclusion()
        except KeyboardInterrupt:  # the estimates are there: what describes them is computed again
            run.interrupt()
            return run.conclusion()


class _Run:
    """The state of one estimation."""

    def __init__(self, problem: Problem, settings: SAEM, progress: Report | None) -> None:
        self.problem, self.settings, self.progress = problem, settings, progress
        self.best = problem.start.clone()
        self.chains: Chains | None = None
        self.stage, self.reason, self.converged = "start", "evaluated at the model's values", True
        self.iterations = 0
        self.notes: list[str] = []
        self.history: list[dict[str, Any]] = []

    def interrupt(self) -> None:
        """What Ctrl-C does to the verdict."""
        self.converged, self.reason = (
            False,
            f"interrupted by the user ({self.stage}); the best so far is kept",
        )

    def estimation(self) -> None:
        """Explore, then average."""
        settings = self.settings
        self.converged, self.reason = False, "no more iterations (max_iterations)"
        generator = torch.Generator().manual_seed(settings.seed)
        self.chains = Chains(self.problem, self._heated(self.best), settings.chains, generator)
        self._explore(self.chains)
        self._average(self.chains)

    # -- exploration --------------------------------------------------------------------------------------------------
    def _explore(self, chains: Chains) -> None:
        """EM on the chains until the parameters no longer travel."""
        self.stage = "exploration"
        problem, chart = self.problem, chains.chart
        closed = closed_sigmas(chart, chains.free)
        deviations = [a for a, i, j in chart.entries if i == j] + chart.deviations
        turned = self.settings.flip_flop or not has_mirror(problem)
        milestone, cooling = chains.free, True
        chains.aim(2)
        while self.iterations < min(self.settings.burn_in, self.settings.max_iterations):
            found = chains.sweep()
            before = chains.free
            free = maximisation(chart, before, chains.moves, found, closed, COOLING)
            if not bool(free.isfinite().all()):
                raise FitError(
                    "the parameters are not finite in the exploration; start closer to the data (model.with_values)"
                )
            chains.move(free)
            chains.remember(found, MEMORY)
            self._tell(found, free)
            chains.aim()
            cooling = cooling or bool(((free - before)[deviations] < 0.999 * math.log(COOLING)).any())
            if self.iterations % LOOK:
                continue
            travelled = (found.scores.mean(0) @ (free - milestone)).square().sum()
            if not cooling and float(travelled) < TRAVEL:
                if turned or not absorbs_slowly(problem, free):
                    return
                turned = True
                self._turn(chains)
            milestone, cooling = chains.free, False

    def _heated(self, free: Tensor) -> Tensor:
        """Larger standard deviations."""
        problem, chart, free = self.problem, Chart(self.problem), free.clone()
        logs, sd = logarithmic(problem), problem.page_omega(free).diagonal().sqrt()
        factor = torch.full_like(sd, HOT)
        for a, k in problem.mu_pairs:
            if logs[a]:
                factor[k] = max(HOT, WIDE / float(sd[k]))
        for a, i, j in chart.entries:
            free[a] = free[a] + factor[i].log() if i == j else free[a] * factor[i]
        free[chart.deviations] += math.log(HOT)
        return free

    def _turn(self, chains: Chains) -> None:
        """Go on from the mirror image of a solution with absorption slower than elimination."""
        image = mirrored(self.problem, chains.free)
        if image is None:
            return
        self.notes.append(
            "the exploration came to absorption slower than elimination and went on from its mirror image"
            " (flip_flop=True accepts the other)"
        )
        chains.free = self._heated(image)
        chains.begin()
        chains.aim(2)

    # -- averages -----------------------------------------------------------------------------------------------------
    def _average(self, chains: Chains) -> None:
        """Averages, begun anew as long as the parameters travel, until their noise costs little."""
        self.stage = "averages"
        held = torch.zeros(self.problem.P, dtype=torch.bool)
        for _ in range(ROUNDS):
            if chains.seen is not None:
                variance = chains.seen[1].diagonal(dim1=-2, dim2=-1)
                chains.use(Chart.of(self.problem, self.problem.omega(chains.free), variance))
            chains.aim(2)
            average = Average(chains, Metric.at(chains, held))
            look = FIRST
            while self.iterations < self.settings.max_iterations:
                self._tell(average.advance(), average.mean)
                if average.count < look:
                    continue
                loss = average.loss
                sinks, fall = average.sinking()
                if bool(sinks.any()):
                    held = held | sinks
                    chains.move(average.mean - fall)
                    break
                far = RESTART if average.count == FIRST else FAR
                if average.moved > far + 4.0 * loss:
                    chains.move(average.mean)
                    break
                if loss < self.settings.precision:
                    self.converged = True
                    self.reason = f"Monte Carlo error costs an expected {loss:.4f} of -2 log L"
                    return
                enough = int(average.count * (loss / self.settings.precision - 1.0)) + 1
                look = average.count + max(FIRST, min(average.count, enough))
            else:
                return
        self.reason = (
            "the parameters still travelled when the last averages began: the data may not determine one of them; look"
            " at the history, or fix it"
        )

    # -- the end ------------------------------------------------------------------------------------------------------
    def _tell(self, found: Expectation, free: Tensor) -> None:
        self.iterations += 1
        self.best = free
        objective = self.problem.ofv(found.log_likelihood)
        row = {"iteration": self.iterations, "stage": self.stage, "objective": objective}
        self.history.append(row | dict(zip(self.problem.names, self.best.tolist(), strict=True)))
        if self.progress is not None:
            self.progress(Progress(f"SAEM, {self.stage}", self.iterations, None, objective))

    def conclusion(self) -> Estimate:
        """What is to be said of the best so far."""
        return conclude(
            self.problem,
            self.best,
            seed=self.settings.seed,
            covariance=self.settings.kind,
            converged=self.converged,
            reason=self.reason,
            iterations=self.iterations,
            notes=self.notes,
            history=self.history,
            eta0=None if self.chains is None else self.chains.anchor.eta,
        )
