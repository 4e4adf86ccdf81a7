"""Do the ODE pages of the catalogue recover the parameters they were simulated with, and how long does a fit take?

    python benchmarks/ode_pages.py [--pages michaelis_menten ...] [--cohorts 10] [--n 60]

Each cohort: n patients at three dose levels, simulated from the page as declared (seed = number of the cohort +
1000 x the place of the page below, so that no two pages share their noise) and fitted by FOCEI from typical
values a quarter off, up and down in turn. z = (estimate - truth) / SE on the free (log) scale, with the
standard errors of the Hessian; over C cohorts its mean should lie within about +- 2 / sqrt(C), its standard
deviation near 1, and a share near .9 of all z within +- 1.645. CPU seconds are those of the second and later
fits (median) and, apart, of the first one, which compiles the page unless its code is in the cache.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import torch

import nlmegen as nl

PK = (0.5, 1, 2, 4, 8, 12, 18, 24)
DESIGNS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "michaelis_menten": ((150, 300, 600), (0.5, 4, 12, 24, 36, 48, 60)),
    "transit": ((50, 100, 200), (0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 8, 12, 16, 24)),
    "turnover_inhibited_production": ((30, 100, 300), PK),
    "turnover_inhibited_loss": ((30, 100, 300), PK),
    "turnover_stimulated_production": ((30, 100, 300), PK),
    "turnover_stimulated_loss": ((30, 100, 300), PK),
    "tmdd_qss": ((100, 500, 2000), (0.1, 1, 2, 4, 7, 10, 14, 21)),
    "tmdd": ((100, 500, 2000), (0.1, 1, 2, 4, 7, 10, 14, 21)),
}
"""Doses of the three arms and sampling times, of every endpoint, by page."""


def elsewhere(model: nl.Model) -> nl.Model:
    """The page with its free typical values a quarter off (what has an upper bound stays)."""
    free = [k for k, v in model.layout.thetas.items() if not v.fixed and v.upper is None]
    return model.with_values(
        theta={name: float(model.theta[name]) * (1.25 if k % 2 else 0.8) for k, name in enumerate(free)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--cohorts", type=int, default=10)
    parser.add_argument("--n", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    head = ("page", "fits", "records", "P", "first s", "later s", "sd z", "within 90 %", "worst mean z")
    print(f"{head[0]:<32}" + "".join(f"{h:>15}" for h in head[1:]))
    for page in args.pages:
        doses, times = DESIGNS[page]
        model = nl.load_model(page)
        arms = {f"{dose:g}": nl.Regimen(dose) for dose in doses}
        seconds, scores, records = [], [], 0
        for seed in range(first := 1000 * list(DESIGNS).index(page), first + args.cohorts):
            data = nl.read_nonmem(nl.simulate(model, nl.Cohort(args.n, arms, times=times), seed=seed))
            before = time.process_time()
            fit = nl.fit(elsewhere(model), data, nl.FOCEI(covariance="R"))
            seconds.append(time.process_time() - before)
            records = data.n_observations
            if fit.estimate.covariance is None:
                print(f"{page}: cohort {seed - first} left out: {fit.reason}")
                continue
            off = fit.estimate.free - nl.Problem(model, data).start
            scores.append(off / fit.estimate.covariance.diagonal().sqrt())
        if not scores:
            continue
        z = torch.stack(scores)
        later = statistics.median(seconds[1:]) if len(seconds) > 1 else math.nan
        inside = float((z.abs() < 1.645).double().mean())
        means = dict(zip(nl.Problem(model, data).names, z.mean(0).tolist(), strict=True))
        worst = max(means, key=lambda name: abs(means[name]))
        print(
            f"{page:<32}{len(scores):>15}{records:>15}{z.shape[1]:>15}{seconds[0]:>15.2f}{later:>15.2f}"
            f"{float(z.std()):>15.2f}{inside:>15.2f}{means[worst]:>15.2f} {worst}",
            flush=True,
        )


if __name__ == "__main__":
    main()
