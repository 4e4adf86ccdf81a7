"""The table a model sees: subjects with unequal records, padded into tensors, and the way back to the table."""

from __future__ import annotations

import hashlib
import warnings as python_warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nlmegen.data import describe
from nlmegen.data.assemble import (
    padded_covariates,
    padded_events,
    padded_groups,
    padded_limits,
    padded_occasions,
)
from nlmegen.data.cells import raw_from_frame, typed
from nlmegen.data.clock import check_unit
from nlmegen.data.columns import DataWarning, Ints, Table
from nlmegen.data.covariates import Covariate, Levels
from nlmegen.data.events import Events, Kind, timeline
from nlmegen.data.filling import Missing, filled, separated
from nlmegen.data.labels import Label
from nlmegen.data.occasions import Occasions
from nlmegen.data.padding import padded, positions, ranges, widened
from nlmegen.data.records import read_records
from nlmegen.errors import DataError, nearest

INTERPOLATIONS = ("nonmem", "locf", "linear")


@dataclass(frozen=True, eq=False, repr=False)
class Population:
    """Subjects with their observations, events and covariates; N subjects, T padded observations, E padded events.

    An observation is a record with EVID 0 and MDV 0. Between records a covariate follows `interpolation`: "nonmem"
    (default; the next record's value governs the interval that ends at it), "locf" (a value holds until the next
    record) or "linear" (a segment carries the value at the middle between its two records, an observation its own;
    every record of a subject in whom a covariate changes then bounds a segment, so that denser records bring the steps
    nearer to the line).

    Attributes:
        ids: The ids as text.
        time, dv: [subject, time] float64. Padded times repeat the subject's last one (the time of its first record
            if it has no observation), padded dv are 0.
        mask: [subject, time] bool, true where there is an observation.
        dvid: [subject, time] int64, index into `dvids`.
        row: [subject, time] int64, the record of `table` (counted from 0); -1 in the padding.
        segment: [subject, time] int64, the last event at or before the observation, simultaneous records in file order.
        events: The events, see `Events`.
        compartments: The labels met in CMT of dose records; 0 is the default compartment.
        dvids: The labels met in DVID of observations; (1,) without the column.
        covariates: Name -> Covariate: every numeric column without a meaning of its own, and texts with few levels.
        cens: [subject, time] int64, 0 where dv was measured, 1 where the true value lies below a limit, -1 above one;
            see `nlmegen.data.censoring.read_censoring`. dv holds the limit there.
        lower, upper: [subject, time] the interval of a censored observation, infinite where it is open; NaN where cens
            is 0.
        lloq, uloq: [subject, time] the limits of quantification of every observation; NaN where it has none.
        l2: [subject, time] int64, the group of observations with correlated residuals within the subject; -1 in none.
        occasions: The occasions (OCC), or None without the column.
        interpolation, time_unit, amount_unit, dv_unit: As given.
        no_covariates: Name -> why a text is no covariate (blank cells, too many levels).
        warnings: What deserves a look in the table.

    Example:
        >>> frame = pd.DataFrame({"id": [1, 1, 2], "time": [0, 1, 0], "amt": [100, 0, 0], "dv": [None, 2.5, 3.5],
        ...                       "evid": [1, 0, 0], "wt": [70, 70, 60]})
        >>> population = Population.from_table(frame, warn=False)
        >>> population.n_subjects, population.mask.tolist(), population.warnings
        (2, [[True], [True]], ('1 of 2 subjects without doses: id 2; kept',))
    """

    ids: tuple[str, ...]
    time: Tensor
    dv: Tensor
    mask: Tensor
    dvid: Tensor
    row: Tensor
    segment: Tensor
    events: Events
    compartments: tuple[Label, ...]
    dvids: tuple[Label, ...]
    covariates: dict[str, Covariate]
    cens: Tensor
    lower: Tensor
    upper: Tensor
    lloq: Tensor
    uloq: Tensor
    l2: Tensor
    occasions: Occasions | None
    interpolation: str
    time_unit: str
    amount_unit: str
    dv_unit: str
    warnings: tuple[str, ...]
    _frame: pd.DataFrame
    _start: Tensor  # [subject] first record in _frame
    _count: Tensor  # [subject] number of records
    _selected: bool = field(default=False)
    no_covariates: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_table(
        cls,
        df: pd.DataFrame,
        interpolation: str = "nonmem",
        time_unit: str = "",
        amount_unit: str = "",
        dv_unit: str = "",
        *,
        covariates: Sequence[str] | None = None,
        missing: Missing | None = None,
        repeated_ids: str = "refuse",
        warn: bool = True,
    ) -> Population:
        """Build a Population from a DataFrame of NONMEM-format records.

        Args:
            df: The records; see `nlmegen.read_nonmem` for the columns. Row k counts as line k + 2 in messages.
            interpolation: "nonmem", "locf" or "linear".
            time_unit, amount_unit, dv_unit: Units, for labels only.
            covariates: List of the columns to take as covariates; by default every numeric one without a meaning of
                its own, and texts with few levels.
            missing, repeated_ids: As in `nlmegen.read_nonmem`.
            warn: Whether to emit `warnings` as DataWarning too.

        Raises:
            DataError: see `nlmegen.read_nonmem`.
        """
        table = filled(separated(typed(raw_from_frame(df)), repeated_ids), missing)
        return build(
            table, interpolation, (time_unit, amount_unit, dv_unit), covariates=covariates, warn=warn
        )

    @property
    def n_subjects(self) -> int:
        """Number of subjects."""
        return len(self.ids)

    @property
    def n_observations(self) -> int:
        """Number of observations."""
        return int(self.mask.sum())

    @property
    def n_doses(self) -> int:
        """Number of doses, additional ones and constant infusions at steady state included."""
        events = self.events
        constant = (events.kind == Kind.STEADY) & (events.amount == 0)
        return int(((events.kind == Kind.BOLUS) | (events.kind == Kind.START) | constant).sum())

    @cached_property
    def censored(self) -> bool:
        """Whether any observation is censored."""
        return bool((self.cens != 0).any())

    @cached_property
    def time_after_dose(self) -> Tensor:
        """[subject, time] time since the last dose at or before each observation; NaN before the first one.

        Additional and steady-state doses count. Times are nominal: what a page adds as a lag is not known here. A reset
        (EVID 3) forgets the doses before it.
        """
        return self.events.since_dose(self.time, self.segment)

    def __len__(self) -> int:
        return self.n_subjects

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every record in file order, lower-case columns, as they were read; do not change it in place."""
        if not self._selected:
            return self._frame
        return self._frame.iloc[ranges(self._start.numpy(), self._count.numpy())].reset_index(drop=True)

    def to_table(self) -> pd.DataFrame:
        """Return a copy of `table`: `Population.from_table` of it gives this Population again."""
        return self.table.copy()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the table's canonical csv text (lower-case names, '.' for missing, shortest decimals)."""
        return hashlib.sha256(csv_text(self.table, canonical=True).encode()).hexdigest()

    def select(self, index: Tensor | Sequence[int] | Ints) -> Population:
        """Return the subjects in `index`, in that order; repeats are allowed.

        Padding widths and labels stay as they are. With repeats the table holds one id several times: give new ids
        before writing it.

        Args:
            index: [M] positions of subjects (negative ones count from the end), or an [N] bool mask.

        Raises:
            DataError: a position outside the subjects, no whole number, or a mask of another length.
        """
        index = positions(index, self.n_subjects)
        count = self._count[index]
        start = torch.cumsum(count, 0) - count
        old = torch.cumsum(self._count, 0) - self._count if self._selected else self._start
        row = self.row[index]
        return Population(
            ids=tuple(self.ids[k] for k in index.tolist()),
            time=self.time[index],
            dv=self.dv[index],
            mask=self.mask[index],
            dvid=self.dvid[index],
            row=torch.where(row < 0, row, row + (start - old[index])[:, None]),
            segment=self.segment[index],
            events=self.events.select(index),
            compartments=self.compartments,
            dvids=self.dvids,
            covariates={name: covariate.select(index) for name, covariate in self.covariates.items()},
            cens=self.cens[index],
            lower=self.lower[index],
            upper=self.upper[index],
            lloq=self.lloq[index],
            uloq=self.uloq[index],
            l2=self.l2[index],
            occasions=None if self.occasions is None else self.occasions.select(index),
            interpolation=self.interpolation,
            time_unit=self.time_unit,
            amount_unit=self.amount_unit,
            dv_unit=self.dv_unit,
            warnings=(),
            _frame=self._frame,
            _start=self._start[index],
            _count=count,
            _selected=True,
            no_covariates=self.no_covariates,
        )

    def with_covariates(self, names: Sequence[str], *, occasions: bool = True) -> Population:
        """Return the same subjects with only these covariates; the others no longer bound segments.

        A column that changes at every record (a log of DV, a record number) makes every record a segment; a model that
        does not use it need not pay for it. Nothing is rebuilt where the events stay the same; observations, labels
        and the width of their padding stay as they are in any case.

        Args:
            names: Covariates to keep.
            occasions: Whether to keep the occasions; without them they no longer bound segments either.

        Raises:
            DataError: there is no such covariate.
        """
        _refuse_one_text(names)
        for name in names:
            if name not in self.covariates:
                raise DataError(
                    f"expected a covariate of the table, got {name!r}.{nearest(name, self.covariates)}"
                )
        kept = {name: item for name, item in self.covariates.items() if name in names}
        drops = not occasions and self.occasions is not None and self.occasions.varies
        drops |= any(item.varies for name, item in self.covariates.items() if name not in kept)
        if not len(self) or not drops:
            return replace(self, covariates=kept, occasions=self.occasions if occasions else None)
        numbered = self.table.assign(
            id=np.repeat(np.arange(len(self)), self._count.numpy())
        )  # ids may repeat
        units = (self.time_unit, self.amount_unit, self.dv_unit)
        built = build(
            typed(raw_from_frame(numbered)),
            self.interpolation,
            units,
            covariates=list(kept),
            warn=False,
            levels={name: item.levels for name, item in kept.items() if item.levels},
            occasions=occasions,
        )
        # A selection may be padded beyond its own longest subject, and know labels that it does not use.
        width = self.time.shape[1]
        label = [self.compartments.index(x) if x in self.compartments else 0 for x in built.compartments]
        return replace(
            self,
            segment=widened(built.segment, width),
            events=replace(built.events, compartment=torch.tensor(label)[built.events.compartment]),
            covariates={
                name: replace(item, observation=widened(item.observation, width)) if item.varies else item
                for name, item in built.covariates.items()
            },
            occasions=None if built.occasions is None else built.occasions.widened(width),
            _frame=self.table,
            _start=built._start,
            _count=built._count,
            _selected=False,
        )

    def __repr__(self) -> str:
        return describe.text(self)

    def _repr_html_(self) -> str:
        return describe.html(self)


