"""Closed forms of linear compartmental disposition: one, two and three compartments, with or without absorption."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from nlmegen.errors import ModelError
from nlmegen.maths.taylor import Number, Taylor, lift, value_of
from nlmegen.structure.meeting import Mended
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solution import Solution
from nlmegen.structure.spectrum import Disposition, micro_constants

ABSORPTIONS = (None, "first-order")


class Structure(ABC):
    """What carries amounts through the compartments of a page.

    Attributes:
        parameters: names of the individual parameters that it reads.
        compartments: names of its compartments; 1 is the first and the default for doses.
    """

    parameters: tuple[str, ...]
    compartments: tuple[str, ...]
    shared_error: float = 0.0
    """By how much, relative to the peak, an amount may depend on which other subjects are solved with it."""
    closed_form: Structure | None = None
    """The closed form of the same amounts, where there is one."""

    @abstractmethod
    def solve(self, p: Any, schedule: Schedule) -> Mapping[str, Number]:
        """Amounts at the observation times.

        Args:
            p: an object with the individual parameters as attributes, tensors or Taylor numbers
                `[*draw, subject or 1, 1 or event]` (an event axis, values per segment, where they vary in time).
            schedule: doses and times of N subjects.

        Returns:
            For each compartment its amount `[*draw, subject, time]`, in the unit of the doses. Amounts are computed
            when they are read. A subject with a parameter that is not positive has NaN.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line in words."""

    def on(self, page: Any) -> Structure:
        """The same structure for the same page at other network weights."""
        return self

    def no_third_derivatives(self, varying: bool = False) -> str:
        """Why reverse mode does not pass through second-order predictions, in words; "" when it does.

        Args:
            varying: parameters vary in time with a covariate.
        """
        return ""

    def afresh(self) -> Structure:
        """The same structure with nothing recorded."""
        return self

    def notes(self) -> list[str]:
        """What a fit should say of how the amounts were computed."""
        return []


class Closed(Structure):
    """A mammillary system with elimination from its central compartment, solved in closed form.

    Args:
        absorption: None (doses reach the central compartment), or "first-order": a depot, compartment 1 and the default
            for doses, that empties into the central compartment at rate ka.

    Raises:
        ModelError: on another kind of absorption.
    """

    _title: str
    _pairs: tuple[tuple[str, str], ...]

    def __init__(self, absorption: str | None = None) -> None:
        if absorption not in ABSORPTIONS:
            raise ModelError(f'absorption is None or "first-order", got {absorption!r}')
        self.absorption = absorption
        flows = tuple(name for pair in self._pairs for name in pair)
        peripheral = ("peripheral", "peripheral2")[: len(self._pairs)]
        self.parameters = ("cl", "v", *flows, *(("ka",) if absorption else ()))
        self.compartments = (*(("depot",) if absorption else ()), "central", *peripheral)
        self.closed_form = self

    def solve(self, p: Any, schedule: Schedule) -> Mapping[str, Number]:
        """Amounts by compartment, see `Structure.solve`."""
        values = _parameters([getattr(p, name) for name in self.parameters])
        if all(x.shape[-1] == 1 for x in values):
            schedule = schedule.essential
        by_name = dict(zip(self.parameters, values, strict=True))
        flows = [(by_name[flow], by_name[volume]) for flow, volume in self._pairs]
        disposition, ka = Disposition(micro_constants(by_name["cl"], by_name["v"], flows)), by_name.get("ka")
        meeting = disposition.meeting
        if meeting is None:
            return Solution(self.compartments, disposition, ka, schedule)
        amounts = Solution(self.compartments, disposition.parted(meeting), ka, schedule)
        return Mended(amounts, meeting, disposition.matrix(ka), schedule)

    def dynamics(self, t: Any, a: Any, p: Any) -> dict[str, Any]:
        """The equations of this system, as a page would write them: time derivatives of the amounts."""
        rates: dict[str, Any] = {}
        central = -p.cl / p.v * a.central
        if self.absorption:
            absorbed = p.ka * a.depot
            rates["depot"] = -absorbed
            central = central + absorbed
        rates["central"] = central
        peripheral = self.compartments[-len(self._pairs) :] if self._pairs else ()
        for name, (flow, volume) in zip(peripheral, self._pairs, strict=True):
            out = getattr(p, flow) / p.v * a.central
            back = getattr(p, flow) / getattr(p, volume) * getattr(a, name)
            rates["central"] = rates["central"] - out + back
            rates[name] = out - back
        return rates

    def describe(self) -> str:
        """One line: compartments, absorption, elimination, parameters."""
        absorption = "first-order absorption" if self.absorption else "intravenous doses"
        return f"{self._title}, {absorption}, first-order elimination ({', '.join(self.parameters)})"

    def __repr__(self) -> str:
        given = f"absorption={self.absorption!r}" if self.absorption else ""
        return f"{type(self).__name__}({given})"


class OneCompartment(Closed):
    """One compartment (ADVAN1; ADVAN2 with absorption): clearance cl, volume v, absorption rate constant ka.

        d depot / dt   = -ka depot
        d central / dt =  ka depot - cl/v central

    Example:
        >>> OneCompartment(absorption="first-order").compartments
        ('depot', 'central')
    """

    _title = "one compartment"
    _pairs = ()


class TwoCompartment(Closed):
    """Two compartments (ADVAN3, ADVAN4): cl, v, intercompartmental clearance q and peripheral volume v2 (and ka).

        d central / dt    = ka depot - (cl + q)/v central + q/v2 peripheral
        d peripheral / dt = q/v central - q/v2 peripheral

    Example:
        >>> TwoCompartment().parameters
        ('cl', 'v', 'q', 'v2')
    """

    _title = "two compartments"
    _pairs = (("q", "v2"),)


class ThreeCompartment(Closed):
    """Three compartments (ADVAN11, ADVAN12): cl, v, q and v2 of `peripheral`, q3 and v3 of `peripheral2` (and ka).

        d central / dt     = ka depot - (cl + q + q3)/v central + q/v2 peripheral + q3/v3 peripheral2
        d peripheral / dt  = q/v central - q/v2 peripheral
        d peripheral2 / dt = q3/v central - q3/v3 peripheral2

    Example:
        >>> ThreeCompartment().compartments
        ('central', 'peripheral', 'peripheral2')
    """

    _title = "three compartments"
    _pairs = (("q", "v2"), ("q3", "v3"))


def _parameters(values: list[Any]) -> list[Number]:
    """Parameters of one number of dimensions; NaN for a subject (or segment) in which any is not positive."""
    numbers = [
        x if isinstance(x, (Tensor, Taylor)) else torch.full((1, 1), float(x), dtype=torch.float64)
        for x in values
    ]
    ndim = max(x.ndim for x in numbers)
    # modes are stacked in front of the draws: a number that lacks these would meet them there
    numbers = [
        lift(x, ndim) if isinstance(x, Taylor) else x.reshape((1,) * (ndim - x.ndim) + x.shape)
        for x in numbers
    ]
    least = cast(Tensor, value_of(numbers[0]))
    for x in numbers[1:]:
        least = torch.minimum(least, value_of(x))
    if bool((least > 0).all()):
        return numbers
    legal = least > 0
    nan = torch.full((), torch.nan, dtype=least.dtype, device=least.device)
    return [cast(Number, torch.where(legal, x, nan)) for x in numbers]  # type: ignore[arg-type]
