"""What does FOCEI cost on an ODE page, beside the same page in closed form?

    python benchmarks/ode_fits.py [--repeats 5] [--subjects 1200]

Theophylline (real data); two compartments, 120 subjects x 19 samples (simulated: intravenous 10 to 120 mg, CL 4, V 70,
Q 4, V2 50, IIV 30 %, proportional error 20 %, the design of Schoemaker et al. 2019, doi:10.1002/psp4.12471);
Michaelis-Menten, 120 subjects x 7 samples (simulated from the catalogue's page, 300 mg), which has no closed form and
stands beside itself at rtol 1e-11; and theophylline's page on 1,200 simulated subjects x 11 samples.

    OFV        objective function of the reference (closed form, or the tight solver), and of the ODE page less that
    fit        CPU ms of `nl.fit` with standard errors, from the data to the Fit, warm, the best of several runs: of the
               reference, of the ODE page, and the second over the first
    estimate   the same of the estimation alone, the page bound to its data
    once       what the first fit of the ODE page in this process took longer than the next: the page is traced and
               compiled (with an empty cache)

One thread. What all pages share is compiled before.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable

import pandas as pd
import torch

import nlmegen as nl

TWO = (0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 12, 15, 18, 24, 36, 48)
ORAL = (0.25, 0.5, 1, 2, 3.5, 5, 7, 9, 12, 18, 24)
SATURABLE = (0.5, 4, 12, 24, 36, 48, 60)
ONE = nl.Solver(threads=1)


class TwoCompartments(nl.Model):
    """Intravenous, two compartments."""

    tvcl, tvv = nl.Theta(3.0, lower=0), nl.Theta(60.0, lower=0)
    tvq, tvv2 = nl.Theta(5.0, lower=0), nl.Theta(40.0, lower=0)
    iiv = nl.Omega(cl=0.05, v=0.05, q=0.05, v2=0.05)
    cp = nl.Proportional(0.15)
    structure = nl.TwoCompartment()

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * torch.exp(eta.cl),
            v=theta.tvv * torch.exp(eta.v),
            q=theta.tvq * torch.exp(eta.q),
            v2=theta.tvv2 * torch.exp(eta.v2),
        )

    def observe(self, t, a, p):
        return dict(cp=a.central / p.v)


class Warming(TwoCompartments):
    """Equations unlike those of any page below."""

    def dynamics(self, t, a, p):
        return dict(central=-p.cl / p.v * a.central, peripheral=p.q * a.central - p.v2 * a.peripheral)


def cohort(model: nl.Model, doses: list[float], n: int, times: tuple[float, ...]) -> nl.Population:
    """n simulated subjects who take the doses in turn."""
    parts = []
    for k, dose in enumerate(doses):
        share = nl.Cohort(n // len(doses), nl.Regimen(dose), times=times)
        table = nl.simulate(model, share, seed=k + 1)
        parts.append(table.assign(id=table["id"] + k * n))
    return nl.read_nonmem(pd.concat(parts, ignore_index=True))


def cases(subjects: int) -> list[tuple[str, nl.Model, nl.Model, nl.Population]]:
    """Title, reference, ODE page, data."""
    oral, two, saturable = nl.load_model("theophylline"), TwoCompartments(), nl.load_model("michaelis_menten")
    spread = dict.fromkeys(two.eta_names, 0.09)
    truth = two.with_values(
        theta={"tvcl": 4, "tvv": 70, "tvq": 4, "tvv2": 50}, omega=spread, sigma={"cp.proportional": 0.2}
    )
    many = oral.with_values(theta={"tvka": 1.5, "tvcl": 2.8, "tvv": 32})
    start = saturable.with_values(theta={"tvvmax": 6.0, "tvkm": 3.0, "tvv": 25.0})
    page = start.with_solver(ONE)  # a structure of its own, which has compiled nothing yet
    return [
        ("theophylline", oral, oral.as_ode(ONE), nl.load_data("theophylline")),
        ("two compartments, 120 x 19", two, two.as_ode(ONE), cohort(truth, [10, 30, 60, 120], 120, TWO)),
        (
            "Michaelis-Menten, 120 x 7",
            start.with_solver(nl.Solver(rtol=1e-11, max_steps=100_000, threads=1)),
            page,
            cohort(saturable, [300], 120, SATURABLE),
        ),
        (f"oral, {subjects:,} x 11", oral, oral.as_ode(ONE), cohort(many, [320], subjects, ORAL)),
    ]


def cpu(task: Callable[[], object], repeats: int = 1) -> float:
    """CPU time of a task in ms, the best of several runs."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        task()
        times.append(1e3 * (time.process_time() - begin))
    return min(times)


def warm_up() -> None:
    """Solve a page of no interest, so that what all pages share is compiled."""
    table = pd.DataFrame({"id": 1, "time": [0.0, 1.0], "amt": [1.0, 0.0], "dv": [0.0, 1.0]})
    problem = nl.Problem(Warming(), nl.Population.from_table(table))
    problem.predict(torch.zeros(1, 4, dtype=torch.float64), problem.values(problem.start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--subjects", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    method, repeats = nl.FOCEI(), options.repeats
    heads = ("OFV", "ODE less", "fit", "ODE", "ratio", "estimate", "ODE", "ratio", "once")
    print(f"{'CPU ms':<28}" + "".join(f"{h:>11}" for h in heads))
    for title, reference, page, data in cases(options.subjects):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["NLMEGEN_CACHE"] = cache
            warm_up()
            first = cpu(lambda m=page, d=data: nl.fit(m, d, method))
        exact, fit = (nl.fit(m, data, method) for m in (reference, page))
        whole = [cpu(lambda m=m, d=data: nl.fit(m, d, method), repeats) for m in (reference, page)]
        problems = [nl.Problem(m, data) for m in (reference, page)]
        alone = [cpu(lambda p=p: method.estimate(p), repeats) for p in problems]
        cells = [f"{exact.ofv:.4f}", f"{fit.ofv - exact.ofv:.5f}"]
        for a, b in (whole, alone):
            cells += [f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}"]
        print(f"{title:<28}" + "".join(f"{c:>11}" for c in [*cells, f"{first - whole[1]:.0f}"]), flush=True)
        if not (exact.converged and fit.converged):
            print(f"    {exact.reason}; {fit.reason}")
        for note in fit.notes:
            print(f"    {note}")


if __name__ == "__main__":
    main()
