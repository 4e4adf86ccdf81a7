"""A patient's linearised posterior: damped Gauss-Newton steps on whitened etas, all patients at once.

With eta = L e, Omega = L L', the log joint of e has gradient and expected information

    g = A' s - D e,        H = A' W A + D,        A = J L,
    s = d log p(y | f) / df,      W its expected information (`density`; 1/R + (R'/R)^2 / 2 where y is Gaussian),

D the prior precision of e (the identity, unless a simulated patient came from a wider or narrower population).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .density import gaussian_score, measured_information, score_and_weight, weigh

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem

STEP_LIMIT = 1.0
"""Largest move of a whitened eta in one step: one prior SD."""


@dataclass(frozen=True)
class Linearised:
    """The model of N patients linearised at e.

    Args:
        e: whitened etas, `[subject, q]`.
        f: prediction there, `[subject, row]`.
        variance: residual variance R, `[subject, row]`; the reciprocal of W where it is not the Gaussian's.
        slope: dR/df, `[subject, row]`; zero where it is not the Gaussian's.
        design: A = J L, `[subject, row, q]`.
        mean: the Gauss-Newton step's end, `[subject, q]`.
        factor: lower triangular, factor factor' = H^-1, `[subject, q, q]`.
        score: s, `[subject, row]`; None where residuals say it, on a Gaussian page.
    """

    e: Tensor
    f: Tensor
    variance: Tensor
    slope: Tensor
    design: Tensor
    mean: Tensor
    factor: Tensor
    score: Tensor | None = None


def linearise(
    problem: Problem,
    values: Values,
    y: Tensor,
    mask: Tensor,
    *,
    steps: int,
    spread: Tensor | None = None,
    noise: Tensor | None = None,
    general: bool | None = None,
) -> Linearised:
    """Gauss-Newton from e = 0, `steps` times, then the linearisation at the point reached.

    Args:
        problem: the patients' designs.
        values: parameters.
        y: observations on the scale of the residual model, `[subject, time]`; those of the problem where it is not
            Gaussian.
        mask: 1 for an observation, 0 for padding or a sample left out, `[subject, time]`; likewise.
        steps: moves before the last linearisation; 0 linearises at e = 0.
        spread: prior SD of e, `[subject, q]`; ones if None.
        noise: factor on the residual SD, `[subject, 1]`; ones if None. (Of a page that is not Gaussian the values say
            it.)
        general: tell of the observations by their scores, as of any density; unless given, where they are not Gaussian.
    """
    factor = values.factor
    n, q = y.shape[0], factor.shape[-1]
    e = torch.zeros(n, q, dtype=y.dtype)
    precision = torch.ones_like(e) if spread is None else spread**-2
    gaussian = problem.plain if general is None else not general
    while True:
        prediction = problem.predict(e @ factor.mT, values, order=1)
        assert prediction.jac is not None
        design = prediction.jac.movedim(0, -1) @ factor
        if gaussian:
            at = _gaussian(problem, values, prediction.f, design, y, mask, noise)
        else:
            at = _general(problem, values, prediction.f, design)
        root = torch.linalg.cholesky(at.information + torch.diag_embed(precision))
        move = torch.cholesky_solve(at.pull - (precision * e).unsqueeze(-1), root).squeeze(-1)
        mean = e + move * (STEP_LIMIT / move.abs().amax(-1, keepdim=True).clamp_min(STEP_LIMIT))
        if steps == 0:
            inverse = torch.cholesky_inverse(root)
            return Linearised(
                e,
                prediction.f,
                at.variance,
                at.slope,
                at.design,
                mean,
                torch.linalg.cholesky(inverse),
                at.score,
            )
        e, steps = mean, steps - 1


@dataclass(frozen=True)
class _Seen:
    """What the data say at one e: A' s `[subject, q, 1]`, A' W A `[subject, q, q]`, and parts of a `Linearised`."""

    pull: Tensor
    information: Tensor
    design: Tensor
    variance: Tensor
    slope: Tensor
    score: Tensor | None = None


def _gaussian(
    problem: Problem, values: Values, f: Tensor, design: Tensor, y: Tensor, mask: Tensor, noise: Tensor | None
) -> _Seen:
    square = 1.0 if noise is None else noise * noise
    variance, slope, _ = problem.variance(f, values)
    variance, slope = (variance * square).expand_as(f), (slope * square).expand_as(f)
    score, weight = gaussian_score(y - f, variance, slope)
    lost = ~(score.isfinite() & weight.isfinite() & design.isfinite().all(-1))
    if bool(lost.any()):  # a wild patient: what cannot be predicted says nothing
        score, weight = score.masked_fill(lost, 0.0), weight.masked_fill(lost, 0.0)
        design = design.masked_fill(lost.unsqueeze(-1), 0.0)
    pull = design.mT @ (score * mask).unsqueeze(-1)
    information = design.mT @ (design * (weight * mask).unsqueeze(-1))
    return _Seen(pull, information, design, variance, slope)


def _general(problem: Problem, values: Values, f: Tensor, design: Tensor) -> _Seen:
    score, weight = score_and_weight(problem, f, values)
    lost = ~(score.isfinite() & design.isfinite().all(-1))
    score, design = score.masked_fill(lost, 0.0), design.masked_fill(lost.unsqueeze(-1), 0.0)
    information = (design.mT @ weigh(weight, design)).nan_to_num(0.0, 0.0, 0.0)
    nothing = torch.zeros_like(score)
    variance = 1.0 / measured_information(problem, f, values)
    return _Seen(design.mT @ score.unsqueeze(-1), information, design, variance, nothing, score)
