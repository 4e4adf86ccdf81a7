"""A page's differential equations as symbols, with the equations of their sensitivities.

With states y, individual parameters p and S_q = dy/dp_q, S_qr = d2y/dp_q dp_r, where y' = f(t, y, p),

    S_q'  = f_y S_q + f_q
    S_qr' = f_y S_qr + v_q^T F v_r        v_q = (S_q, e_q), F the second derivatives of f in (y, p)

A component that is zero for every value of the parameters, by the structure of f and of the initial state, is left out:
it is zero at the start, no dose gives to it, and its rate is the constant 0 once all such components are.

See Dickinson & Gelinas (1976), doi:10.1016/0021-9991(76)90007-3 for the sensitivity equations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Any

from nlmegen.structure.derive import forward, operands, substitute, topological
from nlmegen.structure.reading import Reader, call, entry, fail, known
from nlmegen.structure.trace import CONDITIONS, Graph, Symbol

Direction = tuple[str, int]
Component = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Equations:
    """The equations of a page: D rates of change and D initial amounts, as symbols.

    Attributes:
        compartments: names of the compartments, in the order in which `dynamics` returns them.
        parameters: names of the individual parameters, in the order in which `initial`, then `dynamics` reads them,
            then those that were named in addition.
        n_weights: length of the vector of network weights.
        graph: the graph that holds the symbols.
        rates: D symbols, d/dt of each amount, without infusions.
        initial: D symbols, the amounts at the start; functions of parameters and weights.
        autonomous: whether the rates are free of time.
        linear: whether the rates are affine in the amounts, with coefficients free of amounts and time.

    Example:
        >>> def dynamics(t, a, p):
        ...     return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.k * a.central)
        >>> equations = Equations.trace(dynamics)
        >>> equations.compartments, equations.parameters, equations.linear
        (('depot', 'central'), ('ka', 'k'), True)
        >>> equations.components(1).keys
        ((0, ()), (1, ()), (0, (0,)), (1, (0,)), (1, (1,)))
    """

    compartments: tuple[str, ...]
    parameters: tuple[str, ...]
    n_weights: int
    graph: Graph
    rates: tuple[Symbol, ...]
    initial: tuple[Symbol, ...]
    autonomous: bool
    linear: bool

    @classmethod
    def trace(
        cls,
        dynamics: Callable[..., Any],
        initial: Callable[..., Any] | None = None,
        n_weights: int = 0,
        also: Sequence[str] = (),
    ) -> Equations:
        """Run a page's methods on symbols.

        Args:
            dynamics: `dynamics(t, a, p)` of a page, bound.
            initial: `initial(p)` of a page, bound; None means that every amount starts at 0.
            n_weights: length of the vector of network weights.
            also: names of further parameters (those that doses read), which the equations may not read.

        Raises:
            ModelError: for what is wrong with the page under any interpretation; it names the line and the remedy.
            Untraceable: for what has no compiled form.
        """
        names = _compartments(dynamics)
        graph = Graph()
        parameters: dict[str, Symbol] = {}
        p = Reader("p", parameters, graph.param)
        start = [graph.zero] * len(names)
        if initial is not None:
            given = call(initial, "initial", p)
            known(initial, given, names)
            start = [
                entry(graph, initial, "initial", k, given[k]) if k in given else graph.zero for k in names
            ]
        a = Reader("a", {k: graph.state(i) for i, k in enumerate(names)}, None)
        rates = call(dynamics, "dynamics", graph.time(), a, p)
        f = [entry(graph, dynamics, "dynamics", k, rates[k]) for k in names]
        for name in also:
            p[name]
        leaves = [x for x in topological(f) if x.op == "leaf"]
        autonomous = all(x.args[0] != "time" for x in leaves)
        return cls(
            tuple(names),
            tuple(parameters),
            n_weights,
            graph,
            tuple(f),
            tuple(start),
            autonomous,
            autonomous and _affine(graph, f, len(names)),
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of a canonical text of the equations: the same for equal pages, in every process."""
        nodes = topological((*self.rates, *self.initial))
        place = {x.number: k for k, x in enumerate(nodes)}
        lines = [repr((self.compartments, self.parameters, self.n_weights))]
        for x in nodes:
            lines.append(f"{x.op} {[place[y.number] for y in operands(x)] or x.args}")
        lines.append(repr([place[x.number] for x in (*self.rates, *self.initial)]))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def jacobian(self) -> tuple[dict[Direction, Symbol], ...]:
        """For each rate its derivatives that are not zero, in ("state", j), ("param", k) and ("time", 0)."""
        return tuple(forward(self.rates, self._seeds(("state", "param", "time"))))

    @cached_property
    def hessian(self) -> tuple[dict[Direction, dict[Direction, Symbol]], ...]:
        """For each rate its second derivatives that are not zero, in states and parameters (both triangles)."""
        entries = [(i, u, x) for i, row in enumerate(self.jacobian) for u, x in row.items() if u[0] != "time"]
        second = forward([x for _, _, x in entries], self._seeds(("state", "param")))
        table: list[dict[Direction, dict[Direction, Symbol]]] = [{} for _ in self.rates]
        for (i, u, _), row in zip(entries, second, strict=True):
            for w, x in row.items():
                if u <= w:
                    table[i].setdefault(u, {})[w] = x
                    table[i].setdefault(w, {})[u] = x
        return tuple(table)

    def _seeds(self, kinds: tuple[str, ...]) -> dict[int, dict[Direction, Symbol]]:
        counts = {"state": len(self.compartments), "param": len(self.parameters), "time": 1}
        leaves = [(kind, k) for kind in kinds for k in range(counts[kind])]
        return {self.graph.leaf(*u).number: {u: self.graph.one} for u in leaves}

    def matrix(self) -> tuple[list[list[Symbol]], list[Symbol]]:
        """A [D][D] and b [D] of y' = A y + b, for linear equations.

        Raises:
            ValueError: when the equations are not linear.
        """
        if not self.linear:
            raise ValueError("the equations are not linear in the amounts")
        g, d = self.graph, len(self.compartments)
        a = [[row.get(("state", j), g.zero) for j in range(d)] for row in self.jacobian]
        return a, substitute(self.rates, {g.state(j).number: g.zero for j in range(d)})

    def components(self, order: int, injected: frozenset[tuple[int, int]] = frozenset()) -> Components:
        """The system of the amounts with their sensitivities to a given order.

        Args:
            order: 0 (amounts), 1 (with S_q) or 2 (with S_q and S_qr, q <= r).
            injected: (compartment, parameter) pairs in which doses depend on the parameter.
        """
        if order not in (0, 1, 2):
            raise ValueError(f"the order of sensitivities is 0, 1 or 2, got {order}")
        return _Sensitivities(self, order, injected).build()


