"""From the bytes of a file to cells: encoding, header, comment lines, ragged records; every fault with its line."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from nlmegen.data.columns import Raw, named
from nlmegen.errors import DataError

LONGEST_LINE = 100_000  # characters; a record of a thousand columns has some ten thousand
_BOMS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: the file is missing, a folder, empty, binary, or not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"expected a csv file, found none at {path};{_neighbour(path)}") from None
    except IsADirectoryError:
        raise DataError(f"expected a csv file, got the folder {path}; name the file inside it") from None
    except OSError as error:
        raise DataError(
            f"expected a readable csv file, got {path}: {error.strerror}; check its permissions"
        ) from None
    if not content.strip():
        raise DataError(f"expected a header and records, got the empty file {path}; check how it was written")
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            raise DataError(f"expected UTF-8 text, got {encoding} in {path}; save the file as UTF-8")
    if b"\x00" in content:
        line = _line(content, content.index(b"\x00"))
        raise DataError(
            f"expected text, got a NUL byte in {path}: a binary file (a workbook?) or UTF-16; save it as csv in UTF-8",
            row=line,
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"expected UTF-8 text, got the byte 0x{content[error.start]:02x} in {path}, as Latin-1 files have it; save "
            "the file as UTF-8",
            row=_line(content, error.start),
        ) from None


def split_cells(text: str, comment: str, rename: Mapping[str, str | None]) -> Raw:
    """Split the text of a csv file into named columns.

    Blank lines and lines that start with `comment` are left out. The header is the first line that is neither; a line
    that starts with the comment character is the header all the same if it names id and time before any other line.

    Args:
        text: The whole file.
        comment: One character.
        rename: As in `nlmegen.read_nonmem`; only used to recognise a header behind a comment character.

    Raises:
        DataError: no header, no records, another separator than a comma, a record with too many or too few fields.
    """
    every = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    longest = max(map(len, every))
    if longest > LONGEST_LINE:
        raise DataError(
            f"expected a record on each line, got {longest:,} characters on one; check that the file has line ends and "
            "holds one record a line",
            row=1 + next(k for k, line in enumerate(every) if len(line) == longest),
        )
    top = _header_line(every, comment, rename)
    header = every[top].lstrip("#").strip() if comment == "#" else every[top]
    names = _names(header, top + 1)
    body = [line.strip() for line in every]
    numbers = [k for k in range(top + 1, len(body)) if body[k] and body[k][0] != comment]
    if not numbers:
        raise DataError(
            "expected records below the header, got none; check how the file was written", row=top + 1
        )
    lines = [body[k] for k in numbers]
    if '"' not in text and {line.count(",") for line in lines} == {len(names) - 1}:
        cells = ",".join(lines).split(",")  # several times faster than csv on a table of 10,000 subjects
        columns = [cells[k :: len(names)] for k in range(len(names))]
    else:
        rows = _rows(lines, numbers)
        _check_widths(rows, numbers, names, header)
        columns = [list(column) for column in zip(*rows, strict=True)]
    return Raw(dict(zip(names, columns, strict=True)), names, np.array(numbers, dtype=np.int64) + 1)


def _header_line(every: list[str], comment: str, rename: Mapping[str, str | None]) -> int:
    meaning = {old.strip().lower(): new for old, new in rename.items()}
    for number, line in enumerate(every):
        if not line.strip():
            continue
        if not line.lstrip().startswith(comment):
            return number
        fields = [field.strip(' "').lower() for field in line.lstrip(" #").split(",")]
        fields = [(meaning.get(field) or field).lower() for field in fields]
        if "id" in fields and "time" in fields:
            return number
    raise DataError("expected a header and records, got only comment lines; check the file and ignore=")


def _names(header: str, row: int) -> dict[str, str]:
    fields = next(csv.reader([header]))
    if len(fields) == 1:
        for separator, noun in ((";", "semicolons"), ("\t", "tabs"), (None, "blanks")):
            if len(header.split(separator)) > 2:
                comma = ", with decimal points instead of decimal commas" if separator == ";" else ""
                raise DataError(
                    f"expected fields separated by commas, got {noun} in the header; save the file with commas{comma}",
                    row=row,
                )
    try:
        numbers = [float(field) for field in fields if field.strip() not in ("", ".")]
    except ValueError:
        return named(fields, row)
    if not numbers:
        return named(fields, row)
    raise DataError(
        f"expected the names of the columns on the first line, got {len(numbers)} numbers; add a header such as "
        "ID,TIME,AMT,DV,EVID",
        row=row,
    )


def _rows(lines: list[str], numbers: list[int]) -> list[list[str]]:
    reader = csv.reader(lines, skipinitialspace=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(
            f"expected a csv record, got one that cannot be split: {error}",
            row=numbers[reader.line_num - 1] + 1,
        ) from None
    if len(rows) != len(lines):
        reader = csv.reader(lines, skipinitialspace=True)
        position = next(k for k, _ in enumerate(reader) if reader.line_num != k + 1)
        raise DataError(
            "expected a closing quotation mark on the same line, got none; close the quotes or remove them",
            row=numbers[position] + 1,
        )
    return rows


def _check_widths(rows: list[list[str]], numbers: list[int], names: dict[str, str], header: str) -> None:
    width = len(names)
    if set(map(len, rows)) == {width}:
        return
    position = next(k for k, row in enumerate(rows) if len(row) != width)
    count = len(rows[position])
    why = "quote text that holds a comma" if count > width else "write '.' where a value is missing"
    if (
        count > width
        and header.count(",") + 1 == width
        and all(field.strip(" +-").isdigit() for field in rows[position])
    ):
        why += "; if the numbers have decimal commas, write decimal points"
    raise DataError(
        f"expected {width} fields as in the header ({', '.join(names.values())}), got {count}; {why}",
        row=numbers[position] + 1,
    )


def _line(content: bytes, offset: int) -> int:
    return content[:offset].replace(b"\r\n", b"\n").replace(b"\r", b"\n").count(b"\n") + 1


def _neighbour(path: Path) -> str:
    """Suggest a file near a path that does not exist."""
    folder = path.parent
    if not folder.is_dir():
        return f" the folder {folder} does not exist either; check the path"
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f" did you mean {folder / close[0]}?"
    tables = sorted(name for name in names if name.lower().endswith(".csv"))[:5]
    return (
        f" csv files there: {', '.join(tables)}"
        if tables
        else " there is no csv file in that folder; check the path"
    )
