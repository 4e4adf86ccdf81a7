"""From the words on the command line to data."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from nlmegen.data.catalogue import Entry, list_data
from nlmegen.errors import DataError, nearest

if TYPE_CHECKING:
    from nlmegen.data.population import Population

TABLES = (".csv", ".dat", ".txt", ".tab", ".prn")


def is_file(text: str) -> bool:
    """Whether DATA means a file rather than a name of the catalogue."""
    return "/" in text or "\\" in text or Path(text).suffix.lower() in TABLES or Path(text).is_file()


def entry_of(name: str) -> Entry:
    """The data set of the catalogue that is called `name`."""
    entries = {entry.name: entry for entry in list_data()}
    if name not in entries:
        raise DataError(
            f"no file and no data set of the catalogue is called '{name}'.{nearest(name, entries)}"
        )
    return entries[name]


def read_population(
    text: str, *, interpolation: str = "nonmem", time_unit: str = "", amount_unit: str = "", dv_unit: str = ""
) -> Population:
    """The data that DATA names; what deserves a look in them is said on standard error.

    Args:
        text: A file, or a name of the catalogue.
        interpolation: How covariates of a file behave between records.
        time_unit, amount_unit, dv_unit: Units of a file; a data set of the catalogue knows its own.

    Raises:
        DataError: The file cannot be used, or no file and no data set has that name.
    """
    from nlmegen.data.catalogue import load_data
    from nlmegen.data.columns import DataWarning
    from nlmegen.data.nonmem import read_nonmem

    with warnings.catch_warnings(action="ignore", category=DataWarning):  # they are printed below, as notes
        if is_file(text):
            data = read_nonmem(
                text,
                interpolation=interpolation,
                time_unit=time_unit,
                amount_unit=amount_unit,
                dv_unit=dv_unit,
            )
        else:
            data = load_data(entry_of(text).name)
    for warning in data.warnings:
        print(f"note: {warning}", file=sys.stderr)
    return data
