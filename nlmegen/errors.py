"""What can go wrong: three exceptions for people, one flag per subject for numbers.

An exception here always says what was expected, what came, and the remedy. The command line turns `DataError`
and `ModelError` into exit status 2 and `FitError` into exit status 3.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable


class NlmegenError(Exception):
    """Base class of every error that nlmegen raises on purpose."""


class DataError(NlmegenError, ValueError):
    """A table cannot be used as it stands.

    Args:
        message: What was expected, what came, and the remedy.
        row: Line of the file as an editor shows it (the header is line 1), when one line is to blame.
        column: Name of the column, when one column is to blame.

    Example:
        >>> str(DataError("expected a number, got 'x'; write '.' for a missing value", row=3, column="DV"))
        "row 3, column DV: expected a number, got 'x'; write '.' for a missing value"
    """

    def __init__(self, message: str, *, row: int | None = None, column: str | None = None) -> None:
        self.row = row
        self.column = column
        where = [] if row is None else [f"row {row}"]
        if column is not None:
            where.append(f"column {column}")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


class ModelError(NlmegenError, TypeError):
    """A page (a model) cannot be used as it stands.

    Args:
        message: What was expected, what came, and the remedy.
        line: Line of the page, when one line is to blame.
        page: File of the page, when it has one.

    Example:
        >>> str(ModelError("no endpoint declared", page="mine.py", line=4))
        'page mine.py, line 4: no endpoint declared'
    """

    def __init__(self, message: str, *, line: int | None = None, page: str | None = None) -> None:
        self.line = line
        self.page = page
        where = [] if page is None else [f"page {page}"]
        if line is not None:
            where.append(f"line {line}")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


class FitError(NlmegenError, RuntimeError):
    """An estimation could not start or gave nothing usable. The message says what failed and what to try."""


class Status(enum.IntFlag):
    """What is to be said of one subject of a fit; several may hold at once, `OK` is none of them.

    Example:
        >>> (Status.NO_DOSES | Status.LOW_ESS).describe().split(":")[0]
        'no doses'
    """

    OK = 0
    NOT_CONVERGED = enum.auto()
    INDEFINITE = enum.auto()
    SECOND_MODE = enum.auto()
    NO_OBSERVATIONS = enum.auto()
    NO_DOSES = enum.auto()
    NOT_FINITE = enum.auto()
    LOW_ESS = enum.auto()
    BOUNDARY = enum.auto()
    NOT_SOLVED = enum.auto()

    def describe(self) -> str:
        """Return the flags in words, each with its remedy; "ok" when none is set."""
        words = [text for flag, text in _WORDS.items() if flag in self]
        return "; ".join(words) if words else "ok"


_WORDS = {
    Status.NOT_CONVERGED: (
        "conditional mode not converged: the last iterate is kept; look at this subject's records and starts"
    ),
    Status.INDEFINITE: (
        "indefinite Hessian at the conditional mode: a positive definite approximation is used;"
        " judge the fit by quadrature (compare)"
    ),
    Status.SECOND_MODE: (
        "a second conditional mode: the better is kept; look for flip-flop kinetics or bound the parameters"
    ),
    Status.NO_OBSERVATIONS: "no observations: only the prior speaks here; add samples or leave it out",
    Status.NO_DOSES: "no doses: the model predicts its initial state; check AMT and EVID",
    Status.NOT_FINITE: (
        "the likelihood is not finite: check this subject's doses, times and units, or bound the parameters"
    ),
    Status.LOW_ESS: (
        "poor importance weights (low effective sample size, heavy tail): take more draws, or quadrature"
    ),
    Status.BOUNDARY: "an estimate at its boundary: fix it or leave it out of the model",
    Status.NOT_SOLVED: (
        "the differential equations could not be solved (too many or too small steps, or numbers that are not finite):"
        ' try nl.Solver(method="stiff"), a larger max_steps, or bounds on the parameters'
    ),
}


def nearest(name: str, legal: Iterable[str]) -> str:
    """Return the tail of a message on an unknown name: the nearest legal name, then all of them.

    Args:
        name: What was written.
        legal: The names that would have been accepted, in the order to show.

    Returns:
        A sentence that starts with a blank, to follow the sentence that names the fault.

    Example:
        >>> nearest("tvlc", ["tvcl", "tvv"])
        " Did you mean 'tvcl'? Legal names: tvcl, tvv."
    """
    names = [str(item) for item in legal]
    folded = {item.lower(): item for item in reversed(names)}
    close = difflib.get_close_matches(str(name).lower(), list(folded), n=1, cutoff=0.5)
    guess = f" Did you mean '{folded[close[0]]}'?" if close else ""
    return f"{guess} Legal names: {', '.join(names) if names else '(none)'}."
