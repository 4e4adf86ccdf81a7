"""Pages with other than Gaussian observations; those with one random effect have a likelihood that numpy integrates."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from problems import F64
from scipy import optimize, special, stats
from torch import exp

import nlmegen as nl

TIMES = np.array([0.5, 1.0, 2.0, 3.0, 4.0, 6.0])
GRID = np.linspace(-9.0, 9.0, 361)
"""Standard normal points: the trapezoidal rule on them is exact to rounding for smooth integrands."""


class Counts(nl.Model):
    """Counts of mean base exp(eta - slope t)."""

    base = nl.Theta(5.0, lower=0)
    slope = nl.Theta(0.2)
    iiv = nl.Omega(base=0.4)
    count = nl.Poisson()
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(level=theta.base * exp(eta.base), slope=theta.slope, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(count=p.level * exp(-p.slope * t))


class Scattered(Counts):
    """The same, with more scatter."""

    count = nl.NegativeBinomial(dispersion=0.5)


class Events(nl.Model):
    """An event of logit base + eta + slope t."""

    base = nl.Theta(-1.0)
    slope = nl.Theta(0.5)
    iiv = nl.Omega(base=1.0)
    event = nl.Bernoulli(scale="logit")
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(level=theta.base + eta.base, slope=theta.slope, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(event=p.level + p.slope * t)


class Grades(Events):
    """Four grades by proportional odds."""

    event = nl.Ordered(gaps=[1.0, 1.5])


class Limited(nl.Model):
    """Concentrations after a bolus of 100, half of them under the limit at the end."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.15)
    cp = nl.Combined(additive=0.15, proportional=0.15)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


LIMIT = 2.0


class Joined(nl.Model):
    """Two endpoints with correlated residuals; the first has a size of its own for every subject."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    iiv = nl.Omega(cl=0.15, size=0.1)
    cp = nl.Combined(additive=0.2, proportional=0.15)
    met = nl.Additive(0.5)
    link = nl.Correlation("cp", "met", 0.6)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv, size=exp(eta.size))

    def observe(self, t, a, p):
        return dict(cp=nl.Predicted(a.central / p.v, scale=p.size), met=3 + a.central / 10)


class Thick(nl.Model):
    """Residuals with thick tails, and counts beside them."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    rate = nl.Theta(2.0, lower=0)
    iiv = nl.Omega(cl=0.15, rate=0.2)
    cp = nl.StudentT(additive=0.2, proportional=0.15, df=4)
    count = nl.NegativeBinomial(dispersion=0.3)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv, rate=theta.rate * exp(eta.rate))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, count=p.rate * exp(0.1 * a.central / p.v))


def two_endpoints(kind: type[nl.Model], n: int = 8) -> nl.Problem:
    rows = []
    for i in range(n):
        rows.append((i + 1, 0.0, 100.0, 0.0, 1, 1))
        for t in (0.5, 1.0, 2.0, 4.0)[: 3 + i % 2]:
            rows += [(i + 1, t, 0.0, 1.0, 0, 1), (i + 1, t, 0.0, 1.0, 0, 2)]
    frame = pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID", "DVID"])
    problem = nl.Problem(kind(), nl.read_nonmem(frame))
    generator, values = torch.Generator().manual_seed(1), problem.values(problem.start)
    eta = torch.randn(n, problem.q, generator=generator, dtype=F64) @ values.factor.mT
    dv = problem.simulate_dv(problem.predict(eta, values).f, values, generator)
    frame.loc[frame.EVID == 0, "DV"] = dv[problem.mask > 0].numpy()
    return nl.Problem(kind(), nl.read_nonmem(frame))


