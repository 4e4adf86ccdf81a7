"""Designs that nobody had: real records with samples left out, samples moved and doses scaled.

An encoder trained on the designs of one study alone has never seen a missing sample. Patients are therefore simulated
on real designs and on variations of them, so that q also fits patients who come later with other records.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..model.problem import Problem

DOSE_RANGE = 0.7
"""Doses are multiplied by exp(U(-0.7, 0.7)): half to twice."""
DROP_RANGE = 0.7
"""Up to this share of a varied record's samples is left out."""


def vary_designs(
    problem: Problem, index: Tensor, share: float, generator: torch.Generator
) -> tuple[Problem, Tensor]:
    """The designs `index` of a problem, a share of them varied.

    Args:
        problem: real designs.
        index: which, repeats allowed, `[M]`.
        share: probability that a design is varied, 0 to 1.
        generator: source of the variation.

    Returns:
        A problem of M patients (its observations mean nothing), and the mask of the samples kept `[M, time]`.
    """
    chosen = problem.select(index)
    if share <= 0.0:
        return chosen, chosen.mask
    m, width = chosen.mask.shape
    varied = torch.rand(m, 1, generator=generator, dtype=torch.float64) < share
    time = torch.where(varied, moved_times(chosen, generator), chosen.time)
    factor = torch.exp(DOSE_RANGE * _symmetric((m, 1), generator))
    factor = torch.where(varied, factor, torch.ones_like(factor))
    rate = DROP_RANGE * torch.rand(m, 1, generator=generator, dtype=torch.float64)
    lost = varied & (torch.rand(m, width, generator=generator, dtype=torch.float64) < rate)
    return redesigned(chosen, time, factor), chosen.mask * ~lost


def redesigned(problem: Problem, time: Tensor, dose_factor: Tensor) -> Problem:
    """The same subjects with other sampling times and doses, for simulation: `y` keeps its old observations.

    Args:
        problem: the designs as they are.
        time: observation times `[subject, time]`, each within its own segment of the schedule.
        dose_factor: what every amount and rate of a subject is multiplied by, `[subject, 1]`.
    """
    other, schedule = copy.copy(problem), problem.schedule
    other.time = time
    events = schedule.events
    other.schedule = dataclasses.replace(
        schedule,
        time=time,
        events=dataclasses.replace(
            events, amount=events.amount * dose_factor, rate=events.rate * dose_factor
        ),
        origin=None,  # no part of the schedule that it came from
        bolus=tuple(None if x is None else x * dose_factor for x in schedule.bolus),
        rate=tuple(None if x is None else x * dose_factor for x in schedule.rate),
    )
    return other


def moved_times(problem: Problem, generator: torch.Generator) -> Tensor:
    """Each sample moved at most half-way to its neighbours, never over an event, `[subject, time]`."""
    time, schedule, observed = problem.time, problem.schedule, problem.mask > 0
    opened = time - schedule.elapsed
    length = schedule.length.gather(1, schedule.segment.clamp_min(0))
    endless = torch.full_like(time[:, :1], torch.inf)
    closed = torch.where(length > 0, opened + length, endless)
    before = torch.cat([-endless, time[:, :-1]], 1)
    after = torch.cat([torch.where(observed[:, 1:], time[:, 1:], endless), endless], 1)
    # a sample after its neighbour in time belongs to another reset block: the segment's own ends bind there
    low = torch.maximum(torch.where(before <= time, before, opened), opened)
    high = torch.minimum(torch.where(after >= time, after, closed), closed)
    high = torch.where(high.isinf(), time + 0.3 * (time - low), high)
    u = 0.5 * _symmetric(tuple(time.shape), generator)
    move = torch.where(u < 0, u * (time - low).clamp_min(0), u * (high - time).clamp_min(0))
    return torch.where(observed, time + move, time)


def _symmetric(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2.0 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1.0
