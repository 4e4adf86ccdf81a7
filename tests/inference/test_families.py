"""Families of q against torch.distributions, and the divergence against the textbook."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, kl_divergence

from nlmegen.inference import families as module
from nlmegen.inference.families import FAMILIES, Gaussian, Mixture
from nlmegen.inference.lattice import shifted_lattice
from nlmegen.inference.posterior import Approximation

F64 = torch.float64
N = 4


def numbers(family, q: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(N, family.outputs(q), generator=generator, dtype=F64)


def by_torch(family, raw: torch.Tensor, q: int):
    """The same density from torch.distributions, its matrices filled entry by entry."""
    components = getattr(family, "components", 1)
    part = raw.reshape(N, components, -1)
    logits = part[..., 0] if components > 1 else torch.zeros(N, 1, dtype=F64)
    part = part[..., 1:] if components > 1 else part
    precision = torch.zeros(N, components, q, q, dtype=F64)
    for i in range(q):
        precision[..., i, i] = part[..., q + i].exp()
    below = [(i, j) for i in range(q) for j in range(i)]
    for place, (i, j) in enumerate(below):
        precision[..., i, j] = part[..., 2 * q + place]
    covariance = torch.linalg.inv(precision.mT @ precision)
    return MixtureSameFamily(Categorical(logits=logits), MultivariateNormal(part[..., :q], covariance))


@pytest.mark.parametrize("q", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(FAMILIES))
class TestFamily:
    """What every family must do."""

    def test_density(self, name: str, q: int):
        family = FAMILIES[name]()
        raw = numbers(family, q)
        w = torch.randn(7, N, q, generator=torch.Generator().manual_seed(1), dtype=F64)
        torch.testing.assert_close(family.log_density(raw, w), by_torch(family, raw, q).log_prob(w))

    def test_moments(self, name: str, q: int):
        family = FAMILIES[name]()
        raw = numbers(family, q)
        mean, covariance = family.moments(raw, q)
        truth = by_torch(family, raw, q)
        torch.testing.assert_close(mean, truth.mean)
        torch.testing.assert_close(covariance.diagonal(dim1=-2, dim2=-1), truth.variance)
        torch.testing.assert_close(covariance, covariance.mT)

    def test_draws_follow_the_density(self, name: str, q: int):
        family = FAMILIES[name]()
        raw = numbers(family, q)
        uniform = shifted_lattice(8192, N, family.coordinates(q), torch.Generator().manual_seed(2))
        w = family.draw(raw, uniform).flatten(0, 1)
        mean, covariance = family.moments(raw, q)
        sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
        off = w - mean
        found = torch.einsum("kni,knj->nij", off, off) / len(w)
        assert float((w.mean(0) - mean).abs().div(sd).max()) < 0.02
        assert float((found - covariance).abs().div(sd.unsqueeze(-1) * sd.unsqueeze(-2)).max()) < 0.05

    def test_the_affine_map_keeps_the_density(self, name: str, q: int):
        family = FAMILIES[name]()
        generator = torch.Generator().manual_seed(4)
        scale = torch.randn(N, q, q, generator=generator, dtype=F64).tril(-1) + torch.diag_embed(
            0.2 + torch.rand(N, q, generator=generator, dtype=F64)
        )
        location = torch.randn(N, q, generator=generator, dtype=F64)
        raw = numbers(family, q)
        approximation = Approximation(family, raw, location, scale)
        eta, log_q = approximation.draw(64, generator)
        torch.testing.assert_close(approximation.log_density(eta), log_q, rtol=1e-8, atol=1e-8)
        w = torch.linalg.solve_triangular(scale, (eta - location).unsqueeze(-1), upper=False).squeeze(-1)
        expected = by_torch(family, raw, q).log_prob(w) - torch.linalg.slogdet(scale)[1]
        torch.testing.assert_close(log_q, expected, rtol=1e-8, atol=1e-8)
        mean, covariance = approximation.moments()
        inner_mean, inner = family.moments(raw, q)
        torch.testing.assert_close(mean, location + torch.einsum("nij,nj->ni", scale, inner_mean))
        torch.testing.assert_close(covariance, scale @ inner @ scale.mT)


def test_gaussian_draws_are_differentiable():
    family = Gaussian()
    raw = numbers(family, 2).requires_grad_()
    family.draw(raw, torch.full((3, N, 2), 0.3, dtype=F64)).sum().backward()
    assert raw.grad is not None
    assert bool((raw.grad[:, :4] != 0).all())


@pytest.mark.parametrize("q", [1, 2, 3])
def test_the_divergence_is_the_textbook_one(q: int):
    generator = torch.Generator().manual_seed(5)

    def factor() -> torch.Tensor:
        lower = torch.randn(N, q, q, generator=generator, dtype=F64).tril(-1)
        return lower + torch.diag_embed(0.3 + torch.rand(N, q, generator=generator, dtype=F64))

    mean, a, b = torch.randn(N, q, generator=generator, dtype=F64), factor(), factor()
    textbook = 0.5 * (
        torch.stack([torch.trace(torch.linalg.inv(p @ p.T) @ (c @ c.T)) for c, p in zip(a, b, strict=True)])
        + torch.stack([m @ torch.linalg.inv(p @ p.T) @ m for m, p in zip(mean, b, strict=True)])
        - q
        + torch.logdet(b @ b.mT)
        - torch.logdet(a @ a.mT)
    )
    found = module.kl_divergence(mean, a, b)
    torch.testing.assert_close(found, textbook)
    zero = torch.zeros_like(mean)
    again = kl_divergence(MultivariateNormal(mean, scale_tril=a), MultivariateNormal(zero, scale_tril=b))
    torch.testing.assert_close(found, again)
    assert bool((found > 0).all())
    torch.testing.assert_close(module.kl_divergence(zero, b, b), torch.zeros(N, dtype=F64))


def test_a_mixture_of_equals_is_one_gaussian():
    q, raw = 2, numbers(Gaussian(), 2)
    family = Mixture(3)
    same = torch.cat([torch.zeros(N, 1, dtype=F64), raw], 1).repeat(1, 3)
    w = torch.randn(5, N, q, generator=torch.Generator().manual_seed(7), dtype=F64)
    torch.testing.assert_close(family.log_density(same, w), Gaussian().log_density(raw, w))