def _compartments(dynamics: Callable[..., Any]) -> list[str]:
    """Names of the compartments, by a first run in which every name is taken for one."""
    graph = Graph()
    rates = call(
        dynamics, "dynamics", graph.time(), Reader("a", {}, graph.state), Reader("p", {}, graph.param)
    )
    if not rates:
        raise fail(
            dynamics, "dynamics returns no compartment; return dict(central=...) with the rate of each"
        )
    return list(rates)


def _affine(graph: Graph, rates: Sequence[Symbol], d: int) -> bool:
    """Whether rates free of time are affine in the states, with coefficients free of them."""
    states = {graph.state(j).number: {j: graph.one} for j in range(d)}

    def free(outputs: Sequence[Symbol]) -> bool:
        return not any(x.number in states for x in topological(outputs))

    # a condition has no derivative, so one that reads a state must be looked for
    conditions = [x for x in topological(rates) if x.op in CONDITIONS]
    return free(conditions) and free([x for row in forward(rates, states) for x in row.values()])


@dataclass(frozen=True, eq=False)
class Components:
    """A system of amounts and sensitivities.

    Attributes:
        equations: the equations of the amounts.
        order: 0, 1 or 2.
        keys: (state, directions) of each component: (i, ()) for every state, then the (i, (q,)), then the
            (i, (q, r)), q <= r, that are not structurally zero.
        rates: d/dt of each component, in the leaves "time", "state", "param", "weight" and "component" c (c counts all
            components; those below D are read as "state").
        initial: the components at the start.
        acceleration: D symbols, second time derivatives f_t + f_y (f + forcing) of the amounts.
        index: the place of each key.
    """

    equations: Equations
    order: int
    keys: tuple[Component, ...]
    rates: tuple[Symbol, ...]
    initial: tuple[Symbol, ...]
    acceleration: tuple[Symbol, ...]
    index: Mapping[Component, int]


