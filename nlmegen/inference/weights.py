"""How predictions move with network weights, and what that says of the weights.

Around one eta a subject the model is taken as linear in x = (thetas, weights) and eta,

    f = f_0 + F dx + J d eta ,     W = 1/R + (R'/R)^2 / 2 ,     M = J' W J ,    C = J' W F .

Integrating eta out leaves the information of the data on x, and as x moves the etas are best carried along:

    information = F' W F - C' (M + Omega^-1)^-1 C ,        T = -(M + Omega^-1)^-1 C .

It is the metric of every search for weights: single weights are hardly determined, curvatures spread over many powers
of ten, and a gradient alone would crawl. F comes from differences of predictions, which serve a metric well enough.

The information splits into what F does within records and what it does as eta would, G = M^-1 C:

    information = F_p' W F_p + G' (Omega + M^-1)^-1 G ,      F_p = F - J G .

Its share in the second part counts the patients' random effects that the weights could take up (`absorbed`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError
from .density import score_and_weight, weigh

if TYPE_CHECKING:
    from ..model.likelihood import Curvature
    from ..model.problem import Problem

DIFFERENCE = 1e-3
"""Displacement of a weight, of order one by its scale, for differences of predictions."""

FLAT = 0.3
"""Curvature of log L added to that of each weight in a metric: directions that the data do not see keep still. (With
0.01 one start in six threw a hidden unit so far out that it never came back.)"""

ABSORBED = 0.15
"""Share of the patients' random effects taken up by weights from which a fit says so: omega_sd is then under by 8 %."""


def refuse_unused(problem: Problem) -> None:
    """Raise a ModelError when a network of the page moves no prediction, so that no data could teach it."""
    networks, weights = problem.model.networks, problem.weights
    if not networks.n_weights:
        return
    eta = 0.1 * torch.ones(problem.n_subjects, problem.q, dtype=torch.float64)
    values = problem.values(problem.start)
    with torch.no_grad():
        before = problem.predict(eta, values).f
        for name, net in networks.nets.items():
            moved = weights.detach().clone()
            moved[networks.offsets[name] :][: net.n_weights] += 0.1
            if torch.equal(problem.with_weights(moved).predict(eta, values).f, before):
                raise ModelError(
                    f"the network {name} is declared and moves no prediction, so no data can say what it is; call"
                    f" self.{name}(...) in a formula that matters, or remove it"
                )


