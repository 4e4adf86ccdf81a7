"""Bijections: round trips, ranges, and slopes against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from nlmegen.maths.bijections import Bijection

CASES = [Bijection(), Bijection(lower=0.0), Bijection(lower=-1.0), Bijection(upper=3.0), Bijection(-2.0, 5.0)]


@pytest.mark.parametrize("bijection", CASES)
def test_round_trip_range_and_slope(bijection: Bijection) -> None:
    u = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    x = bijection.natural(u)
    assert bool((x > bijection.lower).all())
    assert bool((x < bijection.upper).all())
    torch.testing.assert_close(bijection.free(x), u, rtol=1e-10, atol=1e-10)
    (slope,) = torch.autograd.grad(x.sum(), u)
    torch.testing.assert_close(bijection.slope(u), slope)


def test_kinds() -> None:
    assert [b.kind for b in CASES] == ["identity", "lower", "lower", "upper", "both"]
    assert Bijection(-math.inf, math.inf).kind == "identity"
