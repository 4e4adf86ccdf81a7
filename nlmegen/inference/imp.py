"""Importance sampling as an estimator: maximum likelihood on draws of Student t densities, without a network.

    start      variational EM (`vem`): it climbs from poor starts at the price of a few predictions a subject
    EM         E-step: K draws a subject from Student t densities at the conditional mode and at the posterior moments
               (`proposals`), weighted by p(y, eta) / q(eta). M-step: closed forms for mu-referenced thetas and Omega,
               scoring steps for the rest (`mstep`). Until the parameters move by less than about a standard error
    finish     the simulated likelihood on the draws is maximised over all parameters (`settle`), with more draws until
               the expected loss of -2 log L to Monte Carlo error is under `precision`

What is reported of the end is `conclusion`'s, and fresh importance samples there say how far the draws can be trusted.
As the draws carry weights, no bound is involved: the end is the maximum likelihood, or, with priors, the maximum of the
posterior density.

See Wei & Tanner (1990), doi:10.1080/01621459.1990.10474930, for Monte Carlo EM, and Kuk & Cheng (1999),
doi:10.1016/S0167-9473(98)00062-3, for maximisation on fixed draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import FitError
from ..model.problem import Problem
from .conclusion import Drawn, conclude, light_weights
from .estimate import Estimate, Progress, Report
from .expectation import Expectation, Sweeper
from .marginal import GRID_ETAS
from .mstep import closed_sigmas, maximisation
from .options import Options
from .proposals import DF, proposal
from .settle import (
    NEAR,
    ROUNDS,
    UNMOVED,
    WANDERED,
    Round,
    draws_per_patient,
    expected_loss,
    rounds,
    too_noisy,
)
from .simulated import Evaluation, effective_share
from .transport import Chart
from .vem import Variational, unmirrored
from .weights import refuse_unused

PATIENCE = 2
"""EM ends where a step is shorter than `NEAR` so often in a row."""

FIRST, EVALUATED, JUDGED = 300, 3000, 1000
"""Draws a subject of an E-step, of an evaluation, and of the look at the end of an estimation."""

DONE = "the parameters stand still and Monte Carlo error in them costs little"
"""What is said of an estimation that ended as it should."""


@dataclass(frozen=True, kw_only=True)
class Importance(Options):
    """Maximum likelihood by importance sampling, as NONMEM's METHOD=IMPMAP, ended by simulated maximum likelihood.

    Args:
        seed: of the draws; the same seed gives the same fit.
        k: draws a subject of an E-step and of the first maximisation (300 unless given), or of an evaluation (3000).
        most_draws: a subject, at most.
        precision: expected loss of -2 log L to Monte Carlo error in the estimates at which the search ends.
        df: degrees of freedom of the Student t proposals: small for thick tails.
        max_iterations: EM steps and maximisations, at most.

    The other options are those of `inference.options.Options`. With `evaluate` log L at the model's present values is
    computed by importance sampling, corrected for its bias, with its standard error; `flip_flop` is about the start.

    Raises:
        FitError: on a setting outside its choices, and by `estimate` where nothing can be estimated.

    Example:
        >>> import nlmegen as nl
        >>> model, data = nl.load_model("theophylline"), nl.load_data("theophylline")
        >>> round(-2 * nl.fit(model, data, nl.Importance(seed=1)).log_likelihood, 1)
        347.1
    """

    seed: int = 0
    k: int | None = None
    most_draws: int = 20_000
    precision: float = 0.005
    df: int = DF
    max_iterations: int = 100

    name: ClassVar[str] = "imp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_whole(seed=0, most_draws=40, df=1, max_iterations=0)
        if self.k is not None:
            self.require_whole(k=40)
        if not 1e-6 <= self.precision <= 1.0:
            raise FitError(
                f"Importance(precision={self.precision!r}): expected a number between 1e-6 and 1, in units of -2 log L"
            )
        if self.most_draws < self.draws:
            raise FitError(f"Importance(most_draws={self.most_draws}): fewer than k={self.draws}")

    @property
    def draws(self) -> int:
        """Draws a subject to begin with, the default resolved."""
        if self.k is not None:
            return self.k
        return EVALUATED if self.evaluate else min(FIRST, self.most_draws)

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate the free parameters of `problem`, starting from the model's present values.

        Args:
            problem: the binding of page and data.
            progress: called with a `Progress` at every iteration.

        Returns:
            An `Estimate`; after Ctrl-C the best so far, not converged.

        Raises:
            FitError: the page has no random effects, or networks to learn, or no finite likelihood at the start.
        """
        if problem.q == 0:
            raise FitError(
                "the page has no random effects, so there is nothing to sample; use FOCEI (method focei)"
            )
        refuse_unused(problem)
        if len(problem.weights) and not self.evaluate:
            raise FitError(
                "Importance does not learn the networks of a page; use ELBO or FOCEI (methods elbo, focei), and"
                " Importance(evaluate=True) at their estimates for the likelihood"
            )
        problem.check(problem.values(problem.start))
        run = _Run(problem, self, progress)
        if not self.evaluate:
            try:
                run.estimation()
            except KeyboardInterrupt:
                run.reason = f"interrupted by the user during {run.stage}; the best so far is kept"
        return run.conclusion()


