"""Numbers as people read them."""

from __future__ import annotations

import pytest

from nlmegen.report.words import number, percent


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.00469555, 3, "0.00470"),
        (586.27605628, 8, "586.27606"),
        (19365.196, 4, "19365"),
        (0.0, 4, "0"),
        (-2.5, 3, "-2.50"),
        (1e-9, 3, "1.00e-09"),
        (float("nan"), 3, "–"),
        (float("inf"), 3, "–"),
        (None, 3, "–"),
        (999.99, 3, "1000"),
    ],
)
def test_number(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.123, "12 %"), (0.045, "4.5 %"), (float("nan"), "–"), (-0.3, "-30 %")]
)
def test_percent(value: float, text: str) -> None:
    assert percent(value) == text
