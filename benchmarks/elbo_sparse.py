"""Three samples a patient: does ELBO end at the maximum likelihood, does its encoder hold, does the plain bound fail?

The sparse design of a published study: one oral dose of 100, one compartment, CL 3, V 30, ka 1.2, omega_sd .3 / .2
/ .4 (CL, V, ka), log-normal residual .2, samples at 1, 4, 24; 1,000 patients a data set, simulated here with numpy
alone. The maximum likelihood of each data set comes from adaptive quadrature (9 nodes a dimension, laid by
posterior moments), maximised by BFGS from the truth with the gradient of the same integral; a warning is printed
when that search did not end by itself. Then 1,000 patients never seen, the encoder alone: RMS of (q mean -
quadrature mean) / posterior SD, and effective sample size over K at K = 100.

    python benchmarks/elbo_sparse.py [--data 1 2 3] [--seeds 0] [--plain]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import exp

import nlmegen as nl

TIMES = (1.0, 4.0, 24.0)


class Sparse(nl.Model):
    """Oral, one compartment, log-normal error; starts 40 to 70 % off."""

    tvka = nl.Theta(0.8, lower=0)
    tvcl = nl.Theta(5.0, lower=0)
    tvv = nl.Theta(20.0, lower=0)
    iiv = nl.Omega(ka=0.1, cl=0.1, v=0.1)
    cp = nl.LogNormal(0.3)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta, eta, cov):
        return dict(ka=theta.tvka * exp(eta.ka), cl=theta.tvcl * exp(eta.cl), v=theta.tvv * exp(eta.v))

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


def table(seed: int, n: int = 1000) -> pd.DataFrame:
    """The design's data set number `seed`, by numpy alone."""
    g = np.random.default_rng(seed)
    eta = g.normal(size=(n, 3)) * [0.4, 0.3, 0.2]
    ka, cl, v = (np.array([1.2, 3.0, 30.0]) * np.exp(eta)).T[:, :, None]
    t, k = np.array(TIMES)[None], cl / v
    f = 100 * ka / (v * (ka - k)) * (np.exp(-k * t) - np.exp(-ka * t))
    y = f * np.exp(0.2 * g.normal(size=f.shape))
    doses = pd.DataFrame(
        {"ID": range(1, n + 1), "TIME": 0.0, "AMT": 100.0, "DV": 0.0, "EVID": 1, "MDV": 1, "CMT": 1}
    )
    samples = pd.DataFrame(
        {
            "ID": np.repeat(np.arange(1, n + 1), len(TIMES)),
            "TIME": np.tile(TIMES, n),
            "AMT": 0.0,
            "DV": y.ravel(),
            "EVID": 0,
            "MDV": 0,
            "CMT": 2,
        }
    )
    return pd.concat([doses, samples]).sort_values(["ID", "TIME"], kind="stable")


def maximum_likelihood(problem: nl.Problem, free: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The maximum of the 9-node quadrature and -2 log L there; gradient by central differences of the integral."""

    def value(x: np.ndarray) -> float:
        return -nl.quadrature(problem, problem.values(torch.tensor(x)), 9, rounds=1).total

    def gradient(x: np.ndarray) -> np.ndarray:
        steps = 1e-3 * np.eye(len(x))
        return np.array([(value(x + h) - value(x - h)) / 2e-3 for h in steps])

    found = minimize(value, free.numpy(), jac=gradient, method="BFGS", options={"gtol": 0.03, "maxiter": 60})
    if not found.success:
        promise = float(found.jac @ found.hess_inv @ found.jac)  # twice half the Newton decrement, in -2LL
        print(
            f"WARNING: the reference optimum is not certain ({found.message}): largest gradient"
            f" {np.abs(found.jac).max():.3g}, a further decrease of -2LL by about {promise:.2g} is promised",
            flush=True,
        )
    return torch.tensor(found.x), 2 * found.fun


def judge(encoder: Any, problem: nl.Problem, free: torch.Tensor) -> str:
    """The encoder on patients it never saw, nothing refined."""
    values = problem.values(free)
    truth = nl.quadrature(problem, values, 11, rounds=2)
    sd = truth.cov.diagonal(dim1=-2, dim2=-1).sqrt()
    mean, _ = encoder.approximate(problem, values, widen=1.0).moments()
    rms = float((((mean - truth.mean) / sd) ** 2).mean().sqrt())
    ess = encoder.posterior(problem, values, k=100, seed=7).ess / 100
    low = [float(ess.quantile(q)) for q in (0.5, 0.05, 0.0)]
    return f"RMS {rms:.3f}, ESS/K median {low[0]:.3f}, 5th percentile {low[1]:.3f}, least {low[2]:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plain", action="store_true", help="also the plain bound")
    args = parser.parse_args()
    torch.set_num_threads(1)
    new = nl.Problem(Sparse(), nl.read_nonmem(table(900)))
    for number in args.data:
        problem = nl.Problem(Sparse(), nl.read_nonmem(table(number)))
        best, optimum = maximum_likelihood(problem, torch.tensor(np.log([1.2, 3, 30, 0.4, 0.3, 0.2, 0.2])))
        print(f"data {number}: maximum likelihood -2LL {optimum:.3f}, {np.round(best.exp().numpy(), 4)}")
        for method in [nl.ELBO(seed=s) for s in args.seeds] + [nl.ELBO(objective="elbo")] * args.plain:
            before = time.process_time()
            found = method.estimate(problem)
            seconds = time.process_time() - before
            judged = -2 * nl.quadrature(problem, problem.values(found.free), 9, rounds=1).total
            off = 100 * ((found.free - best).exp() - 1)
            shown = " ".join(f"{k} {v:+.2f}" for k, v in zip(problem.names, off.tolist(), strict=True))
            print(
                f"  {method.objective} seed {method.seed}: {seconds:.1f} CPU s, "
                f"-2LL over the optimum {judged - optimum:+.3f}; "
                f"off the maximum, %: {shown}{'' if found.converged else ' NOT CONVERGED'}",
                flush=True,
            )
            print(f"    1,000 new patients: {judge(found.encoder, new, found.free)}", flush=True)


if __name__ == "__main__":
    main()
