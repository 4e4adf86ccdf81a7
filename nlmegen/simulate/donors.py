"""Covariate donors: real subjects whose covariates virtual patients take over, whole."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

from nlmegen.data.population import Population
from nlmegen.errors import DataError


@dataclass(frozen=True)
class Donors:
    """Subjects with their covariates, constant or varying in time.

    Attributes:
        rows: One row a subject, one column a covariate: the value at the first record.
        course: Columns `donor`, `time`, the covariates, and `bound` (whether a change bounds a segment
            there); None when every covariate is constant.
        reading: How a Population of them is read: the rule of interpolation and the units.
    """

    rows: pd.DataFrame
    course: pd.DataFrame | None = None
    reading: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Population | pd.DataFrame | None) -> Donors:
        """Return the donors in a Population, in a table of one row a subject, or (None) a nameless one.

        Raises:
            DataError: No rows, or a covariate that is missing somewhere.
        """
        if source is None:
            return cls(pd.DataFrame(index=[0]))
        if isinstance(source, pd.DataFrame):
            frame = source.rename(columns={column: str(column).lower() for column in source.columns})
            if {"id", "time"} <= set(frame.columns):
                return cls.of(Population.from_table(frame, warn=False))
            return cls(_numbers(frame.drop(columns="id", errors="ignore").reset_index(drop=True)))
        names = list(source.covariates)
        donor = pd.factorize(source.table["id"])[0]
        rows = source.table[names].groupby(donor).first().astype(float)
        reading = {
            "interpolation": source.interpolation,
            "time_unit": source.time_unit,
            "amount_unit": source.amount_unit,
            "dv_unit": source.dv_unit,
        }
        if not any(covariate.varies for covariate in source.covariates.values()):
            return cls(rows, None, reading)
        course = source.table[["time", *names]].astype(float).assign(donor=donor)
        course = course.sort_values(["donor", "time"], kind="stable", ignore_index=True)
        # Simultaneous records: the first closes the interval before it, the last opens the one after.
        again = course.duplicated(
            ["donor", "time"], keep="first" if source.interpolation == "nonmem" else "last"
        )
        course = course[~again].reset_index(drop=True)
        values = course[names].to_numpy()
        step = (values[1:] != values[:-1]).any(1) & (np.diff(course["donor"]) == 0)
        from_last, to_next = np.append(False, step), np.append(step, False)
        bounds = {"nonmem": to_next, "locf": from_last, "linear": from_last | to_next}
        return cls(rows, course.assign(bound=bounds[source.interpolation]), reading)

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
            Records with the column `donor` (a position in `used`) and one column a covariate.
        """
        n, r = len(used), len(records)
        table = pd.DataFrame({name: np.tile(records[name].to_numpy(), n) for name in records.columns})
        table["donor"] = np.repeat(np.arange(n), r)
        if self.course is None:
            columns = {name: np.repeat(self.rows[name].to_numpy()[used], r) for name in self.names}
            return table.assign(**columns)
        course = self.course[self.course["donor"].isin(used)]
        course = course.assign(donor=np.searchsorted(used, course["donor"].to_numpy()))
        within = course["bound"] & course["time"].between(0.0, records["time"].max())
        marks = course.loc[within, ["donor", "time"]]
        blank = {"amt": 0.0, "rate": 0.0, "cmt": 0, "evid": 2, "per_kg": False}
        if "dvid" in records:
            blank["dvid"] = records["dvid"].iloc[-1]
        table = pd.concat([table, marks.assign(**blank)], ignore_index=True)
        table = table.sort_values("time", kind="stable", ignore_index=True)
        table = table.assign(**self._at(table, course))
        return table.sort_values(["donor", "time"], kind="stable", ignore_index=True)

    def _at(self, table: pd.DataFrame, course: pd.DataFrame) -> dict[str, npt.NDArray[np.float64]]:
        """The covariates on each record, by the rule of interpolation; constant outside the course."""
        known = course.assign(mark=course["time"]).sort_values("time", kind="stable")
        key = table[["time", "donor"]]
        last = pd.merge_asof(key, known, on="time", by="donor", direction="backward")
        following = pd.merge_asof(key, known, on="time", by="donor", direction="forward")
        last, following = last.fillna(following), following.fillna(last)
        if self.reading["interpolation"] == "locf":
            return {name: last[name].to_numpy() for name in self.names}
        if self.reading["interpolation"] == "nonmem":
            return {name: following[name].to_numpy() for name in self.names}
        gap = (following["mark"] - last["mark"]).to_numpy()
        past = np.clip(table["time"].to_numpy() - last["mark"].to_numpy(), 0.0, gap)
        part = np.divide(past, gap, out=np.zeros(len(table)), where=gap > 0)
        return {
            name: last[name].to_numpy() + part * (following[name] - last[name]).to_numpy()
            for name in self.names
        }


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Numeric columns only, whole: a covariate of a virtual patient is never missing."""
    if not len(frame):
        raise DataError("covariates: expected at least one subject to draw from, got none")
    numeric = frame.select_dtypes("number").astype(float)
    for name in numeric.columns:
        gaps = np.flatnonzero(~np.isfinite(numeric[name].to_numpy()))
        if len(gaps):
            raise DataError(
                f"covariates: '{name}' is missing in subject {gaps[0] + 1} of {len(numeric)};"
                " fill it in or leave that subject out",
                column=str(name),
            )
    return numeric
