"""Rows of a compiled page solved at once: by which method, what happened, and their reverse derivative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlmegen.structure.equations import Components, Equations
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Timeline
from nlmegen.structure.trace import Untraceable

if TYPE_CHECKING:
    from nlmegen.structure.kernel.machine import Kernel

LABOURS = 0.25
"""Share of rows in which explicit steps fail from which a page is solved by the stiff method at once."""

FIRST_TRY, FIRST_TRY_PER_POINT = 1000, 30
"""Explicit steps, and how many more for each point of the timeline, after which `auto` takes a row for stiff: below
`max_steps`, because steps that never run out of it can cost a hundred times those of the stiff method."""

FEWEST = 8
"""Rows of which that share is taken, at least: one odd subject is no reason."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How the amount in one compartment is put together from the components of one order.

    Attributes:
        own: components of the compartment: the amount, its first sensitivities, its second ones.
        first: the parameter q of each first sensitivity.
        second: the parameters q <= r of each second one.
    """

    own: Tensor
    first: tuple[int, ...]
    second: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, keys: Sequence[tuple[int, tuple[int, ...]]], state: int) -> Plan:
        """The plan for the components with these keys (state, directions), in order of the directions' number."""
        own = [(c, along) for c, (i, along) in enumerate(keys) if i == state]
        first = tuple(along[0] for _, along in own if len(along) == 1)
        second = tuple((along[0], along[1]) for _, along in own if len(along) == 2)
        return cls(torch.tensor([c for c, _ in own]), first, second)


@dataclass
class Kernels:
    """The machine code of one page, made when it is first needed.

    Attributes:
        equations: the page, traced.
        moved: indices of the parameters that lags and bioavailabilities depend on.
        last: the last solve to second order, which a search for modes ends with and its gradient asks for again.
    """

    equations: Equations
    moved: frozenset[int] = frozenset()
    last: Last | None = None
    _made: dict[tuple[int, str], Kernel] = field(default_factory=dict, repr=False)
    _components: dict[int, Components] = field(default_factory=dict, repr=False)
    _plans: dict[tuple[int, int], Plan] = field(default_factory=dict, repr=False)

    def components(self, order: int) -> Components:
        """Amounts and sensitivities to an order."""
        if order not in self._components:
            states = range(len(self.equations.compartments))
            injected = frozenset((i, q) for i in states for q in self.moved)
            self._components[order] = self.equations.components(order, injected)
        return self._components[order]

    def of(self, order: int, method: str) -> Kernel:
        """The kernel of one order and method ("explicit" or "stiff")."""
        if (order, method) not in self._made:
            from nlmegen.structure.kernel.machine import Kernel

            self._made[order, method] = Kernel.build(self.components(order), method)
        return self._made[order, method]

    def plan(self, order: int, state: int) -> Plan:
        """How amounts are put together from the components of an order."""
        if (order, state) not in self._plans:
            self._plans[order, state] = Plan.of(self.components(order).keys, state)
        return self._plans[order, state]


@dataclass
class Record:
    """What has happened since a page was bound to data: for the notes of a fit, and for what is tried first.

    Attributes:
        routes: rows solved by each route.
        failed: rows that no method could solve.
        stiff: rows that the stiff method solved after explicit steps failed.
        unsettled: steady states that were not found.
        labours: explicit steps have been seen to fail on many rows.
        no_stiff: why the page has no compiled stiff method, or "".
    """

    routes: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    stiff: int = 0
    unsettled: int = 0
    labours: bool = False
    no_stiff: str = ""

    def compiled(self, asked: bool) -> list[str]:
        """Of the methods of the compiled route, in words; `asked` that the stiff one was to be taken."""
        if "compiled" not in self.routes:
            return []
        alone = asked or self.labours
        words = [
            f"the differential equations ran compiled, by {'the stiff method' if alone else 'explicit steps'}"
        ]
        if self.stiff and not alone:
            words.append(
                f"for {self.stiff} solves of one subject explicit steps were too many; the stiff method took over"
            )
        if self.no_stiff:
            words.append(
                f"explicit steps were too many, and there was no stiff method to take over: {self.no_stiff}"
            )
        return words

    def unsteady(self) -> list[str]:
        """Of steady states that were not found, in words."""
        if not self.unsettled:
            return []
        return [
            f"for {self.unsettled} solves of one record no steady state was found (SS), and they counted as "
            "impossible: more comes in than goes out, an amount only ever grows, or rates that depend on time do not "
            "repeat with II; give the doses themselves (ADDL, II), or check the starting values"
        ]

    def lost(self) -> list[str]:
        """Of rows that were not solved, in words."""
        if not self.failed:
            return []
        return [
            f"{self.failed} solves of one subject failed along the way (too many or too small steps, or numbers "
            "that are not finite) and counted as impossible"
        ]


