"""Visual predictive checks: percentiles of the observations among those of simulations of the same records.

In each bin of time, and each stratum, the percentiles of the observations are compared with the
distribution, over replicates simulated from the fit, of the same percentiles (Holford 2005; Karlsson &
Holford 2008). With prediction correction each value, observed or simulated, is first brought to the bin's
typical prediction,

    pcY_ij = Y_ij * median_bin(PRED) / PRED_ij

so that differences in dose and covariates inside a bin do not blur the check (Bergstrand, Hooker, Wallin &
Karlsson 2011, doi:10.1208/s12248-011-9255-z); where PRED is 0 the value is left as it is.

Where records have limits of quantification, complete records are simulated and cut at the limits of the observed ones
(Bergstrand & Karlsson 2009, doi:10.1208/s12248-009-9112-5): a value below a limit is known by its rank only, and the
share of such values is compared too. Of categories the share of each is compared and no percentiles, of counts
percentiles and the share of zeros.
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
from nlmegen.check.kinds import beyond, percentiles
from nlmegen.check.kinds import levels as levels_of
from nlmegen.check.records import observations, on_observations
from nlmegen.errors import DataError, nearest
from nlmegen.model.problem import Problem
from nlmegen.simulate.draws import whole
from nlmegen.simulate.limits import complete
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
            simulated_lower, simulated_upper (its interval over replicates). -inf (inf) where a percentile lies among
            the values below (above) a limit of quantification.
        shares: One row for each stratum, bin and category, in the same columns, `category` in place of `quantile`:
            "below limit", "above limit", or a category's number; observed and simulated are fractions.
        observations: id, time, dv, dvid, stratum, bin, of each observation, `value`: dv as it was compared, and `lloq`,
            the limit of quantification of the record.
        draws: Replicates simulated.
        prediction_corrected: Whether values were prediction corrected.
        ci: Coverage of the intervals over replicates.
        time_unit: Unit of time.
        dv_unit: Unit of dv.
        strata: The strata, endpoints in the order of the page.
    """

    table: pd.DataFrame
    shares: pd.DataFrame
    observations: pd.DataFrame = field(repr=False)
    draws: int
    prediction_corrected: bool
    ci: float
    time_unit: str = ""
    dv_unit: str = ""
    strata: tuple[str, ...] = ("",)

    @property
    def inside(self) -> float:
        """Fraction of observed percentiles and shares inside their interval; about `ci` under the true model."""
        columns = ["observed", "simulated_lower", "simulated_upper"]
        both = np.concatenate([self.table[columns].to_numpy(), self.shares[columns].to_numpy()]).astype(float)
        return float(((both[:, 0] >= both[:, 1]) & (both[:, 0] <= both[:, 2])).mean())

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
        prediction_corrected: See the module. Values only: counts and shares are left as they are.
        interval: Percentiles to compare, as fractions.
        ci: Coverage of the intervals of the simulated percentiles.
        seed: Seed of the simulations.

    Raises:
        DataError: A column that is not there or changes within a subject, percentiles or edges out of range,
            no observations, or a prediction correction where there are only counts and categories.

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
    problem, population = complete(fit.problem), fit.population
    seen = observations(population)
    if not len(seen):
        raise DataError("vpc: the data hold no observations to compare with")
    kind = levels_of(problem)
    if prediction_corrected and (kind != 0).all():
        raise DataError(
            "prediction_corrected: counts and categories are not divided by their predictions; leave it out"
        )
    seen["stratum"], strata = _strata(fit, problem, seen, stratify)
    seen["bin"] = 0
    edge_of: dict[str, _Floats] = {}
    for stratum in strata:
        group = seen[seen["stratum"] == stratum]
        time = group["time"].to_numpy(dtype=np.float64)
        edge_of[stratum] = edges(time, bins, float(group.groupby("id").size().median()))
        seen.loc[group.index, "bin"] = assign(time, edge_of[stratum])
    cells = {
        (stratum, k): np.flatnonzero((seen["stratum"] == stratum) & (seen["bin"] == k))
        for stratum, edge in edge_of.items()
        for k in range(len(edge) - 1)
    }
    cells = {cell: rows for cell, rows in cells.items() if len(rows)}
    correct = _correction(fit, problem, cells, kind) if prediction_corrected else _as_it_is
    seen["value"] = correct(on_observations(population, beyond(population.dv, population.cens)))
    seen["lloq"] = on_observations(population, problem.lloq)
    compared = {cell: _Compared.of(rows, kind[rows], seen, problem) for cell, rows in cells.items()}
    observed = {
        cell: one.summary(seen["value"].to_numpy(dtype=np.float64), levels) for cell, one in compared.items()
    }
    simulated: dict[_Cell, list[_Floats]] = {cell: [] for cell in cells}
    for dv in replicate(problem, fit.values, draws, seed, "vpc"):
        values = correct(on_observations(population, beyond(*problem.censored(dv))))
        for cell, one in compared.items():
            simulated[cell].append(one.summary(values, levels))
    tail = (1 - ci) / 2
    parts: dict[str, list[pd.DataFrame]] = {"quantile": [], "category": []}
    for (stratum, k), rows in cells.items():
        over = np.concatenate(simulated[stratum, k], axis=-1)
        summary = pd.DataFrame(
            {
                "stratum": stratum,
                "bin": k,
                "lower": edge_of[stratum][k],
                "upper": edge_of[stratum][k + 1],
                "time": np.median(seen["time"].to_numpy()[rows]),
                "n": len(rows),
                "label": compared[stratum, k].labels(levels),
                "observed": observed[stratum, k],
                "simulated": percentiles(over, 0.5),
                "simulated_lower": percentiles(over, tail),
                "simulated_upper": percentiles(over, 1 - tail),
            }
        )
        count = compared[stratum, k].percentiles(levels)
        for name, part in (("quantile", summary[:count]), ("category", summary[count:])):
            parts[name].append(part.rename(columns={"label": name}))
    table, shares = (pd.concat(part, ignore_index=True) for part in parts.values())
    table["quantile"] = table["quantile"].astype(float)
    units = population.time_unit, population.dv_unit
    return VPC(table, shares, seen, draws, prediction_corrected, ci, *units, strata)


