"""Files that commands write: refused before any work, or else whole."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from nlmegen.cli.settings import UsageError


def check_output(out: Path, force: bool, kinds: tuple[str, ...], option: str = "--out") -> None:
    """Refuse, before any work, a file that could not be written or that would destroy another.

    Args:
        out: The file.
        force: Whether it may replace another.
        kinds: Endings that it may have.
        option: The option that named it, for messages.

    Raises:
        UsageError: with the remedy.
    """
    if out.suffix not in kinds:
        raise UsageError(f"{option} {out}: expected a name that ends in {' or '.join(kinds)}")
    if out.exists() and not force:
        raise UsageError(f"{option} {out} exists; choose another name, or replace it with --force")
    if out.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{option} {out}: parquet needs pyarrow; pip install 'nlmegen[parquet]', or write a .csv"
        )
    if not out.parent.is_dir():
        raise UsageError(f"{option} {out}: there is no directory {out.parent}; make it first")


def put(out: Path, write: Callable[[Path], object]) -> None:
    """Write beside `out` and move it there when it is whole."""
    part = out.with_name(f".part-{out.name}")
    try:
        write(part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
