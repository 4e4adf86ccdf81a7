"""A run of NONMEM 7 as a column of `compare`: its numbers from .ext, .cov and .phi, on a page and data of ours.

In root.ext a negative ITERATION says what a row holds:

    -1000000000  final estimates, with the objective in the last column       -1000000001  standard errors
    -1000000002  eigenvalues of the correlation matrix of the estimates       -1000000006  1 where fixed
    -1000000003  condition number, smallest and largest eigenvalue            -1000000007  how it ended

See NONMEM Users Guide: Introduction to NONMEM 7 (ICON plc), "$EST: Format of Raw Output File".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.population import Population
from ..errors import DataError, ModelError, NlmegenError
from ..inference.methods import method_class
from ..model.page import Model
from ..model.parameters import Values
from ..model.problem import LOG_2PI, Problem
from .nonmem_names import UNKNOWN, Estimate, Target, Translation, individual_names, to_frame, translate
from .nonmem_tables import Table, read_tables

FINAL, ERRORS, CONDITION, FIXED, ENDED = (-1000000000.0 - k for k in (0, 1, 3, 6, 7))
"""ITERATION of the rows that are used."""

SOURCES = (
    ("first order conditional estimation with interaction", "focei"),
    ("first order conditional estimation", "foce"),
    ("laplac", "laplace"),
    ("importance sampling", "importance"),
    ("first order", "fo"),
)
"""How a method's name begins or what it holds -> how its objective is computed."""

NO_LIKELIHOOD = ("SAEMOBJ", "MCMCOBJ")
"""Objectives that are no likelihood."""

SAME_OFV = 1e-5
"""Relative difference of two objectives that estimates printed to six digits explain."""

ENDS = {0: "completed", 1: "not completed", 2: "not tested for convergence"}


