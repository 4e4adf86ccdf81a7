"""Indomethacin after an intravenous bolus: see the class."""

from torch import exp

import nlmegen as nl


class Indomethacin(nl.Model):
    """Intravenous indomethacin, two compartments. Time h, amount mg, concentration mg/L.

    Six volunteers, one bolus of 25 mg each, eleven samples over 8 h (Kwan et al. 1976, J Pharmacokinet Biopharm
    4:255-280, doi:10.1007/BF01063617). The volume has no random effect: six subjects do not determine a fourth one.
    """

    tvcl = nl.Theta(8.0, lower=0, unit="L/h")
    tvv = nl.Theta(9.0, lower=0, unit="L")
    tvq = nl.Theta(5.5, lower=0, unit="L/h")
    tvv2 = nl.Theta(19.0, lower=0, unit="L")
    iiv = nl.Omega(cl=0.04, q=0.1, v2=0.06)
    cp = nl.Proportional(0.15)
    structure = nl.TwoCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv,
            q=theta.tvq * exp(eta.q),
            v2=theta.tvv2 * exp(eta.v2),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
