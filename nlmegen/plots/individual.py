"""Individual fits: each subject's observations over its own curve and the population's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlmegen.data.events import Kind
from nlmegen.data.population import Population
from nlmegen.errors import DataError, nearest
from nlmegen.model.problem import Problem
from nlmegen.plots.style import BLUE, GREY, INK, ORANGE, SIZE, VERMILION, headed, labelled, legend, panels

if TYPE_CHECKING:
    from nlmegen.fit import Fit

_RECORD = ("id", "time", "evid", "mdv", "dv", "amt", "rate", "ii", "addl", "ss", "cmt", "dvid")

POINTS = 120
"""Points of a curve, besides the times of doses and observations."""


def individual(
    fit: Fit,
    ids: Sequence[str | int] | None = None,
    page: int = 0,
    per_page: int = 16,
    log: bool = False,
) -> Figure:
    """Draw observations, individual (at the EBE) and population prediction, a panel a subject and endpoint.

    Curves run on a fine grid of time; doses are ticks at the foot.

    Args:
        fit: A `Fit`.
        ids: Subjects to draw; all unless given.
        page: Which page of them, from 0.
        per_page: Panels a page.
        log: A logarithmic axis of dv.

    Raises:
        DataError: An unknown id, or a page after the last.
    """
    chosen = _chosen(fit, ids)
    labels = fit.population.dvids
    per_page = max(1, per_page // len(labels))
    last = math.ceil(len(chosen) / per_page) - 1
    if not 0 <= page <= last:
        raise DataError(f"page: expected a number from 0 to {last}, got {page}")
    index = chosen[page * per_page : (page + 1) * per_page]
    dense, curves = _curves(fit, index)
    count = len(index) * len(labels)
    drawn, axes = panels(count, columns=4, width=2.2, height=1.9)
    for k, subject in enumerate(index):
        for j, label in enumerate(labels):
            panel = axes[k * len(labels) + j]
            _panel(panel, fit, subject, dense, curves, k, j)
            headed(
                panel, f"id {fit.population.ids[subject]}" + (f", dvid {label}" if len(labels) > 1 else "")
            )
            panel.locator_params(nbins=4)
            if log:
                panel.set_yscale("log", nonpositive="clip")
    drawn.supxlabel(labelled("time", fit.population.time_unit), fontsize=SIZE)
    drawn.supylabel(labelled("observation", fit.population.dv_unit), fontsize=SIZE)
    legend(drawn, axes[0])
    return drawn


def individual_pages(
    fit: Fit, ids: Sequence[str | int] | None = None, per_page: int = 16, log: bool = False
) -> Iterator[Figure]:
    """Yield every page of `individual`, one after the other."""
    panels_of_one = len(fit.population.dvids)
    pages = math.ceil(len(_chosen(fit, ids)) / max(1, per_page // panels_of_one))
    for page in range(pages):
        yield individual(fit, ids, page, per_page, log)


def _panel(
    panel: Axes,
    fit: Fit,
    subject: int,
    dense: Population,
    curves: dict[str, npt.NDArray[np.float64]],
    place: int,
    endpoint: int,
) -> None:
    here = fit.population.mask[subject] & (fit.population.dvid[subject] == endpoint)
    on = (dense.mask[place] & (dense.dvid[place] == endpoint)).numpy()
    time = dense.time[place].numpy()[on]
    # A reset starts a curve anew: where time runs backwards the pen is lifted.
    lift = np.flatnonzero(np.diff(time) < 0) + 1
    for name, colour, style in (("pred", GREY, (0, (4, 3))), ("ipred", VERMILION, "-")):
        words = {"pred": "population prediction", "ipred": "individual prediction"}[name]
        panel.plot(
            np.insert(time, lift, np.nan),
            np.insert(curves[name][place][on], lift, np.nan),
            color=colour,
            linestyle=style,
            linewidth=1.1,
            label=words,
        )
    cens = fit.population.cens[subject]
    for flag, marker, words in (
        (0, "o", "observed"),
        (1, "v", "below this limit"),
        (-1, "^", "above this limit"),
    ):
        chosen = here & (cens == flag)
        if flag == 0 or bool(chosen.any()):
            panel.plot(
                fit.population.time[subject][chosen],
                fit.population.dv[subject][chosen],
                marker,
                color=ORANGE if flag else BLUE,
                markersize=3.2,
                markeredgewidth=0,
                label=words,
                linestyle="none",
            )
    events = fit.population.events
    kind = events.kind[subject]
    doses = events.time[subject][(kind == Kind.BOLUS) | (kind == Kind.START) | (kind == Kind.STEADY)].numpy()
    foot = panel.get_xaxis_transform()
    panel.plot(doses, np.full(len(doses), 0.03), "|", color=INK, markersize=5, alpha=0.6, transform=foot)


def _chosen(fit: Fit, ids: Sequence[str | int] | None) -> list[int]:
    """Positions of the subjects asked for."""
    known = list(fit.population.ids)
    if ids is None:
        return list(range(len(known)))
    wanted = [str(one) for one in ids]
    for one in wanted:
        if one not in known:
            raise DataError(f"ids: the data have no subject '{one}'.{nearest(one, known[:20])}")
    return [known.index(one) for one in wanted]


def _curves(fit: Fit, index: list[int]) -> tuple[Population, dict[str, npt.NDArray[np.float64]]]:
    """A population with a fine grid of times for these subjects, and both predictions [subject, time] on it."""
    dense = densify(fit.population.select(index), POINTS)
    problem = Problem(fit.model, dense)
    mode = fit.ebe[torch.tensor(index)]
    with torch.no_grad():
        drawn = {
            "pred": problem.natural(
                problem.predict(torch.zeros_like(mode), fit.values).f, fit.values
            ).numpy(),
            "ipred": problem.natural(problem.predict(mode, fit.values).f, fit.values).numpy(),
        }
    return dense, drawn


def densify(population: Population, points: int) -> Population:
    """Return a population whose observations lie on a fine grid of time, everything else unchanged.

    The grid has `points` times from the first to the last record of each reset block, the times of the observations,
    and of each event the time itself and a moment before it, so that a curve shows trough and peak. The values of
    the observations are replaced by 1: only predictions are to be made of it.

    Args:
        population: The subjects; their ids must differ.
        points: Number of regular times.
    """
    table = population.table
    steps = ["occ"] if population.occasions is not None else []
    names = [name for name in (*_RECORD, *steps, *population.covariates) if name in table]
    observed = np.zeros(len(table), dtype=bool)
    observed[population.row[population.mask].numpy()] = True
    subject = pd.factorize(table["id"])[0]
    reset = table["evid"].isin([3, 4]).to_numpy() if "evid" in table else np.zeros(len(table), dtype=bool)
    block = np.cumsum(reset | (np.diff(subject, prepend=-1) != 0))
    event_time = population.events.time.numpy()
    parts = []
    for rows in np.split(np.arange(len(table)), np.flatnonzero(np.diff(block)) + 1):
        own = table.iloc[rows]
        time = own["time"].to_numpy(dtype=float)
        inside = event_time[subject[rows[0]]]
        inside = inside[(inside >= time[0]) & (inside <= time[-1])]
        before = np.maximum(time[0], inside - 1e-6 * (time[-1] - time[0]))
        grid = np.unique(np.concatenate([np.linspace(time[0], time[-1], points), time, inside, before]))
        fresh = pd.DataFrame({"id": own["id"].iloc[0], "time": grid, "mdv": 0, "dv": 1.0})
        if "evid" in table:
            fresh["evid"] = 0
        for name in population.covariates:
            fresh[name] = _along(grid, time, own[name].to_numpy(), population.interpolation)
        for name in steps:
            fresh[name] = _along(grid, time, own[name].to_numpy(dtype=object), population.interpolation)
        several = [fresh.assign(dvid=label) for label in population.dvids] if "dvid" in table else [fresh]
        kept = own.loc[~observed[rows], names].assign(mdv=1)
        # Records of the table come before grid points of the same time: a curve shows what a dose does.
        parts.append(pd.concat([kept, *several]).sort_values("time", kind="stable"))
    return Population.from_table(
        pd.concat(parts, ignore_index=True),
        interpolation=population.interpolation,
        covariates=list(population.covariates),
        warn=False,
    )


def _along(
    grid: npt.NDArray[np.float64],
    time: npt.NDArray[np.float64],
    value: npt.NDArray[Any],
    interpolation: str,
) -> npt.NDArray[Any]:
    """A covariate or the occasion on the grid, by the population's rule; a text has no middle and follows "nonmem"."""
    if interpolation == "linear" and value.dtype != object:
        return np.asarray(np.interp(grid, time, value))
    if interpolation == "locf":
        return np.asarray(value[np.maximum(np.searchsorted(time, grid, side="right") - 1, 0)])
    return np.asarray(value[np.minimum(np.searchsorted(time, grid, side="left"), len(time) - 1)])