class NonmemRun:
    """A run of NONMEM 7, read from its output, on a page and data.

    Attributes:
        path: the .ext file; number: of its table; program: the method as NONMEM spells it.
        method: "nonmem"; ofv, ofv_source: its objective and how that was computed; log_likelihood: of it, complete.
        converged, reason: how it ended.
        estimates: under NONMEM's names: estimate, se, fixed.
        parameters: on the page: kind, estimate, se, unit, fixed. A SIGMA (variance) is there a standard deviation.
        individuals: one row a subject from .phi: id, eta_NAME, var_NAME, cov_NAME_NAME, obj; None without that file.
        covariance, correlation: of the estimates, under NONMEM's names, from .cov and .cor; None without.
        iterations: the course of the run; condition_number: as printed, NaN where it is not.
        model: the page at the run's estimates; population: the data.
        remarks: what a comparison should say of it.
    """

    method = "nonmem"
    seconds = math.nan
    ofv_se: float | None = None

    def __init__(
        self,
        path: Path,
        table: Table,
        model: Model,
        population: Population,
        mapping: Mapping[str, Target] | None,
    ) -> None:
        self.path, self.number, self.program = path, table.number, table.method
        self.population = population
        self._frame = table.frame
        objective = table.columns[-1]
        final = self._row(FINAL)
        if final is None:
            last = max((x for x in self._frame["ITERATION"] if x >= 0), default=None)
            so_far = "" if last is None else f" (it holds iterations up to {last:g})"
            raise DataError(
                f"{path}: no final estimates, ITERATION -1000000000{so_far}; the run was interrupted or is not done"
            )
        self.ofv = float(final[objective])
        given = self._estimates(final, [c for c in table.columns if c not in ("ITERATION", objective)])
        self.estimates = to_frame(given)
        self.translation: Translation = translate(model.layout, given, mapping)
        try:
            self.model: Model = model.with_values(
                theta=self.translation.theta, omega=self.translation.omega, sigma=self.translation.sigma
            )
        except ModelError as error:
            raise DataError(f"{path}: the estimates do not fit the page {model.name}: {error}") from None
        lower = table.method.lower()
        self.ofv_source = next((word for text, word in SOURCES if text in lower), lower or "unknown")
        self.remarks: list[str] = []
        if objective in NO_LIKELIHOOD:
            self.ofv_source = objective.removesuffix("OBJ").lower()
            self.remarks.append(f"the objective of {table.method} is no likelihood; use the arbiter's")
        self._ending()
        self._compare_fixed()
        self.covariance = self._matrix(".cov")
        self.correlation = self._matrix(".cor")
        self.individuals = self._read_individuals()
        self._compare_objective()

    # -- what a comparison needs --------------------------------------------------------------------------------------
    @cached_property
    def problem(self) -> Problem:
        """The page at the run's estimates, bound to the data."""
        return Problem(self.model, self.population)

    @property
    def values(self) -> Values:
        """The run's estimates as a page takes them."""
        return self.problem.values(self.problem.start)

    @property
    def log_likelihood(self) -> float:
        """-1/2 (OFV + n log 2 pi); NaN where the objective is no likelihood."""
        if self.ofv_source in ("saem", "mcmc"):
            return math.nan
        return -0.5 * (self.ofv + self.problem.n_gaussian * LOG_2PI)

    @property
    def n_parameters(self) -> int:
        """Free parameters of the page."""
        return self.problem.P

    @cached_property
    def parameters(self) -> pd.DataFrame:
        """Estimates and standard errors on the page, one row a parameter."""
        t, layout = self.translation, self.model.layout
        rows: list[dict[str, Any]] = [
            {"name": n, "kind": "theta", "estimate": t.theta[n], "unit": layout.thetas[n].unit}
            for n in layout.theta_names
        ]
        for name, (i, j) in zip(layout.omega_names, layout.positions, strict=True):
            rows.append({"name": name, "kind": "omega", "estimate": float(t.omega[i, j]), "unit": ""})
        rows += [{"name": n, "kind": "sigma", "estimate": t.sigma[n], "unit": ""} for n in layout.sigma_names]
        for row in rows:
            row["se"], row["fixed"] = t.se.get(row["name"], math.nan), t.fixed.get(row["name"], False)
        return pd.DataFrame(rows).set_index("name")[["kind", "estimate", "se", "unit", "fixed"]]

    @property
    def iterations(self) -> pd.DataFrame:
        """The rows of the search: ITERATION, parameters, objective."""
        return self._frame[self._frame["ITERATION"] > FINAL].reset_index(drop=True)

    @property
    def condition_number(self) -> float:
        """Of the correlation matrix of the estimates, as NONMEM printed it."""
        row = self._row(CONDITION)
        return math.nan if row is None else float(row.iloc[1])

    def __repr__(self) -> str:
        table = self.parameters[["kind", "estimate", "se"]].to_string(
            float_format=lambda x: f"{x:.5g}", na_rep=""
        )
        return "\n".join(
            [
                f"{self.model.name} by NONMEM, {self.program} ({self.path.name}, table {self.number})",
                f"OFV {self.ofv:.4f} ({self.ofv_source}); {self.reason}",
                table,
                *(f"note: {word}" for word in self.remarks),
            ]
        )

    # -- reading ------------------------------------------------------------------------------------------------------
    def _row(self, iteration: float) -> pd.Series | None:
        found = self._frame[self._frame["ITERATION"] == iteration]
        return None if found.empty else found.iloc[0]

    def _estimates(self, final: pd.Series, names: list[str]) -> dict[str, Estimate]:
        """NONMEM's estimates by name, THETA before SIGMA before OMEGA as they stand in the file."""
        errors, fixed = self._row(ERRORS), self._row(FIXED)
        given = {}
        for name in names:
            held = fixed is not None and float(fixed[name]) != 0
            se = math.nan if errors is None else float(errors[name])
            known = not held and 0 < se < UNKNOWN
            given[name] = Estimate(float(final[name]), se if known else math.nan, held)
        return given

    def _ending(self) -> None:
        row = self._row(ENDED)
        code = None if row is None else int(float(row.iloc[1]))
        self.converged = code in (None, 0, 2)
        self.reason = (
            "how it ended is not in the file" if code is None else ENDS.get(code, f"ended with code {code}")
        )

    def _compare_fixed(self) -> None:
        """Say where NONMEM held what the page leaves free, or the other way about: `p` is the page's."""
        layout = self.model.layout
        for name, held in zip(layout.names, layout.fixed.tolist(), strict=True):
            theirs = self.translation.fixed.get(name, held)
            if theirs != held:
                here, there = ("fixed", "estimated") if held else ("free", "fixed")
                self.remarks.append(
                    f"{name} is {here} on the page and was {there} by NONMEM; p counts the page's"
                )

    def _compare_objective(self) -> None:
        """Say where the page, at the run's estimates, has another objective by the same method: what was matched by
        order may stand in another order, or the page says something else.
        """
        if self.ofv_source not in ("fo", "foce", "focei", "laplace"):
            return
        try:
            own = method_class(self.ofv_source)(evaluate=True).estimate(self.problem).ofv
        except NlmegenError as error:
            self.remarks.append(f"the page cannot be evaluated at the run's estimates: {error}")
            return
        if not abs(own - self.ofv) <= SAME_OFV * (1 + abs(self.ofv)):
            self.remarks.append(
                f"at NONMEM's estimates the page has OFV {own:.4f} by {self.ofv_source}, NONMEM printed {self.ofv:.4f}:"
                " the page or the data say something else, its objective has other constants (a log-normal endpoint),"
                " or parameters were matched in the wrong order (map=)"
            )

    def _beside(self, suffix: str) -> Table | None:
        """The table of the same step in a file beside the .ext, None where there is none."""
        file = self.path.with_suffix(suffix)
        if not file.is_file():
            return None
        return next((t for t in read_tables(file) if t.number == self.number), None)

    def _matrix(self, suffix: str) -> pd.DataFrame | None:
        table = self._beside(suffix)
        if table is None:
            return None
        return table.frame.set_index("NAME").rename_axis(None)

    def _read_individuals(self) -> pd.DataFrame | None:
        table = self._beside(".phi")
        if table is None:
            return None
        frame = table.frame
        file = self.path.with_suffix(".phi")
        if "ID" not in frame:
            raise DataError(f"{file}: expected a column ID, got {', '.join(table.columns)}")
        ids = [_id(x) for x in frame["ID"]]
        ours = [_id(x) for x in self.population.ids]
        if ids != ours:
            differ = next(
                (f" (first difference: {a} and {b})" for a, b in zip(ids, ours, strict=False) if a != b), ""
            )
            raise DataError(
                f"{file}: the run has {len(ids)} subjects and the data {len(ours)}, or others{differ}; give the data"
                " that NONMEM read, with the same IGNORE and ACCEPT"
            )
        names = individual_names(table.columns, self.translation.etas)
        frame = frame.rename(columns=names)[[names[c] for c in table.columns if c in names]]
        frame["id"] = list(self.population.ids)
        if "obj" in frame and self.ofv_source not in ("saem", "mcmc"):
            total = float(frame["obj"].sum())
            if abs(total - self.ofv) > 1e-4 * (1 + abs(self.ofv)):
                self.remarks.append(
                    f"the subjects' objectives in {file.name} sum to {total:.4f} and not to the OFV {self.ofv:.4f}"
                )
        return frame


