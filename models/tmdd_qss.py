"""Target-mediated drug disposition in quasi-steady state: see the class."""

from torch import exp, sqrt

import nlmegen as nl


class TmddQss(nl.Model):
    """An antibody and its target, quasi-steady state, intravenous. Time day, amount nmol, concentrations nmol/L.

    The full model (page tmdd) where binding, dissociation and internalisation of the complex balance, with kss =
    (koff + kint) / kon (Gibiansky et al. 2008, J Pharmacokinet Pharmacodyn 35:573-591,
    doi:10.1007/s10928-008-9102-8). central is all drug in the volume v, free and bound; target all target. With b =
    central / v - target - kss:

        C           = (b + sqrt(b^2 + 4 kss central / v)) / 2                 free drug
        complex     = target C / (kss + C)
        central'    = -cl C - q (C - peripheral / v2) - v kint complex
        peripheral' = q (C - peripheral / v2)
        target'     = kdeg (r0 - target) - (kint - kdeg) complex

    Free drug and total target are observed.
    """

    tvcl = nl.Theta(0.25, lower=0, unit="L/day")
    tvv = nl.Theta(3.0, lower=0, unit="L")
    tvq = nl.Theta(0.5, lower=0, unit="L/day")
    tvv2 = nl.Theta(2.5, lower=0, unit="L")
    tvr0 = nl.Theta(10.0, lower=0, unit="nmol/L")
    tvkdeg = nl.Theta(0.8, lower=0, unit="1/day")
    tvkint = nl.Theta(0.15, lower=0, unit="1/day")
    tvkss = nl.Theta(1.0, lower=0, unit="nmol/L")
    iiv = nl.Omega(cl=0.06, v=0.04, r0=0.09, kint=0.06)
    cp = nl.Proportional(0.1, dvid=1)
    rtot = nl.Proportional(0.1, dvid=2)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            q=theta.tvq,
            v2=theta.tvv2,
            r0=theta.tvr0 * exp(eta.r0),
            kdeg=theta.tvkdeg,
            kint=theta.tvkint * exp(eta.kint),
            kss=theta.tvkss,
        )

    def free_drug(self, a, p):
        """Concentration of free drug."""
        total = a.central / p.v
        b = total - a.target - p.kss
        return (b + sqrt(b * b + 4 * p.kss * total)) / 2

    def initial(self, p):
        return dict(target=p.r0)

    def dynamics(self, t, a, p):
        c = self.free_drug(a, p)
        bound = a.target * c / (p.kss + c)
        exchange = p.q * (c - a.peripheral / p.v2)
        return dict(
            central=-p.cl * c - exchange - p.v * p.kint * bound,
            peripheral=exchange,
            target=p.kdeg * (p.r0 - a.target) - (p.kint - p.kdeg) * bound,
        )

    def observe(self, t, a, p):
        return dict(cp=self.free_drug(a, p), rtot=a.target)
