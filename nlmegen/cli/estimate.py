"""`nlmegen fit`: one estimation, or two side by side, and the folders they leave."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlmegen.cli.inputs import read_population
from nlmegen.cli.progress import Reporter
from nlmegen.cli.settings import UsageError, accepts, build, check_method, describe

if TYPE_CHECKING:
    from nlmegen.fit import Fit

WRITTEN = ("report.html", "parameters.csv", "individuals.csv", "predictions.csv", "figures/", "fit.json")
"""The files of a folder worth a look; what could not be made of a fit is not there."""

FLAGS = ("seed", "device", "evaluate")


def run(args: argparse.Namespace) -> int:
    """Fit, print the parameter table, write the folder; with `--compare` fit again and compare."""
    check_method(args.method)
    if args.compare is not None:
        check_method(args.compare)
        if args.compare == args.method:
            raise UsageError(f"--compare {args.compare}: that is the method already; name another one")
    if "help" in args.set:
        print(describe(args.method))
        return 0
    method, other = _methods(args)

    from nlmegen.model.catalogue import load_model
    from nlmegen.results import check_target

    model = load_model(args.model)
    out = Path(args.out) if args.out else Path("nlmegen-out") / f"{model.name}-{args.method}"
    check_target(out, args.force)  # before the work, not after it
    data = read_population(args.data)

    first = _fit(model, data, method, out, args, args.force)
    if other is None or _interrupted(first):
        return _status([(first, out)])
    folder = out / f"compare-{args.compare}"
    second = _fit(model, data, other, folder, args, False)
    if _usable(first) and _usable(second):
        from nlmegen.fit import compare
        from nlmegen.report.html import report

        comparison = compare(first, second, names=[args.method, args.compare])
        print(f"\n{comparison}")
        comparison.table.to_csv(out / "comparison.csv")
        report(first, out / "report.html", compare=comparison)
        print(f"written: {out / 'comparison.csv'}, and the comparison into {out / 'report.html'}")
    return _status([(first, out), (second, folder)])


def _methods(args: argparse.Namespace) -> tuple[Any, Any]:
    """The method and, if one is asked for, the method to compare with; flags go where they mean something."""
    flags = {flag: getattr(args, flag) for flag in FLAGS if getattr(args, flag) not in (None, False, "cpu")}
    if args.compare is None:
        return build(args.method, args.set, flags), None
    theirs = {
        flag: value for flag, value in flags.items() if accepts(args.compare, flag) or flag == "evaluate"
    }
    ours = {flag: value for flag, value in flags.items() if accepts(args.method, flag) or flag not in theirs}
    return build(args.method, args.set, ours), build(args.compare, [], theirs)


def _fit(model: Any, data: Any, method: Any, out: Path, args: argparse.Namespace, force: bool) -> Fit:
    from nlmegen.fit import fit
    from nlmegen.results import save_fit
    from nlmegen.results.facts import facts

    with Reporter(args.progress) as reporter:
        result = fit(model, data, method, progress=reporter.callback)
    save_fit(result, out, force=force)
    print(f"{result}\n")
    there = [name for name in WRITTEN if (out / name).exists()]
    print(f"written: {out}/ ({', '.join(there)})")
    kept = json.loads((out / "fit.json").read_text(encoding="utf-8"))["notes"]
    for note in kept[len(facts(result)["notes"]) :]:  # after those on the numbers: what the files lack
        print(f"note: {note}", file=sys.stderr)
    return result


def _usable(result: Fit) -> bool:
    return bool(result.converged) and math.isfinite(result.ofv)


def _interrupted(result: Fit) -> bool:
    return not result.converged and "interrupt" in result.reason


def _status(results: list[tuple[Fit, Path]]) -> int:
    """0, or 3 after a word on each result that is not usable: what failed, what to try, what was kept."""
    poor = [(result, out) for result, out in results if not _usable(result)]
    for result, out in poor:
        what = f"{result.reason}."
        if not _interrupted(result):
            what = (
                f"the estimation by {result.method} failed: {result.reason}. Look at report.html; try other"
                " starts, another --method, or other limits (--set help)."
            )
        print(f"nlmegen: {what} The partial result is kept in {out}", file=sys.stderr)
    return 3 if poor else 0
