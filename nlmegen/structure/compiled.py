"""The compiled route: amounts by compartment, for parameters that are constant or that vary in time.

Constant parameters: one solve of all rows along their timelines. Parameters that change at the events of a schedule
(with a covariate) are constant within its segments: segment after segment is solved, the state at the start of each
being n + D parameters' worth of a function, whose derivatives pass from one to the next by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor
from nlmegen.structure.batch import Compiled
from nlmegen.structure.equations import Equations
from nlmegen.structure.response import Response
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.timeline import Moved, Timeline

Dosing = Callable[[Mapping[str, Number]], Mapping[int, Moved]]
"""From individual parameters by name to what the page does to doses, by index of the compartment."""

Initial = Callable[[Mapping[str, Number]], list[Number]]
"""From individual parameters by name to the amounts at the start."""


class Amounts(Mapping[str, Number]):
    """Amounts by compartment at the observations, put together when they are read.

    Args:
        page: the page.
        p: individual parameters by name, constant in time: tensors or Taylor numbers `[*draw, subject or 1, 1]`.
        schedule: doses and times.
        dosing: what the page does to doses, or None.
    """

    def __init__(
        self,
        page: Compiled,
        p: Mapping[str, Number],
        schedule: Schedule,
        dosing: Dosing | None,
    ) -> None:
        equations = page.kernels.equations
        self.compartments = equations.compartments
        whole, places = schedule.root
        timeline: Timeline | Callable[[Tensor, Tensor], Timeline] = whole.timeline
        if dosing is not None:
            timeline = partial(_moved_timeline, equations, whole.essential, dosing)
        numbers = [p[name] for name in equations.parameters]
        self.response = Response(page, numbers, timeline, places)
        self.status = self.response.status
        self._amounts: dict[str, Number] = {}

    def __getitem__(self, name: str) -> Number:
        if name not in self._amounts:
            if name not in self.compartments:
                raise KeyError(name)
            self._amounts[name] = self.response.amount(self.compartments.index(name))
        return self._amounts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.compartments)

    def __len__(self) -> int:
        return len(self.compartments)


def _moved_timeline(
    equations: Equations, schedule: Schedule, dosing: Dosing, rows: Tensor, who: Tensor
) -> Timeline:
    """The timeline of every row, its times and amounts with first and second derivatives in p."""
    seeded = dict(zip(equations.parameters, Taylor.seed(rows, 2), strict=True))
    return Timeline.build(schedule.select(who), dosing(seeded))


def carrying(equations: Equations) -> Equations:
    """The same equations with the amounts at the start as D further parameters."""
    n, graph = len(equations.parameters), equations.graph
    names = tuple(f"{name} at the start" for name in equations.compartments)
    start = tuple(graph.param(n + i) for i in range(len(names)))
    return replace(equations, parameters=equations.parameters + names, initial=start)


def by_segments(
    page: Compiled,
    p: Mapping[str, Number],
    schedule: Schedule,
    initial: Initial,
) -> tuple[list[Number], Tensor]:
    """Amounts at the observations for parameters that differ from segment to segment.

    Args:
        page: the page with its `carrying` equations.
        p: individual parameters by name `[*draw, subject or 1, 1 or event]`, values by segment.
        schedule: doses and times.
        initial: the amounts at the start of a subject, and after a reset.

    Returns:
        For each compartment `[*draw, subject, time]`, and the status `[*draw, subject]`.
    """
    whole, places = schedule.root
    count = schedule.start.shape[-1]
    last = schedule.segment.amax()
    state: list[Number] = []
    out: list[Number] | None = None
    status: Tensor | None = None
    for e in range(int(last) + 1):
        now = {name: x if x.shape[-1] == 1 else x[..., e : e + 1] for name, x in p.items()}
        keep = schedule.keep[:, e : e + 1]
        if e == 0:
            state = initial(now)
        elif bool((keep == 0).any()):
            state = [keep * x + (1.0 - keep) * y for x, y in zip(state, initial(now), strict=True)]
        state = [x if b is None else x + b[:, e : e + 1] for x, b in zip(state, schedule.bolus, strict=True)]
        numbers = [*(now[name] for name in p), *state]
        response = Response(page, numbers, whole.segment_timelines[e], places)
        here = schedule.segment == e
        seen = [response.amount(i) for i in range(len(state))]
        parts = [x[..., :-1] for x in seen]
        out = parts if out is None else [_chosen(here, new, old) for new, old in zip(parts, out, strict=True)]
        status = response.status if status is None else torch.maximum(status, response.status)
        if e + 1 < count:
            state = [x[..., -1:] for x in seen]
    assert out is not None
    assert status is not None
    return out, status


def _chosen(here: Tensor, new: Number, old: Number) -> Number:
    return cast(Number, torch.where(here, new, old))  # type: ignore[arg-type]
