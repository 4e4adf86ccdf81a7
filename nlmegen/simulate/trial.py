"""Simulation of a trial: virtual patients of a cohort, or new observations for the records of a population."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from nlmegen.data.population import Population
from nlmegen.errors import DataError
from nlmegen.model.page import Model
from nlmegen.model.parameters import Values
from nlmegen.model.problem import Problem
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.draws import draw_eta, generator

BLOCK = 1000
"""Patients drawn and predicted together. Draws depend on it, so it is fixed; chunks are made of whole blocks."""

_NUMBERS = 2_000_000
"""Predictions held at once when replicates are simulated."""


def simulate(
    model: Any,
    cohort: Cohort | Population,
    seed: int = 0,
    residual: bool = True,
    truth: bool = False,
    replicates: int | None = None,
) -> pd.DataFrame:
    """Simulate virtual patients, or new observations for given records.

    Each patient has its own `eta ~ N(0, omega)` and, unless `residual=False`, its own residual errors, at the
    model's parameters. The same seed gives the same table. A sample where the model leaves no residual variance (a
    prediction of 0 under proportional or log-normal error) cannot be fitted again and comes with MDV 1.

    Args:
        model: A `Model`, or a `Fit` (its fitted model).
        cohort: A `Cohort`; or a `Population`, whose records are kept and whose dv is drawn anew.
        seed: Seed of every draw: covariates, etas, residual errors.
        residual: Whether dv has residual error; without it dv is the individual prediction.
        truth: Add what a real patient never shows: `ipred` (dv without residual error), `eta_NAME` and the individual
            parameters `true_NAME`.
        replicates: With a Population: how often to simulate it. The column `replicate` (1, 2, ...) tells them apart.

    Returns:
        A table in NONMEM columns (id time amt rate cmt evid mdv dv, dvid when there are several endpoints, covariates,
        `arm` when there are several), which `read_nonmem` reads again.

    Raises:
        DataError: A cohort the model cannot use (a covariate or compartment it lacks), or replicates of a Cohort.

    Example:
        >>> week = Cohort(500, "320 every 24 x 7", times=range(0, 169, 2), covariates=data)     # doctest: +SKIP
        >>> simulate(model, week, seed=7)                                                       # doctest: +SKIP
    """
    if isinstance(cohort, Population):
        page = model if isinstance(model, Model) else model.model
        return _again(Problem(page, cohort), page.values, seed, residual, truth, replicates)
    if replicates is not None:
        raise DataError(
            "replicates: only a Population is simulated repeatedly; give a Cohort a larger n instead"
        )
    return pd.concat(stream(model, cohort, seed, residual, truth, chunk=cohort.n), ignore_index=True)


def stream(
    model: Any,
    cohort: Cohort,
    seed: int = 0,
    residual: bool = True,
    truth: bool = False,
    chunk: int = 10_000,
) -> Iterator[pd.DataFrame]:
    """Simulate a cohort piece by piece, for cohorts that do not fit in memory.

    Args:
        model: As for `simulate`, like the arguments not named here.
        cohort: The cohort.
        seed: Seed.
        residual: Whether dv has residual error.
        truth: Whether to add the truth.
        chunk: Patients a table, rounded up to whole blocks of `BLOCK`. The patients do not depend on it.

    Yields:
        Tables that follow one another: together, what `simulate` returns.
    """
    page = model if isinstance(model, Model) else model.model
    stencil = cohort.stencil(seed, endpoint_labels(page))
    problem, values = Problem(page, stencil.population), page.values
    pieces = []
    for block, start in enumerate(range(0, cohort.n, BLOCK)):
        index = stencil.index[start : start + BLOCK]
        part = problem.select(torch.from_numpy(index))
        source = generator(seed, "patients", block)
        with torch.no_grad():
            eta = draw_eta(values.factor, len(index), source)
            f = part.predict(eta, values).f
            dv, usable = draw_dv(part, values, f, source if residual else None)
        table, row = stencil.records(start, start + len(index))
        _fill(table, row, dv, usable)
        if truth:
            table = _with_truth(table, part, values, eta, f, row, table["id"].to_numpy() - start - 1)
        pieces.append(table)
        if (len(pieces) * BLOCK >= chunk) or start + BLOCK >= cohort.n:
            yield pd.concat(pieces, ignore_index=True) if len(pieces) > 1 else pieces[0]
            pieces = []


def replicate(
    problem: Problem,
    values: Values,
    draws: int,
    seed: int,
    purpose: str = "replicates",
    residual: bool = True,
) -> Iterator[Tensor]:
    """Simulate the observations of a problem again and again.

    Args:
        problem: Whose records.
        values: Parameters.
        draws: How often.
        seed: Seed; replicate k is the same whatever `draws` is.
        purpose: Name of the stream of random numbers.
        residual: Whether to add residual error.

    Yields:
        [k, N, T] dv on the scale of the table, k replicates at a time, `draws` in all; 0 where padded.
    """
    n, t = problem.mask.shape
    size = max(1, _NUMBERS // max(1, n * t))
    for start in range(0, draws, size):
        sources = [generator(seed, purpose, k) for k in range(start, min(start + size, draws))]
        with torch.no_grad():
            eta = torch.stack([draw_eta(values.factor, n, source) for source in sources])
            f = problem.predict(eta, values).f
            if residual:
                yield torch.stack(
                    [problem.simulate_dv(f[k], values, source) for k, source in enumerate(sources)]
                )
            else:
                yield problem.natural(f)


def endpoint_labels(model: Model) -> tuple[str | int, ...]:
    """Return the DVID of each endpoint of a model: as declared, else its place, counted from 1."""
    return tuple(
        k if endpoint.dvid is None else endpoint.dvid
        for k, endpoint in enumerate(model.layout.endpoints.values(), 1)
    )


def draw_dv(
    problem: Problem, values: Values, f: Tensor, source: torch.Generator | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Draw dv around predictions.

    Args:
        problem: Whose records.
        values: Parameters.
        f: [N, T] predictions on the scale of the residual model.
        source: Generator of the residual errors; None for dv without them.

    Returns:
        dv [N, T] on the scale of the table, and [N, T] whether the endpoint can have been observed there: not where
        its residual variance is 0 (proportional error at a prediction of 0) or its logarithm does not exist.
    """
    sd = problem.variance(f, values)[0].expand(f.shape).sqrt()
    usable = problem.observed & torch.isfinite(f) & (sd > 0)
    dv = problem.natural(f) if source is None else problem.simulate_dv(f, values, source)
    return dv.numpy(), usable.numpy()


