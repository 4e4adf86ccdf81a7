"""Many small minimisations at once: Newton's method with exact Hessians over a batch.

Every batch element has its own function of q variables, and all are minimised abreast. An element takes the Newton
step of its exact Hessian, or of a positive definite stand-in where the Hessian is indefinite; a step that raises the
value is cut back, alone, while the others go on. The measure of convergence is the Newton decrement g' H^-1 g (twice
the decrease that the quadratic model still promises), which has the units of the value and needs no scaling.

See Nocedal & Wright, Numerical Optimization, 2nd ed. (2006), chapters 2-3, doi:10.1007/978-0-387-40065-5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

COMPACT_ABOVE = 256
"""Batches of at least this many elements drop the finished ones; in smaller ones that costs more than it saves."""

ROUNDING = 1e-10
"""A step may raise a value by this share of it: below that, differences of values are rounding errors."""


class Expansion(Protocol):
    """The second-order expansion of every batch element at one point."""

    @property
    def value(self) -> Tensor:
        """`[*batch]`; not finite where the function is not defined."""

    @property
    def gradient(self) -> Tensor:
        """`[*batch, q]`."""

    @property
    def hessian(self) -> Tensor:
        """`[*batch, q, q]`, exact, possibly indefinite."""

    def fallback(self) -> Tensor:
        """`[*batch, q, q]`, positive definite: what stands in for an indefinite Hessian."""


E = TypeVar("E", bound=Expansion, covariant=True)


class Objective(Protocol[E]):
    """A batch of functions, which can be evaluated and of which some elements can be taken."""

    def __call__(self, x: Tensor, /) -> E:
        """The expansion at `x [*batch, q]`."""

    def select(self, index: Tensor, /) -> Objective[E]:
        """The functions at the positions `index [M]` of the flattened batch, as a batch of shape `[M]`."""


@dataclass(frozen=True)
class Minimum(Generic[E]):
    """Where a batch of minimisations ended.

    Attributes:
        x: the points, `[*batch, q]`.
        expansion: the expansion at `x`.
        decrement: Newton decrement at `x`, `[*batch]`.
        converged: the decrement fell below the tolerance (or to the rounding error of the value), `[*batch]`.
        indefinite: the exact Hessian at `x` is not positive definite, `[*batch]`.
        iterations: number of batched evaluations.
    """

    x: Tensor
    expansion: E
    decrement: Tensor
    converged: Tensor
    indefinite: Tensor
    iterations: int


def direction(expansion: Expansion) -> tuple[Tensor, Tensor, Tensor]:
    """The Newton step -H^-1 g of every element, its decrement, and where H was indefinite.

    Where H is indefinite the expansion's positive definite stand-in takes its place; where even that fails (values
    that are not finite) the step is zero and the decrement NaN.
    """
    gradient = expansion.gradient.unsqueeze(-1)
    factor, info = torch.linalg.cholesky_ex(expansion.hessian)
    indefinite = info > 0
    if bool(indefinite.any()):
        hessian = torch.where(indefinite[..., None, None], expansion.fallback(), expansion.hessian)
        factor, _ = torch.linalg.cholesky_ex(hessian)
    half = torch.linalg.solve_triangular(factor, gradient, upper=False)
    decrement = (half * half).sum((-2, -1))
    step = -torch.linalg.solve_triangular(factor.mT, half, upper=True).squeeze(-1)
    if not bool(torch.isfinite(decrement).all()):
        broken = ~torch.isfinite(decrement)
        step = torch.where(broken[..., None], 0.0, step)
        decrement = torch.where(broken, math.nan, decrement)
    return step, decrement, indefinite


def minimise(
    objective: Objective[E],
    x: Tensor,
    *,
    tolerance: float = 1e-16,
    max_iterations: int = 100,
    limit: Tensor | float | None = None,
    compact_above: int = COMPACT_ABOVE,
) -> Minimum[E]:
    """Minimise every element of a batch by damped Newton steps.

    Args:
        objective: the batch of functions.
        x: where to start, `[*batch, q]`. An element whose value is not finite there stays there, not converged.
        tolerance: largest Newton decrement of a finished element, in units of the value.
        max_iterations: largest number of batched evaluations.
        limit: longest step of a coordinate, broadcast to `[*batch, q]`; longer steps are shortened along their line.
        compact_above: from this batch size on, finished elements leave the batch once they are the majority.

    Returns:
        A `Minimum`; its `expansion` belongs to its `x`.

    Example:
        A batch of parabolas is a subclass away; see `nlmegen.inference.ebe.Conditional` for the real use.
    """
    if x.numel() == 0:
        return _nothing_to_do(objective, x)
    at = objective(x)
    value = _infinite_where_undefined(at.value)
    step, decrement, indefinite = _limited(direction(at), limit)
    fraction = torch.ones_like(value)
    stopped = ~(decrement >= tolerance) | ~torch.isfinite(value)
    count = 1
    clean = True  # `at` is the expansion at x, element for element
    while count < max_iterations and not bool(stopped.all()):
        remaining = stopped.numel() - int(stopped.sum())
        if stopped.numel() >= compact_above and 2 * remaining <= stopped.numel():
            return _compacted(
                objective,
                x,
                stopped,
                decrement,
                indefinite,
                count,
                tolerance,
                max_iterations,
                limit,
                compact_above,
            )
        if clean and remaining == stopped.numel():
            trial = x + step
        else:
            trial = torch.where(stopped[..., None], x, x + fraction[..., None] * step)
        at = objective(trial)
        count += 1
        trial_value = _infinite_where_undefined(at.value)
        accepted = trial_value <= value + ROUNDING * (1 + value.abs())
        new = _limited(direction(at), limit)
        clean = bool(accepted.all())
        if clean:
            x, value, previous = trial, trial_value, decrement
            step, decrement, indefinite = new
            fraction = torch.ones_like(value)
        else:
            x = torch.where(accepted[..., None], trial, x)
            fraction = torch.where(accepted, 1.0, _shortened(fraction, decrement, trial_value - value))
            value = torch.where(accepted, trial_value, value)
            previous = torch.where(accepted, decrement, math.inf)
            step = torch.where(accepted[..., None], new[0], step)
            decrement = torch.where(accepted, new[1], decrement)
            indefinite = torch.where(accepted, new[2], indefinite)
        # below the tolerance; undefined; at the floor of rounding (no longer falling fast); or cut to nothing
        floor = (previous < 1e-10) & (decrement > 0.1 * previous)
        stopped = stopped | ~(decrement >= tolerance) | floor | (fraction < 1e-9)
    converged = (decrement < tolerance) | ((decrement < 1e-10) & stopped)
    return Minimum(x, at if clean else objective(x), decrement, converged, indefinite, count)


def _infinite_where_undefined(value: Tensor) -> Tensor:
    return torch.where(torch.isnan(value), math.inf, value)


def _limited(
    proposal: tuple[Tensor, Tensor, Tensor], limit: Tensor | float | None
) -> tuple[Tensor, Tensor, Tensor]:
    if limit is None:
        return proposal
    step, decrement, indefinite = proposal
    excess = (step.abs() / limit).amax(-1, keepdim=True).clamp(min=1.0)
    return step / excess, decrement, indefinite


def _shortened(fraction: Tensor, decrement: Tensor, rise: Tensor) -> Tensor:
    """The minimum of the parabola through the value, the slope and the value that was refused, kept in [.1, .5]."""
    slope = fraction * decrement
    ratio = 0.5 * slope / (rise + slope)
    return fraction * torch.nan_to_num(ratio, nan=0.1).clamp(0.1, 0.5)


def _compacted(
    objective: Objective[E],
    x: Tensor,
    stopped: Tensor,
    decrement: Tensor,
    indefinite: Tensor,
    count: int,
    tolerance: float,
    max_iterations: int,
    limit: Tensor | float | None,
    compact_above: int,
) -> Minimum[E]:
    """Go on with the elements that are not finished, then put them back among the others."""
    q = x.shape[-1]
    index = (~stopped).flatten().nonzero().squeeze(-1)
    if isinstance(limit, Tensor):
        limit = limit.expand(x.shape).reshape(-1, q)[index]
    rest = minimise(
        objective.select(index),
        x.reshape(-1, q)[index],
        tolerance=tolerance,
        max_iterations=max_iterations - count,
        limit=limit,
        compact_above=compact_above,
    )

    def put(whole: Tensor, part: Tensor, shape: torch.Size) -> Tensor:
        return whole.flatten(0, stopped.ndim - 1).index_copy(0, index, part).reshape(shape)

    x = put(x, rest.x, x.shape)
    decrement = put(decrement, rest.decrement, stopped.shape)
    indefinite = put(indefinite, rest.indefinite, stopped.shape)
    converged = put(decrement < 1e-10, rest.converged, stopped.shape)
    return Minimum(x, objective(x), decrement, converged, indefinite, count + rest.iterations + 1)


def _nothing_to_do(objective: Objective[E], x: Tensor) -> Minimum[E]:
    """No variables (q = 0) or no elements: the point is its own minimum."""
    shape = x.shape[:-1]
    yes = torch.ones(shape, dtype=torch.bool, device=x.device)
    return Minimum(x, objective(x), torch.zeros(shape, dtype=x.dtype, device=x.device), yes, ~yes, 1)
