"""The reference distribution of a likelihood ratio when parameters are tested at the end of their range.

Near the null value the large page's parameters fill a cone C: all of space in m directions, half lines where a variance
is tested at 0, positive semidefinite matrices where the covariance matrix of several random effects is. With V the
asymptotic covariance of the unrestricted estimates of the cone's coordinates, the statistic tends to

    chi2(m) + D ,    D = z' V^-1 z - min over c in C of (z - c)' V^-1 (z - c) ,    z ~ N(0, V)

("chi-bar-square": a mixture of chi-square distributions). One half line gives 1/2 chi2(m) + 1/2 chi2(m + 1) whatever V
is (Stram & Lee 1994, doi:10.2307/2533455). Of k half lines j are left with a positive estimate with probability
binomial(k, 1/2) where the estimates are uncorrelated; where they are not, the weights follow from V: in closed form up
to three, by drawing z beyond, and so for matrices. See Self & Liang (1987), doi:10.1080/01621459.1987.10478472; Baey,
Cournede & Kuhn (2019), doi:10.1016/j.csda.2019.01.014.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 40_000
"""Draws of z for half lines: a probability of .05 is then known to .001."""

MATRIX_DRAWS = 10_000
"""Draws of z where matrices are projected."""

STEPS = 400
"""Steps of the projection, at most."""


@dataclass(frozen=True)
class Reference:
    """A null distribution of a likelihood ratio.

    Attributes:
        weights: degrees of freedom -> weight of that chi-square distribution; empty where it is only known by draws.
        free: m, for `draws`.
        draws: of D, where the distribution is only known by draws.
    """

    weights: Mapping[int, float]
    free: int = 0
    draws: Tensor | None = None

    def p(self, statistic: float) -> float:
        """Probability of a statistic as large or larger, when the small page is true.

        Example:
            >>> round(Reference({0: 0.5, 1: 0.5}).p(2.7055), 4)
            0.05
        """
        from scipy.stats import chi2  # which takes half a second

        if not statistic > 0:
            return math.nan if math.isnan(statistic) else 1.0
        if self.draws is not None:
            left = statistic - self.draws.numpy()
            tail = (left <= 0) if self.free == 0 else chi2.sf(left, self.free)  # sf is 1 below 0
            return float((tail.sum() + 1) / (len(tail) + 1))  # never 0: the draws cannot tell
        return float(sum(w * chi2.sf(statistic, df) for df, w in self.weights.items() if df > 0))

    def critical(self, level: float = 0.05) -> float:
        """The statistic that is exceeded with probability `level`."""
        if self.p(1e-12) <= level:
            return 0.0
        from scipy.optimize import brentq  # which takes a third of a second

        return float(brentq(lambda x: self.p(x) - level, 1e-12, 1e4))

    @property
    def words(self) -> str:
        """The mixture as people write it."""
        if self.draws is not None:
            size = len(self.draws)
            return f"chi-bar-square by {size} draws" + (f", plus chi2({self.free})" if self.free else "")
        shown = sorted((df, w) for df, w in self.weights.items() if w > 0)
        if len(shown) == 1:
            return f"chi2({shown[0][0]})"
        return " + ".join(f"{w:.3g} chi2({df})" for df, w in shown)


def orthant_reference(free: int, v: Tensor | None, k: int, seed: int = 0) -> Reference:
    """The distribution for m = `free` directions and k half lines.

    Args:
        free: m.
        v: V `[k, k]` up to a factor; None for uncorrelated estimates.
        k: half lines.
        seed: of the draws, for more than three half lines.
    """
    if v is None or k < 2:
        weights = [math.comb(k, j) / 2**k for j in range(k + 1)]
    elif k <= 3:
        weights = _closed(v)
    else:
        _, inner, _ = _project(v, k, (), DRAWS, seed)
        positive = (inner > 1e-7).sum(-1)
        weights = [float((positive == j).double().mean()) for j in range(k + 1)]
    return Reference({free + j: w for j, w in enumerate(weights)})


def cone_reference(free: int, v: Tensor, k: int, blocks: tuple[int, ...], seed: int = 0) -> Reference:
    """The distribution for m = `free` directions, k half lines and covariance matrices of the sizes `blocks`.

    Args:
        free: m.
        v: V of the coordinates `[cone, cone]`: k variances, then each matrix's lower triangle row by row.
        k: half lines.
        blocks: sizes of the matrices.
        seed: of the draws.
    """
    value, _, length = _project(v, k, blocks, MATRIX_DRAWS, seed)
    if k == 0 and blocks == (2,):
        # in three dimensions two weights give the others: those of even and of odd dimensions sum to 1/2 each
        top = float((value > (1 - 1e-6) * length).double().mean())
        bottom = float((value < 1e-6 * length).double().mean())
        return Reference(dict(enumerate([bottom, 0.5 - top, 0.5 - bottom, top], start=free)))
    return Reference({}, free, value)


def _closed(v: Tensor) -> list[float]:
    """Weights for two or three half lines, from probabilities of orthants."""
    k = len(v)
    top, bottom = _orthant(v), _orthant(torch.linalg.inv(v))
    if k == 2:
        return [bottom, 0.5, top]
    return [bottom, 0.5 - top, 0.5 - bottom, top]


def _orthant(covariance: Tensor) -> float:
    """P(all entries of N(0, covariance) are positive), two or three of them."""
    scale = covariance.diagonal().rsqrt()
    rho = (covariance * scale * scale[:, None]).clamp(-1, 1)
    pairs = torch.asin(rho[tuple(torch.tril_indices(len(rho), len(rho), -1))]).sum()
    if len(rho) == 2:
        return 0.25 + float(pairs) / (2 * math.pi)
    return 0.125 + float(pairs) / (4 * math.pi)


def _project(
    v: Tensor, k: int, blocks: tuple[int, ...], draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """D of draws of z `[draw]`, the points of the cone nearest to them `[draw, cone]`, and z' V^-1 z `[draw]`.

    Accelerated projected gradients; coordinates are scaled so that variances have V = 1 and the plain distance of
    matrices is Frobenius's, in which their projection takes the negative eigenvalues away.
    """
    scale = _scales(v, k, blocks)
    v = v * scale * scale[:, None]
    w = torch.linalg.inv(v)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(draws, len(v), generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(v).T
    step = 1 / float(torch.linalg.eigvalsh(w)[-1])
    c = ahead = _into(z, k, blocks)
    speed = 1.0
    for _ in range(STEPS):
        new = _into(ahead - step * (ahead - z) @ w, k, blocks)
        faster = (1 + math.sqrt(1 + 4 * speed**2)) / 2
        turn = ((ahead - new) * (new - c)).sum(-1, keepdim=True) > 0  # overshot: start the momentum anew
        ahead = torch.where(turn, new, new + (speed - 1) / faster * (new - c))
        moved = float((new - c).abs().max())
        c, speed = new, faster
        if moved < 1e-9:
            break
    left = z - c
    length = torch.einsum("ni,ij,nj->n", z, w, z)
    value = length - torch.einsum("ni,ij,nj->n", left, w, left)
    return value.clamp(min=0.0), c, length


def _scales(v: Tensor, k: int, blocks: tuple[int, ...]) -> Tensor:
    """Factors of the coordinates `[cone]`; those of a matrix are products of one factor a random effect."""
    scale = v.diagonal().rsqrt().clone()
    at = k
    for size in blocks:
        rows, columns = torch.tril_indices(size, size)
        inner = slice(at, at + len(rows))
        root = scale[inner][rows == columns].sqrt()
        scale[inner] = root[rows] * root[columns] * torch.where(rows == columns, 1.0, math.sqrt(2.0))
        at += len(rows)
    return scale


def _into(x: Tensor, k: int, blocks: tuple[int, ...]) -> Tensor:
    """The nearest points of the cone, in plain distance."""
    parts, at = [x[:, :k].clamp(min=0.0)], k
    for size in blocks:
        rows, columns = torch.tril_indices(size, size)
        entries = x[:, at : at + len(rows)] / torch.where(rows == columns, 1.0, math.sqrt(2.0))
        matrix = x.new_zeros(len(x), size, size)
        matrix[:, rows, columns] = entries
        matrix[:, columns, rows] = entries
        values, axes = torch.linalg.eigh(matrix)
        matrix = (axes * values.clamp(min=0.0).unsqueeze(-2)) @ axes.mT
        parts.append(matrix[:, rows, columns] * torch.where(rows == columns, 1.0, math.sqrt(2.0)))
        at += len(rows)
    return torch.cat(parts, -1)
