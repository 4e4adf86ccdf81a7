"""What kind of value each observation is, and values beyond a limit of quantification as infinities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nlmegen.check.records import on_observations
from nlmegen.model.discrete import Bernoulli, Discrete, Ordered
from nlmegen.model.problem import Problem

_Floats = npt.NDArray[np.float64]


def levels(problem: Problem) -> npt.NDArray[np.int64]:
    """[n] the number of categories that each observation may be in; 0 for a value, -1 for a count."""
    out = torch.zeros(problem.observed.shape, dtype=torch.int64)
    for _, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, Bernoulli):
            out = torch.where(mask, 2, out)
        elif isinstance(endpoint, Ordered):
            out = torch.where(mask, len(endpoint.gaps) + 2, out)
        elif isinstance(endpoint, Discrete):
            out = torch.where(mask, -1, out)
    return on_observations(problem.population, out)


def beyond(dv: Tensor, cens: Tensor) -> Tensor:
    """Return dv with -inf where it is below, inf where it is above a limit of quantification."""
    return torch.where(cens == 1, -torch.inf, torch.where(cens == -1, torch.inf, dv))


def percentiles(values: _Floats, at: _Floats | float) -> _Floats:
    """Return percentiles over the last axis, as `np.quantile`, where some values are infinite.

    Infinite values are known by their rank only. Between a finite and an infinite neighbour there is nothing to
    interpolate: the percentile is the infinite one.

    Args:
        values: [..., n].
        at: [k] fractions, or one.

    Returns:
        [k, ...], or [...] for one.

    Example:
        >>> percentiles(np.array([-np.inf, -np.inf, 1.0, 2.0, 3.0]), np.array([0.2, 0.5, 0.75])).tolist()
        [-inf, 1.0, 2.0]
    """
    if np.isfinite(values).all():
        return np.asarray(np.quantile(values, at, axis=-1), dtype=np.float64)
    ordered = np.sort(values, axis=-1)
    place = np.asarray(at, dtype=np.float64) * (values.shape[-1] - 1)
    low, high = np.floor(place + 1e-12).astype(np.int64), np.ceil(place - 1e-12).astype(np.int64)
    below, above = np.moveaxis(ordered[..., low], -1, 0), np.moveaxis(ordered[..., high], -1, 0)
    if np.ndim(at) == 0:
        below, above = ordered[..., low], ordered[..., high]
    part = (place - low).reshape(np.shape(place) + (1,) * (np.ndim(below) - np.ndim(place)))
    with np.errstate(invalid="ignore"):
        between = below + part * (above - below)
    between = np.where(below == above, below, between)
    outer = np.where(np.isinf(below), below, above)
    return np.asarray(np.where(np.isfinite(below) & np.isfinite(above), between, outer), dtype=np.float64)
