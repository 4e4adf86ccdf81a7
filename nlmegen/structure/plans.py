"""What the compiled page computes, as symbols of a blueprint: predictions and their reverse derivatives.

    prediction   f and its derivatives along D directions u_d of eta:
                     f_d = sum_q f_q w_dq ,  f_de = sum_qr f_qr w_dq w_er + sum_q f_q w_de,q ,
                     w_d = s' u_d ,  w_de = u_d' s'' u_e
    pull         the reverse derivative of (f, f_d) in theta, eta and u, from cotangents F and J_d:
                     of s: sum_t F f_q + J_d f_qr w_dr ;   of w_d: sum_t J_d f_q

A plan consists of numbers of the row that observations need, of numbers at every observation, stored or summed, and of
numbers that follow from the sums. Those of the conditional density stand in `densities`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Literal

from nlmegen.structure.blueprint import Blueprint, Course
from nlmegen.structure.derive import forward, reverse
from nlmegen.structure.graph import Graph
from nlmegen.structure.symbols import Symbol

ROW_LEAVES = ("theta", "eta", "covariate", "sigma", "factor", "white", "along", "inverse")
"""Leaves of a row, in the order in which they stand in memory."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One program.

    Attributes:
        blueprint, course: what it is made from.
        name: of its function.
        sizes: how many leaves of each kind a row has, in the order of `ROW_LEAVES`.
        cotangents: numbers that are given at every observation.
        bound: numbers of a row, read at observations as the leaves "bound".
        each: numbers at every observation.
        fate: whether these are stored or summed.
        end: numbers of a row that follow from the sums, the leaves "sum".
    """

    blueprint: Blueprint
    course: Course
    name: str
    sizes: tuple[int, ...]
    cotangents: int
    bound: tuple[Symbol, ...]
    each: tuple[Symbol, ...]
    fate: Literal["store", "sum"]
    end: tuple[Symbol, ...]


def triangle(n: int) -> list[tuple[int, int]]:
    """The pairs (i, j), i <= j < n, in the order in which halves of symmetric matrices are kept."""
    return list(combinations_with_replacement(range(n), 2))


class Binder:
    """Numbers of a row as leaves of an observation; what is zero stays zero."""

    def __init__(self, g: Graph) -> None:
        self.g, self.symbols = g, list[Symbol]()
        self._places: dict[int, int] = {}

    def __call__(self, x: Symbol) -> Symbol:
        """The leaf that stands for `x`."""
        if x.op == "const":
            return x
        if x.number not in self._places:
            self._places[x.number] = len(self.symbols)
            self.symbols.append(x)
        return self.g.leaf("bound", self._places[x.number])


def total(g: Graph, terms: Sequence[Symbol]) -> Symbol:
    """The sum of symbols."""
    found = g.zero
    for x in terms:
        found = g.add(found, x)
    return found


def flag(blueprint: Blueprint) -> Symbol:
    """1 where the closed form must not be used, else 0."""
    return blueprint.graph.number(blueprint.meeting)


def _along(blueprint: Blueprint, active: Sequence[int], directions: int) -> list[list[Symbol]]:
    """w_dq, the derivative of the active quantities along each direction of eta."""
    g, q = blueprint.graph, blueprint.q
    seeds = {
        g.leaf("eta", i).number: {d: g.leaf("along", d * q + i) for d in range(directions)} for i in range(q)
    }
    found = forward([blueprint.quantities[k] for k in active], seeds)
    return [[row.get(d, g.zero) for row in found] for d in range(directions)]


def prediction(blueprint: Blueprint, order: int, directions: int) -> Plan:
    """Predictions with derivatives to `order` along directions of eta."""
    g, q = blueprint.graph, blueprint.q
    directions = directions if order else 0
    active = blueprint.moving(("eta",)) if order else ()
    course = blueprint.course(active, order)
    bind = Binder(g)
    moves = _along(blueprint, active, directions)
    w = [[bind(x) for x in row] for row in moves]
    each = [course.prediction]
    each += [total(g, [g.mul(x, row[k]) for k, x in course.first.items()]) for row in w]
    if order == 2:
        seeds = {
            g.leaf("eta", i).number: {d: g.leaf("along", d * q + i) for d in range(directions)}
            for i in range(q)
        }
        bends = [forward(row, seeds) for row in moves]
        for d, e in triangle(directions):
            terms = [g.mul(x, bind(bends[d][k].get(e, g.zero))) for k, x in course.first.items()]
            for (k, r), x in course.second.items():
                pair = g.mul(w[d][k], w[e][r])
                if k != r:
                    pair = g.add(pair, g.mul(w[d][r], w[e][k]))
                terms.append(g.mul(x, pair))
            each.append(total(g, terms))
    sizes = (blueprint.n_theta, q, blueprint.n_covariates, 0, 0, 0, directions * q, 0)
    return Plan(
        blueprint,
        course,
        f"prediction{order}",
        sizes,
        0,
        tuple(bind.symbols),
        tuple(each),
        "store",
        (flag(blueprint),),
    )


def pull(blueprint: Blueprint, directions: int) -> Plan:
    """Reverse derivatives of a prediction and of its derivatives along directions of eta."""
    g, q = blueprint.graph, blueprint.q
    active = blueprint.moving(("eta", "theta"))
    course = blueprint.course(active, 2 if directions else 1)
    bind = Binder(g)
    moves = _along(blueprint, active, directions)
    bar = [g.leaf("cotangent", d) for d in range(1 + directions)]
    turn = [
        total(g, [g.mul(bar[1 + d], bind(moves[d][r])) for d in range(directions)])
        for r in range(len(active))
    ]
    each: list[Symbol] = []
    whole = g.zero
    for k in range(len(active)):
        f = course.first.get(k, g.zero)
        terms = [g.mul(bar[0], f)]
        terms += [
            g.mul(course.second.get((min(k, r), max(k, r)), g.zero), turn[r]) for r in range(len(active))
        ]
        whole = g.add(whole, g.mul(g.leaf("sum", len(each)), blueprint.quantities[active[k]]))
        each.append(total(g, terms))
        for d in range(directions):
            if moves[d][k] is not g.zero:
                whole = g.add(whole, g.mul(g.leaf("sum", len(each)), moves[d][k]))
                each.append(g.mul(bar[1 + d], f))
    leaves = [g.leaf("theta", j) for j in range(blueprint.n_theta)]
    leaves += [g.leaf("eta", k) for k in range(q)]
    leaves += [g.leaf("along", k) for k in range(directions * q)]
    end = reverse([whole], [g.one], leaves)
    sizes = (blueprint.n_theta, q, blueprint.n_covariates, 0, 0, 0, directions * q, 0)
    return Plan(
        blueprint,
        course,
        f"pull{directions}",
        sizes,
        1 + directions,
        tuple(bind.symbols),
        tuple(each),
        "sum",
        tuple(end),
    )
