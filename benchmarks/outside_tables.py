"""Tables that the project does not carry (nlmixr2data 2.0.9), read from where a benchmark is told to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import nlmegen as nl


def schoemaker(folder: Path, name: str, single: bool = True) -> nl.Population:
    table = pd.read_csv(folder / f"{name}.csv")
    if single:
        table = table[table["SD"] == 1]
    keep = [c for c in ("ID", "TIME", "AMT", "DV", "EVID", "CMT", "RATE", "SS", "II") if c in table]
    table = table[keep]
    if "SS" in table:
        table = table.assign(SS=table["SS"].replace(99, 0))  # 99 is filler
    return nl.read_nonmem(table)


def warfarin(folder: Path, dvids: tuple[str, ...] = ("cp",)) -> nl.Population:
    table = pd.read_csv(folder / "warfarin.csv")
    table.loc[table["evid"] == 1, "dvid"] = "cp"
    table = table[(table["evid"] == 1) | table["dvid"].isin(dvids)]
    columns = ["id", "time", "amt", "dv", "evid"] + ["dvid"] * (len(dvids) > 1)
    return nl.read_nonmem(table[columns])


def wang(folder: Path) -> nl.Population:
    table = pd.read_csv(folder / "Wang2007.csv").rename(columns={"Time": "TIME", "Y": "DV"})
    table = table.assign(AMT=0.0, EVID=0)
    dose = table.drop_duplicates("ID").assign(AMT=10.0, EVID=1, TIME=0.0, DV=np.nan)
    return nl.read_nonmem(pd.concat([dose, table]).sort_values(["ID", "TIME"], kind="stable"))
