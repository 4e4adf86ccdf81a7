"""The figure of a visual predictive check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlmegen.plots.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    headed,
    labelled,
    legend,
    panels,
)

if TYPE_CHECKING:
    from nlmegen.check.vpc import VPC

_COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)


def vpc(check: VPC, log: bool = False, points: bool = True) -> Figure:
    """Draw observed percentiles over the bands of the simulated ones, and shares, a panel each a stratum.

    Percentiles among values below a limit of quantification are not drawn; the limit is a dotted line.

    Args:
        check: What `check.vpc.vpc` returned.
        log: A logarithmic axis of dv.
        points: Draw the observations too.
    """
    kinds = [
        (stratum, kind)
        for stratum in check.strata
        for kind, table in (("values", check.table), ("shares", check.shares))
        if (table["stratum"] == stratum).any()
    ]
    drawn, axes = panels(len(kinds), columns=2, width=5.4 if len(kinds) == 1 else 4.2, height=3.6)
    for panel, (stratum, kind) in zip(axes, kinds, strict=True):
        headed(panel, stratum)
        panel.set_xlabel(labelled("time", check.time_unit))
        if kind == "shares":
            _shares(panel, check.shares[check.shares["stratum"] == stratum])
        else:
            _values(panel, check, stratum, points)
            if log:
                panel.set_yscale("log", nonpositive="clip")
    first = next((k for k, (_, kind) in enumerate(kinds) if kind == "values"), None)
    if first is not None:
        legend(drawn, axes[first])
    return drawn


def _values(panel: Axes, check: VPC, stratum: str, points: bool) -> None:
    """Percentiles of one stratum."""
    table = check.table[check.table["stratum"] == stratum]
    seen = check.observations[check.observations["stratum"] == stratum]
    seen = seen[np.isfinite(seen["value"])]
    if points:
        panel.plot(
            seen["time"], seen["value"], "o", color=GREY, markersize=2.4, alpha=0.35, markeredgewidth=0
        )
    _bands(panel, table)
    limits = seen["lloq"].dropna().unique()
    if len(limits) == 1 and not check.prediction_corrected:
        panel.axhline(float(limits[0]), color=GREY, linewidth=0.8, linestyle=":")
    word = "observation" if not check.prediction_corrected else "prediction-corrected observation"
    panel.set_ylabel(labelled(word, check.dv_unit))


def _shares(panel: Axes, table: pd.DataFrame) -> None:
    """Observed shares of each category over the bands of the simulated ones."""
    names = list(dict.fromkeys(table["category"]))
    limits = all(name.endswith("limit") for name in names)
    for name, colour in zip(names, _COLOURS * (1 + len(names) // len(_COLOURS)), strict=False):
        part = _wide(table[table["category"] == name].sort_values("time"))
        time = part["time"].to_numpy(dtype=float)
        panel.fill_between(
            time, part["simulated_lower"], part["simulated_upper"], color=colour, alpha=0.22, linewidth=0
        )
        panel.plot(time, part["simulated"], color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
        panel.plot(
            time, part["observed"], color=colour, linewidth=1.2, marker="o", markersize=2.8, label=name
        )
    panel.set_ylim(
        -0.03, max(0.1, 1.08 * float(table["simulated_upper"].max()), 1.08 * float(table["observed"].max()))
    )
    panel.set_ylabel("fraction beyond the limit" if limits else "fraction of observations")
    panel.legend(
        frameon=False, fontsize=7, loc="best", title=None if limits else "category", title_fontsize=7
    )


def _wide(part: pd.DataFrame) -> pd.DataFrame:
    """One bin needs a width to be a band."""
    if len(part) > 1:
        return part
    both = pd.concat([part, part], ignore_index=True)
    return both.assign(time=[part["lower"].iloc[0], part["upper"].iloc[0]])


def _bands(panel: Axes, table: pd.DataFrame) -> None:
    """Bands, medians and observations of each percentile; the legend names the middle and the outer ones."""
    levels = sorted(table["quantile"].unique())
    centre = min(levels, key=lambda one: abs(one - 0.5))
    outer = [level for level in levels if level != centre]
    floor = (
        table[["observed", "simulated", "simulated_lower", "simulated_upper"]]
        .replace([-np.inf, np.inf], np.nan)
        .min()
        .min()
    )
    for level in levels:
        part = _wide(table[table["quantile"] == level].sort_values("time"))
        middle = level == centre
        group = [centre] if middle else outer
        words = f"simulated {', '.join(f'{one:.0%}' for one in group)}" if level == group[0] else None
        time = part["time"].to_numpy(dtype=float)
        colour = VERMILION if middle else BLUE
        # Below the limit of quantification nothing is known: a band ends there, a line has a gap.
        shown = part[["observed", "simulated", "simulated_upper"]].replace([-np.inf, np.inf], np.nan)
        low = part["simulated_lower"].replace(-np.inf, floor).replace(np.inf, np.nan)
        panel.fill_between(
            time,
            low,
            shown["simulated_upper"],
            color=colour if middle else SKY,
            alpha=0.25,
            linewidth=0,
            label=words,
        )
        panel.plot(time, shown["simulated"], color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
        panel.plot(
            time,
            shown["observed"],
            color=INK,
            linewidth=1.5 if middle else 0.9,
            marker="o",
            markersize=2.5,
            label="observed" if middle else None,
        )
