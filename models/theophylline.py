"""Theophylline by mouth: see the class."""

from torch import exp

import nlmegen as nl


class Theophylline(nl.Model):
    """Oral theophylline, one compartment, first-order absorption. Time h, amount mg, concentration mg/L.

    Twelve adults, one dose each, eleven samples over 24 h (Boeckmann, Sheiner & Beal, NONMEM Users Guide part V, 1994).
    Residual error: variance additive^2 + (proportional f)^2.
    """

    tvka = nl.Theta(1.0, lower=0, unit="1/h")
    tvcl = nl.Theta(2.0, lower=0, unit="L/h")
    tvv = nl.Theta(25.0, lower=0, unit="L")
    iiv = nl.Omega(ka=0.2, cl=0.1, v=0.05)
    cp = nl.Combined(additive=0.5, proportional=0.15)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
