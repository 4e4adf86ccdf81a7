"""Do the methods recover known parameters, and do their intervals cover them?

Replicates of two published designs (`designs`): *rich*, 120 subjects on four dose levels by mouth, 19 samples after a
single dose, error in proportion of 20 %; *sparse*, 120 subjects, three samples, log-normal error of 20 %. Each is
fitted from values 40 % off (variances twice as large). For every parameter on its natural scale (variances as such):
mean bias and its t test, RMSE; and the coverage of 95 % intervals, estimate +- 1.96 SE on the scale of the free
vector (logarithms of thetas, variances and residual SD), with the exact binomial test; p values adjusted by Holm over
the parameters of a design and method. A fit without standard errors is counted as failed and left out.

    python benchmarks/recovery.py --out recovery.csv [--replicates 400] [--designs rich sparse]
        [--methods agq saem focei] [--covariance sandwich] [--workers 2] [--table]

Every fit is appended to the csv as it is done; the same command goes on where it was stopped. `--table` only prints
the markdown table of what is there.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from designs import Oral, Sparse, rich_oral, sparse
from scipy import stats

import nlmegen as nl

DESIGNS = {"rich": (Oral, rich_oral), "sparse": (Sparse, sparse)}
METHODS = ("agq", "saem", "focei", "imp", "laplace", "elbo")
COLUMNS = (
    "design",
    "replicate",
    "method",
    "covariance",
    "rows",
    "seconds",
    "converged",
    "parameter",
    "truth",
    "estimate",
    "off",
    "se",
)
"""`off` and `se`: estimate less truth, and standard error, on the scale of the free vector; `rows`: of this fit."""

Task = tuple[str, int, str, str]


def method_of(name: str, covariance: str, seed: int) -> Any:
    """A method's settings. On the rich design five nodes leave .01 of -2 log L."""
    made = {
        "agq": lambda: nl.AGQ(covariance=covariance),
        "saem": lambda: nl.SAEM(covariance=covariance, seed=seed),
        "focei": lambda: nl.FOCEI(covariance=covariance),
        "imp": lambda: nl.Importance(covariance=covariance, seed=seed),
        "laplace": lambda: nl.Laplace(covariance=covariance),
        "elbo": lambda: nl.ELBO(seed=seed),
    }
    return made[name]()


def fitted(task: Task) -> list[dict[str, object]]:
    """The rows of one fit: one a parameter, or one that says what went wrong."""
    design, replicate, name, covariance = task
    torch.set_num_threads(1)
    page, simulated = DESIGNS[design]
    truth = page()
    data = nl.read_nonmem(simulated(replicate))
    start = truth.with_values(
        theta={k: 1.4 * float(v) for k, v in truth.values.theta.items()},
        omega=2 * truth.omega,
        sigma={k: 1.4 * float(v) for k, v in truth.values.sigma.items()},
    )
    head = {"design": design, "replicate": replicate, "method": name, "covariance": covariance, "rows": 1}
    begin = time.process_time()
    try:
        found = method_of(name, covariance, replicate).estimate(nl.Problem(start, data))
    except nl.FitError as error:
        return [
            head
            | {"seconds": time.process_time() - begin, "converged": False, "parameter": f"({error})"[:60]}
        ]
    head |= {"seconds": round(time.process_time() - begin, 3), "converged": found.converged}
    problem = nl.Problem(truth, data)
    head["rows"] = problem.P
    off = found.free - problem.start
    se = (
        torch.full_like(off, torch.nan) if found.covariance is None else found.covariance.diagonal().sqrt()
    ).tolist()
    rows = []
    for k, parameter in enumerate(problem.names):
        # the free vector holds logarithms, of variances those of the SDs
        power = 2 if parameter.startswith("omega.") else 1
        size = float(torch.exp(power * problem.start[k]))
        rows.append(
            head
            | {
                "parameter": parameter,
                "truth": size,
                "estimate": size * float(torch.exp(power * off[k])),
                "off": power * float(off[k]),
                "se": power * se[k],
            }
        )
    return rows


