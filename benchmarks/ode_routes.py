"""How accurate and how fast is each route to the solution of an ODE page, and how long does compiling take?

    python benchmarks/ode_routes.py [--sizes 12 120 1200] [--cases NAME ...] [--seconds 2] [--no-compile]

Pages: oral one-compartment, Michaelis-Menten and two-compartment (three irregular doses, 11 samples in 72 h, every
parameter with a random effect, omega_sd .3); an indirect response to an effect-site concentration; target-mediated drug
disposition in full (one dose, 11 samples in 300 h), as it is and with kon x 1000. One table a page:

    value, J   largest error against scipy at rtol 1e-12 over 12 subjects, as shares of the subject's observed peak: of
               predictions and of their derivatives in eta (complex step through DOP853; for the stiff page LSODA on the
               sensitivity equations)
    N = ...    CPU milliseconds of `Problem.predict` with order 0 (value) and order 1 (value and Jacobian), the best of
               several runs, warm, one thread; "its kernel" is the compiled solve alone, without the page's own formulas
    LSODA      a loop over subjects through scipy.integrate.odeint, derivatives by forward differences, timed up to 120
               subjects and scaled from there (~)

Where a route would take long beyond `--seconds`, "-" stands for it. The last table states what a page costs once: in a
fresh process with an empty cache, with a cache that knows other pages, and with one that knows the page.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from ode_cases import CASES, Case, Cohort

import nlmegen as nl

ROUTES = {
    "compiled explicit": nl.Solver(route="compiled", method="explicit", threads=1),
    "compiled stiff": nl.Solver(route="compiled", method="stiff", threads=1),
    "matrix exponential": nl.Solver(route="expm", threads=1),
    "torch explicit": nl.Solver(route="torch", method="explicit", threads=1),
    "torch stiff": nl.Solver(route="torch", method="stiff", threads=1),
}


def milliseconds(task: Callable[[], object], most: int = 1000) -> float:
    """CPU time of a task, the best of several runs; one that takes long is run once."""
    best, spent, runs = math.inf, 0.0, 0
    while spent < 0.4 and runs < most:
        begin = time.process_time()
        task()
        once = time.process_time() - begin
        best, spent, runs = min(best, once), spent + max(once, 1e-4), runs + 1
    return 1e3 * best


def shown(x: float, mark: str = "") -> str:
    """A time to three digits."""
    if math.isnan(x):
        return "-"
    return mark + (f"{x:.0f}" if x >= 100 else f"{x:.3g}")


class Timer:
    """Times one route at growing sizes and stops before it takes too long."""

    def __init__(self, seconds: float) -> None:
        self.most, self.last, self.size = 1e3 * seconds, 0.0, 1

    def __call__(self, size: int, task: Callable[[], object]) -> float:
        # what takes long grows with the size, or nearly
        if self.last > self.most or (self.last > 300 and self.last * size / self.size > 12 * self.most):
            self.last = math.inf
            return math.nan
        first = milliseconds(task, 1)
        self.last, self.size = first if first > 500 else milliseconds(task), size
        return self.last


def errors(case: Case, got: Any, exact: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Largest errors of value and Jacobian over the peak, NaN where a subject could not be solved."""
    peak = exact[0].max(1, keepdims=True)
    return tuple(
        float((np.abs(x.numpy() - y) / peak).max()) for x, y in zip((got.f, got.jac), exact, strict=True)
    )


def applies(case: Case, route: str) -> bool:
    """Whether a route is worth measuring on a page."""
    if route == "matrix exponential":
        return case.closed
    # explicit steps through torch would be as many as compiled ones, which are too many
    return not (case.stiff and route == "torch explicit")


def solves(
    model: nl.Model, cohort: Cohort
) -> tuple[list[Callable[[], object]], Callable[[int], object], Any]:
    """Prediction of order 0 and 1, and the compiled solve alone by order, if the page is compiled."""
    problem = cohort.problem(model)
    values = problem.values(problem.start)
    tasks = [partial(problem.predict, cohort.eta, values, order) for order in (0, 1)]

    def kernel(order: int) -> object:
        structure = problem.structure
        p = problem.individual(cohort.eta, values)
        rows = torch.cat([p[name] for name in structure.equations.parameters], -1)
        whole, places = problem.schedule.root
        method = structure.solver.method
        solve = structure.kernels.of(order, method).solve
        return partial(solve, rows, problem.weights, whole.timeline, places, structure.solver)

    return tasks, kernel, problem