@dataclass(frozen=True)
class Compiled:
    """A page as machine code, and how it is run.

    Attributes:
        kernels: the code.
        solver: settings.
        weights: network weights `[W]`.
        record: what happens is noted here.
    """

    kernels: Kernels
    solver: Solver
    weights: Tensor
    record: Record


@dataclass(frozen=True)
class Batch:
    """A batch of rows to solve.

    Attributes:
        page: the page.
        timeline: doses and observations.
        who: row of the timeline that each row follows, `[row]`.
    """

    page: Compiled
    timeline: Timeline
    who: Tensor

    def solve(self, p: Tensor, order: int) -> Solution:
        """Solve at parameters `p [row, n]`, with sensitivities to `order`."""
        if order < 2:
            return self._solve(p, order)
        kernels = self.page.kernels
        if kernels.last is None or not kernels.last.answers(self, p):
            kernels.last = Last(self, p, self._solve(p, order))
        return kernels.last.solution

    def _solve(self, p: Tensor, order: int) -> Solution:
        page, record, solver = self.page, self.page.record, self.page.solver
        if solver.method == "stiff" or (solver.method == "auto" and record.labours):
            return self._by("stiff", p, order, solver)
        if solver.method == "explicit" or record.no_stiff:
            return self._by("explicit", p, order, solver)
        most = FIRST_TRY + FIRST_TRY_PER_POINT * self.timeline.kind.shape[-1]
        solution = self._by("explicit", p, order, replace(solver, max_steps=min(most, solver.max_steps)))
        bad = (solution.status != 0) & p.isfinite().all(-1)
        if not bool(bad.any()):
            return solution
        try:
            page.kernels.of(order, "stiff")
        except Untraceable as reason:
            record.no_stiff = str(reason)
            return self._solve(p, order)
        again = replace(self, who=self.who[bad])._by("stiff", p[bad], order, solver)
        solution.put(bad, again)
        record.stiff += int((again.status == 0).sum())
        record.labours = len(bad) >= FEWEST and int(bad.sum()) > LABOURS * len(bad)
        return solution

    def _by(self, method: str, p: Tensor, order: int, solver: Solver) -> Solution:
        kernel = self.page.kernels.of(order, method)
        solved = kernel.solve(p, self.page.weights, self.timeline, self.who, solver, solver.threads)
        stiff = torch.full_like(solved.status, method == "stiff", dtype=torch.bool)
        return Solution(solved.components, solved.status, stiff)

    def adjoint(self, p: Tensor, order: int, stiff: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in p `[row, n]` and in the weights `[W]` of the sum of cotangent times components.

        Args:
            p, order: what was solved.
            stiff: which rows took the stiff method, `[row]`.
            cotangent: `[row, time, component]`.
        """
        page, solver = self.page, self.page.solver
        by_p, by_weights = torch.zeros_like(p), torch.zeros_like(page.weights)
        for method, some in (("explicit", ~stiff), ("stiff", stiff)):
            if bool(some.any()):
                by_p[some], part = page.kernels.of(order, method).adjoint(
                    p[some],
                    page.weights,
                    self.timeline,
                    self.who[some],
                    solver,
                    cotangent[some],
                    per_row=False,
                    n_threads=solver.threads,
                )
                by_weights += part
        return by_p, by_weights


@dataclass(frozen=True)
class Solution:
    """What a batch of rows came to.

    Attributes:
        values: components `[row, time, component]`, NaN from where a row failed.
        status: 0 where a row was solved, `[row]`.
        stiff: which rows took the stiff method, `[row]`.
    """

    values: Tensor
    status: Tensor
    stiff: Tensor

    def put(self, where: Tensor, other: Solution) -> None:
        """Replace the rows `where` by those of another solution."""
        self.values[where], self.status[where], self.stiff[where] = other.values, other.status, other.stiff


@dataclass(frozen=True)
class Last:
    """A solve, kept.

    Attributes:
        batch, p: what was solved.
        solution: what came out.
    """

    batch: Batch
    p: Tensor
    solution: Solution

    def answers(self, batch: Batch, p: Tensor) -> bool:
        """Whether `batch` at `p` would be solved to the same numbers."""
        mine = self.batch
        return (
            mine.timeline is batch.timeline
            and mine.page.solver == batch.page.solver
            and torch.equal(self.p, p)
            and torch.equal(mine.who, batch.who)
            and torch.equal(mine.page.weights, batch.page.weights)
        )
