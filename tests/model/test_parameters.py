"""Theta, Omega and the one vector that holds everything."""

from __future__ import annotations

import pytest
import torch

from nlmegen.errors import ModelError
from nlmegen.model.endpoints import Combined, Proportional
from nlmegen.model.parameters import Layout, Omega, Theta

F64 = torch.float64


def layout() -> Layout:
    return Layout(
        {"tvcl": Theta(0.13, lower=0), "slope": Theta(-0.5), "f": Theta(0.4, lower=0, upper=1, fixed=True)},
        {"iiv": Omega(cl=0.1, v=0.05, cov=[0.02]), "other": Omega(ka=0.4)},
        {"cp": Combined(additive=0.7, proportional=0.1), "pd": Proportional(0.2, fixed=True)},
    )


def test_the_vector_has_a_fixed_order_and_marks_what_is_fixed() -> None:
    chart = layout()
    assert chart.names == (
        "tvcl", "slope", "f", "omega.cl", "omega.v,cl", "omega.v", "omega.ka",
        "cp.additive", "cp.proportional", "pd.proportional",
    )  # fmt: skip
    assert chart.fixed.tolist() == [False, False, True, False, False, False, False, False, False, True]


def test_values_of_the_start_are_the_declared_ones() -> None:
    chart = layout()
    values = chart.values(chart.start())
    assert {k: round(float(v), 12) for k, v in values.theta.items()} == {
        "tvcl": 0.13,
        "slope": -0.5,
        "f": 0.4,
    }
    expected = torch.tensor([[0.1, 0.02, 0.0], [0.02, 0.05, 0.0], [0.0, 0.0, 0.4]], dtype=F64)
    torch.testing.assert_close(values.omega, expected)
    assert float(values.sigma["cp.additive"]) == pytest.approx(0.7)


def test_batches_of_vectors_broadcast_over_subjects_and_times() -> None:
    chart = layout()
    values = chart.values(chart.start().expand(5, -1))
    assert values.theta["tvcl"].shape == (5, 1, 1)
    assert values.sigma["cp.additive"].shape == (5, 1, 1)
    assert values.omega.shape == (5, 3, 3)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Theta(float("nan")), "finite"),
        (lambda: Theta("x"), "number"),
        (lambda: Theta(0.0, lower=0), "strictly inside"),
        (lambda: Theta(2.0, lower=3, upper=1), "lower < upper"),
        (lambda: Theta(1.0, lower="a"), "lower=... of a Theta must be a number"),
        (lambda: Omega(cl=0.1, cov=0.01), "takes a list"),
        (lambda: Omega(), "names no random effect"),
        (lambda: Omega(cl=-0.1), "positive"),
        (lambda: Omega(cl=0.1, v=0.1, cov=[0.01, 0.02]), "takes 1 covariances"),
        (lambda: Omega(cl=0.1, v=0.1, cov=[0.2]), "positive definite"),
        (lambda: Omega(ka=0.1, level="day"), "occasions"),
        (lambda: Combined(additive=0.0, proportional=0.1), "positive number"),
        (lambda: Combined(additive=0.1, proportional=0.1, form="both"), "form must be"),
    ],
)
def test_what_a_declaration_refuses(make, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        make()


def test_the_nearest_declarations_are_accepted() -> None:
    Theta(1e-9, lower=0)
    Omega(cl=0.1, v=0.1, cov=[0.099])
    Omega(a=1, b=1, c=1, cov=[0.1, 0.2, 0.3])
    Combined(additive=1, proportional=0.1, form="sd")
