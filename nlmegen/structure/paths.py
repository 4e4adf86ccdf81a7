"""Closed forms as symbols: the amounts of a linear system a time t after an event, for the compiled page.

The same sums of time courses as in `solution`, written once on symbols, so that derivatives come from the graph. With
the decays P(r; t), their integrals I(r; t) and the quotient B(a, b; t) of `divided`,

    x_i(t) = sum_m [ sum_j r_ijm x_j P(l_m; t) + r_i1m d ka B(l_m, ka; t)
                   + sum_j r_ijm R_j I(l_m; t) + r_i1m R_d (I(l_m; t) - B(l_m, ka; t)) ] .

Amounts are functions of a few *rates* of a subject. One compartment: k = cl/v. Two compartments: the rates l1 > l2 of
the modes and the share r of the first mode in the central compartment's response to itself; without cancellation

    k21 = l1 (1 - r) + l2 r ,    k12 = r (1 - r) (l1 - l2)^2 / k21 ,

and r_11 = (r, 1 - r), r_22 = (1 - r, r), r_12 = -+ k21 / (l1 - l2), r_21 = -+ k12 / (l1 - l2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nlmegen.structure.closed import Closed, OneCompartment, TwoCompartment
from nlmegen.structure.divided import EARLY, NEAR
from nlmegen.structure.graph import Graph
from nlmegen.structure.spectrum import MEETING
from nlmegen.structure.symbols import Symbol, Untraceable

FURTHEST = 25.0
"""Largest (h t)^2 in the series of B: beyond it exp(-m t) is below 1e-70."""


@dataclass(frozen=True)
class Rates:
    """What the amounts of one subject depend on, as functions of its individual parameters.

    Attributes:
        symbols: k, or l1, l2 and r; then ka where there is absorption. NaN where a parameter is not positive.
        meeting: the condition under which two modes are too close for derivatives through them.
    """

    symbols: tuple[Symbol, ...]
    meeting: Symbol


def rates_of(structure: Closed, p: Mapping[str, Symbol], g: Graph) -> Rates:
    """The rates of a structure.

    Args:
        structure: one compartment or two.
        p: its parameters by name.
        g: the graph of their symbols.

    Raises:
        Untraceable: for a structure that has no compiled form.
    """
    legal = g.one
    for name in structure.parameters:
        legal = g.logic("and", legal, g.compare("lt", g.zero, p[name]))
    absorbed = (p["ka"],) if structure.absorption else ()
    if isinstance(structure, OneCompartment):
        found: tuple[Symbol, ...] = (g.div(p["cl"], p["v"]),)
        meeting = g.zero
    elif isinstance(structure, TwoCompartment):
        k10, k12, k21 = g.div(p["cl"], p["v"]), g.div(p["q"], p["v"]), g.div(p["q"], p["v2"])
        apart = g.sub(g.add(k10, k12), k21)
        product = g.mul(k12, k21)
        root = g.function("sqrt", g.add(g.mul(apart, apart), g.mul(g.const(4.0), product)))
        first = g.mul(g.const(0.5), g.add(g.add(k10, g.add(k12, k21)), root))
        second = g.div(g.mul(k10, k21), first)
        # l1 - k21, by the form that does not cancel
        above = g.where(
            g.compare("lt", g.zero, apart),
            g.mul(g.const(0.5), g.add(root, apart)),
            g.div(g.mul(g.const(2.0), product), g.sub(root, apart)),
        )
        found = (first, second, g.div(above, root))
        meeting = g.compare("lt", g.mul(g.const(1 - MEETING), first), second)
    else:
        raise Untraceable(f"{type(structure).__name__} has no compiled form")
    nan = g.const(math.nan)
    return Rates(tuple(g.where(legal, x, nan) for x in (*found, *absorbed)), meeting)


class Amounts:
    """The amounts a time `t` after an event.

    Args:
        structure: one compartment or two.
        rates: symbols in the order of `Rates.symbols`.
        state: the amount in each compartment just after the event.
        running: the infusion rate into each compartment.
        t: the time since the event.
        g: the graph.
    """

    def __init__(
        self,
        structure: Closed,
        rates: Sequence[Symbol],
        state: Sequence[Symbol],
        running: Sequence[Symbol],
        t: Symbol,
        g: Graph,
    ) -> None:
        self.g, self.t = g, t
        self.ka = rates[-1] if structure.absorption else None
        offset = 1 if structure.absorption else 0
        self.modes = list(rates[: len(rates) - offset])
        self.share = None
        if len(self.modes) == 3:
            self.share = self.modes.pop()
        self.depot = (state[0], running[0]) if offset else (g.zero, g.zero)
        self.state, self.running = state[offset:], running[offset:]
        self.offset = offset

    def amount(self, place: int) -> Symbol:
        """The amount in the compartment at this place, the depot first where there is one."""
        g, (held, given) = self.g, self.depot
        if place < self.offset:
            assert self.ka is not None
            return g.add(g.mul(held, self._decay(self.ka)), g.mul(given, self._integral(self.ka)))
        total, to = g.zero, place - self.offset
        for m, rate in enumerate(self.modes):
            carried, infused = g.zero, g.zero
            for j, (x, r) in enumerate(zip(self.state, self.running, strict=True)):
                share = self._response(to, j, m)
                carried = g.add(carried, g.mul(share, x))
                infused = g.add(infused, g.mul(share, r))
            total = g.add(total, g.mul(carried, self._decay(rate)))
            if infused is not g.zero:
                total = g.add(total, g.mul(infused, self._integral(rate)))
            if self.ka is not None:
                share = self._response(to, 0, m)
                if held is not g.zero:
                    absorbed = g.mul(self.ka, self._bateman(rate))
                    total = g.add(total, g.mul(g.mul(share, held), absorbed))
                if given is not g.zero:
                    through = g.sub(self._integral(rate), self._bateman(rate))
                    total = g.add(total, g.mul(g.mul(share, given), through))
        return total

    def _response(self, to: int, of: int, m: int) -> Symbol:
        """r_ijm."""
        g, r = self.g, self.share
        if r is None:
            return g.one
        if to == of:
            return r if to == m else g.sub(g.one, r)
        first, second = self.modes
        gap = g.sub(first, second)
        back = g.add(g.mul(first, g.sub(g.one, r)), g.mul(second, r))
        there = g.mul(g.mul(r, g.sub(g.one, r)), gap)
        size = g.div(back, gap) if to == 0 else g.div(there, back)
        return size if m else g.neg(size)

    def _decay(self, rate: Symbol) -> Symbol:
        return self.g.function("exp", self.g.neg(self.g.mul(rate, self.t)))

    def _integral(self, rate: Symbol) -> Symbol:
        g = self.g
        return g.mul(self.t, g.function("phi", g.mul(rate, self.t)))

    def _bateman(self, a: Symbol) -> Symbol:
        """B(a, ka; t): the quotient where the rates are apart, the series around their mean where they are near."""
        g, t, b = self.g, self.t, self.ka
        assert b is not None
        gap = g.sub(b, a)
        far = g.mul(g.sub(self._decay(a), self._decay(b)), g.reciprocal(gap))
        half = g.mul(g.mul(g.const(0.5), gap), t)
        square = g.mul(half, half)
        square = g.where(g.compare("lt", square, g.const(FURTHEST)), square, g.const(FURTHEST))
        middle = g.function("exp", g.mul(g.const(-0.5), g.mul(g.add(a, b), t)))
        near = g.mul(g.mul(t, middle), g.function("shc", square))
        size = g.where(g.compare("lt", gap, g.zero), g.neg(gap), gap)
        close = g.logic(
            "or",
            g.compare("lt", size, g.mul(g.const(NEAR), b)),
            g.compare("lt", g.mul(size, t), g.const(EARLY)),
        )
        return g.where(close, near, far)
