"""Visual predictive checks: percentiles of the observations among those of simulations of the same records.

In each bin of time, and each stratum, the percentiles of the observations are compared with the
distribution, over replicates simulated from the fit, of the same percentiles (Holford 2005; Karlsson &
Holford 2008). With prediction correction each value, observed or simulated, is first brought to the bin's
typical prediction,

    pcY_ij = Y_ij * median_bin(PRED) / PRED_ij

so that differences in dose and covariates inside a bin do not blur the check (Bergstrand, Hooker, Wallin &
Karlsson 2011, doi:10.1208/s12248-011-9255-z); where PRED is 0 the value is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from nlmegen.check.bins import assign, edges
from nlmegen.check.records import observations, on_observations
from nlmegen.errors import DataError, nearest
from nlmegen.simulate.draws import whole
from nlmegen.simulate.trial import replicate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nlmegen.fit import Fit

_Floats = npt.NDArray[np.float64]
_Cell = tuple[str, int]  # stratum and bin

_LEVELS = 4
"""Distinct numbers in a column up to which each is a stratum of its own; above, its median parts two."""


@dataclass(frozen=True)
class VPC:
    """A visual predictive check.

    Attributes:
        table: One row for each stratum, bin and percentile: stratum, bin, lower, upper, time (median of the
            bin's), n (observations), quantile, observed, simulated (median over replicates),
            simulated_lower, simulated_upper (its interval over replicates).
        observations: id, time, dv, dvid, stratum, bin, of each observation, and `value`: dv as it was
            compared.
        draws: Replicates simulated.
        prediction_corrected: Whether values were prediction corrected.
        ci: Coverage of the intervals over replicates.
        time_unit: Unit of time.
        dv_unit: Unit of dv.
    """

    table: pd.DataFrame
    observations: pd.DataFrame = field(repr=False)
    draws: int
    prediction_corrected: bool
    ci: float
    time_unit: str = ""
    dv_unit: str = ""

    @property
    def inside(self) -> float:
        """Fraction of observed percentiles inside their interval; about `ci` under the true model."""
        table = self.table
        within = table["observed"].between(table["simulated_lower"], table["simulated_upper"])
        return float(within.mean())

    def plot(self, **options: Any) -> Figure:
        """Draw it: see `nlmegen.plots.vpc.vpc`."""
        # The one stated exception to the direction of imports: a figure on request.
        from nlmegen.plots.vpc import vpc as draw

        return draw(self, **options)


def vpc(
    fit: Fit,
    draws: int = 500,
    stratify: str | None = None,
    bins: str | int | Sequence[float] = "auto",
    prediction_corrected: bool = False,
    interval: tuple[float, ...] = (0.05, 0.5, 0.95),
    ci: float = 0.95,
    seed: int = 0,
) -> VPC:
    """Check a fit by simulating its records.

    Args:
        fit: A `Fit`.
        draws: Replicates to simulate, 20 or more.
        stratify: A column of the table. Text and up to four distinct numbers give a stratum each, other
            numbers two, at the median of the subjects; subjects without a value are one more. Several endpoints
            are always apart.
        bins: "auto" (see `check.bins.edges`), a number of bins, or edges that cover all observations.
        prediction_corrected: See the module.
        interval: Percentiles to compare, as fractions.
        ci: Coverage of the intervals of the simulated percentiles.
        seed: Seed of the simulations.

    Raises:
        DataError: A column that is not there or changes within a subject, percentiles or edges out of range,
            or no observations.

    Example:
        >>> import nlmegen as nl
        >>> fit = nl.fit(nl.load_model("theophylline"), nl.load_data("theophylline"), nl.FOCEI())
        >>> check = vpc(fit, draws=100)
        >>> len(check.table), check.inside > 0.8
        (33, True)
    """
    try:
        levels = np.asarray(interval, dtype=np.float64)
    except (TypeError, ValueError):
        levels = np.empty(0)
    if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels < 1)).all():
        raise DataError(
            f"interval: expected fractions between 0 and 1 such as (0.05, 0.5, 0.95), got {interval!r}"
        )
    if not _is_fraction(ci):
        raise DataError(f"ci: expected a fraction between 0 and 1 such as 0.95, got {ci!r}")
    draws = whole("draws (replicates, for an interval over them)", draws, 20)
    if not (stratify is None or isinstance(stratify, str)):
        raise DataError(f"stratify: expected the name of a column, got {stratify!r}")
    problem, population = fit.problem, fit.population
    seen = observations(population)
    if not len(seen):
        raise DataError("vpc: the data hold no observations to compare with")
    seen["stratum"] = _strata(fit, seen, stratify)
    seen["bin"] = 0
    edge_of: dict[str, _Floats] = {}
    for stratum, group in seen.groupby("stratum", sort=False):
        time = group["time"].to_numpy(dtype=np.float64)
        edge_of[str(stratum)] = edges(time, bins, float(group.groupby("id").size().median()))
        seen.loc[group.index, "bin"] = assign(time, edge_of[str(stratum)])
    cells = {
        (stratum, k): np.flatnonzero((seen["stratum"] == stratum) & (seen["bin"] == k))
        for stratum, edge in edge_of.items()
        for k in range(len(edge) - 1)
    }
    cells = {cell: rows for cell, rows in cells.items() if len(rows)}
    correct = _correction(fit, cells) if prediction_corrected else _as_it_is
    seen["value"] = correct(seen["dv"].to_numpy(dtype=float))
    observed = {cell: np.quantile(seen["value"].to_numpy()[rows], levels) for cell, rows in cells.items()}
    simulated: dict[_Cell, list[_Floats]] = {cell: [] for cell in cells}
    for dv in replicate(problem, fit.values, draws, seed, "vpc"):
        values = correct(on_observations(population, dv))
        for cell, rows in cells.items():
            simulated[cell].append(np.quantile(values[:, rows], levels, axis=1))
    tail = (1 - ci) / 2
    parts = []
    for (stratum, k), rows in cells.items():
        over = np.concatenate(simulated[stratum, k], axis=1)
        parts.append(
            pd.DataFrame(
                {
                    "stratum": stratum,
                    "bin": k,
                    "lower": edge_of[stratum][k],
                    "upper": edge_of[stratum][k + 1],
                    "time": np.median(seen["time"].to_numpy()[rows]),
                    "n": len(rows),
                    "quantile": levels,
                    "observed": observed[stratum, k],
                    "simulated": np.median(over, axis=1),
                    "simulated_lower": np.quantile(over, tail, axis=1),
                    "simulated_upper": np.quantile(over, 1 - tail, axis=1),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    return VPC(table, seen, draws, prediction_corrected, ci, population.time_unit, population.dv_unit)


def _is_fraction(value: object) -> bool:
    return isinstance(value, (int, float, np.floating)) and 0 < float(value) < 1


def _as_it_is(value: _Floats) -> _Floats:
    return value


def _correction(fit: Fit, cells: dict[_Cell, npt.NDArray[np.intp]]) -> Callable[[_Floats], _Floats]:
    """The correction of [*draw, n] values: a factor, and for a table of logarithms the shift that is its logarithm."""
    problem = fit.problem
    with torch.no_grad():
        f = problem.predict(torch.zeros_like(fit.ebe), fit.values).f
        pred = on_observations(fit.population, problem.natural(f))
    masks = problem.endpoint_masks or [problem.observed]
    logs = torch.zeros_like(problem.observed)
    for endpoint, mask in zip(problem.endpoints.values(), masks, strict=True):
        if getattr(endpoint, "dv", "") == "log":
            logs |= mask
    is_log = on_observations(fit.population, logs)
    factor, shift = np.ones(len(pred)), np.zeros(len(pred))
    for rows in cells.values():
        here, middle = pred[rows], np.median(pred[rows])
        ratio = np.divide(middle, here, out=np.ones(len(rows)), where=here != 0)
        factor[rows] = np.where(is_log[rows], 1.0, ratio)
        shift[rows] = np.where(is_log[rows], middle - here, 0.0)
    return lambda value: value * factor + shift


def _strata(fit: Fit, seen: pd.DataFrame, column: str | None) -> npt.NDArray[np.object_]:
    """The stratum of each observation, in words."""
    several = len(fit.population.dvids) > 1
    endpoint = [f"dvid {label}" if several else "" for label in seen["dvid"]]
    if column is None:
        return np.array(endpoint, dtype=object)
    table = fit.population.table
    name = column.lower()
    if name not in table:
        raise DataError(f"stratify: the data have no column '{column}'.{nearest(column, table.columns)}")
    per_subject = table.groupby(table["id"].astype(str), sort=False)[name]
    if int(per_subject.nunique().max()) > 1:
        raise DataError(
            f"stratify: '{column}' changes within a subject; stratify by a column that is one value a subject"
        )
    value = per_subject.first()
    known = value.dropna()
    if pd.api.types.is_numeric_dtype(value) and known.nunique() > _LEVELS:
        middle = float(known.median())
        words = {one: f"{name} {'<=' if x <= middle else '>'} {middle:g}" for one, x in known.items()}
    elif pd.api.types.is_numeric_dtype(value):
        words = {one: f"{name} = {x:g}" for one, x in known.items()}
    else:
        words = {one: f"{name} = {x}" for one, x in known.items()}
    stratum = [words.get(one, f"{name} missing") for one in seen["id"].astype(str)]
    return np.array(
        [f"{e}, {s}" if several else s for e, s in zip(endpoint, stratum, strict=True)], dtype=object
    )
