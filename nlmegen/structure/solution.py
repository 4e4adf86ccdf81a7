"""Amounts in the compartments of a linear system: the state from event to event, then every observation.

With the modes of disposition (`spectrum`) and the time courses (`divided`), the amount in compartment i at time t after
an event, from the amounts x_j at the event, the depot's amount d and the running infusion rates R, is

    x_i(t) = sum_m [ sum_j r_ijm x_j  P(l_m; t) + r_i1m d    ka B(l_m, ka; t)
                   + sum_j r_ijm R_j  I(l_m; t) + r_i1m R_d  (I(l_m; t) - B(l_m, ka; t)) ].

Terms that are zero by structure (no infusion, an empty compartment, no depot) are left out;
with a single segment the state at its start is the dose itself, and no recurrence is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.arrivals import Arrivals
from nlmegen.structure.chain import Term, accumulate, last, stack, take, unbind
from nlmegen.structure.courses import Courses
from nlmegen.structure.recurrence import matrix_recurrence, scalar_recurrence
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.spectrum import Disposition


class Solution(Mapping[str, Number]):
    """Amounts by compartment, computed when they are read.

    Args:
        compartments: the names, the depot first where there is one.
        disposition: the modes.
        absorption: the absorption rate constant, or None without a depot.
        schedule: doses and times; as they arrive, where they are modelled.
    """

    def __init__(
        self,
        compartments: tuple[str, ...],
        disposition: Disposition,
        absorption: Number | None,
        schedule: Schedule | Arrivals,
    ) -> None:
        self.compartments, self.disposition = compartments, disposition
        self.absorption, self.schedule = absorption, schedule
        self._offset = 0 if absorption is None else 1
        self._amounts: dict[str, Number] = {}

    def __getitem__(self, name: str) -> Number:
        if name not in self._amounts:
            if name not in self.compartments:
                raise KeyError(name)
            place = self.compartments.index(name)
            terms = self._depot_terms() if place < self._offset else self._terms(place - self._offset)
            self._amounts[name] = accumulate(terms) if terms else self._nothing
        return self._amounts[name]

    def __contains__(self, name: object) -> bool:
        return name in self.compartments  # without computing it

    def __iter__(self) -> Iterator[str]:
        return iter(self.compartments)

    def __len__(self) -> int:
        return len(self.compartments)

    @property
    def _nothing(self) -> Tensor:
        return torch.zeros_like(cast(Tensor, value_of(self.schedule.elapsed)))

    # -- at the observations ----------------------------------------------------------------------------------------
    def _observe(self, x: Number) -> Number:
        return take(x, self.schedule.segment)

    @cached_property
    def _observed(self) -> Courses:
        ka = None if self.absorption is None else self._observe(self.absorption)
        return Courses(
            self._observe(self.disposition.rates), self.disposition.n > 1, ka, self.schedule.elapsed
        )

    def _depot_terms(self) -> list[Term]:
        amount = self._depot
        return self._observed.depot(
            None if amount is None else self._observe(amount), self.schedule.observed_rate[0]
        )

    def _terms(self, to: int) -> list[Term]:
        at, schedule = self._observed, self.schedule
        terms: list[Term] = []
        carried = self._weights(to, self._state)
        if carried is not None:
            terms += at.decayed([self._observe(c) for c in carried])
        infused = self._weights(to, schedule.observed_rate[self._offset :], self._observe)
        if infused is not None:
            terms += at.infused(infused)
        if self.absorption is None:
            return terms
        if self._depot is not None:
            given = self._through_depot(to, self._depot)
            terms += at.absorbed([self._observe(c) for c in given])
        rate = schedule.observed_rate[0]
        if rate is not None:
            terms += at.absorbed_infusions(self._through_depot(to, rate, self._observe))
        return terms

    def _weights(
        self,
        to: int,
        amounts: Sequence[Number | None],
        where: Callable[[Number], Number] = lambda x: x,
    ) -> list[Number] | None:
        """sum_j r_ijm x_j for each mode m, or None when nothing is anywhere."""
        total: Number | None = None
        for j, amount in enumerate(amounts):
            if amount is None:
                continue
            share = self.disposition.response(to, j)
            if share is None:
                return [amount]
            product = where(share) * amount
            total = product if total is None else total + product
        return None if total is None else unbind(total)

    def _through_depot(
        self, to: int, amount: Number, where: Callable[[Number], Number] = lambda x: x
    ) -> list[Number]:
        """r_i1m d for each mode m."""
        share = self.disposition.response(to, 0)
        return [amount] if share is None else unbind(where(share) * amount)

    # -- from event to event ----------------------------------------------------------------------------------------
    @cached_property
    def _carried(self) -> Courses:
        count = self.schedule.spans.shape[-1]
        ka = None if self.absorption is None else last(self.absorption, count)
        return Courses(last(self.disposition.rates, count), self.disposition.n > 1, ka, self.schedule.spans)

    def _before(self, x: Number) -> Number:
        """Values in the segments that end at an event, 0 where the event empties the system."""
        x = last(x, self.schedule.spans.shape[-1])
        return x * self._kept if self.schedule.resets else x

    @cached_property
    def _depot(self) -> Number | None:
        """The depot's amount at the start of every segment, None when it is always empty."""
        assert self.absorption is not None
        schedule, (bolus, rate) = self.schedule, (self.schedule.bolus[0], self.schedule.rate[0])
        if schedule.single:
            return bolus
        if bolus is None and rate is None:
            return None
        # a depot may be emptied alone
        kept = schedule.keep_first[..., 1:]
        factor = accumulate(self._carried.depot(kept, None))
        source = None
        if rate is not None:
            source = accumulate(self._carried.depot(None, last(rate, kept.shape[-1]) * kept))
        return scalar_recurrence(factor, _plus(source, _later(bolus)), schedule.first(0))

    @cached_property
    def _kept(self) -> Tensor:
        return self.schedule.keep[..., 1:]

    @cached_property
    def _state(self) -> Sequence[Number | None]:
        """The amount in each disposition compartment at the start of every segment, None where always zero."""
        schedule, n = self.schedule, self.disposition.n
        bolus, rate = schedule.bolus[self._offset :], schedule.rate[self._offset :]
        if schedule.single:
            return bolus
        depot = None if self.absorption is None else self._depot
        if depot is None and all(x is None for x in (*bolus, *rate)):
            return [None] * n
        sources = [self._source(i, depot, rate) for i in range(n)]
        inputs = [_plus(source, _later(b)) for source, b in zip(sources, bolus, strict=True)]
        starts = [schedule.first(self._offset + i) for i in range(n)]
        if n == 1:
            factor = accumulate(self._carried.decayed([self._kept if schedule.resets else None]))
            return [scalar_recurrence(factor, inputs[0], starts[0])]
        zero = torch.zeros_like(cast(Tensor, value_of(schedule.spans))[..., :1])
        filled = stack([zero if x is None else x for x in inputs])
        return unbind(matrix_recurrence(self._transfer(), filled, torch.stack(starts)))

    def _source(self, to: int, depot: Number | None, rate: Sequence[Number | None]) -> Number | None:
        """What arrives in a disposition compartment during each segment from the depot and by infusion."""
        at = self._carried
        terms: list[Term] = []
        before = [None if r is None else self._before(r) for r in rate]
        infused = self._weights(to, before, self._before_share)
        if infused is not None:
            terms += at.infused(infused)
        if depot is not None:
            given = self._through_depot(to, self._before(depot), self._before_share)
            terms += at.absorbed(given)
        through = None if self.absorption is None else self.schedule.rate[0]
        if through is not None:
            given = self._through_depot(to, self._before(through), self._before_share)
            terms += at.absorbed_infusions(given)
        return accumulate(terms) if terms else None

    def _before_share(self, x: Number) -> Number:
        return last(x, self.schedule.spans.shape[-1])

    def _transfer(self) -> Number:
        """exp(A length) of every segment but the last `[compartment, compartment, *draw, subject, event - 1]`."""
        n = self.disposition.n
        shares = stack(
            [stack([cast(Number, self.disposition.response(i, j)) for j in range(n)]) for i in range(n)]
        )
        shares = self._before(shares) if self.schedule.resets else self._before_share(shares)
        return accumulate(self._carried.decayed(unbind(shares, 2)))


def _later(bolus: Number | None) -> Number | None:
    return None if bolus is None else bolus[..., 1:]


def _plus(a: Number | None, b: Number | None) -> Number | None:
    return b if a is None else a if b is None else a + b
