"""Data sets by name. Listing them reads their READMEs with the standard library and loads nothing heavy."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from nlmegen.errors import DataError, nearest

if TYPE_CHECKING:
    from nlmegen.data.filling import Missing
    from nlmegen.data.population import Population

_UNIT_ROW = re.compile(r"\|\s*(?P<name>TIME|AMT|DV)\s*\|\s*(?P<unit>[^|]*?)\s*\|")


@dataclass(frozen=True)
class Entry:
    """A data set of the catalogue.

    Attributes:
        name: What `load_data` takes.
        title: The first line of its README.
        path: Its table.
    """

    name: str
    title: str
    path: Path

    @cached_property
    def n_subjects(self) -> int:
        """Number of different ids in the table."""
        with self.path.open(encoding="utf-8", newline="") as file:
            return len({row["ID"] for row in csv.DictReader(file)})

    @cached_property
    def units(self) -> dict[str, str]:
        """The units of TIME, AMT and DV, from the column table of the README."""
        text = (self.path.parent / "README.md").read_text(encoding="utf-8")
        return {found["name"]: found["unit"] for found in _UNIT_ROW.finditer(text)}


def list_data() -> list[Entry]:
    """Return the data sets of the catalogue, by name.

    Example:
        >>> [entry.name for entry in list_data()][:4]
        ['cefamandole', 'indomethacin', 'phenobarbital', 'quinidine']
    """
    folders = [path.parent for path in _root().glob("*/data.csv") if (path.parent / "README.md").is_file()]
    return [Entry(folder.name, _title(folder), folder / "data.csv") for folder in sorted(folders)]


def load_data(name: str, *, missing: Missing | None = None) -> Population:
    """Load a data set of the catalogue; its README (`list_data()`) gives source, licence, columns and units.

    Args:
        name: Its name; see `list_data`. Tables of your own are read with `read_nonmem`.
        missing: How missing covariates are filled in, as in `read_nonmem`.

    Raises:
        DataError: an unknown name.

    Example:
        >>> load_data("theophylline").n_observations
        132
    """
    entries = {entry.name: entry for entry in list_data()}
    if name not in entries:
        file = " A file is read with nlmegen.read_nonmem(path)." if str(name).lower().endswith(".csv") else ""
        raise DataError(f"expected the name of a data set, got {name!r}.{nearest(str(name), entries)}{file}")
    from nlmegen.data.nonmem import read_nonmem  # here, so that listing loads neither pandas nor torch

    entry = entries[name]
    units = entry.units
    return read_nonmem(
        entry.path,
        missing=missing,
        time_unit=units.get("TIME", ""),
        amount_unit=units.get("AMT", ""),
        dv_unit=units.get("DV", ""),
    )


def _root() -> Path:
    """The folder of data sets: inside the installed package, or beside the package in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_datasets"
    return installed if installed.is_dir() else package.parent / "datasets"


def _title(folder: Path) -> str:
    with (folder / "README.md").open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
