"""How an ODE page is solved: which route, which method, how accurately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from nlmegen.errors import ModelError

Route = Literal["auto", "compiled", "expm", "torch"]
Method = Literal["auto", "explicit", "stiff"]


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
        rtol: relative tolerance of a step; 3e-7 for explicit steps, 1e-7 for stiff ones when not given.
        floor: share of an amount's largest value below which relative accuracy is given up; 0.03 for explicit steps,
            1e-5 for stiff ones (whose amounts may fall far in an instant) when not given.
        max_steps: steps allowed for one subject, all its records together.
        threads: how many threads may share the subjects of a compiled page, where there are enough of them to pay; no
            result depends on it.

    Raises:
        ModelError: on an unknown route or method, or a number outside its range.

    Example:
        >>> Solver(method="stiff").tolerances("stiff").rtol
        1e-07
    """

    route: Route = "auto"
    method: Method = "auto"
    rtol: float | None = None
    floor: float | None = None
    max_steps: int = 10_000
    threads: int = 2

    def __post_init__(self) -> None:
        for name, legal in (("route", get_args(Route)), ("method", get_args(Method))):
            value = getattr(self, name)
            if value not in legal:
                words = ", ".join(repr(x) for x in legal)
                raise ModelError(f"Solver({name}={value!r}): expected one of {words}")
        if self.rtol is not None and not 1e-13 <= self.rtol <= 1e-2:
            raise ModelError(
                f"Solver(rtol={self.rtol!r}): expected a number from 1e-13 to 0.01, for example 1e-7"
            )
        if self.floor is not None and not 0 < self.floor <= 1:
            raise ModelError(
                f"Solver(floor={self.floor!r}): expected a number above 0 and at most 1, for example 1e-3"
            )
        if self.threads < 1:
            raise ModelError(f"Solver(threads={self.threads!r}): expected 1 or more")
        if self.max_steps < 1:
            raise ModelError(f"Solver(max_steps={self.max_steps!r}): expected 1 or more, for example 10000")

    def tolerances(self, method: Literal["explicit", "stiff"]) -> Tolerances:
        """The numbers that a method goes by."""
        stiff = method == "stiff"
        rtol = (1e-7 if stiff else 3e-7) if self.rtol is None else self.rtol
        floor = (1e-5 if stiff else 0.03) if self.floor is None else self.floor
        return Tolerances(rtol, floor, self.max_steps)


@dataclass(frozen=True)
class Tolerances:
    """Tolerances of one method, see `Solver`."""

    rtol: float
    floor: float
    max_steps: int
