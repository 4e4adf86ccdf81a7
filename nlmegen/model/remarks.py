"""What to say of a page on its data that nothing else would show: what is declared there and never comes into play."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..data.events import Kind
from .discrete import Ordered

if TYPE_CHECKING:
    from .problem import Problem

RATES = {"rate": -1, "duration": -2}
"""What RATE says in a record that leaves this to the page."""


def remarks(problem: Problem) -> list[str]:
    """Durations and rates of doses that no record asks for, and ordered categories at the ends that nobody is in.

    Example:
        >>> import nlmegen as nl
        >>> remarks(nl.Problem(nl.load_model("theophylline"), nl.load_data("theophylline")))
        []
    """
    words = []
    for name, given in unasked(problem).items():
        codes = " or ".join(str(RATES[word]) for word in given)
        words.append(
            f"the page gives a {' and a '.join(given)} for doses into {name}, and no record of {name} asks for it (RATE"
            f" {codes}): doses of RATE 0 are boluses, and others run at their own RATE"
        )
    for name, endpoint, mask in problem.by_endpoint:
        if isinstance(endpoint, Ordered) and bool(mask.any()):
            words += _unseen(name, endpoint, problem.y[mask])
    return words


def unasked(problem: Problem, boluses: bool = False) -> dict[str, tuple[str, ...]]:
    """Compartments that are dosed, and whose doses the page gives a rate or a duration that no record leaves to it.

    Args:
        problem: the page on its data.
        boluses: only compartments that have a bolus.

    Returns:
        By compartment what the page gives: "rate", "duration" or both.
    """
    schedule = problem.schedule.root[0]
    events, structure = schedule.events, problem.structure
    dose = (events.kind == Kind.BOLUS) | ((events.kind == Kind.STEADY) & (events.rate == 0))
    if not boluses:
        dose = dose | (events.kind == Kind.START) | (events.kind == Kind.STEADY)
    found = {}
    for name, said in structure.dosed.items():
        given = tuple(word for word in RATES if getattr(said, word) is not None)
        here = schedule.target == structure.compartments.index(name)
        if given and bool((here & dose).any()) and not bool((here & (events.modelled > 0)).any()):
            found[name] = given
    return found


def _unseen(name: str, endpoint: Ordered, y: Tensor) -> list[str]:
    """The lowest and the highest category, where no observation is in them."""
    top = len(endpoint.gaps) + 1
    words = []
    if not bool((y == 0).any()):
        words.append(
            f"{name}: no observation is in category 0 (the page has 0 to {top}); if the data count categories from 1,"
            " subtract 1"
        )
    if not bool((y == top).any()):
        fewer = "declare one gap fewer" if top > 1 else "there is nothing to estimate"
        words.append(
            f"{name}: no observation is in category {top}, the highest of the page, so that the data put no upper limit"
            f" on where it begins; {fewer}"
        )
    return words
