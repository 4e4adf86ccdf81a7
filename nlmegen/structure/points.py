"""What a point of a timeline can be, what a page's `dosing` says of doses, and how points are put in order."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.chain import each
from nlmegen.structure.dose import Dose

PADDING = -1


class Point(enum.IntEnum):
    """What a point of a timeline is."""

    OBSERVE = 0
    BOLUS = 1
    RATE = 2
    RESET = 3
    MARK = 4
    ZERO = 5


@dataclass(frozen=True)
class Moved:
    """What a page's `dosing` does to the doses into one compartment.

    Attributes:
        lag: time by which they come later, `[*draw, subject or 1, 1 or event]`, or None.
        bioavailability: factor of their amounts, likewise.
        duration: of infusions whose record leaves it to the page (RATE -2), likewise.
        rate: of infusions whose record leaves it to the page (RATE -1), likewise.

    A negative lag or bioavailability, or a duration or rate that is not positive, makes the dose NaN, so that the
    subject cannot be solved.
    """

    lag: Number | None = None
    bioavailability: Number | None = None
    duration: Number | None = None
    rate: Number | None = None


def moves(said: Mapping[str, Dose], compartments: Sequence[str]) -> dict[int, Moved]:
    """What a page's `dosing` returned, as numbers, by position of the compartment."""
    return {
        list(compartments).index(name): Moved(
            _quantity(dose.lag),
            _quantity(dose.bioavailability),
            _quantity(dose.duration),
            _quantity(dose.rate),
        )
        for name, dose in said.items()
    }


def _quantity(x: Any) -> Number | None:
    if x is None or isinstance(x, (Tensor, Taylor)):
        return x
    return torch.full((1, 1), float(x), dtype=torch.float64)


def at_segments(x: Number, segment: Tensor) -> Number:
    """Of parameters `[*draw, subject or 1, 1 or event]` those of the segments `[*draw, subject, n]`.

    Returns:
        `x` itself when it is constant, else a number `[*draw, subject, n]`.
    """
    if x.shape[-1] == 1:
        return x
    axes = torch.broadcast_shapes(value_of(x).shape[:-1], segment.shape[:-1])  # type: ignore[no-untyped-call]
    wide = x + torch.zeros((*axes, x.shape[-1]), dtype=x.dtype)
    return cast(Number, torch.gather(wide, -1, segment.expand((*axes, segment.shape[-1]))))  # type: ignore[arg-type]


def segments_of(arrival: Tensor, time: Tensor, block: Tensor, real: Tensor, after: bool = False) -> Tensor:
    """The segment in which what an event brings arrives: the last that opened before then, its own at the least.

    What arrives at the time of a later event comes before that event.

    Args:
        arrival: `[*draw, subject, event]`.
        time: `[subject, event]` of the events, in order within a block.
        block: `[subject, event]` how often the system has started afresh: what arrives after that is lost.
        real: `[subject, event]` which are no padding.
        after: the segment that follows the arrival instead: the last that has opened by then.
    """
    own = torch.arange(time.shape[-1], device=time.device)
    found = own.expand(arrival.shape)
    wanted = arrival.contiguous()
    for b in range(int(block.amax()) + 1 if block.numel() else 0):
        clock = torch.where((block > b) | ~real, torch.inf, torch.where(block < b, -torch.inf, time))
        last = torch.searchsorted(clock.expand(arrival.shape).contiguous(), wanted, right=after) - 1
        last = torch.maximum(last.clamp(max=time.shape[-1] - 1), own)
        found = torch.where(block == b, last, found)
    return found


def order_of_points(points: Mapping[str, Tensor], clock: Tensor, moved: bool, shape: torch.Size) -> Tensor:
    """How the points are sorted: padding last; by reset block; by time where doses move, else as scheduled."""
    segment = points["segment"].to(clock.dtype).expand(shape)
    clock = clock.expand(shape)
    block = points["block"].to(clock.dtype)
    rank = torch.where(points["kind"] == PADDING, torch.inf, block).expand(shape)
    return _order(rank, clock, segment) if moved else _order(rank, segment, clock)


def _order(*keys: Tensor) -> Tensor:
    """Indices that sort the last axis by the first key, ties by the next, then by position."""
    order = torch.argsort(keys[-1], dim=-1, stable=True)
    for key in reversed(keys[:-1]):
        order = order.gather(-1, torch.argsort(key.gather(-1, order), dim=-1, stable=True))
    return order


def generations(points: Mapping[str, Tensor], partner: Tensor, order: Tensor) -> Tensor:
    """How often the compartment of each point had been switched off when the infusion began that it belongs to.

    Args:
        points: in order, `[*draw, subject, n]`.
        partner: before ordering, the point at which the infusion began that a point ends, its own elsewhere `[n]`.
        order: of the points, `[*draw, subject, n]`.
    """
    place, off = points["compartment"], points["kind"] == Point.ZERO
    seen = torch.zeros_like(place)
    for c in sorted(set(place[off].tolist())):
        seen = torch.where(place == c, (off & (place == c)).cumsum(-1), seen)
    unsorted = torch.empty_like(seen).scatter(-1, order, seen)
    every = partner.expand(unsorted.shape[:-1] + partner.shape)
    return unsorted.gather(-1, every).gather(-1, order)


def totals(change: Number, place: Tensor, block: Tensor, count: int) -> Number:
    """The running rate of its own compartment after each point, infusions ended by a reset."""
    total: Number = each(change, lambda x, lead: torch.zeros_like(x))
    for c in range(count):
        here = place == c
        own = _where(here, change)
        for b in range(int(block.amax()) + 1 if block.numel() else 0):
            inside = _where(block == b, own)
            level = each(inside, lambda x, lead: x.cumsum(-1))
            running = cast(Tensor, value_of(inside)).detach().sign().cumsum(-1)
            # the sum of overlapping rates leaves a rounding error when the last one stops; their number does not
            level = _where(running > 0.5, level)
            total = cast(Number, torch.where(here & (block == b), level, total))  # type: ignore[arg-type]
    return total


def _where(condition: Tensor, x: Number) -> Number:
    return cast(Number, torch.where(condition, x, torch.zeros((), dtype=x.dtype, device=x.device)))  # type: ignore[arg-type]