def done(path: Path) -> set[Task]:
    """The fits that the csv holds; what a kill left of another is taken out of the file."""
    if not path.exists():
        return set()
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    table = pd.read_csv(io.StringIO(whole)) if whole else pd.DataFrame(columns=list(COLUMNS))
    keys = list(COLUMNS[:4])
    complete = table.groupby(keys)["rows"].transform("size") == table["rows"]
    if whole != text or not complete.all():
        table[complete].to_csv(path, index=False)
    return {
        (str(d), int(r), str(m), str(c)) for d, r, m, c in table.loc[complete, keys].itertuples(index=False)
    }


def run(tasks: list[Task], path: Path, workers: int) -> None:
    """Fit and append, each fit in one write."""
    results: Iterator[list[dict[str, object]]]
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not path.stat().st_size:
            writer.writeheader()
        pool = (
            ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            if workers > 1
            else None
        )
        if pool is None:
            results = map(fitted, tasks)
        else:
            results = (future.result() for future in as_completed([pool.submit(fitted, t) for t in tasks]))
        for count, rows in enumerate(results, 1):
            writer.writerows(rows)
            file.flush()
            if count % 20 == 0:
                print(f"{count} of {len(tasks)} fits", flush=True)
        if pool is not None:
            pool.shutdown()


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p values."""
    order = np.argsort(p)
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = raised.clip(max=1.0)
    return out


def summary(table: pd.DataFrame) -> str:
    """The markdown table."""
    lines = [
        "| design, method | parameter | truth | bias, % (t) | p | RMSE, % | coverage, % | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for (design, method, covariance), part in table.groupby(["design", "method", "covariance"], sort=False):
        fits = part["replicate"].nunique()
        good = part[part["se"].notna()]
        kept = good["replicate"].nunique()
        seconds = part.groupby("replicate")["seconds"].first()
        notes.append(
            f"{design}, {method}: {kept} of {fits} fits with standard errors ({covariance}); "
            f"CPU seconds a fit: median {seconds.median():.2f}, most {seconds.max():.2f}"
        )
        rows = []
        for parameter, own in good.groupby("parameter", sort=False):
            truth = own["truth"].iloc[0]
            error = own["estimate"] / truth - 1
            t, p = stats.ttest_1samp(error, 0.0) if len(own) > 1 else (np.nan, np.nan)
            inside = int((own["off"].abs() <= 1.959964 * own["se"]).sum())
            exact = float(stats.binomtest(inside, len(own), 0.95).pvalue)
            rows.append((parameter, truth, error, t, p, inside / len(own), exact))
        if not rows:
            continue
        bias_p = holm(np.array([r[4] for r in rows]))
        cover_p = holm(np.array([r[6] for r in rows]))
        for (parameter, truth, error, t, _, share, _), p, q in zip(rows, bias_p, cover_p, strict=True):
            rmse = 100 * np.sqrt((error**2).mean())
            lines.append(
                f"| {design}, {method} | {parameter} | {truth:.4g} | {100 * error.mean():+.2f} ({t:+.1f}) | {p:.2g} | "
                f"{rmse:.1f} | {100 * share:.1f} | {q:.2g} |"
            )
    return "\n".join([*lines, "", *notes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="csv that grows by every fit")
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["agq", "saem", "focei"])
    parser.add_argument("--covariance", choices=["sandwich", "R", "S"], default="sandwich")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options = parser.parse_args()
    if not options.table:
        # replicate by replicate, so that a run that is stopped has compared all methods on the same data
        wanted = [
            (design, replicate, method, options.covariance)
            for replicate, design, method in itertools.product(
                range(1, options.replicates + 1), options.designs, options.methods
            )
        ]
        before = done(options.out)
        run([task for task in wanted if task not in before], options.out, options.workers)
    print(summary(pd.read_csv(options.out)))


if __name__ == "__main__":
    main()
