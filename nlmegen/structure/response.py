"""The response of a compiled page: from individual parameters, with their derivatives, to amounts, with theirs.

The kernel solves every row (one draw of one subject) in the space of the page's n individual parameters p: amounts y,
first sensitivities S_q = dy/dp_q, second ones S_qr. What a page hands over are Taylor numbers p with derivatives p_i,
p_ij in other directions (random effects, mostly), and the chain rule gives the amounts in those directions:

    y_i  = sum_q S_q p_q,i          y_ij = sum_q S_q p_q,ij + sum_qr S_qr p_q,i p_r,j .

Reverse mode passes through both: the derivative of S_q in p_r is S_qr, so that a first-order solve that needs gradients
is run at second order; with network weights the discrete adjoint takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import order_of
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
        labours: explicit steps have been seen to fail on many rows.
        stiff_rows: how many rows the stiff method solved after explicit steps failed.
        no_stiff: why the page has no compiled stiff method, or "".
        last: the last solve to second order, which a search for modes ends with and its gradient asks for again.
    """

    equations: Equations
    moved: frozenset[int] = frozenset()
    labours: bool = False
    stiff_rows: int = 0
    no_stiff: str = ""
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


@dataclass(frozen=True)
class Rows:
    """A batch of rows to solve.

    Attributes:
        kernels: of the page.
        solver: settings.
        weights: network weights `[W]`.
        timeline: doses and observations.
        who: row of the timeline that each row follows, `[row]`.
    """

    kernels: Kernels
    solver: Solver
    weights: Tensor
    timeline: Timeline
    who: Tensor

    def solve(self, p: Tensor, order: int) -> Solution:
        """Solve at parameters `p [row, n]`, with sensitivities to `order`."""
        if order < 2:
            return self._solve(p, order)
        last = self.kernels.last
        if last is None or not last.answers(self, p):
            last = self.kernels.last = Last(self, p, self._solve(p, order))
        return last.solution

    def _solve(self, p: Tensor, order: int) -> Solution:
        kernels, method = self.kernels, self.solver.method
        first = "stiff" if method == "stiff" or (method == "auto" and kernels.labours) else "explicit"
        solver = self.solver
        if method == "auto" and first == "explicit" and not kernels.no_stiff:
            most = FIRST_TRY + FIRST_TRY_PER_POINT * self.timeline.kind.shape[-1]
            solver = replace(solver, max_steps=min(most, solver.max_steps))
        solved = kernels.of(order, first).solve(
            p, self.weights, self.timeline, self.who, solver, solver.threads
        )
        values, status = solved.components, solved.status
        stiff = torch.full_like(status, first == "stiff", dtype=torch.bool)
        bad = (status != 0) & p.isfinite().all(-1) & ~stiff
        if method == "auto" and not kernels.no_stiff and bool(bad.any()):
            try:
                kernel = kernels.of(order, "stiff")
            except Untraceable as reason:
                kernels.no_stiff = str(reason)
            else:
                again = kernel.solve(
                    p[bad], self.weights, self.timeline, self.who[bad], self.solver, self.solver.threads
                )
                values[bad], status[bad], stiff[bad] = again.components, again.status, True
                kernels.stiff_rows += int((again.status == 0).sum())
                kernels.labours = len(bad) >= FEWEST and int(bad.sum()) > LABOURS * len(bad)
        return Solution(values, status, stiff)

    def adjoint(self, p: Tensor, order: int, stiff: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in p `[row, n]` and in the weights `[W]` of the sum of cotangent times components.

        Args:
            p, order: what was solved.
            stiff: which rows took the stiff method, `[row]`.
            cotangent: `[row, time, component]`.
        """
        by_p, by_weights = torch.zeros_like(p), torch.zeros_like(self.weights)
        for method, some in (("explicit", ~stiff), ("stiff", stiff)):
            if bool(some.any()):
                by_p[some], part = self.kernels.of(order, method).adjoint(
                    p[some],
                    self.weights,
                    self.timeline,
                    self.who[some],
                    self.solver,
                    cotangent[some],
                    per_row=False,
                    n_threads=self.solver.threads,
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


@dataclass(frozen=True)
class Last:
    """A solve, kept.

    Attributes:
        rows, p: what was solved.
        solution: what came out.
    """

    rows: Rows
    p: Tensor
    solution: Solution

    def answers(self, rows: Rows, p: Tensor) -> bool:
        """Whether `rows` at `p` would be solved to the same numbers, to the last bit."""
        mine = self.rows
        return (
            mine.timeline is rows.timeline
            and mine.solver == rows.solver
            and torch.equal(self.p, p)
            and torch.equal(mine.who, rows.who)
            and torch.equal(mine.weights, rows.weights)
        )


class _Solve(torch.autograd.Function):
    """Components of the solution as a function of p and the weights, with its reverse derivative."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, weights: Tensor, rows: Rows, order: int) -> Tensor:
        """Solve: for the adjoint as asked, else one order higher."""
        # the adjoint pays with weights, and there is no third order
        ctx.rows, ctx.order, ctx.adjoint = rows, order, ctx.needs_input_grad[1] or order > 1
        if ctx.adjoint:
            solved = rows.solve(p.detach(), order)
            ctx.save_for_backward(p.detach(), solved.stiff)
            return solved.values.clone()
        higher = rows.solve(p.detach(), order + 1).values
        ctx.save_for_backward(higher)
        count = len(rows.kernels.components(order).keys)
        return higher[..., :count].contiguous()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The cotangent of p, and of the weights."""
        rows, order, (cotangent,) = ctx.rows, ctx.order, cotangents
        if ctx.adjoint:
            p, stiff = ctx.saved_tensors
            by_p, by_weights = rows.adjoint(p, order, stiff, cotangent.contiguous())
            return by_p, by_weights, None, None
        (saved,) = ctx.saved_tensors
        components = rows.kernels.components(order + 1)
        n = len(components.equations.parameters)
        by_p = saved.new_zeros(saved.shape[0], n)
        for c, (state, along) in enumerate(components.keys[: cotangent.shape[-1]]):
            for q in range(n):
                place = components.index.get((state, tuple(sorted((*along, q)))))
                if place is not None:
                    by_p[:, q] += (cotangent[..., c] * saved[..., place]).sum(-1)
        return by_p, None, None, None


class Response:
    """Amounts as functions of individual parameters that are constant along the timeline.

    Args:
        kernels: of the page.
        solver: settings.
        numbers: the parameters, in the order of the equations: tensors or Taylor numbers `[*draw, subject or 1, 1]`.
        weights: network weights `[W]`.
        timeline: doses and observations; or a function that makes one, a row each, of parameters `[row, n]`.
        places: row of the timeline that each subject follows, `[subject]`.

    Attributes:
        batch: `(*draw, subject)`.
        status: 0 where a row was solved, `[*draw, subject]` (not known, and 0, where gradients are wanted).
    """

    def __init__(
        self,
        kernels: Kernels,
        solver: Solver,
        numbers: Sequence[Number],
        weights: Tensor,
        timeline: Timeline | Callable[[Tensor, Tensor], Timeline],
        places: Tensor,
    ) -> None:
        self.kernels, self.numbers, self.order = kernels, numbers, order_of(*numbers)
        values = [cast(Tensor, value_of(x)) for x in numbers]
        # one number a row each: all of them together in one broadcast
        *flat, who = torch.broadcast_tensors(*(x[..., 0] for x in values), places)  # type: ignore[no-untyped-call]
        self.batch = tuple(who.shape)
        rows = torch.stack(flat, -1) if flat else torch.zeros(*self.batch, 0, dtype=torch.float64)
        rows, who = rows.reshape(who.numel(), len(flat)), who.reshape(-1)
        if not isinstance(timeline, Timeline):
            timeline, who = timeline(rows.detach(), who), torch.arange(len(rows))
        job = Rows(kernels, solver, weights.detach(), timeline, who)
        if torch.is_grad_enabled() and (rows.requires_grad or weights.requires_grad):
            self._components: Tensor = _Solve.apply(rows, weights, job, self.order)  # type: ignore[no-untyped-call]
            self.status = torch.zeros(self.batch, dtype=torch.int64)
        else:
            solved = job.solve(rows.detach(), self.order)
            self._components, self.status = solved.values, solved.status.reshape(self.batch)

    @cached_property
    def _moves(self) -> list[dict[int, Tensor]]:
        """For each parameter its derivatives by direction that are not zero, each `[*draw, subject or 1, 1]`."""
        return [_live(x.jac) if isinstance(x, Taylor) else {} for x in self.numbers]

    @cached_property
    def _bends(self) -> list[dict[int, Tensor]]:
        """Likewise the second derivatives, by i d + j for directions i and j of d."""
        return [
            _live(x.hess.flatten(0, 1)) if isinstance(x, Taylor) and x.hess is not None else {}
            for x in self.numbers
        ]

    def amount(self, state: int) -> Number:
        """The amount in a compartment at the observations, `[*batch, time]`."""
        plan = self.kernels.plan(self.order, state)
        shape = (*self.batch, self._components.shape[1])
        # one contiguous array a component: a term of a sum is then one pass
        own = self._components.index_select(-1, plan.own).reshape(*shape, -1).movedim(-1, 0).contiguous()
        value = own[0]
        if self.order == 0:
            return value
        d = next(x.directions for x in self.numbers if isinstance(x, Taylor))
        first = list(zip(plan.first, own[1:], strict=False))
        jac = [
            _total([(move[i], x) for q, x in first if i in (move := self._moves[q])], value) for i in range(d)
        ]
        if self.order == 1:
            return Taylor(value, torch.stack(jac))
        second = list(zip(plan.second, own[1 + len(first) :], strict=True))
        hess: list[list[Tensor]] = []
        for i in range(d):
            hess.append([hess[j][i] for j in range(i)])
            for j in range(i, d):
                terms = [(bend[i * d + j], x) for q, x in first if i * d + j in (bend := self._bends[q])]
                for (q, r), x in second:
                    here, there = self._moves[q], self._moves[r]
                    parts = [here[i] * there[j]] if i in here and j in there else []
                    if q != r and j in here and i in there:
                        parts.append(here[j] * there[i])
                    if parts:
                        terms.append((parts[0] if len(parts) == 1 else parts[0] + parts[1], x))
                hess[i].append(_total(terms, value))
        return Taylor(value, torch.stack(jac), torch.stack([torch.stack(row) for row in hess]), 2)


def _live(derivatives: Tensor) -> dict[int, Tensor]:
    """The entries along the first axis that are not zero everywhere."""
    live = (derivatives.detach() != 0).flatten(1).any(1).tolist()
    return {i: derivatives[i] for i, some in enumerate(live) if some}


def _total(terms: Sequence[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """The sum of the products, zero when there are none."""
    if not terms:
        return torch.zeros_like(like)
    coefficient, x = terms[0]
    total = coefficient * x
    for coefficient, x in terms[1:]:
        total = torch.addcmul(total, coefficient, x)
    return total
