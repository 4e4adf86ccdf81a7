"""Families of q(eta | record): densities of a standardised effect w in q dimensions whose numbers come from a
network.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from ..model.problem import LOG_2PI


def kl_divergence(mean: Tensor, factor: Tensor, prior_factor: Tensor) -> Tensor:
    """KL(N(mean, C) || N(0, Omega)) for C = factor factor', Omega = prior_factor prior_factor'.

        KL = 1/2 [tr(Omega^-1 C) + mean' Omega^-1 mean - q + log det Omega - log det C]

    Args:
        mean: `[..., q]`.
        factor: `[..., q, q]`, lower triangular.
        prior_factor: `[..., q, q]`, lower triangular.

    Returns:
        `[...]`, never negative.
    """
    z = torch.linalg.solve_triangular(prior_factor, mean.unsqueeze(-1), upper=False)
    a = torch.linalg.solve_triangular(prior_factor, factor, upper=False)
    square = (z * z).sum((-2, -1)) + (a * a).sum((-2, -1))
    divergence: Tensor = 0.5 * (square - mean.shape[-1]) + log_diagonal(prior_factor) - log_diagonal(factor)
    return divergence


def log_diagonal(factor: Tensor) -> Tensor:
    """Log determinant of a triangular matrix with a positive diagonal, `[..., q, q]` -> `[...]`."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def times(triangle: Tensor, vector: Tensor) -> Tensor:
    """Each subject's lower triangle times its vectors, `[subject, q, q]` and `[*draw, subject, q]` to `[*draw,
    subject, q]`.
    """
    if vector.ndim == 2:
        return (triangle @ vector.unsqueeze(-1)).squeeze(-1)
    # many draws of few etas: whole rows of draws at a time, the axis of etas outermost in memory
    x = vector.unbind(-1)
    rows = []
    for i in range(len(x)):
        row = triangle[:, i, 0] * x[0]
        for j in range(1, i + 1):
            row = torch.addcmul(row, triangle[:, i, j], x[j])
        rows.append(row)
    return torch.stack(rows).movedim(0, -1)


class Family(abc.ABC):
    """A density of w in q dimensions, told by `outputs(q)` numbers a patient; stateless.

    Methods take `raw [subject, outputs]` (any float type, gradients pass) and draws `w [*draw, subject, q]`.
    """

    name: str

    @abc.abstractmethod
    def outputs(self, q: int) -> int:
        """How many numbers the network must give."""

    @abc.abstractmethod
    def coordinates(self, q: int) -> int:
        """How many uniform coordinates one draw takes."""

    @abc.abstractmethod
    def log_density(self, raw: Tensor, w: Tensor) -> Tensor:
        """log q(w), `[*draw, subject]`."""

    @abc.abstractmethod
    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """Draws `[*draw, subject, q]` from uniform points `[*draw, subject, coordinates]`."""

    @abc.abstractmethod
    def widened(self, raw: Tensor, q: int, factor: float) -> Tensor:
        """Numbers of the same density with every component's SDs multiplied by `factor`."""

    @abc.abstractmethod
    def moments(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """Mean `[subject, q]` and covariance `[subject, q, q]` of w."""


def _triangle(diagonal: Tensor, lower: Tensor) -> Tensor:
    """Lower triangular `[..., q, q]` from log diagonal `[..., q]` and strict lower part, row by row."""
    q = diagonal.shape[-1]
    matrix = torch.diag_embed(diagonal.clamp(-4.0, 4.0).exp())
    rows, columns = torch.tril_indices(q, q, -1)
    if len(rows):
        matrix[..., rows, columns] = lower
    return matrix


def _inverse(triangle: Tensor) -> Tensor:
    identity = torch.eye(triangle.shape[-1], dtype=triangle.dtype).expand_as(triangle)
    inverse: Tensor = torch.linalg.solve_triangular(triangle, identity, upper=False)
    return inverse


def _normals(uniform: Tensor) -> Tensor:
    normal: Tensor = torch.special.ndtri(uniform)
    return normal


class Gaussian(Family):
    """One Gaussian of full covariance: P (w - m) is standard normal, P lower triangular."""

    name = "gaussian"

    def outputs(self, q: int) -> int:
        """A mean, a log diagonal and a strict lower triangle."""
        return 2 * q + q * (q - 1) // 2

    def coordinates(self, q: int) -> int:
        """One a dimension."""
        return q

    def _parts(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        return raw[..., :q], _triangle(raw[..., q : 2 * q], raw[..., 2 * q :])

    def log_density(self, raw: Tensor, w: Tensor) -> Tensor:
        """-1/2 |P (w - m)|^2 + log det P - q/2 log 2 pi."""
        q = w.shape[-1]
        mean, precision = self._parts(raw, q)
        z = times(precision, w - mean)
        return -0.5 * (z * z).sum(-1) + log_diagonal(precision) - 0.5 * q * LOG_2PI

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """m + P^-1 z; differentiable in raw."""
        mean, precision = self._parts(raw, uniform.shape[-1])
        return mean + times(_inverse(precision), _normals(uniform))

    def widened(self, raw: Tensor, q: int, factor: float) -> Tensor:
        """P divided by `factor`."""
        return torch.cat(
            [raw[..., :q], raw[..., q : 2 * q] - math.log(factor), raw[..., 2 * q :] / factor], -1
        )

    def moments(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """m and (P' P)^-1."""
        mean, precision = self._parts(raw, q)
        inverse = _inverse(precision)
        return mean, inverse @ inverse.mT


class Mixture(Family):
    """A mixture of Gaussians of full covariance, for posteriors with shoulders or two modes.

    Args:
        components: how many; three carry a sparse oral record.
    """

    name = "mixture"

    def __init__(self, components: int = 3) -> None:
        self.components = components

    def outputs(self, q: int) -> int:
        """A weight and a Gaussian a component."""
        return self.components * (1 + Gaussian().outputs(q))

    def coordinates(self, q: int) -> int:
        """One a dimension, and one that picks the component (so that components are drawn evenly too)."""
        return q + 1

    def _parts(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
        part = raw.reshape(*raw.shape[:-1], self.components, -1)
        mean, precision = Gaussian()._parts(part[..., 1:], q)
        return part[..., 0].log_softmax(-1), mean, precision

    def log_density(self, raw: Tensor, w: Tensor) -> Tensor:
        """Log of the weighted sum of the components' densities."""
        q = w.shape[-1]
        weight, mean, precision = self._parts(raw, q)
        level = weight + log_diagonal(precision) - 0.5 * q * LOG_2PI
        parts = []
        for c in range(self.components):
            z = times(precision[:, c], w - mean[:, c])
            parts.append(level[:, c] - 0.5 * (z * z).sum(-1))
        return torch.logsumexp(torch.stack(parts), 0)

    def draw(self, raw: Tensor, uniform: Tensor) -> Tensor:
        """A component from the first coordinate, a Gaussian draw of it from the others."""
        q = uniform.shape[-1] - 1
        weight, mean, precision = self._parts(raw, q)
        edges = weight.exp().cumsum(-1)[..., :-1]
        pick = (uniform[..., :1] > edges).sum(-1, keepdim=True)
        z, inverse = _normals(uniform[..., 1:]), _inverse(precision)
        w = mean[:, 0] + times(inverse[:, 0], z)
        for c in range(1, self.components):
            w = torch.where(pick == c, mean[:, c] + times(inverse[:, c], z), w)
        return w

    def widened(self, raw: Tensor, q: int, factor: float) -> Tensor:
        """The same components, each wider."""
        part = raw.reshape(*raw.shape[:-1], self.components, -1)
        return torch.cat([part[..., :1], Gaussian().widened(part[..., 1:], q, factor)], -1).reshape(raw.shape)

    def moments(self, raw: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """Moments of the mixture: within plus between components."""
        weight, means, precision = self._parts(raw, q)
        share = weight.exp().unsqueeze(-1)
        inverse = _inverse(precision)
        mean = (share * means).sum(-2)
        off = (means - mean.unsqueeze(-2)).unsqueeze(-1)
        within = inverse @ inverse.mT + off @ off.mT
        return mean, (share.unsqueeze(-1) * within).sum(-3)


FAMILIES: dict[str, type[Family]] = {"gaussian": Gaussian, "mixture": Mixture}
"""The families by name."""
