"""Sums of weighted functions of a few rates, on tensors and on Taylor numbers, in few large operations.

A closed form is a sum over modes of a weight times a function of one or two rates and time,

    x(t) = sum_k c_k F_k(r_1, r_2; t),

where weights and rates are one number per subject and F has one per time. Taylor arithmetic on F would do all its work
on arrays with a time axis. Here the derivatives of F in its rates are given, and the chain rule

    x_i  = c_i F + c r_i F_r
    x_ij = c_ij F + (c r_ij + c_i r_j + c_j r_i) F_r + c r_i r_j F_rr        (and mixed terms of two rates)

collects everything that lacks the time axis before it meets F. Nothing is detached: reverse mode passes through the
weights, the rates and the derivatives of F.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, lift, value_of


class Term(NamedTuple):
    """One weighted function c F(r_1, ..., r_R).

    Attributes:
        weight: c, or None for 1.
        rates: r_1, ..., r_R.
        partials: F; then dF/dr_a; then d2F/dr_a dr_b for a <= b in the order 11, 12, ..., 22, ... Derivatives that no
            rate asks for (a plain tensor has none) may be left out at the end.
    """

    weight: Number | None
    rates: tuple[Number, ...]
    partials: Sequence[Tensor]


def order_of(*numbers: Number | None) -> int:
    """The highest order among the Taylor numbers, 0 when all are tensors."""
    return max((x.order for x in numbers if isinstance(x, Taylor)), default=0)


def accumulate(terms: Sequence[Term]) -> Number:
    """The sum of the terms, a Taylor number when any weight or rate is one.

    Args:
        terms: at least one; weights, rates and partials broadcast to `[*axes, subject, time]`.

    Returns:
        The sum `[*axes, subject, time]`.

    Example:
        >>> k, t = torch.tensor([[0.1]]), torch.tensor([[0.0, 1.0]])
        >>> accumulate([Term(None, (k,), [torch.exp(-k * t)])]).shape
        torch.Size([1, 2])
    """
    order = max(order_of(term.weight, *term.rates) for term in terms)
    value = _plain(terms[0])
    for term in terms[1:]:
        c, f = value_of(term.weight), term.partials[0]
        value = value + f if c is None else torch.addcmul(value, c, f)
    if order == 0:
        return value
    jac, hess = _Sum(value.shape), _Sum(value.shape)
    for term in terms:
        _derivatives(term, value.ndim, order, jac, hess)
    assert jac.total is not None
    return trim(value, jac.total, hess.total, order)


def _plain(term: Term) -> Tensor:
    f = term.partials[0]
    return f if term.weight is None else cast(Tensor, value_of(term.weight)) * f


def trim(value: Tensor, jac: Tensor, hess: Tensor | None, order: int) -> Taylor:
    """A Taylor number whose derivative parts have as many axes behind the directions as the value."""
    if jac.ndim < value.ndim + 1:
        jac = jac.reshape(jac.shape[:1] + (1,) * (value.ndim + 1 - jac.ndim) + jac.shape[1:])
    if hess is not None and hess.ndim < value.ndim + 2:
        hess = hess.reshape(hess.shape[:2] + (1,) * (value.ndim + 2 - hess.ndim) + hess.shape[2:])
    return Taylor(value, jac, hess, order)


class _Sum:
    """A running sum of products, added to in place once it has its full shape.

    In place because a new array of this size costs more than the arithmetic. Nothing else reads the sum, and
    reverse mode keeps the factors only.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self.total: Tensor | None = None

    def add(self, a: Tensor, b: Tensor) -> None:
        if self.total is None:
            self.total = a * b
        elif self.total.shape[-len(self.shape) :] == self.shape:
            self.total.addcmul_(a, b)
        else:
            self.total = torch.addcmul(self.total, a, b)


def _derivatives(term: Term, ndim: int, order: int, jac: _Sum, hess: _Sum) -> None:
    """Add the term's first and second derivatives to the running sums."""
    partials, count = term.partials, len(term.rates)
    c, c_jac = cast(Tensor | None, value_of(term.weight)), None
    if isinstance(term.weight, Taylor):
        weight = lift(term.weight, ndim)
        c, c_jac = weight.value, weight.jac
        jac.add(c_jac, partials[0])
        if weight.hess is not None:
            hess.add(weight.hess, partials[0])
    rates = [lift(r, ndim) if isinstance(r, Taylor) else None for r in term.rates]
    for a, r in enumerate(rates):
        if r is None:
            continue
        slope = r.jac if c is None else c * r.jac
        jac.add(slope, partials[1 + a])
        if order == 1:
            continue
        bend = r.hess if c is None or r.hess is None else c * r.hess
        if c_jac is not None:
            cross = c_jac.unsqueeze(1) * r.jac
            bend = cross + cross.transpose(0, 1) if bend is None else bend + cross + cross.transpose(0, 1)
        if bend is not None:
            hess.add(bend, partials[1 + a])
        for b in range(a, count):
            other = rates[b]
            if other is not None:
                pair = slope.unsqueeze(1) * other.jac
                hess.add(pair if a == b else pair + pair.transpose(0, 1), partials[_place(a, b, count)])


