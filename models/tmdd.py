"""Target-mediated drug disposition, the full model: see the class."""

from torch import exp

import nlmegen as nl


class Tmdd(nl.Model):
    """An antibody and its target, full binding model, intravenous. Time day, amount nmol, concentrations nmol/L.

    Drug (central, an amount in the volume v; peripheral) binds target to a complex, both concentrations in v (Mager
    & Jusko 2001, J Pharmacokinet Pharmacodyn 28:507-532, doi:10.1023/A:1014414520282). With C = central / v free
    drug:

        bound       = kon C target - koff complex
        central'    = -cl C - q (C - peripheral / v2) - v bound
        peripheral' = q (C - peripheral / v2)
        target'     = kdeg (r0 - target) - bound
        complex'    = bound - kint complex

    kd = koff / kon; before the first dose target = r0 and complex = 0. Free drug and total target are observed.
    Fast binding makes the equations stiff. koff is fixed: concentrations over days say little about the speed of
    binding.
    """

    tvcl = nl.Theta(0.25, lower=0, unit="L/day")
    tvv = nl.Theta(3.0, lower=0, unit="L")
    tvq = nl.Theta(0.5, lower=0, unit="L/day")
    tvv2 = nl.Theta(2.5, lower=0, unit="L")
    tvr0 = nl.Theta(10.0, lower=0, unit="nmol/L")
    tvkdeg = nl.Theta(0.8, lower=0, unit="1/day")
    tvkint = nl.Theta(0.15, lower=0, unit="1/day")
    tvkd = nl.Theta(1.0, lower=0, unit="nmol/L")
    tvkoff = nl.Theta(10.0, lower=0, unit="1/day", fixed=True)
    iiv = nl.Omega(cl=0.06, v=0.04, r0=0.09, kint=0.06)
    cp = nl.Proportional(0.1, dvid=1)
    rtot = nl.Proportional(0.1, dvid=2)
    solver = nl.Solver(method="stiff")

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            q=theta.tvq,
            v2=theta.tvv2,
            r0=theta.tvr0 * exp(eta.r0),
            kdeg=theta.tvkdeg,
            kint=theta.tvkint * exp(eta.kint),
            kon=theta.tvkoff / theta.tvkd,
            koff=theta.tvkoff,
        )

    def initial(self, p):
        return dict(target=p.r0)

    def dynamics(self, t, a, p):
        c = a.central / p.v
        bound = p.kon * c * a.target - p.koff * a.complex
        exchange = p.q * (c - a.peripheral / p.v2)
        return dict(
            central=-p.cl * c - exchange - p.v * bound,
            peripheral=exchange,
            target=p.kdeg * (p.r0 - a.target) - bound,
            complex=bound - p.kint * a.complex,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, rtot=a.target + a.complex)
