"""Small problems for the tests of variational estimation."""

from __future__ import annotations

import math

import pandas as pd
import torch
from problems import F64
from torch import Tensor, exp

import nlmegen as nl


class Curved(nl.Model):
    """y = (tvb + eta.b) + (tvs + eta.s) t + tvc t^2 + eps: linear in eta, and the curvature has no eta of its own."""

    tvb = nl.Theta(1.0)
    tvs = nl.Theta(0.5)
    tvc = nl.Theta(0.2)
    iiv = nl.Omega(b=0.5, s=0.3, cov=[0.1])
    cp = nl.Additive(0.4)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb + eta.b, slope=theta.tvs + eta.s, curve=theta.tvc, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * t + p.curve * t**2)


class Oral(nl.Model):
    """An oral dose, with a covariate, a power without eta, and combined error."""

    tvka = nl.Theta(1.2, lower=0)
    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(30.0, lower=0)
    power = nl.Theta(0.75)
    iiv = nl.Omega(ka=0.16, cl=0.09)
    cp = nl.Combined(additive=0.05, proportional=0.15)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * (cov.wt / 70) ** theta.power * exp(eta.cl),
            v=theta.tvv,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


TIMES = (0.5, 1.5, 4.0, 9.0, 24.0)


def oral_table(n: int = 10, seed: int = 3) -> pd.DataFrame:
    """Records of 2 to 5 samples, two doses for some, weights from 45 to 95."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        weight = 45.0 + 50.0 * i / max(1, n - 1)
        e1, e2 = (0.4 * torch.randn(2, generator=generator, dtype=F64)).tolist()
        ka, k = 1.2 * math.exp(e1), 3.0 / 30.0 * (weight / 70) ** 0.75 * math.exp(0.75 * e2)
        doses = [0.0, 6.0] if i % 3 == 0 else [0.0]
        events = [{"TIME": d, "AMT": 100.0, "DV": 0.0, "EVID": 1, "CMT": 1} for d in doses]
        for t in TIMES[: 2 + i % 4]:
            f = sum(
                100 / 30 * ka / (ka - k) * (math.exp(-k * (t - d)) - math.exp(-ka * (t - d)))
                for d in doses
                if t > d
            )
            noise = torch.randn((), generator=generator, dtype=F64).item()
            y = max(f + noise * math.hypot(0.05, 0.15 * f), 0.01)
            events.append({"TIME": t, "AMT": 0.0, "DV": y, "EVID": 0, "CMT": 2})
        rows += [{"ID": i + 1, "WT": weight, **event} for event in sorted(events, key=lambda e: e["TIME"])]
    return pd.DataFrame(rows)


def oral_problem(n: int = 10, seed: int = 3) -> nl.Problem:
    """`Oral` bound to `oral_table`."""
    return nl.Problem(Oral(), nl.read_nonmem(oral_table(n, seed)))


def curved_table(n: int = 12, seed: int = 5) -> pd.DataFrame:
    """Records of 2 to 5 samples simulated from the declared values of `Curved`."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(Curved().omega)
    rows = []
    for i in range(n):
        b, s = (factor @ torch.randn(2, generator=generator, dtype=F64)).tolist()
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1})
        for j in range(2 + i % 4):
            t = 0.8 * (j + 1) + 0.1 * (i % 5)
            noise = torch.randn((), generator=generator, dtype=F64).item()
            y = 1.0 + b + (0.5 + s) * t + 0.2 * t**2 + 0.4 * noise
            rows.append({"ID": i + 1, "TIME": t, "AMT": 0.0, "DV": y, "EVID": 0})
    return pd.DataFrame(rows)


def curved_problem(n: int = 12, seed: int = 5) -> nl.Problem:
    """`Curved` bound to `curved_table`."""
    return nl.Problem(Curved(), nl.read_nonmem(curved_table(n, seed)))


def exact_log_likelihood(problem: nl.Problem, free: Tensor) -> Tensor:
    """log p(y) of a page that is linear in eta with additive error, `[subject]`, by Gaussian algebra;
    differentiable in free.
    """
    values = problem.values(free)
    still = torch.zeros(problem.n_subjects, problem.q, dtype=F64)
    prediction = problem.predict(still, values, 1)
    out = []
    for n in range(problem.n_subjects):
        seen = problem.mask[n] > 0
        z = prediction.jac[:, n, seen].mT
        sigma = values.sigma["cp.additive"].reshape(())
        marginal = z @ values.omega @ z.mT + sigma**2 * torch.eye(int(seen.sum()), dtype=F64)
        density = torch.distributions.MultivariateNormal(prediction.f[n, seen], marginal)
        out.append(density.log_prob(problem.y[n, seen]))
    return torch.stack(out)


def exact_posterior(problem: nl.Problem, free: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[subject, q]` and covariance `[subject, q, q]` of eta of such a page."""
    values = problem.values(free)
    prediction = problem.predict(torch.zeros(problem.n_subjects, problem.q, dtype=F64), values, 1)
    z = prediction.jac.movedim(0, -1) * problem.mask.unsqueeze(-1)
    variance = values.sigma["cp.additive"].reshape(()) ** 2
    precision = z.mT @ z / variance + torch.linalg.inv(values.omega)
    covariance = torch.linalg.inv(precision)
    residual = (problem.y - prediction.f) * problem.mask
    return (covariance @ z.mT @ residual.unsqueeze(-1)).squeeze(-1) / variance, covariance


def exact_maximum(problem: nl.Problem) -> tuple[Tensor, float]:
    """The maximum likelihood of such a page by Newton's method on the exact likelihood."""
    free = problem.start.clone()

    def total(x: Tensor) -> Tensor:
        return exact_log_likelihood(problem, x).sum()

    for _ in range(60):
        gradient = torch.func.grad(total)(free)
        hessian = torch.func.jacrev(torch.func.grad(total))(free)
        values, axes = torch.linalg.eigh(hessian)
        step = axes @ ((axes.mT @ gradient) / values.abs().clamp_min(1e-3))
        size = 1.0
        while total(free + size * step) < total(free) and size > 1e-8:
            size /= 2
        free = free + size * step
        if float(gradient @ step) < 1e-14:
            break
    return free, float(total(free))
