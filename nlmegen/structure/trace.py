"""The functions of torch on symbols, so that a page's formulas run on them unchanged.

Each rule is found by the function's name, so that `torch.exp(x)`, `x.exp()` and `torch.Tensor.exp(x)` are one rule, as
for Taylor numbers; at ties (maximum, clamp, abs) the rules choose the side that Taylor numbers choose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from nlmegen.errors import ModelError
from nlmegen.maths.taylor import NO_FLOAT
from nlmegen.structure.graph import Graph
from nlmegen.structure.symbols import CONDITIONS, RULES, Symbol, SymbolRule, Untraceable, dispatch

AnyRule = TypeVar("AnyRule", bound=SymbolRule)

__all__ = ["CONDITIONS", "Graph", "Symbol", "Untraceable", "dispatch"]


def _rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    def register(function: AnyRule) -> AnyRule:
        for name in names:
            RULES[name] = function
        return function

    return register


# -- arithmetic -------------------------------------------------------------------------------------------------------
@_rule("add", "__add__", "__radd__")
def _add(g: Graph, a: Any, b: Any, *, alpha: float = 1.0) -> Symbol:
    return g.add(g.number(a), g.mul(g.const(alpha), g.number(b)))


@_rule("sub", "subtract", "__sub__")
def _sub(g: Graph, a: Any, b: Any, *, alpha: float = 1.0) -> Symbol:
    return g.sub(g.number(a), g.mul(g.const(alpha), g.number(b)))


@_rule("rsub", "__rsub__")
def _rsub(g: Graph, a: Any, b: Any) -> Symbol:
    return g.sub(g.number(b), g.number(a))


@_rule("mul", "multiply", "__mul__", "__rmul__")
def _mul(g: Graph, a: Any, b: Any) -> Symbol:
    return g.mul(g.number(a), g.number(b))


@_rule("div", "divide", "true_divide", "__truediv__")
def _div(g: Graph, a: Any, b: Any) -> Symbol:
    return g.div(g.number(a), g.number(b))


@_rule("__rdiv__", "__rtruediv__")
def _rdiv(g: Graph, a: Any, b: Any) -> Symbol:
    return g.div(g.number(b), g.number(a))


@_rule("pow", "__pow__", "float_power")
def _pow(g: Graph, a: Any, b: Any) -> Symbol:
    return g.pow(g.number(a), g.number(b))


@_rule("__rpow__")
def _rpow(g: Graph, a: Any, b: Any) -> Symbol:
    return g.pow(g.number(b), g.number(a))


@_rule("square")
def _square(g: Graph, x: Any) -> Symbol:
    return g.mul(g.number(x), g.number(x))


@_rule("neg", "negative")
def _neg(g: Graph, x: Any) -> Symbol:
    return g.neg(g.number(x))


@_rule("reciprocal")
def _reciprocal(g: Graph, x: Any) -> Symbol:
    return g.reciprocal(g.number(x))


@_rule("rsqrt")
def _rsqrt(g: Graph, x: Any) -> Symbol:
    return g.reciprocal(g.function("sqrt", g.number(x)))


@_rule("clone", "double", "positive")
def _same(g: Graph, x: Any) -> Symbol:
    return g.number(x)


@_rule("to")
def _to(g: Graph, x: Any, *where: Any, dtype: Any = torch.float64, device: Any = None) -> Symbol:
    if any(isinstance(y, torch.dtype) and y != torch.float64 for y in (*where, dtype)):
        raise Untraceable("a quantity in another precision than float64 has no compiled form")
    return g.number(x)


@_rule("item", "tolist", "numpy")
def _item(g: Graph, x: Any) -> Symbol:
    raise ModelError(NO_FLOAT)


# -- functions of one quantity ----------------------------------------------------------------------------------------
def _register_function(op: str, *names: str) -> None:
    _rule(op, *names)(lambda g, x: g.function(op, g.number(x)))


for _op, _names in {
    "exp": (),
    "log": (),
    "sqrt": (),
    "sin": (),
    "cos": (),
    "tanh": (),
    "sigmoid": ("expit", "special_expit"),
    "log1p": ("special_log1p",),
    "expm1": ("special_expm1",),
}.items():
    _register_function(_op, *_names)


@_rule("exp2", "special_exp2")
def _exp2(g: Graph, x: Any) -> Symbol:
    return g.function("exp", g.mul(g.const(math.log(2.0)), g.number(x)))


@_rule("log2")
def _log2(g: Graph, x: Any) -> Symbol:
    return g.mul(g.const(1 / math.log(2.0)), g.function("log", g.number(x)))


@_rule("log10")
def _log10(g: Graph, x: Any) -> Symbol:
    return g.mul(g.const(1 / math.log(10.0)), g.function("log", g.number(x)))


@_rule("tan")
def _tan(g: Graph, x: Any) -> Symbol:
    return g.div(g.function("sin", g.number(x)), g.function("cos", g.number(x)))


@_rule("softplus")
def _softplus(g: Graph, x: Any, beta: float = 1.0, threshold: float = 20.0) -> Symbol:
    scaled = g.mul(g.const(beta), g.number(x))
    soft = g.mul(g.const(1 / beta), g.function("softplus", scaled))
    return g.where(g.compare("lt", g.const(threshold), scaled), g.number(x), soft)


@_rule("logsigmoid", "log_sigmoid")
def _logsigmoid(g: Graph, x: Any) -> Symbol:
    return g.neg(g.function("softplus", g.neg(g.number(x))))


@_rule("relu")
def _relu(g: Graph, x: Any, inplace: bool = False) -> Symbol:
    return g.where(g.compare("lt", g.zero, g.number(x)), g.number(x), g.zero)


@_rule("silu")
def _silu(g: Graph, x: Any, inplace: bool = False) -> Symbol:
    return g.mul(g.number(x), g.function("sigmoid", g.number(x)))


@_rule("elu")
def _elu(g: Graph, x: Any, alpha: float = 1.0, inplace: bool = False) -> Symbol:
    y = g.number(x)
    return g.where(g.compare("lt", g.zero, y), y, g.mul(g.const(alpha), g.function("expm1", y)))


@_rule("abs", "absolute", "__abs__")
def _abs(g: Graph, x: Any) -> Symbol:
    y = g.number(x)
    below = g.where(g.compare("lt", y, g.zero), g.const(-1.0), g.zero)
    return g.mul(y, g.where(g.compare("lt", g.zero, y), g.one, below))


# -- choices and conditions -------------------------------------------------------------------------------------------
@_rule("where")
def _where(g: Graph, condition: Any, a: Any, b: Any) -> Symbol:
    return g.where(g.truth(condition), g.number(a), g.number(b))


@_rule("maximum")
def _maximum(g: Graph, a: Any, b: Any) -> Symbol:
    x, y = g.number(a), g.number(b)
    return g.where(g.compare("le", y, x), x, y)


@_rule("minimum")
def _minimum(g: Graph, a: Any, b: Any) -> Symbol:
    x, y = g.number(a), g.number(b)
    return g.where(g.compare("le", x, y), x, y)


@_rule("clamp", "clip")
def _clamp(g: Graph, x: Any, min: Any = None, max: Any = None) -> Symbol:
    y = g.number(x)
    if min is not None:
        low = g.number(min)
        y = g.where(g.compare("le", low, y), y, low)
    if max is not None:
        high = g.number(max)
        y = g.where(g.compare("le", y, high), y, high)
    return y


@_rule("clamp_min")
def _clamp_min(g: Graph, x: Any, min: Any) -> Symbol:
    return _maximum(g, x, min)


@_rule("clamp_max")
def _clamp_max(g: Graph, x: Any, max: Any) -> Symbol:
    return _minimum(g, x, max)


@_rule("lt", "less", "__lt__")
def _lt(g: Graph, a: Any, b: Any) -> Symbol:
    return g.compare("lt", g.number(a), g.number(b))


@_rule("le", "less_equal", "__le__")
def _le(g: Graph, a: Any, b: Any) -> Symbol:
    return g.compare("le", g.number(a), g.number(b))


@_rule("gt", "greater", "__gt__")
def _gt(g: Graph, a: Any, b: Any) -> Symbol:
    return g.compare("lt", g.number(b), g.number(a))


@_rule("ge", "greater_equal", "__ge__")
def _ge(g: Graph, a: Any, b: Any) -> Symbol:
    return g.compare("le", g.number(b), g.number(a))


@_rule("eq", "__eq__")
def _eq(g: Graph, a: Any, b: Any) -> Symbol:
    return g.compare("eq", g.number(a), g.number(b))


@_rule("ne", "not_equal", "__ne__")
def _ne(g: Graph, a: Any, b: Any) -> Symbol:
    return g.invert(g.compare("eq", g.number(a), g.number(b)))


@_rule("logical_and", "bitwise_and", "__and__", "__rand__")
def _and(g: Graph, a: Any, b: Any) -> Symbol:
    return g.logic("and", g.truth(a), g.truth(b))


@_rule("logical_or", "bitwise_or", "__or__", "__ror__")
def _or(g: Graph, a: Any, b: Any) -> Symbol:
    return g.logic("or", g.truth(a), g.truth(b))


@_rule("logical_not", "bitwise_not", "__invert__")
def _not(g: Graph, a: Any) -> Symbol:
    return g.invert(g.truth(a))


# -- constants --------------------------------------------------------------------------------------------------------
@_rule("zeros_like")
def _zeros_like(g: Graph, x: Any, dtype: torch.dtype | None = None) -> Symbol:
    return g.zero


@_rule("ones_like")
def _ones_like(g: Graph, x: Any, dtype: torch.dtype | None = None) -> Symbol:
    return g.one


@_rule("full_like")
def _full_like(g: Graph, x: Any, fill_value: Any, dtype: torch.dtype | None = None) -> Symbol:
    return g.number(fill_value)
