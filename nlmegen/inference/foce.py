"""FOCEI: maximum likelihood by first-order conditional estimation with interaction.

The objective is that of `objective`, minimised by `outer` from a start that `starts` may have mended; the end is
checked before anything is said of it: second conditional modes, the flip-flop image, parameters at a boundary. Then
come the standard errors of `uncertainty`. Where the page has networks, their weights and the parameters are first
estimated together (`joint`), then the parameters at fixed weights, in turns until neither moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NoReturn

import torch
from torch import Tensor

from ..data.events import Kind
from ..errors import FitError, Status
from ..model.problem import LOG_2PI, Problem
from . import weights
from .boundary import at_boundary, describe, runaways
from .ebe import status_of
from .estimate import Estimate, Progress, Report, refuse_priors
from .flipflop import absorbs_slowly, has_mirror, mirrored
from .joint import Point, learn
from .objective import Evaluation, Objective
from .outer import CHEAP, Outcome, Outer, Surface
from .starts import TENSE, logarithmic, screen, some_subjects, tension
from .uncertainty import covariance_of, determined, information

MODE_ROUNDS = 6
"""How often the search goes on after second modes were found to be better."""

FEW = 50
"""Subjects with whom a large problem is begun, at least."""

LOOSEST = 1e-2
"""Largest tolerance: a search that stops farther from its end than this has estimated nothing."""

ROUGHLY = 1e-8
"""Newton decrement of modes that are only compared, or started from."""


@dataclass(frozen=True)
class FOCEI:
    """First-order conditional estimation with interaction, NONMEM's METHOD=1 INTER.

    Networks of the page are learned with the parameters, their penalties added to the objective while they are;
    standard errors are those of the parameters given the weights.

    Args:
        evaluate: only evaluate at the model's present values (MAXEVAL=0).
        covariance: which standard errors: "sandwich" (NONMEM's default), "R" (the Hessian), "S" (the scores), None for
            none; "auto" is "sandwich" for an estimation and None for an evaluation. "R" stands in for "sandwich", and
            a note says so, where no more subjects have data than there are parameters.
        max_iterations: largest number of outer iterations.
        tolerance: the search ends when no more than this decrease of the objective is promised; at most 0.01.
        flip_flop: accept absorption slower than elimination. Otherwise (oral, one compartment) the mirror image with
            the faster absorption is estimated, and a note tells the objective of the other.

    Raises:
        FitError: on an unknown option, and by `estimate` where nothing can be estimated.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())
        >>> round(result.ofv, 2)
        104.32
    """

    evaluate: bool = False
    covariance: Literal["auto", "sandwich", "R", "S"] | None = "auto"
    max_iterations: int = 200
    tolerance: float = 1e-7
    flip_flop: bool = False
    name: str = field(default="focei", init=False, repr=False)

    def __post_init__(self) -> None:
        if self.covariance not in ("auto", "sandwich", "R", "S", None):
            raise FitError(
                f"FOCEI(covariance={self.covariance!r}): expected 'sandwich', 'R', 'S', 'auto', or None for no"
                " standard errors"
            )
        if self.max_iterations < 0:
            raise FitError(
                f"FOCEI(max_iterations={self.max_iterations!r}): expected 0 or more (evaluate=True only evaluates)"
            )
        if not 0 < self.tolerance <= LOOSEST:
            raise FitError(
                f"FOCEI(tolerance={self.tolerance!r}): expected a number above 0 and at most {LOOSEST}, the promised"
                " decrease of the objective at which the search ends; 1e-7 unless given"
            )

    @property
    def kind(self) -> str | None:
        """The covariance that will be computed, "auto" resolved."""
        if self.covariance == "auto":
            return None if self.evaluate else "sandwich"
        return self.covariance

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate the free parameters of `problem`, starting from the model's present values.

        Args:
            problem: the binding of page and data.
            progress: called with a `Progress` at every iteration.

        Returns:
            An `Estimate`; after Ctrl-C the best so far, not converged.

        Raises:
            FitError: the objective is not finite at the start, or the page uses what FOCEI cannot (priors).
        """
        refuse_priors(problem, "FOCEI")
        weights.refuse_unused(problem)
        problem.check(problem.values(problem.start))
        run = _Run(problem, self, progress)
        try:
            return run.evaluation() if self.evaluate else run.estimation()
        except KeyboardInterrupt:
            return run.interrupted()


