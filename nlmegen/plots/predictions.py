"""Observations against predictions, residuals against time and prediction, residuals against the normal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from scipy import special

from nlmegen.check.residuals import residuals
from nlmegen.plots.style import BLUE, GREY, INK, VERMILION, given_or_new, labelled

if TYPE_CHECKING:
    from nlmegen.fit import Fit

_NAMES = {
    "pred": "population prediction",
    "ipred": "individual prediction",
    "time": "time",
    "res": "residual",
    "wres": "weighted residual",
    "iwres": "individual weighted residual",
    "cwres": "conditional weighted residual",
    "npde": "npde",
}


def observed_predicted(
    source: Fit | pd.DataFrame, prediction: str = "pred", axes: Axes | None = None
) -> Axes:
    """Draw observations against a prediction, with the line of identity and a running median.

    Args:
        source: A `Fit`, or the table that `residuals` made of one.
        prediction: "pred" or "ipred".
        axes: Where to draw; new ones unless given.
    """
    table, units = _table(source)
    axes = given_or_new(axes, 4.2, 3.9)
    x, y = table[prediction].to_numpy(dtype=float), table["dv"].to_numpy(dtype=float)
    low, high = float(np.nanmin([x, y])), float(np.nanmax([x, y]))
    margin = 0.04 * (high - low or 1.0)
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8)
    axes.plot(x, y, "o", color=BLUE, markersize=3.2, alpha=_alpha(len(x)), markeredgewidth=0)
    _trend(axes, x, y)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel(labelled(_NAMES.get(prediction, prediction), units["dv"]))
    axes.set_ylabel(labelled("observed", units["dv"]))
    return axes


def residual_against(
    source: Fit | pd.DataFrame, against: str = "time", residual: str = "cwres", axes: Axes | None = None
) -> Axes:
    """Draw residuals against time or a prediction; under a right model 95 % lie between the broken lines.

    Args:
        source: A `Fit`, or the table that `residuals` made of one.
        against: "time", "pred", "ipred" or any numeric column of the table.
        residual: "cwres", "wres", "iwres" or "npde".
        axes: Where to draw; new ones unless given.
    """
    table, units = _table(source)
    axes = given_or_new(axes, 4.6, 3.2)
    x, y = table[against].to_numpy(dtype=float), table[residual].to_numpy(dtype=float)
    axes.axhline(0.0, color=INK, linewidth=0.8)
    for bound in (-1.96, 1.96):
        axes.axhline(bound, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)))
    axes.plot(x, y, "o", color=BLUE, markersize=3.2, alpha=_alpha(len(x)), markeredgewidth=0)
    _trend(axes, x, y)
    limit = max(3.0, 1.05 * float(np.nanmax(np.abs(y)))) if np.isfinite(y).any() else 3.0
    axes.set_ylim(-limit, limit)
    axes.set_xlabel(
        labelled(_NAMES.get(against, against), units["time"] if against == "time" else units["dv"])
    )
    axes.set_ylabel(_NAMES.get(residual, residual))
    return axes


def normal_quantiles(source: Fit | pd.DataFrame, residual: str = "npde", axes: Axes | None = None) -> Axes:
    """Draw the quantiles of residuals against those of N(0, 1).

    Args:
        source: A `Fit`, or the table that `residuals` made of one.
        residual: A column such as "npde" or "cwres".
        axes: Where to draw; new ones unless given.
    """
    table, _ = _table(source)
    axes = given_or_new(axes, 3.9, 3.6)
    y = np.sort(table[residual].dropna().to_numpy(dtype=float))
    x = special.ndtri((np.arange(len(y)) + 0.5) / max(1, len(y)))
    limit = max(3.0, float(np.abs(y).max(initial=0.0)) * 1.05)
    axes.plot([-limit, limit], [-limit, limit], color=INK, linewidth=0.8)
    axes.plot(x, y, "o", color=BLUE, markersize=3.2, alpha=_alpha(len(y)), markeredgewidth=0)
    axes.set_xlim(-limit, limit)
    axes.set_ylim(-limit, limit)
    axes.set_xlabel("quantile of N(0, 1)")
    axes.set_ylabel(_NAMES.get(residual, residual))
    return axes


def _table(source: Fit | pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The records with a prediction, and the units of time and dv."""
    if isinstance(source, pd.DataFrame):
        table, units = source, source.attrs
    else:
        table = residuals(source, draws=0)
        units = table.attrs
    return table[table["pred"].notna()], {
        "time": str(units.get("time_unit", "")),
        "dv": str(units.get("dv_unit", "")),
    }


def _alpha(count: int) -> float:
    """Fainter points where there are many."""
    return float(np.clip(40.0 / np.sqrt(max(count, 1)) / 4.0, 0.15, 0.7))


def _trend(axes: Axes, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> None:
    """A running median over groups of equal size: shows a drift, promises nothing between the groups."""
    use = np.isfinite(x) & np.isfinite(y)
    groups = min(12, int(use.sum()) // 12)
    if groups < 3:
        return
    order = np.argsort(x[use], kind="stable")
    parts = np.array_split(order, groups)
    middle = [(np.median(x[use][part]), np.median(y[use][part])) for part in parts]
    axes.plot(*np.array(middle).T, color=VERMILION, linewidth=1.4)
