"""The first-order methods: FO, FOCE and FOCEI, NONMEM's METHOD=0, METHOD=1 and METHOD=1 INTER."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import FitError
from ..model.compiled import unusual
from ..model.problem import Problem
from .classic import Classic
from .conditional import FOCEIObjective, FOCEObjective
from .firstorder import FOObjective
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class FOCEI(Classic):
    """First-order conditional estimation with interaction, NONMEM's METHOD=1 INTER (see `conditional`).

    Networks of the page are learned with the parameters, their penalties added to the objective while they are;
    standard errors are those of the parameters given the weights.

    The options are those of `inference.classic.Classic` and `inference.options.Options`.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())
        >>> round(result.ofv, 2)
        104.32
    """

    name: ClassVar[str] = "focei"

    def objective(self, problem: Problem) -> Objective:
        """See `Classic`."""
        _refuse(problem, "FOCEI")
        return FOCEIObjective(problem)


@dataclass(frozen=True, kw_only=True)
class FOCE(Classic):
    """First-order conditional estimation without interaction, NONMEM's METHOD=1 (see `conditional`).

    The residual variance is taken at eta = 0. Where it does not depend on the prediction (additive or log-normal error)
    this is FOCEI; where it does, FOCEI is the better approximation and costs the same.

    The options are those of `inference.classic.Classic` and `inference.options.Options`; networks of the page are
    learned as by FOCEI.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCE())
        >>> result.ofv_source
        'foce'
    """

    name: ClassVar[str] = "foce"

    def objective(self, problem: Problem) -> Objective:
        """See `Classic`."""
        _refuse(problem, "FOCE")
        return FOCEObjective(problem)


@dataclass(frozen=True, kw_only=True)
class FO(Classic):
    """The first-order method, NONMEM's METHOD=0 (see `firstorder`): fast, robust, and biased where eta is large.

    The model is linearised at eta = 0. The etas reported are the conditional modes at the estimates (POSTHOC), their
    covariances those of Laplace's approximation there.

    The options are those of `inference.classic.Classic` and `inference.options.Options`.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FO())
        >>> result.ofv_source
        'fo'
    """

    name: ClassVar[str] = "fo"

    def objective(self, problem: Problem) -> Objective:
        """See `Classic`."""
        _refuse(problem, "FO")
        return FOObjective(problem)


def _refuse(problem: Problem, method: str) -> None:
    """Raise a FitError where the observations are none that a first-order method can take."""
    if not problem.measured:
        raise FitError(
            f"{method} takes observations that are Gaussian and measured, and here {unusual(problem)}; use Laplace(),"
            " AGQ(), SAEM(), Importance() or ELBO() (NONMEM asks for LAPLACE here, too)"
        )
    if problem.scaled and method != "FOCEI":
        raise FitError(
            f"{method} takes the residual variance at eta = 0, so that random effects on the residual error would"
            " change nothing; use FOCEI(), Laplace(), AGQ(), SAEM(), Importance() or ELBO()"
        )
