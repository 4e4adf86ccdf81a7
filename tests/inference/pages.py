"""Pages and tables that the tests of the classic estimation share."""

from __future__ import annotations

import pandas as pd
import torch
from torch import exp

import nlmegen as nl

WANG = """1 10.68 3.6837; 2 10.402 6.454; 3 9.8814 5.8565; 4 9.3408 5.6209; 5 10.082 6.7583; 6 9.8938 6.5049;
7 9.8908 6.9557; 8 10.234 6.4488; 9 9.9882 6.7112; 10 9.6736 6.6402"""
"""Wang (2007), doi:10.1007/s10928-007-9060-6: id and observations at t = 0 and t = 1."""


class WangAdditive(nl.Model):
    """f = 10 exp(-0.5 e^eta t)."""

    rate = nl.Theta(0.5, lower=0, fixed=True)
    iiv = nl.Omega(k=0.04, fixed=True)
    cp = nl.Additive(0.1**0.5, fixed=True)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(k=theta.rate * exp(eta.k), cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=10 * exp(-p.k * t))


class WangProportional(WangAdditive):
    """The same with error in proportion."""

    cp = nl.Proportional(0.1**0.5, fixed=True)


def wang_data() -> nl.Population:
    rows = []
    for line in WANG.replace("\n", " ").split(";"):
        i, first, second = line.split()
        rows.append((int(i), 0.0, 1.0, 0.0, 1))
        rows += [(int(i), 0.0, 0.0, float(first), 0), (int(i), 1.0, 0.0, float(second), 0)]
    return nl.read_nonmem(pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID"]))


Theophylline = type(nl.load_model("theophylline"))


class TheophyllineAdditive(Theophylline):
    """Theophylline with additive error."""

    cp = nl.Additive(0.5)


class TheophyllineSd(Theophylline):
    """Theophylline with combined error, standard deviations added."""

    cp = nl.Combined(additive=0.5, proportional=0.15, form="sd")


class Oral(nl.Model):
    """Oral, one compartment: simulated from, and fitted in the tests of edges."""

    tvka = nl.Theta(1.2, lower=0)
    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(30.0, lower=0)
    iiv = nl.Omega(ka=0.16, cl=0.09, v=0.04)
    cp = nl.LogNormal(0.2)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka * exp(eta.ka), cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def oral_table(
    n: int,
    times: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 24.0),
    seed: int = 1,
    model: nl.Model | None = None,
) -> pd.DataFrame:
    """`n` subjects, dose 100 at 0, simulated from a page (`Oral()` unless given) at its values."""
    rows = []
    for i in range(n):
        rows.append((i + 1, 0.0, 100.0, 0.0, 1))
        rows += [(i + 1, t, 0.0, 1.0, 0) for t in times]
    table = pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID"])
    problem = nl.Problem(Oral() if model is None else model, nl.read_nonmem(table))
    generator = torch.Generator().manual_seed(seed)
    values = problem.values(problem.start)
    eta = torch.randn(n, problem.q, generator=generator, dtype=torch.float64) @ values.factor.mT
    y = problem.simulate_dv(problem.predict(eta, values).f, values, generator)
    table.loc[table.EVID == 0, "DV"] = y.flatten().numpy()
    return table
