"""Covariate donors: real subjects whose covariates virtual patients take over, whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nlmegen.data.columns import is_reserved
from nlmegen.data.covariates import MOST_LEVELS, Levels
from nlmegen.data.population import Population
from nlmegen.errors import DataError

# Columns of our own beside the covariates. Covariates are lower case, so that none has such a name.
DONOR, PER_KG = "DONOR", "PER_KG"
_BOUND, _MARK = "BOUND", "MARK"


@dataclass(frozen=True)
class Donors:
    """Subjects with their covariates, constant or varying in time.

    Attributes:
        rows: One row a subject, one column a covariate: the value at the first record.
        course: Columns `DONOR`, `time`, the covariates, and `BOUND` (whether a change bounds a segment there); of a
            subject whose time restarts (EVID 3 or 4), the course up to there. None when every covariate is constant.
        interpolation: How a Population of them is read between records.
        units: Units of time, amount and dv.
        levels: The levels of covariates that are texts.
    """

    rows: pd.DataFrame
    course: pd.DataFrame | None = None
    interpolation: str = "nonmem"
    units: tuple[str, str, str] = ("", "", "")
    levels: dict[str, Levels] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Population | pd.DataFrame | None) -> Donors:
        """Return the donors in a Population, in a table of one row a subject, or (None) a nameless one.

        Raises:
            DataError: No rows, a covariate that is missing somewhere, a name that comes twice or that the records need
                for themselves (dv, amt, ...), or no such source at all.
        """
        if source is None:
            return cls(pd.DataFrame(index=[0]))
        check_source(source)
        if isinstance(source, pd.DataFrame):
            frame = source.rename(columns={column: str(column).lower() for column in source.columns})
            if {"id", "time"} <= set(frame.columns):
                return cls.of(Population.from_table(frame, warn=False))
            _check_names(frame, source)
            rows = _whole(frame.drop(columns="id", errors="ignore").reset_index(drop=True))
            texts = rows.columns.difference(rows.select_dtypes("number").columns)
            return cls(rows, levels={str(name): tuple(sorted(rows[name].unique())) for name in texts})
        names = list(source.covariates)
        donor = owners(source)
        numbers = dict.fromkeys((n for n, item in source.covariates.items() if not item.levels), float)
        rows = source.table[names].groupby(donor).first().astype(numbers)
        reading: dict[str, Any] = {
            "interpolation": source.interpolation,
            "units": (source.time_unit, source.amount_unit, source.dv_unit),
            "levels": {name: item.levels for name, item in source.covariates.items() if item.levels},
        }
        if not any(covariate.varies for covariate in source.covariates.values()):
            return cls(rows, None, **reading)
        course = source.table[["time", *names]].astype(numbers | {"time": float}).assign(**{DONOR: donor})
        # After a reset the clock may start again; a patient lives through one course of covariates, the first.
        back = (course["time"].diff() < 0) & (course[DONOR].diff() == 0)
        course = course[back.groupby(donor).cumsum() == 0].reset_index(drop=True)
        # Simultaneous records: the first closes the interval before it, the last opens the one after.
        again = course.duplicated(
            [DONOR, "time"], keep="first" if source.interpolation == "nonmem" else "last"
        )
        course = course[~again].reset_index(drop=True)
        values = course[names].to_numpy()
        step = (values[1:] != values[:-1]).any(1) & (np.diff(course[DONOR]) == 0)
        from_last, to_next = np.append(False, step), np.append(step, False)
        bounds = {"nonmem": to_next, "locf": from_last, "linear": from_last | to_next}
        return cls(rows, course.assign(**{_BOUND: bounds[source.interpolation]}), **reading)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> list[str]:
        """Names of the covariates."""
        return [str(name) for name in self.rows.columns]

    def spread(self, records: pd.DataFrame, used: npt.NDArray[np.int64]) -> pd.DataFrame:
        """Repeat records for each donor in use and add its covariates.

        Where a covariate varies, records of EVID 2 are added at the donor's own change times, so that the
        population's rule of interpolation meets the same course.

        Args:
            records: Records of one subject, in order.
            used: Donors, each once.

        Returns:
            Records with the column `DONOR` (a position in `used`) and one column a covariate.
        """
        n, r = len(used), len(records)
        table = pd.DataFrame({name: np.tile(records[name].to_numpy(), n) for name in records.columns})
        table[DONOR] = np.repeat(np.arange(n), r)
        if self.course is None:
            columns = {name: np.repeat(self.rows[name].to_numpy()[used], r) for name in self.names}
            return table.assign(**columns)
        course = self.course[self.course[DONOR].isin(used)]
        course = course.assign(**{DONOR: np.searchsorted(used, course[DONOR].to_numpy())})
        within = course[_BOUND] & course["time"].between(0.0, records["time"].max())
        marks = course.loc[within, [DONOR, "time"]]
        blank = {"amt": 0.0, "rate": 0.0, "cmt": 0, "evid": 2, PER_KG: False}
        if "dvid" in records:
            blank["dvid"] = records["dvid"].iloc[-1]
        blank |= {name: 0 for name in ("ii", "ss") if name in records}
        marks = marks.assign(**blank)
        if "occ" in records:
            at = np.searchsorted(records["time"], marks["time"], side="right") - 1
            marks["occ"] = records["occ"].to_numpy()[np.maximum(at, 0)]
        table = pd.concat([table, marks], ignore_index=True)
        table = table.sort_values("time", kind="stable", ignore_index=True)
        table = table.assign(**self._at(table, course))
        return table.sort_values([DONOR, "time"], kind="stable", ignore_index=True)

    def _at(self, table: pd.DataFrame, course: pd.DataFrame) -> dict[str, npt.NDArray[Any]]:
        """The covariates on each record, by the rule of interpolation; constant outside the course."""
        known = course.assign(**{_MARK: course["time"]}).sort_values("time", kind="stable")
        key = table[["time", DONOR]]
        last = pd.merge_asof(key, known, on="time", by=DONOR, direction="backward")
        following = pd.merge_asof(key, known, on="time", by=DONOR, direction="forward")
        last, following = last.fillna(following), following.fillna(last)
        if self.interpolation == "locf":
            return {name: last[name].to_numpy() for name in self.names}
        if self.interpolation == "nonmem":
            return {name: following[name].to_numpy() for name in self.names}
        gap = (following[_MARK] - last[_MARK]).to_numpy()
        past = np.clip(table["time"].to_numpy() - last[_MARK].to_numpy(), 0.0, gap)
        part = np.divide(past, gap, out=np.zeros(len(table)), where=gap > 0)
        return {
            name: following[name].to_numpy()  # a level has no middle
            if name in self.levels
            else last[name].to_numpy() + part * (following[name] - last[name]).to_numpy()
            for name in self.names
        }


def owners(population: Population) -> npt.NDArray[np.int64]:
    """Return the subject of each record of `population.table`; ids do not tell, `select` may repeat them."""
    return np.repeat(np.arange(len(population)), population._count.numpy())


def check_source(source: object) -> None:
    """Raise a DataError unless covariates can be drawn from `source`."""
    if not (source is None or isinstance(source, (Population, pd.DataFrame))):
        raise DataError(
            "covariates: expected a Population, a DataFrame with one row a subject, or None,"
            f" got {type(source).__name__}"
        )


def _check_names(frame: pd.DataFrame, source: pd.DataFrame) -> None:
    """Refuse names that come twice in lower case, and numbers under a name that has a meaning of its own."""
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        same = ", ".join(repr(name) for name in source.columns if str(name).lower() == twice[0])
        raise DataError(
            f"covariates: {same} are one name (case does not count); rename or drop one", column=twice[0]
        )
    for name in frame.select_dtypes("number").columns:
        if name != "id" and is_reserved(name):
            raise DataError(
                f"covariates: expected one row a subject, got the column '{name}', which has a meaning of its own in"
                " the records; rename or drop it, or add 'id' and 'time' for a table of records",
                column=name,
            )


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers, and texts with few levels, whole: a covariate of a virtual patient is never missing."""
    if not len(frame):
        raise DataError("covariates: expected at least one subject to draw from, got none")
    numeric = frame.select_dtypes("number").astype(float)
    texts = frame[[name for name in frame if name not in numeric and _is_level(frame[name])]]
    for name in numeric.columns:
        gaps = np.flatnonzero(~np.isfinite(numeric[name].to_numpy()))
        if len(gaps):
            raise DataError(
                f"covariates: '{name}' is missing in subject {gaps[0] + 1} of {len(numeric)};"
                " fill it in or leave that subject out",
                column=str(name),
            )
    return pd.concat([numeric, texts], axis=1)[[n for n in frame if n in numeric or n in texts]]


def _is_level(column: pd.Series[Any]) -> bool:
    """Whether a text is a covariate: whole, few different texts, and not one for each subject, as an id has."""
    found = column.nunique()
    every_text = all(isinstance(value, str) for value in column)
    return every_text and found <= MOST_LEVELS and not found == len(column) > 2
