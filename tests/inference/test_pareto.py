"""k-hat against Pareto tails of known shape."""

from __future__ import annotations

import math

import pytest
import torch

from nlmegen.inference.pareto import pareto_shape


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8])
def test_a_pareto_tail_of_known_shape(shape: float):
    u = torch.rand(20_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pareto_shape(torch.log((u**-shape - 1) / shape))
    assert float(found.mean()) == pytest.approx(shape, abs=0.06)


def test_bounded_weights_have_a_short_tail():
    u = torch.rand(4000, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(pareto_shape(torch.log(0.5 + u)).max()) < 0.0


def test_the_scale_of_the_weights_does_not_matter():
    x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(pareto_shape(x), pareto_shape(x - 700.0), rtol=1e-9, atol=1e-9)


def test_equal_few_and_infinite_weights():
    assert pareto_shape(torch.zeros(1000, 1, dtype=torch.float64)).item() == -math.inf
    assert pareto_shape(torch.zeros(10, 1, dtype=torch.float64)).item() == math.inf
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x[7, 1] = math.nan
    assert math.isfinite(pareto_shape(x)[0])
    assert pareto_shape(x)[1].item() == math.inf
