"""Elimination learned by a network: see the class."""

from torch import exp, log1p

import nlmegen as nl


class MichaelisMentenNeural(nl.Model):
    """Intravenous doses, one compartment, a clearance that a network learns. Time h, amount mg, concentration mg/L.

    With C = central / v, the drug leaves at the rate

        cl C exp(net(log(1 + C))) ,        cl = start exp(eta.cl) ,

    whatever its dependence on C: a network for the page michaelis_menten, whose clearance is vmax / (km + C), when
    that form is not known. The typical rate at concentration C is start C exp(net(log(1 + C))). `start` is a rough
    guess in the unit of a clearance; it stays fixed, because the network's own constant would make up for any other.
    The network is small and carries a penalty: it is to bend with the data of all patients and not with their noise.
    Its softplus units go on as straight lines, so that beyond the data clearance goes on as a power of concentration.
    """

    start = nl.Theta(2.0, lower=0, fixed=True, unit="L/h")
    tvv = nl.Theta(25.0, lower=0, unit="L")
    iiv = nl.Omega(cl=0.09, v=0.04)
    cp = nl.LogNormal(0.3)
    net = nl.Neural(inputs=1, hidden=(3,), activation="softplus", penalty=1.0)

    def individual(self, theta, eta, cov):
        return dict(cl=theta.start * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(central=-p.cl * c * exp(self.net(log1p(c))))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
