"""Time courses and their derivatives in the rates against mpmath, on both sides of every change of formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath as mp
import pytest
import torch
from torch import Tensor

from nlmegen.structure import divided

T = 3.0


def number(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


def partials(f: Callable[..., Any], *at: float) -> list[float]:
    """f and its derivatives in all arguments, in the order of `Term.partials`, by differences in sixty digits."""
    with mp.workdps(60):
        point = tuple(mp.mpf(x) for x in at)
        n = len(at)
        orders = [tuple(int(i == k) for i in range(n)) for k in range(n)]
        orders += [tuple(int(i == a) + int(i == b) for i in range(n)) for a in range(n) for b in range(a, n)]
        found = [f(*point)]
        for order in orders:
            found.append(
                mp.diff(f, point if n > 1 else point[0], order if n > 1 else order[0], h=mp.mpf(10) ** -15)
            )
        return [float(x) for x in found]


def exact_bateman(a: Any, b: Any) -> Any:
    """t exp(-a t) M(1, 2, (a - b) t), Kummer's function."""
    return T * mp.exp(-a * T) * mp.hyp1f1(1, 2, (a - b) * T)


def bateman(a: Tensor, b: Tensor, order: int = 2, early: bool = False) -> list[Tensor]:
    t = number(T)
    return divided.bateman(a, b, t, divided.decay(a, t, order), divided.decay(b, t, order), order, early)


def close(got: list[Tensor], expected: list[float], rtol: float, scale: float = 1.0) -> None:
    """Against the expected numbers, or their size over all times, which is `scale` to the power of the order."""
    assert len(got) == len(expected)
    power = {1: (0,), 3: (0, 1, 2), 6: (0, 1, 1, 2, 2, 2)}[len(got)]
    for x, y, n in zip(got, expected, power, strict=True):
        torch.testing.assert_close(x, number(y), rtol=rtol, atol=rtol * abs(expected[0]) * scale**n)


@pytest.mark.parametrize("rate", [1e-9, 0.1, 2.0, 200.0])
def test_decay(rate: float) -> None:
    close(divided.decay(number(rate), number(T), 2), partials(lambda r: mp.exp(-r * T), rate), 1e-13)


@pytest.mark.parametrize("rate", [1e-14, 1e-9, 1e-5, 1e-3, 0.083, 0.0834, 0.4, 5.0, 300.0])
def test_decay_integral(rate: float) -> None:
    def exact(r: Any) -> Any:
        return -mp.expm1(-r * T) / r

    close(divided.decay_integral(number(rate), number(T), 2), partials(exact, rate), 1e-13)


@pytest.mark.parametrize("x", [0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.2499, 0.2501, 3.0])
def test_phi_keeps_its_digits_through_one_more_differentiation(x: float) -> None:
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    with mp.workdps(60):
        series = [mp.nsum(lambda k, d=d: _phi_term(int(k), d, x), [0, 60]) for d in range(4)]
    parts = divided.phi(at, 2)
    for part, expected in zip(parts, series, strict=False):
        torch.testing.assert_close(part.item(), float(expected), rtol=2e-13, atol=0.0)
    (third,) = torch.autograd.grad(parts[2], at)
    torch.testing.assert_close(third.item(), float(series[3]), rtol=1e-11, atol=0.0)


def _phi_term(k: int, d: int, x: float) -> Any:
    """Derivative d of the term of degree k + d of (1 - exp(-x)) / x."""
    return (-1) ** (k + d) * mp.mpf(x) ** k / (mp.factorial(k) * (k + d + 1))


SEPARATIONS = [0.0, 1e-15, 1e-12, 1e-6, 1e-3, 0.04, 0.0499, 0.0501, 0.3, 3.0, 1e3, -1e-9, -0.04, -0.5]


