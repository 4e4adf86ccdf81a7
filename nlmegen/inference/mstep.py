"""The M-step: the parameters that maximise the expected log density of data and random effects.

    theta of a mu-referenced pair    mu + mean of E[eta | y]      (given Omega, where other etas have no theta)
    Omega                            mean of E[eta eta' | y] about the new mu, block by block; fixed blocks stay; of
                                     effects between occasions over all occasions of all subjects
    sigma, R in proportion to it     sigma^2 times mean of E[(y - f)^2 / R | y]
    every other theta or sigma       one scoring step, by the expected information of the complete data

See Kuhn & Lavielle (2005), doi:10.1016/j.csda.2004.07.033. A prior moves the outcome by a Newton step of its own, in
the metric of the complete data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .expectation import Expectation, residual_variance
from .penalty import penalty_gradient, penalty_hessian
from .starts import logarithmic
from .transport import Chart

FAR, NEAR = 3.0, 0.5
"""Longest step of a logarithm whose M-step is closed, and of any other."""

ERRORS = 5.0
"""And of any other theta: in standard errors of the complete data, or `NEAR` times itself if that is more."""

FAINT = 0.02
"""A standard deviation of which the data say less than this share of the possible falls no further: near zero the
likelihood is flat in its logarithm, and a step back would take for ever."""


def closed_sigmas(chart: Chart, free: Tensor) -> list[bool]:
    """For each of the chart's sigmas, whether R is its square times something that no other sigma moves."""
    problem = chart.problem
    if not problem.plain:
        return [False] * len(chart.sigmas)
    f = 1.0 + torch.arange(problem.y.numel(), dtype=torch.float64).reshape(problem.y.shape) % 7
    _, _, tangents = residual_variance(chart, f, problem.values(free))
    flags = []
    for tangent in tangents:
        seen = tangent.expand_as(f)[problem.mask > 0]
        flags.append(bool((((seen - 2.0).abs() < 1e-9) | (seen == 0)).all()))
    return flags


def maximisation(
    chart: Chart, free: Tensor, moves: Tensor, found: Expectation, closed: list[bool], least: float = 0.0
) -> Tensor:
    """The new parameters `[P]`.

    Args:
        chart: which parameter is what.
        free: the present parameters, `[P]`.
        moves: how draws are carried, `[subject, q, P]`.
        found: expectations at `free`.
        closed: as `closed_sigmas` returns it.
        least: standard deviations fall at most by this factor (simulated annealing), and not at all where they are so
            small already that the data hardly see them; 0 for no limit.
    """
    score = found.total_score
    step = theta_step(chart, score, found.information)
    limit = step_limit(chart, free, found.information)
    step = torch.maximum(torch.minimum(step, limit), -limit)
    shift = moves @ step
    mean, second = found.mean.mean(0), found.second.mean(0)
    cross = mean.unsqueeze(-1) * shift.unsqueeze(-2)
    moment = second + cross + cross.mT + shift.unsqueeze(-1) * shift.unsqueeze(-2)
    moment = chart.problem.levels.pooled(moment)
    sigma = sigma_step(chart, score, found.information, closed)
    if least > 0.0:
        seen_omega, seen_sigma = visible(chart, free, found)
        floor = torch.where(seen_omega > FAINT, least, 1.0)
        ratio = (moment.diagonal() / chart.problem.page_omega(free).diagonal()).sqrt()
        wider = (floor / ratio).clamp_min(1.0)
        moment = moment * wider * wider.unsqueeze(-1)
        sigma[chart.deviations] = torch.maximum(
            sigma[chart.deviations], torch.where(seen_sigma > FAINT, math.log(least), 0.0)
        )
    free = chart.with_omega(free + step, moment) + sigma
    return free + prior_step(chart, free, found.information) if chart.problem.penalised else free


