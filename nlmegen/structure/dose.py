"""What a page's `dosing` says of the doses into one compartment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlmegen.errors import ModelError


@dataclass(frozen=True)
class Dose:
    """Modelled properties of the doses into a compartment, NONMEM's F and ALAG.

    Args:
        bioavailability: factor of the amounts of bolus doses (1 when not given).
        lag: time by which doses and infusions come later (0 when not given).
        duration: not supported yet; it belongs to records with RATE = -2, which are refused on reading.

    Raises:
        ModelError: when `duration` is given.

    Example:
        >>> Dose(bioavailability=0.8).lag is None
        True
    """

    bioavailability: Any = None
    lag: Any = None
    duration: Any = None

    def __post_init__(self) -> None:
        if self.duration is not None:
            raise ModelError(
                "Dose(duration=...): modelled durations are not supported yet; give RATE in the data, or write the "
                "input as an absorption compartment"
            )