class _Run:
    """One estimation: the state that its stages share."""

    def __init__(self, problem: Problem, settings: FOCEI, progress: Report | None) -> None:
        self.problem, self.settings, self.progress = problem, settings, progress
        self.objective = Objective(problem)
        self.logarithmic = logarithmic(problem)
        self.surface: Surface | None = None
        self.iterations = 0
        self.notes: list[str] = []
        self.history: list[dict[str, float]] = []

    # -- the stages ---------------------------------------------------------------------------------------------------
    def evaluation(self) -> Estimate:
        """The objective at the model's values."""
        free = self.problem.start
        first = self.objective(free[None])
        if not math.isfinite(float(first.total[0])):
            self._refuse(first)
        none = torch.zeros_like(self.logarithmic)
        eta, second = self._recheck(free, first)
        outer = self._outer(none)
        if self.settings.kind is None:
            point = self.objective(free[None], eta, near=True)
            nothing = torch.full((len(free),), math.nan, dtype=torch.float64)
            surface = Surface(free, float(point.total[0]), nothing, nothing.diag(), False, point)
        else:
            surface = outer.exact(free, eta, near=True)
        return self._finish(Outcome(surface, True, "evaluated at the model's values", 0, none, second))

    def estimation(self) -> Estimate:
        """Search, check the end, and say how well the estimates are determined."""
        outcome = self._search(*self._begin(self.problem.start))
        if bool(runaways(self.problem, outcome.surface).any()) and not self._out_of_iterations:
            again = self._search(*self._begin(self.problem.start, mend=True))
            if again.surface.value < outcome.surface.value or not bool(
                runaways(self.problem, again.surface).any()
            ):
                outcome = again
        outcome = self._unmirrored(outcome)
        away = runaways(self.problem, outcome.surface)
        if bool(away.any()):
            words = (
                f"the data do not determine {self._names(away)}, which ran away; fix it or simplify the page"
            )
            outcome = replace(outcome, converged=False, reason=words)
        return self._finish(outcome)

    def interrupted(self) -> Estimate:
        """The best so far."""
        if self.surface is None:
            free = self.problem.start
            point = self.objective(free[None], scores=True)
            self.surface = Surface(
                free, float(point.total[0]), point.gradient[0], torch.zeros_like(free).diag(), False, point
            )
        none = torch.zeros_like(self.logarithmic)
        return self._finish(Outcome(self.surface, False, "interrupted by the user", self.iterations, none))

    # -- the start ----------------------------------------------------------------------------------------------------
    def _begin(self, free: Tensor, *, mend: bool = False) -> tuple[Tensor, Tensor]:
        """Where to start the search from: a vector `[P]` and modes `[1, subject, q]`."""
        if not self.settings.flip_flop and has_mirror(self.problem) and absorbs_slowly(self.problem, free):
            image = mirrored(self.problem, free)
            if image is not None:
                free = image
                self._say(
                    "the start had absorption slower than elimination; the search began from its mirror image"
                    " (flip_flop=True keeps such a start)"
                )
        # few subjects are enough to get near, and a search with them costs little
        few = self._few()
        objective = self.objective if few is self.problem else Objective(few)
        first = objective(free[None], tolerance=ROUGHLY)
        start, eta, value = free, first.eta, float(first.total[0])
        if mend or not math.isfinite(value) or tension(few, free, first) > TENSE:
            start, eta, value = screen(objective, free)
        if few is self.problem:
            if not math.isfinite(value):
                self._refuse(objective(start[None]))
            return start, eta
        near = (
            Outer(objective, self.logarithmic, tolerance=0.05, max_iterations=40).run(start, eta).surface.free
        )
        tried = self.objective(near[None], tolerance=ROUGHLY)
        if not tension(self.problem, near, tried) < TENSE:
            other = self.objective(start[None], tolerance=ROUGHLY)
            if not float(other.total[0]) > float(tried.total[0]):
                near, tried = start, other
        if not math.isfinite(float(tried.total[0])):
            self._refuse(tried)
        return near, tried.eta

    def _few(self) -> Problem:
        """The problem, or where differences of it are dear a part of its subjects."""
        problem = self.problem
        numbers = problem.y.shape[-1] * max(problem.q, 1) ** 2 * (problem.P + 1)
        if numbers * problem.n_subjects <= CHEAP or len(problem.weights):
            return problem
        few = some_subjects(problem, max(FEW, CHEAP // (4 * numbers)))
        if self.progress is not None and few is not problem:
            self.progress(Progress(f"FOCEI, a first look at {few.n_subjects} subjects", 0))
        return few

    def _refuse(self, evaluation: Evaluation) -> NoReturn:
        """Raise a FitError that names the subjects without a finite density."""
        bad = ~torch.isfinite(evaluation.objective[0])
        ids = [self.problem.population.ids[i] for i in bad.nonzero().flatten().tolist()[:5]]
        raise FitError(
            f"the objective is not finite at the start for id {', '.join(ids)}; check these subjects' doses, times and"
            " units, or start from other values"
        )

    # -- the search ---------------------------------------------------------------------------------------------------
    @property
    def _out_of_iterations(self) -> bool:
        return self.iterations >= self.settings.max_iterations

    def _outer(self, held: Tensor) -> Outer:
        def watch(surface: Surface) -> None:
            if self.surface is None or surface.value < self.surface.value:
                self.surface = surface
            entry = {"iteration": self.iterations + outer.iterations, "ofv": surface.value}
            self.history.append(entry)
            if self.progress is not None:
                self.progress(Progress("FOCEI", int(entry["iteration"]), None, surface.value))

        outer = Outer(
            self.objective,
            self.logarithmic,
            held=held,
            tolerance=self.settings.tolerance,
            max_iterations=self.settings.max_iterations - self.iterations,
            watch=watch,
        )
        return outer

    def _search(self, free: Tensor, eta: Tensor) -> Outcome:
        """Search over the parameters, and over the networks' weights where there are any."""
        if not len(self.problem.weights):
            return self._from(free, eta)
        return learn(Point.at(self.problem, free, eta, near=False), self._from, self._watch_weights)

    def _watch_weights(self, point: Point, step: int) -> None:
        self.problem, self.objective = point.problem, Objective(point.problem)
        n = len(point.free)
        unknown = torch.zeros(n, n, dtype=torch.float64)
        self.surface = Surface(point.free, point.ofv, point.gradient[:n], unknown, False, point.evaluation)
        self.history.append({"iteration": step, "ofv": point.ofv, "penalised": point.value})
        if self.progress is not None:
            self.progress(Progress("FOCEI, learning the networks", step, None, point.ofv))

    def _from(self, free: Tensor, eta: Tensor) -> Outcome:
        """Search, look for better modes and boundaries, and go on until neither changes anything."""
        held = torch.zeros_like(self.logarithmic)
        for _ in range(MODE_ROUNDS):
            outcome = self._outer(held).run(free, eta)
            self.iterations += outcome.iterations
            surface = outcome.surface
            better, second = self._recheck(surface.free, surface.evaluation)
            outcome = replace(outcome, second=second)
            improved = bool((better != surface.eta).any())
            if outcome.converged and not improved:
                edge = at_boundary(self.problem, surface) & ~held
                if not bool(edge.any()):
                    return outcome
                held = held | edge
            elif not improved or self._out_of_iterations:
                return outcome
            free, eta = surface.free, better
        reason = "better conditional modes kept turning up; try other starts"
        return replace(outcome, converged=False, reason=reason)

    def _recheck(self, free: Tensor, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
        """Search every mode again from zero and from its reflection.

        Returns:
            The better modes `[1, subject, q]`, and which subjects have several `[subject]`.
        """
        eta, depth = evaluation.eta[0], evaluation.depth[0]
        if not self.problem.q:
            return evaluation.eta, torch.zeros_like(depth, dtype=torch.bool)
        starts = torch.stack((torch.zeros_like(eta), -eta))
        other = self.objective(free.expand(2, -1), starts, tolerance=ROUGHLY)
        usable = torch.isfinite(other.depth) & other.converged
        rival = torch.where(usable, other.depth, math.inf)
        margin = 1e-6 * (1 + depth.abs())
        second = (usable & ((rival - depth).abs() > margin)).any(0)
        lowest, which = rival.min(0)
        chosen = other.eta[which, torch.arange(len(which))]
        return torch.where((lowest < depth - margin)[:, None], chosen, eta)[None], second

    def _unmirrored(self, outcome: Outcome) -> Outcome:
        """The image of a flip-flop solution, unless flip-flop is accepted or the image cannot be had."""
        surface, problem = outcome.surface, self.problem
        if self.settings.flip_flop or not has_mirror(problem) or not absorbs_slowly(problem, surface.free):
            return outcome
        note = "absorption is estimated slower than elimination (flip-flop)"
        image = None if self._out_of_iterations else mirrored(problem, surface.free)
        if image is not None:
            thetas = torch.tensor([name in problem.layout.thetas for name in problem.names], dtype=torch.bool)
            start = torch.where(thetas, image, torch.maximum(surface.free, problem.start))
            other = self._from(*self._begin(start, mend=True))
            if other.converged and not absorbs_slowly(problem, other.surface.free):
                self._say(
                    "a flip-flop solution, with absorption slower than elimination, has objective"
                    f" {surface.value:.4f}; the solution with the faster absorption is reported"
                    " (flip_flop=True accepts the other)"
                )
                return other
            note += "; its mirror image is no optimum"
        self._say(note)
        return outcome

    # -- the end ------------------------------------------------------------------------------------------------------
    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def _names(self, which: Tensor) -> str:
        return ", ".join(name for name, yes in zip(self.problem.names, which.tolist(), strict=True) if yes)

    def _undosed(self) -> Tensor:
        """Subjects without a dose where others have one, `[subject]` bool."""
        kind = self.problem.population.events.kind
        dosed = ((kind == Kind.BOLUS) | (kind == Kind.START)).any(-1)
        return ~dosed & dosed.any()

    def _finish(self, outcome: Outcome) -> Estimate:
        problem, surface, settings = self.problem, outcome.surface, self.settings
        point, held = surface.evaluation, outcome.held
        second = self._recheck(surface.free, point)[1] if outcome.second is None else outcome.second
        words = describe(problem, surface.free, held)
        for sentence in words + weights.describe(problem, surface.free, point.eta[0]):
            self._say(sentence)
        r = s = covariance = None
        kind = settings.kind if outcome.converged or settings.evaluate else None
        if point.score is not None and surface.exact:
            r, s = information(surface.hessian, point.score[0])
        if kind is not None and problem.P:
            why = "no standard errors: the Hessian is not finite"
            if r is not None and s is not None:
                kind, note = determined(kind, int((problem.mask.sum(-1) > 0).sum()), int((~held).sum()))
                covariance, why = covariance_of(r, s, kind, held)
                if note and covariance is not None:
                    self._say(note)
            if covariance is None:
                self._say(why)
        elif kind is None and settings.kind is not None:
            self._say("no standard errors: the estimation did not converge")
        reason = outcome.reason
        if bool(held.any()) and outcome.converged:
            reason += f", with {self._names(held)} at a boundary"
        log_likelihood = -0.5 * (surface.value + problem.n_gaussian * LOG_2PI)
        status = status_of(problem, point.depth[0], point.converged[0], point.indefinite[0])
        return Estimate(
            free=surface.free.detach().clone(),
            ofv=problem.ofv(log_likelihood),
            log_likelihood=log_likelihood,
            ofv_source="focei",
            converged=outcome.converged,
            reason=reason,
            iterations=self.iterations,
            ebe=point.eta[0],
            status=status | second * int(Status.SECOND_MODE) | self._undosed() * int(Status.NO_DOSES),
            eta_mean=point.eta[0],
            eta_cov=point.cov[0],
            notes=self.notes,
            covariance=covariance,
            covariance_kind=kind or "" if covariance is not None else "",
            hessian_r=r,
            score_s=s,
            history=[dict(entry) for entry in self.history],
            weights=problem.weights.detach().clone() if len(problem.weights) else None,
        )
