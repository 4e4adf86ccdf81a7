"""Linear recurrences over events, x_e = M_e x_{e-1} + g_e, on tensors and on Taylor numbers.

Stepping a Taylor number through the events would repeat its whole product rule at every event. Order by order the work
outside the steps is one vectorised expression: once all x_e are known, the Jacobian obeys the same recurrence,

    x_{e,i}  = M_e x_{e-1,i}  + [g_{e,i}  + M_{e,i} x_{e-1}]
    x_{e,ij} = M_e x_{e-1,ij} + [g_{e,ij} + M_{e,ij} x_{e-1} + M_{e,i} x_{e-1,j} + M_{e,j} x_{e-1,i}],

with everything in brackets known. Scalar recurrences are solved by doubling (after k rounds x_e holds the last 2^k
inputs), matrix ones by stepping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from nlmegen.maths.taylor import Number, Taylor, lift, value_of
from nlmegen.structure.chain import broadcast, order_of, trim


def scalar_recurrence(m: Number, g: Number | None, first: Tensor) -> Number:
    """Solve x_e = m_e x_{e-1} + g_e for numbers.

    Args:
        m: factors m_1, ..., m_{E-1} `[*axes, subject, event - 1]`.
        g: inputs g_1, ..., g_{E-1}, or None for none; broadcast with `m`.
        first: x_0 `[subject, 1]`, a plain tensor.

    Returns:
        x_0, ..., x_{E-1} `[*axes, subject, event]`.

    Example:
        >>> half = torch.full((1, 3), 0.5)
        >>> scalar_recurrence(half, torch.ones(1, 3), torch.tensor([[8.0]]))
        tensor([[8.0000, 5.0000, 3.5000, 2.7500]])
    """
    factor, source = value_of(m), value_of(g) if g is not None else None
    levels = [factor]
    while 1 << len(levels) <= factor.shape[-1]:
        step, shift = levels[-1], 1 << (len(levels) - 1)
        levels.append(step[..., shift:] * step[..., :-shift])
    shape = broadcast(factor.shape, first.shape, () if source is None else source.shape)
    inputs = factor.new_zeros(()).expand(shape) if source is None else source.expand(shape)
    x = _double(levels, torch.cat((first.expand(shape[:-1] + (1,)), inputs), -1))
    return _differentiate(m, g, x, _Scalar(levels))


def _double(levels: Sequence[Tensor], x: Tensor) -> Tensor:
    for k, level in enumerate(levels):
        shift = 1 << k
        x = torch.cat((x[..., :shift], torch.addcmul(x[..., shift:], level, x[..., :-shift])), -1)
    return x


def matrix_recurrence(m: Number, g: Number, first: Tensor) -> Number:
    """Solve x_e = M_e x_{e-1} + g_e for vectors.

    Args:
        m: matrices M_1, ..., M_{E-1} `[compartment, compartment, *axes, subject, event - 1]`.
        g: inputs g_1, ..., g_{E-1} `[compartment, *axes, subject, event - 1]`, broadcast with `m`.
        first: x_0 `[compartment, subject, 1]`, a plain tensor.

    Returns:
        x_0, ..., x_{E-1} `[compartment, *axes, subject, event]`.
    """
    matrices, given = value_of(m), value_of(g)
    # inputs that draws do not move lack their axes, which stand behind that of the compartments
    given = given.reshape(given.shape[:1] + (1,) * (matrices.ndim - 1 - given.ndim) + given.shape[1:])
    shape = torch.broadcast_shapes(matrices.shape[1:], given.shape)  # type: ignore[no-untyped-call]
    start = first.reshape(first.shape[:1] + (1,) * (len(shape) - 3) + first.shape[1:]).expand(
        shape[:-1] + (1,)
    )
    solver = _Matrix(matrices.expand(matrices.shape[:1] + shape))
    x = solver.solve(given.expand(shape), start.squeeze(-1))
    return _differentiate(m, g, x, solver)


class _Solver(Protocol):
    def product(self, m: Tensor, x: Tensor) -> Tensor: ...

    def solve(self, g: Tensor) -> Tensor: ...


class _Scalar:
    def __init__(self, levels: Sequence[Tensor]) -> None:
        self.levels = levels

    def product(self, m: Tensor, x: Tensor) -> Tensor:
        return m * x

    def solve(self, g: Tensor) -> Tensor:
        return _double(self.levels, pad(g, (1, 0)))


class _Matrix:
    """Steps of the value's recurrence, with the matrices laid out once."""

    def __init__(self, m: Tensor) -> None:
        self.axes = m.shape[2:-1]
        n = m.shape[0]
        # [event - 1, batch, compartment, compartment]: one step reads one contiguous block
        self.steps = m.movedim((0, 1), (-2, -1)).movedim(-3, 0).reshape(m.shape[-1], -1, n, n).unbind(0)

    def product(self, m: Tensor, x: Tensor) -> Tensor:
        column = -(len(self.axes) + 2)  # the summed compartment; subjects, events and draws follow it
        return (m * x.unsqueeze(column - 1)).sum(column)

    def solve(self, g: Tensor, start: Tensor | None = None) -> Tensor:
        lead = g.ndim - len(self.axes) - 2
        n, directions = g.shape[lead], g.shape[:lead]
        columns = math.prod(directions)
        # [event - 1, batch, compartment, direction]
        inputs = g.reshape((columns,) + g.shape[lead:]).movedim((1, 0), (-2, -1)).movedim(-3, 0)
        inputs = inputs.reshape(inputs.shape[0], -1, n, columns)
        zero = inputs.new_zeros(()).expand(inputs.shape[1:])
        x = zero if start is None else start.movedim(0, -1).reshape(-1, n, 1)
        out = [x]
        for step, source in zip(self.steps, inputs.unbind(0), strict=True):
            x = torch.baddbmm(source, step, x)
            out.append(x)
        stacked = torch.stack(out).reshape((len(out),) + self.axes + (n, columns))
        moved = stacked.movedim((-1, -2), (0, 1)).movedim(2, -1)
        return moved.reshape(directions + moved.shape[1:])


def _differentiate(m: Number, g: Number | None, x: Tensor, solver: _Solver) -> Number:
    """Jacobian and Hessian of a recurrence whose values `x` are known."""
    order = order_of(m, g)
    if order == 0:
        return x
    m_jac, m_hess = _parts(m, x.ndim)
    g_jac, g_hess = _parts(g, x.ndim)
    past = x[..., :-1]
    forcing = _add(g_jac, None if m_jac is None else solver.product(m_jac, past))
    assert forcing is not None
    q = forcing.shape[0]
    jac = solver.solve(forcing.expand((q,) + past.shape))
    if order == 1:
        return Taylor(x, jac)
    forcing = _add(g_hess, None if m_hess is None else solver.product(m_hess, past))
    if m_jac is not None:
        cross = solver.product(m_jac.unsqueeze(1), jac[..., :-1].unsqueeze(0))
        forcing = _add(forcing, cross + cross.transpose(0, 1))
    if forcing is None:
        return Taylor(x, jac, None, 2)
    return trim(x, jac, solver.solve(forcing.expand((q, q) + past.shape)), 2)


def _parts(x: Number | None, ndim: int) -> tuple[Tensor | None, Tensor | None]:
    if not isinstance(x, Taylor):
        return None, None
    x = lift(x, ndim)
    return x.jac, x.hess


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
