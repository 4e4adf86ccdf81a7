"""Amounts as one tensor: value, Jacobian and Hessian of every amount, packed for a solver.

A page's dynamics run on Taylor numbers are its sensitivity equations. Solvers want one tensor: its first axis holds the
components of a Taylor number, the value, the first derivatives, and the second derivatives (i, j) with i <= j; the
second axis holds the amounts and the last one the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, lift, value_of


@dataclass(frozen=True)
class Layout:
    """Where the components of Taylor numbers of one order lie in a packed tensor.

    Attributes:
        order: 0 (tensors), 1 or 2.
        directions: q, the number of directions (0 at order 0).
        dtype: element type.
        device: device.

    Example:
        >>> layout = Layout(1, 2, torch.float64, torch.device("cpu"))
        >>> x, y = Taylor.seed(torch.ones(3, 2, dtype=torch.float64), 1)
        >>> layout.pack([x * y, x], 3).shape
        torch.Size([3, 2, 3])
    """

    order: int
    directions: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, numbers: Sequence[Number]) -> Layout:
        """The layout that holds all these numbers."""
        taylors = [x for x in numbers if isinstance(x, Taylor)]
        order = max((x.order for x in taylors), default=0)
        return cls(order, taylors[0].directions if taylors else 0, numbers[0].dtype, numbers[0].device)

    @property
    def components(self) -> int:
        """Components of one amount: 1, 1 + q, or 1 + q + q (q + 1) / 2."""
        q = self.directions
        return 1 + (q if self.order else 0) + (q * (q + 1) // 2 if self.order == 2 else 0)

    @cached_property
    def _upper(self) -> Tensor:
        """Positions of the pairs i <= j in a flattened Hessian."""
        i, j = torch.triu_indices(self.directions, self.directions, device=self.device)
        upper: Tensor = i * self.directions + j
        return upper

    @cached_property
    def _whole(self) -> Tensor:
        """Component of every entry of a flattened Hessian, counted from the first second derivative."""
        q = self.directions
        number = torch.zeros(q, q, dtype=torch.int64, device=self.device)
        i, j = torch.triu_indices(q, q, device=self.device)
        number[i, j] = number[j, i] = torch.arange(len(i), device=self.device)
        return number.flatten()

    def pack(self, numbers: Sequence[Number], *rows: int) -> Tensor:
        """`[component, amount, *rows]` of numbers `[*rows, 1]` (or of axes that broadcast to these)."""
        shape = torch.Size((*rows, 1))
        parts = [torch.stack([_at(value_of(x), shape) for x in numbers]).unsqueeze(0)]
        if self.order:
            zero = torch.zeros((), dtype=self.dtype, device=self.device)
            wide = [lift(x, len(shape)) if isinstance(x, Taylor) else None for x in numbers]
            first = torch.Size((self.directions, *shape))
            parts.append(torch.stack([_at(zero if x is None else x.jac, first) for x in wide], 1))
        if self.order == 2:
            second = torch.Size((self.directions, *first))
            hess = [_at(zero if x is None or x.hess is None else x.hess, second) for x in wide]
            parts.append(torch.stack(hess, 2).flatten(0, 1).index_select(0, self._upper))
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).squeeze(-1)

    def unpack(self, packed: Tensor) -> list[Number]:
        """The amounts of `[component, amount, *rows]` as numbers `[*rows, 1]`."""
        packed = packed.unsqueeze(-1)
        values = packed[0].unbind(0)
        if not self.order:
            return list(values)
        q = self.directions
        jacs = packed[1 : 1 + q].unbind(1)
        if self.order == 1:
            return [Taylor(v, j) for v, j in zip(values, jacs, strict=True)]
        whole = packed[1 + q :].index_select(0, self._whole)
        hesses = whole.reshape((q, q) + packed.shape[1:]).unbind(2)
        return [Taylor(v, j, h, 2) for v, j, h in zip(values, jacs, hesses, strict=True)]

    def blocks(self, packed: Tensor, scale: Tensor) -> Tensor:
        """Root mean square over the amounts of `packed / scale`, the worst component: `[row]`."""
        return (packed / scale).square().mean(1).amax(0).sqrt()


def _at(x: Tensor, shape: torch.Size) -> Tensor:
    return x if x.shape == shape else x.expand(shape)


def parted(x: Number, change: Callable[[Tensor, int], Tensor]) -> Number:
    """The same rearrangement of value, Jacobian and Hessian, given their number of leading derivative axes."""
    return x._map(change) if isinstance(x, Taylor) else change(x, 0)


def flattened(x: Number, shape: torch.Size) -> Number:
    """A number `[*draw, subject or 1, n]` as `[row, n]`, or `[1, n]` where all rows share it.

    Args:
        x: the number.
        shape: `[*draw, subject]`; there are as many rows as its entries.
    """
    n = x.shape[-1]

    def flat(part: Tensor, lead: int) -> Tensor:
        front, own = part.shape[:lead], part.shape[lead:-1]
        if own.numel() == 1:
            return part.reshape((*front, 1, part.shape[-1]))
        return part.expand((*front, *shape, part.shape[-1])).reshape((*front, shape.numel(), part.shape[-1]))

    if not isinstance(x, Taylor):
        return flat(x.reshape((1,) * (len(shape) + 1 - x.ndim) + x.shape), 0)
    x = lift(x, len(shape) + 1)
    hess = None if x.hess is None else flat(x.hess, 2)
    value = flat(x.value, 0)
    jac = flat(x.jac, 1)
    if n > 1:
        jac = jac.expand(jac.shape[:-1] + (n,))
        hess = None if hess is None else hess.expand(hess.shape[:-1] + (n,))
    return Taylor(value, jac, hess, x.order)


def at_rows(x: Number, index: Tensor) -> Number:
    """The rows in `index` of a number `[row or 1, n]`."""

    def pick(part: Tensor, lead: int) -> Tensor:
        return part if part.shape[lead] == 1 else part.index_select(lead, index)

    if not isinstance(x, Taylor):
        return pick(x, 0)
    return Taylor(pick(x.value, 0), pick(x.jac, 1), None if x.hess is None else pick(x.hess, 2), x.order)
