"""`nlmegen list` and `nlmegen check`: what there is, and how a table is understood."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nlmegen.cli.inputs import entry_of, is_file
from nlmegen.cli.outputs import check_output, put
from nlmegen.data.catalogue import list_data
from nlmegen.model.catalogue import list_models


def show(args: argparse.Namespace) -> int:
    """Print names and titles; pages are not run, tables not read."""
    del args
    _section("models", [(page.name, page.title) for page in list_models()])
    print()
    _section("data sets", [(entry.name, entry.title) for entry in list_data()])
    return 0


def check(args: argparse.Namespace) -> int:
    """Print what `nlmegen.check_table` says of a table, and draw it where a figure is asked for."""
    if args.figure is not None:
        check_output(Path(args.figure), args.force, (".png",), "--figure")

    from nlmegen.check.table.report import check_table

    if is_file(args.data):
        report = check_table(args.data)
    else:
        entry = entry_of(args.data)
        units = entry.units
        report = check_table(
            entry.path,
            time_unit=units.get("TIME", ""),
            amount_unit=units.get("AMT", ""),
            dv_unit=units.get("DV", ""),
        )
    print(report)
    if args.figure is not None:
        from nlmegen.plots.style import png

        put(Path(args.figure), lambda path: path.write_bytes(png(report.plot())))
        print(f"\nwritten: {args.figure}")
    return 0


def _section(title: str, rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    print(title)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
