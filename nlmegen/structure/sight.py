"""Observations between two steps of the explicit solver, and the way to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torchdiffeq import odeint

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.leg import Leg
from nlmegen.structure.rows import Rows, wide


class Sight(NamedTuple):
    """Observations, and the place before each at which the last step began.

    Attributes:
        state: packed amounts at that place `[component, amount, n]`; rate: infusions likewise, or None.
        row: `[n]`; point: `[n]` of the observation; event: `[n]` the point that the way began at.
        time: Number `[n, 1]` of the place.
    """

    state: Tensor
    rate: Tensor | None
    row: Tensor
    point: Tensor
    event: Tensor
    time: Number

    @classmethod
    def joined(cls, sights: Sequence[Sight]) -> Sight:
        """All of them as one."""
        rates = [s.rate for s in sights if s.rate is not None]
        row, point, event = (
            torch.cat(x) for x in zip(*((s.row, s.point, s.event) for s in sights), strict=True)
        )
        return cls(
            torch.cat([s.state for s in sights], -1),
            torch.cat(rates, -1) if rates else None,
            row,
            point,
            event,
            torch.cat([s.time for s in sights]),  # type: ignore[misc]
        )

    def only(self, index: Tensor) -> Sight:
        """Those in `index`."""
        rate = None if self.rate is None else self.rate[:, :, index]
        row, point, event = self.row[index], self.point[index], self.event[index]
        return Sight(self.state[:, :, index], rate, row, point, event, wide(self.time, index))

    def reached(self, rows: Rows, method: str) -> Tensor:
        """The states at the observations, by one step of a method of torchdiffeq."""
        leg = Leg.towards(rows, self.row, self.event, self.time, self.point, self.rate)
        span = cast(Tensor, value_of(leg.length)).detach()[:, 0]
        # a way of no length may have a derivative, unless nothing lies between its ends
        going = self.point > self.event if rows.moving else span > 0
        if not bool(going.all()):
            on = going.nonzero()[:, 0]
            return (
                self.state.index_copy(2, on, self.only(on).reached(rows, method)) if len(on) else self.state
            )
        options = {"norm": _content, "first_step": span.new_ones(())}
        ends = span.new_tensor([0.0, 1.0])
        arrived: Tensor = odeint(
            leg.slope, self.state, ends, rtol=0.0, atol=1.0, method=method, options=options
        )[1]
        return arrived


def _content(error: Tensor) -> Tensor:
    """The step is known to be short enough."""
    return error.new_zeros(())
