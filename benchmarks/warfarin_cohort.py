"""The table datasets/warfarin_simulated/data.csv: a PK/PD study of 32 volunteers drawn from the page `warfarin`.

One dose of 1.5 mg/kg; concentrations to 120 h, prothrombin complex activity to 144 h. The random effects and residuals
are those of the page, whose values are published estimates; weights are N(70, 14) kg between 45 and 105.

    python benchmarks/warfarin_cohort.py data.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import nlmegen as nl

CONCENTRATIONS = (0.5, 1, 2, 3, 6, 9, 12, 24, 36, 48, 72, 96, 120)
ACTIVITIES = (0, 24, 36, 48, 72, 96, 120, 144)


def table(seed: int = 2) -> pd.DataFrame:
    """The records, in the columns of the data set."""
    weights = np.random.default_rng(seed).normal(70.0, 14.0, 32).clip(45.0, 105.0).round(1)
    people = pd.DataFrame({"id": np.arange(1, 33), "wt": weights})
    times = sorted({*map(float, CONCENTRATIONS), *map(float, ACTIVITIES)})
    cohort = nl.Cohort(32, "1.5/kg", times=times, covariates=people, dvid=("cp", "pca"))
    drawn = nl.simulate(nl.load_model("warfarin"), cohort, seed=seed)
    dose = drawn["evid"] == 1
    taken = (drawn["dvid"] == "cp") & drawn["time"].isin(CONCENTRATIONS)
    taken |= (drawn["dvid"] == "pca") & drawn["time"].isin(ACTIVITIES)
    drawn = drawn[dose | taken]
    columns = {
        "ID": drawn["id"],
        "TIME": drawn["time"].map("{:g}".format),
        "AMT": drawn["amt"].map("{:.4g}".format).where(drawn["evid"] == 1, "."),
        "DV": drawn["dv"].map("{:.4g}".format).where(drawn["evid"] == 0, "."),
        "EVID": drawn["evid"],
        "DVID": drawn["dvid"],
        "WT": drawn["wt"],
    }
    return pd.DataFrame(columns)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    table().to_csv(parser.parse_args().out, index=False, lineterminator="\n")
