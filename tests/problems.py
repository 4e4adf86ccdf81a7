"""Cases with exact answers: pages whose integral over eta is Gaussian algebra, and pages small enough for brute force.

Answers are computed from a page's parameters and a table by torch.distributions, numpy and textbook formulas; no line
of the package takes part except `Problem.values`, whose maps have tests of their own.

    here            `Straight`, `Curve`: linear in eta, additive error; answers by `exact`
    histories.py    `LogDose`: log-normal error, eta on the volume alone, any dosing history; by `exact_log_dose`
    curves.py       `Bolus`, `Oral`: nonlinear, additive error, two and three etas; by `brute_force`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


class Curve(nl.Model):
    """y = (tvb + eta.b) + (tvs + eta.s) t + (tvc + eta.c) cos t + tvd t^2 + eps: a theta without an eta."""

    tvb = nl.Theta(1.0)
    tvs = nl.Theta(0.5)
    tvc = nl.Theta(-0.7)
    tvd = nl.Theta(0.05)
    iiv = nl.Omega(b=0.5, s=0.1, c=0.3, cov=[0.12, -0.15, 0.02])
    cp = nl.Additive(0.4)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            base=theta.tvb + eta.b,
            slope=theta.tvs + eta.s,
            wave=theta.tvc + eta.c,
            bend=theta.tvd,
            cl=1.0,
            v=1.0,
        )

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * t + p.wave * torch.cos(t) + p.bend * t * t)


BASIS: dict[str, Callable[[Any], Any]] = {
    "b": torch.ones_like,
    "s": lambda t: t,
    "c": torch.cos,
    "d": lambda t: t * t,
}
"""What multiplies theta.tvX and eta.X in the linear pages."""

TRUTH = {
    "Straight": (("b", "s"), (1.0, 0.5), ((0.5, 0.12), (0.12, 0.1))),
    "Curve": (("b", "s", "c"), (1.0, 0.5, -0.7), ((0.5, 0.12, -0.15), (0.12, 0.1, 0.02), (-0.15, 0.02, 0.3))),
}


def linear_table(page: str = "Straight", n: int = 6, seed: int = 5) -> pd.DataFrame:
    """A table for a linear page: unequal records of 1 to 5 observations, simulated from the declared values."""
    names, mean, omega = TRUTH[page]
    generator = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(torch.tensor(omega, dtype=F64))
    rows = []
    for i in range(n):
        noise = torch.randn(len(names), generator=generator, dtype=F64)
        effects = torch.tensor(mean, dtype=F64) + factor @ noise
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1})
        for j in range(1 + i % 5):
            t = torch.tensor(0.7 * (j + 1) + 0.1 * (i % 20), dtype=F64)
            y = float(sum(e * BASIS[k](t) for k, e in zip(names, effects, strict=True)))
            y += 0.05 * float(t) ** 2 if page == "Curve" else 0.0
            y += 0.4 * torch.randn((), generator=generator, dtype=F64).item()
            rows.append({"ID": i + 1, "TIME": float(t), "AMT": 0.0, "DV": y, "EVID": 0})
    return pd.DataFrame(rows)


def straight_table(n: int = 6, seed: int = 5) -> pd.DataFrame:
    """A table for `Straight`."""
    return linear_table("Straight", n, seed)


@dataclass(frozen=True)
class Exact:
    """Closed-form answers, one row a subject."""

    log_likelihood: Tensor
    mean: Tensor
    covariance: Tensor

    @property
    def total(self) -> float:
        """log L, the sum over subjects."""
        return float(self.log_likelihood.sum())


def exact(problem: nl.Problem, free: Tensor | None = None) -> Exact:
    """log p(y), posterior mean and covariance of eta of a linear problem, at its model's values or at `free [P]`.

    Differentiable in `free`.
    """
    values = problem.values(problem.start if free is None else free)
    omega, sigma2 = values.factor @ values.factor.mT, values.sigma["cp.additive"].reshape(()) ** 2
    seen, t, y = problem.population.mask, problem.population.time, problem.population.dv
    mean = sum(
        values.theta[f"tv{k}"].reshape(()) * f(t) for k, f in BASIS.items() if f"tv{k}" in values.theta
    )
    # padding: observations of nothing, 0 with variance 1, whose constant is taken off
    z = torch.stack([BASIS[name](t) for name in problem.eta_names], -1) * seen[..., None]
    off = (y - mean) * seen
    marginal = z @ omega @ z.mT + torch.diag_embed(torch.where(seen, sigma2, 1.0))
    padded = (~seen).sum(-1).to(F64)
    logs = MultivariateNormal(torch.zeros_like(y), marginal).log_prob(off) + 0.5 * padded * math.log(
        2 * math.pi
    )
    gain = omega @ z.mT @ torch.linalg.inv(marginal)
    return Exact(logs, (gain @ off[..., None])[..., 0], omega - gain @ z @ omega)


def exact_scores(problem: nl.Problem, free: Tensor) -> Tensor:
    """d log p(y_i) / d free `[subject, P]`, by autograd through the closed form."""
    rows = torch.autograd.functional.jacobian(
        lambda x: exact(problem, x).log_likelihood, free, vectorize=True
    )
    assert isinstance(rows, Tensor)
    return rows


def exact_hessian(problem: nl.Problem, free: Tensor) -> Tensor:
    """d2 log L / d free2 `[P, P]`."""
    matrix = torch.autograd.functional.hessian(lambda x: exact(problem, x).log_likelihood.sum(), free)
    assert isinstance(matrix, Tensor)
    return matrix


def maximum_likelihood(problem: nl.Problem) -> Tensor:
    """The maximum of the closed form `[P]`, by Newton's method with autograd's Hessian from the model's values."""
    free = problem.start.clone()
    for _ in range(60):
        score = exact_scores(problem, free).sum(0)
        information = -exact_hessian(problem, free)
        lift = max(0.0, 1e-3 - float(torch.linalg.eigvalsh(information)[0]))
        step = torch.linalg.solve(information + lift * torch.eye(len(free), dtype=F64), score)
        step = step / max(1.0, float(step.abs().max()))
        while exact(problem, free + step).total < exact(problem, free).total - 1e-12:
            step = 0.5 * step
        free = free + step
        if float(score @ step) < 1e-16:
            return free
    raise AssertionError("the closed form has no maximum near here")


def straight_problem(n: int = 6, seed: int = 5) -> nl.Problem:
    """`Straight` bound to `straight_table`."""
    return nl.Problem(Straight(), nl.read_nonmem(straight_table(n, seed)))


def curve_problem(n: int = 6, seed: int = 8) -> nl.Problem:
    """`Curve` bound to its table."""
    return nl.Problem(Curve(), nl.read_nonmem(linear_table("Curve", n, seed)))
