"""Residual errors: variances, their derivatives, and the density against torch.distributions."""

from __future__ import annotations

import pytest
import torch

from nlmegen.model.endpoints import Additive, Combined, LogNormal, Proportional
from nlmegen.model.residuals import BoxCox, Power, StudentT

F64 = torch.float64
ENDPOINTS = [
    Additive(0.7),
    Proportional(0.1),
    Combined(additive=0.7, proportional=0.1),
    Combined(additive=0.7, proportional=0.1, form="sd"),
    LogNormal(0.2),
    LogNormal(0.2, dv="log"),
    Power(0.3, 0.7),
    BoxCox(0.2, 0.5),
    StudentT(0.7, 0.1, form="sd"),
    StudentT(proportional=0.1),
]


def sigma(endpoint) -> dict[str, torch.Tensor]:
    return {k: torch.tensor(v, dtype=F64) for k, v in endpoint.start.items()}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_derivatives_of_the_variance(endpoint) -> None:
    f = torch.linspace(0.1, 9, 13, dtype=F64, requires_grad=True)
    r, slope, bend = (x.expand(f.shape) for x in endpoint.variance(f, sigma(endpoint)))
    if r.requires_grad:
        (auto,) = torch.autograd.grad(r.sum(), f, create_graph=True)
        torch.testing.assert_close(slope, auto)
        second = torch.autograd.grad(auto.sum(), f)[0] if auto.requires_grad else torch.zeros_like(f)
        torch.testing.assert_close(bend, second)
    else:
        assert bool((slope == 0).all())
        assert bool((bend == 0).all())


def test_the_formulas_at_one_point() -> None:
    f = torch.tensor(5.0, dtype=F64)
    at = {type(e).__name__ + getattr(e, "form", ""): float(e.variance(f, sigma(e))[0]) for e in ENDPOINTS[:4]}
    assert at == pytest.approx(
        {"Additive": 0.49, "Proportional": 0.25, "Combinedvariance": 0.74, "Combinedsd": (0.7 + 0.5) ** 2}
    )


def test_log_normal_density_is_that_of_the_natural_observation() -> None:
    y, f = torch.tensor([0.5, 3.0], dtype=F64), torch.tensor([1.0, 2.5], dtype=F64)
    endpoint = LogNormal(0.2)
    normal = torch.distributions.Normal(endpoint.link(f), 0.2)
    ours = normal.log_prob(endpoint.link_dv(y)) + endpoint.log_jacobian(y)
    torch.testing.assert_close(ours, torch.distributions.LogNormal(f.log(), 0.2).log_prob(y))
    torch.testing.assert_close(endpoint.natural(endpoint.link_dv(y)), y)
    logged = LogNormal(0.2, dv="log")
    torch.testing.assert_close(logged.link_dv(y.log()), y.log())
    assert float(logged.log_jacobian(y).abs().sum()) == 0
