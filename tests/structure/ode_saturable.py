"""Pages of saturable, induced or time-dependent kinetics, each with its equations once more in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import exp, log

import nlmegen as nl


class MichaelisMenten(nl.Model):
    """Saturable elimination, doses into the vein."""

    tvvmax, tvkm, tvv = nl.Theta(12.0, lower=0), nl.Theta(1.5, lower=0), nl.Theta(20.0, lower=0)
    iiv = nl.Omega(vmax=0.1, km=0.1, v=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(vmax=theta.tvvmax * exp(eta.vmax), km=theta.tvkm * exp(eta.km), v=theta.tvv * exp(eta.v))

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(central=-p.vmax * c / (p.km + c))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def michaelis_menten(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.vmax * a[0] / (p.km * p.v + a[0])]


class MichaelisMentenOral(nl.Model):
    """Saturable elimination, doses by mouth."""

    tvvmax, tvkm, tvv = nl.Theta(12.0, lower=0), nl.Theta(1.5, lower=0), nl.Theta(20.0, lower=0)
    tvka = nl.Theta(0.8, lower=0)
    iiv = nl.Omega(vmax=0.1, v=0.1, ka=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            vmax=theta.tvvmax * exp(eta.vmax),
            km=theta.tvkm,
            v=theta.tvv * exp(eta.v),
            ka=theta.tvka * exp(eta.ka),
        )

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.vmax * c / (p.km + c))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def michaelis_menten_oral(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.ka * a[0], p.ka * a[0] - p.vmax * a[1] / (p.km * p.v + a[1])]


class Parallel(nl.Model):
    """Linear and saturable elimination side by side, two compartments."""

    tvvmax, tvkm, tvv = nl.Theta(8.0, lower=0), nl.Theta(0.4, lower=0), nl.Theta(15.0, lower=0)
    tvcl, tvk12, tvk21 = nl.Theta(1.0, lower=0), nl.Theta(0.4, lower=0), nl.Theta(0.25, lower=0)
    iiv = nl.Omega(vmax=0.1, km=0.1, v=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            vmax=theta.tvvmax * exp(eta.vmax),
            km=theta.tvkm * exp(eta.km),
            v=theta.tvv * exp(eta.v),
            cl=theta.tvcl,
            k12=theta.tvk12,
            k21=theta.tvk21,
        )

    def dynamics(self, t, a, p):
        c = a.central / p.v
        exchange = p.k12 * a.central - p.k21 * a.peripheral
        return dict(central=-c * (p.cl + p.vmax / (p.km + c)) - exchange, peripheral=exchange)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def parallel(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    saturable = p.vmax * a[0] / (p.km * p.v + a[0])
    return [
        -p.cl / p.v * a[0] - saturable - p.k12 * a[0] + p.k21 * a[1],
        p.k12 * a[0] - p.k21 * a[1],
    ]


class GammaInput(nl.Model):
    """Savic's transit absorption of a dose of 100 at time 0, with n! by Stirling (doi:10.1007/s10928-007-9066-0)."""

    tvn, tvmtt, tvv = nl.Theta(3.4, lower=0), nl.Theta(2.5, lower=0), nl.Theta(25.0, lower=0)
    tvka, tvcl = nl.Theta(1.2, lower=0), nl.Theta(3.0, lower=0)
    iiv = nl.Omega(n=0.1, mtt=0.1, v=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            n=theta.tvn * exp(eta.n),
            mtt=theta.tvmtt * exp(eta.mtt),
            v=theta.tvv * exp(eta.v),
            ka=theta.tvka,
            cl=theta.tvcl,
        )

    def dynamics(self, t, a, p):
        ktr = (p.n + 1) / p.mtt
        factorial = 0.5 * log(2 * 3.141592653589793 * p.n) + p.n * log(p.n) - p.n + log(1 + 1 / (12 * p.n))
        inflow = exp(log(100 * ktr) + p.n * log(ktr * t + 1e-5) - ktr * t - factorial)
        return dict(depot=inflow - p.ka * a.depot, central=p.ka * a.depot - p.cl / p.v * a.central)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def gamma_input(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    x = (p.n + 1) / p.mtt * t
    factorial = np.sqrt(2 * np.pi * p.n) * (p.n / np.e) ** p.n * (1 + 1 / (12 * p.n))
    inflow = 100 * (p.n + 1) / p.mtt * (x + 1e-5) ** p.n * np.exp(-x) / factorial
    return [inflow - p.ka * a[0], p.ka * a[0] - p.cl * a[1] / p.v]


class ParentMetabolite(nl.Model):
    """Saturable formation of a metabolite; both are given and both are measured."""

    tvvmax, tvkm, tvv = nl.Theta(10.0, lower=0), nl.Theta(2.0, lower=0), nl.Theta(20.0, lower=0)
    tvcl, tvclm, tvvm = nl.Theta(1.0, lower=0), nl.Theta(2.0, lower=0), nl.Theta(12.0, lower=0)
    iiv = nl.Omega(vmax=0.1, v=0.1, clm=0.1)
    cp = nl.Additive(1.0, dvid=1)
    cm = nl.Additive(1.0, dvid=2)

    def individual(self, theta, eta, cov):
        return dict(
            vmax=theta.tvvmax * exp(eta.vmax),
            v=theta.tvv * exp(eta.v),
            clm=theta.tvclm * exp(eta.clm),
            km=theta.tvkm,
            cl=theta.tvcl,
            vm=theta.tvvm,
        )

    def dynamics(self, t, a, p):
        c = a.parent / p.v
        formed = p.vmax * c / (p.km + c)
        return dict(parent=-formed - p.cl * c, metabolite=formed - p.clm / p.vm * a.metabolite)

    def observe(self, t, a, p):
        return dict(cp=a.parent / p.v, cm=a.metabolite / p.vm)


def parent_metabolite(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    formed = p.vmax * a[0] / (p.km * p.v + a[0])
    return [-formed - p.cl * a[0] / p.v, formed - p.clm * a[1] / p.vm]


class Autoinduction(nl.Model):
    """The drug induces the enzyme that clears it."""

    tvcl, tvv, tvkenz = nl.Theta(2.0, lower=0), nl.Theta(20.0, lower=0), nl.Theta(0.15, lower=0)
    tvemax, tvec50 = nl.Theta(3.0, lower=0), nl.Theta(2.0, lower=0)
    iiv = nl.Omega(cl=0.1, kenz=0.1, emax=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            kenz=theta.tvkenz * exp(eta.kenz),
            emax=theta.tvemax * exp(eta.emax),
            v=theta.tvv,
            ec50=theta.tvec50,
        )

    def initial(self, p):
        return dict(enzyme=1.0)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        made = 1 + p.emax * c / (p.ec50 + c)
        return dict(central=-p.cl * a.enzyme * c, enzyme=p.kenz * (made - a.enzyme))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def autoinduction(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    c = a[0] / p.v
    return [-p.cl * a[1] * c, p.kenz + p.kenz * p.emax * c / (p.ec50 + c) - p.kenz * a[1]]
