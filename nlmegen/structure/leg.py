"""What the stiff solver works on: rows on their way between two points, and the record of what happened to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.rows import Rows, pick


class Record(NamedTuple):
    """What happened to some rows at once: a step (`stages` given) or their arrival at points."""

    which: Tensor
    point: Tensor
    tau: Tensor | None = None
    size: Tensor | None = None
    stages: Tensor | None = None

    def only(self, good: Tensor, number: Tensor) -> Record:
        """The rows that did not fail, by their numbers among these."""
        keep = good[self.which].nonzero()[:, 0]
        return Record(
            number[self.which[keep]],
            self.point[keep],
            None if self.tau is None else self.tau[keep],
            None if self.size is None else self.size[keep],
            None if self.stages is None else self.stages[..., keep],
        )


class Leg(NamedTuple):
    """Some rows, each between two of its points: what their right sides need."""

    rows: Rows
    p: Mapping[str, Number]
    time: Number
    length: Number
    rate: Tensor | None

    @classmethod
    def between(cls, rows: Rows, index: Tensor, point: Tensor, end: Tensor, rate: Tensor | None) -> Leg:
        """Rows `index` on the way from their points `point [n]` to their points `end`."""
        return cls.towards(rows, index, point, pick(rows.time, index, point), end, rate)

    @classmethod
    def towards(
        cls, rows: Rows, index: Tensor, point: Tensor, time: Number, end: Tensor, rate: Tensor | None
    ) -> Leg:
        """The same from a time `[n, 1]` after the point."""
        gap = pick(rows.time, index, end) - time
        nothing = torch.zeros((), dtype=rows.layout.dtype, device=rows.layout.device)
        length: Number = torch.where(value_of(gap) >= 0, gap, nothing)  # type: ignore[arg-type]
        return cls(rows, rows.parameters_of(point, index), time, length, rate)

    def slope(self, tau: Tensor, state: Tensor) -> Tensor:
        """G at `tau [*stage, row]` and packed amounts `[component, amount, *stage, row]`."""
        layout = self.rows.layout
        f = self.rows.system.rates(self.time + self.length * tau.unsqueeze(-1), layout.unpack(state), self.p)
        rate = self.rate
        if rate is not None and state.ndim > 3:
            rate = rate.unsqueeze(2)
        if not isinstance(self.length, Taylor):
            packed = layout.pack(f, *state.shape[2:])
            return (packed if rate is None else packed + rate) * self.length[:, 0]
        if rate is not None:
            f = [a + b for a, b in zip(f, layout.unpack(rate), strict=True)]
        return layout.pack([self.length * a for a in f], *state.shape[2:])

    def matrix(self, tau: Tensor, values: Tensor) -> Tensor:
        """dG / dy of the values, `[*stage, row, amount, amount]`, at values `[amount, *stage, row]`."""
        count = values.shape[0]
        unit = torch.eye(count, dtype=values.dtype, device=values.device)
        unit = unit.reshape((count, count) + (1,) * values.ndim)
        y: list[Number] = [
            Taylor(v.unsqueeze(-1), u) for v, u in zip(values.unbind(0), unit.unbind(1), strict=True)
        ]
        p = {name: cast(Tensor, value_of(x)).detach() for name, x in self.p.items()}
        length = cast(Tensor, value_of(self.length)).detach()
        clock = cast(Tensor, value_of(self.time)).detach() + length * tau.unsqueeze(-1)
        shape = (count, *values.shape[1:], 1)
        zero = torch.zeros((), dtype=values.dtype, device=values.device)
        found = [
            (x.jac if isinstance(x, Taylor) else zero).expand(shape)[..., 0]
            for x in self.rows.system.rates(clock, y, p)
        ]
        return (torch.stack(found) * length[:, 0]).movedim((0, 1), (-2, -1))
