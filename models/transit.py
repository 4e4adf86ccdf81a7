"""Absorption through transit compartments: see the class."""

from torch import exp

import nlmegen as nl


class Transit(nl.Model):
    """Oral doses through four transit compartments, one compartment. Time h, amount mg, concentration mg/L.

    The dose enters the first of n + 1 = 5 equal steps (the depot and n = 4 transit compartments), each left at the
    rate ktr = (n + 1) / mtt, mtt the mean transit time; then follow first-order absorption (ka) and elimination
    (Savic et al. 2007, J Pharmacokinet Pharmacodyn 34:711-726, doi:10.1007/s10928-007-9066-0, there with a
    continuous n). The chain is written out, so that any number of doses may overlap.
    """

    tvmtt = nl.Theta(1.5, lower=0, unit="h")
    tvka = nl.Theta(1.0, lower=0, unit="1/h")
    tvcl = nl.Theta(5.0, lower=0, unit="L/h")
    tvv = nl.Theta(40.0, lower=0, unit="L")
    iiv = nl.Omega(mtt=0.09, ka=0.09, cl=0.09, v=0.04)
    cp = nl.Proportional(0.1)

    def individual(self, theta, eta, cov):
        return dict(
            ktr=5 / (theta.tvmtt * exp(eta.mtt)),
            ka=theta.tvka * exp(eta.ka),
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
        )

    def dynamics(self, t, a, p):
        return dict(
            depot=-p.ktr * a.depot,
            transit1=p.ktr * (a.depot - a.transit1),
            transit2=p.ktr * (a.transit1 - a.transit2),
            transit3=p.ktr * (a.transit2 - a.transit3),
            transit4=p.ktr * (a.transit3 - a.transit4),
            gut=p.ktr * a.transit4 - p.ka * a.gut,
            central=p.ka * a.gut - p.cl / p.v * a.central,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
