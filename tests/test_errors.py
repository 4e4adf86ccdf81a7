"""Messages carry their place, survive a worker process, and every status has words."""

from __future__ import annotations

import doctest
import pickle

import pytest

import nlmegen.errors
from nlmegen.errors import DataError, FitError, ModelError, NlmegenError, Status, nearest


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DataError("expected a number"), "expected a number"),
        (DataError("expected a number", row=3), "row 3: expected a number"),
        (DataError("expected a number", column="DV"), "column DV: expected a number"),
        (DataError("expected a number", row=3, column="DV"), "row 3, column DV: expected a number"),
        (ModelError("no endpoint"), "no endpoint"),
        (ModelError("no endpoint", line=4), "line 4: no endpoint"),
        (ModelError("no endpoint", page="mine.py"), "page mine.py: no endpoint"),
        (ModelError("no endpoint", page="mine.py", line=4), "page mine.py, line 4: no endpoint"),
    ],
)
def test_the_place_stands_before_the_message(error: NlmegenError, text: str) -> None:
    assert str(error) == text


def test_each_error_is_also_the_builtin_that_a_caller_would_catch() -> None:
    assert issubclass(DataError, ValueError)
    assert issubclass(ModelError, TypeError)
    assert issubclass(FitError, RuntimeError)
    assert all(issubclass(kind, NlmegenError) for kind in (DataError, ModelError, FitError))


@pytest.mark.parametrize(
    "error", [DataError("bad", row=7, column="AMT"), ModelError("bad", line=2, page="p.py"), FitError("bad")]
)
def test_errors_come_back_from_a_worker_process_unchanged(error: NlmegenError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)


def test_every_status_has_words_with_a_remedy() -> None:
    for flag in Status:
        text = flag.describe()
        assert text != "ok"
        assert ":" in text, f"{flag.name} names no remedy"
    assert Status.OK.describe() == "ok"


def test_statuses_add_up() -> None:
    both = Status.NO_DOSES | Status.BOUNDARY
    assert both.describe() == f"{Status.NO_DOSES.describe()}; {Status.BOUNDARY.describe()}"
    assert Status(int(both)) == both


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("tvlc", " Did you mean 'tvcl'? Legal names: tvcl, TVV."),
        ("tvv", " Did you mean 'TVV'? Legal names: tvcl, TVV."),
        ("zzzzzz", " Legal names: tvcl, TVV."),
    ],
)
def test_nearest_legal_name(written: str, expected: str) -> None:
    assert nearest(written, ["tvcl", "TVV"]) == expected


def test_nearest_of_nothing() -> None:
    assert nearest("x", []) == " Legal names: (none)."


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(nlmegen.errors)
    assert result.attempted >= 4
    assert result.failed == 0
