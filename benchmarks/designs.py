"""Pages and simulated designs that several benchmarks share; the tables are simulated by numpy alone.

*Rich*: 120 subjects on four dose levels, sampled densely after a single dose (Schoemaker et al. 2019,
doi:10.1002/psp4.12471): CL 4, V 70, ka 1, Q 4, V2 50, Vmax 1000, Km 250, each with a random effect of 30 %, error in
proportion of 20 %. *Sparse*: 120 subjects, one oral dose of 100, samples at 1, 4 and 24; CL 3, V 30, ka 1.2,
omega_sd .3 / .2 / .4, log-normal error .2.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from torch import exp

import nlmegen as nl

RICH_TIMES = (0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16, 20, 24, 36, 48, 60, 71.99)
LIGHT_TIMES = (0.5, 1.5, 3, 6, 12, 24, 48)
DOSES = (10_000.0, 30_000.0, 60_000.0, 120_000.0)
SPARSE_TIMES = (1.0, 4.0, 24.0)
WARFARIN_TIMES = (0.5, 1, 2, 3, 6, 9, 12, 24, 36, 48, 72, 96, 120)


class Oral(nl.Model):
    """One compartment, first-order absorption, error in proportion."""

    tvcl = nl.Theta(4.0, lower=0)
    tvv = nl.Theta(70.0, lower=0)
    tvka = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.09, ka=0.09)
    cp = nl.Proportional(0.2)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v), ka=theta.tvka * exp(eta.ka))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class Bolus(nl.Model):
    """Two compartments, intravenous bolus."""

    tvcl = nl.Theta(4.0, lower=0)
    tvv = nl.Theta(70.0, lower=0)
    tvq = nl.Theta(4.0, lower=0)
    tvv2 = nl.Theta(50.0, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.09, q=0.09, v2=0.09)
    cp = nl.Proportional(0.2)
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


class Saturable(nl.Model):
    """One compartment, infusions, Michaelis-Menten elimination."""

    tvvm = nl.Theta(1000.0, lower=0)
    tvkm = nl.Theta(250.0, lower=0)
    tvv = nl.Theta(70.0, lower=0)
    iiv = nl.Omega(vm=0.09, km=0.09, v=0.09)
    cp = nl.Proportional(0.2)

    def individual(self, theta, eta, cov):
        return dict(vm=theta.tvvm * exp(eta.vm), km=theta.tvkm * exp(eta.km), v=theta.tvv * exp(eta.v))

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(central=-p.vm * c / (p.km + c))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class Warfarin(Oral):
    """Warfarin's concentrations, combined error (variances added)."""

    tvcl = nl.Theta(0.13, lower=0)
    tvv = nl.Theta(8.0, lower=0)
    tvka = nl.Theta(0.6, lower=0)
    cp = nl.Combined(additive=0.7, proportional=0.12)


class Sparse(Oral):
    """Oral, one compartment, log-normal error, at the truth of the sparse design."""

    tvcl = nl.Theta(3.0, lower=0)
    tvv = nl.Theta(30.0, lower=0)
    tvka = nl.Theta(1.2, lower=0)
    iiv = nl.Omega(cl=0.09, v=0.04, ka=0.16)
    cp = nl.LogNormal(0.2)


def oral(cl: np.ndarray, v: np.ndarray, ka: np.ndarray, dose: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Concentrations after an oral dose at 0; every argument broadcasts."""
    k = cl / v
    return dose * ka / (v * (ka - k)) * (np.exp(-k * t) - np.exp(-ka * t))


def bolus(
    cl: np.ndarray, v: np.ndarray, q: np.ndarray, v2: np.ndarray, dose: np.ndarray, t: np.ndarray
) -> np.ndarray:
    """Concentrations in the first of two compartments after a bolus at 0."""
    k10, k12, k21 = cl / v, q / v, q / v2
    s, p = k10 + k12 + k21, k10 * k21
    slow = 2 * p / (s + np.sqrt(s * s - 4 * p))
    fast = p / slow
    return dose / v * ((fast - k21) * np.exp(-fast * t) + (k21 - slow) * np.exp(-slow * t)) / (fast - slow)


def records(dose: np.ndarray, times: np.ndarray, y: np.ndarray, oral: bool) -> pd.DataFrame:
    """One dose at 0 and observations `y [subject, time]` in NONMEM's columns."""
    n, t = y.shape
    ids = np.arange(1, n + 1)
    doses = pd.DataFrame({"ID": ids, "TIME": 0.0, "AMT": dose.ravel(), "DV": 0.0, "EVID": 1, "CMT": 1})
    samples = pd.DataFrame(
        {
            "ID": np.repeat(ids, t),
            "TIME": np.tile(times, n),
            "AMT": 0.0,
            "DV": y.ravel(),
            "EVID": 0,
            "CMT": 2 if oral else 1,
        }
    )
    return pd.concat([doses, samples]).sort_values(["ID", "TIME"], kind="stable", ignore_index=True)


def spread(
    typical: tuple[float, ...], sd: tuple[float, ...], n: int, g: np.random.Generator
) -> list[np.ndarray]:
    """Log-normal individual parameters, each `[n, 1]`."""
    drawn = np.array(typical) * np.exp(g.normal(size=(n, len(typical))) * np.array(sd))
    return list(drawn.T[..., None])


def rich_oral(seed: int, n: int = 120, times: tuple[float, ...] = RICH_TIMES) -> pd.DataFrame:
    """The rich design by mouth."""
    g = np.random.default_rng(seed)
    dose = np.resize(DOSES, n)[:, None]
    f = oral(*spread((4, 70, 1), (0.3,) * 3, n, g), dose, np.array(times))
    return records(dose, np.array(times), f * (1 + 0.2 * g.normal(size=f.shape)), oral=True)


def rich_bolus(seed: int, n: int = 120, times: tuple[float, ...] = RICH_TIMES) -> pd.DataFrame:
    """The rich design into the first of two compartments."""
    g = np.random.default_rng(seed)
    dose = np.resize(DOSES, n)[:, None]
    f = bolus(*spread((4, 70, 4, 50), (0.3,) * 4, n, g), dose, np.array(times))
    return records(dose, np.array(times), f * (1 + 0.2 * g.normal(size=f.shape)), oral=False)


def sparse(seed: int, n: int = 120) -> pd.DataFrame:
    """The sparse design."""
    g = np.random.default_rng(seed)
    dose, times = np.full((n, 1), 100.0), np.array(SPARSE_TIMES)
    f = oral(*spread((3, 30, 1.2), (0.3, 0.2, 0.4), n, g), dose, times)
    return records(dose, times, f * np.exp(0.2 * g.normal(size=f.shape)), oral=True)


def warfarin_like(seed: int, n: int = 32) -> pd.DataFrame:
    """Warfarin's design and estimates: 32 subjects, 1.5 mg/kg by mouth, five to thirteen of the sampling times."""
    g = np.random.default_rng(seed)
    dose = np.round(1.5 * g.normal(70, 12, size=(n, 1)).clip(40, 110))
    times = np.array(WARFARIN_TIMES)
    f = oral(*spread((0.1344, 7.836, 0.5622), (0.281, 0.221, 0.69), n, g), dose, times)
    y = f + np.hypot(0.72, 0.117 * f) * g.normal(size=f.shape)
    table = records(dose, times, y, oral=True)
    early = (
        (table["EVID"] == 0) & (table["TIME"] < 24) & (table["ID"] > n // 2)
    )  # half were not sampled on the first day
    return table[~early].reset_index(drop=True)
