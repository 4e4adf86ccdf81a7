"""What a page's `dosing` says of the doses into one compartment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlmegen.errors import ModelError


@dataclass(frozen=True)
class Dose:
    """Modelled properties of the doses into a compartment, NONMEM's F, ALAG, R and D.

    With F the bioavailability of a record of AMT, at once or (RATE > 0) by infusion:

        RATE 0     F AMT at once
        RATE > 0   at that rate, for F AMT / RATE
        RATE -1    at `rate`, for F AMT / rate
        RATE -2    for `duration`, at F AMT / duration

    Args:
        bioavailability: factor of the amounts (1 when not given).
        lag: time by which doses and infusions come later (0 when not given).
        duration: of infusions whose record has RATE -2.
        rate: of infusions whose record has RATE -1.

    A negative lag or bioavailability, or a duration or rate that is not positive, makes a subject impossible to solve.

    Raises:
        ModelError: when `rate` or `duration` is a plain number that is not positive.

    Example:
        >>> Dose(bioavailability=0.8).lag is None
        True
    """

    bioavailability: Any = None
    lag: Any = None
    duration: Any = None
    rate: Any = None

    def __post_init__(self) -> None:
        for name in ("duration", "rate"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not value > 0:
                raise ModelError(f"Dose({name}={value!r}): expected a positive number, or one of p")
