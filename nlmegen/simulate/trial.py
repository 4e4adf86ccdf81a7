"""Simulation of a trial: virtual patients of a cohort, or new observations for the records of a population."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from nlmegen.data.columns import RESULTS, TRUTHS, DataWarning
from nlmegen.data.population import Population
from nlmegen.errors import DataError, ModelError
from nlmegen.model.levels import column as column_of
from nlmegen.model.page import Model
from nlmegen.model.parameters import Values
from nlmegen.model.problem import Problem
from nlmegen.simulate.cautions import cautions
from nlmegen.simulate.cohort import Cohort
from nlmegen.simulate.donors import owners
from nlmegen.simulate.draws import draw_eta, generator, whole
from nlmegen.simulate.limits import complete, limited

BLOCK = 1000
"""Patients drawn and predicted together. Draws depend on it, so it is fixed; chunks are made of whole blocks."""

_NUMBERS = 2_000_000
"""Predictions held at once when replicates are simulated."""

_STALE = (RESULTS - {"tad"}) | {"cens", "blq", "bql", "limit"}
"""Columns that describe the observations of a table, and not those simulated in their place."""


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
        cohort: A `Cohort`; or a `Population`, whose records are kept and whose dv is drawn anew; columns that an
            earlier fit or simulation left there (pred, cwres, eta_NAME, ...) belong to the old dv and are dropped.
        seed: Seed of every draw: covariates, etas, residual errors.
        residual: Whether dv has residual error; without it dv is the individual prediction.
        truth: Add what a real patient never shows: `ipred` (dv without residual error), `eta_NAME` and the individual
            parameters `true_NAME`.
        replicates: With a Population: how often to simulate it. The column `replicate` (1, 2, ...) tells them apart.

    Returns:
        A table in NONMEM columns (id time amt rate cmt evid mdv dv, dvid when there are several endpoints, covariates,
        `arm` when there are several), which `read_nonmem` reads again.

    Raises:
        DataError: A cohort the model cannot use (a covariate or compartment it lacks), replicates of a Cohort, or an
            argument that is not of its kind (a negative seed, 2.5 replicates).
        ModelError: Not a model, or one whose predictions are not finite for some patient.

    Warns:
        DataWarning: What a cohort leaves unused of the page: see `nlmegen.simulate.cautions`.

    Example:
        >>> import nlmegen as nl
        >>> model, real = nl.load_model("phenobarbital"), nl.load_data("phenobarbital")
        >>> week = Cohort(500, "20/kg + 2.5/kg every 12 x 13 at 12", times=range(0, 169, 24), covariates=real)
        >>> table = simulate(model, week, seed=7)
        >>> table["id"].nunique(), int((table["evid"] == 0).sum())
        (500, 4000)
    """
    _check_switches(residual, truth)
    if isinstance(cohort, Population):
        page = page_of(model)
        problem = complete(Problem(page, cohort))
        return _again(problem, problem.spread(page.values), seed, residual, truth, replicates)
    if replicates is not None:
        raise DataError(
            "replicates: only a Population is simulated repeatedly; give a Cohort a larger n instead"
        )
    return next(stream(model, cohort, seed, residual, truth, chunk=sys.maxsize))


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
    _check_switches(residual, truth)
    page = page_of(model)
    if not isinstance(cohort, Cohort):
        raise DataError(f"simulate needs a Cohort or a Population, got {type(cohort).__name__}")
    stencil = cohort.stencil(seed, endpoint_labels(page))
    problem = Problem(page, stencil.population)
    for text in cautions(problem, cohort):
        warnings.warn(text, DataWarning, stacklevel=3)
    values = problem.spread(page.values)
    cut = limited(problem)
    pieces: list[dict[str, npt.NDArray[Any]]] = []
    for block, start in enumerate(range(0, cohort.n, BLOCK)):
        index = stencil.index[start : start + BLOCK]
        part = problem.select(torch.from_numpy(index))
        source = generator(seed, "patients", block)
        with torch.no_grad():
            eta = draw_eta(values.factor, len(index), source)
            f = part.predict(eta, values).f
            dv, usable = draw_dv(part, values, f, source if residual else None)
        columns, row = stencil.records(start, start + len(index))
        _fill(columns, row, dv, usable, part if cut else None)
        if truth:
            columns |= _truth(part, values, eta, f, row, columns["id"] - start - 1)
        pieces.append(columns)
        if len(pieces) * BLOCK >= chunk or start + BLOCK >= cohort.n:
            yield pd.DataFrame(
                {name: np.concatenate([piece[name] for piece in pieces]) for name in columns}, copy=False
            )
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
                yield problem.natural(f, values)


