"""`nlmegen list` and `nlmegen check`: what there is, and how a table is understood."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from nlmegen.cli.inputs import entry_of, is_file
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
    """Print what `nlmegen.check_table` says of a table."""
    from nlmegen.data.check import check_table

    print(check_table(args.data if is_file(args.data) else entry_of(args.data).path))
    return 0


def _section(title: str, rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    print(title)
    for name, text in rows:
        print(f"  {name:<{width}}  {text}")
