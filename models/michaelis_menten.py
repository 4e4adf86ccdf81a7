"""Michaelis-Menten elimination: see the class."""

from torch import exp

import nlmegen as nl


class MichaelisMenten(nl.Model):
    """Intravenous doses, one compartment, Michaelis-Menten elimination. Time h, amount mg, concentration mg/L.

    With C = central / v, the drug leaves at the rate vmax C / (km + C): vmax / km a unit of concentration where C
    is low, vmax where it is high. After one bolus C has a closed form in Lambert's W (Schnell & Mendoza 1997, J
    Theor Biol 187:207-212, doi:10.1006/jtbi.1997.0425). km has no random effect: a subject seldom determines both
    vmax and km.
    """

    tvvmax = nl.Theta(8.0, lower=0, unit="mg/h")
    tvkm = nl.Theta(2.0, lower=0, unit="mg/L")
    tvv = nl.Theta(30.0, lower=0, unit="L")
    iiv = nl.Omega(vmax=0.09, v=0.04)
    cp = nl.LogNormal(0.2)

    def individual(self, theta, eta, cov):
        return dict(
            vmax=theta.tvvmax * exp(eta.vmax),
            km=theta.tvkm,
            v=theta.tvv * exp(eta.v),
        )

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(central=-p.vmax * c / (p.km + c))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
