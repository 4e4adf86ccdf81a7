"""Cefamandole by infusion: see the class."""

from torch import exp

import nlmegen as nl


class Cefamandole(nl.Model):
    """Cefamandole infused over ten minutes, two compartments. Time min, amount mg/kg, concentration mg/L.

    Six volunteers, 15 mg/kg each, fourteen samples over 6 h (Davidian & Giltinan 1995, Nonlinear Models for
    Repeated Measurement Data, section 1.1). Doses are per kilogram and weights not given, so clearances and volumes
    are per kilogram too. Residual error: variance additive^2 + (proportional f)^2.
    """

    tvcl = nl.Theta(0.0028, lower=0, unit="L/min/kg")
    tvv = nl.Theta(0.07, lower=0, unit="L/kg")
    tvq = nl.Theta(0.002, lower=0, unit="L/min/kg")
    tvv2 = nl.Theta(0.055, lower=0, unit="L/kg")
    iiv = nl.Omega(cl=0.1, v=0.05, q=0.3, v2=0.1)
    cp = nl.Combined(additive=0.5, proportional=0.1)
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
