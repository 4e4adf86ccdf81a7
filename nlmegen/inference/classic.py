"""What the classic methods have in common: their options, and an estimation over one objective function.

A method of the family (FO, FOCE, FOCEI, Laplace, AGQ) is a frozen dataclass that names its `Objective`; the course of
an estimation, `run.Run`, is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import FitError, ModelError
from ..model.problem import Problem
from . import weights
from .estimate import Estimate, Report
from .objective import Objective
from .run import Run

LOOSEST = 1e-2
"""Largest tolerance: a search that stops farther from its end than this has estimated nothing."""


@dataclass(frozen=True, kw_only=True)
class Classic(ABC):
    """A method that minimises an approximation of -2 log L, and -2 log prior where the page has priors (MAP).

    Args:
        evaluate: only evaluate at the model's present values (MAXEVAL=0).
        covariance: which standard errors: "sandwich" (NONMEM's default), "R" (the Hessian), "S" (the scores), None for
            none; "auto" is "sandwich" for an estimation and None for an evaluation. "R" stands in for "sandwich", and
            a note says so, where no more subjects have data than there are parameters, and on a page with priors.
        max_iterations: largest number of outer iterations.
        tolerance: the search ends when no more than this decrease of the objective is promised; at most 0.01.
        flip_flop: accept absorption slower than elimination. Otherwise (oral, one compartment) the mirror image with
            the faster absorption is estimated, and a note tells the objective of the other.

    Raises:
        FitError: on an unknown option, and by `estimate` where nothing can be estimated.
    """

    evaluate: bool = False
    covariance: Literal["auto", "sandwich", "R", "S"] | None = "auto"
    max_iterations: int = 200
    tolerance: float = 1e-7
    flip_flop: bool = False

    name: ClassVar[str]

    def __post_init__(self) -> None:
        label = self.label
        for name in ("evaluate", "flip_flop"):
            if not isinstance(getattr(self, name), bool):
                raise FitError(f"{label}({name}={getattr(self, name)!r}): expected True or False")
        if self.covariance not in ("auto", "sandwich", "R", "S", None):
            raise FitError(
                f"{label}(covariance={self.covariance!r}): expected 'sandwich', 'R', 'S', 'auto', or None for no"
                " standard errors"
            )
        if self.max_iterations < 0:
            raise FitError(
                f"{label}(max_iterations={self.max_iterations!r}): expected 0 or more (evaluate=True only evaluates)"
            )
        if not 0 < self.tolerance <= LOOSEST:
            raise FitError(
                f"{label}(tolerance={self.tolerance!r}): expected a number above 0 and at most {LOOSEST}, the promised"
                " decrease of the objective at which the search ends; 1e-7 unless given"
            )

    @property
    def label(self) -> str:
        """The method's name in a sentence."""
        return type(self).__name__

    @property
    def kind(self) -> str | None:
        """The covariance that will be computed, "auto" resolved."""
        if self.covariance == "auto":
            return None if self.evaluate else "sandwich"
        return self.covariance

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
