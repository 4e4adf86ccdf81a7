"""Steady states of linear systems, against sums over doses in fifty digits and doses written out."""

from __future__ import annotations

import math
from typing import Any

import mpmath as mp
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from nlmegen.maths.taylor import Taylor, value_of
from nlmegen.structure.periodic import Repeated, by_matrix, by_modes, solve

NAMES = ("rate", "absorption", "amount", "infusion", "duration", "phase")
# rate, absorption, amount, rate of infusion, duration, interval, phase
CASES = {
    "boluses": (0.1, 1.0, 10.0, 0.0, 0.0, 12.0, 12.0),
    "boluses, with lag": (0.1, 1.0, 10.0, 0.0, 0.0, 12.0, 7.5),
    "flip-flop": (1.0, 0.1, 10.0, 0.0, 0.0, 12.0, 7.5),
    "short infusions, over": (0.1, 1.0, 0.0, 2.0, 5.0, 12.0, 12.0),
    "short infusions, one running": (0.1, 1.0, 0.0, 2.0, 5.0, 12.0, 3.0),
    "long infusions": (0.1, 0.3, 0.0, 2.0, 29.0, 12.0, 9.0),
    "long infusions, one more running": (0.1, 0.3, 0.0, 2.0, 29.0, 12.0, 3.0),
    "infusions that follow each other": (0.1, 0.3, 0.0, 2.0, 24.0, 12.0, 3.0),
    "absorption near the rate": (0.1, 0.1 + 1e-6, 10.0, 0.0, 0.0, 12.0, 7.5),
    "infusions, absorption near the rate": (0.1, 0.1 + 1e-9, 0.0, 2.0, 29.0, 12.0, 3.0),
    "hardly any lost": (1e-6, 1.0, 10.0, 0.0, 0.0, 0.5, 0.4),
    "nothing left": (9.0, 30.0, 10.0, 0.0, 0.0, 12.0, 0.5),
}


def by_hand(
    rate: Any, absorption: Any, amount: Any, infusion: Any, duration: Any, phase: Any, interval: Any
) -> Any:
    """What a mode and the depot hold, summed over the doses; the sums of what is over are geometric."""
    exp = mp.exp

    def summed(r: Any) -> Any:
        """Of all doses that go straight into a mode of rate r."""
        total = amount * exp(-r * phase) / (1 - exp(-r * interval))
        age = phase
        while infusion and age < duration:  # these still run
            total += infusion * (1 - exp(-r * age)) / r
            age += interval
        over = infusion * (exp(r * duration) - 1) / r * exp(-r * age)
        return total + over / (1 - exp(-r * interval))

    depot = summed(absorption)
    # kernel of absorption and a mode: ka (exp(-l t) - exp(-ka t)) / (ka - l)
    return [absorption * (summed(rate) - depot) / (absorption - rate), depot, summed(rate)]


def columns(values: tuple[float, ...]) -> tuple[list[Taylor], Tensor]:
    """The arguments but the interval as Taylor numbers, and the interval."""
    *first, interval, phase = values
    x = torch.tensor([[*first, phase]], dtype=torch.float64)
    return Taylor.seed(x, 2), torch.tensor([[interval]], dtype=torch.float64)


