"""Simulated maximum likelihood: the marginal likelihood on fixed draws, maximised over every parameter.

With draws eta_ik of q_i carried along with the parameters (`transport`), subject i contributes

    l_i(free) = log 1/K sum_k exp[ log p(y_i, eta_ik + T_i (free - free_0); free) - log q_i(eta_ik) ]

a smooth function whose maximiser tends to the maximum likelihood as K grows, whatever q is. Along the thetas that
have no eta of their own (and the entries of L, Omega = L L', that draws follow) the prediction is linearised at free_0;
value and scores are exact there, so `settle` re-linearises until it stands still.

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
from .density import Reverse, gaussian_score, log_density, without_lost
from .families import log_diagonal
from .penalty import penalty_gradient
from .transport import Chart

if TYPE_CHECKING:
    from ..model.problem import Problem


IMPOSSIBLE = 1e100
"""Squared standardised residual of a draw that has weight zero whatever the residual error becomes."""


@dataclass(frozen=True)
class Evaluation:
    """The simulated likelihood at one point.

    Args:
        log_likelihood: sum over subjects.
        scores: derivative of each subject's term in the free parameters, `[subject, P]`.
        group_log_likelihood: each group's own estimate of a subject's term, `[group, subject]`.
        group_scores: each group's own estimate of a subject's score, `[group, subject, P]`.
        log_weights: log p - log q, `[draw, group, subject]`.
        log_prior, prior_gradient: of the parameters, and its derivative `[P]`; zero on a page without priors.
    """

    log_likelihood: float
    scores: Tensor
    group_log_likelihood: Tensor
    group_scores: Tensor
    log_weights: Tensor
    log_prior: float
    prior_gradient: Tensor

    @property
    def objective(self) -> float:
        """What is maximised: log likelihood and log prior."""
        return self.log_likelihood + self.log_prior

    @property
    def gradient(self) -> Tensor:
        """Derivative of the objective, `[P]`."""
        return self.scores.sum(0) + self.prior_gradient

    @property
    def ess(self) -> Tensor:
        """Effective sample size over K of each subject, `[subject]`."""
        return effective_share(self.log_weights)

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
        values = problem.values(free)
        f = None
        if chart is None:
            f = outermost(problem.predict(eta, values).f)
            chart = Chart.of_draws(problem, values.factor, eta, self._weights(f, free, eta))
        self.chart = chart
        f = None if chart.linearised else f
        self._linearise(free, eta, chart.transport(free, values, eta.mean((0, 1))), f)

    def _weights(self, f: Tensor, free: Tensor, eta: Tensor) -> Tensor:
        """Normalised weights of draws with predictions `f`, `[draw, group, subject]`, groups and draws together."""
        problem, values = self.problem, self.problem.values(free)
        if problem.plain:
            variance = problem.variance(f, values)[0]
            square = (problem.y - f) ** 2 / variance + variance.log()
            fit = -0.5 * (square * problem.mask).sum(-1)
        else:
            fit = log_density(problem, f, values)
        level = problem.log_prior(eta, values) + fit - self.log_q
        level = level.nan_to_num(nan=-math.inf, posinf=-math.inf)
        return torch.softmax(level.flatten(0, 1), 0).reshape(level.shape).nan_to_num()

    def _linearise(self, free: Tensor, eta: Tensor, moves: Tensor, f: Tensor | None = None) -> None:
        problem, chart = self.problem, self.chart
        values = problem.values(free)
        self.free, self.moves = free, moves
        self.eta, self.tangents = outermost(eta), []
        self.white = torch.linalg.inv(values.factor)
        if not chart.linearised:
            self.f = outermost(problem.predict(eta, values).f) if f is None else f
        else:
            along = moves[:, :, chart.others].movedim(-1, 0)[:, None, None].expand(-1, *eta.shape)
            along = torch.cat([along, *(self._follow(free, *entry)[None] for entry in chart.followed)])
            prediction = problem.predict(eta, values, 1, chart.directions(free, along))
            assert prediction.jac is not None
            self.f, self.tangents = outermost(prediction.f), [outermost(x) for x in prediction.jac]
        self._drop_lost_draws()

    def _follow(self, free: Tensor, a: int, i: int, j: int) -> Tensor:
        """How draws follow entry (i, j) of L, free parameter a: d eta / d free_a `[draw, group, subject, q]`."""
        rate = self.problem.values(free).factor[i, i] if i == j else 1.0
        z = sum((self.white[j, k] * self.eta[..., k] for k in range(j + 1)), torch.zeros(()))
        motion = torch.zeros_like(self.eta)
        motion[..., i] = rate * z
        return motion

    def _drop_lost_draws(self) -> None:
        """Draws without a prediction, or one that no observation can have come from (a residual variance of zero, where
        the error is proportional and f = 0), get weight zero and a prediction that harms no sum.
        """
        problem = self.problem
        lost = ~torch.stack([self.f, *self.tangents]).isfinite().all(0)
        if not problem.plain:
            fit = log_density(problem, self.f, problem.values(self.free))
            draws = lost.any(-1) | ~(fit > -IMPOSSIBLE)
            self.log_q = self.log_q.masked_fill(draws, math.inf)
            self.f = without_lost(self.f, draws, fit)
            self.tangents = [x.masked_fill(draws.unsqueeze(-1), 0.0) for x in self.tangents]
            return
        square = (problem.y - self.f) ** 2 / problem.variance(self.f, problem.values(self.free))[0]
        lost = lost | (~(square < IMPOSSIBLE) & problem.observed)
        if bool(lost.any()):
            self.log_q = self.log_q.masked_fill(lost.any(-1), math.inf)
            self.f = torch.where(lost, problem.y, self.f)
            self.tangents = [x.masked_fill(lost, 0.0) for x in self.tangents]

    @property
    def k(self) -> int:
        """Draws a subject, K."""
        return self.eta.shape[0] * self.eta.shape[1]

    def carried(self, free: Tensor) -> SimulatedLikelihood:
        """The same function, its draws carried to `free [P]` and its predictions exact there."""
        if not self.tangents:
            return self
        other, eta = self._moved(free)
        other._linearise(free, eta, self.moves)
        return other

    def _moved(self, free: Tensor) -> tuple[SimulatedLikelihood, Tensor]:
        """A copy that knows the density of the draws carried to `free [P]`, and these."""
        other = copy.copy(self)
        other.log_q = self.log_q - self._log_volume(free)
        return other, self._carry(free)

    def renewed(self, free: Tensor) -> SimulatedLikelihood:
        """As `carried`, with the directions of transport found anew."""
        weights = torch.softmax(self(free).log_weights.flatten(0, 1), 0).unsqueeze(-1)
        other, eta = self._moved(free)
        centre = (weights * eta.flatten(0, 1)).sum(0)
        other._linearise(free, eta, self.chart.transport(free, self.problem.values(free), centre))
        return other

    def _carry(self, free: Tensor) -> Tensor:
        """The draws at `free [P]`: L L_0^-1 eta where they follow L, and shifted with the thetas."""
        move = free - self.free
        if not bool(move.any()):
            return self.eta
        eta = self.eta
        if self.chart.followed:
            old, new = (self.problem.values(x).factor for x in (self.free, free))
            change = torch.zeros_like(old)
            for _, i, j in self.chart.followed:
                change[i, j] = new[i, j] - old[i, j]
            eta = eta + torch.einsum("ij,...j->...i", change @ self.white, eta)
        return eta + (self.moves @ move.unsqueeze(-1)).squeeze(-1)

    def _log_volume(self, free: Tensor) -> float:
        """Log determinant of the map that carries the draws from where they were made to `free [P]`."""
        return sum(float(free[a] - self.free[a]) for a, i, j in self.chart.followed if i == j)

    def __call__(self, free: Tensor) -> Evaluation:
        """Value and scores at `free [P]`."""
        problem, move = self.problem, free - self.free
        groups = self.eta.shape[1]
        f = self.f
        for tangent, a in zip(self.tangents, self.chart.linearised, strict=True):
            f = f + tangent * move[a]
        terms = (_GaussianTerms if problem.plain else _LocalTerms)(self.chart, free, f)
        eta = self._carry(free)
        log_weights = terms.log_joint + self._log_prior(free, eta) - self.log_q + self._log_volume(free)
        own = torch.logsumexp(log_weights, 0)
        weight = torch.exp(log_weights - own)
        scores = self._prior_scores(free, eta, weight)
        terms.add(weight, self.tangents, scores)
        for a, i, j in self.chart.followed:
            pull_back = (precision_times(self.problem.omega(free), eta) * self._follow(free, a, i, j)).sum(-1)
            scores[..., a] += float(i == j) - (weight * pull_back).sum(0)
        own = own - math.log(self.eta.shape[0])
        share = torch.softmax(own, 0).unsqueeze(-1)
        total = torch.logsumexp(own, 0) - math.log(groups)
        penalty, slope_of_penalty = penalty_gradient(problem, free)
        return Evaluation(
            float(total.sum()),
            (share * scores).sum(0),
            own,
            scores,
            log_weights,
            -0.5 * float(penalty),
            -0.5 * slope_of_penalty,
        )

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

    def hessian(self, free: Tensor, step: float = 1e-5) -> Tensor:
        """Second derivatives of the log likelihood (without priors) by differences of its score, `[P, P]`.

        Scores are exact to rounding, so that a short step forward is as good as a central difference, at half its
        cost.
        """
        base = self if torch.equal(free, self.free) else self.carried(free)
        here = base(free).scores.sum(0)
        rows = []
        for a in range(len(free)):
            move = free.clone()
            move[a] += step
            ahead = self.carried(move) if a in self.chart.linearised else base
            rows.append((ahead(move).scores.sum(0) - here) / step)
        matrix = torch.stack(rows)
        return 0.5 * (matrix + matrix.mT)


class _GaussianTerms:
    """Residual terms of a Gaussian page about predictions `f [draw, group, subject, time]`.

    Attributes:
        log_joint: log p(y | eta), `[draw, group, subject]`.
    """

    def __init__(self, chart: Chart, free: Tensor, f: Tensor) -> None:
        self.chart, problem = chart, chart.problem
        # the residual SDs of each group and subject are leaves of their own: the gradient in them is the score
        self.copies = free[chart.sigmas].expand(*f.shape[1:3], -1).clone().requires_grad_()
        with torch.enable_grad():
            self.variance, self.slope = self._variance(f, free)
        log_variance = self.variance.detach().log()
        self.inverse = 1.0 / self.variance.detach()
        self.residual = problem.y - f
        self.square = self.residual * self.residual * self.inverse
        fit = ((self.square + log_variance + LOG_2PI) * problem.mask).sum(-1)
        self.log_joint = problem.log_jacobian - 0.5 * fit

    def _variance(self, f: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
        """R and dR/df with the residual SDs taken from `copies [group, subject, sigma]`."""
        problem, layout = self.chart.problem, self.chart.problem.layout
        values = problem.values(free)
        sigma = dict(values.sigma)
        first = len(layout.names) - len(layout.sigma_names)
        for c, a in enumerate(self.chart.sigmas):
            name = layout.sigma_names[int(problem.free_index[a]) - first]
            sigma[name] = self.copies[..., c : c + 1].exp()
        variance, slope, _ = problem.variance(f, dataclasses.replace(values, sigma=sigma))
        return variance, slope

    def add(self, weight: Tensor, tangents: list[Tensor], scores: Tensor) -> None:
        """Add to the scores `[group, subject, P]` what residual SDs have, and what the thetas along which f moves by
        `tangents`, for draws of `weight [draw, group, subject]`.
        """
        chart, weight = self.chart, weight.unsqueeze(-1) * self.chart.problem.mask
        if chart.sigmas:
            pull = 0.5 * weight * (self.square - 1.0) * self.inverse
            with torch.enable_grad():  # of a sum: cotangents handed over would make torch import sympy
                pulled = (self.variance * pull.sum_to_size(self.variance.shape)).sum()
            (own_scores,) = torch.autograd.grad(pulled, self.copies)
            scores[..., chart.sigmas] += own_scores
        if tangents:
            push = weight * gaussian_score(self.residual, self.variance.detach(), self.slope.detach())[0]
            for tangent, a in zip(tangents, chart.linearised, strict=True):
                scores[..., a] += (push * tangent).sum((0, -1))


class _LocalTerms:
    """As `_GaussianTerms`, for any density: one reverse pass gives every derivative."""

    def __init__(self, chart: Chart, free: Tensor, f: Tensor) -> None:
        self.chart = chart
        self.reverse = Reverse(chart.problem, free, chart.sigmas, f)
        self.log_joint = chart.problem.log_jacobian + self.reverse.log_p

    def add(self, weight: Tensor, tangents: list[Tensor], scores: Tensor) -> None:
        """As of `_GaussianTerms`."""
        chart = self.chart
        if not chart.sigmas and not tangents:
            return
        push, own_scores = self.reverse.pull(weight)
        scores[..., chart.sigmas] += own_scores
        for tangent, a in zip(tangents, chart.linearised, strict=True):
            scores[..., a] += (push * tangent).sum((0, -1))


def effective_share(log_weights: Tensor) -> Tensor:
    """Effective sample size over K of log weights `[draw, group, subject]`, `[subject]`."""
    flat = torch.log_softmax(log_weights.flatten(0, 1), 0)
    return torch.exp(-torch.logsumexp(2.0 * flat, 0)) / flat.shape[0]


def precision_times(omega: Tensor, eta: Tensor) -> Tensor:
    """Omega^-1 eta for draws `[*draw, subject, q]`."""
    return torch.einsum("ij,...j->...i", torch.linalg.inv(omega), eta)


def outermost(x: Tensor) -> Tensor:
    """The same tensor laid out in memory with its last, short axis outermost: sums over it then run along whole
    rows.
    """
    return x.movedim(-1, 0).contiguous().movedim(0, -1)
