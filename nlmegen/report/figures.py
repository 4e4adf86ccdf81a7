"""The figures of a report: drawn, embedded, described in words."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlmegen.errors import NlmegenError
from nlmegen.plots.etas import etas
from nlmegen.plots.history import history
from nlmegen.plots.individual import individual
from nlmegen.plots.predictions import normal_quantiles, observed_predicted, residual_against
from nlmegen.plots.style import png

if TYPE_CHECKING:
    from nlmegen.check.vpc import VPC
    from nlmegen.fit import Fit


_SCREEN = 104
"""Pixels of a screen to an inch of a figure, so that its words have the size of the report's small print."""


@dataclass(frozen=True)
class Shown:
    """One figure of a fit.

    Attributes:
        png: The bytes of its file; empty where it could not be drawn.
        alt: What it shows, for who cannot see it.
        caption: How to read it; or why it is missing.
        wide: Whether it may take the whole width.
        pixels: Its natural width on a screen.
    """

    png: bytes
    alt: str
    caption: str
    wide: bool = False
    pixels: int = 0

    @property
    def source(self) -> str:
        """The figure as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


def draw(fit: Fit, table: pd.DataFrame | None, check: VPC | None) -> dict[str, Shown]:
    """Draw every figure of a fit, once, for its report and its folder.

    Args:
        fit: A `Fit`.
        table: What `residuals` made of it, if it could.
        check: A visual predictive check, if one could be made.

    Returns:
        Name -> figure, in the order of the report.
    """
    jobs: dict[str, tuple[Callable[[], Axes | Figure], str, str]] = {}
    if table is not None:
        jobs |= _of_the_table(table)
    if check is not None:
        jobs["vpc"] = (
            check.plot,
            "visual predictive check",
            f"Visual predictive check, {check.draws} simulated replicates. Percentiles of the data (black) should lie"
            f" in the bands, {check.ci:.0%} intervals of the simulated percentiles: {check.inside:.0%} do.",
        )
    count = fit.population.n_subjects
    jobs["individual"] = (
        lambda: individual(fit),
        "observations with individual and population curves, a panel a subject",
        f"Individual fits. Ticks mark doses.{f' The first 16 of {count} subjects.' if count > 16 else ''}",
    )
    if fit.problem.q:
        jobs["etas"] = (
            lambda: etas(fit),
            "histograms of the individual random effects",
            "Conditional modes of the random effects (bars, ticks) and the distribution that Omega gives them (line)."
            " With shrinkage the bars are narrower than the line.",
        )
    if fit.history:
        jobs["history"] = (
            lambda: history(fit),
            "objective against iteration",
            "The objective as the fit went on.",
        )
    return {name: _shown(*job, wide=name in ("vpc", "individual", "etas")) for name, job in jobs.items()}


def _of_the_table(table: pd.DataFrame) -> dict[str, tuple[Callable[[], Axes | Figure], str, str]]:
    """Observations against predictions, and residuals."""
    jobs: dict[str, tuple[Callable[[], Axes | Figure], str, str]] = {
        "observed-pred": (
            lambda: observed_predicted(table, "pred"),
            "observations against population predictions",
            "Population predictions (random effects 0). Points scatter about the line of identity.",
        ),
        "observed-ipred": (
            lambda: observed_predicted(table, "ipred"),
            "observations against individual predictions",
            "Individual predictions. The orange line is a running median: it should follow the line of identity.",
        ),
        "cwres-time": (
            lambda: residual_against(table, "time", "cwres"),
            "conditional weighted residuals against time",
            "Conditional weighted residuals. Under a right model about 95 % lie between the broken lines.",
        ),
        "cwres-pred": (
            lambda: residual_against(table, "pred", "cwres"),
            "conditional weighted residuals against population predictions",
            "The same against the prediction: a funnel points at the residual error, a drift at the structure.",
        ),
    }
    if table["npde"].notna().any():
        jobs["npde"] = (
            lambda: normal_quantiles(table, "npde"),
            "quantiles of npde against those of the normal distribution",
            "Prediction errors by simulation (npde), free of linearisation: they should lie on the line.",
        )
        jobs["npde-time"] = (
            lambda: residual_against(table, "time", "npde"),
            "npde against time",
            "The same against time: about 95 % lie between the broken lines.",
        )
    return jobs


def _shown(make: Callable[[], Axes | Figure], alt: str, caption: str, wide: bool = False) -> Shown:
    """Draw; a figure that a failed fit does not allow is replaced by the reason."""
    try:
        made = make()
        figure = made if isinstance(made, Figure) else made.figure
        assert isinstance(figure, Figure)
        return Shown(png(figure), alt, caption, wide, round(figure.get_figwidth() * _SCREEN))
    except (NlmegenError, ArithmeticError, ValueError, RuntimeError) as error:
        return Shown(b"", alt, f"Not drawn ({alt}): {error}", wide)
