"""A page with a closed form as symbols: what the compiled page is made from.

A prediction is computed in two stages. For each row (one draw of one subject) the *quantities* s follow once from
theta, eta and covariates; then at every observation the prediction f follows from s, the time and the amounts, which
are carried from event to event. Derivatives are taken in s,

    f_q = df/ds_q ,    f_qr = d2f/ds_q ds_r ,

with the amounts' own derivatives X_q, X_qr carried along, and meet those of s in theta and eta only once a row. Leaves:

    of a row          "theta" j, "eta" k, "covariate" c, "factor" place of L_ij, "white" k, "along" place of u_di
    at an observation "param" k (s_k), "state" i, "component" c (X_q, X_qr), "forcing" i, "step" (since the event),
                      "time"
    of the residual   "prediction", "sigma" j, "observed" (y), "endpoint" (which), "held" (a variance given)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

from nlmegen.structure.derive import forward, operands, topological
from nlmegen.structure.graph import Graph
from nlmegen.structure.symbols import Symbol

Key = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Blueprint:
    """The symbols of a page.

    Attributes:
        graph: that holds them.
        n_theta, q, n_covariates, n_sigma: numbers of leaves of a row.
        positions: (row, column) of the entries of the Cholesky factor of Omega that may differ from 0.
        quantities: s, functions of theta, eta and covariates.
        meeting: condition on a row under which the closed form must not be used.
        prediction: f, linked to the scale of its residual error.
        amounts: for each compartment its amount a time "step" after an event; the constant 0 where nothing ever is.
        several: whether there is more than one event, so that amounts are carried.
        variance: R, dR/df and d2R/df2.
    """

    graph: Graph
    n_theta: int
    q: int
    n_covariates: int
    n_sigma: int
    positions: tuple[tuple[int, int], ...]
    quantities: tuple[Symbol, ...]
    meeting: Symbol
    prediction: Symbol
    amounts: tuple[Symbol, ...]
    several: bool
    variance: tuple[Symbol, Symbol, Symbol]

    @property
    def compartments(self) -> int:
        """Number of compartments."""
        return len(self.amounts)

    @cached_property
    def digest(self) -> str:
        """sha256 of a canonical text of the symbols: the same for equal pages, in every process."""
        outputs = (*self.quantities, self.meeting, self.prediction, *self.amounts, *self.variance)
        nodes = topological(outputs)
        place = {x.number: k for k, x in enumerate(nodes)}
        sizes = (self.n_theta, self.q, self.n_covariates, self.n_sigma, self.positions)
        lines = [repr((*sizes, len(self.quantities), len(self.amounts), self.several))]
        for x in nodes:
            lines.append(f"{x.op} {[place[y.number] for y in operands(x)] or x.args}")
        lines.append(repr([place[x.number] for x in outputs]))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def moving(self, kinds: Sequence[str]) -> tuple[int, ...]:
        """The quantities that depend on leaves of these kinds ("eta", "theta")."""
        return tuple(
            k
            for k, s in enumerate(self.quantities)
            if any(x.op == "leaf" and x.args[0] in kinds for x in topological([s]))
        )

    def course(self, active: Sequence[int], order: int) -> Course:
        """The prediction with derivatives in the quantities `active`."""
        return _Builder(self, tuple(active), order).build()


@dataclass(frozen=True, eq=False)
class Course:
    """A prediction and what is carried from event to event, with derivatives.

    Attributes:
        prediction: f.
        first: f_q by the place of q among the active quantities.
        second: f_qr likewise, q <= r; what is missing is zero.
        keys: (compartment, directions) of what is carried: amounts, then X_q, then X_qr.
        carried: their values at the end of a segment; the leaves are "state" and "component".
    """

    prediction: Symbol
    first: dict[int, Symbol]
    second: dict[tuple[int, int], Symbol]
    keys: tuple[Key, ...]
    carried: tuple[Symbol, ...]


class _Builder:
    """Builds a course: the chain rule through amounts that have derivatives of their own."""

    def __init__(self, blueprint: Blueprint, active: tuple[int, ...], order: int) -> None:
        self.print, self.active, self.order, self.g = blueprint, active, order, blueprint.graph
        self.count = len(active)
        self.live = [i for i, x in enumerate(blueprint.amounts) if x is not self.g.zero]
        self.index: dict[Key, int] = {}

    def build(self) -> Course:
        amounts = self.print.amounts
        keys: list[Key] = []
        carried: list[Symbol] = []
        if self.print.several:
            keys = [(i, ()) for i in self.live]
            carried = [amounts[i] for i in self.live]
            for order in range(1, self.order + 1):
                keys += self._alive(order)
                self.index = {key: c for c, key in enumerate(keys)}
            derivatives = self._derivatives([amounts[i] for i in self.live])
            for i, directions in keys[len(self.live) :]:
                found = derivatives[self.live.index(i)]
                carried.append(found.get(directions, self.g.zero))
        (own,) = self._derivatives([self.print.prediction])
        return Course(
            self.print.prediction,
            {w[0]: x for w, x in own.items() if len(w) == 1},
            {(w[0], w[1]): x for w, x in own.items() if len(w) == 2},
            tuple(keys),
            tuple(carried),
        )

    def _alive(self, order: int) -> list[Key]:
        """Derivatives of one order that are not zero by structure: a fixed point, as what arrives is carried on."""
        alive: set[Key] = set()
        lower = dict(self.index)
        while True:
            every = [*lower, *sorted(alive - set(lower))]
            self.index = {key: c for c, key in enumerate(every)}
            derivatives = self._derivatives([self.print.amounts[i] for i in self.live])
            found = {
                (i, w)
                for i, own in zip(self.live, derivatives, strict=True)
                for w in combinations_with_replacement(range(self.count), order)
                if own.get(w, self.g.zero) is not self.g.zero
            }
            if found <= alive:
                return sorted(alive, key=lambda key: (key[1], key[0]))
            alive |= found

    def _derivatives(self, outputs: Sequence[Symbol]) -> list[dict[tuple[int, ...], Symbol]]:
        """Derivatives of outputs by directions, through "param", "state" and "component" leaves."""
        g = self.g
        seeds: dict[int, dict[int, Symbol]] = {
            g.param(k).number: {q: g.one} for q, k in enumerate(self.active)
        }
        for i in self.live:
            seeds[g.state(i).number] = {
                q: x for q in range(self.count) if (x := self._leaf(i, (q,))) is not None
            }
        found: list[dict[tuple[int, ...], Symbol]] = [{} for _ in outputs]
        if self.order == 0:
            return found
        first = forward(outputs, seeds)
        for own, row in zip(found, first, strict=True):
            own |= {(q,): x for q, x in row.items()}
        if self.order == 1:
            return found
        for i, directions in [key for key in self.index if len(key[1]) == 1]:
            leaf = self._leaf(i, directions)
            assert leaf is not None
            seeds[leaf.number] = {
                r: x
                for r in range(self.count)
                if (x := self._leaf(i, tuple(sorted((*directions, r))))) is not None
            }
        flat = [(k, q, x) for k, row in enumerate(first) for q, x in row.items()]
        for (k, q, _), row in zip(flat, forward([x for *_, x in flat], seeds), strict=True):
            found[k] |= {(q, r): x for r, x in row.items() if q <= r}
        return found

    def _leaf(self, i: int, directions: tuple[int, ...]) -> Symbol | None:
        c = self.index.get((i, directions))
        return None if c is None else self.g.component(c)
