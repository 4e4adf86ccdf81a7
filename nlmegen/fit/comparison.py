"""Fits side by side, judged by one arbiter."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor

from ..data.population import Population
from ..errors import DataError
from ..model.discrete import Discrete
from ..model.page import Model
from .arbiter import Judged, judge
from .criteria import aic, bic, cautions


class Column(Judged, Protocol):
    """What can stand in a comparison: a `Fit`, or a run of another program read from its output."""

    @property
    def method(self) -> str:
        """How it was estimated."""

    @property
    def model(self) -> Model:
        """The page at its estimates."""

    @property
    def population(self) -> Population:
        """The data."""

    @property
    def ofv(self) -> float:
        """Its own objective function."""

    @property
    def seconds(self) -> float:
        """Wall time of the estimation; NaN where it is not known."""

    @property
    def converged(self) -> bool:
        """Whether it ended well."""

    @property
    def parameters(self) -> pd.DataFrame:
        """Estimates and standard errors, columns `estimate` and `se`."""


class Comparison:
    """Fits side by side, judged by one arbiter.

    Attributes:
        table: one row a fit: method, page, parameters, its own `ofv` and how it was computed, the arbiter's `minus2ll`
            and `minus2ll_se`, `delta` from the best finite one, `paired_se` of that delta (common random numbers), aic,
            bic, seconds, converged.
        parameters: estimates and standard errors, one column pair a fit.
        arbiter: "quadrature", "importance" or "own"; detail: its settings in words.
        notes: what forbids to read the table as one would like to: priors, networks, a fit that did not converge.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        parameters: pd.DataFrame,
        arbiter: str,
        detail: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.table, self.parameters, self.arbiter, self.detail = table, parameters, arbiter, detail
        self.notes = list(notes)

    @property
    def weights(self) -> pd.Series:
        """Akaike weights, exp(-(AIC - lowest) / 2) scaled to a sum of 1; NaN for a fit without a likelihood."""
        relative = (-0.5 * (self.table["aic"] - self.table["aic"].min())).map(math.exp)
        weight: pd.Series = (relative / relative.sum()).rename("weight")
        return weight

    def __repr__(self) -> str:
        def text(frame: pd.DataFrame, digits: int) -> str:
            return frame.to_string(float_format=lambda x: f"{x:.{digits}g}", na_rep="")

        notes = "".join(f"\nnote: {word}" for word in self.notes)
        return (
            f"-2 log L of each fit's estimates by one arbiter, {self.detail}\n{text(self.table, 8)}\n\n"
            f"{text(self.parameters, 5)}{notes}"
        )

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(word)}</li>" for word in self.notes)
        return (
            f"<p>{html.escape(self.detail)}</p>{self.table.to_html()}{self.parameters.to_html()}"
            f"{f'<ul>{notes}</ul>' if notes else ''}"
        )


def compare(
    *fits: Column,
    arbiter: str = "auto",
    nodes: int = 9,
    k: int = 1000,
    seed: int = 0,
    names: list[str] | None = None,
) -> Comparison:
    """Compare fits of the same data on one likelihood, whatever each method calls its own objective.

    Args:
        fits: two or more fits, or runs of NONMEM (`read_nonmem_run`); the pages may differ, the data may not.
        arbiter: "quadrature" (adaptive Gauss-Hermite), "importance" (Student-t proposals at the conditional modes,
            the same random numbers for all fits), "auto": quadrature up to three random effects; or "own": no arbiter
            but each fit's own objective, where all are of one kind.
        nodes: of the quadrature, in each dimension; fewer where the grid would be too large, and `detail` says how
            many. Its numerical error is estimated by the change from two nodes fewer, NaN when there is no such rule.
        k: draws a subject and repeat of the importance arbiter.
        seed: of the importance arbiter.
        names: one label a fit.

    Raises:
        DataError: fewer than two fits, different data, endpoints on different scales (LogNormal natural and log), or
            own objectives of different kinds.

    Example:
        >>> compare(first, second).table.loc["focei", "minus2ll"]  # doctest: +SKIP
        347.12
    """
    check_comparable(fits)
    labels = _labels(fits) if names is None else list(names)
    if len(labels) != len(fits):
        raise DataError(f"names: expected {len(fits)} labels, one a fit, got {len(labels)}")
    if len(set(labels)) < len(labels):
        raise DataError(f"names: expected labels that differ, got {', '.join(labels)}")
    verdict = judge(fits, arbiter, nodes, k, seed)
    value = verdict.minus2ll
    best = int(torch.where(value.isfinite(), value, math.inf).argmin())
    table = pd.DataFrame(
        {
            "method": [f.method for f in fits],
            "page": [f.model.name for f in fits],
            "p": [f.problem.P for f in fits],
            "ofv": [f.ofv for f in fits],
            "ofv_source": [f.ofv_source for f in fits],
            "minus2ll": value.tolist(),
            "minus2ll_se": verdict.se.tolist(),
            "delta": (value - value[best]).tolist(),
            "paired_se": verdict.paired_se(best).tolist(),
            "aic": [aic(float(v), f.problem) for v, f in zip(value, fits, strict=True)],
            "bic": [bic(float(v), f.problem) for v, f in zip(value, fits, strict=True)],
            "seconds": [f.seconds for f in fits],
            "converged": [f.converged for f in fits],
        },
        index=pd.Index(labels, name="fit"),
    )
    columns = {}
    for label, f in zip(labels, fits, strict=True):
        columns[label] = f.parameters["estimate"]
        columns[f"{label} se"] = f.parameters["se"]
    return Comparison(
        table, _side_by_side(columns), verdict.arbiter, verdict.detail, _notes(fits, labels, value.tolist())
    )


