"""The conditional density of a row as plans: for the search of its mode, and for the score at the mode.

density   l(z) = 1/2 sum_t [ (y - f)^2 / R + log R ] + 1/2 z'z at eta = L z, its gradient, its Hessian and the expected
information in z (see `inference.ebe`): sums over observations in the quantities s, then once s in z
score     the total derivative of O = 2 l + log det K at the mode, K the expected information, in theta, the Cholesky
factor L and sigma (see `inference.conditional`). With A = ds/dz, C = A K^-1 A', the sums S_q of phi' f_q,
H_qr and M_qr of the density, w = d log det K / dz, u = H^-1 w and
B_q = sum_t W' (f' C f) f_q + 2 W f_qr (C f)_r
the cotangent of s is 2 S + B - H A u, that of A is 2 M A K^-1 - S u'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nlmegen.structure.blueprint import Blueprint, Course
from nlmegen.structure.derive import forward, reverse, substitute
from nlmegen.structure.plans import Binder, Plan, flag, total, triangle
from nlmegen.structure.symbols import Symbol


def density(blueprint: Blueprint, held: bool) -> Plan:
    """The conditional density with gradient, Hessian and expected information in the whitened random effects.

    Args:
        blueprint: the page.
        held: whether the residual variance is given, and does not move with the prediction.
    """
    g, q = blueprint.graph, blueprint.q
    active = blueprint.moving(("eta",))
    course = blueprint.course(active, 2)
    inside, moved = _whitened(blueprint)
    z = [g.leaf("white", k) for k in range(q)]
    slopes, bends = _slopes(moved, active)
    every = range(len(active))
    each = _residual(blueprint, course, every, every, held)
    sums = {key: g.leaf("sum", k) for k, key in enumerate(each)}

    def entry(kind: str, k: int, r: int) -> Symbol:
        return sums.get((kind, min(k, r), max(k, r)), g.zero)

    value = g.add(sums["value", 0, 0], g.mul(g.const(0.5), total(g, [g.mul(x, x) for x in z])))
    gradient = [
        total(g, [z[i], *(g.mul(sums["first", k, 0], row[i]) for k, row in enumerate(slopes) if i in row)])
        for i in range(q)
    ]
    hessian, information = [], []
    for i, j in triangle(q):
        pairs = [
            (k, r, g.mul(row[i], other[j]))
            for k, row in enumerate(slopes)
            if i in row
            for r, other in enumerate(slopes)
            if j in other
        ]
        identity = g.one if i == j else g.zero
        information.append(total(g, [identity, *(g.mul(entry("expected", k, r), x) for k, r, x in pairs)]))
        curved = [
            g.mul(sums["first", k, 0], bend[i].get(j, g.zero)) for k, bend in enumerate(bends) if i in bend
        ]
        hessian.append(total(g, [identity, *(g.mul(entry("second", k, r), x) for k, r, x in pairs), *curved]))
    end = [value, *substitute([flag(blueprint)], inside), *gradient, *hessian, *information]
    sizes = (
        blueprint.n_theta,
        0,
        blueprint.n_covariates,
        0 if held else blueprint.n_sigma,
        len(blueprint.positions),
        q,
        0,
        0,
    )
    name = "held" if held else "density"
    return Plan(moved, course, name, sizes, 0, (), tuple(each.values()), "sum", tuple(end))


Slopes = list[dict[int, Symbol]]
Bends = list[dict[int, dict[int, Symbol]]]


def _whitened(blueprint: Blueprint) -> tuple[dict[int, Symbol], Blueprint]:
    """What takes the place of each eta, and the blueprint whose quantities are functions of z, with eta = L z."""
    g = blueprint.graph
    terms: list[list[Symbol]] = [[] for _ in range(blueprint.q)]
    for place, (i, j) in enumerate(blueprint.positions):
        terms[i].append(g.mul(g.leaf("factor", place), g.leaf("white", j)))
    inside = {g.leaf("eta", k).number: total(g, row) for k, row in enumerate(terms)}
    return inside, replace(blueprint, quantities=tuple(substitute(blueprint.quantities, inside)))


def _slopes(moved: Blueprint, active: Sequence[int]) -> tuple[Slopes, Bends]:
    """First and second derivatives in z of the active quantities, by the numbers of the directions."""
    g = moved.graph
    seeds = {g.leaf("white", k).number: {k: g.one} for k in range(moved.q)}
    slopes = forward([moved.quantities[k] for k in active], seeds)
    return slopes, [dict(zip(row, forward(list(row.values()), seeds), strict=True)) for row in slopes]


@dataclass(frozen=True, eq=False)
class _Terms:
    """The residual part of the density at one observation, in the leaves of the residual.

    Attributes:
        phi: 1/2 [ (y - f)^2 / R + log R ]; `first` and `second` are its derivatives in f.
        weight: W, the expected second derivative; `turned` is dW/df.
    """

    phi: Symbol
    first: Symbol
    second: Symbol
    weight: Symbol
    turned: Symbol


def _terms(blueprint: Blueprint, held: bool) -> _Terms:
    g, f = blueprint.graph, blueprint.graph.leaf("prediction", 0)
    variance, slope, bend = blueprint.variance
    if held:
        variance, slope, bend = g.leaf("held", 0), g.zero, g.zero
    half = g.const(0.5)
    residual = g.sub(g.leaf("observed", 0), f)
    inverse = g.reciprocal(variance)
    scaled, relative = g.mul(residual, inverse), g.mul(slope, inverse)
    square = g.mul(scaled, residual)
    phi = g.mul(half, g.add(square, g.function("log", variance)))
    first = g.sub(g.mul(g.mul(half, relative), g.sub(g.one, square)), scaled)
    weight = g.add(inverse, g.mul(half, g.mul(relative, relative)))
    curved = g.mul(g.mul(bend, inverse), g.sub(g.one, square))
    bent = g.mul(g.mul(relative, relative), g.sub(g.mul(g.const(2.0), square), g.one))
    second = g.add(
        g.add(inverse, g.mul(g.const(2.0), g.mul(scaled, relative))), g.mul(half, g.add(curved, bent))
    )
    turned = g.sub(
        g.mul(relative, g.sub(g.mul(bend, inverse), g.mul(relative, relative))),
        g.mul(slope, g.mul(inverse, inverse)),
    )
    return _Terms(phi, first, second, weight, turned)


Sums = dict[tuple[str, int, int], Symbol]


def _residual(
    blueprint: Blueprint, course: Course, every: Sequence[int], some: Sequence[int], held: bool
) -> Sums:
    """What is summed over observations: l, and l', l'' and the expected l'' in the quantities.

    Args:
        blueprint, course, held: the page.
        every: quantities in which to differentiate.
        some: those in which second derivatives are wanted, with any other.
    """
    g, terms = blueprint.graph, _terms(blueprint, held)
    out = {("value", 0, 0): terms.phi}
    slopes = {k: course.first.get(k, g.zero) for k in every}
    for k in every:
        out["first", k, 0] = g.mul(terms.first, slopes[k])
    for k in every:
        for r in every:
            if k <= r and (k in some or r in some):
                pair = g.mul(slopes[k], slopes[r])
                bending = course.second.get((k, r), g.zero)
                out["second", k, r] = g.add(g.mul(terms.second, pair), g.mul(terms.first, bending))
                if k in some and r in some:
                    out["expected", k, r] = g.mul(terms.weight, pair)
    return out


def score(blueprint: Blueprint) -> Plan:
    """Total derivatives of the FOCEI objective of a row at its mode, in theta, L and sigma.

    The leaves "inverse" are the upper triangles of K^-1, then of H^-1.
    """
    g, q = blueprint.graph, blueprint.q
    active = blueprint.moving(("eta", "theta"))
    inner = set(blueprint.moving(("eta",)))
    every = range(len(active))
    some = [k for k in every if active[k] in inner]
    course = blueprint.course(active, 2)
    _, moved = _whitened(blueprint)
    slopes, bends = _slopes(moved, active)
    halves = triangle(q)
    place = {pair: k for k, pair in enumerate(halves)}

    def inverse(i: int, j: int, which: int) -> Symbol:
        return g.leaf("inverse", which * len(halves) + place[min(i, j), max(i, j)])

    # A K^-1 and C = A K^-1 A'
    spread = {
        (k, j): total(g, [g.mul(x, inverse(i, j, 0)) for i, x in slopes[k].items()])
        for k in some
        for j in range(q)
    }
    bind = Binder(g)
    c = {
        (k, r): bind(total(g, [g.mul(spread[k, j], x) for j, x in slopes[r].items()]))
        for k in some
        for r in some
        if k <= r
    }

    each = _residual(blueprint, course, every, some, held=False)
    terms = _terms(blueprint, held=False)
    along = {
        k: total(g, [g.mul(c[min(k, r), max(k, r)], course.first.get(r, g.zero)) for r in some]) for k in some
    }
    explained = total(g, [g.mul(along[k], course.first.get(k, g.zero)) for k in some])
    for k in every:
        bent = total(g, [g.mul(course.second.get((min(k, r), max(k, r)), g.zero), along[r]) for r in some])
        each["pulled", k, 0] = g.add(
            g.mul(g.mul(terms.turned, explained), course.first.get(k, g.zero)),
            g.mul(g.const(2.0), g.mul(terms.weight, bent)),
        )
    seeds = {g.leaf("sigma", m).number: {m: g.one} for m in range(blueprint.n_sigma)}
    phi, first, weight = forward([terms.phi, terms.first, terms.weight], seeds)
    for m in range(blueprint.n_sigma):
        each["sigma", m, 0] = g.add(
            g.mul(g.const(2.0), phi.get(m, g.zero)), g.mul(weight.get(m, g.zero), explained)
        )
        for r in some:
            each["mixed", m, r] = g.mul(first.get(m, g.zero), course.first.get(r, g.zero))
    # the value itself is not wanted
    del each["value", 0, 0]
    each = {key: x for key, x in each.items() if x is not g.zero}
    sums = {key: g.leaf("sum", k) for k, key in enumerate(each)}

    def summed(kind: str, k: int, r: int = 0) -> Symbol:
        return sums.get((kind, k, r), g.zero)

    # 2 M A K^-1, w and u = H^-1 w
    shape = {
        (k, i): g.mul(
            g.const(2.0),
            total(g, [g.mul(summed("expected", min(k, r), max(k, r)), spread[r, i]) for r in some]),
        )
        for k in some
        for i in range(q)
    }
    w = [
        total(
            g,
            [g.mul(summed("pulled", k), slopes[k][j]) for k in some if j in slopes[k]]
            + [g.mul(shape[k, i], bend[j]) for k in some for i, bend in bends[k].items() if j in bend],
        )
        for j in range(q)
    ]
    u = [total(g, [g.mul(inverse(i, j, 1), w[j]) for j in range(q)]) for i in range(q)]
    turn = {k: total(g, [g.mul(x, u[i]) for i, x in slopes[k].items()]) for k in some}

    # cotangents of s and of A, constants while these are differentiated
    constants: list[Symbol] = []

    def constant(x: Symbol) -> Symbol:
        constants.append(x)
        return g.leaf("constant", len(constants) - 1)

    pieces = []
    for k in every:
        back = total(g, [g.mul(summed("second", min(k, r), max(k, r)), turn[r]) for r in some])
        bar = g.sub(g.add(g.mul(g.const(2.0), summed("first", k)), summed("pulled", k)), back)
        pieces.append(g.mul(constant(bar), moved.quantities[active[k]]))
    for k in some:
        for i, x in slopes[k].items():
            bar = g.sub(shape[k, i], g.mul(summed("first", k), u[i]))
            pieces.append(g.mul(constant(bar), x))
    leaves = [g.leaf("theta", j) for j in range(blueprint.n_theta)]
    leaves += [g.leaf("factor", j) for j in range(len(blueprint.positions))]
    found = reverse([total(g, pieces)], [g.one], leaves)
    end = substitute(found, {g.leaf("constant", k).number: x for k, x in enumerate(constants)})
    for m in range(blueprint.n_sigma):
        end.append(g.sub(summed("sigma", m), total(g, [g.mul(summed("mixed", m, r), turn[r]) for r in some])))
    sizes = (
        blueprint.n_theta,
        0,
        blueprint.n_covariates,
        blueprint.n_sigma,
        len(blueprint.positions),
        q,
        0,
        2 * len(halves),
    )
    return Plan(
        moved, course, "score", sizes, 0, tuple(bind.symbols), tuple(each.values()), "sum", tuple(end)
    )
