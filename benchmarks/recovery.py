"""Do the methods recover known parameters? Cohorts simulated from the theophylline page, refitted; z-scores of the
estimates.

    python benchmarks/recovery.py [--cohorts 20] [--n 200] [--methods elbo focei]

Each cohort: 200 patients, one oral dose of 320 mg, 11 samples over 24 h, combined error, simulated (seed = number
of the cohort) at the maximum likelihood of the real data. For each parameter on the free (log) scale z = (estimate
- truth) / SE with the fit's own sandwich standard error; over C cohorts an unbiased method has mean z within about
+- 2 / sqrt(C) and standard deviation of z near 1. Prints one row a cohort as it goes, then the table. A fit without
standard errors (not converged, or R not positive definite) has no z: it is counted as failed and left out.
"""

from __future__ import annotations

import argparse
import time

import pandas as pd
import torch

import nlmegen as nl

TIMES = (0.0, 0.27, 0.52, 1.0, 1.9, 3.5, 5.0, 7.0, 9.0, 12.0, 24.0)
TRUTH = {
    "theta": {"tvka": 1.49843, "tvcl": 2.75771, "tvv": 31.81729},
    "omega": {"ka": 0.63223**2, "cl": 0.25535**2, "v": 0.12261**2},
    "sigma": {"cp.additive": 0.26113, "cp.proportional": 0.13688},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cohorts", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first cohort")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=["elbo", "focei"], choices=["elbo", "focei"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = nl.load_model("theophylline")
    truth = start.with_values(**TRUTH)
    cohort = nl.Cohort(args.n, nl.Regimen(320), times=TIMES)
    rows, failed = [], dict.fromkeys(args.methods, 0)
    for seed in range(args.first, args.first + args.cohorts):
        data = nl.read_nonmem(nl.simulate(truth, cohort, seed=seed))
        target = nl.Problem(truth, data).start
        for name in args.methods:
            method = nl.ELBO(seed=seed) if name == "elbo" else nl.FOCEI()
            before = time.process_time()
            fit = nl.fit(start, data, method)
            seconds = time.process_time() - before
            if fit.estimate.covariance is None:
                failed[name] += 1
                print(f"{name:5s} cohort {seed:2d} {seconds:6.1f} s FAILED, no z: {fit.reason}", flush=True)
                continue
            z = (fit.estimate.free - target) / fit.estimate.covariance.diagonal().sqrt()
            row = dict(zip(fit.problem.names, z.tolist(), strict=True))
            rows.append({"method": name, "cohort": seed, "seconds": seconds, **row})
            shown = " ".join(f"{k} {v:+.2f}" for k, v in row.items())
            print(
                f"{name:5s} cohort {seed:2d} {seconds:6.1f} s {'' if fit.converged else 'NOT CONVERGED '}{shown}",
                flush=True,
            )
    for name, count in failed.items():
        if count:
            print(f"{name}: {count} of {args.cohorts} fits failed, and are missing below")
    if not rows:
        return
    table = pd.DataFrame(rows).set_index(["method", "cohort"])
    summary = table.groupby("method").agg(["mean", "std"]).T.unstack()
    print(
        f"\nz-scores over {args.cohorts} cohorts (mean should lie within +-0.7 for elbo), CPU seconds a fit"
    )
    print(summary.to_string(float_format=lambda x: f"{x:.2f}"))


if __name__ == "__main__":
    main()
