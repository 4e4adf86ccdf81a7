"""Fits side by side, judged by one arbiter."""

from __future__ import annotations

import html
import math

import pandas as pd
import torch
from torch import Tensor

from ..errors import DataError
from ..inference.marginal import StudentLaplace, importance, quadrature
from .result import Fit

QUADRATURE_ETAS = 3
"""The arbiter is quadrature up to this many random effects, importance sampling beyond."""

REPEATS = 8
"""Independent repeats of the importance arbiter, from whose scatter the standard errors come."""


class Comparison:
    """Fits side by side, judged by one arbiter.

    Attributes:
        table: one row a fit: method, page, parameters, its own ofv and how it was computed, the arbiter's `minus2ll`
            and `minus2ll_se`, `delta` from the best finite one, `paired_se` of that delta (common random numbers), aic,
            bic, seconds, converged.
        parameters: estimates and standard errors, one column pair a fit.
        arbiter: "quadrature" or "importance"; detail: its settings in words.
    """

    def __init__(self, table: pd.DataFrame, parameters: pd.DataFrame, arbiter: str, detail: str) -> None:
        self.table, self.parameters, self.arbiter, self.detail = table, parameters, arbiter, detail

    def __repr__(self) -> str:
        def text(frame: pd.DataFrame, digits: int) -> str:
            return frame.to_string(float_format=lambda x: f"{x:.{digits}g}", na_rep="")

        return (
            f"-2 log L of each fit's estimates by one arbiter, {self.detail}\n{text(self.table, 8)}\n\n"
            f"{text(self.parameters, 5)}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.detail)}</p>{self.table.to_html()}{self.parameters.to_html()}"


def compare(
    *fits: Fit,
    arbiter: str = "auto",
    nodes: int = 9,
    k: int = 1000,
    seed: int = 0,
    names: list[str] | None = None,
) -> Comparison:
    """Compare fits of the same data on one likelihood, whatever each method calls its own objective.

    Args:
        fits: two or more fits; the pages may differ, the data may not.
        arbiter: "quadrature" (adaptive Gauss-Hermite), "importance" (Student-t proposals at the conditional modes,
            the same random numbers for all fits), or "auto": quadrature up to three random effects.
        nodes: of the quadrature, in each dimension; fewer where the grid would be too large, and `detail` says how
            many. Its numerical error is estimated by the change from two nodes fewer, NaN when there is no such rule.
        k: draws a subject and repeat of the importance arbiter.
        seed: of the importance arbiter.
        names: one label a fit.

    Raises:
        DataError: fewer than two fits, different data, or endpoints on different scales (LogNormal natural and log).

    Example:
        >>> compare(first, second).table.loc["focei", "minus2ll"]  # doctest: +SKIP
        347.12
    """
    _check_comparable(fits)
    if arbiter not in ("auto", "quadrature", "importance"):
        raise DataError(f"arbiter={arbiter!r}: expected 'auto', 'quadrature' or 'importance'")
    if nodes < 1:
        raise DataError(f"nodes={nodes}: expected at least 1 node a dimension; 9 unless given")
    if arbiter == "auto":
        arbiter = "quadrature" if max(f.problem.q for f in fits) <= QUADRATURE_ETAS else "importance"
    labels = names or _labels(fits)
    if len(labels) != len(fits):
        raise DataError(f"names: expected {len(fits)} labels, one a fit, got {len(labels)}")
    minus2ll, detail = _judge(fits, arbiter, nodes, k, seed)

    def error(repeats: Tensor) -> list[float]:
        """Of the mean of independent repeats; of a quadrature, the change that two nodes fewer make."""
        spread = (
            (repeats[0] - repeats[1]).abs()
            if arbiter == "quadrature"
            else repeats.std(0) / math.sqrt(REPEATS)
        )
        return [float(x) for x in spread]

    value = minus2ll[0] if arbiter == "quadrature" else minus2ll.mean(0)
    best = int(torch.where(value.isfinite(), value, math.inf).argmin())
    table = pd.DataFrame(
        {
            "method": [f.method for f in fits],
            "page": [f.model.name for f in fits],
            "p": [f.n_parameters for f in fits],
            "ofv": [f.ofv for f in fits],
            "ofv_source": [f.ofv_source for f in fits],
            "minus2ll": value.tolist(),
            "minus2ll_se": error(minus2ll),
            "delta": (value - value[best]).tolist(),
            "paired_se": error(minus2ll - minus2ll[:, best : best + 1]),
            "aic": [float(v) + 2 * f.n_parameters for v, f in zip(value, fits, strict=True)],
            "bic": [
                float(v) + f.n_parameters * math.log(f.problem.n_observations)
                for v, f in zip(value, fits, strict=True)
            ],
            "seconds": [f.seconds for f in fits],
            "converged": [f.converged for f in fits],
        },
        index=pd.Index(labels, name="fit"),
    )
    columns = {}
    for label, f in zip(labels, fits, strict=True):
        columns[label] = f.parameters["estimate"]
        columns[f"{label} se"] = f.parameters["se"]
    return Comparison(table, pd.DataFrame(columns), arbiter, detail)


def _judge(fits: tuple[Fit, ...], arbiter: str, nodes: int, k: int, seed: int) -> tuple[Tensor, str]:
    """-2 log L of every fit `[repeat, fit]`, and how it was computed, in words."""
    if arbiter == "quadrature":
        finest = [quadrature(f.problem, f.values, nodes) for f in fits]
        coarser = [
            quadrature(f.problem, f.values, fine.nodes - 2).total if fine.nodes > 2 else math.nan
            for f, fine in zip(fits, finest, strict=True)
        ]
        judged = [[fine.total for fine in finest], coarser]
        detail = _rules([fine.nodes for fine in finest], nodes)
    else:
        proposals = [StudentLaplace.at_modes(f.problem, f.values) for f in fits]
        judged = [
            [
                importance(f.problem, f.values, q, k, seed + r).total
                for f, q in zip(fits, proposals, strict=True)
            ]
            for r in range(REPEATS)
        ]
        detail = f"importance sampling, {REPEATS} x {k} draws a subject, common random numbers"
    return -2 * torch.tensor(judged, dtype=torch.float64), detail


def _rules(used: list[int], asked: int) -> str:
    """The quadrature rules of the fits in words: the nodes in use, not those asked for."""

    def several(numbers: list[int]) -> str:
        return " or ".join(str(n) for n in sorted(set(numbers), reverse=True))

    second = [n - 2 for n in used if n > 2]
    errors = f"errors: change from {several(second)} nodes" if second else "errors unknown: no smaller rule"
    capped = "" if set(used) == {asked} else f"; {asked} asked for, but the grid would be too large"
    word = "node" if set(used) == {1} else "nodes"
    return f"adaptive quadrature, {several(used)} {word} a dimension ({errors}{capped})"


def _labels(fits: tuple[Fit, ...]) -> list[str]:
    """Methods as labels; made unique by the page's name, then by a number."""
    labels = [f.method for f in fits]
    if len(set(labels)) < len(labels):
        labels = [f"{f.model.name}-{f.method}" for f in fits]
    seen: dict[str, int] = {}
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        labels[i] = label if seen[label] == 1 else f"{label}-{seen[label]}"
    return labels


def _check_comparable(fits: tuple[Fit, ...]) -> None:
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
        scales = [
            sorted((k, getattr(e, "dv", "natural")) for k, e in f.model.layout.endpoints.items())
            for f in (first, other)
        ]
        if [s for _, s in scales[0]] != [s for _, s in scales[1]]:
            raise DataError(
                "the fits are on different scales (LogNormal with dv='natural' and dv='log'), so their likelihoods "
                "cannot be compared; use the same dv in both pages"
            )
