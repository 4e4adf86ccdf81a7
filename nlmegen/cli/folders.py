"""Commands on the folder of a fit: `compare`, `posterior`, `simulate`, `vpc`.

They need the fitted page and therefore run DIR/model.py, after checking its hash.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from nlmegen.cli.inputs import read_population
from nlmegen.cli.outputs import check_output, put
from nlmegen.cli.settings import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from nlmegen.data.population import Population
    from nlmegen.fit import Column, Fit
    from nlmegen.model.page import Model


def compare(args: argparse.Namespace) -> int:
    """Print fits, and runs of NONMEM, side by side on one arbiter."""
    if len(args.dir) < 2:
        raise UsageError("compare takes two folders of fits or more; a run of NONMEM (RUN.ext) counts as one")
    if twice := [source for source in args.dir if args.dir.count(source) > 1]:
        raise UsageError(f"compare: {twice[0]} is named twice; name different fits")
    runs = [source for source in args.dir if _is_run(source)]
    if not runs:
        for option in ("model", "data", "map"):
            if getattr(args, option):
                raise UsageError(f"--{option} is for a run of NONMEM (RUN.ext), and there is none")
    fits: dict[str, Column] = {source: _load(source) for source in args.dir if source not in runs}
    if runs:
        model, data, mapping = _page_of_runs(args, list(fits.values()))
        from nlmegen.exchange import read_nonmem_run

        fits |= {run: read_nonmem_run(run, model=model, data=data, map=mapping) for run in runs}
    from nlmegen.fit import compare as side_by_side

    names = _labels(args.dir)
    print(side_by_side(*(fits[source] for source in args.dir), arbiter=args.arbiter, names=names))
    return 0


def _labels(sources: list[str]) -> list[str]:
    """The last parts of the paths where these tell them apart, else the paths as they were given.

    Example:
        >>> _labels(["out/first", "out/second"]), _labels(["a/fit", "b/fit"])
        (['first', 'second'], ['a/fit', 'b/fit'])
    """
    last = [Path(source).name for source in sources]
    return last if all(last) and len(set(last)) == len(last) else list(sources)


def _is_run(source: str) -> bool:
    """Whether an argument of `compare` is a run of NONMEM and not a folder."""
    return Path(source).suffix.lower() == ".ext" and not Path(source).is_dir()


def _page_of_runs(
    args: argparse.Namespace, fits: list[Column]
) -> tuple[Model, Population, dict[str, str | None] | None]:
    """Page, data and mapping for the runs of NONMEM: those named, else those of the first folder."""
    missing = [f"--{option}" for option in ("model", "data") if getattr(args, option) is None]
    if missing and not fits:
        raise UsageError(
            f"a run of NONMEM needs {' and '.join(missing)} (its page and what it read), or a folder of a fit beside"
            " it that has them"
        )
    from nlmegen.model.catalogue import load_model

    if args.data is None:
        data = fits[0].population
    elif fits:
        known = fits[0].population
        data = read_population(
            args.data,
            interpolation=known.interpolation,
            time_unit=known.time_unit,
            amount_unit=known.amount_unit,
            dv_unit=known.dv_unit,
        )
    else:
        data = read_population(args.data)
    model = fits[0].model if args.model is None else load_model(args.model)
    mapping: dict[str, str | None] = {}
    for text in args.map:
        source, equals, target = text.partition("=")
        if not equals or not source.strip() or not target.strip():
            raise UsageError(f"--map {text}: expected THETA1=NAME (or THETA1=none to leave it out)")
        mapping[source.strip()] = None if target.strip().lower() == "none" else target.strip()
    return model, data, mapping or None


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
        check_output(out, args.force, (".csv",))
        put(out, lambda path: table.to_csv(path, index=False))
        print(f"written: {out} ({len(table)} patients)")
    return 0


def simulate(args: argparse.Namespace) -> int:
    """Draw a cohort from a fit, or from the values on a page, and write it in NONMEM columns."""
    out = Path(args.out)
    check_output(out, args.force, (".csv", ".parquet"))
    for option in ("regimen", "times"):
        if getattr(args, option) is None:
            example = {"regimen": "100 every 24 x 7", "times": "0:168:2"}[option]
            raise UsageError(f'simulate needs --{option}, for example --{option} "{example}"')

    from nlmegen.data.columns import DataWarning
    from nlmegen.simulate.cohort import Cohort
    from nlmegen.simulate.trial import simulate as draw

    covariates = read_population(args.covariates) if args.covariates is not None else None
    cohort = Cohort(
        args.n,
        args.regimen,
        times=args.times,
        covariates=covariates,
        occasions=args.occasions,
        lloq=args.lloq,
    )
    model = _model(args.source)
    with warnings.catch_warnings(record=True, action="always", category=DataWarning) as found:
        table = draw(model, cohort, seed=args.seed)
    for one in found:
        if not issubclass(one.category, DataWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            continue
        print(f"note: {one.message}", file=sys.stderr)
    put(out, lambda path: _write(table, path))
    print(f"written: {out} ({args.n} virtual patients, {len(table)} records)")
    return 0


def vpc(args: argparse.Namespace) -> int:
    """Write DIR/vpc.csv, DIR/vpc-shares.csv where values are censored or categories, and DIR/figures/vpc.png."""
    folder = Path(args.dir)
    fit = _load(folder)
    from nlmegen.check.vpc import vpc as check
    from nlmegen.plots.style import png

    result = check(
        fit, draws=args.draws, stratify=args.stratify, prediction_corrected=args.prediction_corrected
    )
    written = [folder / "vpc.csv"]
    put(written[0], lambda path: result.table.to_csv(path, index=False))
    if len(result.shares):
        written.append(folder / "vpc-shares.csv")
        put(written[1], lambda path: result.shares.to_csv(path, index=False))
    else:
        (folder / "vpc-shares.csv").unlink(missing_ok=True)  # of an earlier check
    figure = folder / "figures" / "vpc.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(png(result.plot()))
    print(f"written: {', '.join(str(path) for path in (*written, figure))}")
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


def _write(table: pd.DataFrame, out: Path) -> None:
    if out.suffix == ".parquet":
        table.to_parquet(out, index=False)
        return
    from nlmegen.data.nonmem import write_nonmem

    write_nonmem(table, out)
