"""A fuzzer of the reader: tables broken at random must be refused with a DataError or read rightly.

    python tests/data/fuzz.py --seconds 3600 --seed 1

It reports any other exception, any table that takes more than five seconds, and any table that was accepted although
an independent look at its text says that something of it was lost.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from nlmegen.data.columns import DataWarning
from nlmegen.data.events import Kind
from nlmegen.data.nonmem import read_nonmem
from nlmegen.data.population import Population
from nlmegen.errors import DataError

HANG = 5  # seconds
DATASETS = Path(__file__).resolve().parents[2] / "datasets"
WHOLE = """\
ID,DATE,TIME,AMT,RATE,ADDL,II,SS,CMT,EVID,MDV,DV,CENS,LIMIT,LLOQ,OCC,L2,DVID,WT,SEX
1,5/1/2024,8:00,100,0,3,12,1,1,1,1,.,0,.,.,1,0,1,70,male
1,5/1/2024,9:30,.,.,.,.,.,2,0,0,4.1,0,.,0.5,1,1,1,70,male
1,5/1/2024,9:30,.,.,.,.,.,2,0,0,31,0,.,.,1,1,2,70,male
1,5/2/2024,8:00,50,-2,.,.,.,1,1,1,.,0,.,.,2,0,1,71,male
1,5/2/2024,9:00,.,.,.,.,.,-1,2,1,.,.,.,.,2,0,1,71,male
1,5/2/2024,20:00,.,.,.,.,.,2,0,0,0.5,1,0,0.5,2,2,1,71,male
2,5/3/2024,7:45,0,25,.,.,1,2,1,1,.,0,.,.,1,0,1,62,female
2,5/3/2024,8:45,.,.,.,.,.,2,0,0,<0.5,.,.,0.5,1,1,1,62,female
2,5/3/2024,8:45,100,20,2,6,2,1,4,1,.,.,.,.,1,0,1,62,female
2,5/4/2024,8:45,.,.,.,.,.,2,0,0,2.5,.,.,0.5,1,2,1,62,female
"""
CELLS = (
    "", ".", "0", "1", "-1", "2", "-2", "3", "4", "12", "0.5", "1e999", "-1e9", "1e300", "1e-300", "NaN", "inf", "NA",
    "<0.5", ">3", "BLQ", "ALQ", "8:30", "25:61", "24:00", "1/13/2024", "2024-02-30", "male", "x", '"', "'", "1,5",
    "1_0", "١", "\x00", "9" * 30, "0x10", "TRUE", "#1", "-0", "+1", " 7 ", "1e5", "100001", "é",
)  # fmt: skip
HEADERS = (
    "SS", "II", "ADDL", "RATE", "EVID", "MDV", "CMT", "DVID", "CENS", "BLQ", "BQL", "LLOQ", "ULOQ", "LIMIT", "OCC",
    "L2", "DATE", "DAT1", "DAT2", "DAT3", "CLOCK", "ALAG1", "F1", "PCMT", "CALL", "WT", "", "ID", "TIME", "DV", "AMT",
    "time",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """A table that was neither refused with a DataError nor read rightly."""

    what: str
    content: bytes
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.what}\noptions {self.options}\n{self.content!r}"


def fuzz(
    *,
    seconds: float = math.inf,
    cases: float = math.inf,
    seed: int = 0,
    tell: Callable[[Finding], None] | None = None,
) -> tuple[int, int, list[Finding]]:
    """Break tables until the time is up or as many cases are done; `tell` hears of a finding at once.

    Returns:
        How many tables were tried, how many of them were accepted, and what was found.
    """
    chance, stop, tried, accepted = random.Random(seed), time.monotonic() + seconds, 0, 0
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        while tried < cases and time.monotonic() < stop:
            content, options = broken(chance), chosen(chance)
            path.write_bytes(content)
            tried += 1
            what = attempt(path, content, options)
            accepted += what == ""
            if what:
                found.append(Finding(what, content, options))
                if tell is not None:
                    tell(found[-1])
    return tried, accepted, found


def attempt(path: Path, content: bytes, options: dict[str, Any]) -> str | None:
    """Read a table: None where it was refused, "" where it was read rightly, else what is wrong."""
    previous = signal.signal(signal.SIGALRM, _hang)
    signal.alarm(HANG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DataWarning)
            population = read_nonmem(path, **options)
            if "missing" not in options and "repeated_ids" not in options:
                lost = "; ".join(losses(population, content))
            else:
                lost = "; ".join(holes(population))
            repr(population)
            return lost
    except DataError as error:
        return None if str(error).strip() else "a DataError without a message"
    except _Hang:
        return f"more than {HANG} seconds"
    except Exception:  # noqa: BLE001 - whatever it is, it is what the fuzzer looks for
        return traceback.format_exc(limit=-4)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


class _Hang(BaseException):
    pass


def _hang(number: int, frame: FrameType | None) -> None:
    raise _Hang


def chosen(chance: random.Random) -> dict[str, Any]:
    """Options of a call."""
    options: dict[str, Any] = {"interpolation": chance.choice(("nonmem", "locf", "linear"))}
    if chance.random() < 0.1:
        options["repeated_ids"] = "separate"
    if chance.random() < 0.1:
        options["missing"] = {chance.choice(("wt", "WT", "sex")): chance.choice(("median", "carry", 5.0))}
    return options


# ---- what an accepted table must keep


def losses(population: Population, content: bytes) -> Iterator[str]:
    """Say what a dumb look at the text finds that the Population has not."""
    yield from holes(population)
    rows = plain_rows(content)
    if rows is None:
        return
    seen = sum(_observed(row) for row in rows)
    if population.n_observations != seen:
        yield f"{seen} observations in the text, {population.n_observations} read"
    if len(population.table) != len(rows):
        yield f"{len(rows)} records in the text, {len(population.table)} in the table"
        return
    yield from _changed_cells(population, rows)
    yield from _idle(population, rows)
    expected = _amounts(population, rows)
    if expected is not None:
        given = (population.events.kind == Kind.BOLUS) | (population.events.kind == Kind.START)
        total = float(population.events.amount[given].sum())
        if not math.isclose(total, expected, rel_tol=1e-9):
            yield f"doses of {expected} in the text, {total} among the events"
    again = Population.from_table(population.to_table(), population.interpolation, warn=False)
    if again.sha256 != population.sha256 or not again.events.time.equal(population.events.time):
        yield "its own table does not read back to the same Population"


def holes(population: Population) -> Iterator[str]:
    """Look for NaN, events out of order and flags without limits."""
    mask, events = population.mask, population.events
    real = events.kind != Kind.PAD
    for name, values in (
        ("time", population.time[mask]), ("dv", population.dv[mask]), ("event time", events.time[real]),
        ("amount", events.amount), ("rate", events.rate), ("given", events.given), ("interval", events.interval),
        *((name, item.segment) for name, item in population.covariates.items()),
        *((name, item.observation) for name, item in population.covariates.items()),
    ):  # fmt: skip
        if not bool(values.isfinite().all()):
            yield f"{name} is not finite"
    back = (events.time.diff(dim=1) < 0) & (events.kind[:, 1:] != Kind.RESET)
    if bool(back.any()):
        yield "events go back in time"
    if bool((population.time < events.time.gather(1, population.segment))[mask].any()):
        yield "an observation before its segment"
    censored = population.cens != 0
    if bool((population.lower >= population.upper)[censored].any()) or bool(
        population.lower.isnan()[censored].any() | population.upper.isnan()[censored].any()
    ):
        yield "a censored observation without an interval"
    if bool(population.lower.isfinite()[~censored].any()):
        yield "an interval of an observation that is not censored"
    if bool(((events.kind == Kind.STEADY) & (events.interval == 0) & (events.amount > 0)).any()):
        yield "a steady state without an interval"


def plain_rows(content: bytes) -> list[dict[str, str]] | None:
    """The records of an ordinary csv text; None where it is not ordinary (comments, quotes, odd blanks)."""
    text = content.decode("utf-8-sig")
    if any(letter in text for letter in "\"#'\t\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\xa0"):
        return None
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    head, *rows = csv.reader(io.StringIO("\n".join(lines)))
    names = [name.strip().lower() for name in head]
    table = [dict(zip(names, (cell.strip() for cell in row), strict=True)) for row in rows]
    if all(row.get("evid", "") in ("", ".") for row in table):  # blank throughout counts as none
        return [{name: cell for name, cell in row.items() if name != "evid"} for row in table]
    return table


def _number(row: dict[str, str], name: str) -> float:
    text = row.get(name, ".")
    if text in ("", "."):
        return 0.0
    if text.lower() in ("true", "t", "false", "f"):
        return float(text.lower()[0] == "t")
    return float(text)


def _dose(row: dict[str, str]) -> bool:
    if "evid" in row:
        return _number(row, "evid") in (1, 4)
    return any(_number(row, name) != 0 for name in ("amt", "rate", "addl", "ss"))


def _observed(row: dict[str, str]) -> bool:
    if "evid" in row and _number(row, "evid") != 0:
        return False
    return not _dose(row) and _number(row, "mdv") != 1


def _changed_cells(population: Population, rows: list[dict[str, str]]) -> Iterator[str]:
    """Every cell stands in the table as it was, but for dates, clock times and texts in DV."""
    for name in rows[0]:
        if name not in population.table.columns:
            if name not in ("date", "dat1", "dat2", "dat3"):
                yield f"column {name} is gone"
            continue
        if name in ("id", "time", "dv", "cens"):
            continue
        for row, cell in zip(rows, population.table[name].tolist(), strict=True):
            text = row[name]
            blank = text in ("", ".")
            if blank != (isinstance(cell, float) and math.isnan(cell)):
                yield f"{name}: {text!r} became {cell!r}"
                break
            if not blank and isinstance(cell, int | float) and float(cell) != _number(row, name):
                yield f"{name}: {text!r} became {cell!r}"
                break


def _idle(population: Population, rows: list[dict[str, str]]) -> Iterator[str]:
    """A cell that has no effect must be refused or lead to a warning."""
    said = " ".join(population.warnings)
    for row in rows:
        dose = _dose(row)
        for name in ("amt", "rate", "addl", "ss"):
            if not dose and _number(row, name) != 0:
                yield f"{name} on a record that is no dose was accepted"
        idle = _number(row, "ii") != 0 and _number(row, "addl") == 0 and _number(row, "ss") == 0
        if idle and "II has no effect" not in said:
            yield "II without effect and without a warning"
        for name in ("cens", "blq", "bql"):
            if not _observed(row) and _number(row, name) != 0 and "they are left out" not in said:
                yield f"{name} on a record that is no observation without a warning"
        for name in ("pcmt", "call", "cont"):
            if _number(row, name) != 0:
                yield f"{name} was accepted"


def _amounts(population: Population, rows: list[dict[str, str]]) -> float | None:
    """What all doses add up to: AMT x (1 + the additional doses before the last record that they may reach)."""
    times, ids, total = population.table["time"].tolist(), population.table["id"].tolist(), 0.0
    for k, row in enumerate(rows):
        if not _dose(row):
            continue
        reach = times[k]
        for later in range(k + 1, len(rows)):
            new = ids[later] != ids[k] or _number(rows[later], "evid") in (3, 4)
            if new or _number(rows[later], "ss") == 1:
                break
            reach = times[later]
        number, interval = _number(row, "addl"), _number(row, "ii")
        if number and interval:
            room = (reach - times[k]) / interval
            if abs(room - round(room)) < 1e-6 and room < number:
                room = round(room)  # on the time of a record, within rounding
            number = min(number, math.floor(room))
            if number > 1e5:
                return None
        total += _number(row, "amt") * (1 + number)
    return total


# ---- tables, and how they are broken


def broken(chance: random.Random) -> bytes:
    """A table with none to four faults."""
    text = chance.choice((WHOLE, WHOLE, generated(chance), generated(chance), real(chance)))
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        chance.choice((_cell, _cell, _cell, _row, _column))(rows, chance)
    content = "\n".join(map(",".join, rows)).encode() + b"\n"
    for _ in range(chance.choice((0, 0, 0, 0, 1, 3))):
        content = _bytes(content, chance)
    return content


def generated(chance: random.Random) -> str:
    """A valid table of a few subjects, in the columns of NONMEM."""
    head = ["ID", "TIME", "AMT", "DV", "EVID", "RATE", "ADDL", "II", "SS", "CMT", "WT", "OCC", "SEX"]
    lines = [head]
    for subject in range(chance.randint(1, 4)):
        now, weight = 0.0, chance.choice((50.0, 70.5))
        for _ in range(chance.randint(1, 9)):
            now += chance.choice((0, 0, 0.25, 1, 4, 12))
            evid = chance.choice((0, 0, 0, 1, 1, 1, 2, 3, 4))
            row = {
                "ID": subject + 1,
                "TIME": now,
                "EVID": evid,
                "WT": weight,
                "OCC": chance.choice((1, 1, 2)),
            }
            row |= {"SEX": chance.choice(("m", "f")), "CMT": chance.choice((1, 2, -1)) if evid == 2 else 1}
            if evid == 0:
                row["DV"] = round(chance.uniform(-3, 30), 2)
            if evid in (1, 4):
                steady = chance.choice((0, 0, 0, 1, 2))
                row |= {
                    "AMT": chance.choice((10, 62.5)),
                    "RATE": chance.choice((0, 0, 5, 40, -1, -2)),
                    "SS": steady,
                }
                if steady or chance.random() < 0.4:
                    row |= {"II": chance.choice((0.1, 6, 12)), "ADDL": chance.choice((0, 1, 5, 300))}
            lines.append([str(row.get(name, ".")) for name in head])
    return "\n".join(map(",".join, lines)) + "\n"


def real(chance: random.Random) -> str:
    """The first records of a table of the catalogue."""
    lines = chance.choice(sorted(DATASETS.glob("*/data.csv"))).read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: chance.randint(5, 80)]) + "\n"


def _cell(rows: list[list[str]], chance: random.Random) -> None:
    row = chance.choice(rows)
    if row:
        row[chance.randrange(len(row))] = chance.choice(CELLS)


def _row(rows: list[list[str]], chance: random.Random) -> None:
    where, how = chance.randrange(len(rows)), chance.randrange(5)
    if how == 0:
        del rows[where]
        rows.extend([] if rows else [["ID", "TIME", "DV"]])
    elif how == 1:
        rows.insert(chance.randrange(len(rows) + 1), list(rows[where]))
    elif how == 2:
        other = chance.randrange(len(rows))
        rows[where], rows[other] = rows[other], rows[where]
    elif how == 3:
        rows[where] = rows[where][: chance.randrange(len(rows[where]) + 1)]
    else:
        rows[where].append(chance.choice(CELLS))


def _column(rows: list[list[str]], chance: random.Random) -> None:
    width = len(rows[0]) or 1
    where, how = chance.randrange(width), chance.randrange(4)
    same, varied = chance.choice(CELLS), chance.random() < 0.5
    for number, row in enumerate(rows):
        if where >= len(row):
            continue
        if how == 0:
            del row[where]
        elif how == 1:
            row.insert(
                where, chance.choice(HEADERS) if number == 0 else chance.choice(CELLS) if varied else same
            )
        elif how == 2:
            row[where] = chance.choice(HEADERS) if number == 0 else row[where]
        elif number:
            row[where] = chance.choice(CELLS) if varied else same


def _bytes(content: bytes, chance: random.Random) -> bytes:
    where = chance.randrange(len(content) + 1)
    length = chance.choice((0, 1, 1, 5, 200))
    new = bytes(chance.randrange(256) for _ in range(chance.choice((0, 1, 1, 2))))
    new = new or bytes(chance.choices(b",.\n\r0123456789-<>:/#", k=2))
    return content[:where] + new + content[where + length :]


def main() -> int:
    """Run as a script and print what was found; the status is 1 where something was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    known: set[str] = set()

    def tell(item: Finding) -> None:
        kind = item.what.strip().splitlines()[-1][:60]
        if kind not in known:
            known.add(kind)
            print(f"{item}\n", flush=True)

    tried, accepted, found = fuzz(seconds=args.seconds, seed=args.seed, tell=tell)
    print(f"{tried} tables, {accepted} accepted, {len(found)} findings of {len(known)} kinds")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
