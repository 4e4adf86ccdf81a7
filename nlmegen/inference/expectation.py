"""Conditional expectations over weighted draws: what an M-step and a score need, from one sweep of predictions.

With weights w_m that sum to one over the draws eta_m of a chain and a subject, and draws carried along as parameters
move (`transport`: eta + T d, which changes no expectation and quietens the scores),

    score      E[ d log p(y, eta + T d; free + d) / dd | y ]         Fisher's identity: d log p(y) / d free
    moments    E[eta | y],  E[eta eta' | y]
    information  of the complete data, expected in y given eta: of thetas and residual standard deviations
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..maths.taylor import Taylor
from ..model.problem import LOG_2PI
from .density import Reverse, gaussian_score, sigma_information, weigh, without_lost
from .families import log_diagonal, times

if TYPE_CHECKING:
    from ..model.parameters import Values
    from .transport import Chart

PIECE = 25_000
"""Predictions made at once where they are closed forms: tensors beyond this are slower, number for number."""

PIECE_STEPPED = 200_000
"""And where equations are solved, which prefer many at once."""


@dataclass(frozen=True)
class Expectation:
    """Conditional expectations, summed over nothing but the draws.

    Args:
        scores: `[chain, subject, P]`.
        mean: E[eta | y], `[chain, subject, q]`.
        second: E[eta eta' | y], `[chain, subject, q, q]`.
        information: of the complete data in thetas and residual standard deviations, zero elsewhere; mean over chains,
            sum over subjects, `[P, P]`. Zero where it was not asked for.
        log_weights: log p(y, eta) - log q(eta), `[draw, chain, subject]`.
    """

    scores: Tensor
    mean: Tensor
    second: Tensor
    information: Tensor
    log_weights: Tensor

    @property
    def total_score(self) -> Tensor:
        """Mean over chains, sum over subjects, `[P]`."""
        return self.scores.mean(0).sum(0)

    @property
    def log_likelihood(self) -> float:
        """An estimate of log L (slightly biased: the chain's state is among the draws)."""
        return float((torch.logsumexp(self.log_weights, 0) - math.log(len(self.log_weights))).mean(0).sum())


def residual_variance(chart: Chart, f: Tensor, values: Values) -> tuple[Tensor, Tensor, list[Tensor]]:
    """R, dR/df and d log R / d log sigma for each of the chart's sigmas, each broadcastable to `f`."""
    problem, layout = chart.problem, chart.problem.layout
    if not chart.sigmas:
        plain, by_f, _ = problem.variance(f, values)
        return plain, by_f, []
    unit = torch.eye(len(chart.sigmas), dtype=torch.float64)[..., None, None]
    first = len(layout.names) - len(layout.sigma_names)
    seeded: dict[str, Any] = dict(values.sigma)
    for a, row in zip(chart.sigmas, unit.unbind(1), strict=True):
        name = layout.sigma_names[int(problem.free_index[a]) - first]
        seeded[name] = Taylor(values.sigma[name], row * values.sigma[name])
    variance, slope, _ = (_plain(x) for x in problem.variance(f, dataclasses.replace(values, sigma=seeded)))
    inverse = 1.0 / variance[0]
    return variance[0], slope[0], [x * inverse for x in variance[1]]


def _plain(x: Tensor | Taylor) -> tuple[Tensor, list[Tensor]]:
    """Value and first derivatives of a Taylor number; a tensor has none."""
    return (x.value, list(x.jac)) if isinstance(x, Taylor) else (x, [])


class GaussianTerms:
    """Residual terms of a Gaussian page about predictions `f [draw, chain, subject, time]`.

    Attributes:
        fit: log p(y | eta), `[draw, chain, subject]`.
    """

    def __init__(self, chart: Chart, free: Tensor, values: Values, f: Tensor) -> None:
        self.chart, self.f = chart, f
        problem, self.mask = chart.problem, chart.problem.mask
        self.variance, self.slope, self.by_sigma = residual_variance(chart, f, values)
        self.residual = problem.y - f
        self.square = self.residual * self.residual / self.variance * self.mask
        logs = (self.variance.log() + LOG_2PI) * self.mask
        self.fit = problem.log_jacobian - 0.5 * (self.square.sum(-1) + logs.sum(-1))

    def add(self, by_theta: list[Tensor], weight: Tensor, scores: Tensor, information: Tensor | None) -> None:
        """Add what residual parameters and thetas (f moves by `by_theta`) have of the expectations over draws."""
        chart, lost, mask = self.chart, weight == 0, self.mask

        def weighed(x: Tensor) -> Tensor:
            """Expectation of x, summed over time, `[chain, subject]`; what wild draws predict harms no sum."""
            return (weight * x.sum(-1).masked_fill(lost, 0.0)).sum(0)

        excess = 0.5 * (self.square - mask)
        for c, a in enumerate(chart.sigmas):
            scores[..., a] += weighed(excess * self.by_sigma[c])
            if information is None:
                continue
            for d in range(c + 1):
                b, both = chart.sigmas[d], self.by_sigma[c] * self.by_sigma[d] * mask
                information[a, b] = information[b, a] = 0.5 * float(weighed(both.expand_as(self.f)).sum())
        if not by_theta:
            return
        pull, expected = gaussian_score(self.residual, self.variance, self.slope.expand_as(self.f))
        pull, expected = pull * mask, expected * mask
        for c, a in enumerate(chart.others):
            scores[..., a] += weighed(pull * by_theta[c])
            if information is None:
                continue
            for d in range(c + 1):
                b, both = chart.others[d], expected * by_theta[c] * by_theta[d]
                information[a, b] = information[b, a] = float(weighed(both).sum())


class LocalTerms:
    """As `GaussianTerms`, for any density."""

    def __init__(self, chart: Chart, free: Tensor, values: Values, f: Tensor) -> None:
        self.chart, self.free, self.values, self.f = chart, free, values, f
        self.reverse = Reverse(chart.problem, free, chart.sigmas, f)
        self.fit = chart.problem.log_jacobian + self.reverse.log_p

    def add(self, by_theta: list[Tensor], weight: Tensor, scores: Tensor, information: Tensor | None) -> None:
        """As of `GaussianTerms`."""
        chart, problem, lost = self.chart, self.chart.problem, (weight == 0).unsqueeze(-1)
        if not chart.sigmas and not by_theta:
            return
        push, own_scores = self.reverse.pull(weight)
        scores[..., chart.sigmas] += own_scores
        for tangent, a in zip(by_theta, chart.others, strict=True):
            scores[..., a] += (push * tangent).masked_fill(lost, 0.0).sum((0, -1))
        if information is None:
            return
        f = without_lost(self.f, lost.squeeze(-1), weight)
        if chart.sigmas:
            index = torch.tensor(chart.sigmas)
            found = sigma_information(problem, f, self.free, chart.sigmas, weight)
            information[index.unsqueeze(-1), index] = found
        if by_theta:
            index = torch.tensor(chart.others)
            jac = torch.stack(by_theta, -1).masked_fill(lost.unsqueeze(-1), 0.0)
            expected = jac.mT @ weigh(problem.local(f, self.values).weight, jac)
            information[index.unsqueeze(-1), index] = (weight[..., None, None] * expected).sum((0, 1, 2))


def expectation(
    chart: Chart, free: Tensor, moves: Tensor, eta: Tensor, log_q: Tensor, *, informed: bool = True
) -> Expectation:
    """Expectations over the draws of all subjects of the chart's problem.

    Args:
        chart: which parameter is what, with its problem.
        free: parameters, `[P]`.
        moves: T, `[subject, q, P]`.
        eta: draws, `[draw, chain, subject, q]`; log_q: their log density, `[draw, chain, subject]`.
        informed: find the information too.
    """
    problem = chart.problem
    values = problem.values(free)
    by_theta: list[Tensor] = []
    if chart.others:
        along = moves[:, :, chart.others].movedim(-1, 0)[:, None, None]
        prediction = problem.predict(eta, values, 1, chart.directions(free, along))
        assert prediction.jac is not None
        by_theta = list(prediction.jac)
    else:
        prediction = problem.predict(eta, values)
    f = prediction.f
    kind = GaussianTerms if problem.plain else LocalTerms
    terms: GaussianTerms | LocalTerms = kind(chart, free, values, f)
    white = times(torch.linalg.inv(values.factor)[None], eta)
    constant = log_diagonal(values.factor) + 0.5 * problem.q * LOG_2PI
    log_weights = terms.fit - 0.5 * (white * white).sum(-1) - constant - log_q
    log_weights = log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf)
    weight = torch.softmax(log_weights, 0)
    # draws side by side for each chain and subject: moments are then products of small matrices
    rows = eta.permute(1, 2, 0, 3).contiguous()
    column = weight.permute(1, 2, 0).unsqueeze(-1)
    mean = (rows.mT @ column).squeeze(-1)
    second = rows.mT @ (rows * column)
    scores = _prior_scores(chart, free, moves, mean, second)
    information = torch.zeros(problem.P, problem.P, dtype=torch.float64)
    terms.add(by_theta, weight, scores, information if informed else None)
    if informed:
        precision = torch.cholesky_inverse(values.factor)
        information = information / eta.shape[1] + (moves.mT @ precision @ moves).sum(0)
    return Expectation(scores, mean, second, information, log_weights)


def _prior_scores(chart: Chart, free: Tensor, moves: Tensor, mean: Tensor, second: Tensor) -> Tensor:
    """What log p(eta; Omega) adds to the scores: through Omega, and through draws that are carried."""
    omega, by_free = chart.omega_and_slope(free)
    precision = torch.linalg.inv(omega)
    pull = 0.5 * (precision @ second @ precision - precision)
    carried = ((mean @ precision).unsqueeze(-2) @ moves).squeeze(-2)
    scores: Tensor = torch.einsum("cnij,ijp->cnp", pull, by_free) - carried
    return scores


class Sweeper:
    """`expectation` of all subjects, some subjects at a time.

    Args:
        chart: which parameter is what, with its problem.
        numbers: draws of all chains of one subject.
    """

    def __init__(self, chart: Chart, numbers: int) -> None:
        problem = chart.problem
        piece = PIECE if problem.structure.closed_form is not None else PIECE_STEPPED
        size = max(1, piece // max(1, numbers * problem.y.shape[-1]))
        every = torch.arange(problem.n_subjects)
        self.index = list(torch.split(every, size))
        whole = len(self.index) == 1
        self.charts = [chart] if whole else [type(chart)(problem.select(i), chart.loose) for i in self.index]

    def __call__(
        self, free: Tensor, moves: Tensor, eta: Tensor, log_q: Tensor, *, informed: bool = True
    ) -> Expectation:
        """As `expectation`."""
        if len(self.index) == 1:
            return expectation(self.charts[0], free, moves, eta, log_q, informed=informed)
        parts = [
            expectation(chart, free, moves[i], eta[:, :, i], log_q[:, :, i], informed=informed)
            for chart, i in zip(self.charts, self.index, strict=True)
        ]
        return Expectation(
            torch.cat([x.scores for x in parts], 1),
            torch.cat([x.mean for x in parts], 1),
            torch.cat([x.second for x in parts], 1),
            torch.stack([x.information for x in parts]).sum(0),
            torch.cat([x.log_weights for x in parts], -1),
        )
