"""Commands that do an estimation, or parts of it, again: `bootstrap`, `sir`, `profile`, on the folder of a fit.

They need the fitted page and therefore run DIR/model.py, after checking its hash.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlmegen.cli.outputs import put
from nlmegen.cli.progress import Reporter
from nlmegen.cli.settings import UsageError, build, check_method, describe

if TYPE_CHECKING:
    import pandas as pd

    from nlmegen.fit import Fit
    from nlmegen.resample.scatter import Bootstrap


def bootstrap(args: argparse.Namespace) -> int:
    """Write DIR/bootstrap.csv replicate by replicate, and DIR/bootstrap-summary.csv in the end."""
    if args.method is not None:
        check_method(args.method)
        if "help" in args.set:
            print(describe(args.method))
            return 0
    elif args.set:
        raise UsageError("--set is an option of --method: name the method with which to estimate")
    method = None if args.method is None else build(args.method, args.set, {})
    fit = _load(args.dir)
    from nlmegen.resample.bootstrap import bootstrap as again
    from nlmegen.resample.journal import csv_path
    from nlmegen.resample.replicate import process_pool

    path = csv_path(args.dir if args.out is None else args.out, "bootstrap")
    pool: Any = nullcontext() if args.workers == 1 else process_pool(args.workers)
    try:
        with Reporter(args.progress) as reporter, pool as executor:
            result = again(
                fit,
                args.n,
                args.kind,
                method,
                args.stratify,
                args.seed,
                executor,
                path,
                reporter.callback,
                args.level,
                args.force,
            )
    except BrokenProcessPool:
        message = "a worker process was ended from outside (out of memory?); the replicates that were finished are kept"
        print(f"nlmegen: {message} in {path}: the same command goes on from there", file=sys.stderr)
        return 3
    print(result)
    summary = path.with_name(f"{path.stem}-summary.csv")
    put(summary, lambda part: _summaries(result).to_csv(part))
    print(f"written: {path} ({len(result.table)} replicates), {summary}")
    return _status(result, path)


def _summaries(result: Bootstrap) -> pd.DataFrame:
    """The summary without and with the replicates that did not converge."""
    import pandas as pd

    both = {"converged": result.summary(), "converged or not": result.summary(unconverged=True)}
    return pd.concat(both, names=["replicates", "name"])


def _status(result: Bootstrap, path: Path) -> int:
    if len(result.table) < result.n:
        print(
            f"nlmegen: interrupted by the user after {len(result.table)} of {result.n} replicates, which are kept in"
            f" {path}; the same command goes on from there",
            file=sys.stderr,
        )
        return 3
    usable = result.counts["converged"]
    if 2 * usable < result.n:
        print(
            f"nlmegen: only {usable} of {result.n} replicates converged, and their scatter says little; see the column"
            f" reason in {path}",
            file=sys.stderr,
        )
        return 3
    return 0


def sir(args: argparse.Namespace) -> int:
    """Write DIR/sir.csv, the resampled parameter vectors, and DIR/sir-summary.csv."""
    folder, fit = Path(args.dir), _load(args.dir)
    from nlmegen.resample.sir import HEAVY
    from nlmegen.resample.sir import sir as sample

    with Reporter(args.progress) as reporter:
        result = sample(
            fit,
            args.samples,
            args.resamples,
            args.iterations,
            args.inflation,
            args.seed,
            cap=args.cap,
            level=args.level,
            progress=reporter.callback,
        )
    print(result)
    out, summary = folder / "sir.csv", folder / "sir-summary.csv"
    put(out, lambda part: result.table.to_csv(part))
    put(summary, lambda part: result.summary().to_csv(part))
    print(f"written: {out} ({len(result.table)} resamples), {summary}")
    if result.diagnostics["khat"].iloc[-1] > HEAVY:
        print(
            f"nlmegen: the weights cannot be relied upon; what there is was kept in {folder}", file=sys.stderr
        )
        return 3
    return 0


def profile(args: argparse.Namespace) -> int:
    """Write DIR/profile.csv, the limits, and DIR/profile-path.csv, the points on the way there."""
    folder, fit = Path(args.dir), _load(args.dir)
    from nlmegen.resample.profile import profile as walk

    names = None if args.names is None else names_in(args.names, fit.problem.names)
    with Reporter(args.progress) as reporter:
        result = walk(fit, names, args.level, args.sides, progress=reporter.callback)
    print(result)
    out, path = folder / "profile.csv", folder / "profile-path.csv"
    put(out, lambda part: result.table.to_csv(part))
    put(path, lambda part: result.path.to_csv(part, index=False))
    print(f"written: {out}, {path}")
    sides = ["lower", "upper"] if args.sides == "both" else [args.sides]
    if result.table[sides].isna().to_numpy().any():
        print("nlmegen: not every limit was found; see the notes", file=sys.stderr)
        return 3
    return 0


def names_in(text: str, known: Sequence[str]) -> list[str]:
    """The parameters of a list with commas, in which a covariance has one of its own.

    Example:
        >>> names_in("tvcl, omega.v,cl, b", ["tvcl", "omega.v,cl", "b"])
        ['tvcl', 'omega.v,cl', 'b']
    """
    names: list[str] = []
    for part in (piece.strip() for piece in text.split(",")):
        joined = f"{names[-1]},{part}" if names else ""
        if joined in known and part not in known:
            names[-1] = joined
        else:
            names.append(part)
    return names


def _load(folder: str) -> Fit:
    from nlmegen.results import load_fit

    return load_fit(folder, model="page")
