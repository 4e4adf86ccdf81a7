"""Methods in a row: each begins where the one before it ended.

    nl.fit(model, data, [nl.SAEM(seed=1), nl.Importance(seed=1)])

A method that finds its way from anywhere comes first, one that is exact near the optimum last; the numbers of the fit
(likelihood, standard errors, posterior) are those of the last.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from ..errors import FitError
from ..model.problem import Problem
from .estimate import Estimate, Method, Report
from .methods import JOINT


@dataclass(frozen=True)
class Chain:
    """Several methods, one after the other.

    Args:
        methods: two or more, each of another kind.

    Raises:
        FitError: on fewer than two, on what is no method, or on a method named twice.

    Example:
        >>> from nlmegen.inference.foce import FOCEI
        >>> from nlmegen.inference.elbo import ELBO
        >>> Chain((FOCEI(), ELBO(seed=1))).name
        'focei+elbo'
    """

    methods: tuple[Method, ...]

    def __post_init__(self) -> None:
        for method in self.methods:
            if isinstance(method, type) or not hasattr(method, "estimate"):
                raise FitError(f"a chain takes method objects such as nl.SAEM(), got {method!r}")
            if isinstance(method, Chain):
                raise FitError("a chain holds no other chain; write all its methods in one list")
        names = [method.name for method in self.methods]
        if len(names) < 2:
            raise FitError(
                f"a chain needs two methods or more, got {len(names)}; hand a single method to fit as it is"
            )
        for name in names:
            if names.count(name) > 1:
                raise FitError(f"a chain takes each method once, got {name} {names.count(name)} times")

    @property
    def name(self) -> str:
        """The names of its methods, joined."""
        return JOINT.join(method.name for method in self.methods)

    def estimate(self, problem: Problem, progress: Report | None = None) -> Estimate:
        """Estimate by each method in turn; the last one's `Estimate`, with the history and notes of all.

        A method that does not converge hands its best on all the same, and a note says so. Ctrl-C ends the chain with
        what the running method has.
        """
        history: list[dict[str, object]] = []
        notes: list[str] = []
        iterations = 0
        for place, method in enumerate(self.methods):
            last = place + 1 == len(self.methods)
            found = (method if last else _without_errors(method)).estimate(problem, progress)
            history += [{"method": method.name, **entry} for entry in found.history]
            iterations += found.iterations
            if last:
                break
            end = "converged" if found.converged else f"did not converge ({found.reason})"
            notes.append(
                f"{method.name} {end}, OFV {found.ofv:.4f} ({found.ofv_source});"
                f" {self.methods[place + 1].name} began there"
            )
            if "interrupted" in found.reason:
                notes[-1] = f"interrupted before {self.methods[place + 1].name} began"
                break
            problem = _from(problem, found)
        found.history, found.iterations = history, iterations
        found.notes = notes + found.notes
        return found


def _from(problem: Problem, found: Estimate) -> Problem:
    """The problem started at estimates."""
    weights: Tensor | None = found.weights
    return (problem if weights is None else problem.with_weights(weights)).starting(found.free)


def _without_errors(method: Any) -> Method:
    """The method without standard errors, which only the last of a chain is asked for."""
    able = any(field.name == "covariance" and field.init for field in fields(method))
    plain: Method = replace(method, covariance=None) if able else method
    return plain
