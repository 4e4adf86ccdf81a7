"""The normal law between limits against mpmath, and its derivatives in the far tails."""

from __future__ import annotations

import mpmath as mp
import pytest
import torch

from nlmegen.maths.normal import between, excess, hazard, log_ndtr
from nlmegen.maths.taylor import Taylor

F64 = torch.float64
ENDS = [
    (None, 3.0),
    (None, -1.0),
    (None, -40.0),
    (2.0, None),
    (40.0, None),
    (-1.0, 2.0),
    (5.0, 9.0),
    (30.0, 30.5),
    (-1.0, -0.9999),
    (0.3, 0.300001),
    (-40.0, -39.9999),
]
NAMES = ("log_mass", "mean", "square", "shrink", "skew", "spread")


def exact(a: float | None, b: float | None) -> list[mp.mpf]:
    """The same by integration, the far tail cut where nothing is left."""
    low = mp.mpf(a) if a is not None else mp.mpf(min(-14.0, b - 14.0 / max(1.0, -b) * 3))
    high = mp.mpf(b) if b is not None else mp.mpf(max(14.0, a + 14.0 / max(1.0, a) * 3))
    points = [low + (high - low) * k / 10 for k in range(11)]
    top = min(low * low, high * high) if low * high > 0 else mp.mpf(0)  # mpmath's tolerance is absolute
    mass, *rest = (
        mp.quad(lambda u, k=k: u**k * mp.exp((top - u * u) / 2), points, method="gauss-legendre")
        for k in range(5)
    )
    m1, m2, m3, m4 = (x / mass for x in rest)
    return [mp.log(mass / mp.sqrt(2 * mp.pi)) - top / 2, m1, m2, 1 - (m2 - m1**2), m3 - m1 * m2, m4 - m2**2]


@pytest.mark.parametrize(("a", "b"), ENDS)
def test_moments_between_limits_against_integration(a: float | None, b: float | None) -> None:
    given = [torch.tensor(0.0 if x is None else x, dtype=F64) for x in (a, b)]
    found = between(*given, torch.tensor(a is None), torch.tensor(b is None))
    with mp.workdps(25):
        for name, truth in zip(NAMES, exact(a, b), strict=True):
            tolerance = 1e-12 if name in ("log_mass", "mean", "square", "shrink") else 1e-6
            error = abs(mp.mpf(float(getattr(found, name))) - truth)
            assert error <= tolerance * max(abs(truth), mp.mpf("1e-9")) + mp.mpf("1e-15"), name


def test_both_open_is_the_whole_line() -> None:
    yes = torch.tensor(True)
    found = between(torch.tensor(0.0, dtype=F64), torch.tensor(0.0, dtype=F64), yes, yes)
    assert [float(getattr(found, name)) for name in NAMES] == [0.0, 0.0, 1.0, 0.0, 0.0, 2.0]


def test_derivatives_of_the_tail_are_those_of_its_differences() -> None:
    x = torch.tensor([-300.0, -60.0, -50.001, -49.999, -40.0, -1.0, 0.0, 5.0, 40.0], dtype=F64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(log_ndtr, x)
    assert torch.autograd.gradgradcheck(log_ndtr, x)


def test_the_tail_against_mpmath() -> None:
    with mp.workdps(60):
        for at in (-500.0, -50.5, -49.5, -40.0, -5.0, 0.0, 6.0):
            phi = mp.npdf(at) / mp.ncdf(at)
            x = torch.tensor(at, dtype=F64)
            assert float(log_ndtr(x)) == pytest.approx(float(mp.log(mp.ncdf(at))), rel=1e-14)
            assert float(hazard(x)) == pytest.approx(float(phi), rel=1e-13)
            assert float(excess(x)) == pytest.approx(float(at + phi), rel=2e-12)


def test_taylor_numbers_and_every_derivative_finite_at_forty_deviations() -> None:
    (x,) = Taylor.seed(torch.tensor([[-40.0]], dtype=F64), 2)
    numbers = log_ndtr(x)
    leaf = torch.tensor(-40.0, dtype=F64, requires_grad=True)
    value = log_ndtr(leaf)
    found = [value]
    for _ in range(4):
        (value,) = torch.autograd.grad(value, leaf, create_graph=True)
        found.append(value)
    assert all(bool(torch.isfinite(each)) for each in found)
    assert float(numbers.value) == found[0].item()
    assert float(numbers.jac) == found[1].item()
    assert float(numbers.hess) == pytest.approx(found[2].item(), rel=1e-12)
