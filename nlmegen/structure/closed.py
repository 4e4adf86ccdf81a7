"""Closed forms of linear compartmental disposition: one, two and three compartments, with or without absorption."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from nlmegen.errors import DataError, ModelError
from nlmegen.maths.taylor import Number, Taylor, lift, value_of
from nlmegen.structure.arrivals import Arrivals
from nlmegen.structure.chain import take
from nlmegen.structure.dose import Dose
from nlmegen.structure.equations import Equations
from nlmegen.structure.lowering import Recurring
from nlmegen.structure.meeting import Mended, Replaced
from nlmegen.structure.recurring import at_records, steady_amounts
from nlmegen.structure.said import DosedPage, PageDoses
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.solution import Solution
from nlmegen.structure.spectrum import Disposition, micro_constants
from nlmegen.structure.system import Namespace
from nlmegen.structure.timeline import Timeline

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
    dosed: Mapping[str, Dose] = MappingProxyType({})
    """What the page's `dosing` returned, by compartment: which words it uses, not what they are."""

    @property
    def by_record(self) -> bool:
        """Whether the page says anything of doses or of the amounts at the start, which are those of a record."""
        return False

    @abstractmethod
    def solve(self, p: Any, schedule: Schedule, given: Any = None) -> Mapping[str, Number]:
        """Amounts at the observation times.

        Args:
            p: an object with the individual parameters as attributes, tensors or Taylor numbers
                `[*draw, subject or 1, 1 or event]` (an event axis, values per segment, where they vary in time).
            schedule: doses and times of N subjects.
            given: the same parameters at the record that ordered the dose or steady state of each event, where they
                may differ from those of the segment that it opens: see `nlmegen.structure.lowering`.

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
    doses: PageDoses | None = None
    """What the page's `dosing` says, where it has one."""

    def __init__(self, absorption: str | None = None) -> None:
        if absorption not in ABSORPTIONS:
            raise ModelError(f'absorption is None or "first-order", got {absorption!r}')
        self.absorption = absorption
        flows = tuple(name for pair in self._pairs for name in pair)
        peripheral = ("peripheral", "peripheral2")[: len(self._pairs)]
        self.parameters = self._rates = ("cl", "v", *flows, *(("ka",) if absorption else ()))
        self.compartments = (*(("depot",) if absorption else ()), "central", *peripheral)
        self.closed_form = self

    def dosed_by(self, page: DosedPage, namespace: Namespace) -> Closed:
        """The same structure for a page whose `dosing` says when and how much of the doses arrives.

        Raises:
            ModelError: when `dosing` names another compartment, or does not return what it should.
        """
        other = copy.copy(self)
        other.doses = PageDoses(page, namespace, self.compartments)
        other.dosed = other.doses.said
        read = other.doses.parameters
        other.parameters = (*self._rates, *(name for name in read if name not in self._rates))
        other.closed_form = other
        return other

    @property
    def by_record(self) -> bool:
        """See `Structure`."""
        return self.doses is not None

    def on(self, page: Any) -> Closed:
        """The same structure for the same page at other network weights."""
        return self if self.doses is None else self.dosed_by(page, self.doses.namespace)

    def solve(self, p: Any, schedule: Schedule, given: Any = None) -> Mapping[str, Number]:
        """Amounts by compartment, see `Structure.solve`."""
        values = _parameters([getattr(p, name) for name in self._rates])
        if self.doses is not None or not schedule.plain:
            return self._arriving(p, given, values, schedule)
        if all(x.shape[-1] == 1 for x in values):
            schedule = schedule.essential
        disposition, ka = self._disposition(values)
        meeting = disposition.meeting
        if meeting is None:
            return Solution(self.compartments, disposition, ka, schedule)
        amounts = Solution(self.compartments, disposition.parted(meeting), ka, schedule)
        return Mended(amounts, meeting, Replaced.scheduled(disposition.matrix(ka), schedule))

    def _disposition(self, values: Sequence[Number]) -> tuple[Disposition, Number | None]:
        by_name = dict(zip(self._rates, values, strict=True))
        flows = [(by_name[flow], by_name[volume]) for flow, volume in self._pairs]
        return Disposition(micro_constants(by_name["cl"], by_name["v"], flows)), by_name.get("ka")

    def _arriving(self, p: Any, given: Any, values: list[Number], schedule: Schedule) -> Mapping[str, Number]:
        """Amounts where a page moves doses, or records ask for more than boluses, infusions and resets.

        Args:
            p: parameters in the segments.
            given: those at the records of doses and steady states, or None where they are the same.
            values: those of the rates in the segments.
            schedule: doses and times.
        """
        doses = self.doses
        own = p if given is None else given
        schedule.check_modelled(self.compartments, {} if doses is None else doses.said)
        self._check_switched(schedule)
        said = {} if doses is None else doses.numbers(own)
        settled = _parameters([getattr(own, name) for name in self._rates])
        varying = any(x.shape[-1] > 1 for x in (*values, *settled, *said.values()))
        if not varying:
            schedule = schedule.essential
        line = Timeline.build(
            schedule,
            {} if doses is None else doses.moved(said),
            lambda recurring: self._steady(settled, recurring),
            varying,
            doses.moved(doses.numbers(p)) if doses is not None and given is not None and varying else None,
        )
        ndim = max(*(x.ndim for x in values), line.time.ndim)
        values = [_lifted(x, ndim) for x in values]
        arrivals = Arrivals.build(line, len(self.compartments))
        disposition, ka = self._disposition([take(x, arrivals.origin) for x in values])
        meeting = disposition.meeting
        if meeting is None:
            return Solution(self.compartments, disposition, ka, arrivals)
        amounts = Solution(self.compartments, disposition.parted(meeting), ka, arrivals)
        named = dict(zip(self._rates, values, strict=True))
        return Mended(amounts, meeting, Replaced.along(line, self._equations, named))

    def _steady(self, values: Sequence[Number], recurring: Recurring) -> list[Number]:
        """Steady states by compartment, see `nlmegen.structure.lowering.Steady`."""
        here = [at_records(x, recurring.row, recurring.segment) for x in values]
        disposition, ka = self._disposition(here)
        return steady_amounts(disposition, ka, recurring)

    @cached_property
    def _equations(self) -> Equations:
        return Equations.trace(self.dynamics)

    def _check_switched(self, schedule: Schedule) -> None:
        for place in sorted(schedule.switched):
            # nothing flows into a depot, nor into a single compartment without one
            if place > 0 or not (self.absorption or len(self.compartments) == 1):
                name = self.compartments[place]
                raise DataError(
                    f"a record switches {name} off (EVID 2 with a negative CMT), into which other compartments flow: "
                    "a closed form cannot hold it empty; write the page with dynamics, its flows into "
                    f"{name} multiplied by a covariate that is 0 while it is off, or take the record out",
                    column="cmt",
                )

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
    numbers = [_lifted(x, ndim) for x in numbers]
    least = cast(Tensor, value_of(numbers[0]))
    for x in numbers[1:]:
        least = torch.minimum(least, value_of(x))
    if bool((least > 0).all()):
        return numbers
    legal = least > 0
    nan = torch.full((), torch.nan, dtype=least.dtype, device=least.device)
    return [cast(Number, torch.where(legal, x, nan)) for x in numbers]  # type: ignore[arg-type]


def _lifted(x: Number, ndim: int) -> Number:
    """`x` with leading axes of length one, so that it has `ndim` dimensions."""
    return lift(x, ndim) if isinstance(x, Taylor) else x.reshape((1,) * (ndim - x.ndim) + x.shape)
