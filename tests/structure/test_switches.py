"""Which pages have rates that jump, and at moments that depend on what."""

from __future__ import annotations

import pytest
import torch

from nlmegen.structure.equations import Equations
from nlmegen.structure.switches import jumps


def rate(f):
    return lambda t, a, p: dict(central=f(t, a, p) - p.k * a.central)


@pytest.mark.parametrize(
    ("page", "moments"),
    [
        (rate(lambda t, a, p: torch.where(t < p.d1, p.r, 0 * p.r)), {"parameters"}),
        (rate(lambda t, a, p: torch.where(a.central > 50, -p.r, 0 * p.r)), {"amounts"}),
        (rate(lambda t, a, p: torch.where(a.central > p.limit, -p.r, p.r)), {"amounts", "parameters"}),
        (rate(lambda t, a, p: torch.where((t >= 10) & (t < 10.05), p.r, 0 * p.r)), {"time"}),
        (rate(lambda t, a, p: 0 * p.r + p.r * p.k), set()),
        (rate(lambda t, a, p: torch.clamp(a.central, min=1.0, max=3.0)), set()),
        (rate(lambda t, a, p: torch.maximum(a.central, p.limit) + abs(p.r - t)), set()),
        (rate(lambda t, a, p: torch.where(t < p.d1, p.d1 - t, 0 * t)), set()),
    ],
)
def test_jumps_are_found_and_bends_are_not(page, moments) -> None:
    assert jumps(Equations.trace(page)) == moments
