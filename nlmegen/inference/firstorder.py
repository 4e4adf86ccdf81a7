"""The FO objective function: the model linearised in eta at eta = 0, and its exact gradient.

With f and J = df/dz at eta = 0 (eta = L z, Omega = L L') and R = R(f), the observations of a subject are taken to be

    y ~ N( f, V ) ,    V = J' J + diag R ,    O_i = (y - f)' V^-1 (y - f) + log det V ,

here with one column of J an observation. The matrices are no larger than eta: with K = I + J R^-1 J' and
b = J R^-1 (y - f),

    (y - f)' V^-1 (y - f) = sum (y - f)^2 / R - b' K^-1 b ,     log det V = sum log R + log det K .

There are no conditional modes in it; those reported are found at the estimates afterwards (NONMEM's POSTHOC).

See Beal & Sheiner, Crit Rev Biomed Eng 8:195-222 (1982).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..model.parameters import Values
from ..model.problem import LOG_2PI, Prediction, Problem
from .conditional import FOCEObjective
from .ebe import predict_along
from .objective import Evaluation, Objective, Request, by_subject, copied


class FOObjective(Objective):
    """The first-order approximation."""

    source = "fo"
    conditional: ClassVar[bool] = False

    @property
    def modal(self) -> Objective:
        """The modes reported are those of FOCE: R stays that of eta = 0, as in NONMEM's POSTHOC."""
        return FOCEObjective(self.problem)

    @property
    def share(self) -> int:
        """See `Objective`; there are no second derivatives."""
        return self.problem.y.shape[-1] * max(self.problem.q, 1)

    def evaluate(self, problem: Problem, free: Tensor, eta: Tensor, ask: Request) -> Evaluation:
        """See `Objective`; all modes are zero."""
        copies = copied(free, problem.n_subjects)
        with torch.set_grad_enabled(ask.scores):
            values = by_subject(problem, copies)
            squares, log_det, root = _normal(problem, values)
            objective = squares + log_det - 2 * problem.log_jacobian
        score = None
        if ask.scores:
            (score,) = torch.autograd.grad(objective.sum(), copies, allow_unused=True, materialize_grads=True)
        objective = objective.detach()
        objective = torch.where(torch.isfinite(objective), objective, torch.inf)
        yes = torch.ones_like(objective, dtype=torch.bool)
        factor = values.factor.detach()
        return Evaluation(
            objective, score, torch.zeros_like(eta), 0.5 * objective, yes, ~yes, factor, root.detach()
        )

    def tension(self, free: Tensor, evaluation: Evaluation) -> float:
        """Squared standardised residuals (y - f)' V^-1 (y - f), summed, for each observation: about 1 at the truth."""
        with torch.no_grad():
            values = by_subject(self.problem, copied(free[None], self.problem.n_subjects))
            squares, _, _ = _normal(self.problem, values)
        return float(squares.sum()) / max(float(self.problem.mask.sum()), 1.0)


def _normal(problem: Problem, values: Values) -> tuple[Tensor, Tensor, Tensor]:
    """(y - f)' V^-1 (y - f) and log det V `[draw, subject]`, and the Cholesky factor of K `[draw, subject, q, q]`."""
    eta = values.factor.detach().new_zeros(values.factor.shape[:-1])
    prediction = predict_along(problem, eta, values, values.factor, 1)
    f = prediction.f
    variance = problem.variance(f, values)[0].expand(f.shape)
    off = (problem.y - f) * problem.mask
    if not problem.plain:
        return _correlated(problem, values, prediction, variance, off)
    squares, log_det = (off**2 / variance).sum(-1), variance.log().sum(-1)
    identity = torch.eye(problem.q, dtype=f.dtype, device=f.device).expand(*eta.shape, problem.q)
    if prediction.jac is None:
        return squares, log_det, identity
    jac = prediction.jac.movedim(0, -2)
    weighted = jac / variance.unsqueeze(-2)
    root, _ = torch.linalg.cholesky_ex(identity + torch.matmul(weighted, jac.mT))
    pulled = torch.matmul(weighted, off.unsqueeze(-1))
    half = torch.linalg.solve_triangular(root, pulled, upper=False)
    squares = squares - (half * half).sum((-2, -1))
    return squares, log_det + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1), root


def _correlated(
    problem: Problem, values: Values, prediction: Prediction, variance: Tensor, off: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with correlated residuals: R^-1 is the weight of a density whose variances are held."""
    at = problem.local(prediction.f, values, held=variance)
    squares = (at.score * off).sum(-1)
    log_det = -2 * at.log_p.sum(-1) - LOG_2PI * problem.gaussian.to(off.dtype).sum(-1) - squares
    if prediction.jac is None:
        return squares, log_det, torch.eye(0, dtype=off.dtype).expand(*off.shape[:-1], 0, 0)
    jac = prediction.jac.movedim(0, -2)
    identity = torch.eye(problem.q, dtype=off.dtype)
    root, _ = torch.linalg.cholesky_ex(identity + torch.matmul(at.weight.times(jac), jac.mT))
    half = torch.linalg.solve_triangular(root, torch.matmul(jac, at.score.unsqueeze(-1)), upper=False)
    squares = squares - (half * half).sum((-2, -1))
    return squares, log_det + 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1), root
