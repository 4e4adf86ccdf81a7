"""Programs of a closed form: tensors in, tensors out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nlmegen.structure import densities, plans
from nlmegen.structure.blueprint import Blueprint
from nlmegen.structure.kernel import code, rows, scan, search
from nlmegen.structure.kernel.emit import LANES
from nlmegen.structure.kernel.patients import Leaves, Patients, doubles
from nlmegen.structure.kernel.store import Store

ALIGNMENT = 64


@dataclass(frozen=True)
class Found:
    """How searches ended; see `maths.newton.Minimum`.

    Attributes:
        z, value, decrement, gradient: at the minima, `[row, q]`, `[row]`, `[row]`, `[row, q]`.
        hessian, information: `[row, q, q]`.
        inverses: of the information, and of the Hessian (of the information where it is indefinite), `[2, row, q, q]`.
        converged, indefinite: `[row]`.
        left: rows that another route must search, `[row]`.
        iterations: evaluations of the row that took most.
    """

    z: Tensor
    value: Tensor
    decrement: Tensor
    gradient: Tensor
    hessian: Tensor
    information: Tensor
    inverses: Tensor
    converged: Tensor
    indefinite: Tensor
    left: Tensor
    iterations: int


class Programs:
    """The programs of one page, each compiled (or loaded) when it is first run.

    Args:
        blueprint: the page.
        store: where object code is kept; None takes the default directory.
    """

    def __init__(self, blueprint: Blueprint, store: Store | None = None) -> None:
        self.blueprint = blueprint
        self.store = store or Store()
        self._positions = torch.tensor(blueprint.positions, dtype=torch.int64).reshape(-1, 2)
        self._made: dict[tuple[str, int, int], tuple[plans.Plan, code.Code]] = {}

    def predict(
        self, patients: Patients, theta: Sequence[Tensor], eta: Tensor, along: Tensor | None, order: int
    ) -> tuple[Tensor, Tensor]:
        """Predictions and derivatives.

        Args:
            patients: the subjects.
            theta: each broadcastable to `[*draw, subject, 1]`.
            eta: `[*draw, subject, q]`.
            along: directions of eta `[direction, *draw, subject or 1, q]`, for order 1 and 2.
            order: 0, 1 or 2.

        Returns:
            `[number, *draw, subject, time]`: f, then f_d, then f_de of `plans.triangle`; 0 where nothing is observed.
            And where the closed form must not be used, `[*draw, subject]`.
        """
        batch = eta.shape[:-1]
        directions = 0 if along is None or not order else along.shape[0]
        plan, made = self._program("prediction", order, directions)
        leaves = self._row(theta, patients, eta, along if directions else None)
        count = batch.numel()
        out = torch.zeros(len(plan.each), *batch, patients.times, dtype=torch.float64)
        ends = torch.zeros(*batch, len(plan.end), dtype=torch.float64)
        self._visit(plan, made, patients, count, leaves, {rows.OUT: out, rows.ENDS: ends})
        return out, ends[..., 0] > 0

    def pull(
        self,
        patients: Patients,
        theta: Sequence[Tensor],
        eta: Tensor,
        along: Tensor | None,
        bars: Tensor,
    ) -> Tensor:
        """Reverse derivatives of a prediction and its derivatives along directions, from their cotangents.

        Args:
            patients, theta, eta, along: as for `predict`.
            bars: `[1 + direction, *draw, subject, time]`.

        Returns:
            `[*draw, subject, n]`: of every theta, then of eta, then of u_d, direction after direction.
        """
        batch = eta.shape[:-1]
        directions = 0 if along is None else along.shape[0]
        plan, made = self._program("pull", 0, directions)
        leaves = self._row(theta, patients, eta, along)
        ends = torch.zeros(*batch, len(plan.end), dtype=torch.float64)
        given = {rows.BARS: doubles(bars), rows.ENDS: ends}
        self._visit(plan, made, patients, batch.numel(), leaves, given)
        return ends

    def search(
        self,
        patients: Patients,
        theta: Sequence[Tensor],
        sigma: Sequence[Tensor],
        factor: Tensor,
        eta: Tensor,
        limit: Tensor,
        held: Tensor | None,
        tolerance: float,
        max_iterations: int,
    ) -> Found:
        """Minimise the conditional density of every row.

        Args:
            patients: the subjects.
            theta, sigma: each broadcastable to `[*draw, subject, 1]`.
            factor: Cholesky factor of Omega `[*draw, subject or 1, q, q]`.
            eta: where to start, `[*draw, subject, q]`.
            limit: longest steps of z, broadcastable to `eta`.
            held: residual variances that are given, `[*draw, subject, time]`, or None.
            tolerance, max_iterations: as in `maths.newton.minimise`.
        """
        plan, made = self._program("held" if held is not None else "density", 0, 0)
        batch, q = eta.shape[:-1], eta.shape[-1]
        count = batch.numel()
        leaves = Leaves(batch)
        leaves.scalars(theta)
        leaves.scalars(patients.covariates)
        if held is None:
            leaves.scalars(sigma)
        numbers = {rows.Q: q, rows.ENTRIES: len(self.blueprint.positions), rows.FACTOR: len(leaves.sources)}
        leaves.add(factor, self.blueprint.positions)
        z = eta.clone(memory_format=torch.contiguous_format)
        gradient = torch.empty_like(z)
        level, decrement = torch.empty(2, *batch, dtype=torch.float64).unbind(0)
        matrices, inverses = torch.empty(2, 2, *batch, q, q, dtype=torch.float64).unbind(0)
        state, iterations = torch.empty(3, *batch, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        arrays = {
            rows.Z: z,
            rows.LIMIT: doubles(limit.expand(*batch, q)),
            rows.LEVEL: level,
            rows.DECREMENT: decrement,
            rows.MATRICES: matrices,
            rows.INVERSES: inverses,
            rows.PLACES: self._positions,
            rows.GRADIENT: gradient,
            rows.STATE: state,
            rows.ITERATIONS: iterations,
            rows.SETTINGS: _settings(tolerance, max_iterations),
        }
        if held is not None:
            arrays[rows.VARIANCE] = doubles(held.expand(*batch, held.shape[-1]))
        compartments, width, steps = (patients.words[k] for k in (rows.COMPARTMENTS, rows.WIDTH, rows.STEPS))
        vectors = search.workspace(len(leaves.sources), compartments, width, steps, q)
        call = _Call(patients, made.address[plan.name], count, leaves, arrays, vectors, search.LANE_ROWS)
        call.run(code.program(search.seek, rows.N_WORDS, self.store.directory), numbers)
        hessian, information = matrices.unbind(0)
        converged, indefinite, left = (state > 0).unbind(0)
        return Found(
            z=z,
            value=level,
            decrement=decrement,
            gradient=gradient,
            hessian=hessian,
            information=information,
            inverses=inverses,
            converged=converged,
            indefinite=indefinite,
            left=left,
            iterations=int(iterations[0]),
        )

    def score(
        self,
        patients: Patients,
        theta: Sequence[Tensor],
        sigma: Sequence[Tensor],
        factor: Tensor,
        z: Tensor,
        inverses: Tensor,
    ) -> Tensor:
        """Total derivatives of the FOCEI objective at its modes.

        Args:
            patients, theta, sigma, factor: as for `search`.
            z: the modes, `[*draw, subject, q]`.
            inverses: of the expected information and of the Hessian of l, `[2, *draw, subject, q, q]`.

        Returns:
            `[*draw, subject, n]`: in every theta, entry of the factor and sigma.
        """
        plan, made = self._program("score", 0, 0)
        batch, q = z.shape[:-1], z.shape[-1]
        leaves = Leaves(batch)
        leaves.scalars(theta)
        leaves.scalars(patients.covariates)
        leaves.scalars(sigma)
        leaves.add(factor, self.blueprint.positions)
        leaves.add(z, [(k,) for k in range(q)])
        leaves.add(inverses, [(which, i, j) for which in range(2) for i, j in plans.triangle(q)], lead=1)
        ends = torch.zeros(*batch, len(plan.end), dtype=torch.float64)
        self._visit(plan, made, patients, batch.numel(), leaves, {rows.ENDS: ends})
        return ends

    def _program(self, kind: str, order: int, directions: int) -> tuple[plans.Plan, code.Code]:
        key = (kind, order, directions)
        if key not in self._made:
            if kind == "prediction":
                plan = plans.prediction(self.blueprint, order, directions)
            elif kind == "pull":
                plan = plans.pull(self.blueprint, directions)
            elif kind == "score":
                plan = densities.score(self.blueprint)
            else:
                plan = densities.density(self.blueprint, held=kind == "held")
            text = scan.build(plan).text()
            self._made[key] = plan, code.compiled(text, [plan.name], lambda: text, self.store)
        return self._made[key]

    def _row(self, theta: Sequence[Tensor], patients: Patients, eta: Tensor, along: Tensor | None) -> Leaves:
        leaves, q = Leaves(eta.shape[:-1]), self.blueprint.q
        leaves.scalars(theta)
        leaves.add(eta, [(k,) for k in range(q)])
        leaves.scalars(patients.covariates)
        if along is not None:
            leaves.add(along, [(d, k) for d in range(along.shape[0]) for k in range(q)], lead=1)
        return leaves

    def _visit(
        self,
        plan: plans.Plan,
        made: code.Code,
        patients: Patients,
        count: int,
        leaves: Leaves,
        arrays: Mapping[int, Tensor],
    ) -> None:
        compartments, width, steps = (patients.words[k] for k in (rows.COMPARTMENTS, rows.WIDTH, rows.STEPS))
        out = len(plan.each) if plan.fate == "store" else 0
        vectors = rows.vectors(
            len(leaves.sources), compartments, width, steps, plan.cotangents + out, len(plan.end)
        )
        call = _Call(patients, made.address[plan.name], count, leaves, arrays, vectors, 1)
        numbers = {rows.COTANGENTS: plan.cotangents, rows.NUMBERS: out, rows.RESULTS: len(plan.end)}
        call.run(code.program(rows.visit, rows.N_WORDS, self.store.directory), numbers)


class _Call:
    """The arrays and the table of one call."""

    def __init__(
        self,
        patients: Patients,
        program: int,
        count: int,
        leaves: Leaves,
        arrays: Mapping[int, Tensor],
        vectors: int,
        lane_rows: int,
    ) -> None:
        lane_rows += rows.SLOT + patients.words[rows.STEPS]
        work = torch.empty((vectors + lane_rows + 1) * LANES, dtype=torch.float64)
        # held for as long as the table names their addresses
        self._held = (patients, leaves, arrays, work)
        self._sources = [word for source in leaves.sources for word in source]
        start = -(-work.data_ptr() // ALIGNMENT) * ALIGNMENT
        self.table = patients.table.copy()
        self.table[rows.PROGRAM], self.table[rows.END] = program, count
        self.table[rows.LEAVES] = len(leaves.sources)
        self.table[rows.WORK], self.table[rows.LANE_WORK] = start, start + 8 * LANES * vectors
        for place, x in arrays.items():
            self.table[place] = x.data_ptr()

    def run(self, drive: Callable[[int], None], more: Mapping[int, int]) -> None:
        """Run the driver on all rows."""
        for place, word in more.items():
            self.table[place] = word
        if self.table[rows.END]:
            given = (ctypes.c_int64 * (rows.N_WORDS + len(self._sources)))(*self.table, *self._sources)
            address = ctypes.addressof(given)
            given[rows.SOURCES] = address + 8 * rows.N_WORDS
            drive(address)


@lru_cache(maxsize=16)
def _settings(tolerance: float, max_iterations: int) -> Tensor:
    return torch.tensor([tolerance, float(max_iterations)], dtype=torch.float64)
