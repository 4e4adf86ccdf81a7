"""Densities of observations against scipy and mpmath: derivatives, sums to one, and what limits say in their limits."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import torch
from model.single_endpoints import F64, NAN, bound, by_autograd, dense, local, page, population
from scipy import stats

import nlmegen as nl

RESIDUALS = [
    nl.Additive(0.7),
    nl.Proportional(0.3),
    nl.Combined(0.3, 0.2),
    nl.Combined(0.3, 0.2, form="sd"),
    nl.Power(0.3, 0.7),
    nl.BoxCox(0.3, 0.5),
    nl.LogNormal(0.4),
]
SD = [0.7, 0.6, 0.5, 0.7, 0.3 * 2**0.7, 0.3, 0.4]
"""Of the same at a prediction of 2."""


def linked(endpoint, x: float) -> float:
    """A number of the table on the scale of the residual error."""
    if isinstance(endpoint, nl.LogNormal):
        return math.log(x) if x > 0 else -math.inf
    return (x**0.5 - 1) / 0.5 if isinstance(endpoint, nl.BoxCox) else x


@pytest.mark.parametrize(("endpoint", "sd"), list(zip(RESIDUALS, SD, strict=True)))
def test_one_limit_an_interval_and_a_measurement_against_scipy(endpoint, sd: float) -> None:
    problem = bound(
        endpoint,
        [1.3, 1.0, 3.0, 1.5],
        cens=[0, 1, -1, 1],
        limit=[NAN, NAN, NAN, 0.5],
    )
    f = linked(endpoint, 2.0) if endpoint.positive else 2.0
    found, _ = local(problem, [f] * 4)

    def law(x):
        return stats.norm.cdf((linked(endpoint, x) - f) / sd)

    truth = [
        stats.norm.logpdf(linked(endpoint, 1.3), f, sd),
        math.log(law(1.0)),
        math.log(1 - law(3.0)),
        math.log(law(1.5) - law(0.5)),
    ]
    np.testing.assert_allclose(found.log_p.detach().flatten(), truth, rtol=1e-12)
    assert problem.n_gaussian == 1
    assert not problem.plain
    jacobian = {"LogNormal": -math.log(1.3), "BoxCox": -0.5 * math.log(1.3)}.get(type(endpoint).__name__, 0.0)
    assert float(problem.log_jacobian) == pytest.approx(jacobian, rel=1e-14)


@pytest.mark.parametrize("blq", ["M3", "M4"])
@pytest.mark.parametrize("endpoint", [nl.Additive, nl.Proportional, nl.LogNormal])
def test_derivatives_of_limits_are_those_of_the_log_density(endpoint, blq: str) -> None:
    problem = bound(
        endpoint(0.4, blq=blq),
        [0.3, 0.8, 2.2, 1.5, 0.9],
        cens=[1, 0, -1, 1, 1],
        limit=[NAN, NAN, NAN, 0.5, 0.8999],
    )
    for f in ([0.5, 1.0, 2.0, 1.2, 0.8], [4.0, 9.0, 0.1, 3.0, 0.2]):
        found, rows = local(problem, f)
        score, second = by_autograd(problem, rows)
        torch.testing.assert_close(found.score.flatten(), score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(dense(found.second, 5), second, rtol=1e-8, atol=1e-8)
        assert float(torch.linalg.eigvalsh(dense(found.weight, 5)).min()) >= 0


def test_m4_is_conditional_on_positive_values() -> None:
    problem = bound(nl.Combined(0.8, 0.3, blq="M4"), [1.0, 0.5, 2.0], cens=[0, 1, -1])
    f = [0.9, 0.4, 1.1]
    sd = [math.hypot(0.8, 0.3 * x) for x in f]
    found, _ = local(problem, f)
    law = [stats.truncnorm(-x / s, np.inf, x, s) for x, s in zip(f, sd, strict=True)]
    truth = [law[0].logpdf(1.0), law[1].logcdf(0.5), law[2].logsf(2.0)]
    np.testing.assert_allclose(found.log_p.detach().flatten(), truth, rtol=1e-10)
    nodes, weight = np.polynomial.legendre.leggauss(80)
    y = (4.5 * (nodes + 1)).tolist()
    every, _ = local(bound(nl.Combined(0.8, 0.3, blq="M4"), y), [0.9] * 80)
    assert 4.5 * float(weight @ every.log_p.exp().flatten().numpy()) == pytest.approx(1.0, abs=1e-9)


def test_expected_information_of_a_truncated_measurement_is_the_variance_of_its_score() -> None:
    endpoint, f = nl.Combined(0.8, 0.3, blq="M4"), 0.6
    weight = float(local(bound(endpoint, [1.0]), [f])[0].weight.diagonal)

    nodes, w = np.polynomial.legendre.leggauss(60)
    at, _ = local(bound(endpoint, (3.5 * (nodes + 1)).tolist()), [f] * 60)
    share, score = 3.5 * w * at.log_p.exp().flatten().numpy(), at.score.flatten().numpy()
    assert share @ score == pytest.approx(0.0, abs=1e-9)
    assert weight == pytest.approx(share @ score**2, rel=1e-8)


def test_m1_leaves_out_and_half_puts_half_the_limit() -> None:
    cens, dv = [0, 1, 0], [1.3, 0.6, 2.0]
    out = bound(nl.Additive(0.5, blq="M1"), dv, cens=cens)
    assert out.plain
    assert out.n_observations == out.n_gaussian == 2
    assert out.mask.tolist() == [[1.0, 0.0, 1.0]]
    for endpoint, half in (
        (nl.Additive(0.5, blq="half"), 0.3),
        (nl.LogNormal(0.5, blq="half"), math.log(0.3)),
        (nl.LogNormal(0.5, dv="log", blq="half"), 0.6 - math.log(2)),
    ):
        problem = bound(endpoint, dv, cens=cens)
        assert problem.plain
        assert float(problem.y[0, 1]) == pytest.approx(half, rel=1e-14)
        assert problem.n_gaussian == 3


def test_a_limit_far_below_says_nothing_and_a_point_says_density_times_width() -> None:
    known = bound(nl.Additive(0.5), [1.0, 0.2], cens=[0, 1])
    far = bound(nl.Additive(0.5), [1.0, 40.0], cens=[0, 1])
    assert float(local(known, [1.1, 1.0])[0].log_p[..., 1]) < -2
    found, _ = local(far, [1.1, 1.0])
    assert float(found.log_p[..., 1]) == 0.0
    assert float(found.score[..., 1]) == 0.0
    for width in (1e-2, 1e-5, 1e-9):
        narrow = bound(nl.Proportional(0.5), [0.9 + width], cens=[1], limit=[0.9])
        at, rows = local(narrow, [1.4])
        point, _ = local(bound(nl.Proportional(0.5), [0.9 + 0.5 * width]), [1.4])
        real = float(narrow.limits.upper - narrow.limits.lower)
        assert float(at.log_p) == pytest.approx(
            float(point.log_p) + math.log(real), abs=max(width**2, 1e-15 / width)
        )
        assert float(at.score) == pytest.approx(float(point.score), rel=max(width**2, 1e-9))
        torch.testing.assert_close(dense(at.second, 1), dense(point.second, 1), rtol=max(width, 1e-8), atol=0)
        assert bool(torch.isfinite(by_autograd(narrow, rows)[1]).all())


def test_forty_deviations_away_everything_is_finite_and_right() -> None:
    problem = bound(nl.Additive(0.5), [1.0, 1.0, 1.0, 1.0], cens=[1, -1, 1, 0], limit=[NAN, NAN, 0.5, NAN])
    f = [21.0, -19.0, 21.0, 21.0]
    found, rows = local(problem, f)
    with mp.workdps(60):
        phi = mp.log(mp.ncdf(-40))
        truth = [phi, phi, mp.log(mp.ncdf(-40) - mp.ncdf(-41)), mp.log(mp.npdf(40) / 0.5)]
        hazard = mp.npdf(40) / mp.ncdf(-40)
    np.testing.assert_allclose(found.log_p.detach().flatten(), [float(x) for x in truth], rtol=1e-13)
    assert float(found.score[0, 0, 0]) == pytest.approx(-float(hazard) / 0.5, rel=1e-12)
    score, second = by_autograd(problem, rows)
    torch.testing.assert_close(score, found.score.flatten(), rtol=1e-10, atol=0)
    torch.testing.assert_close(second, dense(found.second, 4), rtol=1e-8, atol=1e-10)
    third = torch.autograd.grad(
        problem.local(rows, problem.values(problem.start), True).second.diagonal.sum(), rows
    )
    assert bool(torch.isfinite(third[0]).all())


def test_padding_and_predictions_that_are_none_leave_no_trace_in_gradients() -> None:
    rows = [dict(id=1, time=1.0, dv=1.0, cens=1), dict(id=1, time=2.0, dv=1.0), dict(id=2, time=1.0, dv=0.7)]
    problem = nl.Problem(page(y=nl.Proportional(0.2)), population(rows))
    f = torch.tensor([[1.0, 0.5], [0.9, 0.0]], dtype=F64, requires_grad=True)
    at = problem.local(f, problem.values(problem.start), observed=True)
    (gradient,) = torch.autograd.grad(at.log_p.sum() + at.second.diagonal.sum(), f)
    assert bool(torch.isfinite(gradient).all())
    assert at.log_p[1, 1].item() == gradient[1, 1].item() == 0.0
    lost = problem.local(
        torch.tensor([[0.0, NAN], [0.9, 0.0]], dtype=F64, requires_grad=True), problem.values(problem.start)
    )
    assert torch.isneginf(lost.log_p[0]).all()
    assert bool(torch.isfinite(lost.score).all())


@pytest.mark.parametrize("df", [1.0, 4.0, 30.0])
def test_student(df: float) -> None:
    problem = bound(nl.StudentT(0.3, 0.2, df=df), [1.0, 9.0])
    f = [1.2, 1.5]
    scale = [math.hypot(0.3, 0.2 * x) for x in f]
    found, rows = local(problem, f)
    truth = [stats.t.logpdf(y, df, x, s) for y, x, s in zip([1.0, 9.0], f, scale, strict=True)]
    np.testing.assert_allclose(found.log_p.detach().flatten(), truth, rtol=1e-12)
    score, second = by_autograd(problem, rows)
    torch.testing.assert_close(found.score.flatten(), score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense(found.second, 2), second, rtol=1e-12, atol=1e-12)
    assert problem.n_gaussian == 0

    x, w = np.polynomial.legendre.leggauss(120)  # y = f + s tan(angle)
    angle = 0.5 * math.pi * x
    every, _ = local(
        bound(nl.StudentT(0.3, 0.2, df=df), (1.2 + scale[0] * np.tan(angle)).tolist()), [1.2] * 120
    )
    share = 0.5 * math.pi * w * every.log_p.exp().flatten().numpy() * scale[0] / np.cos(angle) ** 2
    assert share.sum() == pytest.approx(1.0, rel=1e-9)
    information = share @ every.score.flatten().numpy() ** 2
    assert float(found.weight.diagonal[0, 0, 0]) == pytest.approx(information, rel=1e-8)


class Noisy(nl.Model):
    """Residual error with a random effect, censored records and an event on one page."""

    level = nl.Theta(1.5, lower=0)
    iiv = nl.Omega(high=0.2, noise=0.1)
    cp = nl.Combined(0.2, 0.3)
    event = nl.Bernoulli()
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=1.0, v=1.0, level=theta.level * torch.exp(eta.high), noise=torch.exp(eta.noise))

    def observe(self, t, a, p):
        f = p.level * torch.exp(-0.1 * t)
        return dict(cp=nl.Predicted(f, scale=p.noise), event=f / (1 + f))


def noisy() -> nl.Problem:
    rows = [
        dict(time=1.0, dv=1.1, dvid=1),
        dict(time=2.0, dv=1.0, dvid=1, cens=1),
        dict(time=2.0, dv=1.0, dvid=2),
        dict(time=3.0, dv=1.9, dvid=1, cens=-1),
        dict(time=3.0, dv=0.0, dvid=2),
        dict(id=2, time=1.0, dv=0.9, dvid=1),
        dict(id=2, time=1.0, dv=0.0, dvid=2),
    ]
    return nl.Problem(Noisy(), population(rows))


def test_rows_for_the_size_of_residuals() -> None:
    problem = noisy()
    assert problem.rows == 10
    assert problem.n_gaussian == 2
    values = problem.values(problem.start)
    eta = torch.tensor([[[0.2, 0.4], [-0.1, -0.3]]], dtype=F64)
    prediction = problem.predict(eta, values, 2)
    torch.testing.assert_close(prediction.f[0, 0, 5:], torch.tensor([0.4, 0.4, 0.0, 0.4, 0.0], dtype=F64))
    assert prediction.jac[1, 0, 0, 5:].tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]
    f = 1.5 * np.exp(0.2 - 0.1 * np.array([1.0, 2.0, 2.0, 3.0, 3.0]))
    sd = np.hypot(0.2, 0.3 * f) * math.exp(0.4)
    truth = [
        stats.norm.logpdf(1.1, f[0], sd[0]),
        stats.norm.logcdf(1.0, f[1], sd[1]),
        math.log(f[2] / (1 + f[2])),
        stats.norm.logsf(1.9, f[3], sd[3]),
        -math.log(1 + f[4]),
    ]
    at = problem.local(prediction.f, values, observed=True)
    np.testing.assert_allclose(at.log_p[0, 0], truth, rtol=1e-12)
    assert float(problem.log_likelihood(eta, values)[0, 0]) == pytest.approx(sum(truth), rel=1e-12)
    one = problem.select(torch.tensor([0]))
    rows = prediction.f[:, :1].detach().requires_grad_()
    score, second = by_autograd(one, rows)
    torch.testing.assert_close(at.score[0, 0], score.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(dense(at.second, 10), second, rtol=1e-9, atol=1e-10)
    assert float(torch.linalg.eigvalsh(dense(at.weight, 10)).min()) >= -1e-14


def test_simulated_observations_have_the_law_that_the_likelihood_says() -> None:
    problem = noisy()
    values = problem.values(problem.start)
    eta = torch.zeros(20_000, 2, 2, dtype=F64)
    eta[..., 1] = 0.4
    rows = problem.predict(eta, values).f
    dv = problem.simulate_dv(rows, values, torch.Generator().manual_seed(2))
    f = float(rows[0, 0, 1])
    sample = dv[:, 0, 1].numpy()
    assert stats.kstest(sample, stats.norm(f, math.hypot(0.2, 0.3 * f) * math.exp(0.4)).cdf).pvalue > 1e-3
    p = float(rows[0, 0, 2])
    assert set(dv[:, 0, 2].tolist()) == {0.0, 1.0}
    assert stats.binomtest(int(dv[:, 0, 2].sum()), 20_000, p).pvalue > 1e-3
    torch.testing.assert_close(problem.natural(rows)[0], problem.mask * rows[0, :, :5])


@pytest.mark.parametrize("df", [3.0, 8.0])
def test_simulated_students(df: float) -> None:
    problem = bound(nl.StudentT(0.5, df=df), [1.0])
    f = torch.full((20_000, 1, 1), 2.0, dtype=F64)
    dv = problem.simulate_dv(f, problem.values(problem.start), torch.Generator().manual_seed(1))
    assert stats.kstest(dv.flatten().numpy(), stats.t(df, 2.0, 0.5).cdf).pvalue > 1e-3


def test_recorded_under_the_limits_of_the_records() -> None:
    problem = bound(
        nl.Additive(0.5), [1.0, 0.4, 2.0], cens=[0, 1, 0], lloq=[0.4, 0.4, NAN], uloq=[3.0, NAN, 3.0]
    )
    dv = torch.tensor([[[0.1, 0.39, 0.1]], [[3.5, 5.0, 9.0]]], dtype=F64)
    recorded, cens = problem.censored(dv)
    assert cens.tolist() == [[[1, 1, 0]], [[-1, 0, -1]]]
    assert recorded.tolist() == [[[0.4, 0.4, 0.1]], [[3.0, 5.0, 3.0]]]


def test_gradients_in_residual_parameters_are_differences_of_the_density() -> None:
    problem = noisy()
    free = problem.start.clone()
    rows = problem.predict(torch.zeros(1, 2, 2, dtype=F64), problem.values(free)).f

    def total(x: torch.Tensor) -> torch.Tensor:
        return problem.local(rows, problem.values(x)).log_p.sum()

    assert torch.autograd.gradcheck(total, free.requires_grad_())


def test_a_plain_problem_says_the_same_by_both_ways() -> None:
    problem = nl.Problem(nl.load_model("theophylline"), nl.load_data("theophylline"))
    values = problem.values(problem.start)
    eta = 0.1 * torch.randn(3, 12, problem.q, dtype=F64, generator=torch.Generator().manual_seed(1))
    assert problem.plain
    f = problem.predict(eta, values).f
    at = problem.local(f, values, observed=True)
    torch.testing.assert_close(at.log_p.sum(-1) + problem.log_jacobian, problem.log_likelihood(eta, values))
    variance, slope, _ = problem.variance(f, values)
    torch.testing.assert_close(at.weight.diagonal, 1 / variance + 0.5 * (slope / variance) ** 2)


def test_power_is_between_additive_and_proportional() -> None:
    f = torch.tensor([0.0, -2.0, 3.0], dtype=F64)
    sigma = {"sd": torch.tensor(0.3, dtype=F64), "power": torch.tensor(0.7, dtype=F64)}
    r, slope, bend = nl.Power(0.3, 0.7).variance(f, sigma)
    np.testing.assert_allclose(r, [0.0, (0.3 * 2**0.7) ** 2, (0.3 * 3**0.7) ** 2], rtol=1e-14)
    assert bool(torch.isfinite(torch.stack((slope, bend))).all())


def test_box_cox_is_a_density_of_the_table() -> None:
    problem = bound(nl.BoxCox(0.3, 0.5), [1.3])
    f = (2.0**0.5 - 1) / 0.5
    here = float(local(problem, [f])[0].log_p) + float(problem.log_jacobian)

    def cdf(y: float) -> float:
        return float(stats.norm.cdf((y**0.5 - 1) / 0.5, f, 0.3))

    step = 1e-5
    assert math.exp(here) == pytest.approx((cdf(1.3 + step) - cdf(1.3 - step)) / (2 * step), rel=1e-8)
