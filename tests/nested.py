"""Cases with occasions: a linear page whose marginal likelihood is one dense normal density, and a kinetic one.

The exact answers are written in numpy from a table's columns and natural parameter values: no line of the package takes
part.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from torch import exp

import nlmegen as nl

LINEAR = {
    "mu": 2.0,
    "slope": 0.5,
    "omega.b": 0.4,
    "omega.s": 0.05,
    "omega.occ.b": 0.15,
    "omega.occ.s,occ.b": 0.02,
    "omega.occ.s": 0.03,
    "cp.additive": 0.3,
}
"""The declared values of `Nested`."""


class Nested(nl.Model):
    """y = mu + eta.b + kappa.b + (slope + eta.s + kappa.s) t + eps: linear in every effect."""

    mu = nl.Theta(2.0)
    slope = nl.Theta(0.5)
    iov = nl.Omega(b=0.15, s=0.03, cov=[0.02], level="occ")
    iiv = nl.Omega(b=0.4, s=0.05)
    cp = nl.Additive(0.3)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov, kappa):
        return dict(
            base=theta.mu + eta.b + kappa.b,
            slope=theta.slope + eta.s + kappa.s,
            cl=1.0 + 0.0 * kappa.b,
            v=1.0,
        )

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * t)


class Oral(nl.Model):
    """One compartment; clearance and absorption change from occasion to occasion."""

    tvcl = nl.Theta(1.0, lower=0)
    tvv = nl.Theta(10.0, lower=0)
    tvka = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.08, v=0.06)
    iov = nl.Omega(cl=0.05, ka=0.15, level="occ")
    cp = nl.Combined(additive=0.05, proportional=0.1)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov, kappa):
        return dict(
            cl=theta.tvcl * exp(eta.cl + kappa.cl), v=theta.tvv * exp(eta.v), ka=theta.tvka * exp(kappa.ka)
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def linear_table(
    n: int = 8, seed: int = 1, occasions: int = 3, times: tuple[float, ...] = (0.4, 1.0, 1.7)
) -> pd.DataFrame:
    """Records of `Nested`; every third subject lacks its last occasion, every fourth its first observation."""
    source = np.random.default_rng(seed)
    between = np.diag([0.4, 0.05]) ** 0.5
    within = np.linalg.cholesky([[0.15, 0.02], [0.02, 0.03]])
    rows: list[dict[str, Any]] = []
    for i in range(n):
        effect = between @ source.standard_normal(2)
        for k in range(occasions - (i % 3 == 2)):
            here = effect + within @ source.standard_normal(2)
            rows.append({"id": i + 1, "time": 3.0 * k, "amt": 1.0, "dv": np.nan, "evid": 1, "occ": 11 + k})
            for j, t in enumerate(times):
                at = 3.0 * k + t
                y = 2.0 + here[0] + (0.5 + here[1]) * at + 0.3 * source.standard_normal()
                if i % 4 or j or k:
                    rows.append({"id": i + 1, "time": at, "amt": 0.0, "dv": y, "evid": 0, "occ": 11 + k})
    return pd.DataFrame(rows)


def exact(table: pd.DataFrame, value: dict[str, float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """log p(y) of each subject under `Nested`, from the table's columns and natural values, `[subject]`."""
    omega = np.diag([value["omega.b"], value["omega.s"]])
    cross = value["omega.occ.s,occ.b"]
    kappa = np.array([[value["omega.occ.b"], cross], [cross, value["omega.occ.s"]]])
    logs = []
    for _, record in table[table.evid == 0].groupby("id", sort=False):
        t, occ = record.time.to_numpy(), record.occ.to_numpy()
        z = np.column_stack([np.ones_like(t), t])
        same = occ[:, None] == occ
        cov = z @ omega @ z.T + same * (z @ kappa @ z.T) + value["cp.additive"] ** 2 * np.eye(len(t))
        off = record.dv.to_numpy() - value["mu"] - value["slope"] * t
        _, log_det = np.linalg.slogdet(2 * np.pi * cov)
        logs.append(-0.5 * (log_det + off @ np.linalg.solve(cov, off)))
    return np.array(logs)


def oral_table(
    n: int = 6, occasions: int = 2, times: tuple[float, ...] = (0.5, 1.5, 4.0, 9.0, 20.0)
) -> pd.DataFrame:
    """A design for `Oral` without observations: 100 units at the start of each occasion, a day apart."""
    rows: list[dict[str, Any]] = []
    for i in range(n):
        for k in range(occasions):
            rows.append({"id": i + 1, "time": 24.0 * k, "amt": 100.0, "dv": np.nan, "evid": 1, "occ": k + 1})
            for t in times:
                rows.append(
                    {"id": i + 1, "time": 24.0 * k + t, "amt": 0.0, "dv": 1.0, "evid": 0, "occ": k + 1}
                )
    return pd.DataFrame(rows)


def population(table: pd.DataFrame, **options: Any) -> nl.Population:
    """The table as a Population, warnings kept to itself."""
    return nl.Population.from_table(table, warn=False, **options)