def page_of(model: Any) -> Model:
    """Return the model that is meant by a model, its class, or a fit (the fitted one)."""
    if isinstance(model, type) and issubclass(model, Model):
        return model()
    page = model if isinstance(model, Model) else getattr(model, "model", None)
    if not isinstance(page, Model):
        raise ModelError(f"simulate needs a model or a fit, got {type(model).__name__}")
    return page


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
        f: [N, row] rows of predictions on the scale of the residual model.
        source: Generator of the residual errors; None for dv without them.

    Returns:
        dv [N, T] on the scale of the table, and [N, T] whether the endpoint can have been observed there: not where
        its residual variance is 0 (proportional error at a prediction of 0) or its logarithm does not exist.

    Raises:
        ModelError: A prediction that is not a number, or infinite.
    """
    rows, f = f, f[..., : problem.time.shape[-1]]
    wild = problem.observed & (torch.isnan(f) | (f == torch.inf))
    if bool(wild.any()):
        share = f"{int(wild.any(-1).sum())} of {len(f)} patients"
        raise ModelError(
            f"the prediction is not finite for {share} at random effects drawn from omega;"
            " write the page so that parameters stay in their range (exp(eta)), or make omega smaller"
        )
    sd = problem.variance(f, values)[0].expand(f.shape).sqrt()
    usable = problem.observed & torch.isfinite(f) & (sd > 0)
    dv = problem.natural(rows, values) if source is None else problem.simulate_dv(rows, values, source)
    usable &= torch.isfinite(dv)  # a count or a category without a law is none
    for _, endpoint, mask in problem.by_endpoint:
        if getattr(endpoint, "dv", "") == "natural":  # a transform of positive values may end at 0
            usable &= ~mask | (dv > 0) | torch.isfinite(problem.lloq)
    return dv.numpy(), usable.numpy()


def _again(
    problem: Problem, values: Values, seed: int, residual: bool, truth: bool, replicates: int | None
) -> pd.DataFrame:
    """New observations for the records of a population, once or several times."""
    population = problem.population
    row = population.row.numpy()
    owner = owners(population)
    cut = problem if limited(problem) else None
    kept = [name for name in map(str, population.table.columns) if not _is_stale(name)]
    if replicates is not None:
        if "replicate" in population.covariates:
            raise DataError(
                "replicates: the data have a covariate 'replicate'; rename it", column="replicate"
            )
        kept = [name for name in kept if name != "replicate"]
    tables = []
    for k in range(1 if replicates is None else whole("replicates", replicates, 1)):
        source = generator(seed, "replicates", k)
        with torch.no_grad():
            eta = draw_eta(values.factor, problem.n_subjects, source)
            f = problem.predict(eta, values).f
            dv, usable = draw_dv(problem, values, f, source if residual else None)
        columns = {name: population.table[name].to_numpy(copy=True) for name in kept}
        _fill(columns, row, dv, usable, cut)
        if cut is not None:
            for name, limit in (("lloq", cut.lloq), ("uloq", cut.uloq)):
                if name in columns or bool(torch.isfinite(limit).any()):
                    columns[name] = _on_records(limit, row, len(owner))
        if truth:
            columns |= _truth(problem, values, eta, f, row, owner)
        if replicates is not None:
            columns = {"replicate": np.full(len(owner), k + 1), **columns}
        tables.append(pd.DataFrame(columns, copy=False))
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def _is_stale(name: str) -> bool:
    return name in _STALE or name.startswith(TRUTHS)


def _check_switches(residual: object, truth: object) -> None:
    """Refuse what is neither true nor false: any text counts as true."""
    for name, value in (("residual", residual), ("truth", truth)):
        if not isinstance(value, (bool, np.bool_)):
            raise DataError(f"{name}: expected True or False, got {value!r}")


def _fill(
    columns: dict[str, npt.NDArray[Any]],
    row: npt.NDArray[np.int64],
    dv: npt.NDArray[np.float64],
    usable: npt.NDArray[np.bool_],
    limits: Problem | None,
) -> None:
    """Write dv into columns of records, MDV 1 on samples that are no observations of the model, and CENS.

    Args:
        columns: Columns of records, changed in place.
        row: [N, T] the record of each sample, -1 in padding.
        dv: [N, T].
        usable: [N, T].
        limits: Whose limits of quantification cut dv; None for no limits.
    """
    seen = row >= 0
    if limits is not None:
        whole, cens = limits.censored(torch.from_numpy(dv))
        dv = whole.numpy()
        columns["cens"] = np.zeros(len(columns["dv"]), dtype=np.int64)
        columns["cens"][row[seen]] = np.where(usable, cens.numpy(), 0)[seen]
    columns["dv"] = columns["dv"].astype(np.float64, copy=False)
    columns["dv"][row[seen]] = dv[seen]
    lost = row[seen & ~usable]
    if len(lost):
        observed = np.ones(len(columns["dv"]), dtype=np.int64)
        observed[row[seen]] = 0
        columns.setdefault("mdv", observed)[lost] = 1


def _on_records(value: Tensor, row: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.float64]:
    """[R] a column of records from [N, T] values, missing where there is no sample."""
    column = np.full(size, np.nan)
    column[row[row >= 0]] = value.numpy()[row >= 0]
    return column


def _truth(
    problem: Problem,
    values: Values,
    eta: Tensor,
    f: Tensor,
    row: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
) -> dict[str, npt.NDArray[np.float64]]:
    """Columns of ipred, etas and individual parameters; `owner` is each record's subject."""
    with torch.no_grad():
        ipred = problem.natural(f, values).numpy()
        parameters = problem.individual(eta, values)
    seen = row >= 0
    extra = {"ipred": np.full(len(owner), np.nan)}
    extra["ipred"][row[seen]] = ipred[seen]
    extra |= {column_of(name): eta[owner, k].numpy() for k, name in enumerate(problem.eta_names)}
    for name, value in parameters.items():
        column = value[owner, 0].numpy().copy()
        if value.shape[-1] > 1:  # it varies in time: known where there is a sample
            column[:] = np.nan
            column[row[seen]] = value.numpy()[seen]
        extra[f"true_{name}"] = column
    return extra
