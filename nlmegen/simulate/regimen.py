"""A dosing regimen: courses of equal doses, added together, written as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nlmegen.errors import DataError, nearest
from nlmegen.simulate.draws import whole

MOST_DOSES = 100_000
"""Doses of one term, at most: more are a slip of the pen, and would not fit in memory."""

GRAMMAR = (
    "AMOUNT[/kg] [over NUMBER | over duration | over rate] [into COMPARTMENT] [every II [ss] [x N]] [at TIME],"
    " several joined by + (over duration, over rate: as the page's dosing gives it; ss: at steady state)"
)
"""How a regimen is written, as shown in every error."""
EXAMPLES = (
    '"100 every 24 x 7", "200 + 100 every 12 x 9 at 12", "5/kg over 1 into central every 12 x 4", '
    '"100 every 12 ss x 3"'
)

_NUMBER = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.])")
_FACTOR = re.compile(r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WHOLE = re.compile(r"\d+(?![\w.])")
_COMPARTMENT = re.compile(r"\w+")
_CLAUSES = ("over", "into", "every", "at")

MODELLED = {"rate": -1.0, "duration": -2.0}
"""What stands for DURATION where the page says it (`dosing`), and RATE in the table: "over rate", "over duration"."""


@dataclass(frozen=True)
class Course:
    """Equal doses, equally spaced: one term of a `Regimen`.

    Attributes:
        amount: Amount of each dose, in the amount unit of the data, or per kg of body weight.
        every: Dosing interval; None for a single dose.
        doses: Number of doses.
        over: Duration of the infusion of each dose; None for a bolus; "rate" or "duration" where the page says the one
            or the other.
        into: Compartment, by name or number; None for the model's first.
        at: Time of the first dose.
        ss: Whether the first dose finds the steady state of such doses.
        per: "kg" when `amount` is per kg of body weight, else None.
    """

    amount: float
    every: float | None = None
    doses: int = 1
    over: float | str | None = None
    into: str | int | None = None
    at: float = 0.0
    per: str | None = None
    ss: bool = False

    @property
    def rate(self) -> float:
        """What RATE says of a dose: 0 for a bolus, -1 or -2 where the page gives rate or duration."""
        if isinstance(self.over, str):
            return MODELLED[self.over]
        return self.amount / self.over if self.over else 0.0

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """Times of the doses, `at + k * every`."""
        return self.at + np.arange(self.doses, dtype=np.float64) * (self.every or 0.0)

    def __str__(self) -> str:
        words = [_plain(self.amount) + ("" if self.per is None else f"/{self.per}")]
        if self.over is not None:
            words.append(f"over {self.over if isinstance(self.over, str) else _plain(self.over)}")
        if self.into is not None:
            words.append(f"into {self.into}")
        if self.every is not None:
            steady = " ss" if self.ss else ""
            number = f" x {self.doses}" if self.doses > 1 or not self.ss else ""
            words.append(f"every {_plain(self.every)}{steady}{number}")
        if self.at:
            words.append(f"at {_plain(self.at)}")
        return " ".join(words)


class Regimen:
    """A dosing regimen; regimens add up.

    Args:
        amount: Amount of each dose, above 0.
        every: Dosing interval, above 0; needs `doses`.
        doses: Number of doses, 1 unless said.
        over: Duration of an infusion, above 0; a bolus (or an input into the depot) unless said. "rate" or "duration"
            where the page's `dosing` gives the rate or the duration of the infusion (RATE -1 and -2).
        into: Compartment that receives the dose, by name or number; the model's first unless said.
        at: Time of the first dose, not negative.
        per: "kg" for an amount per kg of body weight (the cohort's covariates must hold `wt`).
        ss: Whether the first dose finds the steady state of doses of this kind, `every` apart and given for ever
            before. Several such terms, and doses before them, add up, as they do where the kinetics are linear: the
            first dose of a patient replaces what is there (SS 1), others add to it (SS 2).

    Attributes:
        courses: The terms, in the order of the sum.

    Raises:
        DataError: An argument that makes no dose; the message says what was expected.

    Example:
        >>> print(Regimen(200) + Regimen(100, every=12, doses=9, at=12))
        200 + 100 every 12 x 9 at 12
        >>> Regimen.parse("5/kg over 1 into central every 12 x 4") == Regimen(
        ...     5, every=12, doses=4, over=1, into="central", per="kg")
        True
    """

    __slots__ = ("courses",)
    courses: tuple[Course, ...]

    def __init__(
        self,
        amount: float,
        every: float | None = None,
        doses: int | None = None,
        over: float | str | None = None,
        into: str | int | None = None,
        at: float = 0.0,
        per: str | None = None,
        ss: bool = False,
    ) -> None:
        count = 1 if doses is None else whole("doses", doses, 1)
        if count > MOST_DOSES:
            raise DataError(f"doses: expected at most {MOST_DOSES:,} doses, got {count:,}")
        if every is None and count > 1:
            raise DataError(f"{count} doses need their interval: say every=, for example every=12")
        if not isinstance(ss, bool):
            raise DataError(f"ss: expected True or False, got {ss!r}")
        if ss and every is None:
            raise DataError(
                "ss: a steady state needs the interval of its doses: say every=, for example every=12"
            )
        if every is not None and doses is None and not ss:
            raise DataError(f"every={every!r} needs the number of doses: say doses=, for example doses=7")
        if per not in (None, "kg"):
            raise DataError(f'per: expected None or "kg", got {per!r}')
        if isinstance(into, bool) or not (into is None or isinstance(into, int) or _is_name(into)):
            raise DataError(f"into: expected a compartment's name or number, got {into!r}")
        course = Course(
            amount=_above_zero("amount", amount),
            every=None if every is None or (count == 1 and not ss) else _above_zero("every", every),
            doses=count,
            over=_duration(over),
            into=int(into) if isinstance(into, str) and into.isdigit() else into,
            at=_number("at", at),
            per=per,
            ss=ss,
        )
        if course.at < 0:
            raise DataError(f"at: expected a time of 0 or later, got {at!r}; count times from the first dose")
        object.__setattr__(self, "courses", (course,))

    @classmethod
    def parse(cls, text: str) -> Regimen:
        """Read a regimen from its text, written in `GRAMMAR`.

        Args:
            text: The regimen; the clauses of one term may come in any order, each at most once.

        Raises:
            DataError: The offending word, what was expected there, the grammar and an example.

        Example:
            >>> Regimen.parse("200 + 100 every 12 x 9 at 12").courses[1].times[:3]
            array([12., 24., 36.])
        """
        return _Reader(text).regimen()

    @property
    def per_kg(self) -> bool:
        """Whether any amount is per kg of body weight."""
        return any(course.per is not None for course in self.courses)

    def __add__(self, other: object) -> Regimen:
        if not isinstance(other, Regimen):
            return NotImplemented
        total = object.__new__(Regimen)
        object.__setattr__(total, "courses", self.courses + other.courses)
        return total

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Regimen is not changed in place ({name}); build another and add")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regimen) and self.courses == other.courses

    def __hash__(self) -> int:
        return hash(self.courses)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Regimen.parse, (str(self),))

    def __str__(self) -> str:
        return " + ".join(str(course) for course in self.courses)

    def __repr__(self) -> str:
        return f"Regimen.parse({str(self)!r})"


class _Reader:
    """Reads a regimen from left to right; `at` is where it stands."""

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise DataError(f"expected a Regimen or its text such as {EXAMPLES}, got {text!r}")
        self.text = text
        self.at = 0

    def regimen(self) -> Regimen:
        total = self.course()
        while self.take(re.compile(r"\+")):
            total = total + self.course()
        if self.word():
            raise self.error("expected '+' or one of " + ", ".join(_CLAUSES), self.word(), _CLAUSES)
        return total

    def course(self) -> Regimen:
        amount = self.number("an amount", above=True)
        per = "kg" if self.take(re.compile(r"/\s*kg\b", re.IGNORECASE)) else None
        if per is None and self.text[self.at : self.at + 1] == "/":
            raise self.error("expected '/kg' after an amount", self.word())
        over: float | str | None = None
        every = into = at = doses = None
        ss = False
        seen: set[str] = set()
        while (clause := self.take(re.compile(rf"(?:{'|'.join(_CLAUSES)})\b", re.IGNORECASE))) is not None:
            clause = clause.lower()
            if clause in seen:
                raise self.error(f"'{clause}' comes twice in one term; join two terms with '+'", clause)
            seen.add(clause)
            if clause == "over":
                word = self.take(re.compile(rf"(?:{'|'.join(MODELLED)})\b", re.IGNORECASE))
                over = (
                    word.lower()
                    if word
                    else self.number("'duration', 'rate', or the duration of the infusion", above=True)
                )
            elif clause == "into":
                into = self.need(_COMPARTMENT, "a compartment's name or number")
            elif clause == "at":
                at = self.number("the time of the first dose")
            else:
                every = self.number("the dosing interval", above=True, pattern=_FACTOR)
                ss = self.take(re.compile(r"ss(?![\w.])", re.IGNORECASE)) is not None
                by = re.compile(r"[xX]")
                if ss and not by.match(self.text, self.at):
                    continue
                self.need(by, "'x' and the number of doses, as in 'every 24 x 7'")
                doses = int(self.need(_WHOLE, "a whole number of doses"))
                if doses < 1:
                    raise self.error("expected at least one dose", "0")
                if doses > MOST_DOSES:
                    raise self.error(f"expected at most {MOST_DOSES:,} doses", str(doses))
        return Regimen(amount, every=every, doses=doses, over=over, into=into, at=at or 0.0, per=per, ss=ss)

    def number(self, what: str, above: bool = False, pattern: re.Pattern[str] = _NUMBER) -> float:
        start = self.at
        value = float(self.need(pattern, what + (" above 0" if above else "")))
        if not math.isfinite(value) or (above and value <= 0):
            self.at = start
            raise self.error(f"expected {what}" + (" above 0" if above else ""), self.word())
        return value

    def take(self, pattern: re.Pattern[str]) -> str | None:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        self.skip()
        return found.group()

    def need(self, pattern: re.Pattern[str], what: str) -> str:
        found = self.take(pattern)
        if found is None:
            raise self.error(f"expected {what}", self.word())
        return found

    def skip(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def word(self) -> str:
        """The word where the reader stands, empty at the end of the text."""
        rest = self.text[self.at :].split(maxsplit=1)
        return rest[0] if rest else ""

    def error(self, message: str, word: str, legal: tuple[str, ...] = ()) -> DataError:
        came = f"got '{word}'" if word else "the text ended"
        guess = nearest(word, legal).split(" Legal names")[0] if legal else ""
        help_ = f"Write {GRAMMAR}; for example {EXAMPLES}"
        return DataError(f"regimen {self.text!r}: {message}, {came}.{guess} {help_}")


def _plain(value: float) -> str:
    """The shortest text that reads back as the same number."""
    text = repr(float(value))
    return text.removesuffix(".0")


def _is_name(into: object) -> bool:
    return isinstance(into, str) and _COMPARTMENT.fullmatch(into) is not None


def _number(name: str, value: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f"{name}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise DataError(f"{name}: expected a finite number, got {value!r}")
    return number


def _duration(over: float | str | None) -> float | str | None:
    """The duration of an infusion, or the word that leaves it to the page."""
    if over is None or (isinstance(over, str) and over in MODELLED):
        return over
    try:
        return _above_zero("over", over)  # type: ignore[arg-type]
    except DataError:
        raise DataError(f'over: expected a number above 0, "rate" or "duration", got {over!r}') from None


def _above_zero(name: str, value: float) -> float:
    number = _number(name, value)
    if number <= 0:
        raise DataError(f"{name}: expected a number above 0, got {value!r}")
    return number
