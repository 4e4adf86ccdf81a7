"""Variational EM with one Gaussian a subject and no network: the quick start of a fit.

The bound on log p(y) of subject i for q_i = N(m, C),

    E_q log p(y | eta) - KL(q || N(0, Omega)),

is taken on the 2q cubature points m +- sqrt(q) L_j (degree 3, C = L L'). The E-step is a damped natural gradient in
m and C^-1 (Khan & Rue 2023, arXiv:2107.04562) with expected information in place of the Hessian and a line search a
subject; the M-step is closed for mu-referenced thetas and Omega, a Fisher step for the other thetas and for sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import FitError
from .density import score_and_weight, sigma_information, sigma_scores, weigh
from .families import kl_divergence
from .flipflop import absorbs_slowly, has_mirror, mirrored
from .transport import Chart

if TYPE_CHECKING:
    from ..model.problem import Problem

HALVINGS = 6
"""Tries of a line search."""
STEP_LIMIT = 1.0
"""Largest move of a whitened mean in one E-step, in prior SD."""
THETA_LIMIT = 0.5
"""Largest move of a free parameter in one M-step."""


@dataclass(frozen=True)
class Variational:
    """A point of variational EM.

    Args:
        free: parameters, `[P]`.
        mean: of each q, `[subject, q]`.
        factor: lower triangular factor of its covariance, `[subject, q, q]`.
        bound: each subject's bound on log p(y), `[subject]`.
    """

    free: Tensor
    mean: Tensor
    factor: Tensor
    bound: Tensor

    @property
    def covariance(self) -> Tensor:
        """C, `[subject, q, q]`."""
        return self.factor @ self.factor.mT


def cubature(mean: Tensor, factor: Tensor) -> Tensor:
    """The 2q points m +- sqrt(q) L_j, `[2q, subject, q]`."""
    steps = math.sqrt(mean.shape[-1]) * factor.movedim(-1, 0)
    return torch.cat([mean + steps, mean - steps])


def gaussian_bound(problem: Problem, free: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """The bound of each subject on the cubature points, `[subject]`."""
    values = problem.values(free)
    fit = problem.log_likelihood(cubature(mean, factor), values).mean(0)
    return fit - kl_divergence(mean, factor, values.factor)


def start_at(problem: Problem, free: Tensor, share: float = 0.3) -> Variational:
    """q = N(0, share^2 Omega) for every subject."""
    n, q = problem.n_subjects, problem.q
    mean = torch.zeros(n, q, dtype=torch.float64)
    factor = (share * problem.values(free).factor).expand(n, q, q)
    return Variational(free, mean, factor, gaussian_bound(problem, free, mean, factor))


def expectation_step(problem: Problem, at: Variational) -> Variational:
    """One damped natural-gradient step of every q; no subject's bound falls."""
    values = problem.values(at.free)
    points = cubature(at.mean, at.factor)
    prediction = problem.predict(points, values, 1)
    assert prediction.jac is not None
    score, weight = score_and_weight(problem, prediction.f, values)
    jac = prediction.jac.movedim(0, -1)
    precision = torch.cholesky_inverse(values.factor)
    pull = (jac.mT @ score.unsqueeze(-1)).mean(0) - precision @ at.mean.unsqueeze(-1)
    target = (jac.mT @ weigh(weight, jac)).mean(0) + precision
    step = torch.linalg.solve(target, pull)
    white = torch.linalg.solve_triangular(values.factor, step, upper=False)
    step = (step * (STEP_LIMIT / white.abs().amax(1, keepdim=True)).clamp_max(1.0)).squeeze(-1)
    return _damped(problem, at, step, target)


def _damped(problem: Problem, at: Variational, step: Tensor, target: Tensor) -> Variational:
    """The longest of ever shorter steps towards precision `target [subject, q, q]` that raises a subject's bound."""
    present = torch.cholesky_inverse(at.factor)
    mean, factor, bound = at.mean.clone(), at.factor.clone(), at.bound.clone()
    pending, some, size = torch.arange(problem.n_subjects), problem, 1.0
    for _ in range(HALVINGS):
        new_mean = at.mean[pending] + size * step[pending]
        blend = torch.lerp(present[pending], target[pending], size)
        new_factor, lost = torch.linalg.cholesky_ex(torch.linalg.inv(blend))
        new_bound = gaussian_bound(some, at.free, new_mean, new_factor)
        better = (new_bound > at.bound[pending]) & (lost == 0)
        risen = pending[better]
        mean[risen], factor[risen], bound[risen] = new_mean[better], new_factor[better], new_bound[better]
        pending = pending[~better]
        if not len(pending):
            break
        some, size = problem.select(pending), 0.4 * size
    return Variational(at.free, mean, factor, bound)


