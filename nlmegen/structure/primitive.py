"""Graphs in the few operations that a compiler has to emit.

tanh, sigmoid, softplus and powers by a constant are single operations while derivatives are taken (their derivatives
are then exact and short); here they become arithmetic, sqrt, exp, log1p and choices, without cancellation near 0 and
without overflow far from it. What is left: the operations of `graph` without those three, with `pow` for exponents
that are not constant integers or halves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlmegen.structure.derive import operands, rebuild, topological
from nlmegen.structure.trace import Graph, Symbol

LARGEST_POWER = 64

# tanh near 0 by a rational function: Moshier, Cephes Mathematical Library (1989), tanh.c
TANH_P = (-9.64399179425052238628e-1, -9.92877231001918586564e1, -1.61468768441708447952e3)
TANH_Q = (1.0, 1.12811678491632931402e2, 2.23548839060100448583e3, 4.84406305325125486048e3)


def primitive(outputs: Sequence[Symbol]) -> list[Symbol]:
    """The outputs in primitive operations.

    Args:
        outputs: symbols of one graph.

    Returns:
        As many symbols of the same graph, equal in value (not meant to be differentiated).

    Example:
        >>> g = Graph()
        >>> sorted({x.op for x in topological(primitive([g.function("sigmoid", g.state(0))]))})
        ['add', 'const', 'exp', 'leaf', 'reciprocal', 'sub']
    """
    found: dict[int, Symbol] = {}
    for x in topological(outputs):
        args = [found[y.number] for y in operands(x)]
        if x.op in _FORMS:
            found[x.number] = x if args[0].op == "const" else _FORMS[x.op](x.graph, args[0])
        elif x.op == "pow" and args[1].op == "const":
            found[x.number] = _power(x.graph, args[0], args[1].args[0])
        else:
            found[x.number] = rebuild(x, args) if args else x
    return [found[x.number] for x in outputs]


def _power(g: Graph, a: Symbol, exponent: float) -> Symbol:
    """a ** exponent by squaring, for integers and halves."""
    size = abs(exponent)
    if size > LARGEST_POWER or 2 * size != int(2 * size):
        return g.pow(a, g.const(exponent))
    result, square, n = (g.function("sqrt", a) if size != int(size) else g.one), a, int(size)
    while n:
        if n & 1:
            result = g.mul(result, square)
        n >>= 1
        if n:
            square = g.mul(square, square)
    return result if exponent > 0 else g.reciprocal(result)


def _polynomial(g: Graph, coefficients: Sequence[float], x: Symbol) -> Symbol:
    """Horner's rule, the highest power first."""
    total = g.const(coefficients[0])
    for c in coefficients[1:]:
        total = g.add(g.mul(total, x), g.const(c))
    return total


def _tanh(g: Graph, x: Symbol) -> Symbol:
    s = g.mul(x, x)
    near = g.mul(g.mul(x, s), g.div(_polynomial(g, TANH_P, s), _polynomial(g, TANH_Q, s)))
    e = g.function("exp", g.mul(g.const(2.0), x))
    far = g.sub(g.one, g.mul(g.const(2.0), g.reciprocal(g.add(e, g.one))))
    return g.where(g.compare("lt", s, g.const(0.625**2)), g.add(x, near), far)


def _sigmoid(g: Graph, x: Symbol) -> Symbol:
    return g.reciprocal(g.add(g.one, g.function("exp", g.neg(x))))


def _softplus(g: Graph, x: Symbol) -> Symbol:
    magnitude = g.where(g.compare("lt", x, g.zero), g.neg(x), x)
    tail = g.function("log1p", g.function("exp", g.neg(magnitude)))
    return g.add(g.where(g.compare("lt", x, g.zero), g.zero, x), tail)


_FORMS: dict[str, Callable[[Graph, Symbol], Symbol]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
}
