"""The oracle of the scenarios against closed forms, other integrators, and NONMEM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scenarios import oracle, walking
from scenarios.models import MODELS, ByHand
from scenarios.nonmem_runs import RUNS, WEIGHED, Run
from scenarios.table import constant, dose, infusion, record, see, steady
from scenarios.trials import Trial, scenarios
from scipy.linalg import expm

ORAL = ByHand(MODELS["one oral"], "plain")


class Printed:
    """The oral model with lags, bioavailabilities and durations by compartment, as a NONMEM run has them."""

    compartments, linear = ("depot", "central"), True

    def __init__(self, run: Run) -> None:
        self.run = run

    def rates(self, t: Any, a: Any, p: Any) -> Any:
        return [-p.ka * a[0], p.ka * a[0] - p.cl / p.v * a[1]]

    def initial(self, p: Any) -> Any:
        return [0.0, 0.0]

    def observe(self, a: Any, p: Any) -> Any:
        return [self.run.scale * a[1] / p.v]

    def dosing(self, p: Any) -> dict[int, SimpleNamespace]:
        run = self.run
        return {
            k - 1: SimpleNamespace(
                lag=run.lag.get(k), f=run.f.get(k), duration=run.duration.get(k), rate=None
            )
            for k in (1, 2)
        }


def constants(values: dict[str, float]) -> Any:
    p = SimpleNamespace(**{k: np.full(1, v, dtype=complex) for k, v in values.items()})
    return lambda r: p


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_what_nonmem_printed(run: Run) -> None:
    subject = oracle.Subject(Printed(run), run.records(), constants(run.parameters))
    got = np.array(walking.walk([subject], exact=True)[0]).real.ravel()
    times = [r["time"] for r in run.records() if r["evid"] == 0]
    expected = np.array([run.seen[t] for t in times])
    np.testing.assert_allclose(got, expected, rtol=0.6 * 10.0 ** (1 - run.digits), atol=1e-14)


@pytest.mark.parametrize("name", WEIGHED)
def test_what_nonmem_printed_with_weights_that_change(name: str) -> None:
    records, expected = [], []
    for time, amt, ss, ii, wt, seen in WEIGHED[name]:
        if amt:
            records.append(dose(time, amt, ss=ss, ii=ii) | dict(cmt=1, cov_wt=wt))
        records.append(record(time, 0, cmt=1, cov_wt=wt))
        expected.append(seen)
    run = Run(name, [], {}, scale=1.0, lag={1: 0.7})

    def parameters(r: Any) -> Any:
        size = (r["cov_wt"] / 70) ** 0.75
        values = dict(cl=10.0 * size, v=50.0, ka=1.0 * size)
        return SimpleNamespace(**{k: np.full(1, v, dtype=complex) for k, v in values.items()})

    got = np.array(walking.walk([oracle.Subject(Printed(run), records, parameters)])[0]).real.ravel()
    np.testing.assert_allclose(got, expected, rtol=6e-5)


def bateman(p: Any, t: Any) -> Any:
    """Central concentration after a unit dose into the depot."""
    k = p.cl / p.v
    return np.where(t >= 0, p.ka / (p.v * (p.ka - k)) * (np.exp(-k * t) - np.exp(-p.ka * t)), 0.0)


def infused(p: Any, t: Any, duration: float) -> Any:
    """The same during and after an infusion of a unit rate."""
    k = p.cl / p.v

    def area(s: Any) -> Any:
        s = np.maximum(s, 0.0)
        return p.ka / (p.v * (p.ka - k)) * ((1 - np.exp(-k * s)) / k - (1 - np.exp(-p.ka * s)) / p.ka)

    return area(t) - area(t - duration)


TIMES = np.array([0.3, 1.0, 2.5, 4.0, 7.5, 11.0, 15.0, 26.0])
VALUES = SimpleNamespace(cl=2.1, v=21.0, ka=0.9)


@pytest.mark.parametrize("exact", [True, False])
def test_superposition(exact: bool) -> None:
    """Boluses, infusions and steady states as sums over all doses that were ever given."""
    back = np.arange(400)[:, None]
    cases = [
        ([dose(0)], 100 * bateman(VALUES, TIMES)),
        ([dose(0, 50, addl=2, ii=4)], sum(50 * bateman(VALUES, TIMES - 4 * k) for k in range(3))),
        ([infusion(0, 100, 4)], 25 * infused(VALUES, TIMES, 4)),
        ([steady(0)], (100 * bateman(VALUES, TIMES + 12 * back)).sum(0)),
        ([steady(0, rate=100 / 3)], (100 / 3 * infused(VALUES, TIMES + 12 * back, 3)).sum(0)),
        ([steady(0, rate=100 / 30)], (100 / 30 * infused(VALUES, TIMES + 12 * back, 30)).sum(0)),
        ([constant(0, 5.0)], 5 * infused(VALUES, TIMES + 1000, 1000.0)),
        (
            [dose(-5), steady(0, ss=2)],
            100 * bateman(VALUES, TIMES + 5) + (100 * bateman(VALUES, TIMES + 12 * back)).sum(0),
        ),
    ]
    subjects = [
        oracle.Subject(ORAL, [*(r | dict(cmt=1) for r in records), *see(*TIMES)], constants(vars(VALUES)))
        for records, _ in cases
    ]
    for (_, expected), got in zip(cases, walking.walk(subjects, exact), strict=True):
        np.testing.assert_allclose(np.array(got).real.ravel(), expected, rtol=1e-10, atol=1e-11)


def test_the_exponential_is_scipys() -> None:
    draw = np.random.default_rng(3)
    matrices = draw.normal(size=(20, 4, 4)) * 3 + 1j * draw.normal(size=(20, 4, 4)) * 0.05
    np.testing.assert_allclose(walking.exponential(matrices), expm(matrices), rtol=1e-11, atol=1e-9)


def test_the_integrator_and_the_exponential_agree() -> None:
    """Values and derivatives of scenarios of a linear model, two ways."""
    model = MODELS["one oral"]
    trial = Trial(model.name, "both", tuple(n for n in scenarios("both", model) if "steady" not in n)[::2])
    chosen = [2, 3, trial.eta.shape[1]]
    moves = walking.columns(trial.directions[chosen])
    subjects = [
        oracle.Subject(trial.equations, trial.records(name), trial.equations.parameters(eta, moves))
        for name, eta in zip(trial.names, trial.eta, strict=True)
    ]
    seen = walking.walk(subjects)
    for name, one, (value, first, second) in zip(trial.names, seen, trial.expected, strict=True):
        found = walking.derivatives(np.concatenate(one))
        peak = max(value.max(), 1e-9)
        for x, y, tolerance in zip(
            found, (value, first[chosen], second[chosen]), (1e-11, 1e-9, 1e-7), strict=True
        ):
            assert np.abs(x - y).max() <= tolerance * peak, name


def test_derivatives_of_a_lag_by_formula() -> None:
    """A lagged bolus: f = D/V exp(-k (t - T)), df/dlog T = k T f, d2f/dlog T2 = (k T + (k T)^2) f."""
    equations = ByHand(MODELS["one"], "modelled")
    eta = np.zeros(6)
    moves = walking.columns(np.eye(6)[[2]])
    subject = oracle.Subject(
        equations, [dose(0) | dict(cmt=1, cov_wt=70.0), *(r | dict(cov_wt=70.0) for r in see(1.0, 4.0))],
        equations.parameters(eta, moves),
    )  # fmt: skip
    value, first, second = walking.derivatives(np.concatenate(walking.walk([subject])[0]))
    k, lag = 2.1 / 21.0, 0.7
    exact = 80 / 21.0 * np.exp(-k * (np.array([1.0, 4.0]) - lag))
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    np.testing.assert_allclose(first[0], k * lag * exact, rtol=1e-10)
    np.testing.assert_allclose(second[0], (k * lag + (k * lag) ** 2) * exact, rtol=1e-8)
