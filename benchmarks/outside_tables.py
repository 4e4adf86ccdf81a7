"""Tables that the project does not carry (nlmixr2data 2.0.9, nlme), read from where a benchmark is told to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import nlmegen as nl


def steady_state(table: pd.DataFrame, doses: int = 40) -> pd.DataFrame:
    """Doses with SS = 1 written out: a reset with the first of `doses` doses, II apart, then the others up to TIME."""
    rows = []
    for row in table.to_dict("records"):
        if row["SS"] == 1:
            for k in range(doses, -1, -1):
                rows.append(row | {"TIME": row["TIME"] - k * row["II"], "EVID": 4 if k == doses else 1})
        else:
            rows.append(row)
    return pd.DataFrame(rows).drop(columns=["SS", "II"])


def schoemaker(folder: Path, name: str, single: bool = True) -> nl.Population:
    table = pd.read_csv(folder / f"{name}.csv")
    if single:
        table = table[table["SD"] == 1]
    keep = [c for c in ("ID", "TIME", "AMT", "DV", "EVID", "CMT", "RATE", "SS", "II") if c in table]
    table = table[keep]
    if "SS" in table:
        table = steady_state(table)
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


def quinidine(path: Path) -> nl.Population:
    """A dose with an interval is one of a steady state; records with neither dose nor concentration are left out."""
    table = pd.read_csv(path)
    table = table[table["dose"].notna() | table["conc"].notna()]
    rows = pd.DataFrame(
        {
            "ID": table["Subject"],
            "TIME": table["time"],
            "AMT": table["dose"].fillna(0.0),
            "DV": table["conc"],
            "EVID": table["dose"].notna().astype(int),
            "SS": table["interval"].notna().astype(int),
            "II": table["interval"].fillna(0.0),
            "CMT": np.where(table["dose"].notna(), 1, 2),
        }
    )
    return nl.read_nonmem(steady_state(rows))