def maximisation_step(problem: Problem, chart: Chart, at: Variational) -> Variational:
    """New parameters for the present q: thetas (the q are carried along), Omega, then sigma; halved until the bound
    rises.
    """
    moves = chart.transport(at.free, problem.values(at.free), at.mean)
    step = _theta_step(problem, chart, at, moves)
    for _ in range(HALVINGS):
        mean = at.mean + moves @ step
        free = chart.with_omega(at.free + step, _second_moment(problem, mean, at.factor))
        new = _bounded(problem, free, mean, at.factor)
        if bool(new.bound.sum() >= at.bound.sum()):
            at = new
            break
        step = 0.4 * step
    return _sigma_step(problem, chart, at)


def _second_moment(problem: Problem, mean: Tensor, factor: Tensor) -> Tensor:
    """Mean of E[eta eta'] under all q, of every effect of the page, `[q, q]`."""
    rows = torch.cat([mean.unsqueeze(-1), factor], -1)
    if not problem.levels.changes:
        return torch.einsum("nij,nkj->ik", rows, rows) / len(mean)
    return problem.levels.pooled(rows @ rows.mT)


def _bounded(problem: Problem, free: Tensor, mean: Tensor, factor: Tensor) -> Variational:
    return Variational(free, mean, factor, gaussian_bound(problem, free, mean, factor))


def _theta_step(problem: Problem, chart: Chart, at: Variational, moves: Tensor) -> Tensor:
    """Gauss-Newton step of the thetas in the bound, the means moving by `moves [subject, q, P]`; zero for the rest,
    `[P]`.
    """
    values = problem.values(at.free)
    thetas = [*chart.paired, *chart.others]
    precision = torch.cholesky_inverse(values.factor)
    drag = moves.mT @ precision
    information = (drag @ moves).sum(0)
    gradient = -(drag @ at.mean.unsqueeze(-1)).sum(0).squeeze(-1)
    if chart.others:
        points = cubature(at.mean, at.factor)
        along = moves[:, :, chart.others].movedim(-1, 0)[:, None]
        prediction = problem.predict(points, values, 1, chart.directions(at.free, along))
        assert prediction.jac is not None
        score, weight = score_and_weight(problem, prediction.f, values)
        index = torch.tensor(chart.others)
        if isinstance(weight, Tensor):
            jac = prediction.jac.flatten(1)
            s, w = (x.flatten() / len(points) for x in (score, weight))
            gradient[index] += jac @ s
            information[index.unsqueeze(1), index] += jac @ (w.unsqueeze(-1) * jac.mT)
        else:
            jac = prediction.jac.movedim(0, -1)
            pulls, weights = jac.mT @ score.unsqueeze(-1), jac.mT @ weigh(weight, jac)
            gradient[index] += pulls.squeeze(-1).mean(0).sum(0)
            information[index.unsqueeze(1), index] += weights.mean(0).sum(0)
    step = torch.zeros_like(at.free)
    if thetas:
        ridge = 1e-9 * torch.eye(len(thetas), dtype=torch.float64)
        step[thetas] = torch.linalg.solve(information[thetas][:, thetas] + ridge, gradient[thetas])
    return step.clamp(-THETA_LIMIT, THETA_LIMIT)


def _sigma_step(problem: Problem, chart: Chart, at: Variational) -> Variational:
    """One Fisher step of the residual standard deviations."""
    if not chart.sigmas:
        return at
    points = cubature(at.mean, at.factor)
    f = problem.predict(points, problem.values(at.free)).f
    step = torch.zeros_like(at.free)
    if not problem.plain:
        share = torch.full((len(points), 1, problem.n_subjects), 1.0 / len(points), dtype=torch.float64)
        own = (problem, f[:, None], at.free, chart.sigmas, share)
        scoring = torch.linalg.solve(sigma_information(*own), sigma_scores(*own).sum((0, 1)))
        step[chart.sigmas] = scoring.clamp(-THETA_LIMIT, THETA_LIMIT)
        return _risen(problem, at, step)

    def residual_variance(free: Tensor) -> Tensor:
        return problem.variance(f, problem.values(free))[0].expand(f.shape)

    variance = residual_variance(at.free)
    tangents = []
    for a in chart.sigmas:
        unit = torch.zeros_like(at.free)
        unit[a] = 1.0
        tangents.append((_tangent(residual_variance, at.free, unit) / variance * problem.mask).flatten())
    jac = torch.stack(tangents)
    residual = problem.y - f
    excess = ((residual * residual / variance - 1.0) * problem.mask).flatten()
    information = 0.5 * jac @ jac.mT + 1e-9 * torch.eye(len(jac), dtype=torch.float64)
    step[chart.sigmas] = torch.linalg.solve(information, 0.5 * jac @ excess).clamp(-THETA_LIMIT, THETA_LIMIT)
    return _risen(problem, at, step)