def table(kind: type[nl.Model], n: int = 40, seed: int = 1) -> pd.DataFrame:
    """n subjects drawn from the declared values of a page by numpy."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        z = rng.normal()
        draw, cens = _draw(kind, z, rng)
        rows.append((i + 1, 0.0, 100.0, 0.0, 1, 0))
        rows += [(i + 1, t, 0.0, y, 0, c) for t, y, c in zip(TIMES, draw, cens, strict=True)]
    names = ["ID", "TIME", "AMT", "DV", "EVID", "CENS"]
    frame = pd.DataFrame(rows, columns=names)
    return frame if kind is Limited else frame.drop(columns="CENS")


def _draw(kind: type[nl.Model], z: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(len(TIMES), dtype=int)
    if issubclass(kind, Counts):
        mean = 5.0 * np.exp(np.sqrt(0.4) * z - 0.2 * TIMES)
        scatter = rng.gamma(2.0, 0.5, len(TIMES)) if kind is Scattered else 1.0
        return rng.poisson(mean * scatter), none
    if issubclass(kind, Events):
        logit = -1.0 + z + 0.5 * TIMES
        cuts = [0.0, 1.0, 2.5] if kind is Grades else [0.0]
        u = rng.uniform(size=len(TIMES))
        return sum((u < special.expit(logit - c)).astype(float) for c in cuts), none
    f = 10.0 * np.exp(-0.3 * np.exp(np.sqrt(0.15) * z) * TIMES)
    y = f + np.hypot(0.15, 0.15 * f) * rng.normal(size=len(TIMES))
    return np.maximum(y, LIMIT), (y < LIMIT).astype(int)


def natural(kind: type[nl.Model], x: np.ndarray) -> dict[str, float]:
    """Parameters by name of the vector over which `minus2ll` is minimised."""
    names = ["base", "slope", "sd"] + {Scattered: ["dispersion"], Grades: ["gap1", "gap2"]}.get(kind, [])
    if kind is Limited:
        names = ["tvcl", "tvv", "sd", "additive", "proportional"]
    logs = {"sd", "dispersion", "gap1", "gap2", "tvcl", "tvv", "additive", "proportional"}
    if issubclass(kind, Counts):
        logs.add("base")
    return {name: float(np.exp(v)) if name in logs else float(v) for name, v in zip(names, x, strict=True)}


def log_p(
    kind: type[nl.Model], p: dict[str, float], z: np.ndarray, y: np.ndarray, cens: np.ndarray
) -> np.ndarray:
    """log p(y | z) of one subject's records at standard normal effects `z [point]`, summed over records."""
    z = z[:, None]
    if issubclass(kind, Counts):
        mean = p["base"] * np.exp(p["sd"] * z - p["slope"] * TIMES)
        if kind is Scattered:
            size = 1.0 / p["dispersion"]
            return stats.nbinom.logpmf(y, size, size / (size + mean)).sum(1)
        return stats.poisson.logpmf(y, mean).sum(1)
    if issubclass(kind, Events):
        logit = p["base"] + p["sd"] * z + p["slope"] * TIMES
        cuts = [0.0] if kind is Events else [0.0, p["gap1"], p["gap1"] + p["gap2"]]
        above = [np.ones_like(logit), *(special.expit(logit - c) for c in cuts), np.zeros_like(logit)]
        mass = np.stack([a - b for a, b in zip(above[:-1], above[1:], strict=True)])
        return np.log(np.take_along_axis(mass, np.broadcast_to(y.astype(int), logit.shape)[None], 0)[0]).sum(
            1
        )
    f = 100.0 / p["tvv"] * np.exp(-p["tvcl"] / p["tvv"] * np.exp(p["sd"] * z) * TIMES)
    sd = np.hypot(p["additive"], p["proportional"] * f)
    return np.where(cens == 1, stats.norm.logcdf((y - f) / sd), stats.norm.logpdf(y, f, sd)).sum(1)


def minus2ll(kind: type[nl.Model], p: dict[str, float], frame: pd.DataFrame) -> float:
    """-2 log L at natural parameters."""
    seen = frame[frame.EVID == 0]
    y = seen.DV.to_numpy().reshape(-1, len(TIMES))
    cens = seen.CENS.to_numpy().reshape(y.shape) if "CENS" in seen else np.zeros(y.shape, dtype=int)
    weight = stats.norm.logpdf(GRID) + np.log(GRID[1] - GRID[0])
    each = [special.logsumexp(log_p(kind, p, GRID, *row) + weight) for row in zip(y, cens, strict=True)]
    return -2.0 * float(np.sum(each))


def maximum(kind: type[nl.Model], frame: pd.DataFrame) -> tuple[dict[str, float], float]:
    """The maximum likelihood by scipy."""
    start = {
        Counts: [np.log(5.0), 0.2, np.log(0.6)],
        Scattered: [np.log(5.0), 0.2, np.log(0.6), np.log(0.5)],
        Events: [-1.0, 0.5, 0.0],
        Grades: [-1.0, 0.5, 0.0, 0.0, np.log(1.5)],
        Limited: [np.log(3.0), np.log(10.0), np.log(0.39), np.log(0.15), np.log(0.15)],
    }[kind]
    found = optimize.minimize(
        lambda x: minus2ll(kind, natural(kind, x), frame), start, method="BFGS", options={"gtol": 1e-3}
    )
    return natural(kind, found.x), float(found.fun)
