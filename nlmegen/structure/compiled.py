"""The compiled route: amounts by compartment, for parameters that are constant or that vary in time.

Constant parameters: one solve of all rows along their timelines. Parameters that change at the events of a schedule
(with a covariate) are constant within its segments: segment after segment is solved, the state at the start of each
being n + D parameters' worth of a function, whose derivatives pass from one to the next by the chain rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from nlmegen.maths.taylor import Number, Taylor, value_of
from nlmegen.structure.batch import Compiled
from nlmegen.structure.chain import each
from nlmegen.structure.equations import Equations
from nlmegen.structure.response import Response
from nlmegen.structure.schedule import Schedule
from nlmegen.structure.timeline import Timeline

Lines = Callable[[Mapping[str, Number], Schedule], Timeline]
"""From individual parameters by name `[subject, 1]` and a schedule to timelines, where these depend on parameters."""


class Amounts(Mapping[str, Number]):
    """Amounts by compartment at the observations, put together when they are read.

    Args:
        page: the page.
        p: individual parameters by name, constant in time: tensors or Taylor numbers `[*draw, subject or 1, 1]`.
        schedule: doses and times.
        lines: how timelines are made, where they depend on parameters, or None.
    """

    def __init__(
        self,
        page: Compiled,
        p: Mapping[str, Number],
        schedule: Schedule,
        lines: Lines | None,
    ) -> None:
        equations = page.kernels.equations
        self.compartments = equations.compartments
        whole, places = schedule.root
        made = lines and partial(_moved_timeline, equations, whole.essential, lines)
        timeline = made or whole.timeline
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
    equations: Equations, schedule: Schedule, lines: Lines, rows: Tensor, who: Tensor, order: int
) -> Timeline:
    """The timeline of every row, its times and amounts with derivatives in p to an order."""
    n = len(equations.parameters)
    seeds = Taylor.seed(rows, order) if order else [rows[:, k : k + 1] for k in range(n)]
    return lines(dict(zip(equations.parameters, seeds, strict=True)), schedule.select(who))


def over_interval(
    page: Compiled, p: Mapping[str, Number], start: Sequence[Number], line: Timeline
) -> list[Number]:
    """Amounts at the one observation of each row, from amounts at the start.

    Args:
        page: the page with its `carrying` equations.
        p: individual parameters by name `[row, 1]`; where they are Taylor numbers, they are what is differentiated in.
        start: amounts `[row, 1]`, likewise.
        line: timelines of the rows, their derivatives in the parameters.
    """
    names = page.kernels.equations.parameters
    more = len(page.kernels.equations.compartments)

    def widened(x: Tensor, lead: int) -> Tensor:
        for axis in range(lead):
            x = torch.cat((x, x.new_zeros((*x.shape[:axis], more, *x.shape[axis + 1 :]))), axis)
        return x

    # derivatives in the amounts at the start, of which no dose depends
    line = replace(line, time=each(line.time, widened), amount=each(line.amount, widened))
    numbers = [*(p[name] for name in names[: len(names) - more]), *start]
    response = Response(page, numbers, line, torch.arange(len(line.count)))
    solved = (response.status == 0).unsqueeze(-1)
    return [
        _chosen(solved, x, torch.full_like(value_of(x), torch.nan))
        for x in (response.amount(i) for i in range(more))
    ]


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
    initial: Sequence[Number],
) -> tuple[list[Number], Tensor]:
    """Amounts at the observations for parameters that differ from segment to segment.

    Args:
        page: the page with its `carrying` equations.
        p: individual parameters by name `[*draw, subject or 1, 1 or event]`, values by segment.
        schedule: doses and times.
        initial: the amounts `[*draw, subject or 1, 1 or event]` at the start of a subject, and after a reset.

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
        begin = [x if x.shape[-1] == 1 else x[..., e : e + 1] for x in initial]
        if e == 0:
            state = begin
        elif bool((keep == 0).any()):
            state = [keep * x + (1.0 - keep) * y for x, y in zip(state, begin, strict=True)]
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
