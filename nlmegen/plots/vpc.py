"""The figure of a visual predictive check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlmegen.plots.style import BLUE, GREY, INK, SKY, VERMILION, headed, labelled, legend, panels

if TYPE_CHECKING:
    from nlmegen.check.vpc import VPC


def vpc(check: VPC, log: bool = False, points: bool = True) -> Figure:
    """Draw observed percentiles over the bands of the simulated ones, a panel a stratum.

    Args:
        check: What `check.vpc.vpc` returned.
        log: A logarithmic axis of dv.
        points: Draw the observations too.
    """
    strata = list(dict.fromkeys(check.table["stratum"]))
    drawn, axes = panels(len(strata), columns=2, width=5.4 if len(strata) == 1 else 4.2, height=3.6)
    for panel, stratum in zip(axes, strata, strict=True):
        table = check.table[check.table["stratum"] == stratum]
        seen = check.observations[check.observations["stratum"] == stratum]
        if points:
            panel.plot(
                seen["time"], seen["value"], "o", color=GREY, markersize=2.4, alpha=0.35, markeredgewidth=0
            )
        _bands(panel, table)
        headed(panel, stratum)
        panel.set_xlabel(labelled("time", check.time_unit))
        word = "observation" if not check.prediction_corrected else "prediction-corrected observation"
        panel.set_ylabel(labelled(word, check.dv_unit))
        if log:
            panel.set_yscale("log", nonpositive="clip")
    legend(drawn, axes[0])
    return drawn


def _bands(panel: Axes, table: pd.DataFrame) -> None:
    """Bands, medians and observations of each percentile; the legend names the middle and the outer ones."""
    levels = sorted(table["quantile"].unique())
    centre = min(levels, key=lambda one: abs(one - 0.5))
    outer = [level for level in levels if level != centre]
    for level in levels:
        part = table[table["quantile"] == level].sort_values("time")
        middle = level == centre
        group = [centre] if middle else outer
        words = f"simulated {', '.join(f'{one:.0%}' for one in group)}" if level == group[0] else None
        time = part["time"].to_numpy()
        colour = VERMILION if middle else BLUE
        if len(time) == 1:  # one bin: a band needs a width
            time = np.array([part["lower"].iloc[0], part["upper"].iloc[0]])
            part = pd.concat([part, part])
        panel.fill_between(
            time,
            part["simulated_lower"],
            part["simulated_upper"],
            color=colour if middle else SKY,
            alpha=0.25,
            linewidth=0,
            label=words,
        )
        panel.plot(time, part["simulated"], color=colour, linewidth=0.7, linestyle=(0, (4, 3)))
        panel.plot(
            time,
            part["observed"],
            color=INK,
            linewidth=1.5 if middle else 0.9,
            marker="o",
            markersize=2.5,
            label="observed" if middle else None,
        )
