"""How an ODE page is solved: which route, which method, how accurately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nlmegen.errors import ModelError

Route = Literal["auto", "compiled", "expm", "torch"]
Method = Literal["auto", "explicit", "stiff"]

NOT_SOLVED = (
    "the differential equations cannot be solved there: check the starting values and covariates (amounts that grow "
    "without bound, a steady state where more comes in than can go out, roots and logarithms of negative amounts, a "
    'negative lag or one beyond the dosing interval), else try nl.Solver(method="stiff") or a larger max_steps'
)


@dataclass(frozen=True)
class Solver:
    """Settings of the solver of an ODE page, `solver = nl.Solver(...)` on the page or `model.with_solver(...)`.

    The error of a step in amount y_i is measured against

        rtol * max(|y_i|, floor * largest |y_i| so far) ,

    that of a sensitivity dy_i/dp_q, multiplied by |p_q|, likewise; the step is as long as the worst of them allows,
    for every subject apart.

    Args:
        route: "compiled" (the page as machine code; needs llvmlite), "expm" (pages linear in the amounts, by the matrix
            exponential), "torch" (any page); "auto" takes the first that can.
        method: "explicit" (Runge-Kutta), "stiff" (implicit), or "auto": explicit, and stiff for the subjects where
            explicit steps become too many.
        rtol: relative tolerance of a step.
        floor: share of an amount's largest value below which relative accuracy is given up. (Errors of late, low
            concentrations count under a proportional or log-normal residual error: 1e-3 moved an objective by 0.2.)
        max_steps: steps allowed for one subject, all its records together.
        threads: how many threads may share the subjects of a compiled page, where there are enough of them to pay; no
            result depends on it.

    Raises:
        ModelError: on an unknown route or method, or a number outside its range.

    Example:
        >>> Solver(method="stiff").rtol
        3e-07
    """

    route: Route = "auto"
    method: Method = "auto"
    rtol: float = 3e-7
    floor: float = 1e-6
    max_steps: int = 10_000
    threads: int = 2

    def __post_init__(self) -> None:
        for name, legal in (("route", get_args(Route)), ("method", get_args(Method))):
            value = getattr(self, name)
            if value not in legal:
                words = ", ".join(repr(x) for x in legal)
                raise ModelError(f"Solver({name}={value!r}): expected one of {words}")
        for name, low, high in (("rtol", 1e-13, 1e-2), ("floor", 1e-300, 1.0)):
            value, usual = getattr(self, name), getattr(type(self), name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ModelError(
                    f"Solver({name}={value!r}): expected a number from {low:g} to {high:g}; {usual:g} unless given"
                )
        for name in ("max_steps", "threads"):
            value, usual = getattr(self, name), getattr(type(self), name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ModelError(
                    f"Solver({name}={value!r}): expected a whole number of at least 1; {usual} unless given"
                )
