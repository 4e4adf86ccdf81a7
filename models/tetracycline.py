"""Two formulations of tetracycline: see the class."""

from torch import exp

import nlmegen as nl


class Tetracycline(nl.Model):
    """Oral tetracycline, one compartment, two formulations as occasions. Time h, amount doses, concentration mcg/mL.

    5 subjects took one dose of each formulation (Pinheiro & Bates 2000, appendix A.30). The source gives no amounts:
    clearance and volume are those of one dose of tetrachel. `relative` is the bioavailability of tetracyn next to it;
    kappa varies it from one occasion to the other.
    """

    tvcl = nl.Theta(0.1, lower=0, unit="dose mL/mcg/h")
    tvv = nl.Theta(0.5, lower=0, unit="dose mL/mcg")
    tvka = nl.Theta(1.0, lower=0, unit="1/h")
    relative = nl.Theta(1.0, lower=0)
    iiv = nl.Omega(cl=0.05)
    iov = nl.Omega(f=0.05, level="occ")
    cp = nl.Proportional(0.2)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov, kappa):
        formulation = 1 + (theta.relative - 1) * cov.form["tetracyn"]
        return dict(cl=theta.tvcl * exp(eta.cl), v=theta.tvv, ka=theta.tvka, f=formulation * exp(kappa.f))

    def dosing(self, p):
        return dict(depot=nl.Dose(bioavailability=p.f))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)
