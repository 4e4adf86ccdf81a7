"""The compiled page: built from components, solved for rows of parameters."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nlmegen.structure.equations import Components
from nlmegen.structure.kernel import code, words
from nlmegen.structure.kernel.driver import drive
from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.lines import Lines, doubles
from nlmegen.structure.kernel.page import build
from nlmegen.structure.kernel.protocol import T_ROWS, Method
from nlmegen.structure.kernel.store import Store
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Timeline

if TYPE_CHECKING:
    from nlmegen.structure.kernel.adjoint import Adjoint

ALIGNMENT = 64
STEP_OVERHEAD = 4
"""What a row costs beside its components, in components."""
WORTH_A_THREAD = 4096
"""Rows times their cost from which a thread is worth starting: one to two milliseconds of work; a thread costs 0.15."""


@dataclass(frozen=True, eq=False)
class Solved:
    """What a kernel returns.

    Attributes:
        components: `[row, time, component]`, NaN from the point of failure on where a row failed; 0 in columns that are
            not observed.
        status: `[row]` 0 solved, 1 more than max_steps steps, 2 the step became too short, 3 a number was not finite.
        steps: `[row]` steps taken, rejected ones included.
    """

    components: Tensor
    status: Tensor
    steps: Tensor


class Kernel:
    """Machine code of one page with its sensitivities of one order, under one method.

    Attributes:
        components: what it solves for.
        method: how it steps.
        functions: its machine code.
        store: where object code is kept.
        places: tables of the place of every first and second sensitivity among the components, -1 for none.
    """

    def __init__(self, components: Components, method: Method, functions: code.Code, store: Store) -> None:
        self.components, self.method = components, method
        self.functions, self.store = functions, store
        self._drive = code.program(drive, words.N_WORDS, store.directory)
        states, n = len(components.equations.compartments), len(components.equations.parameters)
        first = torch.full((states, n), -1)
        second = torch.full((states, n, n) if components.order > 1 else (0,), -1)
        for c, (i, directions) in enumerate(components.keys):
            if len(directions) == 1:
                first[i, directions[0]] = c
            elif len(directions) == 2:
                q, r = directions
                second[i, q, r] = second[i, r, q] = c
        self.places = {words.INDEX1: first, words.INDEX2: second}
        self._last: tuple[weakref.ref[Timeline], Lines] | None = None
        self._adjoint: Adjoint | None = None

    @classmethod
    def build(cls, components: Components, method: str = "explicit", store: Store | None = None) -> Kernel:
        """Compile a page, or load it when it has been compiled before on this machine.

        Args:
            components: amounts and sensitivities to be solved for.
            method: "explicit" or "stiff".
            store: where object code is kept; None takes the default directory.
        """
        way = _method(method)
        where = store or Store()
        module = build(components, way).text()
        names = ["rates", "step", "initial", *(["acceleration"] if components.order > 1 else [])]
        return cls(components, way, code.compiled(module, names, lambda: module, where), where)

    def solve(
        self,
        p: Tensor,
        weights: Tensor,
        timeline: Timeline,
        who: Tensor,
        solver: Solver,
        n_threads: int = 1,
    ) -> Solved:
        """Solve every row along its timeline.

        Args:
            p: individual parameters `[row, n]`, in the order of the equations.
            weights: of the page's networks `[W]`, shared by all rows.
            timeline: of R subjects; derivatives of times and amounts, if any, in the n parameters.
            who: `[row]` which of the R timelines each row follows.
            solver: tolerances and step cap.
            n_threads: threads that share the rows; no result depends on it.
        """
        call = Call(self, p, weights, self.lines(timeline), who, solver)
        rows = p.shape[0]
        work = rows * (len(self.components.keys) + STEP_OVERHEAD)
        n_threads = max(1, min(n_threads, rows, work // WORTH_A_THREAD))
        bounds = [rows * k // n_threads for k in range(n_threads + 1)]
        others = [
            threading.Thread(target=call.run, args=(self._drive, first, end))
            for first, end in zip(bounds[1:], bounds[2:], strict=False)
        ]
        for thread in others:
            thread.start()
        call.run(self._drive, bounds[0], bounds[1])
        for thread in others:
            thread.join()
        return call.solved

    def adjoint(
        self,
        p: Tensor,
        weights: Tensor,
        timeline: Timeline,
        who: Tensor,
        solver: Solver,
        cotangent: Tensor,
        per_row: bool = True,
        n_threads: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the sum of cotangent times components, see `adjoint.py`.

        Args:
            p, weights, timeline, who, solver: as for `solve`.
            cotangent: `[row, time, component]`.
            per_row: whether the gradient in the weights is wanted row by row, or summed over rows.
            n_threads: threads that share the rows; no result depends on it.

        Returns:
            In the parameters `[row, n]`, and in the weights `[row, W]` or `[W]`; 0 in rows that are not solved.

        Raises:
            NoAdjoint: where derivatives of modelled doses are needed that the timeline does not carry.
        """
        if self._adjoint is None:
            from nlmegen.structure.kernel.adjoint import Adjoint

            self._adjoint = Adjoint(self)
        gradient = self._adjoint(
            p, weights, timeline, who, solver, cotangent, per_row=per_row, n_threads=n_threads
        )
        return gradient.parameters, gradient.weights

    def lines(self, timeline: Timeline) -> Lines:
        """The arrays of a timeline; those of the last one are kept, as a fit solves along one timeline many times."""
        last = self._last
        if last is not None and last[0]() is timeline:
            return last[1]
        equations = self.components.equations
        lines = Lines(timeline, len(equations.parameters), len(equations.compartments))
        # derivatives are large, and made anew for every solve
        if lines.orders == (0, 0):
            self._last = weakref.ref(timeline), lines
        return lines


