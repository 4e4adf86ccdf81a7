"""What a run shows while it works: lines when asked, nothing otherwise, a bar that goes away."""

from __future__ import annotations

import io
from dataclasses import dataclass

import pytest

from nlmegen.cli.progress import SECONDS_BETWEEN_LINES, Reporter


@dataclass
class Report:
    """The attributes of `nlmegen.inference.estimate.Progress`, without its imports."""

    stage: str
    step: int
    total: int | None = None
    objective: float | None = None
    note: str = ""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_with_every_stage_and_then_in_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Reporter("plain", clock) as reporter:
        show = reporter.callback
        assert show is not None
        show(Report("warm up", 0))
        show(Report("training", 1, 50, 12.34567))
        show(Report("training", 2, 50, 11.0))
        clock.now = SECONDS_BETWEEN_LINES
        show(Report("training", 40, 50, 10.5, "nearly"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "  warm up",
        "  training 1/50  objective 12.3457",
        "  training 40/50  objective 10.5000  nearly",
    ]


@pytest.mark.parametrize("how", ["none", "auto"])
def test_nothing_is_shown_where_there_is_no_terminal(how: str) -> None:
    assert Reporter(how).callback is None


def test_auto_is_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Reporter("auto") as reporter:
        show = reporter.callback
        assert show is not None
        for step in range(1, 4):
            show(Report("modes", step, 3, 100.0 - step))
        show(Report("errors", 1, None))
    assert "modes" in screen.getvalue()
    assert "objective 97.0000" in screen.getvalue()
    assert reporter.bar is None