def visible(chart: Chart, free: Tensor, found: Expectation) -> tuple[Tensor, Tensor]:
    """How much the data say of each standard deviation, next to what they would if nothing hid it.

    Returns:
        For the page's random effects `[q]`, mean of (1 - var(eta | y) / omega^2)^2; for the chart's residual standard
        deviations, the share of the information 2 n of one that is alone.
    """
    mean, second = found.mean.mean(0), found.second.mean(0)
    variance = second.diagonal(dim1=-2, dim2=-1) - mean * mean
    learnt = (1.0 - variance / chart.problem.omega(free).diagonal()).square()
    learnt = chart.problem.levels.mean(learnt)
    alone = 2.0 * float(chart.problem.mask.sum())
    own = found.information.diagonal()[chart.deviations]
    return learnt, own / alone


def theta_step(chart: Chart, score: Tensor, information: Tensor) -> Tensor:
    """The scoring step of the thetas, zero for the rest, `[P]`: closed for pairs alone."""
    step = torch.zeros_like(score)
    thetas = [*chart.paired, *chart.others]
    if thetas:
        own = information[thetas][:, thetas]
        lift = torch.diag_embed(1e-12 * own.diagonal().clamp_min(1e-290))
        step[thetas] = torch.linalg.solve(own + lift, score[thetas])
    return step


def step_limit(chart: Chart, free: Tensor, information: Tensor) -> Tensor:
    """Longest step of each parameter, `[P]`; none for pairs on a natural scale, whose M-step is closed."""
    errors = information.diagonal().clamp_min(1e-290).rsqrt()
    natural = torch.maximum(NEAR * free.abs(), ERRORS * errors)
    logs = logarithmic(chart.problem)
    limit = torch.where(logs, NEAR, natural)
    paired = torch.zeros_like(logs)
    paired[list(chart.paired)] = True
    return torch.where(paired, torch.where(logs, FAR, math.inf), limit)


def sigma_step(chart: Chart, score: Tensor, information: Tensor, closed: list[bool]) -> Tensor:
    """The step of the logarithms of the residual standard deviations, zero for the rest, `[P]`."""
    step = torch.zeros_like(score)
    index = chart.sigmas
    if not index:
        return step
    own = information[index][:, index]
    lift = torch.diag_embed(1e-12 * own.diagonal().clamp_min(1e-290))
    scoring = torch.linalg.solve(own + lift, score[index]).clamp(-NEAR, NEAR)
    # where R is in proportion to sigma^2, score = sum (y - f)^2 / R - n and information = 2 n
    ratio = 1.0 + 2.0 * score[index] / own.diagonal().clamp_min(1e-300)
    exact = 0.5 * ratio.clamp_min(1e-12).log()
    step[index] = torch.where(torch.tensor(closed), exact, scoring)
    return step


def complete_information(chart: Chart, free: Tensor, information: Tensor) -> Tensor:
    """Expected information of the complete data: `information [P, P]` of thetas and sigmas, and that of the entries of
    the Cholesky factor of Omega, 2 n for a logarithm on its diagonal and n (Omega^-1)_ii below it, n being subjects or
    their occasions.
    """
    problem, whole = chart.problem, information.clone()
    precision = torch.linalg.inv(problem.page_omega(free)).diagonal()
    for a, i, j in chart.entries:
        whole[a, a] = float(problem.levels.numbers[i]) * (2.0 if i == j else float(precision[i]))
    return whole


def prior_step(chart: Chart, free: Tensor, information: Tensor) -> Tensor:
    """The Newton step that the priors add to an M-step, `[P]`."""
    _, gradient = penalty_gradient(chart.problem, free)
    bend = 0.5 * penalty_hessian(chart.problem, free)
    metric = complete_information(chart, free, information) + torch.diag_embed(bend.diagonal().clamp_min(0.0))
    step: Tensor = torch.linalg.solve(metric, -0.5 * gradient)
    return step.clamp(-NEAR, NEAR)
