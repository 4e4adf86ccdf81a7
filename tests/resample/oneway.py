"""The balanced one-way layout: n subjects, m observations each, y = mu + eta + eps. Everything about it is known.

With the subjects' means Y_i, tau^2 = omega + sigma^2 / m and W the sum of squares within subjects,

    -2 log L = n log tau^2 + sum (Y_i - mu)^2 / tau^2 + n (m - 1) log sigma^2 + W / sigma^2 + constant ,

of which the maximum, its profiles and its posterior are written down here, without a line of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize_scalar

import nlmegen as nl

CUT = 3.841458820694124
"""95 % quantile of chi-square with one degree of freedom."""


class OneWay(nl.Model):
    """y = mu + eta + eps."""

    mu = nl.Theta(5.0)
    iiv = nl.Omega(b=1.0)
    cp = nl.Additive(1.0)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(base=theta.mu + eta.b, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + 0.0 * t)


def table(n: int = 12, m: int = 4, omega: float = 1.0, sigma: float = 0.7, seed: int = 1) -> pd.DataFrame:
    """Simulated records, with a covariate `arm` of two values."""
    source = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        base = 5.0 + math.sqrt(omega) * source.standard_normal()
        arm = i % 2
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1, "ARM": arm})
        for j in range(m):
            y = base + sigma * source.standard_normal()
            rows.append({"ID": i + 1, "TIME": j + 1.0, "AMT": 0.0, "DV": y, "EVID": 0, "ARM": arm})
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Layout:
    """What the likelihood depends on."""

    means: np.ndarray[Any, np.dtype[np.float64]]
    within: float
    m: int

    @classmethod
    def of(cls, population: nl.Population) -> Layout:
        """From data, one row of dv a subject."""
        y = population.dv.numpy()
        return cls(y.mean(1), float(((y - y.mean(1, keepdims=True)) ** 2).sum()), y.shape[1])

    @property
    def n(self) -> int:
        return len(self.means)

    @property
    def estimates(self) -> tuple[float, float, float]:
        """Maximum likelihood of mu, omega (a variance) and sigma (a standard deviation)."""
        mu = float(self.means.mean())
        tau2 = float(((self.means - mu) ** 2).mean())
        sigma2 = self.within / (self.n * (self.m - 1))
        if tau2 < sigma2 / self.m:  # the variance between subjects is at its boundary
            total = self.within + self.m * self.n * tau2
            return mu, 0.0, math.sqrt(total / (self.n * self.m))
        return mu, tau2 - sigma2 / self.m, math.sqrt(sigma2)

    def minus2ll(self, mu: float, omega: float, sigma: float) -> float:
        """-2 log L, up to a constant."""
        tau2 = omega + sigma**2 / self.m
        between = self.n * math.log(tau2) + float(((self.means - mu) ** 2).sum()) / tau2
        return between + self.n * (self.m - 1) * math.log(sigma**2) + self.within / sigma**2

    @property
    def lowest(self) -> float:
        return self.minus2ll(*self.estimates)

    def rise_in_omega(self, omega: float) -> float:
        """Rise of the profile at a variance."""
        mu = float(self.means.mean())
        best = minimize_scalar(
            lambda s: self.minus2ll(mu, omega, math.exp(s)), bounds=(-5, 5), options={"xatol": 1e-12}
        )
        return float(best.fun) - self.lowest

    def rise_in_sigma(self, sigma: float) -> float:
        """Rise of the profile at a residual standard deviation."""
        mu = float(self.means.mean())
        tau2 = float(((self.means - mu) ** 2).mean())
        omega = max(tau2 - sigma**2 / self.m, 0.0)
        return self.minus2ll(mu, omega, sigma) - self.lowest

    def rise_in_mu(self, mu: float) -> float:
        """Rise of the profile of mu, the variance between subjects at zero where it must be."""
        tau2 = float(((self.means - mu) ** 2).mean())
        sigma2 = self.within / (self.n * (self.m - 1))
        omega = tau2 - sigma2 / self.m
        if omega < 0:
            omega, sigma2 = 0.0, (self.within + self.m * self.n * tau2) / (self.n * self.m)
        return self.minus2ll(mu, omega, math.sqrt(sigma2)) - self.lowest

    def interval_of_mu(self) -> tuple[float, float]:
        """Where the profile of mu rises by CUT: n log(1 + (mu - Y)^2 / tau^2) = CUT."""
        mu, omega, sigma = self.estimates
        tau2 = omega + sigma**2 / self.m
        reach = math.sqrt(tau2 * (math.exp(CUT / self.n) - 1))
        return mu - reach, mu + reach

    def interval_of_sigma(self) -> tuple[float, float]:
        sigma = self.estimates[2]
        return tuple(  # type: ignore[return-value]
            brentq(lambda s: self.rise_in_sigma(s) - CUT, *sorted((sigma, end)), xtol=1e-12)
            for end in (sigma / 3, sigma * 3)
        )

    def upper_of_omega(self) -> float:
        return float(
            brentq(lambda w: self.rise_in_omega(w) - CUT, max(self.estimates[1], 1e-9), 100, xtol=1e-12)
        )

    def lower_of_omega(self) -> float:
        return float(brentq(lambda w: self.rise_in_omega(w) - CUT, 1e-9, self.estimates[1], xtol=1e-14))

    def posterior(self) -> pd.DataFrame:
        """Mean and SD of mu, omega and sigma under exp(-O/2), flat in mu, log sd of eta and log sigma: on a grid."""
        mu = float(self.means.mean())
        square = float(((self.means - mu) ** 2).sum())
        s, w = np.meshgrid(np.linspace(-1.2, 0.8, 801), np.linspace(-2.5, 2.5, 1201))
        sigma2, omega = np.exp(2 * s), np.exp(2 * w)
        tau2 = omega + sigma2 / self.m
        # mu integrates to sqrt(tau2): one power of tau less
        log = -0.5 * (
            (self.n - 1) * np.log(tau2)
            + square / tau2
            + self.n * (self.m - 1) * np.log(sigma2)
            + self.within / sigma2
        )
        weight = np.exp(log - log.max())
        weight /= weight.sum()
        rows = {"mu": (mu, math.sqrt(float((weight * tau2).sum()) / self.n))}
        for name, value in (("omega.b", omega), ("cp.additive", np.sqrt(sigma2))):
            mean = float((weight * value).sum())
            rows[name] = mean, math.sqrt(float((weight * value**2).sum()) - mean**2)
        return pd.DataFrame(rows, index=["mean", "se"]).T


def fitted(method: Any = None, **options: Any) -> nl.Fit:
    """`OneWay` fitted to a table of it; FOCEI is exact here."""
    return nl.fit(OneWay(), nl.read_nonmem(table(**options)), method or nl.FOCEI())
