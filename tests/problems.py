"""Cases with exact answers: a linear page with additive error, whose likelihood and posterior are Gaussian algebra."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import nlmegen as nl

F64 = torch.float64


class Straight(nl.Model):
    """y = (tvb + eta.b) + (tvs + eta.s) t + eps: linear in eta, so that every integral is known."""

    tvb = nl.Theta(1.0)
    tvs = nl.Theta(0.5)
    iiv = nl.Omega(b=0.5, s=0.1, cov=[0.12])
    cp = nl.Additive(0.4)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb + eta.b, slope=theta.tvs + eta.s, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * t)


def straight_table(n: int = 6, seed: int = 5) -> pd.DataFrame:
    """A table for `Straight`: unequal records of 1 to 5 observations, simulated from the declared values."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(Straight().omega)
    rows = []
    for i in range(n):
        b, s = (
            torch.tensor([1.0, 0.5], dtype=F64) + factor @ torch.randn(2, generator=generator, dtype=F64)
        ).tolist()
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1})
        for j in range(1 + i % 5):
            t = 0.7 * (j + 1) + 0.1 * i
            y = b + s * t + 0.4 * torch.randn((), generator=generator, dtype=F64).item()
            rows.append({"ID": i + 1, "TIME": t, "AMT": 0.0, "DV": y, "EVID": 0})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Exact:
    """Closed-form answers, one row a subject."""

    log_likelihood: Tensor
    mean: Tensor
    covariance: Tensor


def exact(problem: nl.Problem) -> Exact:
    """log p(y), posterior mean and covariance of eta of a `Straight` problem at its model's values."""
    model = problem.model
    omega, sigma2 = model.omega, float(model.sigma["cp.additive"]) ** 2
    logs, means, covariances = [], [], []
    for n in range(problem.n_subjects):
        seen = problem.population.mask[n]
        t, y = problem.time[n, seen], problem.population.dv[n, seen]
        z = torch.stack([torch.ones_like(t), t], -1)
        mean = float(model.theta.tvb) + float(model.theta.tvs) * t
        marginal = z @ omega @ z.mT + sigma2 * torch.eye(len(t), dtype=F64)
        logs.append(MultivariateNormal(mean, marginal).log_prob(y))
        gain = omega @ z.mT @ torch.linalg.inv(marginal)
        means.append(gain @ (y - mean))
        covariances.append(omega - gain @ z @ omega)
    return Exact(torch.stack(logs), torch.stack(means), torch.stack(covariances))


def straight_problem(n: int = 6, seed: int = 5) -> nl.Problem:
    """`Straight` bound to `straight_table`."""
    return nl.Problem(Straight(), nl.read_nonmem(straight_table(n, seed)))
