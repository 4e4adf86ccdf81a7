"""Covariates: which columns they are, levels of texts, and their values at observations and in segments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmegen.data.columns import Floats, Ints, Table, is_number, is_reserved
from nlmegen.errors import DataError, nearest

MOST_LEVELS = 12  # a text with more of them is an id or a comment
_NAMED = 5  # lines that a sentence names
Levels = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Covariate:
    """One covariate of every subject.

    Attributes:
        name: Its column, lower case.
        observation: [subject, 1 or time] its value at each observation; width 1 where it is constant in every subject.
        segment: [subject, 1 or event] its value in each segment, see `Population.interpolation`.
        varies: Whether it changes within any subject.
        levels: The texts that the values 0, 1, ... stand for, in alphabetical order; empty for a number. On a page
            `cov.sex["male"]` is 1.0 where sex is male, else 0.0.
        dose: [subject, 1 or event] its value for what a page says of doses (bioavailability, lag, duration, rate): that
            of the record that ordered the dose, and of an event that is no dose its own.
    """

    name: str
    observation: Tensor
    segment: Tensor
    varies: bool
    levels: Levels = ()
    dose: Tensor | None = None

    def select(self, index: Tensor) -> Covariate:
        """Return the covariate of the subjects in `index` [M]."""
        dose = None if self.dose is None else self.dose[index]
        return Covariate(
            self.name, self.observation[index], self.segment[index], self.varies, self.levels, dose
        )


def read_covariates(
    table: Table, names: tuple[str, ...] | None, subject: Ints, known: dict[str, Levels] | None = None
) -> tuple[dict[str, Floats], dict[str, Levels], dict[str, str]]:
    """Read the covariates: numeric columns without a meaning of their own, and texts with few levels.

    A text is a covariate if every record has one, none is a number, and there are at most 12 of them; more than two of
    which each names one subject alone are ids, not levels.

    Args:
        table: The table.
        names: Names of the covariates to take, or None for all.
        subject: [R] the subject of each record.
        known: Levels to code texts with, in place of those met.

    Returns:
        Name -> [R] values (for a text, the number of its level), name -> levels of the texts, and name -> why a text is
        no covariate.

    Raises:
        DataError: an unknown name, a text that cannot be one, or a record without a value.
    """
    found: dict[str, Floats] = {}
    levels: dict[str, Levels] = {}
    possible: list[str] = []
    reasons: dict[str, str] = {}
    for name in table.frame.columns:
        if is_reserved(name) or not table.has(name):
            continue
        column = table.frame[name]
        if pd.api.types.is_numeric_dtype(column):
            possible.append(name)
            continue
        if names is not None and name not in names:
            continue
        if known is not None and name in known:
            met, reason = known[name], ""
        else:
            met, reason = _levels(table, name, subject)
        if reason:
            reasons[name] = reason
        else:
            possible.append(name)
            levels[name] = met
    for name in names or ():
        if name in reasons:
            raise DataError(f"expected a covariate, got {name!r}: {reasons[name]}", column=table.name(name))
        if name not in possible:
            raise DataError(
                "expected a covariate: a numeric column without a meaning of its own, or a text with few levels, "
                f"got {name!r}.{nearest(name, possible)}"
            )
    for name in possible:
        if names is None or name in names:
            found[name] = _values(table, name, levels.get(name))
    return found, levels, reasons


def _levels(table: Table, name: str, subject: Ints) -> tuple[Levels, str]:
    """The levels of a text, and why it has none."""
    column = table.frame[name]
    if column.isna().any():
        lines = table.line[np.flatnonzero(column.isna())]
        return (), (
            f"{len(lines)} of {len(column)} records have none (line{'s' if len(lines) > 1 else ''} "
            f"{', '.join(str(line) for line in lines[:_NAMED])}{', ...' if len(lines) > _NAMED else ''}); fill them in "
            f"(missing={{'{name}': 'carry'}} takes the subject's other value), or write a level such as 'unknown'"
        )
    texts = column.to_numpy()
    code, unique = pd.factorize(texts)
    if any(is_number(text) for text in unique):
        return (), "it mixes numbers with text; correct the cells that do not belong there"
    if len(unique) > MOST_LEVELS:
        return (), f"it has {len(unique)} different texts, a covariate at most {MOST_LEVELS}; group them"
    alike, spelt = pd.factorize(np.array([folded(text) for text in unique], dtype=object))
    if len(spelt) > 2 and len(np.unique(subject * len(spelt) + alike[code])) == len(spelt):
        return (), "every text names one subject alone, as an id does; group them"
    return tuple(sorted(unique)), ""


def folded(level: str) -> str:
    """Return a level without what only its spelling tells: case and blanks."""
    return "".join(level.split()).casefold()


def _values(table: Table, name: str, levels: Levels | None) -> Floats:
    if levels is not None:
        return np.array(pd.Categorical(table.frame[name], categories=list(levels)).codes, dtype=np.float64)
    values = table.frame[name].to_numpy(np.float64)
    blank = np.isnan(values)
    if blank.any():
        raise table.error(
            "expected a covariate's value on every record, got none; fill it in, choose a rule with "
            f"missing={{'{name}': 'carry'}} (or 'median', or a number), or leave the column out with "
            f"rename={{'{table.name(name)}': 'drop'}}",
            int(np.argmax(blank)),
            name,
        )
    return values


def between_records(
    values: Floats, following: Ints, record: Ints, interpolation: str, *, level: bool = False
) -> Floats:
    """Return the value of a covariate in the segments that events open.

    With (t_i, x_i) the records of a subject, the segments between t_i and t_{i+1} carry x_{i+1} ("nonmem": the next
    record governs the interval that ends at it), x_i ("locf") or (x_i + x_{i+1}) / 2 ("linear": the value of the
    straight line at the middle of the interval; a level has no middle and follows "nonmem"). After the last record x
    stays.

    Args:
        values: [R] one value a record.
        following: [M] the record after each event, its last one at the end.
        record: [M] the last record at or before each event.
        interpolation: "nonmem", "locf" or "linear".
        level: Whether the values number levels.

    Returns:
        [M] values.
    """
    weight = {"nonmem": 1.0, "locf": 0.0, "linear": 1.0 if level else 0.5}[interpolation]
    return np.asarray(values[record] + weight * (values[following] - values[record]), dtype=np.float64)


def covariate(
    name: str,
    values: Floats,
    segments: tuple[Floats, Floats] | None,
    at: Ints,
    event: Ints,
    first: Ints,
    levels: Levels,
) -> Covariate:
    """Arrange a covariate by subject.

    Args:
        name: Its name.
        values: [R] one value a record.
        segments: [M] one value a segment and one of the record that ordered its event, or None where it is constant in
            every subject.
        at, event: [subject, time], [subject, event] the record of each observation, the event of each segment.
        first: [subject] the first record.
        levels: Its levels.
    """
    if segments is None:
        constant = torch.from_numpy(values[first][:, None].copy())
        return Covariate(name, constant, constant, varies=False, levels=levels, dose=constant)
    segment, dose = (torch.from_numpy(x[event]) for x in segments)
    return Covariate(name, torch.from_numpy(values[at]), segment, varies=True, levels=levels, dose=dose)