@pytest.mark.parametrize("separation", SEPARATIONS)
@pytest.mark.parametrize("a", [0.01, 0.8])
def test_bateman(a: float, separation: float) -> None:
    b = a * (1 + separation)
    got, expected = bateman(number(a), number(b)), partials(exact_bateman, a, b)
    close(got, expected, 3e-11, scale=1 / min(a, b))


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_bateman_and_its_derivatives_are_symmetric(separation: float) -> None:
    a, b = number(0.8), number(0.8 * (1 + separation))
    there, back = bateman(a, b), bateman(b, a)
    for k, m in enumerate((0, 2, 1, 5, 4, 3)):
        torch.testing.assert_close(there[k], back[m], rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_third_derivatives_of_bateman_by_reverse_mode(separation: float) -> None:
    a, b = number(0.8).requires_grad_(), number(0.8 * (1 + separation)).requires_grad_()
    parts = bateman(a, b)
    with mp.workdps(60):
        point = (mp.mpf(a.item()), mp.mpf(b.item()))
        for k, (i, j) in ((3, (2, 0)), (4, (1, 1)), (5, (0, 2))):
            by_a, by_b = torch.autograd.grad(parts[k], (a, b), retain_graph=True)
            for got, order in ((by_a, (i + 1, j)), (by_b, (i, j + 1))):
                expected = float(mp.diff(exact_bateman, point, order, h=mp.mpf(10) ** -10))
                torch.testing.assert_close(got.item(), expected, rtol=1e-8, atol=1e-8)


def test_no_nan_flows_back_from_coincident_rates() -> None:
    a = number(0.5).requires_grad_()
    for part in bateman(a, a.detach().clone()):
        (slope,) = torch.autograd.grad(part, a, retain_graph=True)
        assert bool(torch.isfinite(slope).all())


def test_rows_are_mended_alone() -> None:
    """A near pair among others changes nothing in the others."""
    a, t = (
        torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64),
        torch.linspace(0, 9, 12, dtype=torch.float64),
    )
    t = t.expand(3, 12)
    b = torch.tensor([[1.0], [0.2 + 1e-9], [1.0]], dtype=torch.float64)
    whole = divided.bateman(a, b, t, divided.decay(a, t, 2), divided.decay(b, t, 2), 2)
    for row in range(3):
        k = slice(row, row + 1)
        x, y, s = a[k], b[k], t[k]
        alone = divided.bateman(x, y, s, divided.decay(x, s, 2), divided.decay(y, s, 2), 2)
        for w, v in zip(whole, alone, strict=True):
            torch.testing.assert_close(w[k], v, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("b", [0.3, 0.8, 0.8 * (1 + 1e-9), 40.0])
def test_absorption(b: float) -> None:
    got = divided.absorption(number(b), bateman(number(0.8), number(b)))
    close(got, partials(lambda x, y: y * exact_bateman(x, y), 0.8, b), 1e-11)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("b", [0.3, 0.8, 0.8 * (1 + 1e-9), 40.0])
def test_absorption_integral(b: float, scale: float) -> None:
    """Small rates stand for short times: what matters is small against what was given, t."""
    a, b = 0.8 * scale, b * scale

    def exact(x: Any, y: Any) -> Any:
        return T * mp.hyp1f1(1, 2, -x * T) - exact_bateman(x, y)

    got = divided.absorption_integral(
        divided.decay_integral(number(a), number(T), 2), bateman(number(a), number(b), early=True)
    )
    expected = partials(exact, a, b)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, number(y), rtol=1e-10, atol=1e-11 * T * abs(expected[0]) / (T * T * b))


@pytest.mark.parametrize("rates", [(1e9, 1e9), (1e30, 1e30), (1e-300, 1e-300), (1e9, 1e-9), (1e300, 1.0)])
def test_extreme_rates_stay_finite(rates: tuple[float, float]) -> None:
    for part in bateman(number(rates[0]), number(rates[1])):
        assert bool(torch.isfinite(part).all())