@pytest.mark.parametrize("values", CASES.values(), ids=CASES.keys())
def test_modes_and_depot_with_derivatives_are_sums_over_the_doses(values: tuple[float, ...]) -> None:
    x, interval = columns(values)
    dose = Repeated(x[2], x[3], x[4], interval, x[5])
    through, depot = by_modes(x[0], x[1], dose)
    direct, nothing = by_modes(x[0], None, dose)
    assert nothing is None
    assert depot is not None
    with mp.workdps(60):
        start, h = [mp.mpf(v) for v in (*values[:5], values[6])], mp.mpf("1e-15")

        def at(*steps: tuple[int, int]) -> list[Any]:
            moved = list(start)
            for k, sign in steps:
                moved[k] += sign * h
            return by_hand(*moved, mp.mpf(values[5]))

        middle = at()
        live = [k for k in range(6) if k in (0, 1, 5) or (k == 2) == (values[2] > 0)]
        for number, y in zip((through, depot, direct), zip(*[middle], strict=True), strict=True):
            assert float(abs(number.value.item() - y[0]) / y[0]) < 1e-14
        for k in live:
            up, down = at((k, 1)), at((k, -1))
            # a kink stands where an infusion ends as the next begins
            for i, number in enumerate((through, depot, direct)):
                value, jac, _ = number.full()
                slope = (up[i] - down[i]) / (2 * h)
                scale = middle[i] / start[k]
                assert float(abs(jac[k].item() - slope) / max(abs(slope), scale)) < 1e-12, (NAMES[k], i)
        for k in live:
            for j in live:
                if k <= j:
                    cross = [at((k, a), (j, b)) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
                    for i, number in enumerate((through, depot, direct)):
                        bend = (cross[0][i] - cross[1][i] - cross[2][i] + cross[3][i]) / (4 * h * h)
                        scale = middle[i] / (start[k] * start[j])
                        found = number.dense_hess()[k, j].item()
                        assert float(abs(found - bend) / max(abs(bend), scale)) < 1e-10, (
                            NAMES[k],
                            NAMES[j],
                            i,
                        )


def depot_and_central(x: list[Taylor]) -> Taylor:
    """A of a depot that empties into a mode, `[1, 1, 2, 2]`."""
    rows = [[-x[1], x[1] * 0.0], [x[1], -x[0]]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("name", [k for k in CASES if k not in ("hardly any lost", "nothing left")])
def test_the_matrix_says_what_the_modes_say(name: str) -> None:
    x, interval = columns(CASES[name])
    dose = Repeated(x[2], x[3], x[4], interval, x[5])
    through, depot = by_modes(x[0], x[1], dose)
    assert depot is not None
    state = by_matrix(depot_and_central(x), 0, dose)
    assert isinstance(state, Taylor)
    for place, number in ((0, depot), (1, through)):
        for found, expected in zip(state[..., place].full(), number.full(), strict=True):
            assert found is not None
            assert expected is not None
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12 * float(expected.abs().max()))


def test_two_hundred_doses_written_out() -> None:
    """Three compartments that exchange, infusions that run into each other, an inflow at all times."""
    a = torch.tensor([[-0.9, 0.2, 0.0], [0.3, -0.5, 0.1], [0.2, 0.1, -0.4]], dtype=torch.float64)
    drift, interval, duration, rate, phase = torch.tensor([0.5, 0.0, 1.0]).double(), 3.0, 7.5, 4.0, 2.25
    one = torch.ones((), dtype=torch.float64)
    dose = Repeated(5.0 * one, rate * one, duration * one, interval * one, phase * one)
    found = by_matrix(a, 1, dose, drift)
    place = torch.tensor([0.0, 1.0, 0.0]).double()
    whole = torch.zeros(7, 7, dtype=torch.float64)
    whole[:3, :3], whole[:3, 3:6] = a, torch.eye(3)

    def flow(source: Tensor, time: float) -> Tensor:
        grown = expm((whole[:6, :6] * time).numpy())
        return torch.from_numpy(grown[:3, 3:6]) @ source

    def left(time: float) -> Tensor:
        return torch.from_numpy(expm((a * time).numpy()))

    total = torch.linalg.solve(-a, drift)
    for k in range(200):
        age = phase + k * interval
        total = total + left(age) @ (5.0 * place)
        ran = min(age, duration)
        total = total + left(age - ran) @ flow(rate * place, ran)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=0.0)


def test_a_constant_infusion_is_its_rate_over_the_loss() -> None:
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    dose = Repeated(zero, 3.0 * one, zero, zero, zero)
    through, depot = by_modes(0.2 * one, 1.5 * one, dose)
    assert depot is not None
    assert (value_of(through).item(), value_of(depot).item()) == pytest.approx((15.0, 2.0), rel=1e-15)
    matrix = torch.tensor([[-1.5, 0.0], [1.5, -0.2]], dtype=torch.float64).expand(1, 1, 2, 2)
    assert by_matrix(matrix, 0, dose).flatten().tolist() == pytest.approx([2.0, 15.0], rel=1e-14)


@pytest.mark.parametrize("phase", [0.0, -1.0, 12.5, math.nan])
def test_a_time_outside_the_interval_has_no_steady_state(phase: float) -> None:
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    assert by_modes(one, None, Repeated(one, zero, zero, 12 * one, phase * one))[0].isnan().all()


def test_what_nothing_leaves_has_no_steady_state() -> None:
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    matrix = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert not by_matrix(matrix, 0, Repeated(one, zero, zero, 12 * one, 12 * one)).isfinite().all()


def test_solve_is_differentiated_twice() -> None:
    generator = torch.Generator().manual_seed(3)
    m = torch.randn(3, 3, generator=generator, dtype=torch.float64) + 3 * torch.eye(3)
    u, w = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    b, c = (torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2))

    def of(s: Tensor) -> Tensor:
        return torch.linalg.solve(m + s * u + s * s * w, b + torch.sin(s) * c)

    s = torch.tensor(0.3, dtype=torch.float64)
    (seed,) = Taylor.seed(s.reshape(1, 1), 2)
    wide = seed.unsqueeze(-1)
    matrix = m + wide * u + wide * wide * w
    found = solve(matrix, b + torch.sin(seed) * c)  # type: ignore[arg-type]
    assert isinstance(found, Taylor)
    first = torch.func.jacfwd(of)
    value, jac, hess = found.full()
    assert hess is not None
    torch.testing.assert_close(value.flatten(), of(s), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(jac.flatten(), first(s), rtol=1e-12, atol=1e-14)
    second = torch.func.jacfwd(torch.func.jacrev(of))(s)  # forward over forward is wrong for a batched solve
    torch.testing.assert_close(hess.flatten(), second, rtol=1e-11, atol=1e-13)
