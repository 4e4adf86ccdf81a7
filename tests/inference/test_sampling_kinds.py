"""SAEM, importance sampling and the encoder on counts, events, categories and censored records: they end at the maximum
that numpy and scipy know.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from inference.kinds import (
    GRID,
    TIMES,
    Counts,
    Events,
    Grades,
    Joined,
    Limited,
    Scattered,
    Thick,
    log_p,
    maximum,
    minus2ll,
    table,
    two_endpoints,
)
from problems import F64
from scipy import integrate, stats

import nlmegen as nl
from nlmegen.inference.elbo import ELBO
from nlmegen.inference.imp import Importance
from nlmegen.inference.saem import SAEM

KINDS = [Counts, Scattered, Events, Grades, Limited]
OFF = torch.tensor([0.7, -0.6, 0.8, 0.7, -0.6], dtype=F64)


def natural_of(problem: nl.Problem, free: torch.Tensor) -> dict[str, float]:
    """Parameters by the names of `kinds.natural`."""
    values = problem.values(free)
    out = {name: float(x) for name, x in values.theta.items()} | {"sd": float(values.factor[0, 0])}
    return out | {name.split(".")[-1]: float(x) for name, x in values.sigma.items()}


@functools.cache
def best_of(kind: type[nl.Model]) -> float:
    """-2 log L at its maximum, for `table(kind)`."""
    return maximum(kind, table(kind))[1]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def case(request):
    kind = request.param
    frame = table(kind)
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    return kind, frame, problem, best_of(kind)


def test_the_yardstick_is_the_integral():
    for kind in KINDS:
        frame = table(kind, 1)
        p = natural_of(
            nl.Problem(kind(), nl.read_nonmem(frame)), nl.Problem(kind(), nl.read_nonmem(frame)).start
        )
        seen = frame[frame.EVID == 0]
        y = seen.DV.to_numpy()
        cens = seen.CENS.to_numpy() if "CENS" in seen else np.zeros(len(y), dtype=int)

        def density(z: float, kind=kind, p=p, y=y, cens=cens) -> float:
            return float(np.exp(log_p(kind, p, np.array([z]), y, cens)[0]) * stats.norm.pdf(z))

        whole = integrate.quad(density, -9, 9, epsabs=0, epsrel=1e-11, points=[-1.0, 0.0, 1.0], limit=200)[0]
        assert minus2ll(kind, p, frame) == pytest.approx(-2.0 * np.log(whole), rel=1e-9)


@pytest.mark.parametrize("method", [SAEM(seed=1), Importance(seed=1)], ids=lambda method: method.name)
def test_a_far_start_ends_at_the_maximum(case, method):
    kind, frame, problem, best = case
    found = method.estimate(problem.starting(problem.start + OFF[: problem.P]))
    assert found.converged
    shortfall = minus2ll(kind, natural_of(problem, found.free), frame) - best
    assert -1e-4 < shortfall < 0.03
    assert -2.0 * found.log_likelihood == pytest.approx(best + shortfall, abs=2e-3)
    assert found.covariance is not None
    assert bool(found.covariance.isfinite().all())


@pytest.mark.parametrize("kind", [Limited])
def test_standard_errors_come_from_the_exact_information(kind):
    frame = table(kind)
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    found = Importance(seed=1, covariance="R").estimate(problem)
    free, h = found.free, 1e-3

    def at(x: torch.Tensor) -> float:
        return minus2ll(kind, natural_of(problem, x), frame)

    for a in range(problem.P):
        step = torch.zeros_like(free)
        step[a] = h
        curvature = (at(free + step) - 2.0 * at(free) + at(free - step)) / (2.0 * h * h)
        assert float(found.hessian_r[a, a]) == pytest.approx(curvature, rel=2e-3)


def moments(kind: type[nl.Model], p: dict[str, float], frame) -> np.ndarray:
    """Posterior mean and SD of eta by the trapezoidal rule, `[subject, 2]`."""
    seen = frame[frame.EVID == 0]
    y = seen.DV.to_numpy().reshape(-1, len(TIMES))
    cens = seen.CENS.to_numpy().reshape(y.shape) if "CENS" in seen else np.zeros(y.shape, dtype=int)
    out = []
    for row in zip(y, cens, strict=True):
        level = log_p(kind, p, GRID, *row) + stats.norm.logpdf(GRID)
        weight = np.exp(level - level.max())
        weight /= weight.sum()
        mean = weight @ GRID
        out.append((p["sd"] * mean, p["sd"] * np.sqrt(weight @ (GRID - mean) ** 2)))
    return np.array(out)


@pytest.mark.parametrize("kind", [Limited, pytest.param(Events, marks=pytest.mark.slow)])
def test_an_encoder_knows_the_posteriors(kind):
    frame = table(kind)
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    found = ELBO(seed=1, steps=100, block=50, batch=128, width=32, covariance=None).estimate(problem)
    p = natural_of(problem, found.free)
    assert found.converged
    assert minus2ll(kind, p, frame) - best_of(kind) < 0.02
    assert found.bounds["ess_median"] > 0.9
    mean, cov = found.encoder.approximate(problem, problem.values(found.free), widen=1.0).moments()
    exact = torch.as_tensor(moments(kind, p, frame))
    assert float(((mean[:, 0] - exact[:, 0]) / exact[:, 1]).abs().mean()) < 0.1
    assert float((cov[:, 0, 0].sqrt() / exact[:, 1]).log().abs().mean()) < 0.1
    weighted = found.encoder.posterior(problem, problem.values(found.free), k=1000, seed=3)
    assert float(((weighted.mean[:, 0] - exact[:, 0]) / exact[:, 1]).abs().max()) < 0.1


@pytest.mark.parametrize("kind", [Joined, Thick])
def test_several_endpoints_end_where_the_quadrature_has_no_slope(kind):
    problem = two_endpoints(kind, 24)
    found = SAEM(seed=1, precision=0.002).estimate(problem)
    assert found.converged
    free = found.free

    def at(x: torch.Tensor) -> float:
        return -2.0 * nl.quadrature(problem, problem.values(x), 9, eta0=found.ebe).total

    gradient = []
    for a in range(problem.P):
        step = torch.zeros_like(free)
        step[a] = 1e-3
        gradient.append((at(free + step) - at(free - step)) / 2e-3)
    slope = torch.tensor(gradient, dtype=F64)
    left = (
        0.25 * slope @ torch.linalg.solve(found.hessian_r, slope)
    )  # what a Newton step would still gain, twice
    assert float(left) < 0.04
