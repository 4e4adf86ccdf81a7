"""An indirect response whose drug effect is learned by a network: see the class."""

from torch import exp, log1p

import nlmegen as nl


class IndirectResponseNeural(nl.Model):
    """Inhibited production with a learned effect that differs between patients. Time h, amount mg, concentration mg/L.

    Intravenous doses into one compartment, C = central / v; a response that is produced at the rate kout base and
    lost at the rate kout response without drug. The drug divides production by 1 + C exp(net(log(1 + C), z1)):

        response' = kout (base / (1 + C exp(net(log(1 + C), z1))) - response)

    A full Emax inhibition is net = -log(ec50), one that stops at emax < 1 a net that falls with C. z1 is a latent
    standard normal number of each patient, whose meaning the network finds for itself: differences in potency, in the
    shape of the effect, or both (its variance is fixed at 1, because the network can stretch it).
    """

    tvcl = nl.Theta(3.0, lower=0, unit="L/h")
    tvv = nl.Theta(30.0, lower=0, unit="L")
    tvbase = nl.Theta(50.0, lower=0)
    tvkout = nl.Theta(0.25, lower=0, unit="1/h")
    iiv = nl.Omega(cl=0.06, v=0.04, base=0.04)
    z = nl.Omega(z1=1.0, fixed=True)
    cp = nl.Proportional(0.1, dvid=1)
    effect = nl.Proportional(0.1, dvid=2)
    net = nl.Neural(inputs=2, hidden=(4,), penalty=0.5)

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            base=theta.tvbase * exp(eta.base),
            kout=theta.tvkout,
            z1=eta.z1,
        )

    def initial(self, p):
        return dict(response=p.base)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        return dict(
            central=-p.cl * c,
            response=p.kout * (p.base / (1 + c * exp(self.net(log1p(c), p.z1))) - a.response),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, effect=a.response)
