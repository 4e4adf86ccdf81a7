"""First-order conditional estimation: the FOCEI and FOCE objective functions and their exact gradients.

The integral over eta of each subject is approximated at its conditional mode (see `ebe`; eta = L z, Omega = L L'):

    O_i = 2 l_i(z*) + log det K_i ,    K = I + J' W J ,    J = df/dz ,    W = 1/R + (R'/R)^2 / 2

and sum_i O_i = -2 log L - n_obs log 2 pi is NONMEM's objective function (first-order conditional estimation with
interaction; log det K is its log det Omega + log det(J' W J + Omega^-1)). FOCE, without interaction, takes the
residual variance R at eta = 0 in all of this, so that R' = 0 and W = 1/R(f(0)): it no longer moves with z, but with the
parameters.

The modes move with the parameters psi. With w = d log det K / dz and u = H^-1 w, where H is the exact Hessian of l at
the mode, implicit differentiation gives each subject's total derivative

    d O_i / d psi = partial O_i / partial psi - u' partial^2 l_i / partial z partial psi

whose right side is one reverse pass through a first-order Taylor prediction in which every subject has its own copy of
the parameters (the same pass gives the derivative of the sum in network weights, which all share): the cotangents of f,
J, R and R' are written out below, so reverse mode sees the page alone. The error of this gradient is first order in the
error of the mode, which is why the modes are so tight.

Where the page gives residuals a size of their own, or correlates them, J and W belong to the rows of a prediction and
J' W J is NONMEM's J_f' R^-1 J_f + 1/2 tr(R^-1 R_i R^-1 R_j); the derivatives then come by reverse mode alone (see
`carried`).

See Almquist, Leander & Jirstrand, J Pharmacokinet Pharmacodyn 42:191-209 (2015), doi:10.1007/s10928-015-9409-1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..maths.newton import Minimum
from ..model.parameters import Values
from ..model.problem import Problem
from . import machine
from .carried import carried
from .ebe import Conditional, ConditionalExpansion, Terms, find_modes, predict_along
from .objective import Evaluation, Objective, Request, by_subject, copied


class FOCEIObjective(Objective):
    """First-order conditional estimation with interaction."""

    source = "focei"
    learns: ClassVar[bool] = True

    def density(self, problem: Problem, values: Values) -> Conditional:
        """The conditional densities whose modes are taken."""
        return Conditional.of(problem, values)

    def residual(self, problem: Problem, f: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """R and R' at the prediction `f`, as functions of the parameters at fixed f."""
        variance, slope, _ = problem.variance(f.detach(), values)
        return variance.expand(f.shape), slope.expand(f.shape)

    def evaluate(self, problem: Problem, free: Tensor, eta: Tensor, ask: Request) -> Evaluation:
        """See `Objective`."""
        with torch.no_grad():
            density = self.density(problem, problem.values(free))
            found = find_modes(density, eta, near=ask.near, tolerance=ask.tolerance)
            at = found.expansion
            root, _ = torch.linalg.cholesky_ex(at.information)
            objective = 2 * (at.value + root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - problem.log_jacobian)
            objective = torch.where(torch.isfinite(objective), objective, torch.inf)
            hessian = torch.where(found.indefinite[..., None, None], at.information, at.hessian)
            hessian_root, _ = torch.linalg.cholesky_ex(hessian)
        score = pull = None
        if ask.scores and problem.plain:
            score, pull = self.scores(problem, free, at, root, hessian_root, ask.weights)
        elif ask.scores:
            score, pull = self._reversed(problem, free, found, root, ask.weights)
        return Evaluation(
            objective,
            score,
            at.eta,
            at.value,
            found.converged,
            found.indefinite,
            at.factor.expand_as(hessian_root),
            hessian_root,
            pull,
        )

    def scores(
        self,
        problem: Problem,
        free: Tensor,
        at: ConditionalExpansion,
        root: Tensor,
        hessian_root: Tensor,
        weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """d O_i / d free `[draw, subject, free]` by one reverse pass with a copy of the parameters for every subject.

        The network weights have no copies: the same pass returns the derivative of the sum over subjects, `[1, W]`,
        when asked for.
        """
        quick = None if weights else machine.scores(problem, free, at, self.scores)
        if quick is not None:
            return quick, None
        copies = copied(free, at.z.shape[-2])
        leaves = [copies]
        if weights:
            leaves.append(problem.weights.detach().clone().requires_grad_())
            problem = problem.with_weights(leaves[1])
        with torch.enable_grad():
            values = by_subject(problem, copies)
            eta = torch.matmul(values.factor, at.z.unsqueeze(-1)).squeeze(-1)
            prediction = predict_along(problem, eta, values, values.factor, 1)
            variance, slope = self.residual(problem, prediction.f, values)
        with torch.no_grad():
            pairs = _cotangents(at, root, hessian_root)
        outputs = {"f": prediction.f, "jac": prediction.jac, "variance": variance, "slope": slope}
        used = [(x, pairs[k]) for k, x in outputs.items() if k in pairs and x is not None and x.requires_grad]
        if not used:
            return torch.zeros_like(copies), torch.zeros_like(leaves[1])[None] if weights else None
        tensors, cotangents = zip(*used, strict=True)
        found = torch.autograd.grad(tensors, leaves, cotangents, allow_unused=True, materialize_grads=True)
        return found[0], found[1][None] if weights else None

    def held(self, problem: Problem, values: Values) -> Tensor | None:
        """Residual variances that do not move with the modes."""
        return None

    def _reversed(
        self,
        problem: Problem,
        free: Tensor,
        found: Minimum[ConditionalExpansion],
        root: Tensor,
        weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """`scores` of observations of any kind, by reverse mode through their density."""
        leaves = [copied(free, found.x.shape[-2])]
        if weights:
            leaves.append(problem.weights.detach().clone().requires_grad_())
            problem = problem.with_weights(leaves[1])
        every = torch.ones_like(found.indefinite)
        by_scale = torch.cholesky_inverse(root)
        score, *pull = carried(problem, leaves, found, every, 0.0, by_scale, 2.0, self.held)
        return score, pull[0][None] if weights else None


class FOCEObjective(FOCEIObjective):
    """First-order conditional estimation without interaction: R is that at eta = 0."""

    source = "foce"

    def density(self, problem: Problem, values: Values) -> Conditional:
        """See `FOCEIObjective`."""
        return Conditional.of(problem, values, held=self.held(problem, values))

    def held(self, problem: Problem, values: Values) -> Tensor | None:
        """See `FOCEIObjective`: R at eta = 0."""
        return at_zero(problem, values)

    def residual(self, problem: Problem, f: Tensor, values: Values) -> tuple[Tensor, Tensor]:
        """R at eta = 0, as a function of the parameters; R' = 0."""
        variance = at_zero(problem, values)
        return variance, torch.zeros((), dtype=f.dtype, device=f.device)


def at_zero(problem: Problem, values: Values) -> Tensor:
    """The residual variance at eta = 0, `[draw, subject, time]`, at values of `[draw, P]` or `[draw, subject, P]`."""
    eta = values.factor.new_zeros(values.factor.shape[0], problem.n_subjects, problem.q)
    f = problem.predict(eta, values).f[..., : problem.y.shape[-1]]
    return problem.variance(f, values)[0].expand(f.shape)


def _cotangents(at: ConditionalExpansion, root: Tensor, hessian_root: Tensor) -> dict[str, Tensor]:
    """Partial derivatives of O_i - u' dl_i/dz (u held) in f, J, R and R'."""
    terms = at.terms
    assert isinstance(terms, Terms)
    e, r, scaled, relative = terms.residual, terms.inverse, terms.scaled, terms.relative
    square = scaled * e
    explained = torch.zeros_like(e)  # a' K^-1 a, for the column a of J at one time
    across = torch.zeros_like(e)  # u' a
    out: dict[str, Tensor] = {}
    if at.jac is not None and at.hess is not None:
        solved = torch.cholesky_solve(at.jac, root)
        explained = (solved * at.jac).sum(-2)
        turned = relative * (terms.bend * r - relative**2) - terms.slope * r**2  # dW/df
        bent = (at.hess * solved.movedim(-2, 0)).sum(1).movedim(0, -2)
        pull = torch.matmul(at.jac, (turned * explained).unsqueeze(-1))
        pull = pull + 2 * torch.matmul(bent, terms.weight.unsqueeze(-1))
        u = torch.cholesky_solve(pull, hessian_root)
        across = torch.matmul(u.mT, at.jac).squeeze(-2)
        jac = 2 * terms.weight.unsqueeze(-2) * solved - u * terms.first.unsqueeze(-2)
        out["jac"] = jac.movedim(-2, 0)
    first_r = r * (scaled * (1 + e * relative) - 0.5 * relative)  # d phi' / dR
    first_s = 0.5 * r * (1 - square)  # d phi' / dR'
    weight_r = -(r**2) - relative**2 * r
    weight_s = relative * r
    out["variance"] = r * (1 - square) + weight_r * explained - across * first_r
    out["slope"] = weight_s * explained - across * first_s
    direct = -2 * scaled - across * (r + scaled * relative)
    out["f"] = direct + terms.slope * out["variance"] + terms.bend * out["slope"]
    return out
