"""A patient's linearised posterior: damped Gauss-Newton steps on whitened etas, all patients at once.

With eta = L e, Omega = L L', the log joint of e has gradient and expected information

    g = A' s - D e,        H = A' W A + D,        A = J L,
    s = d log p(y | f) / df,      W = 1/R + (R'/R)^2 / 2,

D the prior precision of e (the identity, unless a simulated patient came from a wider or narrower population).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
        f: prediction there, `[subject, time]`.
        variance: residual variance R, `[subject, time]`.
        slope: dR/df, `[subject, time]`.
        design: A = J L, `[subject, time, q]`.
        mean: the Gauss-Newton step's end, `[subject, q]`.
        factor: lower triangular, factor factor' = H^-1, `[subject, q, q]`.
    """

    e: Tensor
    f: Tensor
    variance: Tensor
    slope: Tensor
    design: Tensor
    mean: Tensor
    factor: Tensor


def gaussian_score(residual: Tensor, variance: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Score s = d log p / df and expected information W of Gaussian observations whose variance depends on f."""
    inverse = 1.0 / variance
    scaled = slope * inverse
    score = residual * inverse + 0.5 * scaled * (residual * residual * inverse - 1.0)
    return score, (inverse + 0.5 * scaled * scaled).expand_as(score)


def linearise(
    problem: Problem,
    values: Values,
    y: Tensor,
    mask: Tensor,
    *,
    steps: int,
    spread: Tensor | None = None,
    noise: Tensor | None = None,
) -> Linearised:
    """Gauss-Newton from e = 0, `steps` times, then the linearisation at the point reached.

    Args:
        problem: the patients' designs.
        values: parameters.
        y: observations on the scale of the residual model, `[subject, time]`.
        mask: 1 for an observation, 0 for padding or a sample left out, `[subject, time]`.
        steps: moves before the last linearisation; 0 linearises at e = 0.
        spread: prior SD of e, `[subject, q]`; ones if None.
        noise: factor on the residual SD, `[subject, 1]`; ones if None.
    """
    factor = values.factor
    n, q = y.shape[0], factor.shape[-1]
    e = torch.zeros(n, q, dtype=y.dtype)
    precision = torch.ones_like(e) if spread is None else spread**-2
    square = 1.0 if noise is None else noise * noise
    while True:
        prediction = problem.predict(e @ factor.mT, values, order=1)
        assert prediction.jac is not None
        f = prediction.f
        variance, slope, _ = problem.variance(f, values)
        variance, slope = (variance * square).expand_as(f), (slope * square).expand_as(f)
        design = prediction.jac.movedim(0, -1) @ factor
        score, weight = gaussian_score(y - f, variance, slope)
        lost = ~(score.isfinite() & weight.isfinite() & design.isfinite().all(-1))
        if bool(lost.any()):  # a wild patient: what cannot be predicted says nothing
            score, weight = score.masked_fill(lost, 0.0), weight.masked_fill(lost, 0.0)
            design = design.masked_fill(lost.unsqueeze(-1), 0.0)
        pull = design.mT @ (score * mask).unsqueeze(-1)
        information = design.mT @ (design * (weight * mask).unsqueeze(-1)) + torch.diag_embed(precision)
        root = torch.linalg.cholesky(information)
        move = torch.cholesky_solve(pull - (precision * e).unsqueeze(-1), root).squeeze(-1)
        mean = e + move * (STEP_LIMIT / move.abs().amax(-1, keepdim=True).clamp_min(STEP_LIMIT))
        if steps == 0:
            inverse = torch.cholesky_inverse(root)
            return Linearised(e, f, variance, slope, design, mean, torch.linalg.cholesky(inverse))
        e, steps = mean, steps - 1