@dataclass(frozen=True)
class _Compared:
    """What is compared of the observations of one cell.

    Attributes:
        rows: Which observations.
        shares: The categories whose shares are compared, by name: the value of each.
        values: Whether percentiles are compared.
    """

    rows: npt.NDArray[np.intp]
    shares: dict[str, float]
    values: bool

    @classmethod
    def of(
        cls, rows: npt.NDArray[np.intp], kind: npt.NDArray[np.int64], seen: pd.DataFrame, problem: Problem
    ) -> _Compared:
        here = int(kind[0])
        if here > 0:
            return cls(rows, {str(k): float(k) for k in range(here)}, False)
        shares = {"0": 0.0} if here < 0 else {}
        for word, value, limit in (
            ("below limit", -np.inf, problem.lloq),
            ("above limit", np.inf, problem.uloq),
        ):
            known = on_observations(problem.population, limit)
            if np.isfinite(known[seen["stratum"] == seen["stratum"].iloc[rows[0]]]).any():
                shares[word] = value
        return cls(rows, shares, True)

    def percentiles(self, levels: _Floats) -> int:
        """How many percentiles are compared."""
        return len(levels) if self.values else 0

    def labels(self, levels: _Floats) -> list[float | str]:
        """What each number of a summary is."""
        return [*levels[: self.percentiles(levels)].tolist(), *self.shares]

    def summary(self, values: _Floats, levels: _Floats) -> _Floats:
        """Percentiles and shares of [*draw, n] values, [number, *draw]."""
        own = values[..., self.rows]
        parts = [percentiles(own, levels)] if self.values else []
        parts += [np.mean(own == value, axis=-1)[None] for value in self.shares.values()]
        return np.concatenate(parts)


def _is_fraction(value: object) -> bool:
    return isinstance(value, (int, float, np.floating)) and 0 < float(value) < 1


def _as_it_is(value: _Floats) -> _Floats:
    return value


def _correction(
    fit: Fit, problem: Problem, cells: dict[_Cell, npt.NDArray[np.intp]], kind: npt.NDArray[np.int64]
) -> Callable[[_Floats], _Floats]:
    """The correction of [*draw, n] values: a factor, and for a table of logarithms the shift that is its logarithm."""
    with torch.no_grad():
        f = problem.predict(torch.zeros_like(fit.ebe), fit.values).f
        pred = on_observations(fit.population, problem.natural(f, fit.values))
    logs = torch.zeros_like(problem.observed)
    for _, endpoint, mask in problem.by_endpoint:
        if getattr(endpoint, "dv", "") == "log":
            logs |= mask
    is_log = on_observations(fit.population, logs)
    factor, shift = np.ones(len(pred)), np.zeros(len(pred))
    for rows in cells.values():
        here, middle = pred[rows], np.median(pred[rows])
        if kind[rows[0]] != 0:
            continue
        ratio = np.divide(middle, here, out=np.ones(len(rows)), where=here != 0)
        factor[rows] = np.where(is_log[rows], 1.0, ratio)
        shift[rows] = np.where(is_log[rows], middle - here, 0.0)
    return lambda value: value * factor + shift


def _strata(
    fit: Fit, problem: Problem, seen: pd.DataFrame, column: str | None
) -> tuple[npt.NDArray[np.object_], tuple[str, ...]]:
    """The stratum of each observation, in words, and all of them, in the order of the page's endpoints."""
    several, ends = len(fit.population.dvids) > 1, list(problem.endpoints)
    place = torch.zeros_like(problem.population.dvid)
    for k, (_, _, mask) in enumerate(problem.by_endpoint):
        place = torch.where(mask, k, place)
    number = on_observations(problem.population, place)
    stratum = np.array([ends[k] if several else "" for k in number], dtype=object)
    if column is not None:
        own = _by_column(fit, seen, column)
        stratum = np.array([f"{e}, {s}" if e else s for e, s in zip(stratum, own, strict=True)], dtype=object)
    return stratum, tuple(dict.fromkeys(stratum[np.argsort(number, kind="stable")]))


def _by_column(fit: Fit, seen: pd.DataFrame, column: str) -> list[str]:
    """What a column of the table says of the subject of each observation, in words."""
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
    return [words.get(one, f"{name} missing") for one in seen["id"].astype(str)]
