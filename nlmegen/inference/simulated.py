"""Simulated maximum likelihood: the marginal likelihood on fixed draws, maximised over every parameter.

With draws eta_ik of q_i carried along with the parameters (`transport`), subject i contributes

    l_i(free) = log 1/K sum_k exp[ log p(y_i, eta_ik + T_i (free - free_0); free) - log q_i(eta_ik) ]

a smooth function whose maximiser tends to the maximum likelihood as K grows, whatever q is. Along the thetas that
have no eta of their own the prediction is linearised at free_0; value and scores are exact there, so `maximise` re-
linearises until it stands still.

Draws come in independent groups (`lattice`), `[draw, group, subject]`: the spread between groups is the Monte Carlo
error.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.problem import LOG_2PI
from .families import log_diagonal
from .linearise import gaussian_score
from .transport import Chart

if TYPE_CHECKING:
    from ..model.problem import Problem


@dataclass(frozen=True)
class Evaluation:
    """The simulated likelihood at one point.

    Args:
        log_likelihood: sum over subjects.
        scores: derivative of each subject's term in the free parameters, `[subject, P]`.
        group_log_likelihood: each group's own estimate of a subject's term, `[group, subject]`.
        group_scores: each group's own estimate of a subject's score, `[group, subject, P]`.
        log_weights: log p - log q, `[draw, group, subject]`.
    """

    log_likelihood: float
    scores: Tensor
    group_log_likelihood: Tensor
    group_scores: Tensor
    log_weights: Tensor

    @property
    def gradient(self) -> Tensor:
        """Derivative of the log likelihood, `[P]`."""
        return self.scores.sum(0)

    @property
    def ess(self) -> Tensor:
        """Effective sample size over K of each subject, `[subject]`."""
        flat = torch.log_softmax(self.log_weights.flatten(0, 1), 0)
        return torch.exp(-torch.logsumexp(2.0 * flat, 0)) / flat.shape[0]

    @property
    def score_noise(self) -> Tensor:
        """Monte Carlo covariance of the gradient, from the spread between groups, `[P, P]`."""
        off = self.group_scores - self.group_scores.mean(0)
        g = off.shape[0]
        return torch.einsum("gna,gnb->ab", off, off) / (g * (g - 1))

    @property
    def log_likelihood_se(self) -> float:
        """Monte Carlo standard error of the log likelihood."""
        off = self.group_log_likelihood - self.group_log_likelihood.mean(0)
        g = off.shape[0]
        return math.sqrt(float((off * off).sum()) / (g * (g - 1)))


class SimulatedLikelihood:
    """The simulated log likelihood of a problem on fixed draws.

    Args:
        problem: the binding of page and data.
        free: free_0, where the draws were made, `[P]`.
        eta: draws, `[draw, group, subject, q]`.
        log_q: their log density under q, `[draw, group, subject]`.
        chart: how draws are carried; by default as the spread of the draws suggests.
    """

    def __init__(
        self, problem: Problem, free: Tensor, eta: Tensor, log_q: Tensor, chart: Chart | None = None
    ) -> None:
        self.problem, self.log_q = problem, log_q
        centre = eta.mean((0, 1))
        spread = (eta - centre).square().mean((0, 1))
        self.chart = Chart.of(problem, problem.omega(free), spread) if chart is None else chart
        moves = self.chart.transport(free, problem.values(free), centre)
        self._linearise(free, eta, moves)

    def _linearise(self, free: Tensor, eta: Tensor, moves: Tensor) -> None:
        problem, chart = self.problem, self.chart
        values = problem.values(free)
        self.free, self.moves = free, moves
        self.eta, self.tangents = outermost(eta), []
        if not chart.others:
            self.f = outermost(problem.predict(eta, values).f)
        else:
            along = moves[:, :, chart.others].movedim(-1, 0)[:, None, None]
            prediction = problem.predict(eta, values, 1, chart.directions(free, along))
            assert prediction.jac is not None
            self.f, self.tangents = outermost(prediction.f), [outermost(x) for x in prediction.jac]
        self._drop_lost_draws()

    def _drop_lost_draws(self) -> None:
        """Draws without a finite prediction get weight zero, and a prediction that harms no sum."""
        lost = ~torch.stack([self.f, *self.tangents]).isfinite().all(0)
        if bool(lost.any()):
            self.log_q = self.log_q.masked_fill(lost.any(-1), math.inf)
            self.f = torch.where(lost, self.problem.y, self.f)
            self.tangents = [x.masked_fill(lost, 0.0) for x in self.tangents]

    @property
    def k(self) -> int:
        """Draws a subject, K."""
        return self.eta.shape[0] * self.eta.shape[1]

    def carried(self, free: Tensor) -> SimulatedLikelihood:
        """The same function, its draws carried to `free [P]` and its predictions exact there."""
        if not self.tangents:
            return self
        other = copy.copy(self)
        other._linearise(free, self.eta + self._shift(free - self.free), self.moves)
        return other

    def renewed(self, free: Tensor) -> SimulatedLikelihood:
        """As `carried`, with the directions of transport found anew."""
        weights = torch.softmax(self(free).log_weights.flatten(0, 1), 0).unsqueeze(-1)
        other = copy.copy(self)
        eta = self.eta + self._shift(free - self.free)
        centre = (weights * eta.flatten(0, 1)).sum(0)
        other._linearise(free, eta, self.chart.transport(free, self.problem.values(free), centre))
        return other

    def _shift(self, move: Tensor) -> Tensor:
        """How far a move of the parameters `[P]` carries the draws, `[subject, q]`."""
        return (self.moves @ move.unsqueeze(-1)).squeeze(-1)

    def __call__(self, free: Tensor) -> Evaluation:
        """Value and scores at `free [P]`."""
        problem, move = self.problem, free - self.free
        groups, n = self.eta.shape[1:3]
        # the residual SDs of each group and subject are leaves of their own: the gradient in them is the score
        copies = free[self.chart.sigmas].expand(groups, n, -1).clone().requires_grad_()
        f = self.f
        for tangent, a in zip(self.tangents, self.chart.others, strict=True):
            f = f + tangent * move[a]
        with torch.enable_grad():
            variance, slope = self._variance(f, free, copies)
        inverse, log_variance = 1.0 / variance.detach(), variance.detach().log()
        residual = problem.y - f
        square = residual * residual * inverse
        log_joint = problem.log_jacobian - 0.5 * ((square + log_variance + LOG_2PI) * problem.mask).sum(-1)
        eta = self.eta + self._shift(move) if bool(move.any()) else self.eta
        log_weights = log_joint + self._log_prior(free, eta) - self.log_q
        own = torch.logsumexp(log_weights, 0)
        weight = torch.exp(log_weights - own).unsqueeze(-1) * problem.mask
        scores = self._prior_scores(free, eta, torch.exp(log_weights - own))
        if self.chart.sigmas:
            pull = 0.5 * weight * (square - 1.0) * inverse
            (own_scores,) = torch.autograd.grad(variance, copies, pull.sum_to_size(variance.shape))
            scores[..., self.chart.sigmas] += own_scores
        if self.tangents:
            push = weight * gaussian_score(residual, variance.detach(), slope.detach())[0]
            for tangent, a in zip(self.tangents, self.chart.others, strict=True):
                scores[..., a] += (push * tangent).sum((0, -1))
        own = own - math.log(self.eta.shape[0])
        share = torch.softmax(own, 0).unsqueeze(-1)
        total = torch.logsumexp(own, 0) - math.log(groups)
        return Evaluation(float(total.sum()), (share * scores).sum(0), own, scores, log_weights)

    def _variance(self, f: Tensor, free: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/df with the residual SDs taken from `copies [group, subject, sigma]`."""
        problem, layout = self.problem, self.problem.layout
        values = problem.values(free)
        sigma = dict(values.sigma)
        first = len(layout.names) - len(layout.sigma_names)
        for c, a in enumerate(self.chart.sigmas):
            sigma[layout.sigma_names[int(problem.free_index[a]) - first]] = copies[..., c : c + 1].exp()
        variance, slope, _ = problem.variance(f, dataclasses.replace(values, sigma=sigma))
        return variance, slope

    def _log_prior(self, free: Tensor, eta: Tensor) -> Tensor:
        factor = self.problem.values(free).factor
        flat = eta.movedim(-1, 0)
        white = (torch.linalg.inv(factor) @ flat.flatten(1)).reshape(flat.shape)
        density: Tensor = -0.5 * (white * white).sum(0) - log_diagonal(factor) - 0.5 * len(factor) * LOG_2PI
        return density

    def _prior_scores(self, free: Tensor, eta: Tensor, weight: Tensor) -> Tensor:
        """What log p(eta; Omega) adds to the scores `[group, subject, P]`: through Omega, and through carried draws."""
        q = eta.shape[-1]
        mean = torch.stack([(weight * eta[..., i]).sum(0) for i in range(q)], -1)
        second = torch.zeros(*mean.shape, q, dtype=mean.dtype)
        for i in range(q):
            part = weight * eta[..., i]
            for j in range(i + 1):
                second[..., i, j] = second[..., j, i] = (part * eta[..., j]).sum(0)
        omega, by_free = self.chart.omega_and_slope(free)
        precision = torch.linalg.inv(omega)
        pull = 0.5 * (precision @ second @ precision - precision)
        scores = torch.einsum("gnij,ijp->gnp", pull, by_free)
        return scores - torch.einsum("gnq,nqp->gnp", mean @ precision, self.moves)

    def hessian(self, free: Tensor, step: float = 1e-4) -> Tensor:
        """Second derivatives of the log likelihood by central differences of its score, `[P, P]`."""
        rows = []
        for a in range(len(free)):
            move = torch.zeros_like(free)
            move[a] = step
            ahead, behind = (
                self.carried(x) if a in self.chart.others else self for x in (free + move, free - move)
            )
            rows.append((ahead(free + move).gradient - behind(free - move).gradient) / (2.0 * step))
        matrix = torch.stack(rows)
        return 0.5 * (matrix + matrix.mT)


def outermost(x: Tensor) -> Tensor:
    """The same tensor laid out in memory with its last, short axis outermost: sums over it then run along whole
    rows.
    """
    return x.movedim(-1, 0).contiguous().movedim(0, -1)
