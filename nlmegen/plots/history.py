"""How a fit came to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from nlmegen.plots.style import BLUE, INK, given_or_new

if TYPE_CHECKING:
    from nlmegen.fit import Fit

_OBJECTIVES = ("objective", "ofv", "elbo", "iwelbo", "loss")


def history(fit: Fit, axes: Axes | None = None) -> Axes:
    """Draw the objective of each iteration of a fit.

    Where the first iterations lie so far off that the rest becomes a flat line, the axis shows the last nine
    tenths.

    Args:
        fit: A `Fit`.
        axes: Where to draw; new ones unless given.
    """
    axes = given_or_new(axes, 4.8, 3.2)
    rows = fit.history
    key = next((name for name in _OBJECTIVES if any(row.get(name) is not None for row in rows)), None)
    if key is None:
        axes.text(0.5, 0.5, "no history was kept", ha="center", color=INK, transform=axes.transAxes)
        return axes
    points = [(row.get("step", k), row[key]) for k, row in enumerate(rows) if row.get(key) is not None]
    x, y = np.array(points, dtype=float).T
    axes.plot(x, y, color=BLUE, linewidth=1.2, marker="o" if len(x) < 60 else None, markersize=2.5)
    late = y[len(y) // 10 :]
    late = late[np.isfinite(late)]
    if len(late) > 1 and np.ptp(late) > 0:
        margin = 0.08 * np.ptp(late)
        axes.set_ylim(late.min() - margin, late.max() + margin)
    axes.set_xlabel("step" if "step" in rows[0] else "iteration")
    axes.set_ylabel({"objective": "objective", "ofv": "objective function (OFV)"}.get(key, key.upper()))
    return axes
