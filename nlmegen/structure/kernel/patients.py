"""Subjects and the numbers of their rows, as the programs of closed forms read them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nlmegen.structure.kernel import rows, scan
from nlmegen.structure.schedule import Schedule


class Book:
    """The arrays of a schedule, as `rows.fill` reads them.

    Attributes:
        arrays: by place in the table of words.
        steps: the largest number of steps of a subject.
    """

    def __init__(self, schedule: Schedule) -> None:
        schedule = schedule.essential
        events, times = schedule.start.shape[-1], schedule.time.shape[-1]
        nothing = torch.zeros_like(schedule.start)
        self.arrays = {
            rows.CLOCK: doubles(schedule.time),
            rows.SINCE: doubles(schedule.elapsed),
            rows.SEGMENT: schedule.segment.contiguous(),
            rows.LENGTH: doubles(schedule.length),
            rows.KEPT: doubles(schedule.keep),
            rows.BOLUS: doubles(torch.stack([nothing if x is None else x for x in schedule.bolus])),
            rows.RATE: doubles(torch.stack([nothing if x is None else x for x in schedule.rate])),
        }
        self.sizes = {rows.SCHEDULED: schedule.n_subjects, rows.EVENTS: events, rows.TIMES: times}
        self.compartments = len(schedule.bolus)
        self.steps = events - 1 + times

    @classmethod
    def of(cls, schedule: Schedule) -> Book:
        """The book of a schedule, made once."""
        book = _BOOKS.get(schedule)
        if book is None:
            book = _BOOKS[schedule] = cls(schedule)
        return book


_BOOKS: weakref.WeakKeyDictionary[Schedule, Book] = weakref.WeakKeyDictionary()


class Patients:
    """Subjects with their schedules and observations.

    Args:
        schedule: of N subjects.
        seen: which observations there are, `[subject, time]` bool.
        y: observations `[subject, time]`.
        endpoint: number of the endpoint of each observation `[subject, time]`, or None where there is one.
        covariates: each `[subject, 1]`.

    Attributes:
        words: what the table of words says of them, by place; `table` is that table, 0 elsewhere.
    """

    def __init__(
        self,
        schedule: Schedule,
        seen: Tensor,
        y: Tensor,
        endpoint: Tensor | None,
        covariates: Sequence[Tensor],
    ) -> None:
        whole, places = schedule.root
        self.book = Book.of(whole)
        self.covariates = list(covariates)
        self.n, self.times = seen.shape
        y = doubles(y)
        self.arrays = self.book.arrays | {
            rows.WHO: places.contiguous(),
            rows.SEEN: seen.to(torch.int64),
            rows.Y: y,
            rows.WHICH: torch.zeros_like(y) if endpoint is None else doubles(endpoint),
        }
        self._locate()

    def _locate(self) -> None:
        self.words = {
            **self.book.sizes,
            rows.SUBJECTS: self.n,
            rows.STEPS: self.book.steps,
            rows.COMPARTMENTS: self.book.compartments,
            rows.WIDTH: scan.width(self.book.compartments),
            **{place: x.data_ptr() for place, x in self.arrays.items()},
        }
        self.table = [self.words.get(place, 0) for place in range(rows.N_WORDS)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._locate()  # a copy stands elsewhere in memory


Source = tuple[int, int, int]
"""Where a number of every row stands: address for the first row, and strides by draw and by subject in numbers."""


class Leaves:
    """The numbers of every row, in the order in which they are added, and the tensors that hold them.

    Args:
        batch: `[*draw, subject]`.
    """

    def __init__(self, batch: torch.Size) -> None:
        self.batch = batch
        self.sources: list[Source] = []
        self._held: list[Tensor] = []

    def add(self, x: Tensor, places: Sequence[tuple[int, ...]], lead: int = 0) -> None:
        """Take entries of a tensor.

        Args:
            x: `[*lead, *batch, *tail]`, or of sizes that broadcast to the batch.
            places: of each entry its indices in the lead and the tail.
            lead: number of axes before the batch.
        """
        tail = len(places[0]) - lead if places else 0
        middle = x.ndim - lead - tail
        if middle > 2 or (middle == 2 and len(self.batch) > 2 and x.shape[lead] > 1):
            shape = x.shape
            x = x.reshape(*shape[:lead], *[1] * (len(self.batch) - middle), *shape[lead:])
            x = x.expand(*shape[:lead], *self.batch, *shape[len(shape) - tail :])
            x = x.reshape(*shape[:lead], -1, self.batch[-1], *shape[len(shape) - tail :])
            middle = 2
        shape, strides, address = x.shape, x.stride(), x.data_ptr()
        by = [strides[k] if shape[k] > 1 else 0 for k in range(lead, lead + middle)]
        by_draw, by_subject = (0, 0, *by)[-2:]
        inner = (*strides[:lead], *strides[lead + middle :])
        for place in places:
            offset = sum(i * s for i, s in zip(place, inner, strict=True))
            self.sources.append((address + 8 * offset, by_draw, by_subject))
        self._held.append(x)

    def scalars(self, numbers: Sequence[Tensor]) -> None:
        """Take tensors of one number a row, `[*batch, 1]` each."""
        for x in numbers:
            self.add(x, ((0,),))


def doubles(x: Tensor) -> Tensor:
    """A tensor as machine code reads numbers."""
    return x.detach().to(dtype=torch.float64).contiguous()
