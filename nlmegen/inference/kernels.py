"""Markov kernels over the random effects of all subjects that leave their posteriors invariant.

Every subject has C independent chains, all of them one batch `[chain, subject]`. A sweep is

1. *Many proposals at once* (iterated sampling importance resampling; Andrieu, Lee & Vihola 2018,
   doi:10.3150/16-BEJ880). With the chain's state among M draws eta_m of a proposal q,

       w_m = p(y, eta_m) / q(eta_m) / sum of the same,      new state = eta_m with probability w_m ,

   and sum_m w_m h(eta_m), over all M, is an estimate of E[h(eta) | y] without bias once the chain is stationary, far
   less noisy than h(new state).
2. *A random walk* (Metropolis), its length drawn anew each time, in the shape of the posterior and of the prior in
   turns: it goes where q does not.

q is a mixture of Student t densities with thick tails: about the subject's conditional mode with the Gauss-Newton
information there (Karimi, Lavielle & Moulines 2020, doi:10.1016/j.csda.2019.106847), by the posterior moments that the
chains have seen, and the prior, which finds other modes. Draws come in pairs mirrored at the centre of their component.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .density import gaussian_score, log_density, score_and_weight, weigh
from .families import log_diagonal, times

if TYPE_CHECKING:
    from ..model.likelihood import Curvature
    from ..model.parameters import Values
    from ..model.problem import Problem

DF = 4.0
"""Degrees of freedom of a component: chi-square on 4 is twice the sum of two exponentials."""

STEP_LIMIT = 2.0
"""Longest Gauss-Newton step of a whitened random effect, in prior standard deviations."""


@dataclass(frozen=True)
class Proposal:
    """q: a mixture of Student t densities for each subject.

    Args:
        centre: `[component, subject, q]`.
        root: lower triangular S, scale matrix S S', `[component, subject, q, q]`.
        pairs: mirrored pairs of draws from each component; the mixture's weights are in proportion.
    """

    centre: Tensor
    root: Tensor
    pairs: tuple[int, ...]

    @property
    def draws(self) -> int:
        """M, the chain's state included."""
        return 2 * sum(self.pairs)

    @cached_property
    def inverse(self) -> tuple[Tensor, Tensor]:
        """S^-1 `[component, subject, q, q]`, and log det S `[component, subject]`."""
        return torch.linalg.inv(self.root), log_diagonal(self.root)

    def component_densities(self, eta: Tensor) -> Tensor:
        """Log of weight times density of each component at `eta [draw, chain, subject, q]`, with a leading axis."""
        q = eta.shape[-1]
        constant = math.lgamma(0.5 * (DF + q)) - math.lgamma(0.5 * DF) - 0.5 * q * math.log(DF * math.pi)
        inverse, size = self.inverse
        shares = torch.tensor(self.pairs, dtype=torch.float64) * 2.0 / self.draws
        off = (eta - self.centre[:, None, None]).unbind(-1)
        square = torch.zeros((), dtype=eta.dtype)
        for i in range(q):
            row = sum(
                (inverse[:, None, None, :, i, j] * off[j] for j in range(i)),
                inverse[:, None, None, :, i, i] * off[i],
            )
            square = square + row * row
        level = constant + shares.log().unsqueeze(-1) - size
        return level[:, None, None] - 0.5 * (DF + q) * torch.log1p(square / DF)

    def log_density(self, eta: Tensor) -> Tensor:
        """log q(eta), `[draw, chain, subject, q]` -> `[draw, chain, subject]`."""
        return torch.logsumexp(self.component_densities(eta), 0)

    def around(self, state: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """M draws of which one is the state, and their log q.

        The state takes a place of a component drawn with the probability that it came from there; its partner is its
        mirror image. All M draws then have the joint law that they would have had if q had drawn them and the state
        were any one of them, which is what makes the kernel exact.

        Args:
            state: of the chains, `[chain, subject, q]`.
            generator: of the draws.

        Returns:
            eta `[M, chain, subject, q]` and log q `[M, chain, subject]`.
        """
        half, shape = self.draws // 2, state.shape
        normal = torch.randn(half, *shape, dtype=torch.float64, generator=generator)
        tails = torch.empty(2, half, *shape[:-1], dtype=torch.float64).exponential_(generator=generator)
        normal = normal * (0.5 * DF / tails.sum(0)).sqrt().unsqueeze(-1)
        parts, first = [], 0
        for c, pairs in enumerate(self.pairs):
            off = times(self.root[c], normal[first : first + pairs])
            parts.append(torch.stack((self.centre[c] + off, self.centre[c] - off), 1).flatten(0, 1))
            first += pairs
        eta = torch.cat(parts)
        if len(self.pairs) == 1:
            label = torch.zeros(shape[:-1], dtype=torch.long)
        else:
            label = pick(self.component_densities(state[None])[:, 0], generator)
        begin = torch.tensor([2 * sum(self.pairs[:c]) for c in range(len(self.pairs))])
        slot = begin[label][None, ..., None].expand(1, *shape)
        mirrored = 2.0 * self.centre[label, torch.arange(shape[1])] - state
        eta = eta.scatter(0, slot, state[None]).scatter(0, slot + 1, mirrored[None])
        return eta, self.log_density(eta)


def pick(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """An index along the first axis with probability in proportion to the weights, `[m, *b]` -> `[*b]`."""
    cumulative = torch.softmax(log_weights, 0).cumsum(0)
    u = torch.rand(log_weights.shape[1:], dtype=torch.float64, generator=generator)
    return (cumulative < u * cumulative[-1]).sum(0).clamp_max(len(log_weights) - 1)


def chosen(x: Tensor, index: Tensor) -> Tensor:
    """The entries of `x [m, chain, subject(, q)]` at `index [chain, subject]`."""
    at = index[None] if x.ndim == 3 else index[None, ..., None].expand(1, *x.shape[1:])
    return x.gather(0, at)[0]


def walk(
    problem: Problem,
    values: Values,
    state: Tensor,
    height: Tensor,
    root: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """One step of random-walk Metropolis of every chain.

    Args:
        problem, values: of the posterior.
        state: `[chain, subject, q]`; height: log p(y, eta) there, `[chain, subject]`.
        root: the shape of the steps, lower triangular, `[subject or 1, q, q]`.
        generator: of the steps; their length is the usual 2.4 / sqrt(q) times exp(U(-1.5, 0.5)).

    Returns:
        The new states, and their heights.
    """
    q = state.shape[-1]
    length = torch.rand(*state.shape[:-1], 1, dtype=torch.float64, generator=generator)
    length = 2.4 / math.sqrt(q) * torch.exp(2.0 * length - 1.5)
    normal = torch.randn(state.shape, dtype=torch.float64, generator=generator)
    tried = state + length * times(root, normal)
    new = problem.log_joint(tried, values).nan_to_num(nan=-math.inf)
    u = torch.rand(height.shape, dtype=torch.float64, generator=generator)
    moved = u.log() < new - height
    return torch.where(moved[..., None], tried, state), torch.where(moved, new, height)


@dataclass(frozen=True)
class Anchor:
    """The best random effects known of each subject, and the Gauss-Newton step from there.

    Args:
        eta: `[subject, q]`.
        ahead: the end of the step, an estimate of the mode, `[subject, q]`.
        root: lower triangular S, S S' the inverse of the Gauss-Newton information at `eta`, `[subject, q, q]`.
    """

    eta: Tensor
    ahead: Tensor
    root: Tensor


def anchored(problem: Problem, values: Values, candidates: Tensor) -> Anchor:
    """The best of `candidates [candidate, subject, q]` for each subject, and the step from it.

    In the whitened z = L^-1 eta, Omega = L L', gradient and information are J' s - z and J' W J + I with J = df/dz, so
    that nothing is divided by a variance that may go to zero.
    """
    prediction = problem.predict(candidates, values, 1)
    assert prediction.jac is not None
    f = prediction.f
    if gaussian := problem.plain:
        variance, slope, _ = problem.variance(f, values)
        residual = problem.y - f
        fit = -0.5 * ((residual * residual / variance + variance.log()) * problem.mask).sum(-1)
    else:
        fit = log_density(problem, f, values)
    white = torch.linalg.solve_triangular(values.factor, candidates.unsqueeze(-1), upper=False)
    height = (fit - 0.5 * white.squeeze(-1).square().sum(-1)).nan_to_num(nan=-math.inf)
    best = height.argmax(0)
    subject = torch.arange(candidates.shape[1])
    weight: Tensor | Curvature
    if gaussian:
        score, weight = gaussian_score(residual, variance.expand_as(f), slope.expand_as(f))
        score, weight = ((x * problem.mask)[best, subject].nan_to_num(0.0, 0.0, 0.0) for x in (score, weight))
    else:
        score, weight = score_and_weight(problem, f[best, subject], values)
        score = score.nan_to_num(0.0, 0.0, 0.0)
    jac = prediction.jac.movedim(0, -1)[best, subject].nan_to_num(0.0, 0.0, 0.0) @ values.factor
    z = white[best, subject]
    identity = torch.eye(jac.shape[-1], dtype=torch.float64)
    information = (jac.mT @ weigh(weight, jac)).nan_to_num(0.0, 0.0, 0.0) + identity
    lower = torch.linalg.cholesky(information)
    step = torch.cholesky_solve(jac.mT @ score.unsqueeze(-1) - z, lower)
    step = step * (STEP_LIMIT / step.abs().amax(1, keepdim=True).clamp_min(STEP_LIMIT))
    eta = candidates[best, subject]
    ahead = eta + (values.factor @ step).squeeze(-1)
    spread = values.factor @ torch.cholesky_inverse(lower) @ values.factor.mT
    return Anchor(eta, ahead, root_of(spread))


def root_of(spread: Tensor) -> Tensor:
    """The lower triangular root of covariances `[*b, q, q]`, made definite by a trace of their diagonal if need be."""
    diagonal = spread.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300)
    made, lost = torch.linalg.cholesky_ex(spread + torch.diag_embed(1e-9 * diagonal))
    root: Tensor = made
    if bool(lost.any()):
        root = torch.where((lost > 0)[..., None, None], torch.diag_embed(diagonal.sqrt()), root)
    return root
