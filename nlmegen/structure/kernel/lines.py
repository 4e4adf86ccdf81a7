"""A timeline as the arrays that the driver reads, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.kernel import words
from nlmegen.structure.timeline import Point, Timeline


class Lines:
    """The arrays of a timeline.

    Args:
        timeline: of R rows.
        n: parameters of the page, the directions of the derivatives of times and amounts.
        states: compartments of the page.

    Attributes:
        shape: rows and points.
        arrays: by place in the table of words.
        orders: of the derivatives of times and of amounts.

    Raises:
        ValueError: when a point lies outside the compartments or columns that there are: the driver does not look.
    """

    def __init__(self, timeline: Timeline, n: int, states: int) -> None:
        self.shape = tuple(timeline.kind.shape)
        self.n_slots = timeline.n_slots
        time, amount = self._derivatives(timeline.time, n), self._derivatives(timeline.amount, n)
        self.orders = len(time) - 1, len(amount) - 1
        whole = (timeline.kind, timeline.compartment, timeline.slot, timeline.count)
        kind, place, slot, count = (_integers(x) for x in whole)
        self.arrays = {
            words.KINDS: kind,
            words.PLACES: place,
            words.SLOTS: slot,
            words.COUNTS: count,
            **dict(zip((words.TIMES, words.TIME_JAC, words.TIME_HESS), time, strict=False)),
            **dict(zip((words.AMOUNTS, words.AMOUNT_JAC, words.AMOUNT_HESS), amount, strict=False)),
        }
        used = torch.arange(self.shape[1]) < count[:, None]
        column = used & (kind == Point.OBSERVE)
        if bool((column & ((slot < 0) | (slot >= timeline.n_slots))).any()):
            raise ValueError(f"an observation lies outside the {timeline.n_slots} columns of its timeline")
        dose = used & ((kind == Point.BOLUS) | (kind == Point.RATE) | (kind == Point.ZERO))
        if bool((dose & ((place < 0) | (place >= states))).any()):
            raise ValueError(f"a dose goes to a compartment outside the {states} of the page")
        if bool((count > self.shape[1]).any()):
            raise ValueError(f"a timeline counts more than its {self.shape[1]} points")

    def _derivatives(self, x: Number, n: int) -> list[Tensor]:
        """Value, Jacobian and Hessian, as far as there are any, contiguous and of full shape."""
        parts = [doubles(value_of(x).expand(self.shape))]
        if isinstance(x, Taylor):
            parts.append(doubles(x.jac.expand(n, *self.shape)))
            if x.hess is not None:
                parts.append(doubles(x.hess.expand(n, n, *self.shape)))
        return parts


def doubles(x: Tensor) -> Tensor:
    """A tensor as the driver reads numbers."""
    return x.detach().to(device="cpu", dtype=torch.float64).contiguous()


def _integers(x: Tensor) -> Tensor:
    return x.to(device="cpu", dtype=torch.int64).contiguous()
