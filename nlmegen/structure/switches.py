"""Rates that jump: where `torch.where` puts one formula for another, and the two differ at the moment of the switch.

Amounts are right up to the tolerance of the steps. Sensitivities are not when the moment depends on the parameters (or
on amounts, which do): at it they jump by (f- - f+) dtau/dp, which the sensitivity equations of the two sides do not
know. `maximum`, `clamp` and `abs` switch without a jump. The search is numerical: along each quantity that a condition
reads, the others held at random values, the condition is made to change, and the rates on its two sides are compared.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import value_of
from nlmegen.structure.derive import evaluate, substitute, topological
from nlmegen.structure.equations import Equations
from nlmegen.structure.symbols import Symbol

TRIALS, NEAR, SMALL = 5, 1e-9, 1e-9
"""Random places; how near to the switch its two sides are compared; relative difference that is rounding."""


def told(equations: Equations) -> tuple[str, ...]:
    """What cannot be right about rates that jump, in words."""
    moments, words = jumps(equations), []
    if depends := sorted(moments - {"time"}):
        words.append(
            f"the rates jump (torch.where) at moments that depend on {' and '.join(depends)}: predictions are "
            "right, their derivatives lack the jump, and with them modes, objective and standard errors; make the "
            "switch smooth (torch.sigmoid), or write it as a dose with nl.Dose(lag=...)"
        )
    if "time" in moments:
        words.append(
            "the rates jump (torch.where) at set times, which steps may pass over; put a record (EVID 2) at each"
        )
    return tuple(words)


def fed(equations: Equations, state: int) -> bool:
    """Whether anything flows into a compartment besides doses: whether its rate can be other than 0 while it is empty.

    Example:
        >>> page = lambda t, a, p: dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.k * a.central)
        >>> [fed(Equations.trace(page), k) for k in (0, 1)]
        [False, True]
    """
    graph = equations.graph
    (rate,) = substitute([equations.rates[state]], {graph.state(state).number: graph.zero})
    return rate is not graph.zero


def jumps(equations: Equations) -> set[str]:
    """What the moments depend on at which rates jump: "time" (alone), "amounts", "parameters".

    Example:
        >>> page = lambda t, a, p: dict(central=torch.where(t < p.d1, p.rate, 0.0) - p.k * a.central)
        >>> sorted(jumps(Equations.trace(page)))
        ['parameters']
    """
    found: set[str] = set()
    for x in topological(equations.rates):
        if x.op in ("lt", "le"):
            difference = equations.graph.sub(*x.args)
            leaves = [y for y in topological([difference]) if y.op == "leaf"]
            if any(_jumps(equations, difference, leaf) for leaf in leaves):
                kinds = {y.args[0] for y in leaves}
                found |= {w for k, w in (("state", "amounts"), ("param", "parameters")) if k in kinds} or {
                    "time"
                }
    return found


def _jumps(equations: Equations, difference: Symbol, moving: Symbol) -> bool:
    """Whether rates jump where `difference` changes its sign as one leaf moves."""
    generator = torch.Generator().manual_seed(5)
    grid = torch.logspace(-4, 4, 801, dtype=torch.float64)
    grid = torch.cat((-grid.flip(0), grid))
    others: dict[tuple[str, int], Tensor] = {}

    def at(place: Tensor, outputs: list[Symbol]) -> list[Tensor]:
        def leaf(kind: str, index: int) -> Tensor:
            if (kind, index) == moving.args:
                return place
            if (kind, index) not in others:
                others[kind, index] = 0.5 + torch.rand(1, generator=generator, dtype=torch.float64)
            return others[kind, index]

        return [cast(Tensor, value_of(x)).expand(place.shape) for x in evaluate(outputs, leaf)]

    for _ in range(TRIALS):
        others.clear()
        (sign,) = at(grid, [difference])
        turns = ((sign[1:] > 0) != (sign[:-1] > 0)).nonzero()[:, 0]
        low, high = grid[turns], grid[turns + 1]
        before = sign[turns] > 0
        for _ in range(60):
            middle = (low + high) / 2
            same = (at(middle, [difference])[0] > 0) == before
            low, high = torch.where(same, middle, low), torch.where(same, high, middle)
        apart = []
        for size in (NEAR * (1e-3 + low.abs()), NEAR / 16 * (1e-3 + low.abs())):
            sides = zip(
                at(low - size, list(equations.rates)), at(high + size, list(equations.rates)), strict=True
            )
            apart.append(
                [((left - right).abs(), torch.maximum(left.abs(), right.abs())) for left, right in sides]
            )
        # a jump stays as the two sides close in on it; what a slope leaves between them shrinks with their distance
        for (far, _), (close, scale) in zip(*apart, strict=True):
            if bool(((close > 0.5 * far) & (close > SMALL * scale)).any()):
                return True
    return False
