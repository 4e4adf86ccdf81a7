"""Correlated residuals: two endpoints measured together, NONMEM's $SIGMA BLOCK(2) with L2 records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from ..data.events import Kind
from ..data.population import Population
from ..errors import DataError, ModelError, nearest
from ..maths.bijections import Bijection
from .censoring import places
from .endpoints import Endpoint, Residual

BETWEEN = Bijection(-1.0, 1.0)
"""Where a correlation lies."""


@dataclass(frozen=True)
class Correlation:
    """The correlation of the residuals of two endpoints measured together, a parameter between -1 and 1.

    Observations of the two belong together where they have the same L2 in the data or, without that column, the same
    time with no reset (EVID 3, 4) between them (the first of one with the first of the other, and so on). Their
    covariance is the correlation times the two residual standard deviations at their predictions. In tables it is
    called after its name on the page, for example "link.correlation". Limits may be known of one of a pair in place of
    a measurement, not of both.

    Args:
        first, second: names of two Gaussian endpoints of the page.
        start: where an estimation starts.
        fixed: keep it there.

    Raises:
        ModelError: the start is not between -1 and 1, or the two are one.

    Example:
        >>> Correlation("parent", "metabolite", 0.3).start
        0.3
    """

    first: str
    second: str
    start: float = 0.0
    fixed: bool = False

    def __post_init__(self) -> None:
        number: object = self.start
        if not isinstance(number, Real) or not -1 < float(number) < 1:
            raise ModelError(f"Correlation(start={self.start!r}): expected a number between -1 and 1")
        if self.first == self.second:
            raise ModelError(f"Correlation: expected two endpoints, got {self.first!r} twice")


def check(correlations: Mapping[str, Correlation], endpoints: Mapping[str, Endpoint]) -> None:
    """Refuse correlations of what is not there, is not Gaussian, or is correlated twice.

    Raises:
        ModelError: with the remedy.
    """
    seen: dict[str, str] = {}
    for name, correlation in correlations.items():
        for which in (correlation.first, correlation.second):
            if which not in endpoints:
                raise ModelError(
                    f"{name} = Correlation(...) names {which!r}, which is no endpoint of the page."
                    f"{nearest(which, endpoints)}"
                )
            endpoint = endpoints[which]
            if not isinstance(endpoint, Residual) or not endpoint.gaussian or endpoint.blq == "M4":
                raise ModelError(
                    f"{name} = Correlation(...) names the endpoint {which}, whose residuals are not normal"
                    f" ({type(endpoint).__name__}{', M4' if getattr(endpoint, 'blq', '') == 'M4' else ''}); take a"
                    ' Gaussian endpoint with blq="M3", "M1" or "half", or remove the correlation'
                )
            if which in seen:
                raise ModelError(
                    f"{name} and {seen[which]} both correlate the endpoint {which}; residuals may be correlated in"
                    " pairs, each endpoint in one of them"
                )
            seen[which] = name


@dataclass(frozen=True)
class Pairs:
    """Observations whose residuals are correlated, in pairs.

    Attributes:
        name: of the parameter.
        first, second: places of the two in time, `[subject, pair]`; 0 in the padding.
        there: where there is a pair, `[subject, pair]` bool.
        half: pairs of one measured observation and one of which limits are known, `[subject, pair]` bool.
        cut: observations of which limits are known that are in a pair, `[subject, time]` bool.
    """

    name: str
    first: Tensor
    second: Tensor
    there: Tensor
    half: Tensor
    cut: Tensor

    def select(self, index: Tensor) -> Pairs:
        """Those of the subjects in `index [M]`."""
        kept = (x[index] for x in (self.first, self.second, self.there, self.half, self.cut))
        return Pairs(self.name, *kept)


def pairs_of(
    correlations: Mapping[str, Correlation],
    masks: Mapping[str, Tensor],
    censored: Tensor,
    population: Population,
    partial: bool = False,
) -> list[Pairs]:
    """The pairs of every correlation.

    Args:
        correlations: by name on the page.
        masks: which observations belong to each endpoint, `[subject, time]` bool.
        censored: of which only limits are known, `[subject, time]` bool.
        population: the data.
        partial: whether there may be no pair at all.

    Raises:
        DataError: no observations of the two were made together, or limits alone are known of both of a pair.
    """
    group = population.l2 if bool((population.l2 >= 0).any()) else None
    out = []
    for name, correlation in correlations.items():
        rows = [
            _matched(population, n, masks[correlation.first][n], masks[correlation.second][n], group)
            for n in range(len(population.ids))
        ]
        most = max(len(row) for row in rows)
        if partial and not most:
            continue
        if not most:
            raise DataError(
                f"{name} = Correlation(...): no observations of {correlation.first} and {correlation.second} were made"
                " together (the same L2, or the same time without that column); remove the correlation",
                column="L2",
            )
        table = torch.zeros(len(rows), most, 2, dtype=torch.int64)
        there = torch.zeros(len(rows), most, dtype=torch.bool)
        for n, row in enumerate(rows):
            if row:
                table[n, : len(row)] = torch.tensor(row)
                there[n, : len(row)] = True
        out.append(_with_limits(f"{name}.correlation", table, there, censored, population))
    return out


def _matched(
    population: Population, n: int, first: Tensor, second: Tensor, group: Tensor | None
) -> list[tuple[int, int]]:
    """Pairs of one subject."""
    key = (population.time[n] if group is None else group[n]).tolist()
    block = _blocks(population, n) if group is None else [0] * len(key)
    waiting: dict[tuple[int, float], list[int]] = {}
    for place in second.nonzero().squeeze(-1).tolist():
        waiting.setdefault((block[place], key[place]), []).append(place)
    found = []
    for place in first.nonzero().squeeze(-1).tolist():
        at = (block[place], key[place])
        if (group is None or at[1] >= 0) and waiting.get(at):
            found.append((place, waiting[at].pop(0)))
    return found


def _blocks(population: Population, n: int) -> list[int]:
    """How many resets come before each observation of a subject: after one the clock may start again."""
    resets = (population.events.kind[n] == Kind.RESET).cumsum(0)
    blocks: list[int] = resets[population.segment[n].clamp_min(0)].tolist()
    return blocks


def _with_limits(name: str, table: Tensor, there: Tensor, censored: Tensor, population: Population) -> Pairs:
    """The pairs at the places `table [subject, pair, 2]`, told apart by how many of the two were measured."""
    first, second = table.unbind(-1)
    one, two = (there & censored.gather(1, place) for place in (first, second))
    both = one & two
    if bool(both.any()):
        bad = torch.zeros_like(censored)
        n, k = both.nonzero().unbind(-1)
        bad[n, first[n, k]] = True
        raise DataError(
            f"of both observations of a pair with correlated residuals ({name}) only limits are known, at"
            f' {places(population, bad)}; give one of the endpoints blq="M1" or "half", or remove the correlation',
            column="CENS",
        )
    cut = torch.zeros_like(censored)
    for place, found in ((first, one), (second, two)):
        n, k = found.nonzero().unbind(-1)
        cut[n, place[n, k]] = True
    return Pairs(name, first, second, there, one | two, cut)
