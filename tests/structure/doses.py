"""Dosing patterns, each told twice: as records of a NONMEM table, and by hand as what happens, in order.

Times are in units of a problem's `hour`, amounts in units of its `dose`, "main" and "other" are two of its
compartments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from nlmegen.data.population import Population

Point = tuple[float, str, float, str]
"""Time; "observe", "bolus" (amount), "rate" (change of the infusion rate) or "reset"; how much; into what."""


@dataclass(frozen=True)
class Pattern:
    """What one subject gets, and when it is observed."""

    name: str
    records: Sequence[dict[str, Any]]
    points: Sequence[Point]


def _seen(*times: float) -> list[dict[str, Any]]:
    return [dict(time=t, evid=0) for t in times]


def _dose(time: float, amt: float, to: str = "main", evid: int = 1, **more: float) -> dict[str, Any]:
    return dict(time=time, evid=evid, amt=amt, cmt=to, **more)


def _look(*times: float) -> list[Point]:
    return [(t, "observe", 0.0, "") for t in times]


PATTERNS: dict[str, Pattern] = {
    p.name: p
    for p in (
        Pattern(
            "single bolus",
            [_dose(0, 1), *_seen(0, 0.5, 1, 2, 4, 8, 12, 24)],
            [(0, "bolus", 1, "main"), *_look(0, 0.5, 1, 2, 4, 8, 12, 24)],
        ),
        Pattern(
            "irregular boluses",
            [
                *(_dose(0, 1), *_seen(1.7, 5), _dose(5, 0.7), *_seen(5)),
                *(_dose(6.3, 0.4), _dose(6.3, 0.2), *_seen(7.05), _dose(11, 1.1), *_seen(11.5, 20)),
            ],
            [
                *((0, "bolus", 1, "main"), *_look(1.7, 5), (5, "bolus", 0.7, "main"), *_look(5)),
                *((6.3, "bolus", 0.4, "main"), (6.3, "bolus", 0.2, "main"), *_look(7.05)),
                *((11, "bolus", 1.1, "main"), *_look(11.5, 20)),
            ],
        ),
        Pattern(  # the second runs into the first and stops after it; the third stops between observations
            "overlapping infusions",
            [
                *(_dose(0, 1, rate=0.25), *_seen(1), _dose(2, 0.6, rate=0.2), *_seen(3, 4, 4.5, 5)),
                *(_dose(5, 0.3), *_seen(9), _dose(10, 0.5, rate=1.0), *_seen(10.25, 16)),
            ],
            [
                *((0, "rate", 0.25, "main"), *_look(1), (2, "rate", 0.2, "main"), *_look(3)),
                *((4, "rate", -0.25, "main"), *_look(4, 4.5), (5, "rate", -0.2, "main"), *_look(5)),
                *((5, "bolus", 0.3, "main"), *_look(9), (10, "rate", 1.0, "main"), *_look(10.25)),
                *((10.5, "rate", -1.0, "main"), *_look(16)),
            ],
        ),
        Pattern(
            "infusion elsewhere",
            [
                *(_dose(0, 1), _dose(1, 0.5, "other", rate=0.25), *_seen(2, 3, 5)),
                *(_dose(6, 0.4, "other"), _dose(6, 0.3, rate=0.3), *_seen(6.5, 9, 14)),
            ],
            [
                *((0, "bolus", 1, "main"), (1, "rate", 0.25, "other"), *_look(2)),
                *((3, "rate", -0.25, "other"), *_look(3, 5), (6, "bolus", 0.4, "other")),
                *((6, "rate", 0.3, "main"), *_look(6.5), (7, "rate", -0.3, "main"), *_look(9, 14)),
            ],
        ),
        Pattern(  # two of three resets end a running infusion, two set the time back, one gives a dose
            "resets",
            [
                *(_dose(0, 1), *_seen(1), _dose(3, 1, rate=0.25), *_seen(4)),
                *(dict(time=4.5, evid=3), *_seen(4.5, 6), _dose(2, 0.8, evid=4), *_seen(2)),
                *(_dose(3, 2, rate=0.4), *_seen(3.5, 6)),
                *(dict(time=0.5, evid=3), *_seen(0.5), _dose(1, 0.6), _dose(1.5, 0.3, rate=0.3)),
                *_seen(2.5, 9),
            ],
            [
                *((0, "bolus", 1, "main"), *_look(1), (3, "rate", 0.25, "main"), *_look(4)),
                *((4.5, "reset", 0, ""), *_look(4.5, 6), (2, "reset", 0, ""), (2, "bolus", 0.8, "main")),
                *(*_look(2), (3, "rate", 0.4, "main"), *_look(3.5, 6), (0.5, "reset", 0, ""), *_look(0.5)),
                *((1, "bolus", 0.6, "main"), (1.5, "rate", 0.3, "main")),
                *((2.5, "rate", -0.3, "main"), *_look(2.5, 9)),
            ],
        ),
        Pattern(  # an additional dose at the time of a record comes before it
            "additional doses",
            [
                *(_dose(0, 0.5, addl=3, ii=6), _dose(1, 0.4, "other", rate=0.2, addl=1, ii=12)),
                *_seen(1, 5.9, 6, 13, 15, 18, 24),
            ],
            [
                *((0, "bolus", 0.5, "main"), (1, "rate", 0.2, "other"), *_look(1)),
                *((3, "rate", -0.2, "other"), *_look(5.9), (6, "bolus", 0.5, "main"), *_look(6)),
                *((12, "bolus", 0.5, "main"), (13, "rate", 0.2, "other"), *_look(13)),
                *((15, "rate", -0.2, "other"), *_look(15), (18, "bolus", 0.5, "main"), *_look(18, 24)),
            ],
        ),
        Pattern(
            "late dose",
            [*_seen(1.5, 2, 3), _dose(3, 1), *_seen(3, 4, 10)],
            [*_look(1.5, 2, 3), (3, "bolus", 1, "main"), *_look(3, 4, 10)],
        ),
        Pattern("never dosed", _seen(0, 5, 20), _look(0, 5, 20)),
    )
}


def population(
    names: Sequence[str], hour: float, dose: float, into: dict[str, int], endpoints: int
) -> Population:
    """One subject a pattern, every endpoint observed whenever one is.

    Args:
        names: of the patterns.
        hour: what one unit of time is.
        dose: what one unit of amount is.
        into: numbers of the compartments "main" and "other".
        endpoints: how many there are, DVID 1, 2, ...
    """
    rows: list[dict[str, Any]] = []
    for subject, name in enumerate(names, 1):
        for record in PATTERNS[name].records:
            row = dict(id=subject, amt=0.0, rate=0.0, addl=0, ii=0.0, cmt="", dvid=1, dv=0.0) | record
            row |= dict(time=row["time"] * hour, amt=row["amt"] * dose, ii=row["ii"] * hour)
            row |= dict(rate=row["rate"] * dose / hour, cmt=into.get(row["cmt"], 0))
            observed = row["evid"] == 0
            rows += [row | dict(dvid=k) for k in range(1, endpoints + 1 if observed else 2)]
    return Population.from_table(pd.DataFrame(rows), warn=False)
