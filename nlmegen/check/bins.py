"""Bins in time for a visual predictive check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nlmegen.errors import DataError

_Floats = npt.NDArray[np.float64]

_LEAST = 10
"""Observations a bin, on average, below which percentiles say nothing."""

_MOST = 30
"""Distinct times that each make a bin; more of them are put together."""

_CLUSTERS = (6, 15)
"""Fewest and most bins that "auto" makes of irregular times."""


def edges(time: _Floats, bins: str | int | Sequence[float] | _Floats, per_subject: float) -> _Floats:
    """Return the edges of the bins; bin k is `edges[k] <= t < edges[k + 1]`, the last one closed.

    "auto": when few enough distinct times occur, each is a bin (a nominal schedule). Otherwise as many bins
    as a subject has observations (a schedule with jitter shows that many clusters), at least six where the
    data allow, at most 15 and with at least ten observations each on average, placed by `clusters`.

    Args:
        time: [n] observation times.
        bins: "auto", a number of bins, or the edges themselves.
        per_subject: Observations of a typical subject, for "auto".

    Raises:
        DataError: Edges that do not rise, or leave an observation out.

    Example:
        >>> edges(np.array([0.0, 0.1, 5.0, 5.1]), 2, 2).tolist()
        [0.0, 2.55, 5.1]
    """
    distinct = np.unique(time)
    if isinstance(bins, str):
        if bins != "auto":
            raise DataError(f'bins: expected "auto", a number of bins or their edges, got {bins!r}')
        if len(distinct) <= min(_MOST, max(1, len(time) // _LEAST)):
            return _between(distinct)
        count = int(np.clip(round(per_subject), *_CLUSTERS))
        return clusters(time, max(1, min(count, len(time) // _LEAST)))
    if isinstance(bins, (int, np.integer)) and not isinstance(bins, bool):
        if bins < 1:
            raise DataError(f"bins: expected at least one bin, got {bins}")
        return clusters(time, int(bins))
    try:
        given = np.asarray(bins, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.ndim != 1 or len(given) < 2 or not (np.diff(given) > 0).all():
        raise DataError(f"bins: expected two or more rising edges, got {bins!r}")
    if time.min() < given[0] or time.max() > given[-1]:
        raise DataError(
            f"bins: edges from {given[0]:g} to {given[-1]:g} leave out observations between {time.min():g} and"
            f" {time.max():g}; widen the outer edges"
        )
    return given


def assign(time: _Floats, edge: _Floats) -> npt.NDArray[np.int64]:
    """Return the bin of each time."""
    return np.clip(np.searchsorted(edge, time, side="right") - 1, 0, len(edge) - 2).astype(np.int64)


def clusters(time: _Floats, count: int) -> _Floats:
    """Split times into `count` clusters at the least within-cluster sum of squares, found exactly.

    Distances are a mean of two scales, time itself and its rank, so that the crowded hours after a dose are
    split while gaps in a schedule still part bins (compare Lavielle & Bleakley 2011,
    doi:10.1007/s10928-011-9223-3, who choose bins by least squares too). The optimum comes by dynamic
    programming over at most 400 groups of neighbouring times.

    Args:
        time: [n] observation times.
        count: Number of bins; fewer come back when there are fewer distinct times.

    Example:
        >>> clusters(np.array([0.0, 1.0, 1.1, 9.0]), 3).tolist()
        [0.0, 0.5, 5.05, 9.0]
    """
    distinct, weight = np.unique(time, return_counts=True)
    group = np.unique(
        (np.arange(len(distinct)) * min(len(distinct), 400)) // len(distinct), return_index=True
    )[1]
    weights = np.add.reduceat(weight, group).astype(np.float64)
    rank = np.cumsum(weight) - (weight + 1) / 2
    span = float(np.ptp(distinct)) or 1.0
    place = (distinct - distinct[0]) / span + rank / max(1, len(time) - 1)
    x = np.add.reduceat(place * weight, group) / weights
    g = len(x)
    count = min(count, g)
    w, wx, wxx = (np.r_[0.0, np.cumsum(v)] for v in (weights, weights * x, weights * x * x))
    i, j = np.arange(g)[:, None], np.arange(1, g + 1)[None, :]
    mass = np.where(j > i, w[j] - w[i], 1.0)
    cost = np.where(j > i, wxx[j] - wxx[i] - (wx[j] - wx[i]) ** 2 / mass, np.inf)
    best = np.r_[0.0, np.full(g, np.inf)]
    came = np.zeros((count, g), dtype=np.int64)
    for k in range(count):
        total = best[:-1, None] + cost
        came[k] = np.argmin(total, axis=0)
        best = np.r_[np.inf, total[came[k], np.arange(g)]]
    starts, end = [], g
    for k in reversed(range(count)):
        end = int(came[k, end - 1])
        starts.append(end)
    first = group[np.array(starts[::-1])]
    return _between(distinct, first)


def _between(distinct: _Floats, first: npt.NDArray[np.int64] | None = None) -> _Floats:
    """Edges half way between neighbouring times, where `first` are the first times of the bins (default: all)."""
    first = np.arange(len(distinct)) if first is None else first
    inner = (distinct[first[1:]] + distinct[first[1:] - 1]) / 2
    last = distinct[-1] if distinct[-1] > distinct[0] else distinct[0] + 1.0
    return np.concatenate([distinct[:1], inner, [last]])
