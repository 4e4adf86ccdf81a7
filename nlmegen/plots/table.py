"""The figure of a table before anything is fitted: values after dose, doses and samples in time, covariates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nlmegen.data.columns import Bools, Floats, Ints
from nlmegen.plots.style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SIZE,
    SKY,
    VERMILION,
    figure,
    headed,
    labelled,
    legend,
    quiet,
)

if TYPE_CHECKING:
    from nlmegen.check.table.report import CheckReport

_NAMED = 6
"""Marked points whose line is written beside them, in a panel."""

_COVARIATES = 6
"""Covariates drawn; the text names them all."""


def table(report: CheckReport) -> Figure:
    """Draw a table that was checked.

    Above, a panel an endpoint: values against the time after dose, on a logarithmic scale where they span a factor of
    five and are no counts; a line a subject and dosing interval; limits of values below quantification as triangles;
    what looks odd ringed, with its line. In the middle doses (ticks) and samples (dots) of every subject in time.
    Below, how the covariates are distributed over subjects.

    Args:
        report: What `check_table` returned.
    """
    view = report.view
    labels, covariates = view.records.dvids, list(report.population.covariates)[:_COVARIATES]
    columns = max(len(labels), min(3, len(covariates)), 1)
    strips = -(-len(covariates) // columns)
    drawn = figure(max(6.0, 4.2 * len(labels)), 3.1 + 2.0 + 1.5 * strips)
    spec = drawn.add_gridspec(2 + strips, 1, height_ratios=[3.1, 2.0, *[1.5] * strips])
    odd = _odd_rows(report)
    top = spec[0].subgridspec(1, len(labels))
    first: Axes | None = None
    for code, label in enumerate(labels):
        panel = drawn.add_subplot(top[0, code])
        quiet(panel)
        _values(panel, report, code, odd)
        headed(panel, "" if len(labels) == 1 else f"dvid {label}")
        panel.set_ylabel(labelled("dv", report.population.dv_unit if len(labels) == 1 else ""))
        first = first or panel
    middle = drawn.add_subplot(spec[1])
    quiet(middle)
    _schedule(middle, report, odd)
    for k, name in enumerate(covariates):
        strip = spec[2 + k // columns].subgridspec(1, columns)
        panel = drawn.add_subplot(strip[0, k % columns])
        quiet(panel)
        _covariate(panel, report, name)
    if first is not None:
        legend(drawn, first)
    return drawn


def _odd_rows(report: CheckReport) -> dict[str, Ints]:
    """[k] records of the findings of a kind."""
    found: dict[str, set[int]] = {}
    for finding in report.findings:
        found.setdefault(finding.kind, set()).update(finding.rows)
    return {kind: np.array(sorted(rows), dtype=np.int64) for kind, rows in found.items()}


def _values(panel: Axes, report: CheckReport, code: int, odd: dict[str, Ints]) -> None:
    view = report.view
    records = view.records
    rows = np.flatnonzero(records.observed & (records.dvid == code))
    after = np.isfinite(view.since[rows]).any()
    x = np.where(np.isnan(view.since), 0.0, view.since) if after else records.time
    measured = rows[view.censored[rows] == 0]
    log = _is_log(records.dv[measured])
    shown = measured[records.dv[measured] > 0] if log else measured
    many = len(shown) > 1500
    for own in _runs(records.subject, x, shown):
        panel.plot(x[own], records.dv[own], color=GREY, linewidth=0.5, alpha=0.25 if many else 0.5)
    panel.plot(
        x[shown], records.dv[shown], "o", color=BLUE, markersize=2 if many else 3, alpha=0.4 if many else 0.7,
        markeredgewidth=0, label="observation",
    )  # fmt: skip
    for flag, marker, words in ((1, "v", "below this limit"), (-1, "^", "above this limit")):
        limits = rows[view.censored[rows] == flag]
        if len(limits):
            panel.plot(
                x[limits],
                records.dv[limits],
                marker,
                color=ORANGE,
                markersize=4,
                linestyle="none",
                label=words,
            )
    marked = np.intersect1d(odd.get("dv", rows[:0]), rows)
    marked = np.union1d(marked, np.intersect1d(odd.get("time", rows[:0]), rows))
    _mark(panel, report, x, marked, log)
    if log:
        panel.set_yscale("log")
        lost = len(measured) - len(shown)
        if lost:
            panel.text(
                1, 1, f"{lost} of 0 or less not shown", transform=panel.transAxes, ha="right", va="top",
                fontsize=SIZE - 2, color=GREY,
            )  # fmt: skip
    panel.set_xlabel(labelled("time after dose" if after else "time", report.population.time_unit))


def _is_log(values: Floats) -> bool:
    """Whether a logarithmic axis shows values better: positive ones that span more than a factor of five."""
    positive = values[values > 0]
    counts = bool((values == np.floor(values)).all()) and len(np.unique(values)) < 12
    if counts or not len(positive) or len(positive) < 0.8 * len(values):
        return False
    return bool(np.quantile(positive, 0.98) > 5 * np.quantile(positive, 0.02))


def _runs(subject: Ints, x: Floats, rows: Ints) -> Iterator[Ints]:
    """Records of one subject and dosing interval: the time after dose rises."""
    if len(rows):
        yield from np.split(rows, np.flatnonzero((np.diff(subject[rows]) != 0) | (np.diff(x[rows]) < 0)) + 1)


def _mark(panel: Axes, report: CheckReport, x: Floats, rows: Ints, log: bool) -> None:
    """Ring what looks odd, and write the lines of the first few."""
    values = report.view.records.dv
    rows = rows[values[rows] > 0] if log else rows
    if not len(rows):
        return
    panel.plot(x[rows], values[rows], "o", color=VERMILION, markersize=7, fillstyle="none", label="looks odd")
    for row in rows[:_NAMED] if len(rows) <= 3 * _NAMED else rows[:1]:
        panel.annotate(
            f"line {report.view.table.line[row]}", (x[row], values[row]), xytext=(5, 4), textcoords="offset points",
            fontsize=SIZE - 2, color=VERMILION,
        )  # fmt: skip


def _schedule(panel: Axes, report: CheckReport, odd: dict[str, Ints]) -> None:
    """Doses and samples of every subject in time, a row a subject."""
    view = report.view
    records = view.records
    size = float(np.clip(90 / len(records.ids), 0.8, 5))
    seen = np.flatnonzero(records.observed)
    given = np.flatnonzero(records.dosed)
    panel.plot(
        records.time[seen],
        records.subject[seen],
        "o",
        color=BLUE,
        markersize=size * 0.6,
        alpha=0.7,
        markeredgewidth=0,
    )
    panel.plot(
        records.time[given], records.subject[given], "|", color=INK, markersize=size * 1.6, label="dose"
    )
    again = given[records.additional[given] > 0]
    for row in again:  # additional doses, as far as they are given
        last = records.time[records.start[records.subject[row]] + records.count[records.subject[row]] - 1]
        times = records.time[row] + records.interval[row] * np.arange(1, records.additional[row] + 1)
        times = times[times <= last][:2000]
        panel.plot(times, np.full(len(times), records.subject[row]), "|", color=SKY, markersize=size * 1.6)
    rows = np.union1d(odd.get("dose", seen[:0]), odd.get("time", seen[:0]))
    if len(rows):
        panel.plot(
            records.time[rows],
            records.subject[rows],
            "o",
            color=VERMILION,
            markersize=size + 3,
            fillstyle="none",
        )
    panel.set_ylim(len(records.ids) - 0.4, -0.6)
    few = len(records.ids) <= 15
    panel.set_yticks(range(len(records.ids)) if few else [])
    if few:
        panel.set_yticklabels(records.ids, fontsize=SIZE - 2)
    panel.set_ylabel("subject")
    headed(panel, "doses (ticks) and samples (dots)")
    panel.set_xlabel(labelled("time", report.population.time_unit))


def _covariate(panel: Axes, report: CheckReport, name: str) -> None:
    """The values of a covariate: each subject's, or every one that a subject has where it changes."""
    view, item = report.view, report.population.covariates[name]
    records = view.records
    pairs = pd.DataFrame({"subject": records.subject, "value": records.covariates[name]}).drop_duplicates()
    values = pairs["value"].to_numpy(dtype=np.float64)
    odd = np.zeros(len(values), dtype=np.bool_)
    for finding in report.findings:
        if finding.kind == "covariate" and finding.text.startswith(view.table.name(name) + " "):
            odd |= _with(
                pairs, records.subject[list(finding.rows)], records.covariates[name][list(finding.rows)]
            )
    levels = item.levels
    distinct = np.unique(values)
    if levels or len(distinct) <= 6:
        heights = [int((values == one).sum()) for one in distinct]
        words = [str(levels[int(one)]) if levels else f"{one:g}" for one in distinct]
        colours = [VERMILION if odd[values == one].any() else BLUE for one in distinct]
        panel.bar(range(len(distinct)), heights, color=colours, alpha=0.7, width=0.6)
        panel.set_xticks(range(len(distinct)))
        panel.set_xticklabels(words, fontsize=SIZE - 2)
    else:
        edges = np.histogram_bin_edges(values, bins=min(20, max(6, len(values) // 6)))
        panel.hist(
            [values[~odd], values[odd]], bins=list(edges), stacked=True, color=[BLUE, VERMILION], alpha=0.7
        )
    panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    headed(panel, f"{name}{', varies' if item.varies else ''}")


def _with(pairs: pd.DataFrame, subject: Ints, value: Floats) -> Bools:
    keys = set(zip(subject.tolist(), value.tolist(), strict=True))
    return np.array([(s, v) in keys for s, v in pairs.itertuples(index=False)], dtype=np.bool_)
