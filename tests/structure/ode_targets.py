"""Pages of target-mediated drug disposition, each with its equations once more in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import exp, sqrt

import nlmegen as nl


class QuasiSteady(nl.Model):
    """Target-mediated disposition, binding at quasi-steady state (Gibiansky 2008, doi:10.1007/s10928-008-9102-8)."""

    tvkel, tvkss, tvksyn = nl.Theta(0.1, lower=0), nl.Theta(3.0, lower=0), nl.Theta(2.0, lower=0)
    tvkdeg, tvkint, tvv = nl.Theta(0.2, lower=0), nl.Theta(0.06, lower=0), nl.Theta(3.0, lower=0)
    iiv = nl.Omega(kel=0.1, kss=0.1, ksyn=0.1)
    cp = nl.Additive(1.0, dvid=1)
    target = nl.Additive(1.0, dvid=2)

    def individual(self, theta, eta, cov):
        return dict(
            kel=theta.tvkel * exp(eta.kel),
            kss=theta.tvkss * exp(eta.kss),
            ksyn=theta.tvksyn * exp(eta.ksyn),
            kdeg=theta.tvkdeg,
            kint=theta.tvkint,
            v=theta.tvv,
        )

    def initial(self, p):
        return dict(target=p.ksyn / p.kdeg)

    def dynamics(self, t, a, p):
        total = a.central / p.v
        excess = total - a.target - p.kss
        free = 0.5 * (excess + sqrt(excess**2 + 4 * p.kss * total))
        bound = a.target * free / (p.kss + free)
        return dict(
            central=-p.v * (p.kel * free + p.kint * bound),
            target=p.ksyn - p.kdeg * a.target - (p.kint - p.kdeg) * bound,
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v, target=a.target)


def quasi_steady(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    total, target = a[0] / p.v, a[1]
    b = target + p.kss - total  # C^2 + b C - kss total = 0, both signs of b in one root
    root = np.sqrt(b * b + 4 * p.kss * total)
    free = (root - b) / 2
    bound = total - free
    return [
        -p.v * p.kel * free - p.v * p.kint * bound,
        p.ksyn - p.kdeg * (target - bound) - p.kint * bound,
    ]


class Binding(nl.Model):
    """Target-mediated disposition in full (Mager & Jusko 2001, doi:10.1023/A:1014414520282).

    Amounts are concentrations.
    """

    tvkel, tvkon, tvksyn = nl.Theta(0.1, lower=0), nl.Theta(0.08, lower=0), nl.Theta(2.0, lower=0)
    tvkoff, tvkdeg, tvkint = nl.Theta(0.2, lower=0), nl.Theta(0.2, lower=0), nl.Theta(0.06, lower=0)
    iiv = nl.Omega(kel=0.1, kon=0.1, ksyn=0.1)
    cp = nl.Additive(1.0, dvid=1)
    target = nl.Additive(1.0, dvid=2)

    def individual(self, theta, eta, cov):
        return dict(
            kel=theta.tvkel * exp(eta.kel),
            kon=theta.tvkon * exp(eta.kon),
            ksyn=theta.tvksyn * exp(eta.ksyn),
            koff=theta.tvkoff,
            kdeg=theta.tvkdeg,
            kint=theta.tvkint,
        )

    def initial(self, p):
        return dict(target=p.ksyn / p.kdeg)

    def dynamics(self, t, a, p):
        binding = p.kon * a.drug * a.target - p.koff * a.bound
        return dict(
            drug=-p.kel * a.drug - binding,
            target=p.ksyn - p.kdeg * a.target - binding,
            bound=binding - p.kint * a.bound,
        )

    def observe(self, t, a, p):
        return dict(cp=a.drug + a.bound, target=a.target)


class StiffBinding(Binding):
    """The same with binding and release a thousand times faster."""

    tvkon, tvkoff = nl.Theta(80.0, lower=0), nl.Theta(200.0, lower=0)


def binding(t: Any, a: Sequence[Any], p: Any) -> list[Any]:
    drug, target, bound = a
    on, off = p.kon * drug * target, p.koff * bound
    return [
        off - on - p.kel * drug,
        p.ksyn + off - on - p.kdeg * target,
        on - off - p.kint * bound,
    ]
