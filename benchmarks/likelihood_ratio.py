"""Does the likelihood-ratio test keep its level when variances are tested at 0? Data simulated from the small page.

    python benchmarks/likelihood_ratio.py [--replicates 400] [--first 0] [--subjects 60] [--cases slope block both]

Each replicate: patients with five observations of a straight line each (linear in its random effects, so that FOCEI is
maximum likelihood), simulated from the small page and fitted by both.

    slope    a variance of the slope, independent of the intercept's          1/2 chi2(0) + 1/2 chi2(1)
    block    the same with its covariance                                     1/2 chi2(1) + 1/2 chi2(2)
    both     intercept and slope against no random effect                     weights from the information
    theta    a fixed slope, whose value is inside its range                   chi2(1)

Prints the share of statistics that are zero (below 1e-4), and the shares of p under 10 and 5 % with their 95 % binomial
interval, by the test's own distribution and by the plain chi-square with as many degrees of freedom as parameters.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, chi2

import nlmegen as nl

TIMES = (0.5, 1.0, 2.0, 3.0, 4.0)
SD, BASE, SLOPE = 0.4, 1.0, 0.5


class Line(nl.Model):
    """y = base + slope t + eps."""

    tvb = nl.Theta(BASE)
    tvs = nl.Theta(SLOPE)
    cp = nl.Additive(SD)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb, slope=theta.tvs, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.base + p.slope * t)


class Intercept(Line):
    """A random intercept."""

    iiv = nl.Omega(b=0.3)

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb + eta.b, slope=theta.tvs, cl=1.0, v=1.0)


class Held(Intercept):
    """A random intercept, and a slope that is known."""

    tvs = nl.Theta(SLOPE, fixed=True)


class Both(Line):
    """Random intercept and slope."""

    iiv = nl.Omega(b=0.3, s=0.02)

    def individual(self, theta, eta, cov):
        return dict(base=theta.tvb + eta.b, slope=theta.tvs + eta.s, cl=1.0, v=1.0)


class Block(Both):
    """Random intercept and slope, correlated."""

    iiv = nl.Omega(b=0.3, s=0.02, cov=[0.0])


CASES = {
    "slope": (Intercept, Both),
    "block": (Intercept, Block),
    "both": (Line, Both),
    "theta": (Held, Intercept),
}


def simulated(small: type[nl.Model], subjects: int, seed: int) -> nl.Population:
    """Data of the small page at its declared values."""
    random = np.random.default_rng(seed)
    sd_b = 0.0 if small is Line else 0.3**0.5
    rows = []
    for i in range(subjects):
        base = BASE + sd_b * random.standard_normal()
        rows.append({"ID": i + 1, "TIME": 0.0, "AMT": 1.0, "DV": 0.0, "EVID": 1})
        for t in TIMES:
            y = base + SLOPE * t + SD * random.standard_normal()
            rows.append({"ID": i + 1, "TIME": t, "AMT": 0.0, "DV": y, "EVID": 0})
    return nl.read_nonmem(pd.DataFrame(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="seed of the first replicate")
    parser.add_argument("--subjects", type=int, default=60)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    method = nl.FOCEI(covariance=None)
    print(f"{args.replicates} replicates of {args.subjects} subjects")
    print(f"{'case':8s}{'zero':>8s}{'p < .10':>28s}{'p < .05':>28s}{'plain p < .05':>28s}{'CPU s':>8s}")
    for case in args.cases:
        small, large = CASES[case]
        before = time.process_time()
        tests = []
        for seed in range(args.first, args.first + args.replicates):
            data = simulated(small, args.subjects, seed)
            pages = [nl.fit(page, data, method) for page in (small, large)]
            tests.append(nl.likelihood_ratio(*pages, arbiter="own"))
        p = np.array([test.p for test in tests])
        statistic = np.array([test.statistic for test in tests])
        plain = np.where(statistic > 0, chi2.sf(statistic.clip(min=0), tests[0].df), 1.0)
        shares = "".join(f"{share(x):>28s}" for x in (p < 0.10, p < 0.05, plain < 0.05))
        seconds = time.process_time() - before
        print(f"{case:8s}{(statistic < 1e-4).mean():8.3f}{shares}{seconds:8.1f}", flush=True)


def share(hits: np.ndarray) -> str:
    """A share with its exact binomial interval."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95)
    return f"{hits.mean():.3f} ({interval.low:.3f} to {interval.high:.3f})"


if __name__ == "__main__":
    main()
