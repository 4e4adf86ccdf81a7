"""The structure of a page with `dynamics`: which route solves it, and what it hands back.

    compiled   the page as machine code (`kernel`), where llvmlite is installed and the page can be traced to symbols
    expm       pages linear in the amounts, by the matrix exponential (`affine`)
    torch      any page, in Taylor arithmetic: explicit through torchdiffeq (`ode`), or stiff (`implicit`)

`Solver(route="auto")` takes the first that can; the reason why an earlier one could not is kept for the fit's notes.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor

from nlmegen.errors import DataError, ModelError
from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.batch import Compiled, Kernels, Record
from nlmegen.structure.chain import order_of
from nlmegen.structure.closed import Structure
from nlmegen.structure.compiled import Amounts, by_segments, carrying, over_interval
from nlmegen.structure.equations import Equations
from nlmegen.structure.lowering import Recurring, steady_states
from nlmegen.structure.points import moves
from nlmegen.structure.recurring import at_records
from nlmegen.structure.rows import Parameters
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solver import Solver
from nlmegen.structure.steady import recurs, steady_state
from nlmegen.structure.switches import fed, told
from nlmegen.structure.system import Carried, Namespace, Page, System, discover
from nlmegen.structure.timeline import Moved, Timeline, at_segments
from nlmegen.structure.trace import Untraceable

NO_THIRD = "its steady states have no third derivatives"
BEYOND = "parameters vary in time or reverse mode is wanted, and doses are at steady state or modelled"
STEADY = 1e-5  # a last Newton step towards a steady state, over the amounts
FINER = 0.01  # relative tolerance of the steps of one interval in the end, as a share of the solver's
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
        self.dosed, self.starts = found.dosed, found.starts
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
            # a steady state depends on every parameter; one interval of it starts at given amounts
            self.settled = Kernels(equations, frozenset(range(len(equations.parameters))))
            self.interval = Kernels(carrying(equations), moved)

    @property
    def by_record(self) -> bool:
        """See `Structure`."""
        return bool(self.dosed) or self.starts

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
    def solve(self, p: Any, schedule: Schedule, given: Any = None) -> Mapping[str, Number]:
        """Amounts by compartment, see `Structure.solve`; NaN for a subject that could not be solved.

        Raises:
            DataError: on records that ask of the page what it does not say, or of the equations what they cannot do.
        """
        numbers = {name: getattr(p, name) for name in self.parameters}
        doses = numbers if given is None else {name: getattr(given, name) for name in self.parameters}
        varying = any(x.shape[-1] > 1 for x in (*numbers.values(), *doses.values()))
        self._check(schedule)
        route = self.route(varying, schedule)
        if route == "compiled" and (reason := self._beyond(numbers, schedule)):
            if self.solver.route == "compiled":
                raise ModelError(f'Solver(route="compiled"): {reason}; use route="auto"')
            route = "torch"
        if route == "compiled":
            try:
                amounts = self._compiled(numbers, doses, varying, schedule)
            except Untraceable as reason:  # too large to be compiled in this order, by this method
                if self.solver.route == "compiled":
                    raise ModelError(f'Solver(route="compiled"): {reason}; use route="auto"') from None
                self.untraced, route = str(reason), "torch"
            else:
                self._count(route, amounts.status)
                return amounts
        solved, status = self._in_torch(route, numbers, doses, varying, schedule)
        self._count(route, status)
        return Solved(zip(self.compartments, solved, strict=True), status)

    def _compiled(
        self, numbers: Mapping[str, Number], doses: Mapping[str, Number], varying: bool, schedule: Schedule
    ) -> Amounts | Solved:
        assert self.equations is not None
        if not varying:
            lines = partial(self._line, "compiled") if self.dosed or not schedule.plain else None
            kernels = self.settled if steady_states(schedule) else self.kernels
            page = Compiled(kernels, self.solver, self.page.weights, self.record)
            return Amounts(page, numbers, schedule, lines)
        own = {name: numbers[name] for name in self.equations.parameters}
        initial = self._system().initial(doses)  # those of the first record, or of a reset
        page = Compiled(self.carrying, self.solver, self.page.weights, self.record)
        solved, status = by_segments(page, own, schedule, initial)
        return Solved(zip(self.compartments, solved, strict=True), status)

    def route(self, varying: bool = False, schedule: Schedule | None = None) -> str:
        """The route that solves this page, its parameters varying in time or not."""
        asked = self.solver.route
        if asked != "auto":
            if asked == "compiled" and (reason := self.not_compiled(varying, schedule)):
                raise ModelError(f'Solver(route="compiled"): {reason}; use route="auto"')
            return asked
        if not self.not_compiled(varying, schedule):
            return "compiled"
        e = self.equations
        linear = e is not None and e.linear and not e.n_weights
        return "expm" if linear else "torch"

    def not_compiled(self, varying: bool = False, schedule: Schedule | None = None) -> str:
        """Why the compiled route cannot be taken, in words; "" when it can."""
        if self.untraced:
            return self.untraced
        if varying and self.dosed:
            return "parameters vary in time with a covariate, and doses are modelled"
        if varying and schedule is not None and not schedule.plain:
            return "parameters vary in time, and records hold steady states or switch compartments off"
        return "" if self.has_llvm else NO_COMPILER

    def no_third_derivatives(self, varying: bool = False) -> str:
        """See `Structure`."""
        if self.dosed and self.route(varying) == "compiled":
            return "its doses are modelled, and the compiled solver has no third derivatives of such doses"
        return ""

    def _system(self) -> System:
        return System(self.page, self.namespace, self.compartments, self.equations)

    def _beyond(self, numbers: Mapping[str, Number], schedule: Schedule) -> str:
        """Why reverse mode cannot pass through the compiled route here, in words; "" when it can, or is not wanted."""
        if not torch.is_grad_enabled():
            return ""
        weights = self.page.weights.requires_grad
        if steady_states(schedule):
            if weights:
                return "its steady states have no gradient in network weights"
            return NO_THIRD if _attached(numbers.values()) and order_of(*numbers.values()) > 1 else ""
        if not (weights and self.dosed):
            return ""
        given = self._dosing({name: cast(Tensor, value_of(x)).detach() for name, x in numbers.items()})
        moved = [x for dose in given.values() for x in vars(dose).values() if x is not None]
        return "doses that networks model have no gradient in weights" if _attached(moved) else ""

    def _in_torch(
        self,
        route: str,
        numbers: Mapping[str, Number],
        doses: Mapping[str, Number],
        varying: bool,
        schedule: Schedule,
    ) -> tuple[list[Number], Tensor]:
        whole, places = schedule.root
        if self.dosed or not schedule.plain:
            late = numbers if varying and doses is not numbers else None
            line = self._line(route, doses, schedule if varying else schedule.essential, varying, late)
        elif varying:
            line = Timeline.build(schedule)
        else:
            line = whole.timeline.select(places)

        def at(point: int) -> Mapping[str, Number]:
            if not varying:
                return numbers
            segment = line.segment[..., point, None]
            return {name: at_segments(x, segment) for name, x in numbers.items()}

        system = self._system()
        if varying and self.starts:
            # PREDPP: amounts at the start are those of the first record, or of a reset, not of the interval after it
            carried = Carried(system, None if self.equations is None else self.carrying.equations)
            numbers = {**numbers, **dict(zip(carried.names, system.initial(doses), strict=True))}
            return self._stepped(route, carried, at, line, self.solver)
        return self._stepped(route, system, at, line, self.solver)

    def _stepped(
        self, route: str, system: System | Carried, at: Parameters, line: Timeline, solver: Solver
    ) -> tuple[list[Number], Tensor]:
        """Amounts by compartment and a status, along any timeline."""
        if route == "expm":
            from nlmegen.structure.affine import affine

            assert system.equations is not None  # of a compiled page, rows must not see each other
            return affine(system.equations, at, line, solver, apart=isinstance(system, Carried))
        if solver.method != "stiff":
            from nlmegen.structure.ode import explicit

            solved, status = explicit(system, at, line, solver)
            if solver.method == "explicit" or not bool((status != 0).any()):
                return solved, status
        from nlmegen.structure.implicit import stiff

        return stiff(system, at, line, solver)

    # -- doses ----------------------------------------------------------------------------------------------------
    def _line(
        self,
        route: str,
        numbers: Mapping[str, Number],
        schedule: Schedule,
        varying: bool = False,
        late: Mapping[str, Number] | None = None,
    ) -> Timeline:
        """The timelines of a schedule where they depend on parameters, or hold more than doses."""
        moved = self._dosing(numbers) if self.dosed else {}
        arriving = self._dosing(late) if self.dosed and late is not None else None
        return Timeline.build(schedule, moved, partial(self._steady, route, numbers), varying, arriving)

    def _steady(self, route: str, numbers: Mapping[str, Number], doses: Recurring) -> list[Number]:
        """What steady states add to each compartment, see `nlmegen.structure.lowering.Steady`."""
        p = {name: at_records(x, doses.row, doses.segment) for name, x in numbers.items()}
        system = self._system()
        exact = self.equations is not None and self.equations.linear and not self.equations.n_weights
        attached = torch.is_grad_enabled() and (self.page.weights.requires_grad or _attached(p.values()))
        flow, finer = (
            partial(self._over_interval, "expm" if exact else route, system, replace(self.solver, rtol=rtol))
            for rtol in (self.solver.rtol, max(FINER * self.solver.rtol, 1e-13))
        )
        x, fine = steady_state(system, flow, finer, p, doses, max(STEADY, self.solver.rtol), attached, exact)
        if self.equations is None or not self.equations.autonomous:
            fine = fine & recurs(system, p, doses, x)
            x = [torch.where(fine[..., None], y, torch.nan) for y in x]  # type: ignore[arg-type]
        self.record.unsettled += int((~fine).sum())
        begin = system.initial(p)
        fresh = doses.fresh.to(torch.float64)
        return [y - fresh * z for y, z in zip(x, begin, strict=True)]

    def _over_interval(
        self,
        route: str,
        system: System,
        solver: Solver,
        p: Mapping[str, Number],
        start: Sequence[Number],
        line: Timeline,
    ) -> list[Number]:
        """Amounts after one dosing interval, see `nlmegen.structure.steady.Flow`."""
        if route == "compiled":
            page = Compiled(self.interval, solver, self.page.weights.detach(), self.record)
            return over_interval(page, p, start, line)
        equations = None if self.equations is None else self.interval.equations
        begun = Carried(system, equations)
        both = {**p, **dict(zip(begun.names, start, strict=True))}
        solved, _ = self._stepped(route, begun, lambda point: both, line, solver)
        return solved

    def _dosing(self, numbers: Mapping[str, Number]) -> dict[int, Moved]:
        """What the page says of doses, by index of the compartment."""
        return moves(self.page.dosing(self.namespace("p", numbers)), self.compartments)

    def _check(self, schedule: Schedule) -> None:
        """Refuse records that ask for what the page does not say, or the equations cannot do."""
        if schedule.plain:
            return
        schedule.check_modelled(self.compartments, self.dosed)
        for place in schedule.switched:
            name = self.compartments[place]
            if self.equations is None:
                raise DataError(
                    f"EVID 2 with a negative CMT switches {name} off, which needs equations that can be read, and the "
                    f"page cannot be traced: {self.untraced}",
                    column="cmt",
                )
            if fed(self.equations, place):
                raise DataError(
                    f"EVID 2 with a negative CMT switches {name} off, and something flows into {name} besides doses: "
                    "only a compartment that doses alone reach (a depot) can be off; leave the record out, or write "
                    "what happens then into dynamics with a covariate",
                    column="cmt",
                )

    # -- what happened --------------------------------------------------------------------------------------------
    def _count(self, route: str, status: Tensor) -> None:
        self.record.routes[route] = self.record.routes.get(route, 0) + status.numel()
        self.record.failed += int((status != 0).sum())

    def notes(self) -> list[str]:
        """Which routes have run and why, in words."""
        routes, words = self.record.routes, self.record.compiled(self.solver.method == "stiff")
        reason = self.not_compiled(varying=self.equations is not None) or BEYOND
        for route, name in (("expm", "by the matrix exponential"), ("torch", "through torch, not compiled")):
            if route in routes:
                why = "as asked" if self.solver.route == route else reason
                words.append(f"the differential equations ran {name}: {why}")
        return [*words, *self.record.unsteady(), *(self._switches if routes else ()), *self.record.lost()]

    @cached_property
    def _switches(self) -> tuple[str, ...]:
        return () if self.equations is None else told(self.equations)

    def describe(self) -> str:
        """One line: the compartments and the parameters."""
        places, names, count = (
            ", ".join(self.compartments),
            ", ".join(self.parameters),
            len(self.compartments),
        )
        return f"differential equations of {count} compartment{'s' if count > 1 else ''} ({places}; {names})"

    def __repr__(self) -> str:
        return f"Stepped({', '.join(self.compartments)})"


def _attached(numbers: Iterable[Number]) -> bool:
    """Whether a gradient is wanted of any of these numbers or of its derivatives."""
    parts = (y for x in numbers for y in ((x.value, x.jac, x.hess) if isinstance(x, Taylor) else (x,)))
    return any(y is not None and y.requires_grad for y in parts)
