"""AIC and BIC of a mixed-effects model, in one place, and when they do not apply.

    AIC = -2 log L + 2 P ,        BIC = -2 log L + P_R log N + P_F log n

with N subjects that have observations, and n observations. A parameter of the distribution of the individual
parameters is learned from subjects, of which there are N: an entry of Omega, or a theta that moves only individual
parameters which a random effect moves too (a typical value, a covariate effect on it). Those are the P_R. The other
P_F = P - P_R, residual standard deviations and thetas without a random effect beside them, are learned from single
observations, of which there are n. See Delattre, Lavielle & Poursat (2014), Electron J Stat 8:456-475,
doi:10.1214/14-EJS890.

Both criteria, and likelihood ratios, are about maximum likelihood: `cautions` says where there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.problem import Problem

SPREAD = 0.3
"""Standard deviation, on the free scale, of the random point at which dependencies are looked for."""


@dataclass(frozen=True)
class Counts:
    """Estimated parameters learned from subjects (`random`, P_R) and from observations (`fixed`, P_F)."""

    random: int
    fixed: int

    @property
    def total(self) -> int:
        """P."""
        return self.random + self.fixed


def counts(problem: Problem) -> Counts:
    """P_R and P_F of a problem, found by moving its parameters one at a time.

    Example:
        >>> counts(Problem(load_model("phenobarbital"), load_data("phenobarbital")))  # doctest: +SKIP
        Counts(random=5, fixed=1)
    """
    layout = problem.layout
    of_subjects = _beside_effects(problem) | set(layout.omega_names)
    random = sum(name in of_subjects for name in problem.names)
    return Counts(random, problem.P - random)


def aic(minus2ll: float, problem: Problem) -> float:
    """-2 log L + 2 P."""
    return minus2ll + 2 * problem.P


def bic(minus2ll: float, problem: Problem) -> float:
    """-2 log L + P_R log N + P_F log n."""
    number = counts(problem)
    subjects = max(int(problem.observed.any(-1).sum()), 1)
    return (
        minus2ll
        + number.random * math.log(subjects)
        + number.fixed * math.log(max(problem.n_observations, 1))
    )


def cautions(problem: Problem) -> list[str]:
    """Why AIC, BIC and likelihood ratios do not apply to fits of a problem, in words; empty where they do."""
    words = []
    if problem.penalised:
        names = ", ".join(problem.layout.priors)
        words.append(
            f"priors on {names}: the estimates are maximum a posteriori and not maximum likelihood, so AIC, BIC and"
            " likelihood ratios do not apply; compare predictions instead (vpc, npde)"
        )
    if len(problem.weights):
        words.append(
            f"a network of {len(problem.weights)} weights: they are held back by their penalty or by an early stop and"
            " are not counted as parameters, so AIC and BIC flatter the page and likelihood ratios do not apply;"
            " compare predictions of patients that were left out"
        )
    return words


def _beside_effects(problem: Problem) -> set[str]:
    """Thetas that move no individual parameter but such as a random effect moves too."""
    layout, q, n = problem.layout, problem.q, problem.layout.n_theta
    if not q or not n:
        return set()
    generator = torch.Generator().manual_seed(11)

    def noise(*shape: int) -> Tensor:
        return SPREAD * torch.randn(*shape, generator=generator, dtype=torch.float64)

    # draw 0 is the point itself; each further draw moves one theta, then one random effect
    vectors = (problem.full(problem.start) + noise(len(layout.names))).repeat(1 + n + q, 1)
    vectors[1 : 1 + n, :n] += SPREAD * torch.eye(n, dtype=torch.float64)
    etas = noise(problem.n_subjects, q).repeat(1 + n + q, 1, 1)
    etas[1 + n :] += SPREAD * torch.eye(q, dtype=torch.float64).unsqueeze(1)
    with torch.no_grad():
        p = problem.individual(etas, layout.values(vectors))
    moved = torch.stack([_moved(x) for x in p.values()])
    effect = moved[:, n:].any(1)
    return {
        name
        for j, name in enumerate(layout.theta_names)
        if bool(moved[:, j].any()) and bool(effect[moved[:, j]].all())
    }


def _moved(x: Tensor) -> Tensor:
    """Whether each draw of `x [1 + moves, subject, time]` differs from the first, `[moves]`."""
    away = (x[1:] - x[:1]).abs().flatten(1).amax(1)
    return ~(away <= 1e-10 * x[0].abs().amax())