class _Sensitivities:
    """Builds the components of one order."""

    def __init__(self, equations: Equations, order: int, injected: frozenset[tuple[int, int]]) -> None:
        self.equations, self.order = equations, order
        self.g, self.d, self.n = equations.graph, len(equations.compartments), len(equations.parameters)
        seeds = {self.g.param(k).number: {k: self.g.one} for k in range(self.n)}
        start = forward(equations.initial, seeds)
        self.start: dict[Component, Symbol] = {(i, ()): x for i, x in enumerate(equations.initial)}
        self.start |= {(i, (q,)): x for i, row in enumerate(start) for q, x in row.items()}
        given: set[Component] = {(i, (q,)) for i, q in injected}
        if order == 2:
            flat = [(key, x) for key, x in self.start.items() if key[1]]
            for ((i, (q,)), _), row in zip(flat, forward([x for _, x in flat], seeds), strict=True):
                self.start |= {(i, (q, r)): x for r, x in row.items() if q <= r}
            given |= {(i, (min(q, r), max(q, r))) for i, q in injected for r in range(self.n)}
        self.given = given | {key for key, x in self.start.items() if x is not self.g.zero}
        self.index: dict[Component, int] = {}
        self.contractions: dict[tuple[int, int], dict[Direction, Symbol]] = {}
        # which states a rate reads with a derivative: the way a sensitivity spreads
        self.reads = [[j for j in range(self.d) if ("state", j) in row] for row in equations.jacobian]
        # which it reads at all: a dose that moves with a parameter may move the time at which a condition changes
        self.moved = {q for _, q in injected}
        self.touches = [
            [x.args[1] for x in topological([rate]) if x.op == "leaf" and x.args[0] == "state"]
            for rate in equations.rates
        ]

    def build(self) -> Components:
        keys: list[Component] = [(i, ()) for i in range(self.d)]
        rates = {key: self.equations.rates[key[0]] for key in keys}
        for order in range(1, self.order + 1):
            self.index = {key: c for c, key in enumerate(keys)}
            source = {}
            for w in combinations_with_replacement(range(self.n), order):
                for i in range(self.d):
                    x = self._source1(i, *w) if order == 1 else self._source2(i, *w)
                    if x is not self.g.zero:
                        source[i, w] = x
            keys += self._alive(order, source)
            self.index = {key: c for c, key in enumerate(keys)}
            rates |= {key: self._rate(key, source) for key in keys if len(key[1]) == order}
        return Components(
            self.equations,
            self.order,
            tuple(keys),
            tuple(rates[key] for key in keys),
            tuple(self.start.get(key, self.g.zero) for key in keys),
            self._acceleration(),
            self.index,
        )

    def _alive(self, order: int, source: Mapping[Component, Symbol]) -> list[Component]:
        """Keys of one order that are not structurally zero: given or driven, or fed by one that is."""
        alive = {key for key in (*self.given, *source) if len(key[1]) == order}
        while True:
            fed = {
                (i, w)
                for w in {w for _, w in alive}
                for i in range(self.d)
                if any(
                    (j, w) in alive for j in (self.touches if self.moved.intersection(w) else self.reads)[i]
                )
            }
            if fed <= alive:
                return sorted(alive, key=lambda key: (key[1], key[0]))
            alive |= fed

    def _sensitivity(self, u: Direction, q: int) -> Symbol:
        """Entry u of v_q = (S_q, e_q)."""
        if u[0] == "param":
            return self.g.one if u[1] == q else self.g.zero
        c = self.index.get((u[1], (q,)))
        return self.g.zero if c is None else self.g.component(c)

    def _source1(self, i: int, q: int) -> Symbol:
        return self.equations.jacobian[i].get(("param", q), self.g.zero)

    def _source2(self, i: int, q: int, r: int) -> Symbol:
        """v_q^T F v_r of rate i."""
        total = self.g.zero
        for u, x in self._contracted(i, q).items():
            total = self.g.add(total, self.g.mul(x, self._sensitivity(u, r)))
        return total

    def _contracted(self, i: int, q: int) -> dict[Direction, Symbol]:
        """v_q^T F of rate i."""
        key = (i, q)
        if key not in self.contractions:
            total: dict[Direction, Symbol] = {}
            for u, row in self.equations.hessian[i].items():
                v = self._sensitivity(u, q)
                if v is not self.g.zero:
                    for w, x in row.items():
                        total[w] = self.g.add(total.get(w, self.g.zero), self.g.mul(x, v))
            self.contractions[key] = total
        return self.contractions[key]

    def _rate(self, key: Component, source: Mapping[Component, Symbol]) -> Symbol:
        """f_y S + source."""
        i, w = key
        total = source.get(key, self.g.zero)
        for j in self.reads[i]:
            c = self.index.get((j, w))
            if c is not None:
                slope = self.equations.jacobian[i]["state", j]
                total = self.g.add(total, self.g.mul(slope, self.g.component(c)))
        return total

    def _acceleration(self) -> tuple[Symbol, ...]:
        out = []
        for row in self.equations.jacobian:
            total = row.get(("time", 0), self.g.zero)
            for j in range(self.d):
                if ("state", j) in row:
                    speed = self.g.add(self.equations.rates[j], self.g.forcing(j))
                    total = self.g.add(total, self.g.mul(row["state", j], speed))
            out.append(total)
        return tuple(out)
