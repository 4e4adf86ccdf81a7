"""The density of observations about predictions, as sampling methods need it: one seam for every kind of endpoint.

With rows f of a page's predictions, observations y and residual parameters sigma,

    log p(y | f, sigma)      score s = d log p / df      expected information W = E[ -d2 log p / df df' ]

Where all endpoints are Gaussian and nothing is censored, formulas stand here and where they are used; every other
density comes from `Problem.local`. W is then a matrix for each subject: observations may have several rows, and
residuals may be correlated.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model import likelihood

if TYPE_CHECKING:
    from ..model.likelihood import Curvature
    from ..model.parameters import Values
    from ..model.problem import Problem

STEP = 1e-4
"""Displacement of a residual parameter, of order one by its scale, for a difference of scores."""

FAINT = 1e-4
"""Least curvature of a residual parameter, for each observation."""


def gaussian_score(residual: Tensor, variance: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Score s = d log p / df and expected information W of Gaussian observations whose variance depends on f."""
    inverse = 1.0 / variance
    scaled = slope * inverse
    score = residual * inverse + 0.5 * scaled * (residual * residual * inverse - 1.0)
    return score, (inverse + 0.5 * scaled * scaled).expand_as(score)


def is_deviation(problem: Problem, name: str) -> bool:
    """Whether a residual parameter is a standard deviation, and not a gap, a power or a correlation."""
    endpoint, own = name.rsplit(".", 1)
    kind = problem.endpoints.get(endpoint)
    return kind is not None and own not in kind.others


def score_and_weight(problem: Problem, f: Tensor, values: Values) -> tuple[Tensor, Tensor | Curvature]:
    """Score and expected information of the observations of a problem, zero where nothing was observed.

    Args:
        problem: the binding of page and data.
        f: predictions, `[*draw, subject, row]`.
        values: parameters.

    Returns:
        s `[*draw, subject, row]`, and W: its diagonal `[*draw, subject, row]` for a Gaussian page, else a `Curvature`.

    Example:
        >>> score, weight = score_and_weight(problem, f, values)  # doctest: +SKIP
        >>> information = jac.mT @ weigh(weight, jac)  # doctest: +SKIP
    """
    if problem.plain:
        variance, slope, _ = problem.variance(f, values)
        score, weight = gaussian_score(problem.y - f, variance, slope)
        return score * problem.mask, weight * problem.mask
    found = problem.local(f, values)
    return found.score, found.weight


def measured_information(problem: Problem, f: Tensor, values: Values) -> Tensor:
    """The diagonal of W had every observation been measured, and none censored, `[*draw, subject, row]`; 1 where
    nothing was observed.
    """
    whole = copy.copy(problem)
    whole.limits = None
    weight = whole.local(f, values).weight.diagonal
    return torch.where((weight > 0) & weight.isfinite(), weight, 1.0)


def weigh(weight: Tensor | Curvature, jac: Tensor) -> Tensor:
    """W J for J `[*draw, subject, row, direction]`."""
    if isinstance(weight, Tensor):
        return jac * weight.unsqueeze(-1)
    return weight.times(jac.mT).mT


def log_density(problem: Problem, f: Tensor, values: Values) -> Tensor:
    """log p(y | f) of any page with every constant, `[*draw, subject]`, but for the Jacobian of a transform of y."""
    each: Tensor = likelihood.log_density(problem, f, values)
    return each.sum(-1)


def with_sigmas(problem: Problem, free: Tensor, index: list[int], copies: Tensor) -> Values:
    """Values at `free [P]`, the residual parameters `index` taken from `copies [*draw, subject, index]`."""
    layout, values = problem.layout, problem.values(free)
    columns = torch.tensor(index, dtype=torch.long)
    vectors = free.expand(*copies.shape[:-1], len(free)).index_copy(-1, columns, copies)
    own = problem.values(vectors).sigma
    moved = {layout.names[int(problem.free_index[a])] for a in index}
    sigma = {name: own[name].squeeze(-1) if name in moved else x for name, x in values.sigma.items()}
    return dataclasses.replace(values, sigma=sigma)


