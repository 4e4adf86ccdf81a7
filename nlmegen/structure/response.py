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
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.batch import Batch, Compiled
from nlmegen.structure.chain import order_of
from nlmegen.structure.timeline import Timeline


class _Solve(torch.autograd.Function):
    """Components of the solution as a function of p and the weights, with its reverse derivative."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, weights: Tensor, batch: Batch, order: int) -> Tensor:
        """Solve: for the adjoint as asked, else one order higher."""
        # the adjoint pays with weights, and there is no third order
        ctx.batch, ctx.order, ctx.adjoint = batch, order, ctx.needs_input_grad[1] or order > 1
        if ctx.adjoint:
            solved = batch.solve(p.detach(), order)
            ctx.save_for_backward(p.detach(), solved.stiff)
            return solved.values.clone()
        higher = batch.solve(p.detach(), order + 1).values
        ctx.save_for_backward(higher)
        count = len(batch.page.kernels.components(order).keys)
        return higher[..., :count].contiguous()

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """The cotangent of p, and of the weights."""
        batch, order, (cotangent,) = ctx.batch, ctx.order, cotangents
        if ctx.adjoint:
            p, stiff = ctx.saved_tensors
            by_p, by_weights = batch.adjoint(p, order, stiff, cotangent.contiguous())
            return by_p, by_weights, None, None
        (saved,) = ctx.saved_tensors
        components = batch.page.kernels.components(order + 1)
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
        page: the page; gradients pass to its weights.
        numbers: the parameters, in the order of the equations: tensors or Taylor numbers `[*draw, subject or 1, 1]`.
        timeline: doses and observations; or a function that makes one, a row each, of parameters `[row, n]`, the rows
            of the schedule that they follow `[row]`, and the order of the derivatives that it is to have.
        places: row of the timeline that each subject follows, `[subject]`.

    Attributes:
        batch: `(*draw, subject)`.
        status: 0 where a row was solved, `[*draw, subject]` (not known, and 0, where gradients are wanted).
    """

    def __init__(
        self,
        page: Compiled,
        numbers: Sequence[Number],
        timeline: Timeline | Callable[[Tensor, Tensor, int], Timeline],
        places: Tensor,
    ) -> None:
        self.kernels, self.numbers, self.order = page.kernels, numbers, order_of(*numbers)
        values = [cast(Tensor, value_of(x)) for x in numbers]
        # one number a row each: all of them together in one broadcast
        *flat, who = torch.broadcast_tensors(*(x[..., 0] for x in values), places)  # type: ignore[no-untyped-call]
        self.batch = tuple(who.shape)
        rows = torch.stack(flat, -1) if flat else torch.zeros(*self.batch, 0, dtype=torch.float64)
        rows, who = rows.reshape(who.numel(), len(flat)), who.reshape(-1)
        attached = torch.is_grad_enabled() and (rows.requires_grad or page.weights.requires_grad)
        if not isinstance(timeline, Timeline):
            with torch.no_grad():
                timeline = timeline(rows.detach(), who, min(2, self.order + attached))
            who = torch.arange(len(rows))
        batch = Batch(replace(page, weights=page.weights.detach()), timeline, who)
        if attached:
            self._components: Tensor = _Solve.apply(rows, page.weights, batch, self.order)  # type: ignore[no-untyped-call]
            self.status = torch.zeros(self.batch, dtype=torch.int64)
        else:
            solved = batch.solve(rows.detach(), self.order)
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
