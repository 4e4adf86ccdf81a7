"""Commands on the folder of a fit: `compare`, `posterior`, `simulate`, `vpc`.

They need the fitted page and therefore run DIR/model.py, after checking its hash.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nlmegen.cli.inputs import read_population
from nlmegen.cli.settings import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from nlmegen.fit import Fit
    from nlmegen.model.page import Model


def compare(args: argparse.Namespace) -> int:
    """Print fits side by side on one arbiter."""
    if len(args.dir) < 2:
        raise UsageError("compare takes two folders of fits or more")
    fits = [_load(folder) for folder in args.dir]
    from nlmegen.fit import compare as side_by_side

    print(side_by_side(*fits, names=list(args.dir)))
    return 0


def posterior(args: argparse.Namespace) -> int:
    """Write or print the posterior moments of patients, one row a patient."""
    fit = _load(args.dir)
    known = fit.population
    data = read_population(
        args.data,
        interpolation=known.interpolation,
        time_unit=known.time_unit,
        amount_unit=known.amount_unit,
        dv_unit=known.dv_unit,
    )
    table = fit.posterior(data).table()
    if args.out is None:
        table.to_csv(sys.stdout, index=False)
    else:
        out = Path(args.out)
        _check_output(out, args.force, (".csv",))
        _put(out, lambda path: table.to_csv(path, index=False))
        print(f"written: {out} ({len(table)} patients)")
    return 0


def simulate(args: argparse.Namespace) -> int:
    """Draw a cohort from a fit, or from the values on a page, and write it in NONMEM columns."""
    out = Path(args.out)
    _check_output(out, args.force, (".csv", ".parquet"))
    for option in ("regimen", "times"):
        if getattr(args, option) is None:
            example = {"regimen": "100 every 24 x 7", "times": "0:168:2"}[option]
            raise UsageError(f'simulate needs --{option}, for example --{option} "{example}"')

    from nlmegen.simulate.cohort import Cohort
    from nlmegen.simulate.trial import simulate as draw

    covariates = read_population(args.covariates) if args.covariates is not None else None
    cohort = Cohort(args.n, args.regimen, times=args.times, covariates=covariates)
    table = draw(_model(args.source), cohort, seed=args.seed)
    _put(out, lambda path: _write(table, path))
    print(f"written: {out} ({args.n} virtual patients, {len(table)} records)")
    return 0


def vpc(args: argparse.Namespace) -> int:
    """Write DIR/vpc.csv and DIR/figures/vpc.png."""
    folder = Path(args.dir)
    fit = _load(folder)
    from nlmegen.check.vpc import vpc as check
    from nlmegen.plots.style import png

    result = check(fit, draws=args.draws, stratify=args.stratify)
    _put(folder / "vpc.csv", lambda path: result.table.to_csv(path, index=False))
    figure = folder / "figures" / "vpc.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(png(result.plot()))
    print(f"written: {folder / 'vpc.csv'}, {figure}")
    return 0


def _load(folder: str | Path) -> Fit:
    from nlmegen.results import load_fit

    return load_fit(folder, model="page")


def _model(source: str) -> Model:
    """The model of a fit's folder at its estimates, or a page at its declared values."""
    if Path(source).is_dir():
        return _load(source).model
    from nlmegen.model.catalogue import load_model

    return load_model(source)


def _check_output(out: Path, force: bool, kinds: tuple[str, ...]) -> None:
    """Refuse, before any work, a file that could not be written or that would destroy another."""
    if out.suffix not in kinds:
        raise UsageError(f"--out {out}: expected a name that ends in {' or '.join(kinds)}")
    if out.exists() and not force:
        raise UsageError(f"--out {out} exists; choose another name, or replace it with --force")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"--out {out}: parquet needs pyarrow; pip install 'nlmegen[parquet]', or write a .csv"
        )
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no directory {out.parent}; make it first")


def _put(out: Path, write: Callable[[Path], None]) -> None:
    """Write beside `out` and move it there when it is whole."""
    part = out.with_name(f".part-{out.name}")
    try:
        write(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _write(table: pd.DataFrame, out: Path) -> None:
    if out.suffix == ".parquet":
        table.to_parquet(out, index=False)
        return
    from nlmegen.data.nonmem import write_nonmem

    write_nonmem(table, out)