class _Run:
    """One estimation: the state that its stages share."""

    def __init__(self, problem: Problem, settings: Importance, progress: Report | None) -> None:
        self.problem, self.settings, self.progress = problem, settings, progress
        self.free = problem.start.clone()
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.stage, self.reason, self.iterations = "start", "", 0
        self.eta: Tensor | None = None
        self.last: Round | None = None
        self.notes: list[str] = []
        self.history: list[dict[str, Any]] = []

    def estimation(self) -> None:
        """Start, EM, finish."""
        self.stage = "variational EM"

        def report(step: int, at: Variational) -> None:
            self.free, self.eta = at.free, at.mean
            self._tell(step, None, f"bound {float(at.bound.sum()):.3f}")

        at, notes = unmirrored(self.problem, self.free, self.settings.flip_flop, report)
        self.free, self.eta = at.free, at.mean
        self.notes += notes
        self._expectation_maximisation()
        if not self.reason:
            self._finish()

    @property
    def _left(self) -> int:
        return self.settings.max_iterations - self.iterations

    def _draw(self, free: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """k draws a subject at `free`, from Student t densities (`proposals`)."""
        values, df = self.problem.values(free), self.settings.df
        found = proposal(self.problem, values, df, generator=self.generator, eta0=self.eta)
        self.eta = found.mode
        return found.draw(k, self.generator)

    def _expectation_maximisation(self) -> None:
        self.stage = "EM"
        problem, k = self.problem, draws_per_patient(self.problem, self.settings.draws, 0)
        calm = 0
        while calm < PATIENCE:
            if self._left <= 0:
                self.reason = self._out_of_iterations
                return
            self.iterations += 1
            free = self.free
            eta, log_q = self._draw(free, k)
            eta, log_q = eta.flatten(0, 1)[:, None], log_q.flatten(0, 1)[:, None]
            centre = eta.mean((0, 1))
            chart = Chart.of(problem, problem.omega(free), (eta - centre).square().mean((0, 1)))
            moves = chart.transport(free, problem.values(free), centre)
            found = Sweeper(chart, k)(free, moves, eta, log_q)
            self.free = maximisation(chart, free, moves, found, closed_sigmas(chart, free))
            step = self.free - free
            moved = float((found.scores[0] @ step).square().sum())
            calm = calm + 1 if moved < NEAR else 0
            self._record(found, moved, k)

    def _finish(self) -> None:
        self.stage = "finish"
        settings, problem = self.settings, self.problem

        def watch(at: Round) -> None:
            self.iterations += 1
            self.free, self.last = at.free, at
            found = at.maximum.evaluation
            self._record(found, at.maximum.moved, at.k, at.loss)

        if self._left <= 0:
            self.reason = self._out_of_iterations
            return
        last = rounds(
            problem,
            self.free,
            self._draw,
            draws_per_patient(problem, settings.draws, 0),
            precision=settings.precision,
            most_draws=settings.most_draws,
            watch=watch,
            limit=min(self._left, ROUNDS),
        )
        if last.maximum.moved >= UNMOVED:
            self.reason = self._out_of_iterations if self._left <= 0 else WANDERED

    @property
    def _out_of_iterations(self) -> str:
        return f"stopped at the limit of {self.settings.max_iterations} iterations"

    # -- what is kept and told ----------------------------------------------------------------------------------------
    def _record(
        self, evaluation: Evaluation | Expectation, moved: float, k: int, loss: float | None = None
    ) -> None:
        """Write a step into the history."""
        share = effective_share(evaluation.log_weights)
        ofv = self.problem.ofv(evaluation.log_likelihood)
        entry = {
            "stage": self.stage,
            "step": self.iterations,
            "objective": ofv,
            "moved": moved,
            "k": k,
            "ess_median": float(share.median()),
            "ess_low": float(share.quantile(0.1)),
        }
        self.history.append(entry if loss is None else entry | {"loss": loss})
        noise = "" if loss is None else f", expected loss {loss:.4f}"
        self._tell(self.iterations, ofv, f"{k} draws, effective sample size {entry['ess_median']:.0%}{noise}")

    def _tell(self, step: int, objective: float | None, note: str) -> None:
        if self.progress is not None:
            self.progress(Progress(f"importance sampling, {self.stage}", step, None, objective, note))

    # -- the end ------------------------------------------------------------------------------------------------------
    def conclusion(self) -> Estimate:
        """The `Estimate`, on draws that the search never saw."""
        settings, problem, free = self.settings, self.problem, self.free
        k = settings.draws if settings.evaluate else JUDGED
        seed = settings.seed + 1_000_003
        drawn = Drawn.at(
            problem, free, k=draws_per_patient(problem, k, 0), seed=seed, df=settings.df, eta0=self.eta
        )
        sampled = drawn.sampled
        share = sampled.ess / sampled.k
        if settings.evaluate:
            reason, success = "", "evaluated at the model's values"
        else:
            noisy = too_noisy(problem, math.nan if self.last is None else self.last.loss)
            reason, success = self.reason or noisy, DONE
        light = light_weights(share)
        if light and not reason:
            reason = (
                f"the draws {light}: these posteriors are far from a Student t; look at the data, or use SAEM"
            )
        found = conclude(
            problem,
            free,
            seed=seed,
            covariance=settings.kind,
            converged=not reason,
            reason=reason or success,
            iterations=self.iterations,
            notes=self.notes,
            history=self.history,
            eta0=drawn.proposal.mode if self.eta is None else self.eta,
            drawn=drawn if settings.evaluate or problem.q > GRID_ETAS else None,
        )
        if found.converged and self.last is not None and found.hessian_r is not None:
            noisy = too_noisy(problem, expected_loss(self.last.maximum.evaluation, found.hessian_r))
            found.converged, found.reason = not noisy, noisy or found.reason
        found.status = found.status | drawn.flags
        found.bounds = {
            "k": sampled.k,
            "importance_log_likelihood": sampled.total,
            "importance_se": sampled.total_se,
            "khat_max": float(sampled.khat.max()),
            "ess_median": float(share.median()),
            "ess_min": float(share.min()),
        }
        return found
