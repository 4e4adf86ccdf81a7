"""A cohort of virtual patients: how many, dosed how, sampled when, with whose covariates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from nlmegen.data.cells import raw_from_frame, typed
from nlmegen.data.population import Population, build
from nlmegen.errors import DataError, nearest
from nlmegen.simulate.donors import DONOR, PER_KG, Donors, check_source
from nlmegen.simulate.draws import generator, whole
from nlmegen.simulate.occasions import boundaries, read_occasions, with_occasions
from nlmegen.simulate.regimen import Regimen

WEIGHT = "wt"
"""The covariate that an amount per kg is multiplied by."""
MOST_PATIENTS = 100_000_000
"""Patients of a cohort, at most: the draw of their covariates is held in memory, all at once."""

MOST_TIMES = 1_000_000
"""Sampling times a patient, at most: more are a slip of the pen, and would not fit in memory."""

_ROUNDING = 1e-11
"""How far, relative to itself, a dose is from a sample that is meant to be at the same time."""

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stencil:
    """The distinct records of a cohort, and which patient follows which.

    Attributes:
        population: One subject for each arm and covariate donor in use, ids 1, 2, ...
        index: [n] Subject of `population` that each patient copies.
    """

    population: Population
    index: _Ints

    @cached_property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The columns of the distinct records."""
        table = self.population.table
        return {str(name): table[name].to_numpy() for name in table.columns}

    def records(self, start: int, stop: int) -> tuple[dict[str, npt.NDArray[Any]], _Ints]:
        """Return the records of patients `start` to `stop - 1`, under ids of their own.

        Returns:
            Columns, with ids from `start + 1`; and [stop - start, T] the row of each observation, -1 in padding.
        """
        index = self.index[start:stop]
        length = np.bincount(self.columns["id"] - 1)
        first = np.cumsum(length) - length
        copied = length[index]
        begin = np.cumsum(copied) - copied
        rows = np.repeat(first[index] - begin, copied) + np.arange(copied.sum())
        chosen = {name: column[rows] for name, column in self.columns.items() if name != "id"}
        ids = np.repeat(np.arange(start + 1, stop + 1), copied)
        row = self.population.row.numpy()[index]
        return {"id": ids, **chosen}, np.where(row >= 0, row + (begin - first[index])[:, None], -1)


