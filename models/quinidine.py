"""Quinidine in patients with arrhythmia: see the class."""

from torch import exp

import nlmegen as nl


class Quinidine(nl.Model):
    """Oral quinidine, one compartment, no covariates. Time h, amount mg, concentration mg/L.

    136 men treated for arrhythmia, routine data, many records at steady state (Verme et al. 1992, Clin Pharmacokinet
    22:468-480, doi:10.2165/00003088-199222060-00005). The basic model of Pinheiro & Bates (2000, section 8.2): additive
    error, random effects of clearance and volume.
    """

    tvcl = nl.Theta(12.0, lower=0, unit="L/h")
    tvv = nl.Theta(230.0, lower=0, unit="L")
    tvka = nl.Theta(0.8, lower=0, unit="1/h")
    iiv = nl.Omega(cl=0.1, v=0.1)
    cp = nl.Additive(0.7)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v), ka=theta.tvka)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
