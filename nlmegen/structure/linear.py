"""Any linear compartmental system by the matrix exponential, on tensors and on Taylor numbers.

Amounts obey dx/dt = A x + r with A_ij >= 0 off the diagonal. With mu at least every outflow rate the matrix A + mu is
nowhere negative, so in

    exp(A t) = [exp(-mu t / 2^s) sum_k ((A + mu) t / 2^s)^k / k!]^(2^s)

nothing is ever subtracted: entries keep their relative accuracy (to 2^s roundings), and the formula, unlike one in the
eigenvalues, is smooth in A wherever eigenvalues meet. It costs far more than a closed form.

Xue & Ye, Math. Comp. 77 (2008), doi:10.1090/S0025-5718-08-02083-4 (entrywise accurate exponentials of such matrices).
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import each, last, take
from nlmegen.structure.recurrence import matrix_recurrence
from nlmegen.structure.schedule import Schedule

# 2^25 / 25! = 2e-18: the first term left out, at the largest norm that is not halved further
_TERMS, _NORM = 24, 2.0


def product(a: Number, b: Number) -> Number:
    """Matrix product `[..., i, j] [..., j, k]` of two numbers of as many dimensions.

    Example:
        >>> product(torch.eye(2), torch.ones(2, 1)).flatten().tolist()
        [1.0, 1.0]
    """
    if not isinstance(a, Taylor) and not isinstance(b, Taylor):
        return a @ b
    order = a.order if isinstance(a, Taylor) else cast(Taylor, b).order
    a_value, b_value = cast(Tensor, value_of(a)), cast(Tensor, value_of(b))
    jac: Tensor | None = None
    hess: Tensor | None = None
    if isinstance(a, Taylor):
        jac = a.jac @ b_value
        hess = None if a.hess is None else a.hess @ b_value
    if isinstance(b, Taylor):
        jac = a_value @ b.jac if jac is None else jac + a_value @ b.jac
        if b.hess is not None:
            hess = a_value @ b.hess if hess is None else hess + a_value @ b.hess
    if order == 2 and isinstance(a, Taylor) and isinstance(b, Taylor):
        cross = a.jac.unsqueeze(1) @ b.jac
        cross = cross + cross.transpose(0, 1)
        hess = cross if hess is None else hess + cross
    assert jac is not None
    return Taylor(a_value @ b_value, jac, hess, order)


def exponential(a: Number) -> Number:
    """exp(a) of matrices whose entries off the diagonal are not negative.

    Args:
        a: `[..., compartment, compartment]`.

    Example:
        >>> exponential(torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64))[1, 0].item()
        0.6321205588285577
    """
    value = cast(Tensor, value_of(a)).detach()
    # a constant shift and a constant scale: the identity holds for any, so they need no derivatives
    mu = -value.diagonal(dim1=-2, dim2=-1).amin(-1).clamp(max=0.0)[..., None, None]
    unit = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
    norm = (
        float(torch.nan_to_num(value + mu * unit, nan=0.0, posinf=0.0).sum(-2).amax())
        if value.numel()
        else 0.0
    )
    halvings = max(0, math.ceil(math.log2(norm / _NORM))) if norm > 0 else 0
    scaled = (a + mu * unit) * 0.5**halvings
    total = unit + scaled * (1 / _TERMS)
    for k in range(_TERMS - 1, 0, -1):
        total = unit + product(scaled, total) * (1 / k)
    result = total * torch.exp(-mu * 0.5**halvings)
    for _ in range(halvings):
        result = product(result, result)
    return result


def linear_amounts(matrix: Number, schedule: Schedule) -> Number:
    """Amounts at the observations of a linear system under a schedule.

    A running infusion is one more compartment, never emptied and never reset, that feeds the others.

    Args:
        matrix: A `[compartment, compartment, subject, 1 or event]`.
        schedule: doses and times, with as many compartments.

    Returns:
        `[compartment, subject, time]`.
    """
    count, zero = value_of(matrix).shape[0], torch.zeros_like(schedule.start)
    bolus = [zero if b is None else b for b in schedule.bolus]
    if any(r is not None for r in schedule.rate):
        rates = torch.stack([zero if r is None else r for r in schedule.rate])
        outflow = -cast(Tensor, value_of(matrix)).detach().diagonal().amin(-1).amin(-1, keepdim=True)
        content = rates.amax((0, -1)).clamp(min=1.0)[:, None] / outflow
        matrix = _fed(matrix, rates / content)
        bolus.append(torch.cat((content, zero[:, 1:]), -1))
    given = torch.stack(bolus)
    state: Number = given
    if not schedule.single:
        carried = _over(last(matrix, schedule.spans.shape[-1]), schedule.spans)
        keep = schedule.keep[:, 1:].expand(len(bolus), 1, *schedule.spans.shape)
        if len(bolus) > count:
            keep = torch.cat((keep[:-1], torch.ones_like(keep[-1:])))
        state = matrix_recurrence(carried * keep, given[..., 1:], given[..., :1])
    state = take(state, schedule.segment)
    moved = _over(take(matrix, schedule.segment), schedule.elapsed)
    column = each(state, lambda x, lead: x.movedim(lead, -1).unsqueeze(-1))
    result = product(each(moved, lambda x, lead: x.movedim((lead, lead + 1), (-2, -1))), column)
    return each(result, lambda x, lead: x.squeeze(-1).movedim(-1, lead).narrow(lead, 0, count))


def _over(matrix: Number, time: Tensor) -> Number:
    """exp(A t), compartments first."""
    scaled = each(matrix * time, lambda x, lead: x.movedim((lead, lead + 1), (-2, -1)))
    return each(exponential(scaled), lambda x, lead: x.movedim((-2, -1), (lead, lead + 1)))


def _fed(matrix: Number, column: Tensor) -> Number:
    """The matrix with one more compartment, from which the others receive `column [compartment, subject, event]`."""
    events, count = column.shape[-1], column.shape[0]

    def widened(x: Tensor, lead: int) -> Tensor:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 1, 0, 1))
        return x.expand(x.shape[:-1] + (events,))

    extra = torch.nn.functional.pad(column.unsqueeze(1), (0, 0, 0, 0, count, 0, 0, 1))
    return each(matrix, widened) + extra
