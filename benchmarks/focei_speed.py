"""How long does FOCEI take, standard errors included, on one thread?

Wall and CPU milliseconds of the estimation alone (after import, the page bound to its data) and of `nl.fit` as a whole,
the best of several runs. CPU time is the fair figure on a machine that does other work.

    python benchmarks/focei_speed.py [--repeats 7] [--subjects 1200]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import nlmegen as nl

TIMES = (0.25, 0.5, 1, 2, 3.5, 5, 7, 9, 12, 18, 24)
PEER = {"theophylline": 680, "phenobarbital": 2900}
"""CPU ms of nlmixr2est 7.0.2, defaults, cached compile, with covariance, on a machine of this kind."""


def best(task: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Smallest wall and CPU time of a task, in ms."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return min(walls), min(cpus)


def cases(subjects: int) -> list[tuple[str, nl.Model, nl.Population]]:
    catalogue = [
        (name, nl.load_model(name), nl.load_data(name)) for name in ("theophylline", "phenobarbital")
    ]
    model = nl.load_model("theophylline")
    cohort = nl.Cohort(subjects, nl.Regimen(320), times=TIMES)
    many = nl.read_nonmem(
        nl.simulate(model.with_values(theta={"tvka": 1.5, "tvcl": 2.8, "tvv": 32}), cohort, seed=1)
    )
    return [*catalogue, (f"{subjects} subjects x {len(TIMES)}", model, many)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--subjects", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = ("case", "ofv", "iterations", "wall ms", "cpu ms", "no errors", "fit cpu", "peer/ours")
    print(f"{head[0]:<20}" + "".join(f"{h:>13}" for h in head[1:]))
    for title, model, data in cases(options.subjects):
        problem = nl.Problem(model, data)
        found = nl.FOCEI().estimate(problem)
        wall, cpu = best(lambda p=problem: nl.FOCEI().estimate(p), options.repeats)
        _, bare = best(lambda p=problem: nl.FOCEI(covariance=None).estimate(p), options.repeats)
        _, whole = best(lambda m=model, d=data: nl.fit(m, d, nl.FOCEI()), options.repeats)
        ratio = f"{PEER[title] / cpu:.1f}" if title in PEER else ""
        print(
            f"{title:<20}{found.ofv:>13.4f}{found.iterations:>13}{wall:>13.1f}{cpu:>13.1f}{bare:>13.1f}{whole:>13.1f}"
            f"{ratio:>13}"
        )


if __name__ == "__main__":
    main()
