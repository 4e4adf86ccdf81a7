"""Limits of quantification in simulated records: complete observations are drawn first, and cut afterwards."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nlmegen.data.population import Population
from nlmegen.model.problem import Problem


def complete(problem: Problem) -> Problem:
    """Return the problem of the same records without any censoring, so that every one of them can be simulated.

    Records that the likelihood leaves out (M1), halves, or takes as intervals are simulated like the others; `censored`
    of the problem returned then cuts at `limits`.

    Args:
        problem: A problem of all subjects of its population.
    """
    population = problem.population
    if not bool((population.cens != 0).any()):
        return problem
    nothing = torch.full_like(population.dv, torch.nan)
    lloq, uloq = limits(population)
    # A limit that no measured value can have (0, of a logarithm) gives way to one that holds the place.
    dv = torch.where((population.cens != 0) & ~(population.dv > 0), 1.0, population.dv)
    whole = replace(
        population,
        dv=dv,
        cens=torch.zeros_like(population.cens),
        lower=nothing,
        upper=nothing,
        lloq=lloq,
        uloq=uloq,
    )
    return Problem(problem.model, whole)


def limits(population: Population) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper limit of quantification of every record, NaN where there is none.

    A record has the limit in LLOQ (ULOQ). Where these columns say nothing, a censored record has that in its DV, and
    the measured records of an endpoint have the one of their own subject's censored records, or else the one most of
    the endpoint's censored records have: a table without LLOQ does not say it better.

    Returns:
        [subject, time] twice.
    """
    found = []
    for flag, given in ((1, population.lloq), (-1, population.uloq)):
        cut = population.mask & (population.cens == flag)
        out = torch.where(cut & torch.isnan(given), population.dv, given)
        for code in range(len(population.dvids)):
            here = cut & (population.dvid == code)
            if not bool(here.any()):
                continue
            usual = out[here].mode().values
            own = torch.where(here, out, torch.nan).nanmedian(-1, keepdim=True).values
            fill = torch.where(torch.isnan(own), usual, own).expand(out.shape)
            open_ = population.mask & (population.dvid == code) & torch.isnan(out)
            # a value measured beyond that limit had another one
            beyond = population.dv < fill if flag == 1 else population.dv > fill
            out = torch.where(open_ & ~beyond, fill, out)
        found.append(out)
    return found[0], found[1]


def limited(problem: Problem) -> bool:
    """Whether any record has a limit of quantification."""
    return bool((torch.isfinite(problem.lloq) | torch.isfinite(problem.uloq)).any())
