"""Gradients of a compiled solve in parameters and network weights, by the adjoint of its steps.

Given d objective / d components, the gradient is that of the numbers computed, lengths of steps held fixed: rows are
solved again with a tape of their steps, which are then undone (`tape.py`; `reverse.py` and `reverse_stiff.py` for a
step). The cost does not grow with the number of parameters or weights but through the length of the page's formulas.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.kernel import code, reverse, reverse_stiff, tape, words
from nlmegen.structure.kernel.driver import drive
from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.lines import doubles
from nlmegen.structure.kernel.machine import ALIGNMENT, Call, Kernel
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Timeline

MEMORY = 64 * 2**20
"""Bytes of tape."""
MOST_ROWS = 256
"""Rows whose tape is made at a time, memory permitting."""


class NoAdjoint(Exception):
    """This solve has no adjoint, and why; sensitivities of one order more, carried forward, take its place."""


@dataclass(frozen=True, eq=False)
class Gradient:
    """What the adjoint of a solve returns.

    Attributes:
        parameters: `[row, n]`, 0 in rows that were not solved.
        weights: `[W]`, summed over rows, or `[row, W]`.
        status: `[row]` as in `Solved`.
    """

    parameters: Tensor
    weights: Tensor
    status: Tensor


class Adjoint:
    """The adjoint of one kernel.

    Args:
        kernel: the kernel whose steps are undone.
    """

    def __init__(self, kernel: Kernel) -> None:
        products = reverse.Products.of(kernel.components)
        self.kernel, self._starts = kernel, products.starts
        if kernel.method.name == "stiff":
            self._room = reverse_stiff.room(kernel.components, products)
            text = reverse_stiff.build(kernel.components, products).text()
        else:
            self._room, text = reverse.room(products), reverse.build(products).text()
        self._functions = code.compiled(text, ("undo", "product", "begun"), lambda: text, kernel.store)
        self._drive = code.program(drive, words.N_WORDS, kernel.store.directory)
        self._rewind = code.program(tape.rewind, tape.N_BACK_WORDS, kernel.store.directory)

    def __call__(
        self,
        p: Tensor,
        weights: Tensor,
        timeline: Timeline,
        who: Tensor,
        solver: Solver,
        cotangent: Tensor,
        per_row: bool = False,
        memory: int = MEMORY,
        n_threads: int = 1,
    ) -> Gradient:
        """The gradient of sum(cotangent * components).

        Args:
            p, weights, timeline, who, solver: as for `Kernel.solve`.
            cotangent: `[row, slot, component]`, in the order of the kernel's components.
            per_row: whether the gradient in the weights is wanted row by row.
            memory: bytes that the tape may take (more only when one row alone needs more).
            n_threads: threads that share the rows; no result depends on it.

        Raises:
            NoAdjoint: for modelled doses of which more derivatives are needed than there are.
        """
        for number in (timeline.time, timeline.amount):
            _check(number, self.kernel.components.order)
        rows, n = p.shape
        shape = (rows, timeline.n_slots, len(self.kernel.components.keys))
        if cotangent.shape != shape:
            raise ValueError(f"expected cotangents of shape {shape}, got {tuple(cotangent.shape)}")
        entries = n + self.kernel.components.equations.n_weights
        gradient = torch.zeros(rows, entries if per_row else n, dtype=torch.float64)
        status = torch.zeros(rows, dtype=torch.int64)
        # summed in parts of fixed rows, so that neither threads nor memory change a bit
        bounds = [*range(0, rows, MOST_ROWS), rows]
        sums = torch.zeros(len(bounds) - 1, entries - n, dtype=torch.float64)
        lines, given, count = self.kernel.lines(timeline), doubles(cotangent), timeline.count[who]
        n_threads = max(1, min(n_threads, len(sums)))

        def work(thread: int) -> None:
            record, block = _Tape(shape[2], memory // n_threads), MOST_ROWS
            for part in range(thread, len(sums), n_threads):
                first = bounds[part]
                while first < bounds[part + 1]:
                    chosen = slice(first, min(first + block, bounds[part + 1]))
                    call = Call(self.kernel, p[chosen], weights, lines, who[chosen], solver)
                    size = len(call.solved.status)
                    record.room_for_points(int(count[chosen].sum()) + size)
                    call.run(self._drive, 0, size, record.words)
                    if record.full:
                        block = record.make_room(size)
                        continue
                    found = self._undo(call, record, given[chosen], sums[part])
                    gradient[chosen] = found[:, : gradient.shape[1]]
                    status[chosen] = call.solved.status
                    first, block = chosen.stop, min(MOST_ROWS, record.rows_that_fit(size))

        if n_threads == 1:
            work(0)
        else:
            with ThreadPoolExecutor(n_threads) as pool:
                list(pool.map(work, range(n_threads)))
        return Gradient(gradient[:, :n], gradient[:, n:] if per_row else sums.sum(0), status)

    def _undo(self, call: Call, record: _Tape, cotangent: Tensor, total: Tensor) -> Tensor:
        """The gradient `[row, n + W]` of the rows of one call; its weights are added to `total`."""
        rows, n = len(call.solved.status), call.table[words.N_PARAMETERS]
        size, entries = call.table[words.N_COMPONENTS], n + len(total)
        gradient = torch.zeros(rows, entries, dtype=torch.float64)
        lists = torch.empty(2 * rows + 2 * LANES * record.steps, dtype=torch.int64)
        vectors = tape.vectors(size, n, entries, self._room)
        work = torch.zeros(vectors * LANES + ALIGNMENT // 8, dtype=torch.float64)
        lanes = torch.zeros(tape.B_ROWS, LANES, dtype=torch.int64)
        address, at = self._functions.address, lists.data_ptr()
        table = [*call.table, *([0] * (tape.N_BACK_WORDS - words.N_WORDS))]
        for place, word in {
            **record.words,
            tape.UNDO: address["undo"],
            tape.PRODUCT: address["product"],
            tape.BEGUN: address["begun"] if self._starts else 0,
            tape.N_GRADIENT: entries,
            tape.COTANGENT: cotangent.data_ptr(),
            tape.LAST: at,
            tape.REACHED: at + 8 * rows,
            tape.PREVIOUS: at + 16 * rows,
            tape.SEGMENT: at + 16 * rows + 8 * LANES * record.steps,
            tape.GRADIENT: gradient.data_ptr(),
            tape.SUM: total.data_ptr(),
            tape.BACK_WORK: -(-work.data_ptr() // ALIGNMENT) * ALIGNMENT,
            tape.BACK_LANES: lanes.data_ptr(),
        }.items():
            table[place] = word
        held = (ctypes.c_int64 * tape.N_BACK_WORDS)(*table)
        self._rewind(ctypes.addressof(held))
        return gradient


class _Tape:
    """Room for the steps of a block of rows.

    Args:
        size: components.
        memory: bytes.
    """

    def __init__(self, size: int, memory: int) -> None:
        self._size = size
        # a step's vectors: components, time and length, row, and two for the lists that the way back makes
        self._reserve(memory // (8 * LANES * (size + 5)))
        self._counts = torch.zeros(2, dtype=torch.int64)
        self._points = torch.zeros(0, 4, dtype=torch.int64)

    def _reserve(self, capacity: int) -> None:
        self.capacity = max(1, capacity)
        self._states = torch.empty(self.capacity, self._size, LANES, dtype=torch.float64)
        self._clocks = torch.empty(self.capacity, 2, LANES, dtype=torch.float64)
        self._rows = torch.empty(self.capacity, LANES, dtype=torch.int64)

    @property
    def bytes(self) -> int:
        """What the tape of steps takes."""
        return 8 * LANES * self.capacity * (self._size + 5)

    @property
    def words(self) -> dict[int, int]:
        """For the driver's table."""
        return {
            words.TAPE_STEPS: self.capacity,
            words.TAPE_POINTS: len(self._points),
            words.TAPE_COUNTS: self._counts.data_ptr(),
            words.TAPE_Y: self._states.data_ptr(),
            words.TAPE_T: self._clocks.data_ptr(),
            words.TAPE_ROW: self._rows.data_ptr(),
            words.TAPE_POINT: self._points.data_ptr(),
        }

    @property
    def steps(self) -> int:
        """Steps of all lanes that the driver took."""
        return int(self._counts[0])

    @property
    def full(self) -> bool:
        """Whether they were more than there was room for."""
        return self.steps > self.capacity

    def room_for_points(self, count: int) -> None:
        """Make room for the points of a block."""
        if count > len(self._points):
            self._points = torch.empty(count, 4, dtype=torch.int64)

    def rows_that_fit(self, rows: int) -> int:
        """Rows of which the tape holds the steps, when those of `rows` took as many as they did."""
        return max(1, rows * self.capacity * 4 // (5 * max(1, self.steps)))

    def make_room(self, rows: int) -> int:
        """After too many steps: the rows to try, fewer, or one whose steps there is room for now."""
        if rows == 1:
            self._reserve(self.steps)
        return min(self.rows_that_fit(rows), max(1, rows - 1))


def _check(number: Number, order: int) -> None:
    """Raise NoAdjoint where a derivative of modelled doses is needed that is not there."""
    if isinstance(number, Taylor) and order >= number.order:
        raise NoAdjoint(f"doses that depend on parameters are given with derivatives of order {number.order}")
    if isinstance(number, Taylor) and order > 1:
        raise NoAdjoint("third derivatives of doses are not there")