class Call:
    """The arrays of one call of the driver, and its table of words."""

    def __init__(
        self, kernel: Kernel, p: Tensor, weights: Tensor, lines: Lines, who: Tensor, solver: Solver
    ) -> None:
        components = kernel.components
        states, n = len(components.equations.compartments), len(components.equations.parameters)
        size, rows = len(components.keys), p.shape[0]
        if p.shape[1:] != (n,):
            raise ValueError(f"expected {n} parameters a row, got {tuple(p.shape)}")
        if weights.shape[0] < components.equations.n_weights:
            raise ValueError(f"expected {components.equations.n_weights} weights, got {weights.shape[0]}")
        who = who.to(device="cpu", dtype=torch.int64).contiguous()
        if who.shape != (rows,) or (rows and not 0 <= int(who.min()) <= int(who.max()) < lines.shape[0]):
            raise ValueError(f"expected {rows} indices of {lines.shape[0]} timelines")
        self.solved = Solved(
            torch.zeros(rows, lines.n_slots, size, dtype=torch.float64),
            torch.zeros(rows, dtype=torch.int64),
            torch.zeros(rows, dtype=torch.int64),
        )
        vectors = 4 * size + 2 * n + 3 * states + T_ROWS + 1 + kernel.method.rows(components)
        self._vectors = vectors * LANES
        # held for as long as the table names their addresses
        self._arrays = {
            words.P: doubles(p),
            words.WEIGHTS: doubles(weights),
            words.SETTINGS: torch.tensor([solver.rtol, solver.floor], dtype=torch.float64),
            words.WHO: who,
            **kernel.places,
            **lines.arrays,
            words.OUT: self.solved.components,
            words.STATUS: self.solved.status,
            words.STEPS: self.solved.steps,
        }
        address = kernel.functions.address
        self.table = [0] * words.N_WORDS
        for place, word in {
            words.RATES: address["rates"],
            words.STEP: address["step"],
            words.INITIAL: address["initial"],
            words.ACCELERATION: address.get("acceleration", 0),
            words.N_COMPONENTS: size,
            words.N_STATES: states,
            words.N_PARAMETERS: n,
            words.ORDER: components.order,
            words.N_ROWS: rows,
            words.N_TIMELINES: lines.shape[0],
            words.N_POINTS: lines.shape[1],
            words.N_SLOTS: lines.n_slots,
            words.MAX_STEPS: solver.max_steps,
            words.TIME_ORDER: lines.orders[0],
            words.AMOUNT_ORDER: lines.orders[1],
            **{place: array.data_ptr() for place, array in self._arrays.items()},
        }.items():
            self.table[place] = word

    def run(
        self, drive: Callable[[int], None], first: int, end: int, tape: Mapping[int, int] | None = None
    ) -> None:
        """Solve rows first to end - 1 with a workspace of their own; `tape` holds further words."""
        work = torch.zeros(self._vectors + ALIGNMENT // 8, dtype=torch.float64)
        lanes = torch.zeros(words.L_ROWS, LANES, dtype=torch.int64)
        counts = torch.zeros(2, dtype=torch.int64)
        table = list(self.table)
        table[words.FIRST], table[words.END] = first, end
        table[words.WORK] = -(-work.data_ptr() // ALIGNMENT) * ALIGNMENT
        table[words.LANE_WORK] = lanes.data_ptr()
        table[words.TAPE_COUNTS] = counts.data_ptr()
        for place, word in (tape or {}).items():
            table[place] = word
        given = (ctypes.c_int64 * words.N_WORDS)(*table)
        drive(ctypes.addressof(given))


def _method(name: str) -> Method:
    if name == "explicit":
        from nlmegen.structure.kernel.explicit import EXPLICIT

        return EXPLICIT
    if name == "stiff":
        from nlmegen.structure.kernel.rosenbrock import STIFF

        return STIFF
    raise ValueError(f'method is "explicit" or "stiff", got {name!r}')
