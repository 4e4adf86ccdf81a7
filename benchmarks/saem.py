"""Does SAEM end at the maximum likelihood, and how long does it take on one thread?

For each case and seed: CPU seconds of the estimation after import, likelihood and standard errors included, and how
many times faster that is than the peers on theophylline (saemix 3.4: 1.1 s; nlmixr2est 7.0.2: 3.5 s, both measured on
a machine of this kind); -2 log L by 9-node quadrature at the estimates, above the independently known optimum; the
estimates (thetas natural, SDs of random effects, residual SDs).

    python benchmarks/saem.py [--seeds 3] [--warfarin warfarin.csv]

The warfarin table has columns id, time, amt, dv, dvid ("cp" and another endpoint), evid.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import pandas as pd
import torch
from torch import exp

import nlmegen as nl

PEERS = {"saemix": 1.1, "nlmixr2": 3.5}


class Warfarin(nl.Model):
    """Oral warfarin, one compartment. Time h, amount mg, concentration mg/L."""

    tvka = nl.Theta(1.0, lower=0, unit="1/h")
    tvcl = nl.Theta(0.13, lower=0, unit="L/h")
    tvv = nl.Theta(8.0, lower=0, unit="L")
    iiv = nl.Omega(ka=0.5, cl=0.1, v=0.05)
    cp = nl.Combined(additive=0.7, proportional=0.1)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta: Any, eta: Any, cov: Any) -> dict[str, Any]:
        return dict(ka=theta.tvka * exp(eta.ka), cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(cp=a.central / p.v)


def warfarin(path: str) -> nl.Population:
    """The pharmacokinetic part of the table."""
    table = pd.read_csv(path)
    table = table[table.dvid == "cp"].drop(columns="dvid")
    return nl.read_nonmem(table.select_dtypes("number"))


def with_declarations(name: str, **changes: Any) -> nl.Model:
    """A catalogue page with some of its declarations replaced."""
    page = type(nl.load_model(name))
    changed = type(page.__name__, (page,), {"__module__": __name__, "__doc__": page.__doc__, **changes})
    model: nl.Model = changed()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--warfarin", help="path of the warfarin table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    theophylline = nl.load_data("theophylline")
    cases = {
        "theophylline, additive": (
            with_declarations("theophylline", cp=nl.Additive(1.0)),
            theophylline,
            360.7015,
        ),
        "theophylline, combined": (nl.load_model("theophylline"), theophylline, 347.1042),
        "phenobarbital": (nl.load_model("phenobarbital"), nl.load_data("phenobarbital"), 870.7745),
    }
    if args.warfarin:
        cases["warfarin, combined"] = (Warfarin(), warfarin(args.warfarin), 886.3169)
    nl.SAEM(max_iterations=30).estimate(nl.Problem(Warfarin(), theophylline))  # what torch loads at first use
    print(f"{'case':<24}{'seed':>5}{'CPU s':>8}{'sweeps':>8}{'over optimum':>14}   times faster, estimates")
    for title, (model, data, optimum) in cases.items():
        problem = nl.Problem(model, data)
        for seed in range(args.seeds):
            before = time.process_time()
            found = nl.SAEM(seed=seed).estimate(problem)
            seconds = time.process_time() - before
            values = problem.values(found.free)
            judged = -2 * nl.quadrature(problem, values, 9).total
            numbers = [
                float(x)
                for x in (*values.theta.values(), *values.omega.diagonal().sqrt(), *values.sigma.values())
            ]
            faster = ", ".join(f"{name} {peer / seconds:.1f}" for name, peer in PEERS.items())
            print(
                f"{title:<24}{seed:>5}{seconds:>8.2f}{found.iterations:>8}{judged - optimum:>14.4f}   "
                f"{faster if title.startswith('theo') else '':<24}{' '.join(f'{x:.5g}' for x in numbers)}"
                f"{'' if found.converged else '  NOT CONVERGED'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
