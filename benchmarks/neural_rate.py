"""Does a network on a page learn Michaelis-Menten elimination? Simulated patients, three seeds, FOCEI and ELBO.

    python benchmarks/neural_rate.py [--n 120] [--seeds 3] [--methods focei elbo] [--doses 300] [--held-out 200]

Truth: one compartment, IV bolus, Vmax 8, Km 2, V 30, omega_sd .3 (Vmax) and .2 (V), samples at 0.5, 4, 12, 24, 36, 48
and 60 h, log-normal error .2; the patients take the doses in turn. The page michaelis_menten_neural is fitted to each
cohort, and so is, by FOCEI, the page with the true structure. One row a fit:

    rate      largest error of the learned typical rate, percent, over 101 concentrations from the 5th to the 95th
              percentile of those observed; the same of the true structure's estimate, and between the two
    held out  largest error of the typical profile at a dose that nobody took, in percent of the profile's peak (what is
              left late is the small difference of what was given and what has gone: it multiplies any error of the
              rate, the one of the true structure's estimate included, which stands beside it)
    omega_sd  of the elimination and of the volume, as ratios to those estimated with the true structure
    OFV       without the penalty; of the true structure (each by the method's own likelihood)
"""

from __future__ import annotations

import argparse
import math
import time

import pandas as pd
import torch

import nlmegen as nl

TIMES = (0.5, 4.0, 12.0, 24.0, 36.0, 48.0, 60.0)
TRUTH = {
    "theta": {"tvvmax": 8.0, "tvkm": 2.0, "tvv": 30.0},
    "omega": {"vmax": 0.09, "v": 0.04},
    "sigma": {"cp.sd": 0.2},
}


def cohort(truth: nl.Model, n: int, doses: list[float], seed: int) -> nl.Population:
    """n patients who take the doses in turn."""
    parts = []
    for k, dose in enumerate(doses):
        table = nl.simulate(
            truth, nl.Cohort(n // len(doses), nl.Regimen(dose), times=TIMES), seed=100 * seed + k
        )
        parts.append(table.assign(id=table["id"] + k * n))
    return nl.read_nonmem(pd.concat(parts, ignore_index=True))


def profile(model: nl.Model, dose: float) -> torch.Tensor:
    """Concentrations of the typical patient at the sampling times."""
    rows = [{"ID": 1, "TIME": 0.0, "AMT": dose, "DV": 0.0, "EVID": 1}]
    rows += [{"ID": 1, "TIME": t, "AMT": 0.0, "DV": 1.0, "EVID": 0} for t in TIMES]
    problem = nl.Problem(model, nl.read_nonmem(pd.DataFrame(rows)))
    return torch.exp(problem.predict(torch.zeros(1, 2, dtype=torch.float64), model.values).f[0])


def learned_rate(model: nl.Model, c: torch.Tensor) -> torch.Tensor:
    """The typical rate of elimination, mg/h, at concentrations `c`."""
    return model.theta.start * c * torch.exp(model.net(torch.log1p(c)))


def true_rate(model: nl.Model, c: torch.Tensor) -> torch.Tensor:
    """The same of a page with the true structure."""
    return model.theta.tvvmax * c / (model.theta.tvkm + c)


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest relative difference, percent."""
    return 100 * float((a / b - 1).abs().max())


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, percent of the peak."""
    return 100 * float((a - b).abs().max() / b.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["focei", "elbo"], choices=["focei", "elbo"])
    parser.add_argument("--doses", type=float, nargs="+", default=[300.0])
    parser.add_argument("--held-out", type=float, default=200.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    truth = nl.load_model("michaelis_menten").with_values(**TRUTH)
    page = nl.load_model("michaelis_menten_neural")
    rows = []
    for seed in range(1, args.seeds + 1):
        data = cohort(truth, args.n, args.doses, seed)
        low, high = (float(data.dv[data.mask].quantile(q)) for q in (0.05, 0.95))
        c = torch.exp(torch.linspace(math.log(low), math.log(high), 101, dtype=torch.float64))
        known = nl.fit(truth, data, nl.FOCEI())
        for name in args.methods:
            method = nl.FOCEI() if name == "focei" else nl.ELBO(seed=seed)
            before = time.process_time()
            fit = nl.fit(page, data, method)
            seconds = time.process_time() - before
            ratio = (fit.model.omega.diagonal() / known.model.omega.diagonal()).sqrt()
            rate = learned_rate(fit.model, c)
            dose = args.held_out
            rows.append(
                {
                    "seed": seed,
                    "method": name,
                    "converged": fit.converged,
                    "rate": worst(rate, true_rate(truth, c)),
                    "true form": worst(true_rate(known.model, c), true_rate(truth, c)),
                    "to fit": worst(rate, true_rate(known.model, c)),
                    "held out": off(profile(fit.model, dose), profile(truth, dose)),
                    "true form ": off(profile(known.model, dose), profile(truth, dose)),
                    "omega el.": float(ratio[0]),
                    "omega v": float(ratio[1]),
                    "OFV": fit.ofv,
                    "true form OFV": known.ofv,
                    "s": seconds,
                }
            )
            print(
                pd.DataFrame(rows[-1:]).to_string(index=False, float_format=lambda x: f"{x:.2f}"), flush=True
            )
            for note in fit.notes:
                print(f"    {note}", flush=True)
    print(
        f"\n{args.n} patients, doses {args.doses}, concentrations {low:.2f} to {high:.1f} mg/L in the last cohort"
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.2f}"))


if __name__ == "__main__":
    main()
