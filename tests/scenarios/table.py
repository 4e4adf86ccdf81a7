"""The scenarios: what a subject's table says, event by event.

Compartments are named by their place: `A` is the first (the default for doses), `B` the second that is dosed. Amounts
are about 100, times hours. A scenario says which variants of a page it needs, and what is expected of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

A, B = "A", "B"
WEIGHTS = (70.0, 61.0, 78.0, 66.0, 83.0, 72.0, 58.0)
"""Weights of successive records where the covariate changes."""


@dataclass(frozen=True)
class Scenario:
    """Records of one subject.

    Attributes:
        name: in the tests' names.
        records: time, evid, amt, rate, ii, addl, ss, cmt (A or B).
        modelled: RATE is -1 or -2 somewhere: the page must say the rate or duration.
        off: a compartment is switched off: it must be one into which nothing flows.
        weight: the scenario is also run with weights that change from record to record.
        refused: what the error says, where no page is served.
    """

    name: str
    records: Sequence[dict[str, Any]]
    modelled: bool = False
    off: bool = False
    weight: bool = True
    refused: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def plain(self) -> bool:
        """Whether it holds boluses, infusions and resets only."""
        return not (self.modelled or self.off or any(r["ss"] for r in self.records))


def record(time: float, evid: int, **more: Any) -> dict[str, Any]:
    return dict(time=time, evid=evid, amt=0.0, rate=0.0, ii=0.0, addl=0, ss=0, cmt=A) | more


def see(*times: float) -> list[dict[str, Any]]:
    return [record(t, 0) for t in times]


def dose(time: float, amt: float = 100.0, **more: Any) -> dict[str, Any]:
    return record(time, more.pop("evid", 1), amt=amt, **more)


def infusion(time: float, amt: float, duration: float, **more: Any) -> dict[str, Any]:
    return dose(time, amt, rate=amt / duration, **more)


def steady(time: float, ii: float = 12.0, amt: float = 100.0, ss: int = 1, **more: Any) -> dict[str, Any]:
    return dose(time, amt, ii=ii, ss=ss, **more)


def constant(time: float, rate: float, ss: int = 1, **more: Any) -> dict[str, Any]:
    return dose(time, 0.0, rate=rate, ss=ss, **more)


RESET = 3
TIMES = (0.25, 1.1, 2.3, 3.5, 5.2, 8.0, 12.5, 19.0)


def after(time: float, *times: float) -> list[dict[str, Any]]:
    return see(*(time + t for t in times or TIMES))


SCENARIOS: dict[str, Scenario] = {
    s.name: s
    for s in (
        # -- boluses -------------------------------------------------------------------------------------------
        Scenario("bolus", [dose(0), *see(0, *TIMES)]),
        Scenario(
            "boluses",
            [
                *(dose(0), *see(1.7, 5), dose(5, 70), *see(5.3, 6.3), dose(6.3, 40), dose(6.3, 20)),
                *(*see(8.05), dose(11, 110), *see(12.5, 20)),
            ],
        ),
        Scenario("dose, then observation at that time", [dose(0), *see(2), dose(6, 60), *see(6, 7, 9)]),
        Scenario("observation at that time, then dose", [dose(0), *see(2, 6), dose(6, 60), *see(7, 9)]),
        Scenario("observations before the first dose", [*see(0, 1.5, 3), dose(3), *see(4, 6, 12)]),
        Scenario("no dose at all", see(0, 2, 9)),
        Scenario("negative times", [dose(-30), *see(-28.7, -25), dose(-20, 50), *see(-18, -1, 0, 4)]),
        Scenario(
            "several compartments",
            [
                *(dose(0), dose(0, 40, cmt=B), *see(1.2, 3), dose(5, 60, cmt=B), *see(6, 7.5)),
                *(infusion(8, 50, 2.5, cmt=B), *see(9, 10.9), dose(11, 80), *see(12.3, 16)),
            ],
        ),
        # -- infusions -----------------------------------------------------------------------------------------
        Scenario("infusion", [infusion(0, 100, 4), *see(0, 1.5, 4.1, 6, 11)]),
        Scenario(
            "overlapping infusions",
            [
                *(infusion(0, 100, 4), *see(1.4), infusion(2, 60, 3), *see(3.1, 4.6, 6)),
                *(dose(7, 30), *see(9), infusion(10, 50, 0.5), *see(10.9, 11.7, 16)),
            ],
        ),
        Scenario(
            "infusion into the second compartment",
            [
                dose(0),
                infusion(1, 50, 2, cmt=B),
                *see(2.1, 3.9, 5),
                infusion(6, 30, 1, cmt=B),
                *see(6.9, 9, 14),
            ],
        ),
        Scenario("infusion that ends after the last record", [infusion(0, 100, 40), *see(1, 5, 20)]),
        # -- additional doses ----------------------------------------------------------------------------------
        Scenario("additional doses", [dose(0, 50, addl=3, ii=6), *see(1, 5.5, 7.2, 13, 17.5, 19.5, 25)]),
        Scenario(
            "additional doses to the last record", [dose(0, 50, addl=90, ii=5), *see(1, 4.5, 6.2, 13, 22.3)]
        ),
        Scenario(
            "dose at the time of an additional dose",
            [dose(0, 50, addl=3, ii=6), *see(2), dose(6, 30), *see(8), dose(12, 20, cmt=B), *see(13.5, 20)],
        ),
        Scenario(
            "observation at the time of an additional dose",
            [dose(0, 50, addl=3, ii=6, cmt=B), *see(6, 7, 12, 13)],
            weight=False,
        ),
        Scenario(
            "infusions that overlap themselves",
            [infusion(0, 60, 5, addl=4, ii=3), *see(1, 3.9, 6.4, 10.1, 13.9, 22)],
        ),
        Scenario(
            "additional doses across resets",
            [
                *(dose(0, 50, addl=10, ii=4), *see(3, 5.2, 9.5), record(10, RESET), *see(11, 13.2)),
                *(dose(14, 60, evid=4, addl=2, ii=5), *see(15.2, 20.1, 26)),
            ],
        ),
        # -- other records and resets --------------------------------------------------------------------------
        Scenario(
            "other records between",
            [
                record(0, 2),
                dose(0),
                record(1, 2),
                *see(2.2),
                record(4, 2),
                dose(4, 30),
                record(4, 2),
                *see(5, 9),
            ],
        ),
        Scenario(
            "resets",
            [dose(0), *see(2, 5), record(6, RESET), *see(7, 8), dose(9, 60), *see(10.2, 14), record(20, 2)],
        ),
        Scenario(
            "reset during an infusion",
            [
                infusion(0, 100, 8),
                *see(3),
                record(4, RESET),
                *see(4.5, 9),
                infusion(10, 60, 3, evid=4),
                *see(11.4, 16),
            ],
        ),
        Scenario(
            "resets that set the time back",
            [
                dose(0),
                *see(3, 8),
                dose(2, 80, evid=4),
                *see(3.1, 9),
                record(1, RESET),
                dose(1.5, 50),
                *see(3.5, 10),
            ],
        ),
        # -- steady state --------------------------------------------------------------------------------------
        Scenario("steady state, boluses", [steady(0), *see(0.9, 2.1, 3.5, 8, 11.9, 20)]),
        Scenario("steady state later", [*see(0, 2), steady(3), *see(4.2, 6, 9, 18)]),
        Scenario(
            "steady state with additional doses", [steady(0, addl=3), *see(1, 5, 11.2, 14, 20, 26.5, 50)]
        ),
        Scenario("steady state, short infusions", [steady(0, rate=100 / 3), *see(0.9, 2, 4.5, 8, 16)]),
        Scenario(
            "steady state, infusions longer than the interval",
            [steady(0, rate=100 / 30), *see(2, 5.3, 9, 13.7, 17, 22, 29, 33, 40)],
        ),
        Scenario(
            "steady state, infusions as long as the interval",
            [steady(0, ii=8, rate=100 / 8, addl=2), *see(1.3, 7, 11, 20, 27, 34)],
        ),
        Scenario(
            "steady state, long infusions with additional doses",
            [steady(0, ii=6, amt=70, rate=5.0, addl=2), *see(1.5, 5, 9, 14, 22, 30)],
        ),
        Scenario("steady state, constant infusion", [constant(0, 7.0), *see(0, 1.2, 4, 9)]),
        Scenario(
            "steady state ends infusions and additional doses",
            [
                *(infusion(0, 100, 20), dose(0, 40, addl=9, ii=5), *see(3, 7)),
                *(steady(8, amt=60), *see(9.1, 12, 16, 24)),
            ],
        ),
        Scenario("steady state twice", [steady(0), *see(2, 9), steady(12, amt=130), *see(13, 17, 30)]),
        Scenario("steady state and a dose at its time", [dose(0), steady(0), dose(0, 30), *see(1.5, 4, 9)]),
        Scenario("steady state into the second compartment", [steady(0, cmt=B), *see(1, 3, 7, 15)]),
        Scenario(
            "steady state of two regimens",
            [
                steady(0, ii=24, addl=2),
                *see(1.5, 9),
                steady(10, ii=24, amt=50, ss=2, addl=2),
                *see(11, 18, 25.5, 36, 60),
            ],
        ),
        Scenario(
            "steady state on top of earlier doses",
            [dose(0), *see(2), dose(3, 50), *see(4), steady(5, amt=60, ss=2), *see(6.2, 9, 15)],
        ),
        Scenario(
            "steady state on top, long infusions",
            [infusion(0, 60, 9), *see(2), steady(4, ss=2, rate=100 / 17), *see(5.5, 8, 10.3, 15, 22, 30)],
        ),
        Scenario(
            "steady state on top, constant infusion",
            [dose(0), *see(2), constant(3, 6.0, ss=2), *see(3.5, 7, 12)],
        ),
        Scenario(
            "steady state after a reset",
            [dose(0), *see(4), record(5, RESET), *see(6), steady(7), *see(8.3, 14)],
        ),
        Scenario(
            "steady state of a reset with a dose",
            [dose(0), *see(4), steady(6, evid=4, addl=1), *see(7.2, 13, 19.5)],
        ),
        Scenario(
            "reset after steady state", [steady(0, addl=4), *see(2, 13.5), record(14, RESET), *see(15, 25.5)]
        ),
        Scenario(
            "reset during infusions of a steady state",
            [steady(0, rate=100 / 20), *see(2), record(4, RESET), *see(5), dose(6, 40), *see(7, 11)],
        ),
        Scenario(
            "resets set the time back, steady state after",
            [dose(0), *see(3, 8), steady(2, evid=4), *see(3.1, 9.5)],
        ),
        # -- modelled rates and durations ----------------------------------------------------------------------
        Scenario("modelled rate", [dose(0, rate=-1), *see(1.3, 2.9, 5.2, 9)], modelled=True),
        Scenario("modelled duration", [dose(0, rate=-2), *see(1.3, 2.9, 5.2, 9)], modelled=True),
        Scenario(
            "modelled rate and duration, additional doses",
            [
                *(dose(0, rate=-1, addl=3, ii=6), *see(1.4), dose(2, 60, rate=-2, addl=2, ii=7, cmt=B)),
                *see(2.1, 5, 8.2, 12.3, 15.2, 21, 26),
            ],
            modelled=True,
        ),
        Scenario(
            "modelled beside recorded ones",
            [
                dose(0, rate=-2),
                infusion(1, 60, 3),
                *see(1.9, 2.8, 4),
                dose(5, 50),
                dose(5, 45, rate=-1),
                *see(6.1, 9),
            ],
            modelled=True,
        ),
        Scenario(
            "modelled durations that overlap",
            [dose(0, rate=-2, addl=4, ii=1.5), *see(1.2, 2.8, 5, 8.1, 14)],
            modelled=True,
        ),
        Scenario(
            "steady state, modelled duration", [steady(0, rate=-2), *see(0.3, 2, 4.1, 8, 15)], modelled=True
        ),
        Scenario(
            "steady state, modelled rate",
            [steady(0, rate=-1, addl=1), *see(0.3, 2, 4.1, 13.6, 20)],
            modelled=True,
        ),
        Scenario(
            "steady state, modelled durations longer than the interval",
            [steady(0, ii=1.5, amt=20, rate=-2, addl=1), *see(0.4, 1.2, 2.0, 4.2, 9)],
            modelled=True,
        ),
        Scenario(
            "steady state on top, modelled duration",
            [dose(0), *see(3), steady(5, ss=2, rate=-2), *see(5.4, 7, 10, 15)],
            modelled=True,
        ),
        Scenario(
            "steady state, modelled constant rate",
            [constant(0, -1), *see(0, 1.2, 4, 9)],
            modelled=True,
            refused="expected an amount with RATE -1",
        ),
        Scenario(
            "reset and modelled duration",
            [dose(0, rate=-2), *see(1), dose(1.5, 60, rate=-2, evid=4), *see(2.6, 4.4, 8)],
            modelled=True,
        ),
        # -- what a lag does to the order (without one they are ordinary) --------------------------------------
        Scenario("a late dose and an early one", [dose(0), dose(0.1, 60, cmt=B), *see(0.35, 0.6, 1.2, 4)]),
        Scenario(
            "a late dose after the next record", [dose(0), *see(0.3), dose(0.35, 30), *see(0.5, 0.9, 1.3, 5)]
        ),
        Scenario(
            "a late dose and a reset",
            [dose(0), *see(2), dose(4), *see(4.2), record(4.3, RESET), *see(6), dose(7, 40), *see(9)],
        ),
        Scenario(
            "a late infusion and a reset",
            [infusion(0, 90, 5), *see(2), record(3, RESET), *see(4), infusion(5, 40, 2, evid=4), *see(7, 9)],
        ),
        Scenario(
            "a late dose and a steady state", [dose(0), *see(3), dose(5.8), steady(6), *see(6.3, 8, 13)]
        ),
        Scenario(
            "late infusions of a steady state run past its record",
            [steady(0, ii=4, amt=50, rate=50 / 3.7, addl=1), *see(0.2, 0.55, 1.5, 3, 5.1, 6.5, 10)],
        ),
        Scenario(
            "late additional doses", [dose(0, 50, addl=5, ii=2), *see(0.2, 1.1, 2.3, 3.9, 7.1, 8.2, 14)]
        ),
        # -- switching off -------------------------------------------------------------------------------------
        Scenario(
            "switched off and on by a dose",
            [dose(0), *see(2), record(3, 2, cmt=-1), *see(4, 7), dose(8, 60), *see(9.2, 14)],
            off=True,
        ),
        Scenario(
            "switched off during an infusion",
            [
                infusion(0, 100, 6),
                *see(2),
                record(3, 2, cmt=-1),
                *see(4, 7),
                record(8, 2, cmt=1),
                infusion(9, 50, 2),
                *see(10.9, 14),
            ],
            off=True,
        ),
        Scenario(
            "switched off after a steady state",
            [steady(0, rate=100 / 20), *see(2), record(3, 2, cmt=-1), *see(4, 9), dose(10, 40), *see(12)],
            off=True,
        ),
        Scenario(
            "switched off with another dose running",
            [dose(0), infusion(1, 80, 6, cmt=B), *see(2), record(3, 2, cmt=-1), *see(4.4, 9)],
            off=True,
        ),
    )
}
