"""Rung 5: patients simulated by numpy from known parameters, refitted; pooled chi-square tests against the truth.

With R replicates of P parameters, twice the gain in log likelihood over the truth, and the Wald distance of the truth
in the metric of the stated errors, are both chi-square with R P degrees of freedom: too large says biased (or errors
understated), too small says errors overstated. Samples are rich, so that FOCEI's own bias is far below the noise.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import exp

import nlmegen as nl
from nlmegen.inference.marginal import quadrature

REPLICATES = 5


class Warfarin(nl.Model):
    """By mouth, allometric, combined error, at the truth of the simulation."""

    tvka = nl.Theta(1.0, lower=0)
    tvcl = nl.Theta(0.135, lower=0)
    tvv = nl.Theta(8.0, lower=0)
    iiv = nl.Omega(ka=0.25, cl=0.08, v=0.05)
    cp = nl.Combined(additive=0.3, proportional=0.08)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        size = cov.wt / 70
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * size**0.75 * exp(eta.cl),
            v=theta.tvv * size * exp(eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def warfarin(rng: np.random.Generator, n: int = 40) -> pd.DataFrame:
    """100 mg at 0, twelve samples over five days."""
    t = np.array([0.5, 1, 2, 3, 6, 9, 12, 24, 36, 48, 72, 120.0])
    size = rng.uniform(50, 95, n)[:, None] / 70
    eta = rng.normal(size=(n, 3)) * np.sqrt([0.25, 0.08, 0.05])
    ka, cl, v = (x[:, None] for x in (np.array([1.0, 0.135, 8.0]) * np.exp(eta)).T)
    k = cl * size**0.75 / (v * size)
    f = 100 * ka / (v * size * (ka - k)) * (np.exp(-k * t) - np.exp(-ka * t))
    y = f + np.sqrt(0.3**2 + (0.08 * f) ** 2) * rng.normal(size=f.shape)
    return records(t, y, wt=70 * size[:, 0])


class TwoCompartments(nl.Model):
    """A bolus into two compartments, four random effects, log-normal error, at the truth of the simulation."""

    tvcl = nl.Theta(4.0, lower=0)
    tvv = nl.Theta(20.0, lower=0)
    tvq = nl.Theta(6.0, lower=0)
    tvv2 = nl.Theta(50.0, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.06, cov=[0.03])
    more = nl.Omega(q=0.09, v2=0.09)
    cp = nl.LogNormal(0.1)
    structure = nl.TwoCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            q=theta.tvq * exp(eta.q),
            v2=theta.tvv2 * exp(eta.v2),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def two_compartments(rng: np.random.Generator, n: int = 40) -> pd.DataFrame:
    """100 mg at 0, eleven samples over two days, by the textbook's alpha and beta."""
    t = np.array([0.25, 0.5, 1, 2, 4, 6, 9, 12, 24, 36, 48.0])
    omega = np.diag([0.09, 0.06, 0.09, 0.09])
    omega[0, 1] = omega[1, 0] = 0.03
    eta = rng.normal(size=(n, 4)) @ np.linalg.cholesky(omega).T
    cl, v, q, v2 = (x[:, None] for x in (np.array([4.0, 20.0, 6.0, 50.0]) * np.exp(eta)).T)
    k10, k12, k21 = cl / v, q / v, q / v2
    total, product = k10 + k12 + k21, k10 * k21
    alpha = (total + np.sqrt(total**2 - 4 * product)) / 2
    beta = product / alpha
    f = 100 / v * ((alpha - k21) * np.exp(-alpha * t) + (k21 - beta) * np.exp(-beta * t)) / (alpha - beta)
    return records(t, f * np.exp(0.1 * rng.normal(size=f.shape)))


def records(t: np.ndarray, y: np.ndarray, **covariates: np.ndarray) -> pd.DataFrame:
    """A NONMEM table of a dose of 100 at 0 and observations y `[patient, time]`."""
    rows = []
    for i, record in enumerate(y):
        extra = {name: values[i] for name, values in covariates.items()}
        rows.append(dict(id=i + 1, time=0.0, amt=100.0, dv=np.nan, evid=1, **extra))
        rows += [
            dict(id=i + 1, time=a, amt=0.0, dv=b, evid=0, **extra) for a, b in zip(t, record, strict=True)
        ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("page", "simulate"), [(Warfarin, warfarin), (TwoCompartments, two_compartments)])
def test_focei_recovers_the_truth(page: type[nl.Model], simulate) -> None:
    rng = np.random.default_rng(20)
    gain = wald = 0.0
    covered = total = 0
    for _ in range(REPLICATES):
        model = page()
        data = nl.read_nonmem(simulate(rng))
        truth = nl.Problem(model, data)
        found = nl.FOCEI(covariance="R").estimate(truth)
        assert found.converged, found.reason
        start = nl.FOCEI(evaluate=True).estimate(truth)
        gain += start.ofv - found.ofv
        off = found.free - truth.start
        assert found.hessian_r is not None
        assert found.covariance is not None
        wald += float(off @ found.hessian_r @ off)
        covered += int((off.abs() < 1.645 * found.covariance.diagonal().sqrt()).sum())
        total += truth.P
    for statistic in (gain, wald):
        p = stats.chi2.cdf(statistic, total)
        assert 5e-4 < p < 1 - 5e-4, f"{statistic:.1f} for chi-square with {total} degrees of freedom"
    assert stats.binomtest(covered, total, 0.9).pvalue > 1e-3, (
        f"{covered} of {total} 90 % intervals hold the truth"
    )


def test_two_compartment_likelihood_against_a_grid() -> None:
    """One patient, four etas: quadrature against the trapezoidal rule by hand (a coarse grid, a wide posterior)."""
    t, y = np.array([0.5, 4.0, 24.0]), np.array([4.1, 1.4, 0.6])
    wide = TwoCompartments().with_values(sigma={"cp.sd": 0.5})
    problem = nl.Problem(wide, nl.read_nonmem(records(t, y[None])))
    found = quadrature(problem, problem.values(problem.start), 9)
    x = np.linspace(-5.5, 5.5, 23)
    white = np.stack(np.meshgrid(x, x, x, x, indexing="ij"), -1).reshape(-1, 4)
    omega = np.diag([0.09, 0.06, 0.09, 0.09])
    omega[0, 1] = omega[1, 0] = 0.03
    cl, v, q, v2 = (np.array([4.0, 20.0, 6.0, 50.0]) * np.exp(white @ np.linalg.cholesky(omega).T)).T[
        ..., None
    ]
    k10, k12, k21 = cl / v, q / v, q / v2
    root = np.sqrt((k10 + k12 + k21) ** 2 - 4 * k10 * k21)
    a, b = (k10 + k12 + k21 + root) / 2, (k10 + k12 + k21 - root) / 2
    f = 100 / v * ((a - k21) * np.exp(-a * t) + (k21 - b) * np.exp(-b * t)) / (a - b)
    density = stats.norm.pdf(np.log(y), np.log(f), 0.5).prod(1) * stats.norm.pdf(white).prod(1) / y.prod()
    wanted = math.log(density.sum() * (x[1] - x[0]) ** 4)
    assert float(found.log_likelihood[0]) == pytest.approx(wanted, abs=1e-5)
    assert torch.isfinite(found.cov).all()
