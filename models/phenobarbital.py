"""Phenobarbital in neonates: see the class."""

from torch import exp

import nlmegen as nl


class Phenobarbital(nl.Model):
    """Phenobarbital in neonates, one compartment, intravenous doses. Time h, amount mg, concentration mg/L.

    59 preterm infants, routine data (Grasela & Donn 1985, Dev Pharmacol Ther 8:374-383, doi:10.1159/000457062).
    Clearance and volume in proportion to weight (kg); a volume larger by the fraction `asphyxia` where the five-minute
    Apgar score is below 5.
    """

    tvcl = nl.Theta(0.005, lower=0, unit="L/h/kg")
    tvv = nl.Theta(1.0, lower=0, unit="L/kg")
    asphyxia = nl.Theta(0.1, lower=-1)
    iiv = nl.Omega(cl=0.05, v=0.05)
    cp = nl.Proportional(0.15)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * cov.wt * exp(eta.cl),
            v=theta.tvv * cov.wt * (1 + theta.asphyxia * (cov.apgr < 5)) * exp(eta.v),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