def _again(
    problem: Problem, values: Values, seed: int, residual: bool, truth: bool, replicates: int | None
) -> pd.DataFrame:
    """New observations for the records of a population, once or several times."""
    population = problem.population
    row = population.row.numpy()
    owner = pd.factorize(population.table["id"])[0]
    tables = []
    for k in range(replicates or 1):
        source = generator(seed, "replicates", k)
        with torch.no_grad():
            eta = draw_eta(values.factor, problem.n_subjects, source)
            f = problem.predict(eta, values).f
            dv, usable = draw_dv(problem, values, f, source if residual else None)
        table = population.table.copy()
        _fill(table, row, dv, usable)
        if truth:
            table = _with_truth(table, problem, values, eta, f, row, owner)
        if replicates is not None:
            table.insert(0, "replicate", k + 1)
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def _fill(
    table: pd.DataFrame,
    row: npt.NDArray[np.int64],
    dv: npt.NDArray[np.float64],
    usable: npt.NDArray[np.bool_],
) -> None:
    """Write dv into a table, and MDV 1 on samples that are no observations of the model."""
    seen = row >= 0
    column = table["dv"].to_numpy(dtype=float, copy=True)
    column[row[seen]] = dv[seen]
    table["dv"] = column
    lost = row[seen & ~usable]
    if len(lost):
        mdv = (
            table["mdv"].to_numpy(copy=True)
            if "mdv" in table
            else (table["evid"] != 0).to_numpy(dtype=np.int64)
        )
        mdv[lost] = 1
        table["mdv"] = mdv


def _with_truth(
    table: pd.DataFrame,
    problem: Problem,
    values: Values,
    eta: Tensor,
    f: Tensor,
    row: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
) -> pd.DataFrame:
    """The table with ipred, etas and individual parameters; `owner` is each record's subject."""
    with torch.no_grad():
        ipred = problem.natural(f).numpy()
        parameters = problem.individual(eta, values)
    seen = row >= 0
    extra = {"ipred": np.full(len(table), np.nan)}
    extra["ipred"][row[seen]] = ipred[seen]
    extra |= {f"eta_{name}": eta[owner, k].numpy() for k, name in enumerate(problem.eta_names)}
    for name, value in parameters.items():
        column = value[owner, 0].numpy().copy()
        if value.shape[-1] > 1:  # it varies in time: known where there is a sample
            column[:] = np.nan
            column[row[seen]] = value.numpy()[seen]
        extra[f"true_{name}"] = column
    return table.assign(**extra)
