"""Pages linear in the amounts, dy/dt = A y + b + rate, by the matrix exponential: any number of amounts, any signs.

Between two points of a timeline everything is constant, so that one batch of exponentials of

    [ A  u ]                                 [ exp(A L)   phi ]
    [ 0  0 ] L ,   u = b + rate,    gives    [    0        1  ] ,     y_next = exp(A L) y + phi ,

for all rows and all points at once; a recurrence over the points is left. Derivatives come by Taylor arithmetic, which
takes coinciding eigenvalues and defective matrices in its stride. There is no step and no tolerance.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from nlmegen.maths.taylor import Number, value_of
from nlmegen.structure.chain import each, unbind
from nlmegen.structure.derive import evaluate
from nlmegen.structure.equations import Equations
from nlmegen.structure.linear import product
from nlmegen.structure.packed import parted
from nlmegen.structure.recurrence import matrix_recurrence
from nlmegen.structure.rows import NOT_FINITE, OK, Parameters, Rows, pick
from nlmegen.structure.solver import Solver
from nlmegen.structure.symbols import Symbol
from nlmegen.structure.timeline import Point, Timeline

# 0.5^17 / 17! = 2e-20: the first term left out, at the largest norm that is not halved further
_NORM = 0.5
_TAME = 2.0**9  # the norm up to which the roundings of repeated squaring stay under 1e-13


def affine(
    equations: Equations,
    p: Parameters | Mapping[str, Number],
    timeline: Timeline,
    solver: Solver,
    apart: bool = False,
) -> tuple[list[Number], Tensor]:
    """Amounts at the observations of a linear page, with derivatives.

    Args:
        equations: of a page with `linear`.
        p: as in `nlmegen.structure.ode.explicit`, or one mapping where nothing varies in time.
        timeline: what happens to every row.
        solver: settings (the result is exact to rounding, none is needed).
        apart: whether each row is to be the same to the last bit whoever else is there.

    Returns:
        As `nlmegen.structure.ode.explicit`: amounts by compartment `[*draw, subject, T]` and a status, 0 or 3.

    Raises:
        ValueError: on equations that are not linear in the amounts.
    """
    if isinstance(p, Mapping):
        constant = p
        rows = Rows(_Initial(equations), lambda point: constant, timeline)
    else:
        rows = Rows(_Initial(equations), p, timeline)
    status = torch.where(rows.finite(), OK, NOT_FINITE)
    left = (status == OK).nonzero()[:, 0]
    part = rows if len(left) == rows.count else rows.select(left)
    points = _states(equations, part, apart) if len(left) else None
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    if points is not None:
        row, point = (part.slot >= 0).nonzero(as_tuple=True)
        found = [pick(x, row, point) for x in points]
        packed = part.layout.pack(found, len(row))
        broken = torch.zeros_like(left).index_add(
            0, row, (~packed.detach().isfinite()).any(0).any(0).to(left.dtype)
        )
        status[left[broken > 0]] = NOT_FINITE
        seen.append((packed, left[row], part.slot[row, point]))
    table = rows.collect(seen, status == OK)
    shaped = [parted(x, lambda y, lead: y.reshape(y.shape[:lead] + rows.shape + y.shape[-1:])) for x in table]
    return shaped, status.reshape(rows.shape)


class _Initial:
    """Equations as a system of which only the start is asked."""

    def __init__(self, equations: Equations) -> None:
        self.equations, self.compartments = equations, equations.compartments

    def rates(self, t: Number, y: object, p: Mapping[str, Number]) -> list[Number]:
        raise NotImplementedError("the matrix exponential needs no rates")

    def initial(self, p: Mapping[str, Number]) -> list[Number]:
        """Amounts at the start."""
        return _evaluated(self.equations, self.equations.initial, p)


def _evaluated(equations: Equations, symbols: Sequence[Symbol], p: Mapping[str, Number]) -> list[Number]:
    names = equations.parameters
    found = evaluate(symbols, lambda kind, k: p[names[k]])
    return [x.reshape(1, 1) if isinstance(x, Tensor) and x.ndim == 0 else x for x in found]


def _states(equations: Equations, rows: Rows, apart: bool) -> list[Number]:
    """Amounts after every point, `[row, point]` for each compartment (at an observation nothing else happens)."""
    d, last = len(equations.compartments), rows.points - 1
    given = _stack(_given(rows, _evaluated(equations, equations.initial, rows.table(rows.points)), d))
    if last == 0:
        return unbind(given)
    symbols, constant = equations.matrix()
    zero = torch.zeros((1, 1), dtype=rows.layout.dtype, device=rows.layout.device)
    p = rows.table(last)
    a = _evaluated(equations, [x for row in symbols for x in row], p)
    inflow = _inflow(rows, d)
    for i, x in enumerate(_evaluated(equations, constant, p)):
        if constant[i].op != "const" or bool((value_of(x) != 0).any()):
            already = inflow[i]
            inflow[i] = x if already is None else already + x
    size, content = d, zero
    if any(x is not None for x in inflow):
        # one more amount, never emptied, feeds the others; it is as large as keeps the matrix balanced
        size, content = d + 1, _content([x for x in inflow if x is not None], a)
        fed = [zero if x is None else x / content for x in inflow]
        a = [x for i in range(d) for x in (*a[i * d : (i + 1) * d], fed[i])] + [zero] * size
    scaled = _matrix([x * rows.length for x in a], size, (rows.count, last))
    carried = _exponentials(scaled) if apart else exponential(scaled)
    whole = each(carried, lambda x, lead: x.movedim((-2, -1), (lead, lead + 1)).narrow(lead, 0, d))
    keep = _kept(rows, d).to(zero.dtype)
    factors = each(whole, lambda x, lead: x.narrow(lead + 1, 0, d)) * keep.unsqueeze(1)
    # x_k = keep (E x_{k-1} + phi) + given_k, with x_{-1} = 0 and given_0 the start
    inputs: Number = given
    if size > d:
        phi = each(whole, lambda x, lead: x.select(lead + 1, d)) * (content * keep)
        inputs = given + _led(phi)
    nothing = torch.zeros((d, rows.count, 1), dtype=zero.dtype, device=zero.device)
    after = matrix_recurrence(_led(factors), inputs, nothing)
    return unbind(each(after, lambda x, lead: x[..., 1:]))


def _kept(rows: Rows, count: int) -> Tensor:
    """Whether each compartment keeps what it has at the points but the first, `[amount, row, point - 1]`."""
    kind, place = rows.kind[:, 1:], rows.compartment[:, 1:]
    every = torch.arange(count, device=kind.device)[:, None, None]
    return (kind != Point.RESET) & ~((kind == Point.ZERO) & (place == every))


def _given(rows: Rows, start: Sequence[Number], count: int) -> list[Number]:
    """What each point adds to each compartment `[row, point]`: boluses; the start, at the first and at resets."""
    anew = rows.kind == Point.RESET
    anew[:, 0] = True
    nothing = torch.zeros(rows.kind.shape, dtype=rows.layout.dtype, device=rows.layout.device)
    bolus = rows.kind == Point.BOLUS
    given: list[Number] = []
    for i in range(count):
        x = _chosen(anew, start[i], nothing)
        given.append(x + _chosen(bolus & (rows.compartment == i), rows.amount, nothing))
    return given


def _inflow(rows: Rows, count: int) -> list[Number | None]:
    """Infusion rate of each compartment on the way from each point `[row, point - 1]`, None where there is none."""
    position = torch.arange(rows.points, device=rows.kind.device)
    reset = torch.where(rows.kind == Point.RESET, position, -1).cummax(-1).values
    found: list[Number | None] = []
    for i in range(count):
        here = (rows.kind == Point.RATE) & (rows.compartment == i)
        if not bool(here.any()):
            found.append(None)
            continue
        latest = torch.where(here, position, -1).cummax(-1).values
        level: Number = torch.gather(rows.amount, -1, latest.clamp(min=0))  # type: ignore[arg-type]
        level = _chosen(latest > reset, level, torch.zeros_like(value_of(level)))
        found.append(each(level, lambda x, lead: x[..., :-1]))
    return found


def _content(inflow: Sequence[Number], a: Sequence[Number]) -> Tensor:
    """An amount `[row, 1]` with which the fed column is no larger than the matrix."""
    most = [cast(Tensor, value_of(x)).detach().abs().amax(-1, keepdim=True) for x in inflow]
    fast = [cast(Tensor, value_of(x)).detach().abs().amax(-1, keepdim=True) for x in a]
    rate, speed = functools.reduce(torch.maximum, most), functools.reduce(torch.maximum, fast)
    return torch.where((rate > 0) & (speed > 0), rate / speed, 1.0)


def _exponentials(a: Number) -> Number:
    """`exponential` of each matrix as if it were alone: those that are halved as often together."""
    size = a.shape[-1]
    flat = each(a, lambda x, lead: x.reshape((*x.shape[:lead], -1, size, size)))
    value = cast(Tensor, value_of(flat)).detach()
    diagonal = value.diagonal(dim1=-2, dim2=-1)
    norm = value.abs().sum(-2).amax(-1).nan_to_num(nan=0.0, posinf=0.0).clamp(max=2.0**60)
    positive = (norm <= _TAME) & ~(value - torch.diag_embed(diagonal) < 0).any(-1).any(-1)
    norm = norm + torch.where(positive, -diagonal.amin(-1).clamp(max=0.0), 0.0)
    halvings = torch.log2(norm / _NORM).ceil().clamp(min=0.0).to(torch.int64)
    code = 2 * halvings + positive
    parts: list[Number] = []
    index: list[Tensor] = []
    for kind in sorted(set(code.tolist())):
        here = (code == kind).nonzero()[:, 0]
        some = each(flat, lambda x, lead, here=here: x.index_select(lead, here))  # type: ignore[misc]
        parts.append(_squared(some, bool(kind % 2), kind // 2))
        index.append(here)
    place = torch.argsort(torch.cat(index))
    whole = cast(Number, torch.cat(parts))  # type: ignore[arg-type]
    return each(whole, lambda x, lead: x.index_select(lead, place).reshape((*x.shape[:lead], *a.shape)))


def exponential(a: Number) -> Number:
    """exp(a) of any matrices, by scaling and squaring.

    A tame compartmental matrix (nothing negative off the diagonal) is shifted to have no negative entry at all: nothing
    is then subtracted and small entries keep their digits, see `nlmegen.structure.linear`. Otherwise exp(a) - 1 is
    squared, F <- 2 F + F^2: squaring exp(a) itself loses a digit with every factor of ten in the norm, and this does
    not, so that slow and fast rates may stand side by side.

    Args:
        a: `[..., n, n]`.

    Example:
        >>> turn = exponential(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
        >>> abs(turn[0, 0].item() - math.cos(1.0)) < 1e-15
        True
    """
    value = cast(Tensor, value_of(a)).detach()
    diagonal = value.diagonal(dim1=-2, dim2=-1)
    size = value.abs().sum(-2).amax(-1)
    norm = min(float(size[size.isfinite()].amax()), 2.0**60) if bool(size.isfinite().any()) else 0.0
    positive = norm <= _TAME and not bool((value - torch.diag_embed(diagonal) < 0).any())
    if positive:
        norm += float((-diagonal.amin(-1).clamp(max=0.0)).nan_to_num(nan=0.0, posinf=0.0).amax())
    return _squared(a, positive, max(0, math.ceil(math.log2(norm / _NORM))) if norm > 0 else 0)


def _squared(a: Number, positive: bool, halvings: int) -> Number:
    """exp(a) by so many halvings; with a shift where nothing is negative off the diagonal (`positive`)."""
    value = cast(Tensor, value_of(a)).detach()
    unit = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    if not positive:
        less = _less_one(a * 0.5**halvings, unit)
        for _ in range(halvings):
            less = 2.0 * less + product(less, less)
        return unit + less
    # a constant shift: the identity holds for any, so it needs no derivatives
    shift = -value.diagonal(dim1=-2, dim2=-1).amin(-1).clamp(max=0.0)[..., None, None]
    whole: Number = (unit + _less_one((a + shift * unit) * 0.5**halvings, unit)) * torch.exp(
        -shift * 0.5**halvings
    )
    for _ in range(halvings):
        whole = product(whole, whole)
    return whole


def _less_one(a: Number, unit: Tensor) -> Number:
    """exp(a) - 1 by its series to a^16 / 16!, in six products.

    Paterson & Stockmeyer, SIAM J. Comput. 2 (1973), doi:10.1137/0202007.
    """
    second = product(a, a)
    third, fourth = product(second, a), product(second, second)

    def group(k: int) -> Number:
        """The terms k, ..., k + 3 of the series, divided by a^k."""
        c = [1 / math.factorial(j) for j in range(k, k + 4)]
        return c[0] * unit + c[1] * a + c[2] * second + c[3] * third

    total: Number = group(12) + fourth * (1 / math.factorial(16))
    for k in (8, 4):
        total = group(k) + product(fourth, total)
    return a + 0.5 * second + (1 / 6) * third + product(fourth, total)


def _matrix(entries: Sequence[Number], size: int, shape: tuple[int, int]) -> Number:
    """Matrices `[row, point - 1, size, size]` from their entries."""
    stacked = _stack([cast(Number, x.expand(shape)) for x in entries])
    return each(stacked, lambda x, lead: x.movedim(lead, -1).reshape(*x.shape[:lead], *shape, size, size))


def _stack(numbers: Sequence[Number]) -> Number:
    return torch.stack(list(numbers))  # type: ignore[arg-type]


def _chosen(condition: Tensor, a: Number, b: Tensor) -> Number:
    return torch.where(condition, a, b)  # type: ignore[arg-type]


def _led(x: Number) -> Number:
    """`x` with a zero in front of its last axis."""
    return each(x, lambda y, lead: pad(y, (1, 0)))
