"""Tetracycline: two formulations as occasions; the effect of the formulation against areas under the curve."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import nlmegen as nl


def areas() -> np.ndarray:
    """log of the ratio of areas to 6 h, tetracyn over tetrachel, of each subject: no model."""
    table = nl.load_data("tetracycline").table
    seen = table[table["evid"] == 0]
    logs = {
        key: np.log(np.trapezoid([0.0, *rows["dv"]], [0.0, *rows["time"]]))
        for key, rows in seen.groupby(["form", "id"])
    }
    return np.array([logs["tetracyn", i] - logs["tetrachel", i] for i in seen["id"].unique()])


@pytest.mark.parametrize("method", [nl.FOCEI(), nl.Laplace(), nl.SAEM(seed=1)], ids=lambda m: m.name)
def test_the_effect_of_the_formulation_is_that_of_the_areas(method: nl.FOCEI) -> None:
    fit = nl.fit(nl.load_model("tetracycline"), nl.load_data("tetracycline"), method)
    assert fit.converged
    ratios = areas()
    wide = ratios.std(ddof=1) / np.sqrt(len(ratios))
    relative = float(fit.model.theta.relative)
    assert abs(np.log(relative) - ratios.mean()) < 0.5 * wide, (
        "the areas to 6 h hold what the fit extrapolates"
    )
    se = float(fit.parameters.loc["relative", "se"]) / relative
    assert 0.5 * wide < se < 2 * wide, "and the difference is as uncertain"


def test_a_known_effect_is_recovered_beside_variability_between_occasions() -> None:
    truth = nl.load_model("tetracycline").with_values(
        theta=dict(tvcl=0.1, tvv=0.6, tvka=1.2, relative=1.4),
        omega={"cl": 0.05, "occ.f": 0.04},
        sigma={"cp.proportional": 0.1},
    )
    table = nl.load_data("tetracycline").table
    copies = [table.assign(id=table["id"] + 5 * k) for k in range(12)]
    design = nl.read_nonmem(pd.concat(copies, ignore_index=True))
    data = nl.read_nonmem(nl.simulate(truth, design, seed=4))
    fit = nl.fit(truth, data, nl.FOCEI())
    rows = fit.parameters
    for name, true in (
        ("relative", 1.4),
        ("omega.occ.f", 0.04),
        ("omega.cl", 0.05),
        ("cp.proportional", 0.1),
    ):
        off = (rows.loc[name, "estimate"] - true) / rows.loc[name, "se"]
        assert abs(off) < 3, f"{name} is {off:.1f} standard errors off"