def read_nonmem_run(
    path: str | Path,
    *,
    model: Model | type[Model],
    data: Population,
    map: Mapping[str, Target] | None = None,
    table: int | None = None,
) -> NonmemRun:
    """Read a run of NONMEM 7 from its .ext file, and from .cov, .cor and .phi where they stand beside it.

    Its estimates become values of a page, so that `compare` and `likelihood_ratio` can take the run as one of their
    columns: -2 log L at NONMEM's estimates by the same arbiter as the fits'.

    Args:
        path: run1.ext.
        model: the page that says what the control stream says; its values do not matter.
        data: what NONMEM read.
        map: NONMEM's name -> the page's ({"THETA1": "tvcl"}), a pair with a function of the estimate where the scale
            differs ({"THETA1": ("tvcl", math.exp)} for a logarithm), or None to leave it out. Without a function a
            THETA is taken as it is and a SIGMA, a variance, as its root. What is not named is matched by order: thetas,
            etas, residual errors.
        table: number of the estimation step; the last unless given.

    Raises:
        DataError: a file that is not NONMEM's, a run without final estimates, counts that do not match the page, or a
            .phi file of other subjects.

    Example:
        >>> run = read_nonmem_run("run1.ext", model=page, data=data)  # doctest: +SKIP
        >>> compare(fit, run).table["minus2ll"]  # doctest: +SKIP
    """
    file = Path(path)
    page = model() if isinstance(model, type) else model
    if not isinstance(page, Model):
        raise ModelError(f"read_nonmem_run needs model=, a page, got {type(model).__name__}")
    if not isinstance(data, Population):
        raise DataError(f"read_nonmem_run needs data=, a Population, got {type(data).__name__}")
    tables = [t for t in read_tables(file) if t.rows]
    if tables[-1].columns[0] != "ITERATION":
        raise DataError(
            f"{file}: expected a .ext file (labels ITERATION, THETA1, ...), got {tables[-1].columns[0]}"
        )
    numbers = [t.number for t in tables]
    if table is not None and table not in numbers:
        raise DataError(f"{file} holds no table {table}; it has {', '.join(str(n) for n in numbers)}")
    chosen = tables[-1] if table is None else tables[numbers.index(table)]
    return NonmemRun(file, chosen, page, data, map)


def _id(value: float | str) -> str:
    """An id as text, 1.0 the same as 1."""
    try:
        number = float(value)
    except ValueError:
        return str(value)
    return f"{number:g}" if abs(number) < 1e6 else repr(number)
