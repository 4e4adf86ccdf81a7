"""The rules of Taylor numbers for the functions of torch: powers, elementary functions, choices, rearrangements.

Each rule gives f, f' and f'' (or a linear rearrangement of all three parts) and is found by the function's name, so
that `torch.exp(x)`, `x.exp()` and `torch.Tensor.exp(x)` are one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from ..errors import ModelError
from .taylor import (
    RULES,
    Number,
    Rule,
    Taylor,
    add,
    divide,
    lift,
    multiply,
    ndim_of,
    subtract,
    unary,
    value_of,
)

AnyRule = TypeVar("AnyRule", bound=Rule)


def _pow(a: Any, b: Any) -> Taylor:
    if isinstance(b, Taylor):
        base = torch.as_tensor(value_of(a), dtype=b.dtype)
        zero = base == 0
        if bool(zero.any()):
            # a base that rests at 0 (no dose yet) gives 0 for every b: log 0 must not be met
            one = torch.ones((), dtype=b.dtype, device=b.device)
            power: Any = _pow(torch.where(zero, one, a), b)
            return cast(Taylor, torch.where(zero, torch.zeros_like(base) ** b.value, power))
        return _exp(multiply(b, _log(a) if isinstance(a, Taylor) else torch.log(base)))
    if not isinstance(b, Tensor):
        if b == 2:
            return multiply(a, a)
        if b == 1:
            return lift(a, 0)
        if b == 0.5:
            return _sqrt(a)
    else:
        a = lift(a, b.ndim)
    x = a.value
    first = b * x ** (b - 1)
    if a.order == 1:
        return unary(a, x**b, first, None)
    # at 0 the second derivative is infinite for b < 2, and a base that rests there has no use for it
    rests = (x == 0) & (b > 0) & (b < 2)
    return unary(a, x**b, first, torch.where(rests, 0.0, b * (b - 1) * x ** (b - 2)))


def _rule(*names: str) -> Callable[[AnyRule], AnyRule]:
    def register(function: AnyRule) -> AnyRule:
        for name in names:
            RULES[name] = function
        return function

    return register


for _names, _function in {
    ("add", "__add__", "__radd__"): add,
    ("sub", "subtract", "__sub__"): subtract,
    ("mul", "multiply", "__mul__", "__rmul__"): multiply,
    ("div", "divide", "true_divide", "__truediv__"): divide,
    ("pow", "__pow__"): _pow,
    ("rsub", "__rsub__"): lambda a, b: subtract(b, a),
    ("__rdiv__", "__rtruediv__"): lambda a, b: divide(b, a),
    ("__rpow__",): lambda a, b: _pow(b, a),
}.items():
    _rule(*_names)(_function)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _compare = getattr(torch, _name)
    _rule(_name, f"__{_name}__")(lambda a, b, _f=_compare: _f(value_of(a), value_of(b)))


@_rule("exp")
def _exp(x: Taylor) -> Taylor:
    e = torch.exp(x.value)
    return unary(x, e, e, e)


@_rule("log")
def _log(x: Taylor) -> Taylor:
    r = x.value.reciprocal()
    return unary(x, torch.log(x.value), r, -r * r)


@_rule("log1p")
def _log1p(x: Taylor) -> Taylor:
    r = (1 + x.value).reciprocal()
    return unary(x, torch.log1p(x.value), r, -r * r)


@_rule("expm1")
def _expm1(x: Taylor) -> Taylor:
    e = torch.exp(x.value)
    return unary(x, torch.expm1(x.value), e, e)


@_rule("sqrt")
def _sqrt(x: Taylor) -> Taylor:
    s = torch.sqrt(x.value)
    first = 0.5 / s
    return unary(x, s, first, -0.5 * first / x.value)


@_rule("sin")
def _sin(x: Taylor) -> Taylor:
    s = torch.sin(x.value)
    return unary(x, s, torch.cos(x.value), -s)


@_rule("cos")
def _cos(x: Taylor) -> Taylor:
    c = torch.cos(x.value)
    return unary(x, c, -torch.sin(x.value), -c)


@_rule("tanh")
def _tanh(x: Taylor) -> Taylor:
    t = torch.tanh(x.value)
    first = 1 - t * t
    return unary(x, t, first, -2 * t * first)


@_rule("sigmoid")
def _sigmoid(x: Taylor) -> Taylor:
    s = torch.sigmoid(x.value)
    first = s * (1 - s)
    return unary(x, s, first, first * (1 - 2 * s))


@_rule("abs", "absolute")
def _abs(x: Taylor) -> Taylor:
    return multiply(x, torch.sign(x.value))


@_rule("square")
def _square(x: Taylor) -> Taylor:
    return multiply(x, x)


@_rule("reciprocal")
def _reciprocal(x: Taylor) -> Taylor:
    r = x.value.reciprocal()
    r2 = r * r
    return unary(x, r, -r2, 2 * r2 * r)


@_rule("neg", "negative")
def _neg(x: Taylor) -> Taylor:
    return -x


# -- choices --------------------------------------------------------------------------------------------------------
@_rule("where")
def _where(condition: Tensor, a: Any, b: Any) -> Taylor:
    model = a if isinstance(a, Taylor) else b
    ndim = max(ndim_of(value_of(condition)), ndim_of(value_of(a)), ndim_of(value_of(b)))
    a, b = (lift(x, ndim) if isinstance(x, Taylor) else x for x in (a, b))
    zero = torch.zeros((), dtype=model.dtype, device=model.device)
    value = torch.where(condition, value_of(a), value_of(b))
    parts = []
    for name in ("jac", "hess"):
        da = getattr(a, name) if isinstance(a, Taylor) else None
        db = getattr(b, name) if isinstance(b, Taylor) else None
        both_zero = da is None and db is None
        parts.append(
            None
            if both_zero
            else torch.where(condition, zero if da is None else da, zero if db is None else db)
        )
    jac, hess = parts
    assert jac is not None
    return Taylor(value, jac, hess, model.order)


@_rule("clamp", "clip")
def _clamp(x: Taylor, min: Any = None, max: Any = None) -> Taylor:
    y = x
    if min is not None:
        y = _maximum(y, min)
    return y if max is None else _minimum(y, max)


def _as_operand(x: Any, like: Taylor) -> Any:
    return x if isinstance(x, (Taylor, Tensor)) else torch.as_tensor(x, dtype=like.dtype, device=like.device)


@_rule("maximum")
def _maximum(a: Any, b: Any) -> Taylor:
    like = a if isinstance(a, Taylor) else b
    a, b = _as_operand(a, like), _as_operand(b, like)
    return _where(value_of(a) >= value_of(b), a, b)


@_rule("minimum")
def _minimum(a: Any, b: Any) -> Taylor:
    like = a if isinstance(a, Taylor) else b
    a, b = _as_operand(a, like), _as_operand(b, like)
    return _where(value_of(a) <= value_of(b), a, b)


# -- rearrangements: linear, the same on value, Jacobian and Hessian -------------------------------------------------
def _negative(dim: int, ndim: int) -> int:
    """A dimension counted from the end: it then names the same axis of value, jac and hess."""
    return dim if dim < 0 else dim - ndim


@_rule("unsqueeze")
def _unsqueeze(x: Taylor, dim: int) -> Taylor:
    at = _negative(dim, x.ndim + 1)
    return x._map(lambda y, lead: y.unsqueeze(at))


@_rule("squeeze")
def _squeeze(x: Taylor, dim: int) -> Taylor:
    at = _negative(dim, x.ndim)
    return x._map(lambda y, lead: y.squeeze(at))


@_rule("expand", "broadcast_to")
def _expand(x: Taylor, *sizes: Any) -> Taylor:
    shape = tuple(sizes[0]) if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    x = lift(x, len(shape))
    return Taylor(x.value.expand(shape), x.jac, x.hess, x.order)


@_rule("expand_as")
def _expand_as(x: Taylor, other: Number) -> Taylor:
    return _expand(x, tuple(other.shape))


@_rule("sum")
def _total(x: Taylor, dim: int | None = None, keepdim: bool = False) -> Taylor:
    axes = tuple(range(-x.ndim, 0)) if dim is None else (_negative(dim, x.ndim),)
    return x._map(lambda y, lead: y.sum(axes, keepdim=keepdim))


@_rule("gather")
def _gather(x: Taylor, dim: int, index: Tensor) -> Taylor:
    at = _negative(dim, x.ndim)
    q = x.directions
    return x._map(lambda y, lead: y.gather(at, index.expand((q,) * lead + index.shape)))


@_rule("index_select")
def _index_select(x: Taylor, dim: int, index: Tensor) -> Taylor:
    at = _negative(dim, x.ndim)
    return x._map(lambda y, lead: y.index_select(at, index))


def _together(parts: Sequence[Any]) -> list[Taylor]:
    like = next(x for x in parts if isinstance(x, Taylor))
    zero = torch.zeros_like(like.jac[(slice(None),) + (slice(0, 1),) * like.ndim])
    out = []
    for x in parts:
        y = x if isinstance(x, Taylor) else Taylor(x, zero, None, like.order)
        hess = y.dense_hess() if like.order == 2 else None
        out.append(Taylor(y.value, y.full()[1], hess, like.order))
    return out


@_rule("stack")
def _stack(parts: Sequence[Any], dim: int = 0) -> Taylor:
    ys = _together(parts)
    at = _negative(dim, ys[0].ndim + 1)
    hess = None if ys[0].hess is None else torch.stack([y.hess for y in ys if y.hess is not None], at)
    return Taylor(
        torch.stack([y.value for y in ys], at), torch.stack([y.jac for y in ys], at), hess, ys[0].order
    )


@_rule("cat", "concat", "concatenate")
def _cat(parts: Sequence[Any], dim: int = 0) -> Taylor:
    ys = _together(parts)
    at = _negative(dim, ys[0].ndim)
    hess = None if ys[0].hess is None else torch.cat([y.hess for y in ys if y.hess is not None], at)
    return Taylor(torch.cat([y.value for y in ys], at), torch.cat([y.jac for y in ys], at), hess, ys[0].order)


@_rule("zeros_like", "ones_like", "full_like")
def _constant_like(x: Taylor, *args: Any, **kwargs: Any) -> Tensor:
    raise ModelError(
        "torch.zeros_like, ones_like and full_like of a quantity are constants: write the number (it broadcasts)"
    )


@_rule("isnan", "isfinite", "isinf", "sign")
def _constant(x: Taylor, *args: Any) -> Tensor:
    raise ModelError(
        "isnan, isfinite, isinf and sign have no derivative; compare (x > 0) and choose with torch.where"
    )


# -- everything else ------------------------------------------------------------------------------------------------
@_rule("forward_mode")
def forward_mode(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Taylor:
    """Any differentiable torch operation, by forward mode along each direction and each pair of directions.

    The path x(s, t) = u + s u_i + t u_j + s t u_ij has the mixed derivative (f u)_ij at s = t = 0.
    """
    where = [k for k, x in enumerate(args) if isinstance(x, Taylor)]
    if not where:
        raise ModelError(
            f"{getattr(func, '__name__', func)}: a quantity inside a list or keyword is not understood; "
            "pass it directly"
        )
    numbers = [args[k] for k in where]
    q, order = numbers[0].directions, numbers[0].order
    full = [(x.value, x.full()[1], x.dense_hess() if order == 2 else None) for x in numbers]

    def call(*values: Tensor) -> Tensor:
        filled = list(args)
        for k, v in zip(where, values, strict=True):
            filled[k] = v
        result = func(*filled, **kwargs)
        if not isinstance(result, Tensor):
            raise ModelError(
                f"{getattr(func, '__name__', func)} does not return one tensor; it cannot be used on a page"
            )
        return result

    values = tuple(v for v, _, _ in full)

    def first(i: int) -> tuple[Tensor, Tensor]:
        value, tangent, *_ = torch.func.jvp(call, values, tuple(j[i].contiguous() for _, j, _ in full))
        return value, tangent

    pairs = [first(i) for i in range(q)]
    jac = torch.stack([d for _, d in pairs])
    if order == 1:
        return Taylor(pairs[0][0], jac)
    rows = [[jac[0]] * q for _ in range(q)]
    one = torch.ones((), dtype=values[0].dtype, device=values[0].device)
    for i in range(q):
        for j in range(i + 1):

            def path(s: Tensor, t: Tensor, i: int = i, j: int = j) -> Tensor:
                return call(*(v + s * g[i] + t * g[j] + s * t * h[i, j] for v, g, h in full if h is not None))

            def along(s: Tensor, path: Callable[[Tensor, Tensor], Tensor] = path) -> Tensor:
                slope: Tensor = torch.func.jvp(lambda t: path(s, t), (0 * one,), (one,))[1]
                return slope

            rows[i][j] = rows[j][i] = torch.func.jvp(along, (0 * one,), (one,))[1]
    hess = torch.stack([torch.stack(row) for row in rows])
    return Taylor(pairs[0][0], jac, hess, 2)