def _risen(problem: Problem, at: Variational, step: Tensor) -> Variational:
    """The longest of ever shorter steps of the parameters alone that does not lower the bound."""
    for _ in range(HALVINGS):
        new = _bounded(problem, at.free + step, at.mean, at.factor)
        if bool(new.bound.sum() >= at.bound.sum()):
            return new
        step = 0.4 * step
    return at


def _tangent(function: Callable[[Tensor], Tensor], x: Tensor, along: Tensor) -> Tensor:
    tangent: Tensor = torch.func.jvp(function, (x,), (along,))[1]
    return tangent


def variational_em(
    problem: Problem,
    free: Tensor,
    *,
    iterations: int = 40,
    inner: int = 2,
    first: int = 8,
    tolerance: float = 0.02,
    report: Callable[[int, Variational], None] | None = None,
) -> Variational:
    """Alternate E- and M-steps until the total bound gains less than `tolerance` an iteration, twice in a row.

    Args:
        problem: the binding of page and data.
        free: start, `[P]`.
        iterations: at most.
        inner: E-steps an iteration; `first` before the first M-step.
        tolerance: in log likelihood units.
        report: called with the iteration and where it is.

    Raises:
        FitError: when the bound is not finite at the start.
    """
    return alternate(
        problem, free, _maximised, iterations, tolerance, patience=2, inner=inner, first=first, report=report
    )[1]


Step = Callable[["Problem", Variational], tuple["Problem", Variational, float]]
"""What follows the E-steps of an iteration: the problem, where it is, and the objective that is to gain."""


def alternate(
    problem: Problem,
    free: Tensor,
    step: Step,
    iterations: int,
    tolerance: float,
    *,
    patience: int,
    inner: int = 2,
    first: int = 8,
    report: Callable[[int, Variational], None] | None = None,
) -> tuple[Problem, Variational]:
    """E-steps and `step` in turns, until the objective gains less than `tolerance`, `patience` times in a row.

    Args:
        problem, free: where to start.
        step: what follows the E-steps.
        iterations: at most.
        tolerance: in log likelihood units.
        patience: iterations in a row.
        inner: E-steps an iteration; `first` before the first step.
        report: called with the iteration and where it is.

    Raises:
        FitError: when the bound is not finite at the start.
    """
    at = start_at(problem, free)
    _require_finite(problem, at)
    calm, previous = 0, -math.inf
    for k in range(iterations):
        for _ in range(first if k == 0 else inner):
            at = expectation_step(problem, at)
        problem, at, total = step(problem, at)
        if report is not None:
            report(k + 1, at)
        calm = calm + 1 if total - previous < tolerance else 0
        previous = total
        if calm == patience:
            break
    return problem, at


def maximised(problem: Problem, at: Variational) -> Variational:
    """The M-step in the chart that suits the present spread of the q."""
    variance = at.covariance.diagonal(dim1=-2, dim2=-1)
    return maximisation_step(problem, Chart.of(problem, problem.omega(at.free), variance), at)


def _maximised(problem: Problem, at: Variational) -> tuple[Problem, Variational, float]:
    at = maximised(problem, at)
    return problem, at, float(at.bound.sum())


def _require_finite(problem: Problem, at: Variational) -> None:
    """Raise a FitError that names the subjects whose bound is not finite."""
    lost = (~at.bound.isfinite()).nonzero().flatten()
    if not len(lost):
        return
    ids = [problem.population.ids[int(i)] for i in lost[:5]]
    raise FitError(
        f"the likelihood is not finite at the starting values for subjects {', '.join(ids)}; "
        "start closer to the data (model.with_values), or check their doses, times and units"
    )


def unmirrored(
    problem: Problem,
    free: Tensor,
    flip_flop: bool,
    report: Callable[[int, Variational], None] | None = None,
) -> tuple[Variational, list[str]]:
    """Variational EM from `free [P]`; where that begins or ends in flip-flop, from the mirror image.

    Args:
        problem: the binding of page and data.
        free: start.
        flip_flop: accept absorption slower than elimination.
        report: called with the iteration and where it is.

    Returns:
        The point, and a note where the start was mirrored.
    """

    def mirror_of(free: Tensor) -> Tensor | None:
        if flip_flop or not has_mirror(problem) or not absorbs_slowly(problem, free):
            return None
        return mirrored(problem, free)

    notes = []
    image = mirror_of(free)
    if image is not None:
        notes.append(
            "the start had absorption slower than elimination; the search began from its mirror image"
            " (flip_flop=True keeps such a start)"
        )
    at = variational_em(problem, free if image is None else image, report=report)
    image = mirror_of(at.free)
    if image is not None:
        other = variational_em(problem, image, report=report)
        if not absorbs_slowly(problem, other.free):
            at = other
    return at, notes