@dataclass(frozen=True)
class Cohort:
    """Virtual patients to simulate: doses, sampling times and covariates, no model yet.

    A dose comes before a sample at the same time. Covariates are drawn with replacement from real subjects,
    each patient taking one subject's whole row (and, where a covariate varies in time, its whole course), so
    that their joint distribution is kept.

    Args:
        n: Number of patients in all; several arms share them as evenly as possible, in the order given.
        regimen: A `Regimen`, its text, or a dict from the name of an arm to either.
        times: Sampling times, not negative: numbers, or text `"FIRST:LAST:STEP"` (the end included) or
            `"0.5, 1, 2"`. With several endpoints each time gives one record of each.
        covariates: Whose covariates: a `Population`, a DataFrame with one row a subject, or a DataFrame in
            NONMEM columns; None for a model without covariates.
        dvid: Labels of the endpoints to sample; None for all endpoints of the model that is simulated.
        occasions: Which records belong to one occasion (column `occ`), for models with effects between occasions:
            "dose" (each time of a dose opens one), a number (so long is each), or the times at which they begin; None
            for no occasions.
        lloq: Lower limit of quantification: a number, or a dict from the label of an endpoint to one. Simulated values
            below it come as the limit, with `cens` 1.

    Raises:
        DataError: No patients, no times, an unreadable regimen, an amount per kg without covariate `wt`, covariates of
            the wrong kind, or several arms beside a covariate `arm`.

    Example:
        >>> cohort = Cohort(3, "100 every 12 x 2", times="0:24:12")
        >>> cohort.population(seed=1).n_observations
        9
    """

    n: int
    regimen: Regimen | str | Mapping[str, Regimen | str]
    times: str | Iterable[float]
    covariates: Population | pd.DataFrame | None = None
    dvid: tuple[str | int, ...] | None = None
    occasions: str | float | Iterable[float] | None = None
    lloq: float | Mapping[str | int, float] | None = None
    arms: dict[str, Regimen] = field(init=False, repr=False)
    grid: _Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole("n (patients)", self.n, 1))
        if self.n > MOST_PATIENTS:
            raise DataError(f"n: expected at most {MOST_PATIENTS:,} patients, got {self.n:,}")
        check_source(self.covariates)
        if self.dvid is not None:
            object.__setattr__(self, "dvid", _labels(self.dvid))
        object.__setattr__(self, "occasions", read_occasions(self.occasions))
        _check_lloq(self.lloq)
        arms = self.regimen if isinstance(self.regimen, Mapping) else {"": self.regimen}
        if not arms:
            raise DataError("regimen: expected at least one arm, got an empty dict")
        read = {str(k): v if isinstance(v, Regimen) else Regimen.parse(v) for k, v in arms.items()}
        object.__setattr__(self, "arms", read)
        object.__setattr__(self, "grid", parse_times(self.times))

    def population(self, seed: int = 0, dvid: tuple[str | int, ...] = (1,)) -> Population:
        """Return the patients with their dose and observation records; dv is 1 where it is to be simulated.

        Args:
            seed: Seed of the draw of covariates; `simulate` with this seed gives these patients.
            dvid: Endpoint labels when the cohort names none.
        """
        stencil = self.stencil(seed, dvid)
        like = stencil.population
        return build(
            typed(raw_from_frame(pd.DataFrame(stencil.records(0, self.n)[0]))),
            like.interpolation,
            (like.time_unit, like.amount_unit, like.dv_unit),
            covariates=list(like.covariates),
            levels={name: item.levels for name, item in like.covariates.items() if item.levels},
            warn=False,
        )

    def stencil(self, seed: int, dvid: tuple[str | int, ...] = (1,)) -> Stencil:
        """Return the distinct records and who follows them: arms in order, donors drawn with replacement."""
        donors = Donors.of(self.covariates)
        if any(regimen.per_kg for regimen in self.arms.values()) and WEIGHT not in donors.names:
            have = nearest(WEIGHT, donors.names) if donors.names else " No covariates were given."
            raise DataError(
                f"an amount per kg needs the covariate '{WEIGHT}' (body weight in kg) for every subject.{have}"
                f" Pass covariates= with a column '{WEIGHT}', or give the amount without /kg"
            )
        if len(self.arms) > 1 and "arm" in donors.names:
            raise DataError(
                "covariates: 'arm' is a covariate, and the column that tells several arms apart; rename the covariate",
                column="arm",
            )
        drawn = torch.randint(len(donors), (self.n,), generator=generator(seed, "covariates")).numpy()
        used, donor = np.unique(drawn, return_inverse=True)
        arm = np.sort(np.arange(self.n) % len(self.arms))
        records = [
            self._records(k, regimen, donors, used, self.dvid or dvid)
            for k, regimen in enumerate(self.arms.values())
        ]
        table = pd.concat(records, ignore_index=True)
        if len(self.arms) > 1:
            table["arm"] = np.asarray(list(self.arms), dtype=object)[
                (table["id"].to_numpy() - 1) // len(used)
            ]
        population = build(
            typed(raw_from_frame(table)),
            donors.interpolation,
            donors.units,
            covariates=donors.names,
            levels=donors.levels,
            warn=False,
        )
        return Stencil(population, (arm * len(used) + donor.reshape(-1)).astype(np.int64))

    def _records(
        self, arm: int, regimen: Regimen, donors: Donors, used: _Ints, dvid: tuple[str | int, ...]
    ) -> pd.DataFrame:
        """Dose and observation records of one arm, one subject a donor."""
        parts = []
        steady = any(course.ss for regimen in self.arms.values() for course in regimen.courses)
        limits = {label: _lloq(self.lloq, label, dvid) for label in dvid}
        for course in regimen.courses:
            parts.append(
                {
                    "time": _onto(self.grid, course.times),
                    "amt": np.full(course.doses, course.amount),
                    "rate": np.full(course.doses, course.rate),
                    "cmt": np.full(course.doses, 0 if course.into is None else course.into, dtype=object),
                    "evid": np.ones(course.doses, dtype=np.int64),
                    PER_KG: np.full(course.doses, course.per is not None),
                }
            )
            if steady:
                first = np.arange(course.doses) == 0
                parts[-1]["ii"] = np.where(first & course.ss, course.every or 0.0, 0.0)
                parts[-1]["ss"] = (first & course.ss).astype(np.int64)
        for label in dvid:
            parts.append(
                {
                    "time": self.grid,
                    "amt": np.zeros(len(self.grid)),
                    "rate": np.zeros(len(self.grid)),
                    "cmt": np.full(len(self.grid), 0, dtype=object),
                    "evid": np.zeros(len(self.grid), dtype=np.int64),
                    PER_KG: np.zeros(len(self.grid), dtype=bool),
                    "dvid": np.full(len(self.grid), label, dtype=object),
                }
            )
            if steady:
                parts[-1] |= {"ii": np.zeros(len(self.grid)), "ss": np.zeros(len(self.grid), dtype=np.int64)}
            if self.lloq is not None:
                parts[-1]["lloq"] = np.full(len(self.grid), limits[label])
        one = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
        # A sample at the time of a dose is taken after it, so that time 0 of a bolus is its peak.
        keys = ["time", "evid", *(["ss"] if steady else [])]
        one = one.sort_values(
            keys, ascending=[True, *[False] * (len(keys) - 1)], kind="stable", ignore_index=True
        )
        if steady:  # the first dose replaces what is there, later ones add to it
            begun = np.cumsum(one["evid"] == 1) > 1
            one["ss"] = np.where(one["ss"] & begun, 2, one["ss"])
        if self.occasions is not None:
            given = one.loc[one["evid"] == 1, "time"].to_numpy(dtype=float)
            bounds = boundaries(self.occasions, given, float(one["time"].max()))  # type: ignore[arg-type]
            one = with_occasions(one, _onto(one["time"].to_numpy(dtype=float), bounds))
        table = donors.spread(one, used)
        table.insert(0, "id", table.pop(DONOR).to_numpy() + 1 + arm * len(used))
        if regimen.per_kg:
            factor = np.where(table[PER_KG].to_numpy(dtype=bool), table[WEIGHT].to_numpy(dtype=float), 1.0)
            table["amt"] *= factor
            table["rate"] *= np.where(table["rate"] > 0, factor, 1.0)
        table.insert(6, "mdv", (table["evid"] != 0).astype(np.int64))
        # A value that every endpoint accepts holds the place of the observation to come.
        held = (
            np.ones(len(table))
            if self.lloq is None
            else np.fmax(1.0, table["lloq"].to_numpy(dtype=np.float64) + 1.0)
        )
        table.insert(7, "dv", np.where(table["evid"] == 0, held, np.nan))
        if all(isinstance(label, int) for label in table["cmt"]):
            table["cmt"] = table["cmt"].astype(np.int64)
        plain = dvid == (1,)
        if not plain:
            table["dvid"] = table["dvid"].where(table["evid"] == 0, dvid[0])
        return table.drop(columns=[PER_KG, "dvid"] if plain else [PER_KG])


