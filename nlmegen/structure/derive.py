"""Derivatives of graphs: forward and reverse accumulation, substitution, and evaluation on tensors or Taylor numbers.

For an operation f with operands u, v, ... forward accumulation carries, along each direction q,

    f_q = (df/du) u_q + (df/dv) v_q + ...

and reverse accumulation, from a cotangent f' of each output back to the leaves, u' += (df/du) f'. Both give graphs, so
derivatives of derivatives are the same call again. A condition has no derivative; a choice chooses between derivatives,
so what the branch not taken would give (log of 0, say) does not reach a number. A power a**b with b < 1 has an infinite
slope at a = 0; the slope counts as 0 there, because a base is exactly 0 in an empty compartment, whose own derivatives
are 0 as well, and 0 is what their product tends to.

See Griewank & Walther, Evaluating Derivatives, 2nd ed. (2008), chapters 3 and 6, doi:10.1137/1.9780898717761.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.trace import CONDITIONS, Graph, Symbol

Key = TypeVar("Key", bound=Hashable)


def operands(x: Symbol) -> tuple[Symbol, ...]:
    """The symbols that `x` is made of; none for a leaf or a constant."""
    return () if x.op in ("leaf", "const") else x.args


def topological(outputs: Sequence[Symbol]) -> list[Symbol]:
    """Every node that the outputs need, each after its operands; the order depends on the graph alone."""
    seen: set[int] = set()
    order: list[Symbol] = []
    stack = [(x, False) for x in reversed(outputs)]
    while stack:
        x, ready = stack.pop()
        if ready:
            order.append(x)
        elif x.number not in seen:
            seen.add(x.number)
            stack.append((x, True))
            stack.extend((y, False) for y in reversed(operands(x)) if y.number not in seen)
    return order


def partials(x: Symbol) -> list[tuple[Symbol, Symbol]]:
    """(operand, derivative of `x` in it) for every operand that carries one; not for a choice."""
    g: Graph = x.graph
    if x.op in ("leaf", "const", "where") or x.op in CONDITIONS:
        return []
    a = x.args[0]
    if x.op in ("add", "sub"):
        return [(a, g.one), (x.args[1], g.one if x.op == "add" else g.const(-1.0))]
    if x.op == "mul":
        return [(a, x.args[1]), (x.args[1], a)]
    if x.op == "pow":
        b = x.args[1]
        zero = g.compare("eq", a, g.zero)
        steep = g.logic("and", zero, g.compare("lt", b, g.one))
        slope = (a, g.where(steep, g.zero, g.mul(b, g.pow(a, g.sub(b, g.one)))))
        if b.op == "const":
            return [slope]
        # 0**b = 0 for every b > 0: log a must not be met there
        return [slope, (b, g.where(zero, g.zero, g.mul(x, g.function("log", a))))]
    return [(a, _slope(x, a))]


def _slope(x: Symbol, a: Symbol) -> Symbol:
    """Derivative of the function x = f(a) of one quantity, by what is already there."""
    g: Graph = x.graph
    match x.op:
        case "reciprocal":
            return g.neg(g.mul(x, x))
        case "exp":
            return x
        case "log":
            return g.reciprocal(a)
        case "sqrt":
            return g.where(g.compare("eq", a, g.zero), g.zero, g.mul(g.const(0.5), g.reciprocal(x)))
        case "sin":
            return g.function("cos", a)
        case "cos":
            return g.neg(g.function("sin", a))
        case "tanh":
            return g.sub(g.one, g.mul(x, x))
        case "sigmoid":
            return g.mul(x, g.sub(g.one, x))
        case "log1p":
            return g.reciprocal(g.add(g.one, a))
        case "expm1":
            return g.function("exp", a)
        case "softplus":
            return g.function("sigmoid", a)
        case "phi" | "phi1" | "shc" | "shc1":
            return g.function(f"{x.op[:3]}{int(x.op[3:] or 0) + 1}", a)
    raise ValueError(f"no derivative of {x.op}")


def forward(outputs: Sequence[Symbol], seeds: Mapping[int, Mapping[Key, Symbol]]) -> list[dict[Key, Symbol]]:
    """Forward derivatives of the outputs along every direction of the seeds.

    Args:
        outputs: what to differentiate.
        seeds: for a leaf, by its number, its derivative along each direction; leaves without a seed are constant.

    Returns:
        For each output its derivatives by direction; a direction that is missing is exactly zero.
    """
    found: dict[int, dict[Key, Symbol]] = {}
    for x in topological(outputs):
        if x.number in seeds:
            found[x.number] = {q: v for q, v in seeds[x.number].items() if v is not x.graph.zero}
        elif x.op == "where":
            found[x.number] = _choice(x, found[x.args[1].number], found[x.args[2].number])
        else:
            found[x.number] = _chain(x, found)
    return [found[x.number] for x in outputs]


def _choice(x: Symbol, a: dict[Key, Symbol], b: dict[Key, Symbol]) -> dict[Key, Symbol]:
    g: Graph = x.graph
    return {
        q: g.where(x.args[0], a.get(q, g.zero), b.get(q, g.zero)) for q in (*a, *(q for q in b if q not in a))
    }


def _chain(x: Symbol, found: Mapping[int, dict[Key, Symbol]]) -> dict[Key, Symbol]:
    g: Graph = x.graph
    if not any(found.get(y.number) for y in operands(x)):
        return {}
    total: dict[Key, Symbol] = {}
    for y, slope in partials(x):
        for q, v in found[y.number].items():
            term = g.mul(slope, v)
            total[q] = g.add(total[q], term) if q in total else term
    return {q: v for q, v in total.items() if v is not g.zero}


def reverse(
    outputs: Sequence[Symbol], cotangents: Sequence[Symbol], wanted: Sequence[Symbol]
) -> list[Symbol]:
    """Reverse derivatives: for each wanted leaf, the sum over outputs of cotangent times derivative.

    Args:
        outputs: what to differentiate.
        cotangents: one symbol for each output.
        wanted: leaves.

    Returns:
        One symbol for each wanted leaf, the constant 0 where nothing reaches it.
    """
    found: dict[int, Symbol] = {}

    def give(x: Symbol, value: Symbol) -> None:
        found[x.number] = _join(found[x.number], value) if x.number in found else value

    for x, cotangent in zip(outputs, cotangents, strict=True):
        give(x, cotangent)
    for x in reversed(topological(outputs)):
        g, bar = x.graph, found.get(x.number)
        if bar is None or bar is g.zero:
            continue
        if x.op == "where":
            give(x.args[1], g.where(x.args[0], bar, g.zero))
            give(x.args[2], g.where(x.args[0], g.zero, bar))
        for y, slope in partials(x):
            if y.op != "const":
                give(y, _masked(slope, bar))
    return [found.get(x.number, x.graph.zero) for x in wanted]


def _masked(slope: Symbol, bar: Symbol) -> Symbol:
    """slope x bar, the choice between bar and 0 last, so that 0 times an infinite slope is not met."""
    g: Graph = bar.graph
    if bar.op == "where" and bar.args[1] is g.zero:
        return g.where(bar.args[0], g.zero, _masked(slope, bar.args[2]))
    if bar.op == "where" and bar.args[2] is g.zero:
        return g.where(bar.args[0], _masked(slope, bar.args[1]), g.zero)
    return g.mul(slope, bar)


def _join(a: Symbol, b: Symbol) -> Symbol:
    """a + b, under one choice where both stand under the same."""
    g: Graph = a.graph
    if a.op == b.op == "where" and a.args[0] is b.args[0]:
        for zero, live in ((1, 2), (2, 1)):
            if a.args[zero] is b.args[zero] is g.zero:
                both = _join(a.args[live], b.args[live])
                return g.where(a.args[0], *((g.zero, both) if zero == 1 else (both, g.zero)))
    return g.add(a, b)


def rebuild(x: Symbol, args: Sequence[Symbol]) -> Symbol:
    """The operation of `x` on other operands, simplified."""
    g: Graph = x.graph
    match x.op:
        case "add":
            return g.add(*args)
        case "sub":
            return g.sub(*args)
        case "mul":
            return g.mul(*args)
        case "reciprocal":
            return g.reciprocal(*args)
        case "pow":
            return g.pow(*args)
        case "where":
            return g.where(*args)
        case "lt" | "le" | "eq":
            return g.compare(x.op, *args)
        case "and" | "or":
            return g.logic(x.op, *args)
        case "not":
            return g.invert(*args)
    return g.function(x.op, *args)


def substitute(outputs: Sequence[Symbol], values: Mapping[int, Symbol]) -> list[Symbol]:
    """The outputs with other symbols in the place of leaves (by their numbers), simplified."""
    found: dict[int, Symbol] = {}
    for x in topological(outputs):
        if x.number in values:
            found[x.number] = values[x.number]
        else:
            args = operands(x)
            found[x.number] = rebuild(x, [found[y.number] for y in args]) if args else x
    return [found[x.number] for x in outputs]


def evaluate(outputs: Sequence[Symbol], leaf: Callable[[str, int], Number]) -> list[Number]:
    """Values of the outputs, by running the graph on tensors or Taylor numbers.

    Args:
        outputs: what to evaluate.
        leaf: gives the value of a leaf from its kind and index.

    Returns:
        One tensor or Taylor number for each output (a constant output is a tensor without dimensions).
    """
    found: dict[int, Any] = {}
    for x in topological(outputs):
        if x.op == "leaf":
            found[x.number] = leaf(*x.args)
        elif x.op == "const":
            found[x.number] = torch.tensor(x.args[0], dtype=torch.float64)
        elif x.op == "pow":
            found[x.number] = _power(found[x.args[0].number], x.args[1], found)
        else:
            found[x.number] = _OPERATIONS[x.op](*(found[y.number] for y in x.args))
    return [found[x.number] for x in outputs]


def _power(a: Any, exponent: Symbol, found: Mapping[int, Any]) -> Any:
    if exponent.op == "const":
        return a ** exponent.args[0]
    b = found[exponent.number]
    if not isinstance(b, Taylor):
        return a**b
    # Taylor arithmetic takes the logarithm of the base, which 0 does not have
    zero = torch.tensor(0.0, dtype=torch.float64)
    base: Any = torch.where(a == 0, zero + 1, a)
    return torch.where(a == 0, torch.where(b == 0, zero + 1, zero), base**b)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "reciprocal": torch.reciprocal,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "softplus": lambda x: torch.nn.functional.softplus(x, threshold=50.0),  # log1p(exp(x)) is x from there on
    "where": torch.where,
    "lt": torch.lt,
    "le": torch.le,
    "eq": torch.eq,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
}
