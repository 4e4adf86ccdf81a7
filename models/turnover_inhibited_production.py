"""A response whose production the drug inhibits: see the class."""

from torch import exp

import nlmegen as nl


class TurnoverInhibitedProduction(nl.Model):
    """Indirect response I: the drug inhibits production. Time h, amount mg, concentration mg/L.

    Intravenous doses into one compartment, C = central / v; a response that is produced at the rate kin and lost at
    the rate kout response, and stands at base = kin / kout without drug (the unit of the response is free):

        response' = kin (1 - emax C / (ec50 + C)) - kout response

    The four basic indirect responses of Dayneka, Garg & Jusko 1993 (J Pharmacokinet Biopharm 21:457-478,
    doi:10.1007/BF01061691); the other three (turnover_inhibited_loss, turnover_stimulated_production,
    turnover_stimulated_loss) are subclasses of this page.
    """

    tvcl = nl.Theta(3.0, lower=0, unit="L/h")
    tvv = nl.Theta(30.0, lower=0, unit="L")
    tvbase = nl.Theta(50.0, lower=0)
    tvkout = nl.Theta(0.25, lower=0, unit="1/h")
    tvemax = nl.Theta(0.9, lower=0, upper=1)
    tvec50 = nl.Theta(1.0, lower=0, unit="mg/L")
    iiv = nl.Omega(cl=0.06, v=0.04, base=0.04, kout=0.06, ec50=0.09)
    cp = nl.Proportional(0.1, dvid=1)
    effect = nl.Proportional(0.05, dvid=2)

    def individual(self, theta, eta, cov):
        base, kout = theta.tvbase * exp(eta.base), theta.tvkout * exp(eta.kout)
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            base=base,
            kin=base * kout,
            kout=kout,
            emax=theta.tvemax,
            ec50=theta.tvec50 * exp(eta.ec50),
        )

    def saturation(self, a, p):
        """The share of emax that the drug exerts."""
        return a.central / (p.ec50 * p.v + a.central)

    def production(self, a, p):
        """What is produced in a unit of time."""
        return p.kin * (1 - p.emax * self.saturation(a, p))

    def loss(self, a, p):
        """What is lost in a unit of time."""
        return p.kout * a.response

    def initial(self, p):
        return dict(response=p.base)

    def dynamics(self, t, a, p):
        return dict(
            central=-p.cl / p.v * a.central,
            response=self.production(a, p) - self.loss(a, p),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, effect=a.response)
