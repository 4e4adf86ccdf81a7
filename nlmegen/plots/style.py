"""One quiet look for every figure, readable in grey and by colour-blind eyes; nothing global is changed."""

from __future__ import annotations

import io
import math

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito's palette (2008), told apart under the common colour-vision deficiencies.
BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
SKY, ORANGE, PURPLE = "#56B4E9", "#E69F00", "#CC79A7"
INK, GREY, PALE = "#222222", "#777777", "#dddddd"

SIZE = 9
"""Points of a label; everything else follows from it."""


def figure(width: float = 5.0, height: float = 3.8) -> Figure:
    """Return an empty figure of that size in inches, on a canvas of its own.

    It belongs to no window system and to no list of open figures, so it is freed like any other object.
    """
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def panels(
    count: int, columns: int = 4, width: float = 2.4, height: float = 2.0
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` quiet panels, row by row."""
    columns = max(1, min(columns, count))
    rows = math.ceil(count / columns)
    made = figure(width * columns, height * rows)
    axes = [made.add_subplot(rows, columns, k + 1) for k in range(count)]
    for one in axes:
        quiet(one)
    return made, axes


def given_or_new(axes: Axes | None, width: float = 5.0, height: float = 3.8) -> Axes:
    """Return the axes handed in, or those of a new figure, made quiet."""
    if axes is None:
        axes = figure(width, height).add_subplot()
    quiet(axes)
    return axes


def quiet(axes: Axes) -> None:
    """Take the box off, lighten ticks and grid, set the sizes of the words."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
        axes.spines[side].set_linewidth(0.7)
    axes.grid(True, color=PALE, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=SIZE - 1, color=GREY, labelcolor=INK, width=0.7, length=3)
    axes.xaxis.label.set_fontsize(SIZE)
    axes.yaxis.label.set_fontsize(SIZE)


def headed(axes: Axes, text: str) -> None:
    """Put a small title over a panel, on the left."""
    axes.set_title(text, loc="left", fontsize=SIZE, color=INK, pad=4)


def legend(drawn: Figure, axes: Axes, columns: int = 3) -> None:
    """Put one legend over the whole figure, of what `axes` shows."""
    handles, words = axes.get_legend_handles_labels()
    drawn.legend(
        handles,
        words,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=SIZE - 1,
        handlelength=1.6,
    )


def labelled(word: str, unit: str) -> str:
    """Return `word (unit)`, or the word where there is no unit."""
    return f"{word} ({unit})" if unit else word


def png(drawn: Figure, dpi: int = 150) -> bytes:
    """Return a figure as the bytes of a PNG file, the same bytes each time."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
