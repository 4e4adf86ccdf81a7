"""Steady states of closed forms, for the records of a schedule that ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number
from nlmegen.structure.chain import each, unbind
from nlmegen.structure.lowering import Recurring
from nlmegen.structure.periodic import Repeated, by_matrix, by_modes
from nlmegen.structure.spectrum import Disposition


def at_records(x: Number, row: Tensor, segment: Tensor) -> Number:
    """Of parameters `[*draw, subject or 1, 1 or event]` those of records `[*draw, n, 1]`."""

    def picked(y: Tensor, lead: int) -> Tensor:
        rows = (
            y.index_select(-2, row) if y.shape[-2] > 1 else y.expand((*y.shape[:-2], len(row), y.shape[-1]))
        )
        if y.shape[-1] == 1:
            return rows
        return rows.gather(-1, segment.unsqueeze(-1).expand((*rows.shape[:-1], 1)))

    return each(x, picked)


def steady_amounts(disposition: Disposition, absorption: Number | None, recurring: Recurring) -> list[Number]:
    """What each compartment has at the records' times.

    Args:
        disposition: modes at the parameters of the records, `[*draw, n, 1]`.
        absorption: ka likewise, or None without a depot.
        recurring: the doses.

    Returns:
        For each compartment `[*draw, n, 1]`, the depot first where there is one.
    """
    first, count = (0, disposition.n) if absorption is None else (1, disposition.n + 1)
    meeting = disposition.meeting
    modes = disposition if meeting is None else disposition.parted(meeting)
    into = recurring.compartment
    whole = Repeated(
        recurring.amount,
        recurring.rate,
        recurring.duration,
        recurring.interval,
        recurring.interval - recurring.lag,
    )
    total: list[Number] = [torch.zeros_like(recurring.interval)] * count
    replaced: list[Number] = list(total)
    for place in sorted(set(into[:, 0].tolist())):
        here = (into == place).to(recurring.interval.dtype)
        dose = replace(whole, amount=whole.amount * here, rate=whole.rate * here)
        through = absorption if place < first else None
        held, depot = by_modes(modes.rates, through, dose)
        if depot is not None:
            total[0] = total[0] + depot
        for i in range(disposition.n):
            share = modes.response(i, max(place - first, 0))
            amount = held if share is None else cast(Number, (share * held).sum(0))
            total[first + i] = total[first + i] + amount
        if meeting is not None:
            matrix = disposition.matrix(absorption)
            turned = each(matrix, lambda x, lead: x.movedim((lead, lead + 1), (-2, -1)))
            exact = unbind(each(by_matrix(turned, place, dose), lambda x, lead: x.movedim(-1, lead)))
            replaced = [old + new for old, new in zip(replaced, exact, strict=True)]
    if meeting is None:
        return total
    where = meeting.unsqueeze(-1)
    return [
        cast(Number, torch.where(where, new, old))  # type: ignore[arg-type]
        for old, new in zip(total, replaced, strict=True)
    ]
