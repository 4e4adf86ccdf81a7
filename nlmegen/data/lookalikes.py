"""Columns and levels that may mean more than how they are read: doses, records to leave out, limits, spellings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from nlmegen.data.columns import FLAGS, Floats, Table, quote
from nlmegen.data.covariates import Levels, folded

_DURATION = "the duration of an infusion"
_DOSES = (
    (re.compile(r"f\d+"), "bioavailability"),
    (re.compile(r"d\d+|tinf|dur(ation)?"), _DURATION),
    (re.compile(r"r\d+"), "the rate of an infusion"),
    (re.compile(r"s\d+"), "the scale of a compartment"),
    (re.compile(r"tlag|a?lag\d*"), "a lag time"),
)  # names that say something about doses to other programs; here a page has to use them (`dosing`)
_GENERAL = (
    "dur",
    "duration",
)  # also the length of an illness: no word where RATE says how long infusions take
_LEFT_OUT = ("excl", "exclude", "excluded", "exclusion", "ignore", "ignored")
_BELOW = re.compile(r"(bloq|lloq|loq|blq|bql)(fl|fn|flag)|bloq|censor(ed|ing)?")


def lookalike(name: str) -> str | None:
    """Return what the column `name` (lower case) means to other programs although it is a covariate here, or None."""
    return next((meaning for pattern, meaning in _DOSES if pattern.fullmatch(name)), None)


def suspected(table: Table, covariates: Mapping[str, Floats]) -> Iterator[str]:
    """Yield what columns may mean that are read as covariates, or not used at all.

    - F1, D1, TINF, DUR, R1, S1, ALAG1 and the like: they change no dose by themselves.
    - EXCL, EXCLUDE, IGNORE with values other than 0, and C with the letter C: records that others leave out.
    - BLOQ, BLQFN, LOQFL and the like with 0 and 1: a flag of values below quantification.

    Args:
        table: The table.
        covariates: Name -> [R] values, of the covariates that were taken.
    """
    rated = bool((np.nan_to_num(table.numbers("rate")) > 0).any())
    flagged = any(table.has(name) and bool((np.nan_to_num(table.numbers(name)) != 0).any()) for name in FLAGS)
    for name, values in covariates.items():
        shown = table.name(name)
        if name in _LEFT_OUT and values.any():
            rows = np.flatnonzero(values)
            yield (
                f"column {shown} is not 0 on {len(rows)} of {len(values)} records, the first on line "
                f"{table.line[rows[0]]}: it is read as a covariate and nothing is left out; "
                f"ignore=['{name} != 0'] leaves these records out"
            )
        elif _BELOW.fullmatch(name) and not flagged and set(np.unique(values)) == {0.0, 1.0}:
            yield (
                f"column {shown} is read as a covariate only, and values count as measured where it is 1: does it flag "
                f"values below quantification? rename={{'{shown}': 'cens'}} takes them as such, with the limit in DV "
                "or LLOQ"
            )
        elif (meaning := lookalike(name)) and values.any() and not (name in _GENERAL and rated):
            rate = f"; for infusions write RATE = AMT/{shown}" if meaning == _DURATION else ""
            yield (
                f"column {shown} is read as a covariate only: elsewhere it may be {meaning}, here it changes no dose "
                f"unless the page uses it (cov.{name}){rate}; rename={{'{shown}': 'drop'}} leaves it out"
            )
    yield from _commented(table)


def _commented(table: Table) -> Iterator[str]:
    """A column C that holds nothing but the letter C: NONMEM's IGNORE=C."""
    if not table.has("c") or pd.api.types.is_numeric_dtype(table.frame["c"]):
        return
    column = table.frame["c"]
    if set(column.dropna()) <= {"C", "c"}:
        rows = np.flatnonzero(column.notna().to_numpy())
        letter = column.iloc[rows[0]]
        yield (
            f"column {table.name('c')} holds the letter {letter} on {len(rows)} of {len(column)} records, the first on "
            f"line {table.line[rows[0]]}: such records are meant to be left out elsewhere (IGNORE=C), here nothing is; "
            f"ignore=['c == {letter}'] leaves them out"
        )


def spelt_alike(table: Table, levels: Mapping[str, Levels]) -> Iterator[str]:
    """Yield levels of a covariate that differ in nothing but case and blanks.

    Args:
        table: The table.
        levels: Name -> levels of the covariates that are texts.
    """
    for name, met in levels.items():
        spellings: dict[str, list[str]] = {}
        for level in met:
            spellings.setdefault(folded(level), []).append(level)
        texts = table.frame[name].to_numpy()
        for alike in spellings.values():
            if len(alike) < 2:
                continue
            rows = [np.flatnonzero(texts == level) for level in alike]
            if min(map(len, rows)) == 0:  # a level of other data that no record here has
                continue
            words = ", ".join(
                f"{quote(level)} ({len(own)} records, the first on line {table.line[own[0]]})"
                for level, own in zip(alike, rows, strict=True)
            )
            yield (
                f"levels of {table.name(name)} differ only in case or blanks: {words}; they count as {len(alike)} "
                "levels: write them in one way"
            )
