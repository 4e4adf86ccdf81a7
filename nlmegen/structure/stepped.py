"""The structure of a page with `dynamics`: which route solves it, and what it hands back.

    compiled   the page as machine code (`kernel`), where llvmlite is installed and the page can be traced to symbols
    expm       pages linear in the amounts, by the matrix exponential (`affine`)
    torch      any page, in Taylor arithmetic: explicit through torchdiffeq (`ode`), or stiff (`implicit`)

`Solver(route="auto")` takes the first that can; the reason why an earlier one could not is kept for the fit's notes.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nlmegen.errors import DataError, ModelError
from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.batch import Compiled, Kernels, Record
from nlmegen.structure.closed import Structure
from nlmegen.structure.compiled import Amounts, by_segments, carrying
from nlmegen.structure.equations import Equations
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solver import Solver
from nlmegen.structure.switches import jumps
from nlmegen.structure.system import Namespace, Page, System, discover
from nlmegen.structure.timeline import Moved, Timeline, at_segments
from nlmegen.structure.trace import Untraceable

NO_COMPILER = 'llvmlite is not installed (pip install "nlmegen[fast]" brings it)'


class Solved(dict[str, Number]):
    """Amounts by compartment, and which rows could be solved.

    Attributes:
        status: 0 where a row was solved, `[*draw, subject]`.
    """

    def __init__(self, amounts: Iterable[tuple[str, Number]], status: Tensor) -> None:
        super().__init__(amounts)
        self.status = status


class Stepped(Structure):
    """The differential equations of a page, solved for every subject from dose to dose.

    Args:
        page: the page, with `dynamics`, `initial` and `dosing`.
        solver: settings.
        namespace: how values by name are handed to the page.

    Attributes:
        parameters: the individual parameters that the three methods read.
        compartments: the keys of what `dynamics` returns, in order.
        untraced: why the page cannot be compiled, or "".

    Raises:
        ModelError: on a page that is wrong under any route.
    """

    def __init__(self, page: Page, solver: Solver, namespace: Namespace) -> None:
        self.page, self.solver, self.namespace = page, solver, namespace
        self.untraced, self.record = "", Record()
        equations: Equations | None = None
        found = discover(page)
        self.compartments = found.compartments
        self.dosed = found.dosed
        try:
            equations = Equations.trace(
                page.dynamics, page.initial, len(page.weights), found.dosing_parameters
            )
            self.parameters = equations.parameters
        except Untraceable as reason:
            self.untraced, self.parameters = str(reason), found.parameters
        self.equations = equations
        self.has_llvm = importlib.util.find_spec("llvmlite") is not None
        self.shared_error = 100 * solver.rtol
        if equations is None and solver.route in ("compiled", "expm"):
            raise ModelError(f"Solver(route={solver.route!r}): the page cannot be traced: {self.untraced}")
        if solver.route == "expm" and equations is not None and not equations.linear:
            raise ModelError(
                'Solver(route="expm"): the page is not linear in the amounts; use route="compiled" or "torch"'
            )
        if equations is not None:
            moved = frozenset(equations.parameters.index(name) for name in found.dosing_parameters)
            self.kernels, self.carrying = Kernels(equations, moved), Kernels(carrying(equations))

    def on(self, page: Any) -> Stepped:
        """The same structure for the same page at other network weights."""
        other = copy.copy(self)
        other.page = page
        return other

    def afresh(self) -> Stepped:
        """The same structure with nothing recorded; equations and machine code are shared."""
        other = copy.copy(self)
        other.record = Record()
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Stepped:
        """A structure for a copy of the page; equations and machine code do not change, and are shared."""
        memo[id(self)] = other = self.afresh()
        other.page = copy.deepcopy(self.page, memo)
        return other

    # -- solving --------------------------------------------------------------------------------------------------
    def solve(self, p: Any, schedule: Schedule) -> Mapping[str, Number]:
        """Amounts by compartment, see `Structure.solve`; NaN for a subject that could not be solved."""
        numbers = {name: getattr(p, name) for name in self.parameters}
        varying = any(x.shape[-1] > 1 for x in numbers.values())
        self._check_doses(schedule)
        route = self.route(varying)
        if route == "compiled":
            try:
                amounts = self._compiled(numbers, varying, schedule)
            except Untraceable as reason:  # too large to be compiled in this order, by this method
                if self.solver.route == "compiled":
                    raise ModelError(f'Solver(route="compiled"): {reason}; use route="auto"') from None
                self.untraced, route = str(reason), "torch"
            else:
                self._count(route, amounts.status)
                return amounts
        solved, status = self._in_torch(route, numbers, varying, schedule)
        self._count(route, status)
        return Solved(zip(self.compartments, solved, strict=True), status)

    def _compiled(self, numbers: Mapping[str, Number], varying: bool, schedule: Schedule) -> Amounts | Solved:
        assert self.equations is not None
        if not varying:
            dosing = self._dosing if self.dosed else None
            page = Compiled(self.kernels, self.solver, self.page.weights, self.record)
            return Amounts(page, numbers, schedule, dosing)
        own = {name: numbers[name] for name in self.equations.parameters}
        initial = self._system().initial
        page = Compiled(self.carrying, self.solver, self.page.weights, self.record)
        solved, status = by_segments(page, own, schedule, initial)
        return Solved(zip(self.compartments, solved, strict=True), status)

    def route(self, varying: bool = False) -> str:
        """The route that solves this page, its parameters varying in time or not."""
        asked = self.solver.route
        if asked != "auto":
            if asked == "compiled" and (reason := self.not_compiled(varying)):
                raise ModelError(f'Solver(route="compiled"): {reason}; use route="auto"')
            return asked
        if not self.not_compiled(varying):
            return "compiled"
        e = self.equations
        linear = e is not None and e.linear and not e.n_weights
        return "expm" if linear else "torch"

    def not_compiled(self, varying: bool = False) -> str:
        """Why the compiled route cannot be taken, in words; "" when it can."""
        if self.untraced:
            return self.untraced
        if varying and self.dosed:
            return "parameters vary in time with a covariate, and doses are modelled"
        return "" if self.has_llvm else NO_COMPILER

    def no_third_derivatives(self, varying: bool = False) -> str:
        """See `Structure`."""
        if self.dosed and self.route(varying) == "compiled":
            return "its doses are modelled, and the compiled solver has no third derivatives of such doses"
        return ""

    def _system(self) -> System:
        return System(self.page, self.namespace, self.compartments, self.equations)

    def _in_torch(
        self, route: str, numbers: Mapping[str, Number], varying: bool, schedule: Schedule
    ) -> tuple[list[Number], Tensor]:
        whole, places = schedule.root
        if self.dosed:
            line = Timeline.build(schedule if varying else schedule.essential, self._dosing(numbers))
        elif varying:
            line = Timeline.build(schedule)
        else:
            line = whole.timeline.select(places)

        def at(point: int) -> Mapping[str, Number]:
            if not varying:
                return numbers
            segment = line.segment[..., point, None]
            return {name: at_segments(x, segment) for name, x in numbers.items()}

        if route == "expm":
            from nlmegen.structure.affine import affine

            assert self.equations is not None
            return affine(self.equations, at, line, self.solver)
        system = self._system()
        if self.solver.method != "stiff":
            from nlmegen.structure.ode import explicit

            solved, status = explicit(system, at, line, self.solver)
            if self.solver.method == "explicit" or not bool((status != 0).any()):
                return solved, status
        from nlmegen.structure.implicit import stiff

        return stiff(system, at, line, self.solver)

    def _dosing(self, numbers: Mapping[str, Number]) -> dict[int, Moved]:
        """Lags and bioavailabilities by index of the compartment."""
        out = self.page.dosing(self.namespace("p", numbers))
        return {
            self.compartments.index(name): Moved(_quantity(dose.lag), _quantity(dose.bioavailability))
            for name, dose in out.items()
        }

    def _check_doses(self, schedule: Schedule) -> None:
        for name, dose in self.dosed.items():
            if dose.bioavailability is not None and schedule.rate[self.compartments.index(name)] is not None:
                raise DataError(
                    f"the page models the bioavailability of doses into {name}, and the data hold infusions into it: "
                    "bioavailability of infusions is not supported yet; give the rate that arrives"
                )

    # -- what happened --------------------------------------------------------------------------------------------
    def _count(self, route: str, status: Tensor) -> None:
        self.record.routes[route] = self.record.routes.get(route, 0) + status.numel()
        self.record.failed += int((status != 0).sum())

    def notes(self) -> list[str]:
        """Which routes have run and why, in words."""
        routes = self.record.routes
        words = []
        if "compiled" in routes:
            how = "the stiff method" if self._stiff_alone else "explicit steps"
            words.append(f"the differential equations ran compiled, by {how}")
            if self.record.stiff and not self._stiff_alone:
                words.append(
                    f"for {self.record.stiff} solves of one subject explicit steps were too many; "
                    "the stiff method took over"
                )
            if reason := self.record.no_stiff:
                words.append(
                    f"explicit steps were too many, and there was no stiff method to take over: {reason}"
                )
        for route, name in (("expm", "by the matrix exponential"), ("torch", "through torch, not compiled")):
            if route in routes:
                reason = self.not_compiled(varying=self.equations is not None)
                asked = self.solver.route == route
                words.append(f"the differential equations ran {name}: {'as asked' if asked else reason}")
        words += self._switches if routes else ()
        if self.record.failed:
            words.append(
                f"{self.record.failed} solves of one subject failed along the way (too many or too small steps, or "
                "numbers that are not finite) and counted as impossible"
            )
        return words

    @cached_property
    def _switches(self) -> tuple[str, ...]:
        """What cannot be right about rates that jump, in words."""
        moments = set() if self.equations is None else jumps(self.equations)
        words = []
        if depends := sorted(moments - {"time"}):
            words.append(
                f"the rates jump (torch.where) at moments that depend on {' and '.join(depends)}: predictions are "
                "right, their derivatives lack the jump, and with them modes, objective and standard errors; make the "
                "switch smooth (torch.sigmoid), or write it as a dose with nl.Dose(lag=...)"
            )
        if "time" in moments:
            words.append(
                "the rates jump (torch.where) at set times, which steps may pass over; put a record (EVID 2) at each"
            )
        return tuple(words)

    @property
    def _stiff_alone(self) -> bool:
        return self.solver.method == "stiff" or self.record.labours

    def describe(self) -> str:
        """One line: the compartments and the parameters."""
        count = len(self.compartments)
        return (
            f"differential equations of {count} compartment{'s' if count > 1 else ''} "
            f"({', '.join(self.compartments)}; {', '.join(self.parameters)})"
        )

    def __repr__(self) -> str:
        return f"Stepped({', '.join(self.compartments)})"


def _quantity(x: Any) -> Number | None:
    if x is None or isinstance(x, (Tensor, Taylor)):
        return x
    return torch.full((1, 1), float(x), dtype=torch.float64)
