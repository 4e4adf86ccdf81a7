"""A regimen is read as it is written, written as it is read, and refuses what makes no dose."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlmegen.errors import DataError
from nlmegen.simulate.regimen import Regimen

positive = st.floats(min_value=1e-12, max_value=1e18, allow_nan=False, allow_infinity=False)


@st.composite
def courses(draw: st.DrawFn) -> Regimen:
    doses = draw(st.integers(1, 40))
    ss = draw(st.booleans())
    return Regimen(
        draw(positive),
        every=draw(positive) if doses > 1 or ss else None,
        doses=doses,
        ss=ss,
        over=draw(st.none() | positive | st.sampled_from(["rate", "duration"])),
        into=draw(st.none() | st.integers(1, 9) | st.sampled_from(["central", "depot", "x2", "at", "every"])),
        at=draw(st.just(0.0) | positive),
        per=draw(st.none() | st.just("kg")),
    )


@given(st.lists(courses(), min_size=1, max_size=4))
def test_text_reads_back_to_an_equal_regimen(terms: list[Regimen]) -> None:
    regimen = terms[0]
    for term in terms[1:]:
        regimen = regimen + term
    assert Regimen.parse(str(regimen)) == regimen
    assert hash(Regimen.parse(str(regimen))) == hash(regimen)
    assert pickle.loads(pickle.dumps(regimen)) == regimen


@pytest.mark.parametrize(
    ("text", "regimen"),
    [
        ("100", Regimen(100)),
        ("100 every 24 x 7", Regimen(100, every=24, doses=7)),
        ("100 every 24x7", Regimen(100, every=24, doses=7)),
        ("100 EVERY 24 X 1", Regimen(100)),
        ("200 + 100 every 12 x 9 at 12", Regimen(200) + Regimen(100, every=12, doses=9, at=12)),
        ("200+100 every 12 x 9 at 12", Regimen(200) + Regimen(100, every=12, doses=9, at=12)),
        ("5/kg over 1 into central every 12 x 4", Regimen(5, 12, 4, over=1, into="central", per="kg")),
        ("5 /kg at 3 into 2", Regimen(5, into=2, at=3, per="kg")),
        ("1e+2 over .5", Regimen(100, over=0.5)),
        ("100 every 12 ss", Regimen(100, every=12, ss=True)),
        ("100 every 12 SS x 3 at 24", Regimen(100, every=12, doses=3, at=24, ss=True)),
        ("100 every 12ss x3 over duration", Regimen(100, every=12, doses=3, over="duration", ss=True)),
        ("2/kg over rate into depot", Regimen(2, over="rate", into="depot", per="kg")),
    ],
)
def test_grammar(text: str, regimen: Regimen) -> None:
    assert Regimen.parse(text) == regimen


def test_times_of_the_doses() -> None:
    load, rest = Regimen.parse("200 + 100 every 12 x 3 at 12").courses
    np.testing.assert_array_equal(load.times, [0.0])
    np.testing.assert_array_equal(rest.times, [12.0, 24.0, 36.0])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "text ended"),
        ("   ", "text ended"),
        ("hundred", "'hundred'"),
        ("-5", "'-5'"),
        ("0", "'0'"),
        ("100mg", "'100mg'"),
        ("100/lb", "'/lb'"),
        ("100 every 24", "text ended"),
        ("100 every x 7", "'x'"),
        ("100 every 24 x", "text ended"),
        ("100 every 24 x 2.5", "'2.5'"),
        ("100 every 24 x 0", "'0'"),
        ("100 every 24 times 7", "'times'"),
        ("100 evry 24 x 7", "'evry'"),
        ("100 over", "text ended"),
        ("100 over 0", "'0'"),
        ("100 over rates", "'rates'"),
        ("100 ss", "'ss'"),
        ("100 every 12 ss x", "text ended"),
        ("100 every 12 ssx 3", "'ssx'"),
        ("100 into +", "'+'"),
        ("100 at noon", "'noon'"),
        ("100 at 1 at 2", "'at'"),
        ("100 + ", "text ended"),
        ("100, 200", "','"),
        ("1e999", "'1e999'"),
    ],
)
def test_errors_show_the_word_and_an_example(text: str, word: str) -> None:
    with pytest.raises(DataError) as caught:
        Regimen.parse(text)
    message = str(caught.value)
    assert word in message
    assert "100 every 24 x 7" in message


def test_more_doses_than_anyone_takes() -> None:
    with pytest.raises(DataError, match="expected at most 100,000 doses, got '99999999999'"):
        Regimen.parse("100 every 1 x 99999999999")


def test_a_misspelt_clause_is_guessed() -> None:
    with pytest.raises(DataError, match="Did you mean 'every'"):
        Regimen.parse("100 evry 24 x 7")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": float("nan")}, "amount"),
        ({"amount": "a lot"}, "amount"),
        ({"amount": 1, "every": 12}, "doses="),
        ({"amount": 1, "doses": 3}, "every="),
        ({"amount": 1, "every": 0, "doses": 3}, "every"),
        ({"amount": 1, "every": 1, "doses": 2.5}, "doses"),
        ({"amount": 1, "every": 1, "doses": "x"}, "doses: expected a whole number"),
        ({"amount": 1, "every": 1, "doses": float("nan")}, "doses"),
        ({"amount": 1, "every": 1, "doses": 10**9}, "at most 100,000 doses"),
        ({"amount": 1, "every": "daily"}, "every='daily' needs"),
        ({"amount": 1, "over": -1}, "over"),
        ({"amount": 1, "at": -1}, "at"),
        ({"amount": 1, "per": "lb"}, "per"),
        ({"amount": 1, "into": "two words"}, "into"),
        ({"amount": 1, "into": 1.5}, "into"),
        ({"amount": 1, "ss": True}, "ss: a steady state needs the interval"),
        ({"amount": 1, "every": 12, "doses": 2, "ss": 1}, "ss: expected True or False"),
        ({"amount": 1, "over": "long"}, 'over: expected a number above 0, "rate" or "duration"'),
    ],
)
def test_constructor_refuses(arguments: dict[str, object], word: str) -> None:
    with pytest.raises(DataError, match=word):
        Regimen(**arguments)  # type: ignore[arg-type]


def test_a_regimen_is_not_changed_in_place() -> None:
    with pytest.raises(AttributeError, match="not changed"):
        Regimen(100).courses = ()  # type: ignore[misc]
