"""The differential equations of a page, as every route sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from nlmegen.errors import ModelError, nearest
from nlmegen.maths.taylor import Number
from nlmegen.structure.dose import Dose
from nlmegen.structure.equations import Equations


class Page(Protocol):
    """What a page with `dynamics` offers."""

    def dynamics(self, t: Any, a: Any, p: Any) -> Mapping[str, Any]:
        """Time derivatives of the amounts, by compartment."""

    def initial(self, p: Any) -> Mapping[str, Any]:
        """Amounts at the start, by compartment; zero where nothing is said."""

    def dosing(self, p: Any) -> Mapping[str, Any]:
        """Lags and bioavailabilities (`Dose`) by compartment."""

    @property
    def weights(self) -> Tensor:
        """Network weights `[W]`."""


Namespace = Callable[[str, Mapping[str, Any]], Any]
"""From a kind ("a", "p") and values by name to what a page reads them from."""


class System:
    """The equations of a page, run on whatever numbers they are given.

    Args:
        page: the page, its network weights in it.
        namespace: how values by name are handed to the page.
        compartments: names of the compartments, in order.
        equations: the page traced to symbols, or None when it cannot be.
    """

    def __init__(
        self, page: Page, namespace: Namespace, compartments: tuple[str, ...], equations: Equations | None
    ) -> None:
        self.page, self.namespace = page, namespace
        self.compartments, self.equations = compartments, equations

    def rates(self, t: Number, y: Sequence[Number], p: Mapping[str, Number]) -> list[Number]:
        """Time derivatives of the amounts `y` (one number a compartment), infusions not included."""
        amounts = dict(zip(self.compartments, y, strict=True))
        out = self.page.dynamics(t, self.namespace("a", amounts), self.namespace("p", p))
        return [_number(out[name]) for name in self.compartments]

    def initial(self, p: Mapping[str, Number]) -> list[Number]:
        """Amounts at the start."""
        out = self.page.initial(self.namespace("p", p))
        return [_number(out.get(name, 0.0)) for name in self.compartments]


class Carried:
    """Equations whose amounts at the start are D further parameters, by name.

    Args:
        system: the equations.
        equations: those of `carrying`, traced, or None.
    """

    def __init__(self, system: System, equations: Equations | None) -> None:
        self.compartments, self.rates, self.equations = system.compartments, system.rates, equations
        self.names = tuple(f"{name} at the start" for name in system.compartments)

    def initial(self, p: Mapping[str, Number]) -> list[Number]:
        """Amounts at the start."""
        return [p[name] for name in self.names]


def _number(x: Any) -> Number:
    if isinstance(x, (int, float)):
        return torch.full((1, 1), float(x), dtype=torch.float64)
    return x  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Discovered:
    """What a page's methods name.

    Attributes:
        compartments: the keys of what `dynamics` returns, in order.
        parameters: what `initial`, `dynamics` and `dosing` read of p, in order of first reading.
        dosing_parameters: what `dosing` reads of it.
        starts: whether `initial` says anything.
        dosed: what `dosing` returned, by compartment.
    """

    compartments: tuple[str, ...]
    parameters: tuple[str, ...]
    dosing_parameters: tuple[str, ...]
    starts: bool
    dosed: Mapping[str, Dose]


class Ones:
    """Stands for `a` or `p`: whatever is read is 1, and its name is kept."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        self.names[name] = None
        return torch.ones(1, 1, dtype=torch.float64)

    __getitem__ = __getattr__


def discover(page: Page) -> Discovered:
    """Run the three methods of a page once on ones, to learn the names they use.

    Raises:
        ModelError: when one does not return what it should, or names a compartment that `dynamics` does not return.
    """
    a, p, dosing_p = Ones(), Ones(), Ones()
    initial = _dict(page.initial(p), "initial", "amounts")
    rates = _dict(page.dynamics(torch.ones(1, 1, dtype=torch.float64), a, p), "dynamics", "time derivatives")
    doses = _dict(page.dosing(dosing_p), "dosing", "nl.Dose")
    if not rates:
        raise ModelError("dynamics returns nothing; return the time derivative of every compartment, by name")
    for method, names in (
        ("dynamics reads a.", a.names),
        ("initial names ", initial),
        ("dosing names ", doses),
    ):
        for name in names:
            if name not in rates:
                raise ModelError(
                    f"{method}{name}, which is no key of the dict that dynamics returns.{nearest(str(name), rates)}"
                )
    for name, dose in doses.items():
        if not isinstance(dose, Dose):
            raise ModelError(f"dosing: {name} must be nl.Dose(...), got {type(dose).__name__}")
    names = p.names | dosing_p.names
    return Discovered(tuple(rates), tuple(names), tuple(dosing_p.names), bool(initial), doses)


def _dict(out: Any, method: str, what: str) -> dict[str, Any]:
    if not isinstance(out, dict):
        raise ModelError(f"{method} must return a dict of {what} by compartment, got {type(out).__name__}")
    return out
