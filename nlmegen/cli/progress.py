"""Progress of an estimation on standard error: a bar, plain lines, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from nlmegen.inference.estimate import Progress

SECONDS_BETWEEN_LINES = 2.0


class Reporter:
    """A context that shows the progress of one estimation.

    Args:
        how: "auto" (a bar in a terminal, else nothing), "bar", "plain" or "none".
        clock: The clock that spaces plain lines, in seconds.
    """

    def __init__(self, how: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.how = ("bar" if sys.stderr.isatty() else "none") if how == "auto" else how
        self.clock = clock
        self.stage = ""
        self.last = -float("inf")
        self.bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    @property
    def callback(self) -> Callable[[Progress], None] | None:
        """What `nlmegen.fit` calls; None when nothing is shown."""
        return {"bar": self._show_bar, "plain": self._show_line}.get(self.how)

    def _show_line(self, progress: Progress) -> None:
        now = self.clock()
        if progress.stage == self.stage and now - self.last < SECONDS_BETWEEN_LINES:
            return
        self.stage, self.last = progress.stage, now
        step = "" if not progress.step else f" {progress.step}"
        step += f"/{progress.total}" if step and progress.total else ""
        print(f"  {progress.stage}{step}{_detail(progress)}", file=sys.stderr, flush=True)

    def _show_bar(self, progress: Progress) -> None:
        if progress.stage != self.stage or self.bar is None:
            from tqdm import tqdm

            self._close()
            self.stage = progress.stage
            self.bar = tqdm(
                desc=progress.stage, total=progress.total, file=sys.stderr, leave=False, dynamic_ncols=True
            )
        self.bar.total = progress.total
        self.bar.set_postfix_str(_detail(progress).strip(), refresh=False)
        self.bar.update(progress.step - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.refresh()
            self.bar.close()
            self.bar = None


def _detail(progress: Progress) -> str:
    objective = "" if progress.objective is None else f"  objective {progress.objective:.4f}"
    return objective + (f"  {progress.note}" if progress.note else "")
