"""The time courses of a system's modes at given times, in the form that sums of terms want.

Times may carry derivatives (doses that a page moves). A course of rates r and time t is one of rates r t and time 1,

    P(r; t) = P(r t; 1)     I(r; t) = t I(r t; 1)     b B(a, b; t) = b t B(a t, b t; 1) ,

so that a Taylor time enters through the rates, and through the weight of what grows with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure import divided
from nlmegen.structure.chain import Term, order_of, unbind


class Courses:
    """Time courses of all modes at given times, each computed when first asked for.

    Args:
        rates: the modes' rates, along a leading axis when there are several.
        several: whether there are.
        absorption: the absorption rate constant, or None.
        time: times `[subject, time]`, or a Taylor number `[*draw, subject, time]`.
    """

    def __init__(self, rates: Number, several: bool, absorption: Number | None, time: Number) -> None:
        self._scale: Taylor | None = None
        if isinstance(time, Taylor):
            self._scale, rates = time, rates * time
            absorption = None if absorption is None else absorption * time
            time = torch.ones((1, 1), dtype=time.dtype, device=time.device)
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
        # a derivative in the time sees the start of a course as it is, however small
        early = early or self._scale is not None
        return divided.bateman(a, b, self.time, self._decay, self._emptying, self.order, early)

    @cached_property
    def _emptying(self) -> list[Tensor]:
        return divided.decay(value_of(self.absorption_rate), self.time, self.order)

    def decayed(self, weights: Sequence[Number | None]) -> list[Term]:
        """What is left in each mode of amounts, one term a mode."""
        return self._single(weights, self._modes(self._decay))

    def infused(self, rates: Sequence[Number]) -> list[Term]:
        """What is left in each mode of infusions at these rates."""
        return self._single(self._given(rates), self._modes(self._integral))

    def absorbed(self, weights: Sequence[Number]) -> list[Term]:
        """What amounts in the depot have brought into each mode."""
        parts = divided.absorption(value_of(self.absorption_rate), self._bateman())
        return self._pair(weights, self._modes(parts))

    def absorbed_infusions(self, rates: Sequence[Number]) -> list[Term]:
        """What infusions into the depot at these rates have brought into each mode."""
        parts = divided.absorption_integral(self._integral, self._bateman(early=True))
        return self._pair(self._given(rates), self._modes(parts))

    def _given(self, rates: Sequence[Number]) -> Sequence[Number]:
        """The weight of an integral over time."""
        return rates if self._scale is None else [rate * self._scale for rate in rates]

    def depot(self, amount: Number | None, rate: Number | None) -> list[Term]:
        """The depot itself, from its amount and the rate of an infusion into it."""
        assert self.absorption_rate is not None
        terms = []
        if amount is not None:
            terms.append(Term(amount, (self.absorption_rate,), self._emptying))
        if rate is not None:
            parts = divided.decay_integral(value_of(self.absorption_rate), self.time, self.order)
            (weight,) = self._given([rate])
            terms.append(Term(weight, (self.absorption_rate,), parts))
        return terms

    def _single(self, weights: Sequence[Number | None], parts: Sequence[Sequence[Tensor]]) -> list[Term]:
        """One term a mode, for courses of one rate."""
        return [Term(w, (r,), f) for w, r, f in zip(weights, self.rates, parts, strict=True)]

    def _pair(self, weights: Sequence[Number], parts: Sequence[Sequence[Tensor]]) -> list[Term]:
        """One term a mode, for courses of a mode's rate and the absorption's."""
        assert self.absorption_rate is not None
        return [
            Term(w, (r, self.absorption_rate), f) for w, r, f in zip(weights, self.rates, parts, strict=True)
        ]
