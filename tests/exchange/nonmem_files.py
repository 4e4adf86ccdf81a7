"""Files in NONMEM's layout: the phenobarbital run (numbers as NONMEM 7 printed them), and small ones made up.

The phenobarbital numbers are those of the example model "pheno" of pharmpy (github.com/pharmpy/pharmpy,
src/pharmpy/internals/example_models/pheno.ext and .cov); those of the subjects stand in tests/reference/nonmem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

METHOD = "First Order Conditional Estimation with Interaction"
TITLE = "TABLE NO. {0:5d}: {1}:{2} Problem=1 Subproblem=0 Superproblem1=0 Iteration1=0 Superproblem2=0 Iteration2=0"
GOAL = " Goal Function=MINIMUM VALUE OF OBJECTIVE FUNCTION:"

PHENO = ("THETA1", "THETA2", "THETA3", "SIGMA(1,1)", "OMEGA(1,1)", "OMEGA(2,1)", "OMEGA(2,2)")
PHENO_ROWS = {
    0: (4.69307e-3, 1.00916, 0.1, 1.30865e-2, 3.09626e-2, 0, 3.1128e-2, 587.36644134661617),
    12: (4.69555e-3, 9.84258e-1, 1.5892e-1, 1.3241e-2, 2.93508e-2, 0, 2.7906e-2, 586.27605628520962),
    -1000000000: (4.69555e-3, 9.84258e-1, 1.5892e-1, 1.3241e-2, 2.93508e-2, 0, 2.7906e-2, 586.27605628520962),
    -1000000001: (2.09967e-4, 2.68946e-2, 8.37555e-2, 2.27991e-3, 1.34156e-2, 1e10, 7.47591e-3, 0),
    -1000000003: (4.39229, 3.59348e-1, 1.57836, 0, 0, 0, 0, 0),
    -1000000006: (0, 0, 0, 0, 0, 1, 0, 0),
    -1000000007: (0, 37, 0, 0, 0, 0, 0, 0),
}
PHENO_COV = {
    "THETA1": (4.4086e-8, 4.76193e-8, -1.67956e-6, 8.04243e-8, -1.09029e-6, 0, 1.55215e-7),
    "THETA2": (4.76193e-8, 7.23319e-4, -8.04175e-4, 1.46729e-5, 4.98958e-5, 0, 7.17449e-5),
    "THETA3": (-1.67956e-6, -8.04175e-4, 7.01499e-3, 2.92226e-5, -1.07607e-4, 0, -3.93579e-5),
    "SIGMA(1,1)": (8.04243e-8, 1.46729e-5, 2.92226e-5, 5.19797e-6, 5.04991e-6, 0, -4.49759e-7),
    "OMEGA(1,1)": (-1.09029e-6, 4.98958e-5, -1.07607e-4, 5.04991e-6, 1.79978e-4, 0, -1.86321e-5),
    "OMEGA(2,1)": (0, 0, 0, 0, 0, 0, 0),
    "OMEGA(2,2)": (1.55215e-7, 7.17449e-5, -3.93579e-5, -4.49759e-7, -1.86321e-5, 0, 5.58892e-5),
}
SUBJECTS = Path(__file__).parent.parent / "reference" / "nonmem" / "pheno_phi.csv"


def ext_text(
    names: Sequence[str],
    rows: Mapping[int, Sequence[float]],
    *,
    number: int = 1,
    method: str = METHOD,
    objective: str = "OBJ",
) -> str:
    """One table of a .ext file; the last number of a row is the objective."""
    lines = [TITLE.format(number, method, GOAL), " ITERATION    " + "  ".join([*names, objective])]
    for at, row in rows.items():
        cells = " ".join(f"{x:12.5E}" for x in row[:-1])
        lines.append(f" {at:12d} {cells} {row[-1]:21.14f}")
    return "\n".join(lines) + "\n"


def write_pheno(folder: Path, *, phi: bool = True, cov: bool = True) -> Path:
    """pheno.ext, with pheno.cov and pheno.phi beside it; returns the path of the first."""
    path = folder / "pheno.ext"
    path.write_text(ext_text(PHENO, PHENO_ROWS))
    if cov:
        lines = [TITLE.format(1, METHOD, ""), " NAME         " + " ".join(PHENO)]
        lines += [f" {name:12s} " + " ".join(f"{x:12.5E}" for x in row) for name, row in PHENO_COV.items()]
        path.with_suffix(".cov").write_text("\n".join(lines) + "\n")
    if phi:
        table = pd.read_csv(SUBJECTS, comment="#", dtype=str)
        names = (
            "SUBJECT_NO   ID           ETA(1)       ETA(2)       ETC(1,1)     ETC(2,1)     ETC(2,2)     OBJ"
        )
        lines = [TITLE.format(1, METHOD, ""), f" {names}"]
        lines += [f" {k + 1:12d} {' '.join(row)}" for k, row in enumerate(table.itertuples(index=False))]
        path.with_suffix(".phi").write_text("\n".join(lines) + "\n")
    return path
