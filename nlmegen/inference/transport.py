"""How draws of eta move when a fixed effect moves, so that their weights hardly change.

Fixed draws are good for the parameters at which they were drawn. When free parameter a moves by d, each subject's draws
are carried along, eta + T_a d, with T_a a constant of the subject: a translation, which preserves volume, so the
density under q of a carried draw is that of the draw and the weights stay exact.

    mu-referenced pair (a, k):   T_a = -1 in eta k       phi = mu + eta stays put, and so does the prediction
    any other theta:             T_a = -(J' W J + Omega^-1)^-1 J' W J_a      the shift of the linearised posterior
                                 (and any theta whose own eta the data hardly see: as omega -> 0, T -> 0)
    omega and sigma:             T_a = 0

Where the data say next to nothing of a whitened effect z_j, eta = L z and Omega = L L' (its random effect hardly
varies, or is a combination of others), draws that stay put make noise of every change in its block of Omega. They then
follow L, eta = L(free) z, a linear map whose determinant joins the density, and its thetas are carried like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..model.problem import Directions
from .density import is_deviation, score_and_weight, weigh

if TYPE_CHECKING:
    from ..model.parameters import Values
    from ..model.problem import Problem

LOOSE, LIMP = 0.8, 0.9
"""An eta whose posterior variance is on average more than the first share of its prior variance is loose; a whitened
effect limp from the second on."""


@dataclass(frozen=True)
class Chart:
    """Which free parameter is what.

    Args:
        problem: the binding of page and data.
        loose: etas of which the data say little; a theta paired with one of them is carried like any other, because
            holding phi = mu + eta while mu moves would cost the prior what the data do not repay.
        limp: etas whose block of Omega has a whitened effect of which the data say next to nothing: draws follow L.
    """

    problem: Problem
    loose: frozenset[int] = frozenset()
    limp: frozenset[int] = frozenset()

    @classmethod
    def of(cls, problem: Problem, omega: Tensor, variance: Tensor) -> Chart:
        """The chart that suits posterior variances of eta `variance [subject, q]` under the prior `omega [q, q]`."""
        share = problem.levels.mean(variance / omega.diagonal())[problem.levels.row]
        return cls(problem, frozenset(k for k, x in enumerate(share.tolist()) if not x < LOOSE))

    @classmethod
    def of_draws(cls, problem: Problem, factor: Tensor, eta: Tensor, weights: Tensor) -> Chart:
        """The chart that suits draws `eta [draw, group, subject, q]` under the factor L of the prior's covariance.

        Args:
            problem: the binding of page and data.
            factor: L, `[q, q]`.
            eta: draws; weights: `[draw, group, subject]`, each subject's summing to one.
        """
        off = eta - (weights.unsqueeze(-1) * eta).sum((0, 1))
        white = torch.einsum("ij,...j->...i", torch.linalg.inv(factor), off)
        own, share = ((weights.unsqueeze(-1) * x * x).sum((0, 1)) for x in (off, white))
        levels = problem.levels
        chart, share = cls.of(problem, factor @ factor.mT, own), levels.mean(share)[levels.row]
        limp = {k for k, x in enumerate(share.tolist()) if not x < LIMP}
        for _ in range(problem.q):  # the whole of their blocks
            limp |= {x for _, i, j in levels.places if {i, j} & limp for x in (i, j)}
        return cls(problem, chart.loose | limp, frozenset(limp))

    @cached_property
    def paired(self) -> dict[int, int]:
        """Free index -> eta index of the mu-referenced thetas that hold phi (the first eta of several)."""
        pairs: dict[int, int] = {}
        for a, k in self.problem.mu_pairs:
            if k not in self.loose:
                pairs.setdefault(a, k)
        return pairs

    @cached_property
    def others(self) -> list[int]:
        """Free indices of all other thetas."""
        n = self.problem.layout.n_theta
        return [a for a, j in enumerate(self.problem.free_index.tolist()) if j < n and a not in self.paired]

    @cached_property
    def sigmas(self) -> list[int]:
        """Free indices of the residual parameters."""
        layout = self.problem.layout
        first = len(layout.names) - len(layout.sigma_names)
        return [a for a, j in enumerate(self.problem.free_index.tolist()) if j >= first]

    @cached_property
    def deviations(self) -> list[int]:
        """Free indices of the residual parameters that are standard deviations."""
        return [a for a in self.sigmas if is_deviation(self.problem, self.problem.names[a])]

    def with_omega(self, free: Tensor, covariance: Tensor) -> Tensor:
        """`free` with its Omega replaced by the structure's part of the page's `covariance [q, q]` (see
        `Levels.pooled`); fixed blocks stay.
        """
        problem, layout = self.problem, self.problem.layout
        part = torch.eye(len(layout.effect_names), dtype=torch.float64)
        for i, j in layout.positions:
            part[i, j] = part[j, i] = covariance[i, j]
        full = problem.full(free).clone()
        n = layout.n_theta
        full[n : n + len(layout.positions)] = layout.chart.vector(part)
        return full[problem.free_index]

    @cached_property
    def entries(self) -> list[tuple[int, int, int]]:
        """Free index, row and column of each free entry of the factor of the page's Omega."""
        n, positions = self.problem.layout.n_theta, self.problem.layout.positions
        places = enumerate(self.problem.free_index.tolist())
        return [(a, *positions[j - n]) for a, j in places if n <= j < n + len(positions)]

    @cached_property
    def spreads(self) -> list[tuple[int, int, int]]:
        """The same of the factor L of the problem's Omega: an entry between occasions comes once for each of them."""
        n = self.problem.layout.n_theta
        free = {j - n: a for a, j in enumerate(self.problem.free_index.tolist())}
        return [(free[entry], i, j) for entry, i, j in self.problem.levels.places if entry in free]

    @cached_property
    def followed(self) -> list[tuple[int, int, int]]:
        """Those of `spreads` that the draws follow."""
        return [(a, i, j) for a, i, j in self.spreads if j in self.limp]

    @cached_property
    def linearised(self) -> list[int]:
        """Free indices along which predictions are linearised: the other thetas, then the factors that draws follow."""
        return [*self.others, *(a for a, _, _ in self.followed)]

    def omega_and_slope(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """Omega `[q, q]` and its derivative in the free parameters `[q, q, P]`: dL L' + L dL'."""
        factor = self.problem.values(free).factor
        slope = torch.zeros(len(free), *factor.shape, dtype=factor.dtype)
        for a, i, j in self.spreads:
            column = factor[:, j] * (factor[i, i] if i == j else 1.0)
            slope[a, i] += column
            slope[a, :, i] += column
        return factor @ factor.mT, slope.movedim(0, -1)

    def directions(self, free: Tensor, eta: Tensor) -> Directions:
        """A direction for each of `others`: the theta moves with its free parameter, the etas by `eta`; in any further
        directions the etas alone.

        Args:
            free: where, `[P]`.
            eta: motion of the etas, `[direction, ..., subject, q]`, broadcastable to the draws.
        """
        layout = self.problem.layout
        full = self.problem.full(free)
        theta: dict[str, Tensor] = {}
        for d, a in enumerate(self.others):
            j = int(self.problem.free_index[a])
            unit = torch.zeros(len(eta), dtype=torch.float64)
            unit[d] = layout.bijections[j].slope(full[j])
            theta[layout.theta_names[j]] = unit.reshape(-1, 1, 1)
        return Directions(eta, theta)

    def transport(self, free: Tensor, values: Values, centre: Tensor) -> Tensor:
        """T at the etas `centre [subject, q]`: `[subject, q, P]`."""
        problem = self.problem
        n, q = centre.shape
        moves = torch.zeros(n, q, problem.P, dtype=torch.float64)
        for a, k in self.paired.items():
            moves[:, k, a] = -1.0
        if not self.others:
            return moves
        still = torch.zeros(len(self.others), 1, q, dtype=torch.float64)
        by_theta = problem.predict(centre, values, 1, self.directions(free, still)).jac
        prediction = problem.predict(centre, values, 1)
        assert by_theta is not None
        assert prediction.jac is not None
        weight = score_and_weight(problem, prediction.f, values)[1]
        jac = prediction.jac.movedim(0, -1)
        precision = torch.cholesky_inverse(values.factor)
        information = jac.mT @ weigh(weight, jac) + precision
        pull = jac.mT @ weigh(weight, by_theta.movedim(0, -1))
        moves[:, :, self.others] = -torch.linalg.solve(information, pull)
        return moves
