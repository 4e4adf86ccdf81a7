"""What is known of observations of which only limits are known, on the scale of their residual error.

A censored record says that the true value lies between a lower and an upper limit (column CENS: 1 below, -1 above). Its
likelihood is that interval's probability (M3); under M4 everything of an endpoint is conditional on positive values. M1
leaves such records out and "half" puts half the limit in their place, before anything else sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..data.population import Population
from ..errors import DataError, ModelError
from .discrete import Discrete
from .endpoints import Endpoint, Residual


@dataclass(frozen=True)
class Limits:
    """Limits of the observations, on the scale of the residual error.

    Attributes:
        censored: where only limits are known, `[subject, time]` bool.
        lower, upper: the limits there (infinite where open), `[subject, time]`.
        zero: what is zero on the scale of the table, where all is conditional on positive values; -inf elsewhere,
            `[subject, time]`.
    """

    censored: Tensor
    lower: Tensor
    upper: Tensor
    zero: Tensor

    def select(self, index: Tensor) -> Limits:
        """Those of the subjects in `index [M]`."""
        return Limits(self.censored[index], self.lower[index], self.upper[index], self.zero[index])

    @cached_property
    def at(self) -> Tensor:
        """Places of the censored records in the flattened `[subject, time]`."""
        return self.censored.flatten().nonzero().squeeze(-1)

    @cached_property
    def conditional(self) -> Tensor:
        """Places of the records under M4 in the flattened `[subject, time]`."""
        return torch.isfinite(self.zero).flatten().nonzero().squeeze(-1)


@dataclass(frozen=True)
class Observed:
    """The observations of a population as the likelihood takes them, all `[subject, time]`.

    Attributes:
        y: on the scale of the residual error; limits where a record is censored; 0 in the padding.
        jacobian: log |d link(y) / dy|, 0 where a record is censored and in the padding.
        observed: which of them count, bool.
        limits: None where nothing is censored or conditional.
        gaussian: those with a normal density, bool.
    """

    y: Tensor
    jacobian: Tensor
    observed: Tensor
    limits: Limits | None
    gaussian: Tensor


def left_out(endpoints: Sequence[Endpoint], masks: Sequence[Tensor], population: Population) -> Tensor:
    """The records that M1 leaves out, `[subject, time]` bool."""
    out = torch.zeros_like(population.mask)
    for endpoint, mask in zip(endpoints, masks, strict=True):
        if getattr(endpoint, "blq", "") == "M1":
            out = out | (mask & (population.cens != 0))
    return out


def observations(endpoints: dict[str, Endpoint], masks: Sequence[Tensor], population: Population) -> Observed:
    """The observations of a population, endpoint by endpoint.

    Args:
        endpoints: by name.
        masks: which records belong to each, `[subject, time]` bool, those left out by M1 already gone.
        population: the data.

    Raises:
        DataError: observations that their endpoint cannot take, with the remedy.
    """
    y, cens = population.dv, population.cens
    observed = torch.stack(list(masks)).any(0)
    cens = torch.where(observed, cens, 0)
    inf = torch.full_like(y, torch.inf)
    lower, upper, zero = -inf, inf.clone(), -inf
    censored = torch.zeros_like(observed)
    gaussian, jacobian = torch.zeros_like(observed), torch.zeros_like(y)
    for (name, endpoint), mask in zip(endpoints.items(), masks, strict=True):
        cut = mask & (cens != 0)
        if not isinstance(endpoint, Residual):
            _refuse_counts(population, name, endpoint, mask, cut)
            continue
        if endpoint.blq == "half":
            _need_upper(population, name, cut)
            y = torch.where(cut, endpoint.halved(population.upper.nan_to_num(1.0)), y)
            cut = torch.zeros_like(cut)
        elif not endpoint.gaussian and bool(cut.any()):
            raise DataError(
                f"the endpoint {name} ({type(endpoint).__name__}) has no M3 or M4, and of its observations at"
                f' {places(population, cut)} only limits are known; give it blq="half" or blq="M1", or take a Gaussian'
                " endpoint (nl.Additive, nl.Proportional, nl.Combined, nl.Power, nl.LogNormal, nl.BoxCox)",
                column="CENS",
            )
        measured = mask & ~cut
        if endpoint.positive and getattr(endpoint, "dv", "") == "natural":
            bad = measured & (y <= 0)
            if bool(bad.any()):
                raise DataError(
                    f"the endpoint {name} ({type(endpoint).__name__}) needs positive observations, got DV <= 0 at"
                    f" {places(population, bad)}; leave these records out (MDV 1), use another residual error, or"
                    ' dv="log" of nl.LogNormal for a log table'
                )
        safe = torch.where(measured, y, 1.0)
        y = torch.where(measured, endpoint.link_dv(safe), y)
        jacobian = torch.where(measured, endpoint.log_jacobian(safe), jacobian)
        if endpoint.gaussian:
            gaussian = gaussian | measured
        if endpoint.blq == "M4":
            zero = torch.where(mask, torch.full_like(y, endpoint.zero()), zero)
            _refuse_nonpositive(population, name, measured & (y <= zero))
        if bool(cut.any()):
            low, high = (_linked(endpoint, x, cut) for x in (population.lower, population.upper))
            low = torch.maximum(low, zero) if endpoint.blq == "M4" else low
            _refuse_empty(population, name, cut & ~(low < high))
            lower, upper = torch.where(cut, low, lower), torch.where(cut, high, upper)
            y = torch.where(cut, torch.where(torch.isfinite(high), high, low), y)
            censored = censored | cut
    limits = None
    if bool(censored.any()) or bool(torch.isfinite(zero).any()):
        limits = Limits(censored, lower, upper, zero)
    return Observed(
        torch.where(observed, y, 0.0), torch.where(observed, jacobian, 0.0), observed, limits, gaussian
    )


def _linked(endpoint: Residual, limit: Tensor, cut: Tensor) -> Tensor:
    """A limit on the scale of the residual error; open stays open, and so is one at or under zero that has no image."""
    open_ = ~torch.isfinite(limit)
    if endpoint.positive and getattr(endpoint, "dv", "") == "natural":
        nothing = ~open_ & (limit <= 0)
        linked = endpoint.link_dv(torch.where(open_ | nothing, 1.0, limit))
        linked = torch.where(nothing, endpoint.zero(), linked)
    else:
        linked = endpoint.link_dv(torch.where(open_, 1.0, limit))
    return torch.where(cut, torch.where(open_, limit, linked), 0.0)


def places(population: Population, bad: Tensor, most: int = 5) -> str:
    """Subjects and times of the observations flagged in `bad [subject, time]`, in words."""
    found = bad.nonzero().tolist()
    words = [f"id {population.ids[n]} time {float(population.time[n, t]):g}" for n, t in found[:most]]
    return ", ".join(words) + (f" and {len(found) - most} more" if len(found) > most else "")


def _refuse_counts(population: Population, name: str, endpoint: Endpoint, mask: Tensor, cut: Tensor) -> None:
    if not isinstance(endpoint, Discrete):
        raise ModelError(f"the endpoint {name} of kind {type(endpoint).__name__} has no density")
    if bool(cut.any()):
        raise DataError(
            f"the endpoint {name} ({type(endpoint).__name__}) takes whole numbers and no limits, but CENS is set at"
            f" {places(population, cut)}; remove the flag, or leave these records out (MDV 1)",
            column="CENS",
        )
    bad = mask & ~endpoint.legal(population.dv)
    if bool(bad.any()):
        n, t = bad.nonzero()[0].tolist()
        remedy = endpoint.remedy(population.dv[mask])
        raise DataError(
            f"the endpoint {name} ({type(endpoint).__name__}) takes {endpoint.kind}, got DV"
            f" {float(population.dv[n, t]):g} at {places(population, bad)}; {remedy + '; or ' if remedy else ''}"
            "correct these records, leave them out (MDV 1), or give their DVID to another endpoint",
            column="DV",
        )


def _need_upper(population: Population, name: str, cut: Tensor) -> None:
    bad = cut & ~torch.isfinite(population.upper if bool(cut.any()) else population.dv)
    if bool(bad.any()):
        raise DataError(
            f'blq="half" of the endpoint {name} takes half the upper limit, and there is none at'
            f' {places(population, bad)} (above the range); use blq="M3"',
            column="CENS",
        )


def _refuse_nonpositive(population: Population, name: str, bad: Tensor) -> None:
    if bool(bad.any()):
        raise DataError(
            f'blq="M4" of the endpoint {name} takes all observations to be positive, got DV <= 0 at'
            f' {places(population, bad)}; use blq="M3", or leave these records out (MDV 1)',
            column="DV",
        )


def _refuse_empty(population: Population, name: str, bad: Tensor) -> None:
    if bool(bad.any()):
        raise DataError(
            f"the endpoint {name} has observations between limits that leave nothing between them, at"
            f" {places(population, bad)}; the lower limit must be below the upper one",
            column="CENS",
        )
