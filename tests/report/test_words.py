"""Numbers as people read them."""

from __future__ import annotations

import shlex
from types import SimpleNamespace
from typing import Any

import pytest

import nlmegen as nl
from nlmegen.cli.parser import build_parser
from nlmegen.cli.settings import build
from nlmegen.report.words import command, concerns, ladder, number, percent, summary


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


def _fitted(method: Any, **changes: Any) -> Any:
    data = nl.load_data("theophylline")
    return SimpleNamespace(settings=method, method=method.name, population=data, **changes)


@pytest.mark.parametrize(
    "method", [nl.FOCEI(), nl.FOCEI(covariance="R", evaluate=True), nl.ELBO(seed=3), nl.ELBO()], ids=repr
)
def test_the_command_means_the_settings(method: Any) -> None:
    spoken = build_parser().parse_args(shlex.split(command(_fitted(method)))[1:])
    flags = {name: getattr(spoken, name) for name in ("seed", "device", "evaluate")}
    flags = {name: value for name, value in flags.items() if value not in (None, False)}
    assert build(spoken.method, spoken.set, flags) == method


@pytest.mark.parametrize(("gap", "places"), [(0.2, [0.8, 0.9, 1.0]), (4.0, [0.0, 0.5, 1.0])])
def test_a_tight_bound_looks_tight(gap: float, places: list[float]) -> None:
    bounds = {
        "elbo": -10 - gap,
        "iwelbo": -10 - gap / 2,
        "k": 8,
        "importance_log_likelihood": -10.0,
        "importance_se": 0.1,
    }
    rungs = ladder(_fitted(nl.ELBO(), bounds=bounds))
    assert [rung["place"] for rung in rungs] == pytest.approx(places)
    assert not ladder(_fitted(nl.FOCEI(), bounds=None))


def test_concerns_are_raised() -> None:
    said = " | ".join(
        concerns(
            _fitted(nl.ELBO(), problems=lambda: ["not converged: never", "a note"], bounds={"khat_max": 0.9})
        )
    )
    for part in ("a note", "k-hat is 0.90"):
        assert part in said
    assert "not converged" not in said


class _Pooled(nl.Model):
    """One curve for all: no random effects."""

    tvcl = nl.Theta(2.8, lower=0)
    cp = nl.Additive(1.0)
    structure = nl.OneCompartment(absorption="first-order")

    def individual(self, theta: Any, eta: Any, cov: Any) -> dict[str, Any]:
        return dict(cl=theta.tvcl, v=32.0, ka=1.5)

    def observe(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        return dict(cp=a.central / p.v)


def test_an_evaluation_is_not_called_converged() -> None:
    data = nl.load_data("theophylline")
    said = " ".join(summary(nl.fit(_Pooled(), data, nl.FOCEI(evaluate=True))))
    assert "was evaluated, not estimated, by FOCEI" in said
    assert "values at which it was evaluated" in said
    assert "onverge" not in said


def test_a_page_without_random_effects_is_not_said_to_be_linearised() -> None:
    said = " ".join(summary(nl.fit(_Pooled(), nl.load_data("theophylline"), nl.FOCEI())))
    assert "no random effects, so that this is its exact likelihood" in said
    assert "linearised" not in said
    assert "It converged after" in said
