"""Pages of drug effects as users write them, each with its equations once more in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import cos, exp

import nlmegen as nl


class InhibitedProduction(nl.Model):
    """Turnover I: the drug inhibits production (Dayneka, Garg & Jusko 1993, doi:10.1007/BF01061691)."""

    tvk, tvv = nl.Theta(0.3, lower=0), nl.Theta(20.0, lower=0)
    tvkin, tvkout, tvemax, tvc50 = (nl.Theta(x, lower=0) for x in (9.0, 0.4, 0.8, 1.0))
    iiv = nl.Omega(k=0.1, kin=0.1, kout=0.1, c50=0.1)
    response = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            k=theta.tvk * exp(eta.k),
            kin=theta.tvkin * exp(eta.kin),
            kout=theta.tvkout * exp(eta.kout),
            c50=theta.tvc50 * exp(eta.c50),
            v=theta.tvv,
            emax=theta.tvemax,
        )

    def initial(self, p):
        return dict(response=p.kin / p.kout)

    def effect(self, a, p):
        c = a.central / p.v
        return p.emax * c / (p.c50 + c)

    def dynamics(self, t, a, p):
        return dict(
            central=-p.k * a.central,
            response=p.kin * (1 - self.effect(a, p)) - p.kout * a.response,
        )

    def observe(self, t, a, p):
        return dict(response=a.response)


class InhibitedLoss(InhibitedProduction):
    """Turnover II: the drug inhibits loss."""

    def dynamics(self, t, a, p):
        return dict(
            central=-p.k * a.central,
            response=p.kin - p.kout * (1 - self.effect(a, p)) * a.response,
        )


class StimulatedProduction(InhibitedProduction):
    """Turnover III: the drug stimulates production."""

    def dynamics(self, t, a, p):
        return dict(
            central=-p.k * a.central,
            response=p.kin * (1 + self.effect(a, p)) - p.kout * a.response,
        )


class StimulatedLoss(InhibitedProduction):
    """Turnover IV: the drug stimulates loss."""

    def dynamics(self, t, a, p):
        return dict(
            central=-p.k * a.central,
            response=p.kin - p.kout * (1 + self.effect(a, p)) * a.response,
        )


def baseline(p: Any) -> list[Any]:
    return [0.0 * p.kin, p.kin / p.kout]


def _occupied(a: Sequence[Any], p: Any) -> Any:
    return p.emax * a[0] / (p.c50 * p.v + a[0])


def inhibited_production(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.k * a[0], p.kin - p.kin * _occupied(a, p) - p.kout * a[1]]


def inhibited_loss(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.k * a[0], p.kin - p.kout * a[1] + p.kout * a[1] * _occupied(a, p)]


def stimulated_production(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.k * a[0], p.kin + p.kin * _occupied(a, p) - p.kout * a[1]]


def stimulated_loss(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.k * a[0], p.kin - p.kout * a[1] - p.kout * a[1] * _occupied(a, p)]


class EffectSite(nl.Model):
    """An effect compartment, and an effect in a power of its concentration (0 before the dose)."""

    tvk, tvke0, tvv = nl.Theta(0.3, lower=0), nl.Theta(0.5, lower=0), nl.Theta(20.0, lower=0)
    tve0, tvec50, tvgamma = nl.Theta(10.0, lower=0), nl.Theta(1.5, lower=0), nl.Theta(2.3, lower=0)
    iiv = nl.Omega(k=0.1, ke0=0.1, gamma=0.1)
    effect = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            k=theta.tvk * exp(eta.k),
            ke0=theta.tvke0 * exp(eta.ke0),
            gamma=theta.tvgamma * exp(eta.gamma),
            v=theta.tvv,
            e0=theta.tve0,
            ec50=theta.tvec50,
        )

    def dynamics(self, t, a, p):
        return dict(central=-p.k * a.central, site=p.ke0 * (a.central / p.v - a.site))

    def observe(self, t, a, p):
        power = a.site**p.gamma
        return dict(effect=p.e0 + 50 * power / (p.ec50**p.gamma + power))


def effect_site(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    return [-p.k * a[0], p.ke0 * a[0] / p.v - p.ke0 * a[1]]


def effect_seen(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    power = raised(a[1] / p.ec50, p.gamma)
    return [p.e0 + 50 * power / (1 + power)]


def raised(base: Any, exponent: Any) -> Any:
    """base ** exponent, 0 where the base is 0."""
    base, exponent = np.broadcast_arrays(base, exponent)
    here = base != 0
    return np.where(here, np.exp(exponent * np.log(np.where(here, base, 1.0))), 0.0)


class SigmoidTurnover(nl.Model):
    """A power of the concentration (0 before the dose) inside the dynamics."""

    tvk, tvkin, tvgamma = nl.Theta(0.3, lower=0), nl.Theta(9.0, lower=0), nl.Theta(2.3, lower=0)
    tvkout, tvc50, tvv = nl.Theta(0.4, lower=0), nl.Theta(1.0, lower=0), nl.Theta(20.0, lower=0)
    iiv = nl.Omega(k=0.1, kin=0.1, gamma=0.1)
    response = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            k=theta.tvk * exp(eta.k),
            kin=theta.tvkin * exp(eta.kin),
            gamma=theta.tvgamma * exp(eta.gamma),
            kout=theta.tvkout,
            c50=theta.tvc50,
            v=theta.tvv,
        )

    def initial(self, p):
        return dict(response=p.kin / p.kout)

    def dynamics(self, t, a, p):
        inhibited = 1 / (1 + (a.central / p.v / p.c50) ** p.gamma)
        return dict(central=-p.k * a.central, response=p.kin * inhibited - p.kout * a.response)

    def observe(self, t, a, p):
        return dict(response=a.response)


def sigmoid_turnover(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    power = raised(a[0] / (p.v * p.c50), p.gamma)
    return [-p.k * a[0], p.kin / (1 + power) - p.kout * a[1]]


class Circadian(nl.Model):
    """Production that follows the clock, inhibited by the drug; starts where it would be without rhythm."""

    tvk, tvv, tvamp = nl.Theta(0.3, lower=0), nl.Theta(20.0, lower=0), nl.Theta(0.4, lower=0, upper=1)
    tvkin, tvkout, tvpeak = (nl.Theta(x, lower=0) for x in (9.0, 0.4, 8.0))
    iiv = nl.Omega(k=0.1, kin=0.1, peak=0.1)
    response = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            k=theta.tvk * exp(eta.k),
            kin=theta.tvkin * exp(eta.kin),
            peak=theta.tvpeak * exp(eta.peak),
            v=theta.tvv,
            amp=theta.tvamp,
            kout=theta.tvkout,
        )

    def initial(self, p):
        return dict(response=p.kin / p.kout)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        rhythm = 1 + p.amp * cos(2 * 3.141592653589793 * (t - p.peak) / 24)
        return dict(central=-p.k * a.central, response=p.kin * rhythm / (1 + c) - p.kout * a.response)

    def observe(self, t, a, p):
        return dict(response=a.response)


def circadian(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    rhythm = 1 + p.amp * np.cos(np.pi / 12 * (t - p.peak))
    return [-p.k * a[0], p.kin * rhythm * p.v / (p.v + a[0]) - p.kout * a[1]]


class TumourGrowth(nl.Model):
    """Growth at first exponential, then linear; hit cells die in three steps.

    Simeoni et al. 2004, doi:10.1158/0008-5472.CAN-03-2524.
    """

    tvk, tvl0, tvl1 = nl.Theta(0.5, lower=0), nl.Theta(0.25, lower=0), nl.Theta(0.8, lower=0)
    tvk1, tvk2, tvw0 = nl.Theta(0.6, lower=0), nl.Theta(0.02, lower=0), nl.Theta(1.0, lower=0)
    iiv = nl.Omega(l0=0.1, k2=0.1, w0=0.1)
    weight = nl.Additive(1.0)

    def individual(self, theta, eta, cov):
        return dict(
            l0=theta.tvl0 * exp(eta.l0),
            k2=theta.tvk2 * exp(eta.k2),
            w0=theta.tvw0 * exp(eta.w0),
            k=theta.tvk,
            l1=theta.tvl1,
            k1=theta.tvk1,
        )

    def initial(self, p):
        return dict(growing=p.w0)

    def dynamics(self, t, a, p):
        weight = a.growing + a.damaged1 + a.damaged2 + a.damaged3
        growth = p.l0 * a.growing / (1 + (p.l0 / p.l1 * weight) ** 20) ** (1 / 20)
        hit = p.k2 * a.central * a.growing
        return dict(
            central=-p.k * a.central,
            growing=growth - hit,
            damaged1=hit - p.k1 * a.damaged1,
            damaged2=p.k1 * (a.damaged1 - a.damaged2),
            damaged3=p.k1 * (a.damaged2 - a.damaged3),
        )

    def observe(self, t, a, p):
        return dict(weight=a.growing + a.damaged1 + a.damaged2 + a.damaged3)


def tumour_growth(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    central, growing, *damaged = a
    ratio = p.l0 / p.l1 * (growing + sum(damaged))
    growth = p.l0 * growing * np.exp(-np.log(1 + np.exp(20 * np.log(ratio))) / 20)
    hit, steps = p.k2 * central * growing, [p.k1 * x for x in damaged]
    return [-p.k * central, growth - hit, hit - steps[0], steps[0] - steps[1], steps[1] - steps[2]]