def _place(a: int, b: int, count: int) -> int:
    """Where d2F/dr_a dr_b (a <= b) stands among the partials of a function of `count` rates."""
    return 1 + count + a * count - a * (a - 1) // 2 + b - a


def stack(numbers: Sequence[Number]) -> Number:
    """Numbers of broadcastable shapes along a new leading axis."""
    if not any(isinstance(x, Taylor) for x in numbers):
        return _stacked([x for x in numbers if isinstance(x, Tensor)], 0)
    like = next(x for x in numbers if isinstance(x, Taylor))
    ndim = max(x.ndim for x in numbers)
    lifted = [lift(x, ndim) if isinstance(x, Taylor) else x for x in numbers]
    zero = like.jac.new_zeros((1,) * (ndim + 1))
    jacs = [x.jac if isinstance(x, Taylor) else zero for x in lifted]
    hess = None
    if any(isinstance(x, Taylor) and x.hess is not None for x in lifted):
        zero2 = zero.unsqueeze(0)
        parts = [x.hess if isinstance(x, Taylor) and x.hess is not None else zero2 for x in lifted]
        hess = _stacked(parts, 2)
    values = [x.value if isinstance(x, Taylor) else x for x in lifted]
    return Taylor(_stacked(values, 0), _stacked(jacs, 1), hess, like.order)


def _stacked(parts: Sequence[Tensor], axis: int) -> Tensor:
    if all(x.shape == parts[0].shape for x in parts):
        return torch.stack(list(parts), axis)
    shape = broadcast(*(x.shape for x in parts))
    return torch.stack([x.expand(shape) for x in parts], axis)


def broadcast(*shapes: Sequence[int]) -> torch.Size:
    """The shape that arrays of these shapes broadcast to."""
    # torch.broadcast_shapes imports half a second of symbolic algebra when it is first called
    views = [torch.zeros(()).expand(tuple(shape)) for shape in shapes]
    return cast(Sequence[Tensor], torch.broadcast_tensors(*views))[0].shape  # type: ignore[no-untyped-call]


def unbind(x: Number, axis: int = 0) -> list[Number]:
    """The entries along an axis (counted from the front)."""
    if isinstance(x, Tensor):
        return list(x.unbind(axis))
    n = x.value.shape[axis]
    jacs = _unbind(x.jac, axis + 1, n)
    hess: Sequence[Tensor | None] = [None] * n if x.hess is None else _unbind(x.hess, axis + 2, n)
    return [Taylor(v, j, h, x.order) for v, j, h in zip(x.value.unbind(axis), jacs, hess, strict=True)]


def _unbind(x: Tensor, axis: int, n: int) -> Sequence[Tensor]:
    return x.unbind(axis) if x.shape[axis] == n else x.unbind(axis) * n


def each(x: Number, rearrange: Callable[[Tensor, int], Tensor]) -> Number:
    """A linear rearrangement of all parts, told how many leading axes of directions each has (0, 1, 2)."""
    if isinstance(x, Tensor):
        return rearrange(x, 0)
    value, jac, hess = x.full()
    return Taylor(
        rearrange(value, 0), rearrange(jac, 1), None if hess is None else rearrange(hess, 2), x.order
    )


def last(x: Number, stop: int) -> Number:
    """The entries before `stop` of the trailing axis, or `x` itself when it is constant there."""
    if x.shape[-1] == 1:
        return x
    if isinstance(x, Tensor):
        return x[..., :stop]
    return Taylor(
        x.value[..., :stop], x.jac[..., :stop], None if x.hess is None else x.hess[..., :stop], x.order
    )


def take(x: Number, index: Tensor) -> Number:
    """Entries of the trailing axis, or `x` itself when it is constant there.

    Args:
        x: `[*axes, subject or 1, 1 or event]`.
        index: which events, `[*draw, subject, time]`.
    """
    if x.shape[-1] == 1:
        return x
    if isinstance(x, Tensor):
        return _take(x, index)
    hess = None if x.hess is None else _take(x.hess, index)
    return Taylor(_take(x.value, index), _take(x.jac, index), hess, x.order)


def _take(x: Tensor, index: Tensor) -> Tensor:
    if x.shape[-1] == 1:
        return x
    if index.ndim > 2:
        shape = broadcast(x.shape[:-1], index.shape[:-1])
        return x.expand(shape + x.shape[-1:]).gather(-1, index.expand(shape + index.shape[-1:]))
    if x.shape[-2] != index.shape[0]:
        x = x.expand(x.shape[:-2] + (index.shape[0], x.shape[-1]))
    return x.gather(-1, index.expand(x.shape[:-2] + index.shape))
