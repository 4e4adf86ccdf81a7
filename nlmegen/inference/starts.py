"""Starts that need not be good: is a start far off, and what is a better one to begin from?

A start with too little variance is the bad one: the objective is steep and crooked around it, conditional modes are
pinned near zero or jump, and a search may end on a plateau. Too much variance only costs iterations. So a start whose
residuals and random effects are much larger than it says is replaced by the best of a few inflated ones, and its thetas
then move by the mean of the random effects that they own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..model.problem import Problem
from .objective import Objective

TENSE = 4.0
"""Mean squared standardised residual (about 1 for a good fit) from which a start counts as far off."""

FACTORS = (1.0, 3.0, 9.0)
"""By these the standard deviations of random effects and of residuals are multiplied, in all combinations."""


def logarithmic(problem: Problem) -> Tensor:
    """Which free parameters live on a log-like scale, `[P]` bool: not unbounded thetas and Cholesky off-diagonals."""
    layout = problem.layout
    every = [bijection.kind != "identity" for bijection in layout.bijections]
    every += [i == j for i, j in layout.positions]
    every += [True] * len(layout.sigma_names)
    return torch.tensor(every, dtype=torch.bool)[problem.free_index]


def spreads(problem: Problem) -> tuple[Tensor, Tensor]:
    """Indices of the free logarithms of random-effect and of residual standard deviations."""
    layout = problem.layout
    diagonal = {name for name, (i, j) in zip(layout.omega_names, layout.positions, strict=True) if i == j}
    omega = [k for k, name in enumerate(problem.names) if name in diagonal]
    sigma = [k for k, name in enumerate(problem.names) if name in layout.residual_sds]
    return torch.tensor(omega, dtype=torch.long), torch.tensor(sigma, dtype=torch.long)


def screen(objective: Objective, free: Tensor) -> tuple[Tensor, Tensor, float]:
    """The best of several inflated starts: its vector `[P]`, its modes `[1, subject, q]` and its objective."""
    problem = objective.problem
    omega, sigma = spreads(problem)
    rows = []
    for wider in FACTORS:
        for noisier in FACTORS:
            row = _spread(problem, free, wider)
            row[sigma] += math.log(noisier)
            rows.append(row)
    points = torch.stack(rows)
    tried = objective(points)
    best = int(tried.total.argmin())
    chosen, eta, value = points[best], tried.eta[best : best + 1], float(tried.total[best])
    if not math.isfinite(value) or not problem.mu_pairs:
        return chosen, eta, value
    # as in a step of the EM algorithm: thetas take over the mean of their random effects
    seen = problem.mask.sum(-1) > 0
    mean = eta[0, seen].mean(0)
    moved = chosen.clone()
    shift = torch.zeros_like(mean)
    for j, k in problem.mu_pairs:
        if shift[k] == 0:
            moved[j] += mean[k]
            shift[k] = mean[k]
    after = objective(moved[None], eta - shift)
    if float(after.total[0]) < value:
        return moved, after.eta, float(after.total[0])
    return chosen, eta, value


def _spread(problem: Problem, free: Tensor, factor: float) -> Tensor:
    """`free` with the standard deviations of the random effects that are free multiplied by `factor`."""
    layout = problem.layout
    row = free.clone()
    for k, name in enumerate(problem.names):
        if name in layout.omega_names:
            i, j = layout.positions[layout.omega_names.index(name)]
            row[k] = row[k] + math.log(factor) if i == j else row[k] * factor
    return row


def some_subjects(problem: Problem, size: int) -> Problem:
    """A random part of the subjects (always the same), all of them when there are no more than `size`."""
    if size >= problem.n_subjects:
        return problem
    order = torch.randperm(problem.n_subjects, generator=torch.Generator().manual_seed(0))
    return problem.select(order[:size].sort().values)
