"""The course of an ELBO fit: where it starts, and which settings it refuses."""

from __future__ import annotations

import math

import pytest

import nlmegen as nl
from nlmegen.errors import FitError
from nlmegen.inference.encoder import Encoder
from nlmegen.inference.flipflop import absorbs_slowly
from nlmegen.inference.iwml import Course, start


def course_from(**theta: float) -> Course:
    model = nl.load_model("theophylline").with_values(theta=theta)
    problem = nl.Problem(model, nl.load_data("theophylline"))
    return Course(problem, Encoder.of(problem, "gaussian", 8, 0, 0), problem.start.clone())


def quiet(*_: object) -> None:
    return None


def test_a_flip_flop_start_is_mirrored_and_said() -> None:
    course = course_from(tvka=0.1, tvcl=2.5, tvv=3.0)
    assert absorbs_slowly(course.problem, course.free)
    start(course, nl.ELBO(), quiet)
    assert not absorbs_slowly(course.problem, course.free)
    assert any("mirror image" in note for note in course.notes)
    straight = course_from()
    start(straight, nl.ELBO(), quiet)
    assert straight.notes == []
    assert float((straight.free - course.free).abs().max()) < 0.1


def test_flip_flop_is_kept_when_it_is_asked_for() -> None:
    course = course_from(tvka=0.1, tvcl=2.5, tvv=3.0)
    start(course, nl.ELBO(flip_flop=True), quiet)
    assert absorbs_slowly(course.problem, course.free)
    assert course.notes == []


def test_an_interrupted_start_keeps_its_last_step() -> None:
    course = course_from(tvcl=1.0, tvv=90.0)
    before = course.free.clone()

    def tell(stage: str, step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(course, nl.ELBO(), tell)
    assert float((course.free - before).abs().max()) > 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"rate": math.nan}, {"rate": -1.0}, {"rate": 1e-12}, {"precision": math.nan}, {"precision": 1e9},
        {"varied": 5.0}, {"steps": 10.5}, {"seed": 1.5}, {"seed": -1}, {"draws": 200, "most_draws": 100},
        {"objective": "elbo", "covariance": "R"}, {"objective": "elbo", "precision": 0.1}, {"k": 3},
    ],
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(settings: dict) -> None:
    with pytest.raises(FitError, match="ELBO"):
        nl.ELBO(**settings)


def test_their_neighbours_are_accepted() -> None:
    for settings in (
        {"rate": 1e-3},
        {"precision": 0.1},
        {"varied": 0.0},
        {"draws": 200},
        {"objective": "elbo", "k": 3},
    ):
        nl.ELBO(**settings)
