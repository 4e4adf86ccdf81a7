"""Which observations belong to which endpoint, and what of a table is no covariate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from ..data.events import Kind
from ..data.population import Population
from ..errors import DataError, ModelError, nearest
from ..structure.solver import NOT_SOLVED
from .endpoints import Endpoint

if TYPE_CHECKING:
    from .problem import Problem


def bind_endpoints(
    endpoints: Mapping[str, Endpoint], population: Population, partial: bool = False
) -> list[Tensor] | None:
    """One mask an endpoint from the DVIDs of a population, None where the one endpoint takes every observation.

    An endpoint takes the DVID it declares (`dvid=`), else the one that bears its name, else, the labels being numbers,
    its place among the endpoints.

    Args:
        endpoints: by name.
        population: the data.
        partial: whether an endpoint may be without observations (patients who come after a fit).

    Raises:
        ModelError: when two endpoints take the same DVID.
        DataError: when observations are left that no endpoint takes, or an endpoint has none.
    """
    labels: Sequence[int | str] = population.dvids
    if len(endpoints) == 1 and len(labels) == 1 and next(iter(endpoints.values())).dvid is None:
        return None
    masks: list[Tensor] = []
    taken: dict[int | str, str] = {}
    for place, (name, endpoint) in enumerate(endpoints.items(), start=1):
        wanted = endpoint.dvid if endpoint.dvid is not None else name if name in labels else place
        if wanted in taken:
            raise ModelError(
                f"the endpoints {taken[wanted]} and {name} both take DVID {wanted}; give each a dvid=... of its own"
            )
        taken[wanted] = name
        if partial and wanted not in labels:
            masks.append(torch.zeros_like(population.mask))
            continue
        if wanted not in labels:
            raise DataError(
                f"the endpoint {name} takes DVID {wanted}, which no observation has (the data hold "
                f"{', '.join(map(str, labels)) or 'none'}); set its dvid=..., or remove the endpoint",
                column="DVID",
            )
        masks.append(population.mask & (population.dvid == labels.index(wanted)))
    left = [str(label) for label in labels if label not in taken]
    if left:
        raise DataError(
            f"no endpoint of the page takes the observations with DVID {', '.join(left)}; declare one with "
            f"dvid=..., or leave them out on reading (ignore=...).{nearest(left[0], endpoints)}",
            column="DVID",
        )
    return masks


def not_finite(problem: Problem, bad: Tensor, lost: Tensor) -> str:
    """What to check where a prediction is not finite.

    Args:
        problem: of all subjects of its population.
        bad: the subjects that have such a prediction, `[subject]` bool.
        lost: whether differential equations could not be solved.
    """
    words = (
        NOT_SOLVED
        if bool(lost.any())
        else "check the starting values, the doses, and for a log-normal endpoint that no observation precedes the "
        "first dose"
    )
    return words + late_steady(problem, bad) + nonpositive(problem, problem.covariates_read, bad)


def late_steady(problem: Problem, bad: Tensor) -> str:
    """The tail of a message on subjects with a steady state of doses that the page delays; "" where there is none.

    Args:
        problem: of all subjects of its population.
        bad: the subjects to look at, `[subject]` bool.
    """
    events, structure = problem.schedule.events, problem.structure
    lagged = torch.zeros_like(events.kind, dtype=torch.bool)
    for name, said in structure.dosed.items():
        if said.lag is not None:
            lagged = lagged | (problem.schedule.target == structure.compartments.index(name))
    found = bad & (lagged & (events.kind == Kind.STEADY) & (events.interval > 0)).any(-1)
    if not bool(found.any()):
        return ""
    return (
        "; a lag as long as or longer than the interval II of a steady state (SS) has no meaning: make it shorter at "
        f"the starting values, or write these doses out (id {_ids(problem, found)})"
    )


def nonpositive(problem: Problem, names: Iterable[str], bad: Tensor) -> str:
    """The tail of a message that names covariates of 0 or less, which a power or a logarithm cannot take.

    Indicators (0 or 1), and values that other subjects have too, without harm, are left out.

    Args:
        problem: of all subjects of its population.
        names: the covariates that the page reads.
        bad: the subjects to look at, `[subject]` bool.
    """
    covariates, words = problem.population.covariates, []
    for name in sorted(names):
        if name not in covariates or covariates[name].levels:
            continue
        values = covariates[name].observation.expand(problem.population.mask.shape)
        if bool(((values == 0) | (values == 1)).all()):  # an indicator
            continue
        low = (values <= 0) & problem.population.mask
        elsewhere = values[low & ~bad.unsqueeze(-1)]
        low = low & bad.unsqueeze(-1) & ~torch.isin(values, elsewhere)
        if bool(low.any()):
            shown = ", ".join(f"{x:g}" for x in sorted(set(values[low].tolist()))[:3])
            words.append(f"{name} {shown} (id {_ids(problem, low.any(-1))})")
    if not words:
        return ""
    return (
        f"; a power or a logarithm cannot take covariates of 0 or less: {', '.join(words)}; correct them, or read "
        "what stands for a missing value as missing"
    )


def _ids(problem: Problem, which: Tensor, most: int = 5) -> str:
    """Identifiers of the subjects flagged in `which [subject]`."""
    found = which.nonzero().flatten().tolist()
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(problem.population.ids[n] for n in found[:most]) + more


class Hints(Mapping[str, str]):
    """What to say of columns of a table that are there but cannot be covariates, looked up when somebody asks."""

    def __init__(self, population: Population) -> None:
        self._population = population

    @cached_property
    def _words(self) -> dict[str, str]:
        table, why = self._population.table, self._population.no_covariates
        return {
            str(name): f"column {name} of the data holds text and is no covariate: {why[str(name)]}"
            if str(name) in why
            else f"column {name} of the data holds text that is no categorical covariate (on every record one of at"
            " most 12 levels, each of several subjects); group it, or recode it to numbers, before reading"
            for name in table.columns
            if name not in self._population.covariates and not is_numeric_dtype(table[name])
        }

    def __getitem__(self, name: str) -> str:
        return self._words[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)

    def __bool__(self) -> bool:
        return True  # without looking
