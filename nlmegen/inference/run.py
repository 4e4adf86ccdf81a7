"""The course of a classic estimation: start, search, and a look at the end before anything is said of it.

The objective is minimised by `outer` from a start that `starts` may have mended. The end is then checked for second
conditional modes, the flip-flop image and parameters at a boundary; last come the standard errors of `uncertainty`.
Where the page has networks, their weights and the parameters are first estimated together (`joint`), then the
parameters at fixed weights, in turns until neither moves.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from ..errors import FitError
from ..model.problem import Problem
from .boundary import at_boundary, named, runaways
from .estimate import Estimate, Progress, Report
from .finish import finished
from .flipflop import absorbs_slowly, has_mirror, mirrored
from .joint import Point, learn
from .objective import Evaluation, Objective
from .outer import CHEAP, Outcome, Outer, Surface
from .scan import likeliest
from .starts import TENSE, logarithmic, screen, some_subjects

if TYPE_CHECKING:
    from .classic import Classic

MODE_ROUNDS = 6
"""How often the search goes on after second modes were found to be better."""

FEW = 50
"""Subjects with whom a large problem is begun, at least."""

APPROACH, APPROACHES = 1e-3, 40
"""Promised decrease at which the approach by a cheaper objective ends, and its iterations at most."""

ROUGHLY = 1e-8
"""Newton decrement of modes that are only compared, or started from."""


class Run:
    """One estimation: the state that its stages share.

    Args:
        problem: the binding of page and data.
        objective: what is minimised.
        settings: the options of the method.
        progress: called with a `Progress` at every iteration.
    """

    def __init__(
        self, problem: Problem, objective: Objective, settings: Classic, progress: Report | None
    ) -> None:
        self.problem, self.settings, self.progress = problem, settings, progress
        self.objective = objective
        self.logarithmic = logarithmic(problem)
        self.surface: Surface | None = None
        self.lacking: Tensor | None = None
        self.running: Outer | None = None
        self.approach: Tensor | None = None  # the best of a search by another objective, or with few subjects
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
        if self._doubtful(outcome):
            again = self._search(*self._begin(self.problem.start, mend=True))
            lost, found = (runaways(self.problem, x.surface).any() for x in (outcome, again))
            if again.surface.value < outcome.surface.value or bool(lost & ~found):
                outcome = again
        outcome = self._unmirrored(outcome)
        away = runaways(self.problem, outcome.surface)
        if bool(away.any()):
            which = named(self.problem, away)
            words = f"the data do not determine {which}, which ran away; fix it or simplify the page"
            outcome = replace(outcome, converged=False, reason=words)
        return self._finish(outcome)

    def _doubtful(self, outcome: Outcome) -> bool:
        """Whether the search may have ended in the wrong place, so that a mended start is worth another.

        A parameter ran away, or a variance went to zero: sometimes the data say so, sometimes a poor start led there.
        """
        if self._out_of_iterations:
            return False
        lost = bool(outcome.held.any()) and not len(self.problem.weights)
        return lost or bool(runaways(self.problem, outcome.surface).any())

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
    @property
    def _scout(self) -> Objective:
        """The objective with which a start is looked for: one with the same modes where the method's own is dear."""
        return self.objective.modal if self.objective.conditional else self.objective

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
        scout = self._scout
        start, eta, value = self._near(scout, free, mend)
        if math.isfinite(value) and scout is not self.objective:
            start, eta = self._approached(scout, start, eta)
            value = float(self.objective(start[None], eta, tolerance=ROUGHLY).total[0])
        if not math.isfinite(value):
            self._refuse(self.objective(start[None]))
        return start, eta

    def _near(self, scout: Objective, free: Tensor, mend: bool) -> tuple[Tensor, Tensor, float]:
        """A start that is not far off, its modes and its objective; few subjects are enough to find one."""
        few = self._few()
        objective = scout if few is self.problem else scout.on(few)
        first = objective(free[None], tolerance=ROUGHLY)
        start, eta, value = free, first.eta, float(first.total[0])
        if mend or not math.isfinite(value) or objective.tension(free, first) > TENSE:
            start, eta, value = screen(objective, free)
        if few is self.problem:
            return start, eta, value
        near = self._run(Outer(objective, self.logarithmic, tolerance=0.05, max_iterations=40), start, eta)
        found = self.approach = near.surface.free
        tried = scout(found[None], tolerance=ROUGHLY)
        if not scout.tension(found, tried) < TENSE:
            other = scout(start[None], tolerance=ROUGHLY)
            if not float(other.total[0]) > float(tried.total[0]):
                found, tried = start, other
        return found, tried.eta, float(tried.total[0])

    def _approached(self, scout: Objective, free: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Near the optimum of an objective that costs less; what went to an edge there starts where it was."""
        if self.progress is not None:
            self.progress(Progress(f"{self.settings.label}, a first approach by {scout.source}", 0))
        most = min(APPROACHES, self.settings.max_iterations - self.iterations)
        found = self._run(Outer(scout, self.logarithmic, tolerance=APPROACH, max_iterations=most), free, eta)
        surface = found.surface
        self.approach = surface.free
        self.iterations += found.iterations
        score = surface.evaluation.score
        if surface.exact and score is not None:
            self.lacking = surface.hessian - 0.5 * score[0].T @ score[0] - scout.penalty_hessian(surface.free)
        lost = runaways(self.problem, surface) | at_boundary(self.problem, surface)
        return torch.where(lost, free, surface.free), surface.eta

    def _few(self) -> Problem:
        """The problem, or where differences of it are dear a part of its subjects."""
        problem = self.problem
        numbers = self._scout.share * (problem.P + 1)
        if numbers * problem.n_subjects <= CHEAP or len(problem.weights):
            return problem
        few = some_subjects(problem, max(FEW, CHEAP // (4 * numbers)))
        if self.progress is not None and few is not problem:
            self.progress(Progress(f"{self.settings.label}, a first look at {few.n_subjects} subjects", 0))
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

    def _run(self, outer: Outer, free: Tensor, eta: Tensor) -> Outcome:
        """Run a search, known as the running one while it lasts."""
        self.running = outer
        outcome = outer.run(free, eta)
        self.running = None
        return outcome

    def _outer(self, held: Tensor) -> Outer:
        def watch(surface: Surface) -> None:
            if self.surface is None or surface.value < self.surface.value:
                self.surface = surface
            entry = {
                "iteration": self.iterations + outer.iterations,
                "ofv": float(surface.evaluation.ofv[0]),
            }
            if self.problem.penalised:
                entry["penalised"] = surface.value
            self.history.append(entry)
            if self.progress is not None:
                self.progress(Progress(self.settings.label, int(entry["iteration"]), None, surface.value))

        outer = Outer(
            self.objective,
            self.logarithmic,
            held=held,
            tolerance=self.settings.tolerance,
            max_iterations=self.settings.max_iterations - self.iterations,
            lacking=self.lacking,
            watch=watch,
        )
        return outer

    def _search(self, free: Tensor, eta: Tensor) -> Outcome:
        """Search over the parameters, and over the networks' weights where there are any."""
        if not len(self.problem.weights):
            return self._from(free, eta)
        return learn(Point.at(self.objective, free, eta, near=False), self._from, self._watch_weights)

    def _watch_weights(self, point: Point, step: int) -> None:
        self.problem, self.objective = point.problem, point.objective
        n = len(point.free)
        unknown = torch.zeros(n, n, dtype=torch.float64)
        pull = point.evaluation.gradient[0]
        self.surface = Surface(
            point.free, float(point.evaluation.total[0]), pull, unknown, False, point.evaluation
        )
        self.history.append({"iteration": step, "ofv": point.ofv, "penalised": point.value})
        if self.progress is not None:
            stage = f"{self.settings.label}, learning the networks"
            self.progress(Progress(stage, step, None, point.ofv))

    def _from(self, free: Tensor, eta: Tensor) -> Outcome:
        """Search, look for better modes and boundaries, and go on until neither changes anything."""
        held = torch.zeros_like(self.logarithmic)
        for _ in range(MODE_ROUNDS):
            outcome = self._run(self._outer(held), free, eta)
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
        """Search every mode again from zero, from its reflection and from the likeliest of a few points.

        Returns:
            The better modes `[1, subject, q]`, and which subjects have several `[subject]`.
        """
        eta, depth = evaluation.eta[0], evaluation.depth[0]
        if not self.problem.q or not self.objective.conditional:
            return evaluation.eta, torch.zeros_like(depth, dtype=torch.bool)
        starts = torch.stack(
            (torch.zeros_like(eta), -eta, likeliest(self.problem, self.problem.values(free)))
        )
        other = self.objective.modal(free.expand(3, -1), starts, tolerance=ROUGHLY)
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

    def _finish(self, outcome: Outcome) -> Estimate:
        if outcome.second is None:
            surface = outcome.surface
            outcome = replace(outcome, second=self._recheck(surface.free, surface.evaluation)[1])
        wanted = self.settings.kind if outcome.converged or self.settings.evaluate else None
        if wanted is None and self.settings.kind is not None:
            self._say("no standard errors: the estimation did not converge")
        return finished(
            self.objective,
            outcome,
            covariance=wanted,
            iterations=self.iterations,
            notes=self.notes,
            history=self.history,
        )
