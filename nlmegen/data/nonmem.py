"""Read and write NONMEM-format tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nlmegen.data.cells import raw_from_frame, typed
from nlmegen.data.columns import Table
from nlmegen.data.csvtext import read_text, split_cells
from nlmegen.data.filling import Missing, filled, separated
from nlmegen.data.population import Population, build, csv_text
from nlmegen.data.selection import checked_rename, renamed, selected, split_ignore
from nlmegen.errors import DataError

Source = str | Path | pd.DataFrame


def read_nonmem(
    path_or_df: Source,
    *,
    ignore: str | Sequence[str] | None = None,
    accept: str | Sequence[str] | None = None,
    rename: Mapping[str, str | None] | None = None,
    interpolation: str = "nonmem",
    missing: Missing | None = None,
    repeated_ids: str = "refuse",
    time_unit: str = "",
    amount_unit: str = "",
    dv_unit: str = "",
) -> Population:
    r"""Read a NONMEM-format table into a Population.

    The file is UTF-8 csv with a header; upper and lower case of names are the same. ID, TIME and DV are required;
    AMT, EVID, MDV, RATE, ADDL, II, SS, CMT, DVID, CENS (BLQ, BQL), LIMIT, LLOQ, ULOQ, OCC, L2 and DATE (DAT1, DAT2,
    DAT3) are used where present. Every other numeric column is a covariate, and so is a text with few levels (columns
    that a fit or a simulation appends, such as PRED, CWRES, ETA_CL, and other texts are kept in the table only; F1,
    D1, R1, S1, ALAG1, TLAG, TINF and DUR are covariates with a DataWarning: they change no dose unless the page uses
    them). `.` and an empty cell are missing. What each column may hold is stated in
    `nlmegen.data.records.read_records`, when doses happen in `nlmegen.data.events.Events`. Column order is free.

    Args:
        path_or_df: A path, or a DataFrame (its row k counts as line k + 2 in messages).
        ignore: A comment character (lines that start with it are left out; "#" if none is given), conditions such as
            "dv == 0" of which any one excludes a record, or a list with both. A missing value meets no condition.
        accept: Conditions of which any one keeps a record; not together with conditions in `ignore`.
        rename: {name in the file: name here}; "drop" leaves a column out.
        interpolation: How covariates behave between records: "nonmem" (the next record's value governs the interval
            that ends at it), "locf" or "linear"; see `Population`.
        missing: How missing covariates are filled in, {"wt": "median", "crcl": "carry", "age": 40}: with the median of
            the subjects' first values, with the subject's last value before (or else its first one after), with a
            number; see `nlmegen.data.filling.filled`. What is filled in is counted in a DataWarning.
        repeated_ids: What to do about records of one id that others interrupt: "refuse", or "separate" to take each run
            of records as a subject of its own, as NONMEM does.
        time_unit, amount_unit, dv_unit: Units, for labels only.

    Returns:
        The Population. Subjects without doses or without observations are kept, with a DataWarning.

    Raises:
        DataError: the table cannot be used as it stands; the message names row and column and the remedy.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "one.csv"
        ...     _ = path.write_text("ID,TIME,AMT,CONC\n1,0,100,.\n1,2,.,7.5\n")
        ...     population = read_nonmem(path, rename={"CONC": "dv"})
        >>> population.n_subjects, population.n_doses, population.dv.tolist()
        (1, 1, [[7.5]])
    """
    table = read_table(
        path_or_df, ignore=ignore, accept=accept, rename=rename, missing=missing, repeated_ids=repeated_ids
    )
    return build(table, interpolation, (time_unit, amount_unit, dv_unit))


def read_table(
    path_or_df: Source,
    *,
    ignore: str | Sequence[str] | None = None,
    accept: str | Sequence[str] | None = None,
    rename: Mapping[str, str | None] | None = None,
    missing: Missing | None = None,
    repeated_ids: str = "refuse",
) -> Table:
    """Read a table's cells, without asking yet what the records mean; arguments as in `read_nonmem`.

    Raises:
        DataError: the file or a cell cannot be read.
    """
    comment, conditions = split_ignore(ignore)
    names = checked_rename(rename)
    if isinstance(path_or_df, pd.DataFrame):
        raw = raw_from_frame(path_or_df)
    elif isinstance(path_or_df, str | Path):
        raw = split_cells(read_text(Path(path_or_df)), comment, names)
    else:
        raise DataError(f"expected a path or a DataFrame, got a {type(path_or_df).__name__}")
    table = typed(selected(renamed(raw, names), conditions, accept))
    return filled(separated(table, repeated_ids), missing)


def write_nonmem(population: Population | pd.DataFrame, path: str | Path) -> Path:
    """Write a table that `read_nonmem` reads back to the same Population.

    Names are upper case, missing values '.', numbers the shortest decimals that give the same float64.

    Args:
        population: A Population, or a DataFrame in NONMEM columns.
        path: The file; an existing one is replaced.

    Returns:
        The path.

    Raises:
        DataError: the folder does not exist, the DataFrame is no such table, or a record would begin with '#' and so
            read as a comment.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise DataError(f"expected a folder to write to, found none at {target.parent}; create it first")
    frame = (
        population.table if isinstance(population, Population) else typed(raw_from_frame(population)).frame
    )
    first = frame.iloc[:, 0]
    if not pd.api.types.is_numeric_dtype(first) and first.astype(str).str.startswith("#").any():
        raise DataError(
            f"expected a first column without '#', which starts a comment, got it in {frame.columns[0]}; put another "
            "column first or change the text"
        )
    shown = {name: name.upper() for name in frame.columns if name.upper().lower() == name}
    target.write_text(csv_text(frame.rename(columns=shown)), encoding="utf-8", newline="\n")
    return target
