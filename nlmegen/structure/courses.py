"""The time courses of a system's modes at given times, in the form that sums of terms want."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import Tensor

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure import divided
from nlmegen.structure.chain import Term, order_of, unbind


class Courses:
    """Time courses of all modes at given times, each computed when first asked for.

    Args:
        rates: the modes' rates, along a leading axis when there are several.
        several: whether there are.
        absorption: the absorption rate constant, or None.
        time: times `[subject, time]`.
    """

    def __init__(self, rates: Number, several: bool, absorption: Number | None, time: Tensor) -> None:
        self.stacked, self.several, self.absorption_rate, self.time = rates, several, absorption, time
        self.rates = unbind(rates) if several else [rates]
        self.order = order_of(rates, absorption)

    def _modes(self, parts: Sequence[Tensor]) -> Sequence[Sequence[Tensor]]:
        if not self.several:
            return [parts]
        return list(zip(*(part.unbind(0) for part in parts), strict=True))

    @cached_property
    def _decay(self) -> list[Tensor]:
        return divided.decay(value_of(self.stacked), self.time, self.order)

    @cached_property
    def _integral(self) -> list[Tensor]:
        return divided.decay_integral(value_of(self.stacked), self.time, self.order)

    def _bateman(self, early: bool = False) -> list[Tensor]:
        a, b = value_of(self.stacked), value_of(self.absorption_rate)
        return divided.bateman(a, b, self.time, self._decay, self._emptying, self.order, early)

    @cached_property
    def _emptying(self) -> list[Tensor]:
        return divided.decay(value_of(self.absorption_rate), self.time, self.order)

    @cached_property
    def decay(self) -> Sequence[Sequence[Tensor]]:
        """What is left of a unit in each mode."""
        return self._modes(self._decay)

    @cached_property
    def decay_integral(self) -> Sequence[Sequence[Tensor]]:
        """What is left in each mode of an infusion of unit rate."""
        return self._modes(self._integral)

    @cached_property
    def absorption(self) -> Sequence[Sequence[Tensor]]:
        """What a unit in the depot has brought into each mode."""
        return self._modes(divided.absorption(value_of(self.absorption_rate), self._bateman()))

    @cached_property
    def absorption_integral(self) -> Sequence[Sequence[Tensor]]:
        """What an infusion of unit rate into the depot has brought into each mode."""
        return self._modes(divided.absorption_integral(self._integral, self._bateman(early=True)))

    def depot(self, amount: Number | None, rate: Number | None) -> list[Term]:
        """The depot itself, from its amount and the rate of an infusion into it."""
        assert self.absorption_rate is not None
        terms = []
        if amount is not None:
            terms.append(Term(amount, (self.absorption_rate,), self._emptying))
        if rate is not None:
            parts = divided.decay_integral(value_of(self.absorption_rate), self.time, self.order)
            terms.append(Term(rate, (self.absorption_rate,), parts))
        return terms

    def single(self, weights: Sequence[Number | None], parts: Sequence[Sequence[Tensor]]) -> list[Term]:
        """One term a mode, for courses of one rate."""
        return [Term(w, (r,), f) for w, r, f in zip(weights, self.rates, parts, strict=True)]

    def pair(self, weights: Sequence[Number], parts: Sequence[Sequence[Tensor]]) -> list[Term]:
        """One term a mode, for courses of a mode's rate and the absorption's."""
        assert self.absorption_rate is not None
        return [
            Term(w, (r, self.absorption_rate), f) for w, r, f in zip(weights, self.rates, parts, strict=True)
        ]
