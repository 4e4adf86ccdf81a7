"""Subjects in whom two modes of disposition meet, solved by the matrix exponential; the others by their modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, cast

from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.affine import affine
from nlmegen.structure.chain import broadcast, each, stack
from nlmegen.structure.equations import Equations
from nlmegen.structure.linear import linear_amounts
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solver import Solver
from nlmegen.structure.timeline import Timeline, at_segments


class Replaced:
    """Amounts by the matrix exponential of chosen rows `[*draw, subject]`, each a row of its own.

    Args:
        count: number of subjects.
        solve: from `rows` and `pick`, the index of the chosen ones among all rows, flattened, to amounts
            `[compartment, row, time]`.
    """

    def __init__(self, count: int, solve: Callable[[Chosen], Number]) -> None:
        self.count, self.solve = count, solve

    @classmethod
    def scheduled(cls, matrix: Number, schedule: Schedule) -> Replaced:
        """Along a schedule.

        Args:
            matrix: A of dx/dt = A x `[compartment, compartment, *draw, subject or 1, 1 or event]`.
            schedule: doses and times.
        """

        def solve(chosen: Chosen) -> Number:
            own = each(matrix, lambda x, lead: chosen.of(x, lead + 2))
            return linear_amounts(own, schedule.select(chosen.rows.nonzero()[:, -1]))

        return cls(schedule.n_subjects, solve)

    @classmethod
    def along(cls, line: Timeline, equations: Equations, numbers: Mapping[str, Number]) -> Replaced:
        """Along a timeline.

        Args:
            line: doses as they arrive, and observations.
            equations: of the system.
            numbers: its parameters `[*draw, subject or 1, 1 or event]`, as many dimensions each.
        """

        def solve(chosen: Chosen) -> Number:
            parts: dict[str, Any] = {
                name: chosen.of(getattr(line, name), 0) for name in ("kind", "compartment", "slot", "segment")
            }
            parts |= {name: each(getattr(line, name), chosen.of) for name in ("time", "amount")}
            own = replace(line, count=chosen.of(line.count.unsqueeze(-1), 0).squeeze(-1), **parts)
            p = {name: each(x, chosen.of) for name, x in numbers.items()}

            def at(point: int) -> Mapping[str, Number]:
                return {name: at_segments(x, own.segment[:, point, None]) for name, x in p.items()}

            varies = any(x.shape[-1] > 1 for x in p.values())
            return stack(affine(equations, at if varies else p, own, Solver())[0])

        return cls(line.kind.shape[-2], solve)


class Chosen(NamedTuple):
    """Some of the rows of all draws and subjects.

    Attributes:
        rows: `[*draw, subject]` which.
        places: `[row]` where they stand among all, flattened.
    """

    rows: Tensor
    places: Tensor

    def of(self, x: Tensor, lead: int) -> Tensor:
        """The chosen rows of `x [..., *draw, subject or 1, n]`, behind `lead` axes."""
        missing = lead + self.rows.ndim + 1 - x.ndim
        x = x.reshape(x.shape[:lead] + (1,) * missing + x.shape[lead:])
        wide = x.expand(x.shape[:lead] + self.rows.shape + x.shape[-1:])
        return wide.flatten(lead, -2).index_select(lead, self.places)


class Mended(Mapping[str, Number]):
    """Amounts by compartment, some rows of which are replaced.

    Args:
        amounts: amounts `[*draw, subject, time]` that hold where no modes meet (and are finite where they do).
        meeting: where modes meet, `[*draw, subject or 1]`.
        replaced: how the others are computed.
    """

    def __init__(self, amounts: Mapping[str, Number], meeting: Tensor, replaced: Replaced) -> None:
        self.amounts, self.replaced = amounts, replaced
        self.rows = meeting.expand(meeting.shape[:-1] + (replaced.count,))

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
        return self.replaced.solve(Chosen(self.rows, self._index))

    @cached_property
    def _index(self) -> Tensor:
        return self.rows.flatten().nonzero().squeeze(-1)

    def _put(self, old: Tensor, new: Tensor, lead: int) -> Tensor:
        """Rows of `old` replaced, behind `lead` axes of directions."""
        shape = old.shape[:lead] + broadcast(old.shape[lead:], self.rows.shape + (1,))
        return old.expand(shape).flatten(lead, -2).index_copy(lead, self._index, new).reshape(shape)
