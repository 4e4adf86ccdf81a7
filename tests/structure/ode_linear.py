"""Pages linear in their amounts as users write them, each with its equations once more in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import exp

import nlmegen as nl


class OneOral(nl.Model):
    """One compartment with first-order absorption."""

    tvcl, tvv, tvka = nl.Theta(3.0, lower=0), nl.Theta(30.0, lower=0), nl.Theta(1.1, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.1, ka=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v), ka=theta.tvka * exp(eta.ka))

    def dynamics(self, t, a, p):
        absorption = p.ka * a.depot
        return dict(depot=-absorption, central=absorption - p.cl / p.v * a.central)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def one_oral(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    depot, central = a
    return [-p.ka * depot, p.ka * depot - p.cl * central / p.v]


class OneOralClosed(nl.Model):
    """The same in closed form."""

    tvcl, tvv, tvka = nl.Theta(3.0, lower=0), nl.Theta(30.0, lower=0), nl.Theta(1.1, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.1, ka=0.1)
    cp = nl.Additive(1.0)
    structure = nl.OneCompartment(absorption="first-order")
    individual, observe = OneOral.individual, OneOral.observe


class TwoOral(nl.Model):
    """Two compartments, doses by mouth and into the vein."""

    tvcl, tvv, tvka = nl.Theta(3.0, lower=0), nl.Theta(30.0, lower=0), nl.Theta(1.1, lower=0)
    tvq, tvv2 = nl.Theta(5.0, lower=0), nl.Theta(50.0, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.1, ka=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            ka=theta.tvka * exp(eta.ka),
            q=theta.tvq,
            v2=theta.tvv2,
        )

    def dynamics(self, t, a, p):
        out, back = p.q * a.central / p.v, p.q * a.peripheral / p.v2
        return dict(
            depot=-p.ka * a.depot,
            central=p.ka * a.depot - p.cl * a.central / p.v - out + back,
            peripheral=out - back,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def two_oral(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    k10, k12, k21 = p.cl / p.v, p.q / p.v, p.q / p.v2
    return [-p.ka * a[0], p.ka * a[0] - (k10 + k12) * a[1] + k21 * a[2], k12 * a[1] - k21 * a[2]]


class TwoOralClosed(nl.Model):
    """The same in closed form."""

    tvcl, tvv, tvka = nl.Theta(3.0, lower=0), nl.Theta(30.0, lower=0), nl.Theta(1.1, lower=0)
    tvq, tvv2 = nl.Theta(5.0, lower=0), nl.Theta(50.0, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.1, ka=0.1)
    cp = nl.Additive(1.0)
    structure = nl.TwoCompartment(absorption="first-order")
    individual, observe = TwoOral.individual, TwoOral.observe


class ThreeInfusion(nl.Model):
    """Three compartments."""

    tvcl, tvv, tvq = nl.Theta(2.0, lower=0), nl.Theta(10.0, lower=0), nl.Theta(4.0, lower=0)
    tvv2, tvq3, tvv3 = nl.Theta(15.0, lower=0), nl.Theta(1.0, lower=0), nl.Theta(60.0, lower=0)
    iiv = nl.Omega(cl=0.1, v=0.1, q=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            q=theta.tvq * exp(eta.q),
            v2=theta.tvv2,
            q3=theta.tvq3,
            v3=theta.tvv3,
        )

    def dynamics(self, t, a, p):
        c, c2, c3 = a.central / p.v, a.peripheral / p.v2, a.peripheral2 / p.v3
        return dict(
            central=-p.cl * c - p.q * (c - c2) - p.q3 * (c - c3),
            peripheral=p.q * (c - c2),
            peripheral2=p.q3 * (c - c3),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def three_infusion(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    out2, back2 = p.q / p.v * a[0], p.q / p.v2 * a[1]
    out3, back3 = p.q3 / p.v * a[0], p.q3 / p.v3 * a[2]
    return [-p.cl / p.v * a[0] - out2 - out3 + back2 + back3, out2 - back2, out3 - back3]


class Transit(nl.Model):
    """Absorption through a chain of four compartments."""

    tvktr, tvcl, tvv = nl.Theta(1.6, lower=0), nl.Theta(3.0, lower=0), nl.Theta(25.0, lower=0)
    iiv = nl.Omega(ktr=0.1, cl=0.1, v=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(ktr=theta.tvktr * exp(eta.ktr), cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def dynamics(self, t, a, p):
        return dict(
            dose=-p.ktr * a.dose,
            transit1=p.ktr * (a.dose - a.transit1),
            transit2=p.ktr * (a.transit1 - a.transit2),
            transit3=p.ktr * (a.transit2 - a.transit3),
            central=p.ktr * a.transit3 - p.cl / p.v * a.central,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def transit(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    flow = [p.ktr * x for x in a[:4]]
    return [-flow[0], flow[0] - flow[1], flow[1] - flow[2], flow[2] - flow[3], flow[3] - p.cl * a[4] / p.v]


class Enterohepatic(nl.Model):
    """Bile takes drug back to the gut."""

    tvcl, tvv, tvka = nl.Theta(2.0, lower=0), nl.Theta(20.0, lower=0), nl.Theta(1.0, lower=0)
    tvkb, tvkg = nl.Theta(0.3, lower=0), nl.Theta(0.5, lower=0)
    iiv = nl.Omega(cl=0.1, kb=0.1, kg=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            kb=theta.tvkb * exp(eta.kb),
            kg=theta.tvkg * exp(eta.kg),
            v=theta.tvv,
            ka=theta.tvka,
        )

    def dynamics(self, t, a, p):
        return dict(
            gut=p.kg * a.bile - p.ka * a.gut,
            central=p.ka * a.gut - (p.cl / p.v + p.kb) * a.central,
            bile=p.kb * a.central - p.kg * a.bile,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def enterohepatic(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    gut, bile = p.ka * a[0], p.kg * a[2]
    return [bile - gut, gut - p.cl * a[1] / p.v - p.kb * a[1], p.kb * a[1] - bile]


class Chain(nl.Model):
    """Six compartments in a row, each losing to the next at a rate of its own."""

    tvk, tvratio, tvv = nl.Theta(0.6, lower=0), nl.Theta(1.3, lower=0), nl.Theta(10.0, lower=0)
    iiv = nl.Omega(k=0.1, ratio=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(k=theta.tvk * exp(eta.k), ratio=theta.tvratio * exp(eta.ratio), v=theta.tvv)

    def dynamics(self, t, a, p):
        rates, flow = {}, 0.0
        for i, name in enumerate(("a1", "a2", "a3", "a4", "a5", "a6")):
            loss = p.k * p.ratio**i * a[name]
            rates[name], flow = flow - loss, loss
        return rates

    def observe(self, t, a, p):
        return dict(cp=(a.a3 + a.a6) / p.v)


def chain(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    loss = [p.k * np.exp(np.log(p.ratio) * i) * x for i, x in enumerate(a)]
    return [-loss[0], *(loss[i - 1] - loss[i] for i in range(1, 6))]


class Physiological(nl.Model):
    """Eight tissues in series with the blood; the liver clears."""

    tvcl, tvkp, tvkfat, tvka = (nl.Theta(x, lower=0) for x in (20.0, 2.0, 12.0, 0.9))
    iiv = nl.Omega(cl=0.1, kp=0.1, ka=0.1)
    cp = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            kp=theta.tvkp * exp(eta.kp),
            ka=theta.tvka * exp(eta.ka),
            kfat=theta.tvkfat,
        )

    def dynamics(self, t, a, p):
        lung, artery, vein = a.lung / (3.0 * p.kp), a.artery / 4.0, a.vein / 6.0
        liver, kidney = a.liver / (1.8 * p.kp), a.kidney / (1.0 * p.kp)
        muscle, fat = a.muscle / (29.0 * p.kp), a.fat / (14.0 * p.kfat)
        return dict(
            gut=-p.ka * a.gut,
            liver=p.ka * a.gut + 90.0 * (artery - liver) - p.cl * liver,
            kidney=70.0 * (artery - kidney),
            muscle=60.0 * (artery - muscle),
            fat=20.0 * (artery - fat),
            vein=90.0 * liver + 70.0 * kidney + 60.0 * muscle + 20.0 * fat - 240.0 * vein,
            lung=240.0 * (vein - lung),
            artery=240.0 * (lung - artery),
        )

    def observe(self, t, a, p):
        return dict(cp=a.vein / 6.0)


def physiological(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    gut, liver, kidney, muscle, fat, vein, lung, artery = a
    flows, volumes = (90.0, 70.0, 60.0, 20.0), (1.8 * p.kp, 1.0 * p.kp, 29.0 * p.kp, 14.0 * p.kfat)
    tissues = (liver, kidney, muscle, fat)
    supply = [q * artery / 4.0 for q in flows]
    drain = [q * x / v for q, x, v in zip(flows, tissues, volumes, strict=True)]
    net = [x - y for x, y in zip(supply, drain, strict=True)]
    total, cleared = sum(flows), p.cl * liver / volumes[0]
    onward = total * lung / (3.0 * p.kp)
    return [
        *(-p.ka * gut, net[0] + p.ka * gut - cleared, *net[1:]),
        *(sum(drain) - total * vein / 6.0, total * vein / 6.0 - onward, onward - sum(supply)),
    ]
