"""`--set key=value` becomes a typed option, or an error that names what would have been legal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from nlmegen.cli import settings
from nlmegen.cli.parser import build_parser
from nlmegen.cli.settings import UsageError, build, check_method
from nlmegen.errors import FitError


@dataclass(frozen=True)
class Toy:
    """A method with one field of every kind."""

    seed: int = 0
    tolerance: float = 1e-6
    fast: bool = False
    label: str = "x"
    covariance: Literal["R", "S"] | None = "R"
    limit: int | None = None
    hidden: tuple[int, ...] = (8, 8)
    family: str | None = None
    name: str = field(default="toy", init=False)

    def __post_init__(self) -> None:
        if self.tolerance < 0:
            raise FitError("tolerance must not be negative")

    def estimate(self, problem: object, progress: object = None) -> None:
        """Nothing is estimated here."""


@dataclass(frozen=True)
class Plain:
    """A method without options of the command line."""

    steps: int = 10
    name: str = field(default="plain", init=False)

    def estimate(self, problem: object, progress: object = None) -> None:
        """Nothing is estimated here."""


@pytest.fixture(autouse=True)
def _toy_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = {"toy": Toy, "plain": Plain}
    monkeypatch.setattr(settings, "METHODS", methods)
    monkeypatch.setattr(settings, "method_class", methods.__getitem__)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("seed=3", "seed", 3),
        (" seed = 3 ", "seed", 3),
        ("tolerance=1e-3", "tolerance", 1e-3),
        ("tolerance=2", "tolerance", 2.0),
        ("fast=true", "fast", True),
        ("fast=No", "fast", False),
        ("label=a=b", "label", "a=b"),
        ("covariance=S", "covariance", "S"),
        ("covariance=none", "covariance", None),
        ("limit=5", "limit", 5),
        ("limit=None", "limit", None),
        ("hidden=16,4", "hidden", (16, 4)),
        ("family=gaussian", "family", "gaussian"),
        ("family=none", "family", None),
        ("hidden=16", "hidden", (16,)),
        ("hidden=(16, 4)", "hidden", (16, 4)),
    ],
)
def test_a_setting_takes_the_type_of_its_field(text: str, field: str, value: object) -> None:
    got = getattr(build("toy", [text], {}), field)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed=three", "expected a whole number for 'seed', got 'three'"),
        ("seed=1.5", "expected a whole number"),
        ("tolerance=small", "expected a number for 'tolerance'"),
        ("fast=maybe", "expected true or false"),
        ("covariance=Q", "expected 'R' or 'S' or none"),
        ("hidden=a,b", "expected a whole number, or several joined by commas"),
        ("tolerance=-1", "tolerance must not be negative"),
        ("toleranc=1", "Did you mean 'tolerance'? Legal names: seed, tolerance, fast, label"),
        ("seed", "expected key=value, such as seed=0."),
        ("sede", "expected key=value. Did you mean 'seed'?"),
    ],
)
def test_a_setting_that_cannot_be_used_says_what_can(text: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        build("toy", [text], {})
    assert words in str(error.value)


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="'seed' is given twice"):
        build("toy", ["seed=1", "seed=2"], {})
    with pytest.raises(UsageError, match="'seed' is given twice"):
        build("toy", ["seed=2"], {"seed": 1})


def test_a_flag_that_a_method_cannot_honour_is_an_error() -> None:
    assert build("toy", [], {"seed": 4}).seed == 4
    with pytest.raises(UsageError, match="--seed means nothing to method plain; methods that take it: toy"):
        build("plain", [], {"seed": 4})
    with pytest.raises(UsageError, match="--device means nothing to method toy; no method takes it"):
        build("toy", [], {"device": "cuda"})


def test_the_options_are_listed_with_types_and_defaults() -> None:
    text = settings.describe("toy")
    assert "seed = 0  (a whole number)" in text
    assert "covariance = 'R'  ('R' or 'S' or none)" in text


def test_a_misspelt_method_is_told_the_nearest() -> None:
    check_method("toy")
    with pytest.raises(UsageError, match="no method 'tpy'. Did you mean 'toy'"):
        check_method("tpy")


@pytest.mark.parametrize("written", ["saem+imp", "saem + imp", " saem +imp "])
def test_blanks_about_a_plus_do_not_matter(written: str) -> None:
    assert build_parser().parse_args(["fit", "page.py", "data.csv", "--method", written]).method == "saem+imp"


def test_a_chain_takes_each_option_for_the_method_that_it_names() -> None:
    check_method("plain+toy")
    chain = build("plain+toy", ["toy.covariance=S"], {"seed": 3})
    assert chain.name == "plain+toy"
    assert (chain.methods[1].covariance, chain.methods[1].seed) == ("S", 3)
    assert "options of method plain" in settings.describe("plain+toy")


@pytest.mark.parametrize(
    ("name", "options", "flags", "words"),
    [
        ("plain+toy", ["covariance=S"], {}, "say whose option it is, as plain.key=value"),
        ("plain+toy", ["other.covariance=S"], {}, "say whose option it is"),
        ("plain+toy", ["toy.covarance=S"], {}, "method toy has no option 'covarance'"),
        ("plain+toy", [], {"device": "cuda"}, "means nothing to method plain.toy; no method takes it"),
    ],
)
def test_what_a_chain_cannot_honour_is_an_error(name, options, flags, words) -> None:
    with pytest.raises(UsageError, match=words):
        build(name, options, flags)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toy+toy", "takes each method once"),
        ("toy+", "expected names of methods joined by"),
        ("toy,plain", "no method"),
    ],
)
def test_a_chain_of_nothing_is_an_error(name, words) -> None:
    with pytest.raises(UsageError, match=words):
        check_method(name)
