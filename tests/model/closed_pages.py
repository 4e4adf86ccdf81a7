"""Pages with a closed form, in every way in which one may be written, and subjects with every kind of dosing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from structure.doses import PATTERNS, population
from torch import exp

import nlmegen as nl

F64 = torch.float64


class Bolus(nl.Model):
    """One compartment, intravenous; theta without a random effect, random effect without a theta of its own."""

    tvcl, tvv = nl.Theta(2.0, lower=0), nl.Theta(20.0, lower=0)
    shift = nl.Theta(0.1)
    iiv = nl.Omega(cl=0.09, v=0.04)
    cp = nl.Combined(additive=0.1, proportional=0.2)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * (1 + 0.5 * eta.v), base=theta.shift)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v + p.base * t / 24)


class Oral(nl.Model):
    """One compartment with absorption, a full block, a bounded theta and one random effect in two parameters."""

    tvcl, tvv = nl.Theta(3.0, lower=0), nl.Theta(30.0, lower=0)
    tvka = nl.Theta(0.9, lower=0.2, upper=3.0)
    iiv = nl.Omega(ka=0.2, cl=0.1, v=0.06, cov=[0.03, -0.02, 0.02])
    cp = nl.Combined(additive=0.05, proportional=0.15, form="sd")
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        size = cov.wt / 70
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * size**0.75 * exp(eta.cl),
            v=theta.tvv * size * torch.where(cov.sex > 0.5, 1.1 * size, size**0) * exp(eta.v + 0.3 * eta.cl),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class Depot(Oral):
    """Two endpoints, one of which is the depot."""

    cp = nl.Additive(0.3)
    gut = nl.Combined(additive=0.5, proportional=0.1)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, gut=a.depot)


class Two(nl.Model):
    """Two compartments, intravenous."""

    tvcl, tvv = nl.Theta(3.0, lower=0), nl.Theta(25.0, lower=0)
    tvq, tvv2 = nl.Theta(5.0, lower=0), nl.Theta(40.0, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.05, v2=0.06)
    cp = nl.Combined(additive=0.05, proportional=0.2)
    structure = nl.TwoCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v), q=theta.tvq, v2=theta.tvv2 * exp(eta.v2)
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class TwoOral(nl.Model):
    """Two compartments with absorption; tissue and plasma are observed."""

    tvcl, tvv = nl.Theta(3.0, lower=0), nl.Theta(25.0, lower=0)
    tvq, tvv2 = nl.Theta(5.0, lower=0), nl.Theta(40.0, lower=0)
    tvka = nl.Theta(1.1, lower=0)
    iiv = nl.Omega(cl=0.09, q=0.1, ka=0.2)
    cp = nl.Combined(additive=0.05, proportional=0.2)
    tissue = nl.Additive(0.1)
    structure = nl.TwoCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv,
            q=theta.tvq * exp(eta.q),
            v2=theta.tvv2,
            ka=theta.tvka * exp(eta.ka),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, tissue=torch.log1p(a.peripheral / p.v2))


class LogOral(Oral):
    """Log-normal residuals."""

    cp = nl.LogNormal(0.2)


@dataclass(frozen=True)
class Case:
    """A page and subjects."""

    name: str
    page: Callable[[], nl.Model]
    population: Callable[[], nl.Population]

    def __str__(self) -> str:
        return self.name


def every_dosing(into: dict[str, int], endpoints: int) -> nl.Population:
    """One subject a pattern, with observations and covariates."""
    made = population(tuple(PATTERNS), 3.0, 300.0, into, endpoints)
    return observed(made.table)


def single(n: int = 11, into: int = 1) -> nl.Population:
    """One dose each, sampled at times of their own, some subjects less often than others."""
    rows = []
    for i in range(1, n + 1):
        rows.append(dict(id=i, time=0.0, evid=1, amt=100.0 + 20 * i, cmt=into))
        rows += [dict(id=i, time=0.25 * 2**k * (1 + i / 20), evid=0, cmt=into) for k in range(8 - i % 3)]
    return observed(pd.DataFrame(rows))


def observed(table: pd.DataFrame) -> nl.Population:
    """The table with covariates and numbers observed."""
    table = table.reset_index(drop=True).copy()
    rng = np.random.default_rng(5)
    table["dv"] = np.where(table["evid"] == 0, np.exp(rng.normal(1.0, 0.6, len(table))), 0.0)
    table["wt"] = 50.0 + 7 * table["id"].astype(float)
    table["sex"] = (table["id"].astype(int) % 2).astype(float)
    return nl.Population.from_table(table, warn=False)


CASES = (
    Case("bolus, once", Bolus, single),
    Case("bolus, every dosing", Bolus, lambda: every_dosing({"main": 1, "other": 1}, 1)),
    Case("oral, once", Oral, single),
    Case("oral, every dosing", Oral, lambda: every_dosing({"main": 1, "other": 2}, 1)),
    Case("depot and plasma", Depot, lambda: every_dosing({"main": 1, "other": 2}, 2)),
    Case("oral, logarithms", LogOral, single),
    Case("two compartments, once", Two, single),
    Case("two compartments, every dosing", Two, lambda: every_dosing({"main": 1, "other": 2}, 1)),
    Case("two compartments, oral, every dosing", TwoOral, lambda: every_dosing({"main": 1, "other": 2}, 2)),
)