def _side_by_side(columns: dict[str, pd.Series]) -> pd.DataFrame:
    """Columns over all names, in the order in which the names first come."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column.index))
    return pd.DataFrame({label: column.reindex(names) for label, column in columns.items()})


def _notes(fits: Sequence[Column], labels: list[str], value: list[float]) -> list[str]:
    """What forbids to read the table as one would like to."""
    notes = []
    for f, label, number in zip(fits, labels, value, strict=True):
        notes += [f"{label}: {words}" for words in [*getattr(f, "remarks", ()), *cautions(f.problem)]]
        if not f.converged:
            notes.append(f"{label} did not converge: its likelihood is not at a maximum")
        if not math.isfinite(number):
            notes.append(f"{label} has no finite likelihood at its estimates; look at its subjects' status")
    return notes


def _labels(fits: Sequence[Column]) -> list[str]:
    """Methods as labels; made unique by the page's name, then by a number."""
    labels = [f.method for f in fits]
    if len(set(labels)) < len(labels):
        labels = [f"{f.model.name}-{f.method}" for f in fits]
    seen: dict[str, int] = {}
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        labels[i] = label if seen[label] == 1 else f"{label}-{seen[label]}"
    return labels


def check_comparable(fits: Sequence[Column]) -> None:
    """Raise a DataError unless there are two fits or more, of the same data on the same scales."""
    if len(fits) < 2:
        raise DataError(f"compare needs two fits or more, got {len(fits)}")
    first = fits[0]
    for other in fits[1:]:
        if other.population.sha256 != first.population.sha256:
            raise DataError(
                f"the fits are of different data ({first.population.n_subjects} subjects, "
                f"{first.problem.n_observations} observations; {other.population.n_subjects} and "
                f"{other.problem.n_observations}), so their likelihoods cannot be compared; refit one of them"
            )
        kinds = [
            {k: isinstance(e, Discrete) for k, e in f.model.layout.endpoints.items()} for f in (first, other)
        ]
        mixed = [k for k, discrete in kinds[0].items() if kinds[1].get(k, discrete) != discrete]
        if mixed:
            raise DataError(
                f"the endpoint {mixed[0]} is a count or a category in one page and a measurement in the other: the"
                " likelihoods are a probability and a density and cannot be compared; compare predictions (vpc)"
            )
        scales = [
            sorted((k, getattr(e, "dv", "natural")) for k, e in f.model.layout.endpoints.items())
            for f in (first, other)
        ]
        if [s for _, s in scales[0]] != [s for _, s in scales[1]]:
            raise DataError(
                "the fits are on different scales (LogNormal with dv='natural' and dv='log'), so their likelihoods "
                "cannot be compared; use the same dv in both pages"
            )
        if not torch.equal(_known(first), _known(other)):
            raise DataError(
                "the fits take different things to be observed (records below a limit left out by M1, halved, or known "
                "by their limits), so their likelihoods cannot be compared; use the same blq= in both pages"
            )


def _known(fit: Column) -> Tensor:
    """What the likelihood of a fit knows of every record: 0 nothing, 1 a measurement, 2 limits; `[subject, time]`."""
    problem = fit.problem
    counted = problem.observed.to(torch.int64)
    return counted if problem.limits is None else counted + problem.limits.censored.to(torch.int64)
