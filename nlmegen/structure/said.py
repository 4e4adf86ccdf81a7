"""What a page's `dosing` says of doses, for structures that do not step the page's own equations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nlmegen.errors import ModelError, nearest
from nlmegen.maths.taylor import Number
from nlmegen.structure.dose import Dose
from nlmegen.structure.points import Moved, moves
from nlmegen.structure.system import Namespace, Ones


class DosedPage(Protocol):
    """A page that models its doses."""

    def dosing(self, p: Any) -> Mapping[str, Any]:
        """`Dose` by compartment."""


class PageDoses:
    """The method `dosing` of a page, by the names it uses.

    Args:
        page: the page.
        namespace: how values by name are handed to the page.
        compartments: names of the structure's compartments, in order.

    Attributes:
        parameters: what `dosing` reads of p, in order of first reading.
        said: what it returned, by compartment, on ones: which words it uses, not what they are.

    Raises:
        ModelError: when `dosing` names a compartment that the structure does not have, or returns no `Dose`.
    """

    def __init__(self, page: DosedPage, namespace: Namespace, compartments: Sequence[str]) -> None:
        self.page, self.namespace, self.compartments = page, namespace, tuple(compartments)
        p = Ones()
        self.said: Mapping[str, Dose] = page.dosing(p)
        self.parameters = tuple(p.names)
        if not isinstance(self.said, dict):
            raise ModelError(
                f"dosing must return a dict of nl.Dose by compartment, got {type(self.said).__name__}"
            )
        for name, dose in self.said.items():
            if name not in self.compartments:
                raise ModelError(
                    f"dosing names {name}, which is no compartment of the structure."
                    f"{nearest(str(name), self.compartments)}"
                )
            if not isinstance(dose, Dose):
                raise ModelError(f"dosing: {name} must be nl.Dose(...), got {type(dose).__name__}")

    def numbers(self, p: Any) -> dict[str, Number]:
        """The parameters that `dosing` reads."""
        return {name: getattr(p, name) for name in self.parameters}

    def moved(self, numbers: Mapping[str, Number]) -> dict[int, Moved]:
        """What it says at these parameters, by position of the compartment."""
        return moves(self.page.dosing(self.namespace("p", numbers)), self.compartments)
