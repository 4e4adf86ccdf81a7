"""Quinidine with the covariates of its clearance: see the class."""

from torch import exp

import nlmegen as nl


class QuinidineCovariates(nl.Model):
    """Oral quinidine, one compartment, covariates of clearance. Time h, amount mg, concentration mg/L.

    The model `quinidine` with a clearance that falls with the concentration of alpha-1-acid glycoprotein, which binds
    the drug and varies within a patient (aag, mg/dL in tens; exponential, about 1.2), and that differs by the fraction
    `renal` where creatinine clearance is below 50 mL/min (crcl "low"). Data and source as there.
    """

    tvcl = nl.Theta(12.0, lower=0, unit="L/h")
    tvv = nl.Theta(230.0, lower=0, unit="L")
    tvka = nl.Theta(0.8, lower=0, unit="1/h")
    binding = nl.Theta(-0.3)
    renal = nl.Theta(-0.1, lower=-1)
    iiv = nl.Omega(cl=0.1, v=0.1)
    cp = nl.Additive(0.7)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        bound = exp(theta.binding * (cov.aag - 1.2))
        kidneys = 1 + theta.renal * cov.crcl["low"]
        return dict(cl=theta.tvcl * bound * kidneys * exp(eta.cl), v=theta.tvv * exp(eta.v), ka=theta.tvka)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
