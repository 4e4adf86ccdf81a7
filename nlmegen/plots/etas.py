"""The distribution of the random effects against what Omega says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from nlmegen.plots.style import BLUE, INK, VERMILION, headed, panels

if TYPE_CHECKING:
    from nlmegen.fit import Fit


def etas(fit: Fit) -> Figure:
    """Draw a histogram of the conditional modes of each eta, the density N(0, omega) over it, and the
    shrinkage; of effects between occasions the modes of all occasions with observations in one panel.

    Args:
        fit: A `Fit`.
    """
    names, levels = fit.model.effect_names, fit.problem.levels
    drawn, axes = panels(max(1, len(names)), columns=3, width=2.9, height=2.5)
    sd = fit.model.omega.diagonal().sqrt().numpy()
    for k, (panel, name) in enumerate(zip(axes, names, strict=False)):
        own = levels.row == k
        modes = (
            fit.ebe[:, own] if k < levels.q else fit.ebe[:, own][levels.seen(fit.problem.observed)[:, own]]
        )
        mode = modes.flatten().numpy()
        mode = mode[np.isfinite(mode)]
        spread = float(sd[k])
        reach = max(3.2 * spread, 1.05 * float(np.abs(mode).max(initial=0.0)))
        bins = np.linspace(-reach, reach, int(np.clip(np.sqrt(len(mode)) * 2, 13, 41)) | 1)
        if len(mode):
            panel.hist(mode, bins=bins.tolist(), density=True, color=BLUE, alpha=0.45, linewidth=0)
        panel.plot(mode, np.zeros_like(mode), "|", color=INK, markersize=5, alpha=0.5)
        x = np.linspace(-reach, reach, 201)
        density = np.exp(-0.5 * (x / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
        panel.plot(x, density, color=VERMILION, linewidth=1.3)
        panel.set_xlabel(f"eta {name}" if k < levels.q else f"kappa {name.removeprefix('occ.')}")
        panel.locator_params(axis="x", nbins=5)
        panel.set_yticks([])
        shrinkage = fit.shrinkage_eta.get(name, float("nan"))
        headed(panel, f"shrinkage {shrinkage:.0%}" if np.isfinite(shrinkage) else "")
    return drawn
