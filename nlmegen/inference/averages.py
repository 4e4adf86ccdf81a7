"""Stochastic approximation of the maximum: averages over sweeps, with the observed information.

With g_k the expected score over sweep k at free_k (Fisher's identity) and H the observed information,

    free_{k+1} = free_k + k^-0.7 H^-1 g_k ,        estimate = mean of free_k + H^-1 g_k .

The mean has the smallest possible noise whether or not H is right, which is found from draws and is not (Polyak &
Juditsky 1992, doi:10.1137/0330046). The noise of the mean score, V, is the spread between independent chains, and costs
tr(H^-1 V) of -2 log L on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .boundary import FLAT
from .chains import Chains
from .expectation import Expectation
from .mstep import FAINT
from .penalty import penalty_gradient, penalty_hessian
from .simulated import SimulatedLikelihood
from .starts import logarithmic

GAIN = 0.7
"""Steps shrink as k^-0.7: slower than 1/k, so that the start is forgotten where H is too large."""

STEP_LIMIT, STEP_ERRORS = 0.5, 3.0
"""Longest step of a logarithm, and of any other parameter in standard errors: beyond it nothing is quadratic."""

LEAST = 0.01
"""Eigenvalues of H, scaled by the scores, are lifted to this."""

SINKING = 0.3
"""A Newton step that lowers a logarithm by more than this, where the likelihood is nearly flat in it, leads to zero."""


@dataclass(frozen=True)
class Metric:
    """The observed information at a point.

    Args:
        observed: as it was found, `[P, P]`; information: made positive definite.
        held: parameters that do not move, `[P]` bool.
        limit: longest step, `[P]`.
    """

    observed: Tensor
    information: Tensor
    held: Tensor
    limit: Tensor

    @classmethod
    def at(cls, chains: Chains, held: Tensor) -> Metric:
        """From one set of draws at the chains' present parameters, priors included."""
        problem, free = chains.problem, chains.free
        eta, log_q = chains.proposal().around(chains.state, chains.generator)
        likelihood = SimulatedLikelihood(problem, free, eta, log_q, chains.chart)
        observed = 0.5 * penalty_hessian(problem, free) - likelihood.hessian(free)
        scores = likelihood(free).scores
        scale = torch.maximum((scores * scores).sum(0), observed.diagonal().abs()).clamp_min(1e-12).rsqrt()
        values, axes = torch.linalg.eigh(observed * scale * scale.unsqueeze(-1))
        lifted = (axes * values.abs().clamp_min(LEAST)) @ axes.mT / scale / scale.unsqueeze(-1)
        lifted[held], lifted[:, held] = 0.0, 0.0
        lifted = lifted + torch.diag_embed(held.to(torch.float64))
        errors = torch.linalg.inv(lifted).diagonal().clamp_min(0.0).sqrt()
        limit = torch.where(logarithmic(problem), STEP_LIMIT, STEP_ERRORS * errors)
        return cls(observed, lifted, held, limit)

    def step(self, gradient: Tensor) -> Tensor:
        """H^-1 g, shortened to the limit, `[P]`."""
        step: Tensor = torch.linalg.solve(self.information, gradient.masked_fill(self.held, 0.0))
        return step / (step.abs() / self.limit).max().clamp_min(1.0)

    def length(self, step: Tensor) -> float:
        """Squared length of a step in units of -2 log L."""
        return float(step @ self.information @ step)


@dataclass(frozen=True)
class Sums:
    """Sums over the first sweeps of an average.

    Args:
        count: of sweeps.
        arrived: of free_k + H^-1 g_k, `[P]`; gradient: of g_k with the priors' part, `[P]`.
        scores: of the expected scores, `[chain, subject, P]`.
    """

    count: int
    arrived: Tensor
    gradient: Tensor
    scores: Tensor


class Average:
    """Averages since the parameters were at `chains.free`; the first sweeps, up to half of them, are left out.

    Args:
        chains: at the present parameters.
        metric: there.
    """

    def __init__(self, chains: Chains, metric: Metric) -> None:
        problem = chains.problem
        self.chains, self.metric, self.base = chains, metric, chains.free
        nothing = torch.zeros(problem.P, dtype=torch.float64)
        scores = torch.zeros(len(chains.state), problem.n_subjects, problem.P, dtype=torch.float64)
        self.sums = Sums(0, nothing, nothing, scores)
        self.marks = [self.sums]

    @property
    def count(self) -> int:
        """Sweeps."""
        return self.sums.count

    def advance(self) -> Expectation:
        """One sweep, and the step that follows from it."""
        chains, sums = self.chains, self.sums
        found = chains.sweep(informed=False)
        count = sums.count + 1
        gradient = found.total_score - 0.5 * penalty_gradient(chains.problem, chains.free)[1]
        step = self.metric.step(gradient)
        self.sums = Sums(
            count, sums.arrived + chains.free + step, sums.gradient + gradient, sums.scores + found.scores
        )
        if count & (count - 1) == 0:  # a power of two
            self.marks.append(self.sums)
        chains.remember(found, 1.0 / (count + 1))
        chains.move(chains.free + count**-GAIN * step)
        return found

    def _over(self, whole: Tensor, early: Tensor) -> Tensor:
        return (whole - early) / (self.count - self._early.count)

    @property
    def _early(self) -> Sums:
        """What is left out: at most half."""
        return [mark for mark in self.marks if 2 * mark.count <= self.count][-1]

    @property
    def mean(self) -> Tensor:
        """The estimate, `[P]`."""
        return self._over(self.sums.arrived, self._early.arrived)

    @property
    def gradient(self) -> Tensor:
        """The mean score, the priors' part included, `[P]`."""
        return self._over(self.sums.gradient, self._early.gradient)

    @property
    def moved(self) -> float:
        """Squared length of the move since the averages began, in units of -2 log L."""
        return self.metric.length(self.mean - self.base)

    @property
    def noise(self) -> Tensor:
        """V, covariance of the mean score, `[P, P]`."""
        scores = self._over(self.sums.scores, self._early.scores)
        off = scores - scores.mean(0)
        c = len(off)
        return torch.einsum("cna,cnb->ab", off, off) / (c * (c - 1))

    @property
    def loss(self) -> float:
        """tr(H^-1 V) over the parameters that move."""
        noise = self.noise.masked_fill(self.metric.held, 0.0)
        return float(torch.linalg.solve(self.metric.information, noise).trace())

    def sinking(self) -> tuple[Tensor, Tensor]:
        """Which logarithms of standard deviations are on their way to zero `[P]` bool, and how far to lower them `[P]`.

        Near zero log L = c + b omega^2 with b < 0: score 2 b omega^2 and curvature 4 b omega^2, so that a Newton step
        would lower log omega by a half, again and again. One step leads to where the curvature of the objective is a
        quarter of what counts as flat.
        """
        chains = self.chains
        problem, chart = chains.problem, chains.chart
        possible = torch.zeros(problem.P, dtype=torch.float64)
        for a, i, j in chart.entries:
            possible[a] = 2.0 * float(problem.levels.numbers[i]) if i == j else 0.0
        possible[chart.deviations] = 2.0 * float(problem.mask.sum())
        down = -self.gradient
        sinks = (down > 2.0 * self.noise.diagonal().sqrt()) & (2.0 * down < FAINT * possible)
        sinks = sinks & (SINKING * self.metric.observed.diagonal() < down) & ~self.metric.held
        fall = 0.5 * (16.0 * down.clamp_min(1e-300) / FLAT).log()
        return sinks, torch.where(sinks, fall.clamp_min(0.0), 0.0)