@dataclass(frozen=True)
class Linear:
    """The model linearised in thetas, weights and eta.

    Attributes:
        thetas: indices of the free thetas in the free vector; they come first in x.
        by_x: F, `[subject, time, x]`.
        by_eta: J, `[subject, time, q]`.
        weight: W, zero where nothing was observed: its diagonal `[subject, time]`, or a `Curvature`.
        omega: covariance of eta `[q, q]`.
    """

    thetas: list[int]
    by_x: Tensor
    by_eta: Tensor
    weight: Tensor | Curvature
    omega: Tensor

    @classmethod
    @torch.no_grad()
    def at(cls, problem: Problem, free: Tensor, eta: Tensor) -> Linear:
        """The linearisation at `free [P]` and `eta [subject, q]`."""
        n_theta = problem.layout.n_theta
        thetas = [a for a, j in enumerate(problem.free_index.tolist()) if j < n_theta]
        values = problem.values(free)
        columns = []
        for a in thetas:
            move = torch.zeros_like(free)
            move[a] = DIFFERENCE * max(1.0, abs(float(free[a])))
            ahead, behind = (problem.predict(eta, problem.values(x)).f for x in (free + move, free - move))
            columns.append((ahead - behind) / (2.0 * move[a]))
        for k in range(len(problem.weights)):
            move = torch.zeros_like(problem.weights)
            move[k] = DIFFERENCE
            sides = (problem.with_weights(problem.weights + s * move) for s in (1.0, -1.0))
            ahead, behind = (side.predict(eta, values).f for side in sides)
            columns.append((ahead - behind) / (2.0 * DIFFERENCE))
        prediction = problem.predict(eta, values, 1 if problem.q else 0)
        jac = prediction.f.new_zeros(*prediction.f.shape, 0)
        if prediction.jac is not None:
            jac = prediction.jac.movedim(0, -1)
        weight = score_and_weight(problem, prediction.f, values)[1]
        by_x = torch.stack(columns, -1)
        seen = (by_x.isfinite().all(-1) & jac.isfinite().all(-1)).unsqueeze(-1)
        if isinstance(weight, Tensor):
            seen = seen & weight.isfinite().unsqueeze(-1)
            weight = torch.where(seen.squeeze(-1), weight, 0.0)
        return cls(thetas, torch.where(seen, by_x, 0.0), torch.where(seen, jac, 0.0), weight, values.omega)

    @property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(M, C, F'WF of each subject): `[subject, q, q]`, `[subject, q, x]`, `[subject, x, x]`."""
        weighted = weigh(self.weight, self.by_x).nan_to_num(0.0, 0.0, 0.0)
        m = self.by_eta.mT @ weigh(self.weight, self.by_eta).nan_to_num(0.0, 0.0, 0.0)
        return m, self.by_eta.mT @ weighted, self.by_x.mT @ weighted

    @property
    def carry(self) -> Tensor:
        """T, by how much a move of x carries each eta, `[subject, q, x]`."""
        m, c, _ = self._parts
        moved: Tensor = -torch.linalg.solve(m + torch.linalg.inv(self.omega), c)
        return moved

    @property
    def information(self) -> Tensor:
        """Information of the data on x, eta integrated out, `[x, x]`."""
        _, c, square = self._parts
        return (square + c.mT @ self.carry).sum(0)

    def absorbed(self, penalties: Tensor) -> Tensor:
        """Share of each random effect's variance between patients that the weights take up, `[q]`.

        With k of the N patients' random effects fitted by weights, as by k fixed effects, the maximum likelihood
        estimate of their variance is too small by a factor 1 - k / N, as always without a correction for degrees of
        freedom.

        Args:
            penalties: multipliers of the squared weights in -2 log L, `[W]`.
        """
        m, c, _ = self._parts
        n = len(self.thetas)
        identity = torch.eye(m.shape[-1], dtype=m.dtype)
        root = torch.linalg.cholesky(m + identity * (1e-9 * m.diagonal(dim1=-2, dim2=-1).amax() + 1e-300))
        shift = torch.cholesky_solve(c, root)[..., n:]
        precision = root @ torch.linalg.solve(identity + root.mT @ self.omega @ root, root.mT)
        ridge = torch.full((self.by_x.shape[-1],), 1e-6, dtype=m.dtype)
        ridge[n:] += penalties
        inverse = torch.linalg.inv(self.information + ridge.diag())[n:, n:]
        taken = (precision @ shift @ inverse @ shift.mT).diagonal(dim1=-2, dim2=-1).sum(0)
        known = precision.diagonal(dim1=-2, dim2=-1)
        patients = known.sum(0).square() / known.square().sum(0).clamp_min(1e-300)
        share: Tensor = taken / patients
        return share


def describe(problem: Problem, free: Tensor, eta: Tensor) -> list[str]:
    """What a fit has to say of its networks, in words; nothing where the page has none.

    Args:
        problem: at the weights of the fit.
        free: estimates `[P]`.
        eta: conditional modes or posterior means `[subject, q]`.
    """
    networks = problem.model.networks
    if not networks.n_weights:
        return []
    penalty = float(networks.penalty(problem.weights.detach()))
    words = [
        f"network {networks.describe()}; the standard errors of the parameters hold given these weights, which have"
        " none themselves",
    ]
    if penalty:
        words.append(
            f"the penalty on the weights is {penalty:.4g} at the estimates; it was added to -2 log L while estimating"
            " and is no part of the objective function or of any likelihood reported"
        )
    return words + _absorbing(problem, free, eta)


def _absorbing(problem: Problem, free: Tensor, eta: Tensor) -> list[str]:
    """A warning for every random effect that the weights can take up."""
    if not problem.q:
        return []
    share = Linear.at(problem, free, eta).absorbed(problem.model.networks.penalties)
    fixed = [name for block in problem.layout.omegas.values() if block.fixed for name in block.names]
    words = []
    for name, part in zip(problem.eta_names, share.tolist(), strict=True):
        if name in fixed or not part > ABSORBED:
            continue
        count = min(part, 1.0) * problem.n_subjects
        words.append(
            f"the networks can absorb random effects: their weights fit eta.{name} as {count:.0f} free numbers would,"
            f" of {problem.n_subjects} patients, so that omega.{name} is estimated too small (by about"
            f" {min(part, 1.0):.0%} or more) and predictions for new patients are too sure; give the networks fewer"
            " inputs or weights, a larger penalty, or more patients"
        )
    return words