def measure(name: str, case: Case, sizes: Sequence[int], seconds: float) -> dict[str, tuple[float, float]]:
    """Print the table of one page; times at the largest size by route."""
    small, cohorts = Cohort.draw(case, 12), [Cohort.draw(case, n) for n in sizes]
    exact = small.reference()
    rows: dict[str, list[str]] = {}
    largest: dict[str, tuple[float, float]] = {}
    models = {"closed form": case.page()} if case.closed else {}
    models |= {route: case.page().as_ode(solver) for route, solver in ROUTES.items() if applies(case, route)}
    for route, model in models.items():
        tasks, _, problem = solves(model, small)
        value, jac = errors(case, tasks[1](), exact)
        failed = int(problem.unsolved(small.eta, problem.values(problem.start)).sum())
        rows[route] = [f"{value:.1e}", f"{jac:.1e}"]
        if failed:
            rows[route] = [f"stops: {failed} of 12 subjects cannot be solved in max_steps"]
            continue
        timers = [Timer(seconds), Timer(seconds)]
        alone = []
        for cohort in cohorts:
            tasks, kernel, _ = solves(model, cohort)
            times = [timer(len(cohort.seen), task) for timer, task in zip(timers, tasks, strict=True)]
            rows[route] += [shown(x) for x in times]
            if route.startswith("compiled"):
                alone += [shown(milliseconds(kernel(order))) for order in (0, 1)]
        largest[route] = times[0], times[1]
        if alone:
            rows["  its kernel" if route == "compiled explicit" else "  its kernel "] = ["", "", *alone]
    rows["LSODA loop"], largest["LSODA loop"] = lsoda_row(small, cohorts, exact)
    heads = ["value", "J", *(f"N = {n:,}{what}" for n in sizes for what in ("", " +J"))]
    print(f"\n{name}: {case.states} amounts, {small.eta.shape[1]} parameters")
    print(f"{'':<20}" + "".join(f"{h:>13}" for h in heads))
    for route, cells in rows.items():
        print(
            f"{route.rstrip() if route.strip() else route:<20}" + "".join(f"{c:>13}" for c in cells),
            flush=True,
        )
    return largest


def lsoda_row(
    small: Cohort, cohorts: Sequence[Cohort], exact: tuple[np.ndarray, np.ndarray]
) -> tuple[list[str], tuple[float, float]]:
    """Errors and times of the loop over subjects."""
    got = small.lsoda_jacobian(small.eta.numpy())
    peak = exact[0].max(1, keepdims=True)
    cells = [f"{(np.abs(x - y) / peak).max():.1e}" for x, y in ((got[0], exact[0]), (got[1:], exact[1]))]
    times = [math.nan, math.nan]
    measured = 0
    for cohort in cohorts:
        n, eta = len(cohort.seen), cohort.eta.numpy()
        if measured and n > 120:
            times = [x * n / measured for x in times]
            cells += [shown(x, "~") for x in times]
        else:
            times, measured = (
                [milliseconds(partial(f, eta)) for f in (cohort.lsoda, cohort.lsoda_jacobian)],
                n,
            )
            cells += [shown(x) for x in times]
    return cells, (times[0], times[1])


def ratios(largest: dict[str, dict[str, tuple[float, float]]], size: int) -> None:
    """How many times faster the compiled page is."""
    print(f"\ncompiled page at N = {size:,}: times faster than (value / value and Jacobian)")
    print(f"{'':<20}{'torch (torchdiffeq)':>24}{'LSODA loop':>24}{'closed form is':>24}")
    for name, times in largest.items():
        mine = times.get("compiled explicit", times["compiled stiff"])
        cells = []
        for other, upward in (("torch explicit", True), ("LSODA loop", True), ("closed form", False)):
            theirs = times.get(other)
            both = (
                []
                if theirs is None
                else [x / y if upward else y / x for x, y in zip(theirs, mine, strict=True)]
            )
            cells.append(" / ".join("-" if math.isnan(x) else f"{x:,.1f}" for x in both) or "-")
        print(f"{name:<20}" + "".join(f"{c:>24}" for c in cells))


# -- what a page costs once -----------------------------------------------------------------------------------------
def fresh(name: str) -> dict[str, float]:
    """CPU milliseconds in this process, which has done nothing yet, until a page is ready to be solved."""
    import llvmlite.binding  # noqa: F401  part of what an import costs

    times, begin = {}, time.process_time()
    model = CASES[name].page().as_ode()
    times["trace"] = 1e3 * (time.process_time() - begin)
    for order in (0, 1, 2):
        begin = time.process_time()
        model.structure.kernels.of(order, "explicit")
        times[f"order {order}"] = 1e3 * (time.process_time() - begin)
    return times


def compiling(names: Sequence[str]) -> None:
    """Print what each page costs once, in processes of their own."""
    print("\ncompiling, CPU ms in a fresh process, imports not counted (FOCEI needs order 1 and 2)")
    heads = ["trace", "order 0", "order 1", "order 2", "sum"]
    print(f"{'':<52}" + "".join(f"{h:>10}" for h in heads))
    with tempfile.TemporaryDirectory() as cache:
        for k, name in enumerate(names):
            for again in (False, True):
                ran = subprocess.run(
                    [sys.executable, __file__, "--fresh", name],
                    env=os.environ | {"NLMEGEN_CACHE": cache},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                times = json.loads(ran.stdout)
                state = "cached" if again else "new" if k else "new, and the first on this machine"
                cells = [*times.values(), sum(times.values())]
                print(f"{name + ', ' + state:<52}" + "".join(f"{c:>10.1f}" for c in cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[12, 120, 1200])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--fresh", choices=list(CASES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fresh:
        print(json.dumps(fresh(options.fresh)))
        return
    largest = {name: measure(name, CASES[name], options.sizes, options.seconds) for name in options.cases}
    ratios(largest, options.sizes[-1])
    if not options.no_compile:
        compiling(options.cases)


if __name__ == "__main__":
    main()
