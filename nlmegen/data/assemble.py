"""From records and events in rows to tensors [subject, ...]: the parts of a Population."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nlmegen.data.columns import Bools, Ints
from nlmegen.data.covariates import Covariate, between_records, covariate
from nlmegen.data.events import Events, Kind, Timeline
from nlmegen.data.occasions import Occasions
from nlmegen.data.records import Records


def padded_events(line: Timeline, event: Ints, real: Bools) -> Events:
    """Arrange events by subject; `event` [subject, event] says which, `real` which are no padding."""

    def of(values: Any, padding: Any = 0) -> Tensor:
        return torch.from_numpy(np.where(real, values[event], np.asarray(padding, dtype=values.dtype)))

    time = line.time[event]
    return Events(
        time=torch.from_numpy(time),
        kind=of(line.kind, int(Kind.PAD)),
        amount=of(line.amount),
        rate=of(line.rate),
        compartment=of(line.compartment),
        modelled=of(line.modelled),
        given=of(line.given, time),
        interval=of(line.interval),
        steady=of(line.steady),
        additional=of(line.additional),
    )


def padded_limits(records: Records, at: Ints, mask: Bools) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return cens, lower, upper, lloq and uloq of the observations `at` [subject, time] where `mask`."""
    known = records.censoring
    if known is None:
        blank = torch.full(mask.shape, torch.nan, dtype=torch.float64)
        return torch.zeros(mask.shape, dtype=torch.int64), blank, blank, blank, blank
    lower, upper, lloq, uloq = (
        torch.from_numpy(np.where(mask, x[at], np.nan))
        for x in (known.lower, known.upper, known.lloq, known.uloq)
    )
    return torch.from_numpy(np.where(mask, known.cens[at], 0)), lower, upper, lloq, uloq


def padded_groups(records: Records, at: Ints, mask: Bools) -> Tensor:
    """Return the group of correlated observations of each observation, -1 in none."""
    if records.group is None:
        return torch.full(mask.shape, -1, dtype=torch.int64)
    return torch.from_numpy(np.where(mask, records.group[at], -1))


def padded_occasions(
    records: Records, line: Timeline, at: Ints, event: Ints, interpolation: str
) -> Occasions | None:
    """Return the occasions of observations and segments, or None without the column."""
    if records.occasion is None:
        return None
    within, labels = records.occasion
    number = within.astype(np.float64)
    segments = between_records(number, line.following, line.record, interpolation, level=True)
    return Occasions(
        torch.from_numpy(within[at]),
        torch.from_numpy(segments[event].astype(np.int64)),
        torch.tensor([len(part) for part in labels], dtype=torch.int64),
        labels,
        torch.from_numpy(within[line.source[event]]),
    )


def padded_covariates(
    records: Records, line: Timeline, at: Ints, event: Ints, interpolation: str
) -> dict[str, Covariate]:
    """Return the covariates at observations and in segments."""
    found = {}
    for name, values in records.covariates.items():
        levels = records.levels.get(name, ())
        segments = None
        if not (values == values[records.start][records.subject]).all():
            between = between_records(values, line.following, line.record, interpolation, level=bool(levels))
            segments = between, values[line.source]
        found[name] = covariate(name, values, segments, at, event, records.start, levels)
    return found