class Reverse:
    """log p of draws of any page, and the derivatives of weighted sums of it by one reverse pass.

    Args:
        problem: the binding of page and data.
        free: parameters, `[P]`.
        index: the free residual parameters.
        f: predictions, `[draw, chain, subject, row]`.

    Attributes:
        log_p: log p(y | f), `[draw, chain, subject]`, minus infinity where there is no density.
    """

    def __init__(self, problem: Problem, free: Tensor, index: list[int], f: Tensor) -> None:
        self.problem, self.free, self.index, self.f = problem, free, index, f
        self._graph = self._traced(f)
        self.log_p = self._graph[0].detach().nan_to_num(nan=-math.inf, posinf=-math.inf)

    def _traced(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p, and the leaves that it came from: f, and the residual parameters of each chain and subject."""
        f = f.detach().clone().requires_grad_()
        copies = self.free[self.index].expand(*f.shape[1:3], -1).clone().requires_grad_()
        with torch.enable_grad():
            values = with_sigmas(self.problem, self.free, self.index, copies)
            return log_density(self.problem, f, values), f, copies

    def pull(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of sum_draw weight log p.

        Args:
            weight: `[draw, chain, subject]`; zero for draws without a density.

        Returns:
            In f, `[draw, chain, subject, row]`, and in the residual parameters, `[chain, subject, index]`.
        """
        lost = weight == 0
        if bool((lost & ~self._graph[0].isfinite()).any()):  # nothing times infinity harms a sum
            self._graph = self._traced(without_lost(self.f, lost, weight))
        density, f, copies = self._graph
        with torch.enable_grad():
            total = (density * weight).sum()
        push, scores = torch.autograd.grad(total, (f, copies), allow_unused=True, materialize_grads=True)
        return push, scores


def sigma_scores(problem: Problem, f: Tensor, free: Tensor, index: list[int], weight: Tensor) -> Tensor:
    """Weighted sums over draws of d log p / d free of the residual parameters `index`, `[chain, subject, index]`.

    Args:
        problem: the binding of page and data.
        f: predictions, `[draw, chain, subject, row]`.
        free: parameters, `[P]`.
        index: the free residual parameters.
        weight: of each draw, `[draw, chain, subject]`.
    """
    return Reverse(problem, free, index, f).pull(weight)[1]


def sigma_information(problem: Problem, f: Tensor, free: Tensor, index: list[int], weight: Tensor) -> Tensor:
    """A metric of the residual parameters: their observed information over weighted draws, its eigenvalues made
    positive, `[index, index]`. By differences of scores, which serve a metric well enough.
    """
    rows = []
    for a in index:
        move = torch.zeros_like(free)
        move[a] = STEP
        ahead, behind = (
            sigma_scores(problem, f, x, index, weight).sum((0, 1)) for x in (free + move, free - move)
        )
        rows.append((behind - ahead) / (2.0 * STEP))
    if not rows:
        return torch.zeros(0, 0, dtype=torch.float64)
    matrix = torch.stack(rows)
    values, axes = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    least = FAINT * float(weight.sum(0).mean(0) @ problem.mask.sum(-1))
    metric: Tensor = (axes * values.abs().clamp_min(least)) @ axes.mT
    return metric


def without_lost(f: Tensor, lost: Tensor, height: Tensor) -> Tensor:
    """Predictions with those of lost draws replaced by those of each subject's best draw, so that they harm no sum.

    Args:
        f: `[draw, chain, subject, row]`.
        lost: `[draw, chain, subject]` bool.
        height: what is largest at the best draw, `[draw, chain, subject]`.
    """
    if not bool(lost.any()):
        return f
    best = height.masked_fill(lost, -torch.inf).argmax(0, keepdim=True)
    spare = f.gather(0, best.unsqueeze(-1).expand(1, *f.shape[1:]))
    return torch.where(lost.unsqueeze(-1), spare, f)
