"""Laplace's approximation and adaptive Gauss-Hermite quadrature as methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import FitError
from ..maths.quadrature import affordable_nodes
from ..model.problem import Problem
from .classic import Classic
from .nodes import LaplaceObjective, QuadratureObjective
from .objective import Objective

GRID = 20_000
"""Nodes a subject that a grid may have."""


@dataclass(frozen=True, kw_only=True)
class Laplace(Classic):
    """Laplace's approximation with the exact Hessian at the conditional modes, NONMEM's METHOD=1 LAPLACE (see `nodes`).

    Where the Hessian at the end of a search for a mode is indefinite the expected information stands in, and the
    subject is flagged.

    The options are those of `inference.classic.Classic` and `inference.options.Options`.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.Laplace())
        >>> result.ofv_source
        'laplace'
    """

    name: ClassVar[str] = "laplace"

    def objective(self, problem: Problem) -> Objective:
        """See `Classic`."""
        return LaplaceObjective(problem)


@dataclass(frozen=True, kw_only=True)
class AGQ(Classic):
    """Maximum likelihood by adaptive Gauss-Hermite quadrature around the conditional modes (see `nodes`).

    With nodes enough for its random effects this is the likelihood itself: on theophylline 5 a dimension leave .03 of
    -2 log L, 9 leave .002. The cost grows as nodes to the power of the number of random effects. One node is `Laplace`.

    Args:
        nodes: a dimension.

    The other options are those of `inference.classic.Classic` and `inference.options.Options`.

    Raises:
        FitError: by `estimate`, where the grid of a subject would have more than 20,000 nodes.

    Example:
        >>> import nlmegen as nl
        >>> result = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.AGQ())
        >>> round(-2 * result.log_likelihood, 2)
        347.1
    """

    nodes: int = 9

    name: ClassVar[str] = "agq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.nodes) is not int or self.nodes < 1:
            raise FitError(
                f"AGQ(nodes={self.nodes!r}): expected a whole number of nodes a dimension, 9 unless given"
            )

    def objective(self, problem: Problem) -> Objective:
        """See `Classic`."""
        if self.nodes**problem.q > GRID:
            most = affordable_nodes(self.nodes, problem.q, GRID)
            remedy = f"use AGQ(nodes={most})" if most > 2 else "use Laplace(), Importance() or SAEM()"
            raise FitError(
                f"AGQ(nodes={self.nodes}) over {problem.q} random effects needs {self.nodes}^{problem.q} nodes a"
                f" subject, at most {GRID} are allowed; {remedy}"
            )
        return QuadratureObjective(problem, self.nodes)
