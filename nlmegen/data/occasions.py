"""Occasions (OCC) and groups of observations that belong together (L2), numbered within each subject."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor

from nlmegen.data.columns import Bools, Ints, Table
from nlmegen.data.padding import widened


@dataclass(frozen=True, eq=False)
class Occasions:
    """The occasions of every subject, numbered 0, 1, ... in the order in which they appear.

    Between records an occasion follows `Population.interpolation` as a covariate does; with "linear" it follows
    "nonmem". A record that returns to an earlier label returns to that occasion.

    Attributes:
        observation: [subject, time] int64, the occasion of each observation; padding repeats the last.
        segment: [subject, event] int64, the occasion of each segment.
        number: [subject] int64, how many occasions the subject has.
        labels: For each subject the labels of its occasions, as text.
        dose: [subject, event] int64, the occasion of what a page says of doses, see `Covariate`.
    """

    observation: Tensor
    segment: Tensor
    number: Tensor
    labels: tuple[tuple[str, ...], ...]
    dose: Tensor

    @property
    def count(self) -> int:
        """The largest number of occasions of a subject, at least 1."""
        return max(int(self.number.max()), 1) if len(self.number) else 1

    @property
    def varies(self) -> bool:
        """Whether any subject has more than one."""
        return self.count > 1

    def select(self, index: Tensor) -> Occasions:
        """Return the occasions of the subjects in `index` [M]."""
        labels = tuple(self.labels[k] for k in index.tolist())
        return Occasions(
            self.observation[index], self.segment[index], self.number[index], labels, self.dose[index]
        )

    def widened(self, width: int) -> Occasions:
        """Return the same with observations padded to `width`."""
        return replace(self, observation=widened(self.observation, width))


def read_occasions(table: Table, subject: Ints, size: int) -> tuple[Ints, tuple[tuple[str, ...], ...]] | None:
    """Read OCC: a number or a text on every record.

    Args:
        table: The table.
        subject: [R] the subject of each record.
        size: Number of subjects.

    Returns:
        [R] the occasion within the subject, and the labels of each subject; None without the column.

    Raises:
        DataError: a record without an occasion.
    """
    if not table.has("occ"):
        return None
    column = table.frame["occ"]
    blank = column.isna().to_numpy()
    if blank.any():
        raise table.error(
            "expected an occasion on every record, got none; write which one the record belongs to",
            int(np.argmax(blank)),
            "occ",
        )
    code, unique = pd.factorize(column.to_numpy())
    names = [_text(value) for value in unique]
    pair = subject * len(unique) + code
    first = np.unique(pair, return_index=True)[1]
    order = np.sort(first)  # the records that open an occasion
    opened = np.bincount(subject[order], minlength=size)
    place = np.arange(len(order)) - (np.cumsum(opened) - opened)[subject[order]]
    within = np.zeros(size * len(unique), dtype=np.int64)
    within[pair[order]] = place
    labels: list[list[str]] = [[] for _ in range(size)]
    for row in order.tolist():
        labels[subject[row]].append(names[code[row]])
    return within[pair], tuple(tuple(part) for part in labels)


def read_groups(table: Table, subject: Ints, observed: Bools) -> Ints | None:
    """Read L2: observations of a run of records with one value other than 0 have correlated residuals (NONMEM's L2).

    Returns:
        [R] the group within the subject (0, 1, ...), -1 where the record is in none; None without the column, or where
        it is 0 throughout.

    Raises:
        DataError: a cell that is no number.
    """
    values = np.nan_to_num(table.numbers("l2"))
    if not values.any():
        return None
    opens = (np.diff(values, prepend=np.nan) != 0) | (np.diff(subject, prepend=-1) != 0)
    run = np.cumsum(opens) - 1
    member = observed & (values != 0)
    runs = np.unique(run[member])
    owner = subject[np.flatnonzero(opens)[runs]]
    held = np.bincount(owner, minlength=int(subject.max()) + 1)
    place = np.arange(len(runs)) - (np.cumsum(held) - held)[owner]
    group = np.full(len(values), -1, dtype=np.int64)
    group[member] = place[np.searchsorted(runs, run[member])]
    return group


def _text(value: object) -> str:
    """Return a label as text; 1.0 and 1 are one label."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)
