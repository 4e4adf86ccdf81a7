"""Warfarin and its effect on prothrombin: see the class."""

from torch import exp

import nlmegen as nl


class Warfarin(nl.Model):
    """Oral warfarin with a transit, and the prothrombin complex activity it lowers. Time h, amount mg, mg/L and %.

    Absorption through one transit compartment, one compartment of disposition, and a turnover of prothrombin complex
    activity whose production is inhibited: an indirect response with a baseline. Values by FOCEI on 32 volunteers
    (O'Reilly, Aggeler & Leong 1963, doi:10.1172/JCI104839, and O'Reilly & Aggeler 1968, doi:10.1161/01.CIR.38.1.169;
    OpenPKPD's validation of nlmixr2). Endpoints cp (DVID cp or 1) and pca (DVID pca or 2).
    """

    tvktr = nl.Theta(1.0006, lower=0, unit="1/h")
    tvka = nl.Theta(1.0963, lower=0, unit="1/h")
    tvcl = nl.Theta(0.1359, lower=0, unit="L/h")
    tvv = nl.Theta(8.0003, lower=0, unit="L")
    emax = nl.Theta(0.999, lower=0, upper=1)
    tvec50 = nl.Theta(1.1609, lower=0, unit="mg/L")
    tvkout = nl.Theta(0.0525, lower=0, unit="1/h")
    tve0 = nl.Theta(96.549, lower=0, unit="%")
    iiv = nl.Omega(cl=0.0807, v=0.0626, ec50=0.2145, kout=0.0247, e0=0.0041)
    cp = nl.Combined(additive=0.4792, proportional=0.1649)
    pca = nl.Additive(3.5741)

    def individual(self, theta, eta, cov):
        return dict(
            ktr=theta.tvktr,
            ka=theta.tvka,
            cl=theta.tvcl * exp(eta.cl),
            v=theta.tvv * exp(eta.v),
            emax=theta.emax,
            ec50=theta.tvec50 * exp(eta.ec50),
            kout=theta.tvkout * exp(eta.kout),
            e0=theta.tve0 * exp(eta.e0),
        )

    def dynamics(self, t, a, p):
        c = a.central / p.v
        production = p.kout * p.e0 * (1 - p.emax * c / (p.ec50 + c))
        return dict(
            depot=-p.ktr * a.depot,
            transit=p.ktr * a.depot - p.ka * a.transit,
            central=p.ka * a.transit - p.cl / p.v * a.central,
            effect=production - p.kout * a.effect,
        )

    def initial(self, p):
        return dict(effect=p.e0)

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, pca=a.effect)
