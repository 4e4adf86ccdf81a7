"""How long do the classic methods take, standard errors included, on one thread, and how does the cost grow?

CPU milliseconds of the estimation after import, the page bound to its data, the best of several runs; peers' times
beside them are constants measured on a machine of this kind (two cores, other work beside it): nlmixr2est 7.0.2 with
rxode2 5.1.6, defaults, cached compile, and saemix 3.4. Times compare only within one run of this script.

    python benchmarks/classic_speed.py [--repeats 5] [--tables FOLDER] [--growth 1200 12000 120000] [--parts ...]

Parts: `theophylline` (every method, additive error), `phenobarbital`, `sets` (120 subjects of Schoemaker et al. 2019;
from FOLDER/Oral_1CPT.csv and so on, or else simulated from the design), `growth` (FOCEI on simulated subjects, each
size in a process of its own, with its peak memory).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from designs import Bolus, Oral, Saturable, rich_bolus, rich_oral
from outside_tables import schoemaker

import nlmegen as nl

PARTS = ("theophylline", "phenobarbital", "sets", "growth")
TIMES = (0.25, 0.5, 1, 2, 3.5, 5, 7, 9, 12, 18, 24)
OPTIMUM = 360.7015
"""-2 log L of theophylline with additive error at its maximum, by two independent quadrature codes."""
PEERS = {
    "theophylline focei": ("nlmixr2 FOCEI, closed form", 0.68),
    "theophylline saem": ("saemix", 1.1),
    "theophylline imp": ("nlmixr2 impmap", 15.0),
    "phenobarbital focei": ("nlmixr2 FOCEI", 2.9),
    "oral focei": ("nlmixr2 FOCEI, ODE", 28.0),
    "bolus focei": ("nlmixr2 FOCEI, ODE", 28.9),
    "infusion focei": ("nlmixr2 FOCEI, ODE", 12.3),
}
"""CPU seconds with standard errors (saemix: with information matrix, modes and importance sampling)."""


class Additive(type(nl.load_model("theophylline"))):
    """Theophylline with additive error."""

    cp = nl.Additive(0.5)


def methods() -> dict[str, object]:
    return {
        "fo": nl.FO(),
        "foce": nl.FOCE(),
        "focei": nl.FOCEI(),
        "laplace": nl.Laplace(),
        "agq": nl.AGQ(),
        "saem": nl.SAEM(),
        "imp": nl.Importance(),
    }


def best(task: Callable[[], object], repeats: int) -> float:
    """Smallest CPU time of a task, in ms."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        task()
        times.append(1e3 * (time.process_time() - begin))
    return min(times)


def row(title: str, problem: nl.Problem, method, repeats: int, judged: bool = False) -> None:
    """Print one row: the method's objective, its time with and without standard errors, the peer's."""
    found = method.estimate(problem)
    cpu = best(lambda: method.estimate(problem), repeats)
    bare = best(lambda: type(method)(covariance=None).estimate(problem), max(1, repeats // 2))
    name, seconds = PEERS.get(title, ("", 0.0))
    peer = f"{1e3 * seconds:>10.0f}{1e3 * seconds / cpu:>9.1f}  {name}" if name else ""
    true = ""
    if judged:
        minus2ll = -2 * nl.quadrature(problem, problem.values(found.free), 9).total
        true = f"{minus2ll - OPTIMUM:+.4f}"
    words = "" if found.converged else "  NOT CONVERGED"
    print(
        f"{title:<24}{found.ofv:>12.4f}{found.iterations:>6}{true:>11}{cpu:>10.1f}{bare:>10.1f}{peer}{words}",
        flush=True,
    )


def grown(subjects: int) -> None:
    """Fit so many simulated subjects in this process and print what it took."""
    model = nl.load_model("theophylline")
    truth = model.with_values(theta={"tvka": 1.5, "tvcl": 2.8, "tvv": 32})
    data = nl.read_nonmem(nl.simulate(truth, nl.Cohort(subjects, nl.Regimen(320), times=TIMES), seed=1))
    problem = nl.Problem(model, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begin = time.process_time()
    found = nl.FOCEI().estimate(problem)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {"ofv": found.ofv, "seconds": seconds, "peak": peak, "data": before, "ok": found.converged}
        )
    )


def growth(sizes: list[int]) -> None:
    print(f"\n{'FOCEI, subjects':<18}{'cpu s':>9}{'us a subject':>14}{'peak MB':>9}{'of it data':>12}")
    for size in sizes:
        ran = subprocess.run(
            [sys.executable, __file__, "--grown", str(size)], capture_output=True, text=True, check=True
        )
        got = json.loads(ran.stdout)
        each = 1e6 * got["seconds"] / size
        print(
            f"{size:<18,}{got['seconds']:>9.2f}{each:>14.1f}{got['peak']:>9.0f}{got['data']:>12.0f}"
            f"{'' if got['ok'] else '  NOT CONVERGED'}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--growth", type=int, nargs="+", default=[1200, 12000, 120000])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--grown", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.grown:
        grown(options.grown)
        return
    print(
        f"{'':<24}{'ofv':>12}{'iter':>6}{'-2LL over':>11}{'cpu ms':>10}{'no errors':>10}{'peer ms':>10}{'ratio':>9}"
    )
    if "theophylline" in options.parts:
        problem = nl.Problem(Additive(), nl.load_data("theophylline"))
        for name, method in methods().items():
            row(f"theophylline {name}", problem, method, options.repeats, judged=True)
    if "phenobarbital" in options.parts:
        problem = nl.Problem(nl.load_model("phenobarbital"), nl.load_data("phenobarbital"))
        row("phenobarbital focei", problem, nl.FOCEI(), options.repeats)
    if "sets" in options.parts:
        for title, name, page, simulated in (
            ("oral", "Oral_1CPT", Oral, rich_oral),
            ("bolus", "Bolus_2CPT", Bolus, rich_bolus),
            ("infusion", "Infusion_1CPTMM", Saturable, None),
        ):
            if options.tables is not None:
                data = schoemaker(options.tables, name)
            elif simulated is not None:
                data = nl.read_nonmem(simulated(1))
            else:
                continue
            row(f"{title} focei", nl.Problem(page(), data), nl.FOCEI(), options.repeats)
    if "growth" in options.parts:
        growth(options.growth)


if __name__ == "__main__":
    main()
