"""What the classic methods have in common: their options, and an estimation over one objective function.

A method of the family (FO, FOCE, FOCEI, Laplace, AGQ) is a frozen dataclass that names its `Objective`; the course of
an estimation, `run.Run`, is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ..errors import FitError, ModelError
from ..model.problem import Problem
from . import weights
from .estimate import Estimate, Report
from .objective import Objective
from .options import Options
from .run import Run

LOOSEST = 1e-2
"""Largest tolerance: a search that stops farther from its end than this has estimated nothing."""


@dataclass(frozen=True, kw_only=True)
class Classic(Options, ABC):
    """A method that minimises an approximation of -2 log L, and -2 log prior where the page has priors (MAP).

    Args:
        max_iterations: largest number of outer iterations.
        tolerance: the search ends when no more than this decrease of the objective is promised; at most 0.01.

    The other options are those of `Options`.

    Raises:
        FitError: on an unknown option, and by `estimate` where nothing can be estimated.
    """

    max_iterations: int = 200
    tolerance: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_iterations < 0:
            raise FitError(
                f"{self.label}(max_iterations={self.max_iterations!r}): expected 0 or more (evaluate=True only"
                " evaluates)"
            )
        if not 0 < self.tolerance <= LOOSEST:
            raise FitError(
                f"{self.label}(tolerance={self.tolerance!r}): expected a number above 0 and at most {LOOSEST}, the"
                " promised decrease of the objective at which the search ends; 1e-7 unless given"
            )

    @abstractmethod
    def objective(self, problem: Problem) -> Objective:
        """The objective function of a problem that this method minimises."""

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate the free parameters of `problem`, starting from the model's present values.

        Args:
            problem: the binding of page and data.
            progress: called with a `Progress` at every iteration.

        Returns:
            An `Estimate`; after Ctrl-C the best so far, not converged.

        Raises:
            FitError: the objective is not finite at the start.
            ModelError: the page has what the method cannot use.
        """
        weights.refuse_unused(problem)
        objective = self.objective(problem)
        if len(problem.weights) and not objective.learns:
            raise ModelError(
                f"{self.label} cannot learn the weights of networks; estimate this page by FOCEI() or ELBO()"
            )
        problem.check(problem.values(problem.start))
        run = Run(problem, objective, self, progress)
        try:
            return run.evaluation() if self.evaluate else run.estimation()
        except KeyboardInterrupt:
            return run.interrupted()
