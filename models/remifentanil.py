"""Remifentanil infusions in adults: see the class."""

from torch import exp

import nlmegen as nl


class Remifentanil(nl.Model):
    """Remifentanil by infusion, three compartments, age and lean body mass. Time min, amount ug, concentration ug/L.

    65 adults of 20 to 85 years, infusions of 4 to 20 minutes, arterial samples (Minto et al. 1997, Anesthesiology
    86:10-23, doi:10.1097/00000542-199701000-00004). Typical values are straight lines in age (years) about 40 and
    in lean body mass (kg) about 55; all declared fixed effects are those published there.
    """

    tvcl = nl.Theta(2.6, lower=0, unit="L/min")
    tvv = nl.Theta(5.1, lower=0, unit="L")
    tvq = nl.Theta(2.05, lower=0, unit="L/min")
    tvv2 = nl.Theta(9.82, lower=0, unit="L")
    tvq3 = nl.Theta(0.076, lower=0, unit="L/min")
    tvv3 = nl.Theta(5.42, lower=0, unit="L")
    cl_age = nl.Theta(-0.0162, unit="L/min/year")
    v_age = nl.Theta(-0.0201, unit="L/year")
    q_age = nl.Theta(-0.0301, unit="L/min/year")
    v2_age = nl.Theta(-0.0811, unit="L/year")
    q3_age = nl.Theta(-0.00113, unit="L/min/year")
    cl_lbm = nl.Theta(0.0191, unit="L/min/kg")
    v_lbm = nl.Theta(0.072, unit="L/kg")
    v2_lbm = nl.Theta(0.108, unit="L/kg")
    iiv = nl.Omega(cl=0.02, v=0.06, q=0.13, v2=0.09, q3=0.2, v3=0.4)
    cp = nl.Proportional(0.12)
    structure = nl.ThreeCompartment()

    def individual(self, theta, eta, cov):
        age, lbm = cov.age - 40, cov.lbm - 55
        return dict(
            cl=(theta.tvcl + theta.cl_age * age + theta.cl_lbm * lbm) * exp(eta.cl),
            v=(theta.tvv + theta.v_age * age + theta.v_lbm * lbm) * exp(eta.v),
            q=(theta.tvq + theta.q_age * age) * exp(eta.q),
            v2=(theta.tvv2 + theta.v2_age * age + theta.v2_lbm * lbm) * exp(eta.v2),
            q3=(theta.tvq3 + theta.q3_age * age) * exp(eta.q3),
            v3=theta.tvv3 * exp(eta.v3),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
