"""Coordinates in which one parameter of interest is a coordinate of its own, so that it can be held.

On the free scale thetas, residual standard deviations and the variances of independent random effects are that already.
Entries of a full block of Omega = L L' are not: with L's rows L_i,

    omega_ii = |L_i|^2 :        row i becomes log |L_i| and the arsinh of L_ij / L_ii  (j < i)
    omega_ij = L_i . L_j :      L_ij becomes omega_ij itself  (j < i)

and the other coordinates stay. Every vector of coordinates is a covariance matrix, so nothing bounds the search; the
arsinh grows like a logarithm where a correlation goes to one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..inference.objective import Evaluation, Objective, Request
from ..inference.starts import logarithmic
from ..model.problem import Problem


class Chart:
    """Coordinates for the parameter `index` of a problem.

    Args:
        problem: the binding of page and data.
        index: of the parameter in every free vector.

    Attributes:
        plain: whether these coordinates are the free scale.
        logarithmic: which coordinates live on a log-like scale, `[P]` bool.
    """

    def __init__(self, problem: Problem, index: int) -> None:
        self.problem, self.index = problem, index
        self.logarithmic = logarithmic(problem)
        layout = problem.layout
        position = dict(zip(layout.omega_names, layout.positions, strict=True)).get(problem.names[index])
        place = {
            where: problem.names.index(name)
            for name, where in zip(layout.omega_names, layout.positions, strict=True)
            if name in problem.names
        }
        self.row: list[int] = []
        self.inner: list[tuple[int, int]] = []
        self.pivot = -1
        if position is not None and position[0] == position[1]:
            i = position[0]
            self.row = [place[i, j] for j in range(i) if (i, j) in place]
        elif position is not None:
            i, j = position
            self.pivot = place[j, j]
            self.inner = [(place[i, k], place[j, k]) for k in range(j) if (i, k) in place]
        self.plain = not self.row and self.pivot < 0
        self.logarithmic[self.row] = True

    def free(self, x: Tensor) -> Tensor:
        """The free vector `[*b, P]` of coordinates `x [*b, P]`."""
        if self.plain:
            return x
        columns = list(x.unbind(-1))
        k = self.index
        if self.row:
            ratios = torch.sinh(x[..., self.row])
            columns[k] = x[..., k] - 0.5 * torch.log1p((ratios**2).sum(-1))
            for place, j in enumerate(self.row):
                columns[j] = ratios[..., place] * columns[k].exp()
        else:
            rest = sum((x[..., a] * x[..., b] for a, b in self.inner), torch.zeros_like(x[..., 0]))
            columns[k] = (x[..., k] - rest) * torch.exp(-x[..., self.pivot])
        return torch.stack(columns, -1)

    def coordinates(self, free: Tensor) -> Tensor:
        """The coordinates of a free vector `[*b, P]`."""
        if self.plain:
            return free
        columns = list(free.unbind(-1))
        k = self.index
        if self.row:
            ratios = free[..., self.row] * torch.exp(-free[..., k, None])
            columns[k] = free[..., k] + 0.5 * torch.log1p((ratios**2).sum(-1))
            for place, j in enumerate(self.row):
                columns[j] = torch.asinh(ratios[..., place])
        else:
            rest = sum((free[..., a] * free[..., b] for a, b in self.inner), torch.zeros_like(free[..., 0]))
            columns[k] = free[..., k] * free[..., self.pivot].exp() + rest
        return torch.stack(columns, -1)

    def slopes(self, x: Tensor) -> Tensor:
        """d free / d x `[*b, P, P]`."""
        if self.plain:
            return torch.eye(x.shape[-1], dtype=x.dtype).expand(*x.shape, x.shape[-1])
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            total = self.free(leaf).reshape(-1, x.shape[-1]).sum(0)
            rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in total]
        return torch.stack(rows, -2)


class Charted(Objective):
    """An objective as a function of the coordinates of a chart.

    Args:
        inner: the objective of free vectors.
        chart: from coordinates to these.
    """

    def __init__(self, inner: Objective, chart: Chart) -> None:
        self.inner, self.chart, self.problem = inner, chart, inner.problem

    @property
    def cost(self) -> int:
        """See `Objective`."""
        return self.inner.cost

    def evaluate(self, problem: Problem, free: Tensor, eta: Tensor, ask: Request) -> Evaluation:
        """Of one piece of the subjects, see `Objective`; `free` are coordinates."""
        return self._turned(free, self.inner.evaluate(problem, self.chart.free(free), eta, ask))

    def __call__(self, free: Tensor, eta: Tensor | None = None, **ask: Any) -> Evaluation:
        """See `Objective`; `free` are coordinates."""
        return self._turned(free, self.inner(self.chart.free(free), eta, **ask))

    def penalty_hessian(self, free: Tensor) -> Tensor:
        """Second derivatives of -2 log prior in the coordinates."""
        if not self.problem.penalised:
            return torch.zeros(len(free), len(free), dtype=free.dtype)

        def penalty(x: Tensor) -> Tensor:
            return self.problem.penalty(self.chart.free(x))

        with torch.enable_grad():
            hessian: Tensor = torch.autograd.functional.hessian(penalty, free.detach())  # type: ignore[no-untyped-call]
        return hessian

    def _turned(self, x: Tensor, found: Evaluation) -> Evaluation:
        """Derivatives in the free vector as derivatives in the coordinates."""
        if self.chart.plain or found.score is None:
            return found
        slopes = self.chart.slopes(x)
        score = found.score @ slopes
        pull = None if found.pull is None else (found.pull[..., None, :] @ slopes)[..., 0, :]
        return replace(found, score=score, pull=pull)
