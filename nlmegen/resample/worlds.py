"""The data sets of a bootstrap: subjects drawn again, or observations simulated again.

    case        n subjects drawn with replacement from the n there are (within strata where there are any); a subject
                that is drawn twice is two subjects
    parametric  the same subjects, doses, covariates and times; etas and residual errors drawn from the fit

Replicate k of a seed is one data set, whoever makes it and whenever: its random numbers depend on (seed, k) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from ..data.population import Population
from ..errors import DataError, nearest
from ..model.page import Model
from ..model.problem import Problem
from ..simulate.donors import owners
from ..simulate.draws import draw_eta, generator, whole
from ..simulate.trial import draw_dv

KINDS = ("case", "parametric")


@dataclass(frozen=True, eq=False)
class Worlds:
    """All the data sets of one bootstrap.

    Attributes:
        model: the page at the estimates.
        population: the data that were fitted.
        kind: "case" or "parametric".
        seed: of all replicates.
        stratum: `[subject]` number of each subject's stratum (case).
    """

    model: Model
    population: Population
    kind: str
    seed: int
    stratum: npt.NDArray[np.int64]

    def draw(self, replicate: int) -> tuple[Population, int]:
        """The data of replicate 1, 2, ..., and the seed that they were drawn with."""
        source = generator(self.seed, f"bootstrap {self.kind}", replicate)
        if self.kind == "case":
            return self.population.select(self._subjects(source)), source.initial_seed()
        return self._simulated(source), source.initial_seed()

    def _subjects(self, source: torch.Generator) -> torch.Tensor:
        parts = []
        for stratum in range(int(self.stratum.max()) + 1):
            members = torch.from_numpy(np.flatnonzero(self.stratum == stratum))
            parts.append(members[torch.randint(len(members), (len(members),), generator=source)])
        return torch.cat(parts)

    def _simulated(self, source: torch.Generator) -> Population:
        problem, population = self._problem, self.population
        values = problem.spread(self.model.values)
        with torch.no_grad():
            eta = draw_eta(values.factor, problem.n_subjects, source)
            f = problem.predict(eta, values).f
            dv, usable = draw_dv(problem, values, f, source)
        # where the model leaves no residual variance there is no observation, as `simulate` has it
        mask = torch.from_numpy(usable)
        return replace(population, dv=torch.where(mask, torch.from_numpy(dv), 0.0), mask=mask)

    @cached_property
    def _problem(self) -> Problem:
        return Problem(self.model, self.population)


def worlds(model: Model, population: Population, kind: str, seed: int, stratify: str | None = None) -> Worlds:
    """The data sets of a bootstrap.

    Args:
        model: the page at the estimates.
        population: the data that were fitted.
        kind: "case" or "parametric".
        seed: a whole number of 0 or more.
        stratify: a column of the table, one value a subject: each of its values is a stratum, in which as many subjects
            are drawn as there are.

    Raises:
        DataError: another kind; a column that is not there, changes within a subject or has hardly fewer values than
            there are subjects; a stratified parametric bootstrap.
    """
    if kind not in KINDS:
        raise DataError(f"bootstrap(kind={kind!r}): expected 'case' or 'parametric'")
    if stratify is not None and kind != "case":
        raise DataError(
            f"bootstrap(stratify={stratify!r}): a parametric bootstrap keeps every subject, so there is nothing to"
            " stratify; leave it out, or take kind='case'"
        )
    stratum = np.zeros(len(population), dtype=np.int64)
    if stratify is not None:
        stratum = _strata(population, stratify)
    return Worlds(model, population, kind, whole("seed", seed, 0), stratum)


def _strata(population: Population, column: object) -> npt.NDArray[np.int64]:
    if not isinstance(column, str):
        raise DataError(f"stratify: expected the name of a column, got {column!r}")
    table, name = population.table, column.lower()
    if name not in table:
        raise DataError(f"stratify: the data have no column '{column}'.{nearest(column, _names(table))}")
    by_subject = table[name].groupby(owners(population))
    if int(by_subject.nunique().max()) > 1:
        raise DataError(
            f"stratify: '{column}' changes within a subject; stratify by a column that is one value a subject"
        )
    codes = np.asarray(pd.factorize(by_subject.first(), use_na_sentinel=False)[0], dtype=np.int64)
    if int(codes.max()) + 1 > len(codes) / 2:
        raise DataError(
            f"stratify: '{column}' has {int(codes.max()) + 1} values in {len(codes)} subjects; hardly anything would be"
            " drawn anew. Put it into groups first"
        )
    return codes


def _names(table: pd.DataFrame) -> Sequence[str]:
    return [str(name) for name in table.columns]
