"""What tokens say of records beyond Gaussian observations and plain doses: kinds, censoring, occasions, steady states.

A count or a category enters by its score (see `features`), which is all that a linearised posterior needs; what bends
the true posterior away from that is told here: the observation and its prediction on the scale of the table, how much
of the information of a measurement a censored one has, and where its limits lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.events import Kind

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem
    from .linearise import Linearised

MARKS = 8
"""Numbers that `marks` adds to the token of an observation."""

DOSE_MARKS = 6
"""Numbers that `dose_marks` adds to the token of a dose."""


def marks(problem: Problem, here: Linearised, values: Values) -> Tensor:
    """Numbers of every observation, `[subject, time, MARKS]`.

    Args:
        problem: the patients, with their observations.
        here: their linearised posteriors.
        values: parameters.
    """
    width = problem.time.shape[-1]
    f, sd = here.f[:, :width], here.variance[:, :width].sqrt()
    left = problem.local(here.f, values).weight.diagonal[:, :width] * sd * sd
    limits, nothing = problem.limits, torch.zeros_like(f)
    censored = torch.zeros_like(problem.observed) if limits is None else limits.censored
    columns = [censored.to(f.dtype)]
    for limit in (None, None) if limits is None else (limits.lower, limits.upper):
        if limit is None:
            columns += [nothing, nothing]
        else:
            known = censored & limit.isfinite()
            off = (torch.where(known, limit, 0.0) - f) / sd
            columns += [known.to(f.dtype), torch.where(known, torch.asinh(off), 0.0)]
    columns += [
        left.clamp(0.0, 4.0).sqrt(),
        _pressed(torch.where(censored, 0.0, problem.natural(problem.y, values, drawn=True))),
        _pressed(problem.natural(here.f, values)),
    ]
    return torch.stack(columns, -1)


def _pressed(x: Tensor) -> Tensor:
    """Numbers of any size, small ones nearly as they are."""
    return torch.sign(x) * torch.log1p(x.abs())


def occasion_marks(problem: Problem, count: int, segments: bool = False) -> Tensor:
    """To which of `count` occasions every observation or segment belongs, `[subject, time or event, count]`."""
    index = problem.levels.segment if segments else problem.levels.observation
    if index is None:
        index = torch.zeros_like(problem.schedule.segment if not segments else problem.schedule.target)
    return torch.nn.functional.one_hot(index.clamp(0, count - 1), count).to(torch.float64)


def dose_marks(problem: Problem, time_scale: float) -> tuple[Tensor, Tensor]:
    """Numbers of every event, `[subject, event, DOSE_MARKS]`, and whether it does what amounts and rates do not tell,
    `[subject, event]` bool.

    Args:
        problem: the patients.
        time_scale: the unit of dosing intervals.
    """
    events = problem.schedule.events
    off = events.kind == Kind.OFF
    columns = [
        torch.log1p(events.interval / time_scale),
        *(code == value for code in (events.steady, events.modelled) for value in (1, 2)),
        off,
    ]
    marked = off | (events.steady > 0) | (events.modelled > 0)
    return torch.stack([x.to(torch.float64) for x in columns], -1), marked & (events.kind != Kind.PAD)
