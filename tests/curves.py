"""Nonlinear pages with hand-written twins of their formulas, small enough for integration by brute force."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from torch import exp

import nlmegen as nl


class Bolus(nl.Model):
    """A bolus of 100 into one compartment, clearance and volume correlated, additive error."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(20.0, lower=0)
    iiv = nl.Omega(cl=0.25, v=0.16, cov=[0.12])
    cp = nl.Additive(0.4)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class Oral(nl.Model):
    """100 by mouth, one compartment, three correlated random effects, additive error."""

    tvka = nl.Theta(1.2, lower=0)
    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(25.0, lower=0)
    iiv = nl.Omega(ka=0.3, cl=0.15, v=0.1, cov=[0.05, -0.06, 0.05])
    cp = nl.Additive(0.35)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka * exp(eta.ka), cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def bolus_curve(eta: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Concentrations of `Bolus` `[draw, time]` at etas `[draw, 2]`."""
    cl, v = 3.0 * np.exp(eta[:, :1]), 20.0 * np.exp(eta[:, 1:])
    return np.asarray(100.0 / v * np.exp(-cl / v * t))


def oral_curve(eta: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Concentrations of `Oral` `[draw, time]` at etas `[draw, 3]`."""
    ka, cl, v = 1.2 * np.exp(eta[:, :1]), 3.0 * np.exp(eta[:, 1:2]), 25.0 * np.exp(eta[:, 2:])
    k = cl / v
    return np.asarray(100.0 * ka / (v * (ka - k)) * (np.exp(-k * t) - np.exp(-ka * t)))


@dataclass(frozen=True)
class Design:
    """A nonlinear page with a hand-written twin of its formula."""

    page: type[nl.Model]
    curve: Callable[[np.ndarray, np.ndarray], np.ndarray]
    omega: tuple[tuple[float, ...], ...]
    sigma: float
    times: tuple[float, ...]


DESIGNS = {
    "bolus": Design(Bolus, bolus_curve, ((0.25, 0.12), (0.12, 0.16)), 0.4, (1.0, 5.0, 12.0)),
    "oral": Design(
        Oral, oral_curve, ((0.3, 0.05, -0.06), (0.05, 0.15, 0.05), (-0.06, 0.05, 0.1)), 0.35, (0.7, 3.0, 10.0)
    ),
}


@lru_cache(maxsize=8)
def simulated(name: str, n: int, seed: int = 3) -> tuple[pd.DataFrame, np.ndarray]:
    """A table of n patients of a design by numpy alone, and their true etas `[n, q]`: exact posterior draws."""
    design = DESIGNS[name]
    rng = np.random.default_rng(seed)
    factor, t = np.linalg.cholesky(np.array(design.omega)), np.array(design.times)
    eta = rng.normal(size=(n, len(factor))) @ factor.T
    y = design.curve(eta, t) + design.sigma * rng.normal(size=(n, len(t)))
    rows = [
        row
        for i in range(n)
        for row in [
            {"ID": i + 1, "TIME": 0.0, "AMT": 100.0, "DV": np.nan, "EVID": 1},
            *({"ID": i + 1, "TIME": a, "AMT": 0.0, "DV": b, "EVID": 0} for a, b in zip(t, y[i], strict=True)),
        ]
    ]
    return pd.DataFrame(rows), eta


def simulated_problem(name: str, n: int, seed: int = 3) -> nl.Problem:
    """A design's page bound to its simulated table."""
    return nl.Problem(DESIGNS[name].page(), nl.read_nonmem(simulated(name, n, seed)[0]))


@lru_cache(maxsize=8)
def brute_force(
    name: str, n: int, seed: int = 3, points: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log p(y) `[n]`, posterior mean `[n, q]` and covariance `[n, q, q]` by the trapezoidal rule on one grid.

    The grid is laid in whitened etas over +-6 SD of the prior, with no mode, Hessian or weight from anywhere; for a
    smooth integrand that vanishes at the ends the rule converges faster than any power of the step.
    """
    design, (frame, _) = DESIGNS[name], simulated(name, n, seed)
    q = len(design.omega)
    x = np.linspace(-6, 6, points or {2: 161, 3: 73}[q])
    white = np.stack(np.meshgrid(*[x] * q, indexing="ij"), -1).reshape(-1, q)
    factor = np.linalg.cholesky(np.array(design.omega))
    eta = white @ factor.T
    curve = design.curve(eta, np.array(design.times))
    log_prior = -0.5 * (white**2).sum(1) - 0.5 * q * math.log(2 * math.pi) + q * math.log(x[1] - x[0])
    y = frame.loc[frame["EVID"] == 0, "DV"].to_numpy().reshape(n, -1)
    logs, means, covariances = [], [], []
    for record in y:
        density = -0.5 * (((record - curve) / design.sigma) ** 2).sum(1) + log_prior
        top = density.max()
        weight = np.exp(density - top)
        logs.append(
            top + math.log(weight.sum()) - len(record) * math.log(design.sigma * math.sqrt(2 * math.pi))
        )
        weight /= weight.sum()
        means.append(weight @ eta)
        off = eta - means[-1]
        covariances.append((off * weight[:, None]).T @ off)
    return np.array(logs), np.array(means), np.array(covariances)
