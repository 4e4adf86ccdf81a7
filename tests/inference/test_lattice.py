"""Shifted lattices: uniform, independent between subjects and copies, and more even than independent draws."""

from __future__ import annotations

import math

import pytest
import torch

from nlmegen.inference.lattice import golden_ratio, shifted_lattice


def test_the_ratio_of_one_dimension_is_the_golden_one():
    assert golden_ratio(1) == pytest.approx((1 + math.sqrt(5)) / 2, abs=1e-14)
    assert golden_ratio(2) ** 3 == pytest.approx(golden_ratio(2) + 1, abs=1e-13)


def test_points_lie_in_the_open_cube_and_repeat_with_the_seed():
    u = shifted_lattice(64, 5, 3, torch.Generator().manual_seed(1))
    assert u.shape == (16, 4, 5, 3)
    assert u.dtype == torch.float64
    assert bool((u > 0).all())
    assert bool((u < 1).all())
    assert torch.equal(u, shifted_lattice(64, 5, 3, torch.Generator().manual_seed(1)))
    assert shifted_lattice(63, 1, 1, torch.Generator().manual_seed(1)).shape[0] == 16


def test_means_are_unbiased_over_shifts_and_far_better_than_independent_draws():
    u = shifted_lattice(256, 400, 2, torch.Generator().manual_seed(2))
    means = (torch.exp(u[..., 0]) * u[..., 1]).mean(0)  # [shift, subject], truth (e - 1) / 2
    error = means - (math.e - 1) / 2
    independent = torch.rand(64, 1600, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rough = (torch.exp(independent[..., 0]) * independent[..., 1]).mean(0).std()
    assert abs(float(error.mean())) < 4 * float(error.std()) / math.sqrt(error.numel())
    assert float(error.std()) < 0.5 * float(rough)


def test_errors_of_two_subjects_and_of_two_copies_are_uncorrelated():
    u = shifted_lattice(16, 4000, 1, torch.Generator().manual_seed(4))
    error = torch.exp(u[..., 0]).mean(0) - (math.e - 1)
    between_copies = torch.corrcoef(error[:2])[0, 1]
    between_subjects = torch.corrcoef(torch.stack([error[0, ::2], error[0, 1::2]]))[0, 1]
    assert abs(float(between_copies)) < 4 / math.sqrt(4000)
    assert abs(float(between_subjects)) < 4 / math.sqrt(2000)