def build(
    table: Table,
    interpolation: str,
    units: tuple[str, str, str],
    *,
    covariates: Sequence[str] | None = None,
    warn: bool = True,
    levels: dict[str, Levels] | None = None,
    occasions: bool = True,
) -> Population:
    """Build a Population from a table whose cells are read.

    Args:
        table: The table.
        interpolation: "nonmem", "locf" or "linear".
        units: Units of time, amount and dv.
        covariates: Names of the covariates to take, or None for all.
        warn: Whether to emit the warnings.
        levels: Levels to code texts with, in place of those met.
        occasions: Whether to take the occasions.

    Raises:
        DataError: see `nlmegen.read_nonmem`.
    """
    if interpolation not in INTERPOLATIONS:
        raise DataError(f"expected interpolation 'nonmem', 'locf' or 'linear', got {interpolation!r}")
    _refuse_one_text(covariates)
    check_unit(table, units[0])
    records = read_records(
        table, None if covariates is None else tuple(str(name).lower() for name in covariates), levels
    )
    line = timeline(records, interpolation, occasions=occasions)
    observed = np.flatnonzero(records.observed)
    at, mask = padded(observed, records.subject[observed], records.start)
    event, real = padded(np.arange(len(line.time)), records.subject[line.record], line.start)
    if warn:
        for text in records.warnings:
            python_warnings.warn(text, DataWarning, stacklevel=3)
    limits = padded_limits(records, at, mask)
    return Population(
        ids=records.ids,
        time=torch.from_numpy(records.time[at]),
        dv=torch.from_numpy(np.where(mask, records.dv[at], 0.0)),
        mask=torch.from_numpy(mask),
        dvid=torch.from_numpy(np.where(mask, records.dvid[at], 0)),
        row=torch.from_numpy(np.where(mask, at, -1)),
        segment=torch.from_numpy(line.segment[at]),
        events=padded_events(line, event, real),
        compartments=records.compartments,
        dvids=records.dvids,
        covariates=padded_covariates(records, line, at, event, interpolation),
        cens=limits[0],
        lower=limits[1],
        upper=limits[2],
        lloq=limits[3],
        uloq=limits[4],
        l2=padded_groups(records, at, mask),
        occasions=padded_occasions(records, line, at, event, interpolation) if occasions else None,
        interpolation=interpolation,
        time_unit=units[0],
        amount_unit=units[1],
        dv_unit=units[2],
        warnings=records.warnings,
        _frame=table.frame,
        _start=torch.from_numpy(records.start),
        _count=torch.from_numpy(records.count),
        no_covariates=records.no_covariates,
    )


def csv_text(frame: pd.DataFrame, *, canonical: bool = False) -> str:
    r"""Return a table as csv text: '.' for missing, decimals that read back to the same number, '\n' line ends.

    Args:
        frame: The table.
        canonical: Write whole numbers without a decimal point, so that 1 and 1.0 give one text.
    """
    if canonical:
        frame = frame.assign(**{name: _whole(frame[name]) for name in frame.columns})
    return frame.to_csv(index=False, na_rep=".", lineterminator="\n")


def _whole(column: pd.Series[Any]) -> pd.Series[Any]:
    if pd.api.types.is_float_dtype(column.dtype):
        values = column.to_numpy()
        filled = values[~np.isnan(values)]
        if len(filled) and (filled == np.floor(filled)).all() and (np.abs(filled) < 2**53).all():
            return column.astype("Int64")
    return column


def _refuse_one_text(names: Sequence[str] | None) -> None:
    """A text is a sequence of letters, so that "wt" would ask for the covariates w and t."""
    if isinstance(names, str):
        raise DataError(f"expected a list of covariates, got the text {names!r}; write [{names!r}]")
