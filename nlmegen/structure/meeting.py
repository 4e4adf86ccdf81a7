"""Subjects in whom two modes of disposition meet, solved by the matrix exponential; the others by their modes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import cast

from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import broadcast, each
from nlmegen.structure.linear import linear_amounts
from nlmegen.structure.schedule import Schedule


class Mended(Mapping[str, Number]):
    """Amounts by compartment, some rows of which are replaced.

    Args:
        amounts: amounts `[*draw, subject, time]` that hold where no modes meet (and are finite where they do).
        meeting: where modes meet, `[*draw, subject or 1]`.
        matrix: A of dx/dt = A x `[compartment, compartment, *draw, subject or 1, 1 or event]`.
        schedule: doses and times.
    """

    def __init__(
        self, amounts: Mapping[str, Number], meeting: Tensor, matrix: Number, schedule: Schedule
    ) -> None:
        self.amounts, self.matrix, self.schedule = amounts, matrix, schedule
        self.rows = meeting.expand(meeting.shape[:-1] + (schedule.n_subjects,))

    def __getitem__(self, name: str) -> Number:
        amount, place = self.amounts[name], list(self.amounts).index(name)
        new = each(self._replacement, lambda x, lead: x.select(lead, place))
        value = cast(Tensor, value_of(amount))
        if not isinstance(amount, Taylor) or not isinstance(new, Taylor):
            return self._put(value, cast(Tensor, value_of(new)), 0)
        hess = self._put(amount.dense_hess(), new.dense_hess(), 2) if amount.order == 2 else None
        return Taylor(self._put(value, new.value, 0), self._put(amount.jac, new.jac, 1), hess, amount.order)

    def __contains__(self, name: object) -> bool:
        return name in self.amounts

    def __iter__(self) -> Iterator[str]:
        return iter(self.amounts)

    def __len__(self) -> int:
        return len(self.amounts)

    @cached_property
    def _replacement(self) -> Number:
        """Amounts `[compartment, row, time]`, each row a subject of its own."""

        def chosen(x: Tensor, lead: int) -> Tensor:
            wide = x.expand(x.shape[: lead + 2] + self.rows.shape + x.shape[-1:])
            return wide.flatten(lead + 2, -2).index_select(lead + 2, self._index)

        return linear_amounts(each(self.matrix, chosen), self.schedule.select(self.rows.nonzero()[:, -1]))

    @cached_property
    def _index(self) -> Tensor:
        return self.rows.flatten().nonzero().squeeze(-1)

    def _put(self, old: Tensor, new: Tensor, lead: int) -> Tensor:
        """Rows of `old` replaced, behind `lead` axes of directions."""
        shape = old.shape[:lead] + broadcast(old.shape[lead:], self.rows.shape + (1,))
        return old.expand(shape).flatten(lead, -2).index_copy(lead, self._index, new).reshape(shape)