def _onto(grid: _Floats, times: _Floats) -> _Floats:
    """Move times that rounding parted from a sampling time onto it: 3 x 0.1 is not 0.3."""
    after = np.searchsorted(grid, times).clip(0, len(grid) - 1)
    before = (after - 1).clip(0)
    near = np.where(np.abs(grid[before] - times) < np.abs(grid[after] - times), grid[before], grid[after])
    return np.where(np.abs(near - times) <= _ROUNDING * np.abs(times), near, times)


def _check_lloq(lloq: Any) -> None:
    """Raise a DataError unless `lloq` is None, a number, or numbers by endpoint."""
    for value in lloq.values() if isinstance(lloq, Mapping) else (lloq,):
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if value is not None and not (number and np.isfinite(value) and value != 0):
            raise DataError(
                f"lloq: expected a limit other than 0, a dict of them by endpoint, or None, got {value!r}"
            )


def _lloq(
    lloq: float | Mapping[str | int, float] | None, label: str | int, dvid: tuple[str | int, ...]
) -> float:
    """The limit of an endpoint, NaN where it has none."""
    if lloq is None:
        return np.nan
    if not isinstance(lloq, Mapping):
        return float(lloq)
    for name in lloq:
        if name not in dvid:
            raise DataError(f"lloq: no endpoint is called {name!r}.{nearest(str(name), map(str, dvid))}")
    return float(lloq.get(label, np.nan))


def _labels(dvid: Any) -> tuple[str | int, ...]:
    """Endpoint labels, as a tuple."""
    several = isinstance(dvid, (tuple, list)) and len(dvid) > 0
    if several and all(isinstance(label, (str, int)) and not isinstance(label, bool) for label in dvid):
        return tuple(dvid)
    raise DataError(
        f"dvid: expected a tuple of endpoint labels, such as (1, 2), or None for all endpoints, got {dvid!r}"
    )


def parse_times(times: str | Iterable[float]) -> _Floats:
    """Return sampling times in order, each once.

    Args:
        times: Numbers; or text `"FIRST:LAST:STEP"` with the end included, or `"0.5, 1, 2"`.

    Raises:
        DataError: No times, a negative or infinite one, more than `MOST_TIMES`, or text that is neither form.

    Example:
        >>> parse_times("0:6:2")
        array([0., 2., 4., 6.])
    """
    remedy = 'write "0:168:2" (first, last, step), "0.5, 1, 2", or give numbers'
    try:
        if isinstance(times, str) and ":" in times:
            first, last, step = (float(word) for word in times.split(":"))
            if not step > 0 or not last >= first:
                raise DataError(f"times {times!r}: expected LAST >= FIRST and STEP above 0; {remedy}")
            # A tenth of a thousandth of a step forgives the rounding of ends such as 0.3 with step 0.1.
            count = int(np.floor((last - first) / step + 1e-4)) + 1
            if count > MOST_TIMES:
                raise DataError(
                    f"times {times!r}: expected at most {MOST_TIMES:,} times, got {count:,}; take a longer STEP"
                )
            values = first + step * np.arange(count)
        elif isinstance(times, str):
            values = np.array([float(word) for word in times.split(",")])
        elif isinstance(times, (bytes, bytearray)):
            raise TypeError
        else:
            values = np.array([float(value) for value in times])
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"times: cannot read {times!r}; {remedy}") from None
    if not len(values):
        raise DataError(f"times: expected at least one sampling time, got none; {remedy}")
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError(f"times: expected finite times of 0 or later, got {times!r}; {remedy}")
    return np.unique(values)
