"""Importance sampling of vectors: what they are drawn from, how they are weighed, which are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inference.pareto import pareto_shape


@dataclass(frozen=True)
class Proposal:
    """Multivariate Student t (normal without `degrees`), mean `[P]` and factor `[P, m]` of m parameters that move."""

    mean: Tensor
    factor: Tensor
    degrees: int | None

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor, degrees: int | None) -> Proposal:
        """With this covariance where the distribution has one; parameters of variance zero stay where they are."""
        moving = (covariance.diagonal() > 0).nonzero().squeeze(-1)
        inner = covariance[moving[:, None], moving]
        scale = inner.diagonal().sqrt()  # units differ: a correlation matrix is what has eigenvalues near one
        eigenvalues, axes = torch.linalg.eigh(inner / scale / scale[:, None])
        factor = torch.zeros(len(mean), len(moving), dtype=mean.dtype)
        factor[moving] = scale[:, None] * axes * eigenvalues.clamp(min=1e-12).sqrt()
        if degrees is not None and degrees > 2:
            factor = factor * math.sqrt((degrees - 2) / degrees)
        return cls(mean, factor, degrees)

    def draw(self, k: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Vectors `[k, P]` and their log density, up to a constant, `[k]`."""
        size = self.factor.shape[-1]
        z = torch.randn(k, size, generator=source, dtype=torch.float64)
        if self.degrees is None:
            return self.mean + z @ self.factor.mT, -0.5 * (z**2).sum(-1)
        # a chi-square of whole degrees of freedom is a sum of squares: the generator draws nothing else
        spread = (torch.randn(k, self.degrees, generator=source, dtype=torch.float64) ** 2).sum(-1)
        z = z * (self.degrees / spread).sqrt()[:, None]
        log_q = -0.5 * (self.degrees + size) * torch.log1p((z**2).sum(-1) / self.degrees)
        return self.mean + z @ self.factor.mT, log_q


def resample(log_weight: Tensor, size: int, cap: int | None, source: torch.Generator) -> Tensor:
    """Which vectors are kept, `[size]`, in proportion to the weights `[k]`.

    Systematic without a cap. With one, each vector stands `cap` times in an urn from which is drawn without
    replacement: the largest of the log weights with Gumbel noise (Efraimidis & Spirakis 2006,
    doi:10.1016/j.ipl.2005.11.003).
    """
    if cap is not None:
        urn = log_weight.repeat(cap)
        noise = -torch.empty_like(urn).exponential_(generator=source).log()
        return urn.add(noise).topk(size).indices.remainder(len(log_weight)).sort().values
    share = torch.softmax(log_weight, 0).cumsum(0)
    place = (torch.arange(size, dtype=torch.float64) + torch.rand(1, generator=source)) / size
    return torch.searchsorted(share, place * share[-1]).clamp(max=len(share) - 1)


def moments(free: Tensor, log_weight: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and covariance for the next proposal; the present ones, wider, where the weights are too few.

    Weights are truncated at their mean times the root of their number (Ionides 2008, doi:10.1198/106186008X320456), so
    that no single one makes a moment.
    """
    k = len(log_weight)
    weight = torch.softmax(log_weight, 0)
    weight = weight.clamp(max=1 / math.sqrt(k))
    weight = weight / weight.sum()
    moving = covariance.diagonal() > 0
    if float(1 / (weight**2).sum()) < 5 * int(moving.sum()):
        return mean, 2 * covariance
    # what does not move stays exactly where it is: rounding would make it a direction of its own, flat in the target
    free = torch.where((weight > 0)[:, None] & moving, free, mean)
    centre = torch.where(moving, weight @ free, mean)
    off = free - centre
    return centre, (off * weight[:, None]).mT @ off


def diagnosis(log_weight: Tensor, dofv: Tensor) -> dict[str, float]:
    """How good the weights `[k]` are, and the rises of the objective `[k]` that they weigh."""
    weight = torch.softmax(log_weight, 0)
    finite = torch.isfinite(log_weight)
    return {
        "samples": len(weight),
        "finite": int(finite.sum()),
        "ess": float(1 / (weight**2).sum()),
        "khat": float(pareto_shape(log_weight[finite][:, None])[0]),
        "largest_weight": float(weight.max()),
        "dofv_min": float(dofv[finite].min()),
        "dofv_mean": float((weight[finite] * dofv[finite]).sum()),
    }
