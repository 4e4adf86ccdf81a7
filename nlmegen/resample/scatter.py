"""The result of a bootstrap: every replicate, and what their scatter says of each parameter."""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..fit import Fit
from .criterion import influence
from .intervals import Floats, acceleration, bca, percentiles
from .replicate import CONVERGED, FAILED, NOT_CONVERGED

HEAD = ("replicate", "seed", "status", "reason", "ofv")
TAIL = ("seconds",)
REASONS = 3
"""Reasons of lost replicates that are shown, the most frequent first."""


ZERO = 1e-4
"""A variance smaller than this share of its estimate is at its boundary."""


class Bootstrap:
    """Replicates of a fit.

    Attributes:
        fit: the fit; method: that of the replicates, by name.
        kind, seed, n, level: as asked for.
        table: one row a replicate, indexed by its number: seed, status ("converged", "not converged", "failed"),
            reason, ofv, the estimates on the natural scale by name (NaN where it failed), seconds.
        acceleration: of the BCa intervals, by parameter; None where there are none.
        notes: what deserves attention, in words.
    """

    def __init__(
        self,
        fit: Fit,
        method: str,
        kind: str,
        seed: int,
        n: int,
        level: float,
        table: pd.DataFrame,
        acceleration: pd.Series[float] | None,
        notes: list[str],
    ) -> None:
        self.fit, self.method, self.kind, self.seed, self.n, self.level = fit, method, kind, seed, n, level
        self.table, self.acceleration = table, acceleration
        self.names = fit.problem.names
        self.notes = notes + self._words()

    @classmethod
    def of(
        cls,
        fit: Fit,
        settings: Any,
        kind: str,
        seed: int,
        n: int,
        level: float,
        rows: Sequence[Sequence[Any]],
        interrupted: bool,
    ) -> Bootstrap:
        """From rows of cells, as they are computed or as they are read from a csv."""
        names = fit.problem.names
        table = pd.DataFrame(list(rows), columns=[*HEAD, *names, *TAIL])
        for name in ("replicate", "seed"):
            table[name] = [int(cell) for cell in table[name]]
        for name in ("ofv", *names, *TAIL):
            table[name] = [math.nan if cell == "" else float(cell) for cell in table[name]]
        notes = []
        if interrupted:
            notes.append(f"interrupted after {len(rows)} of {n} replicates; the same call goes on from there")
        if not fit.converged:
            notes.append(f"the fit itself did not converge: {fit.reason}")
        if settings.name != fit.method:
            notes.append(
                f"replicates are by {settings.name}, the fit by {fit.method}: bias holds the difference"
            )
        skewness = None
        if kind == "case":
            found, why = influence(fit)
            if found is None:
                notes.append(f"no BCa intervals: {why}")
            else:
                skewness = pd.Series(acceleration(found), index=list(names))
        return cls(fit, settings.name, kind, seed, n, level, table.set_index("replicate"), skewness, notes)

    # -- numbers ----------------------------------------------------------------------------------------------------
    @property
    def counts(self) -> dict[str, int]:
        """Replicates by status."""
        found = self.table["status"].value_counts()
        return {status: int(found.get(status, 0)) for status in (CONVERGED, NOT_CONVERGED, FAILED)}

    def estimates(self, unconverged: bool = False) -> pd.DataFrame:
        """Estimates of the replicates that converged, or of all that have any, on the natural scale."""
        wanted = (CONVERGED, NOT_CONVERGED) if unconverged else (CONVERGED,)
        return self.table.loc[self.table["status"].isin(wanted), list(self.names)]

    def summary(self, unconverged: bool = False) -> pd.DataFrame:
        """One row a parameter.

        Columns: estimate; mean, median, bias (mean less estimate) and se of the replicates; se_asymptotic, that of the
        fit; lower, upper (percentiles); bca_lower, bca_upper (case); asymptotic_lower, asymptotic_upper (95 %).

        Args:
            unconverged: take replicates that did not converge too.
        """
        values = self.estimates(unconverged).to_numpy(dtype=np.float64)
        spread = self.fit.uncertainty
        estimate = self.fit.parameters["estimate"].loc[list(self.names)].to_numpy(dtype=np.float64)
        nothing = np.full(len(estimate), np.nan)
        mean = values.mean(0) if len(values) else nothing
        ends = percentiles(values, self.level)
        corrected = np.stack((nothing, nothing))
        if self.acceleration is not None:
            corrected = bca(values, estimate, self.acceleration.to_numpy(), self.level)

        def asymptotic(name: str) -> Floats:
            return nothing if spread is None else np.asarray(getattr(spread, name))

        columns = {
            "estimate": estimate,
            "mean": mean,
            "median": np.median(values, axis=0) if len(values) else nothing,
            "bias": mean - estimate,
            "se": values.std(0, ddof=1) if len(values) > 1 else nothing,
            "se_asymptotic": asymptotic("se"),
            "lower": ends[0],
            "upper": ends[1],
            "bca_lower": corrected[0],
            "bca_upper": corrected[1],
            "asymptotic_lower": asymptotic("ci_lower"),
            "asymptotic_upper": asymptotic("ci_upper"),
        }
        return pd.DataFrame(columns, index=pd.Index(self.names, name="name"))

    @property
    def covariance(self) -> pd.DataFrame:
        """Covariance of the estimates over the replicates that converged."""
        return self.estimates().cov()

    @property
    def correlation(self) -> pd.DataFrame:
        """Correlation of the estimates over the replicates that converged."""
        return self.estimates().corr()

    # -- words ------------------------------------------------------------------------------------------------------
    def _words(self) -> list[str]:
        words = []
        for status in (NOT_CONVERGED, FAILED):
            reasons = Counter(self.table.loc[self.table["status"] == status, "reason"])
            words += [f"{count} {status}: {reason}" for reason, count in reasons.most_common(REASONS)]
        lost = len(self.table) - self.counts[CONVERGED]
        if lost > 0.05 * len(self.table):
            words.append(
                f"{100 * lost / len(self.table):.0f} % of the replicates are lost; those that are left may be the easy"
                " ones: compare the table with them and without, and doubt intervals that differ"
            )
        kept, estimate = self.counts[CONVERGED], self.fit.parameters["estimate"]
        for name in self.names:
            if name.startswith("omega.") and "," not in name:
                zeros = int((self.estimates()[name] < ZERO * estimate[name]).sum())
                words += [f"{name} is 0 in {zeros} of {kept} replicates"] if zeros else []
        if kept > 1:
            words.append(
                f"with {kept} replicates a standard error is known to {100 / math.sqrt(2 * kept):.0f} %"
            )
        return words

    def _head(self) -> str:
        counts = self.counts
        return (
            f"bootstrap of {self.fit.model.name} by {self.method}: {self.kind}, {len(self.table)} replicates, seed"
            f" {self.seed}; {counts[CONVERGED]} converged, {counts[NOT_CONVERGED]} not, {counts[FAILED]} failed"
        )

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        shown = [(f"converged, {100 * self.level:g} % intervals", self.summary())]
        if self.counts[NOT_CONVERGED]:
            shown.append(("with those that did not converge", self.summary(unconverged=True)))
        return [(title, frame.dropna(axis="columns", how="all")) for title, frame in shown]

    def __repr__(self) -> str:
        parts = [self._head()]
        for title, frame in self._tables():
            parts += [title, frame.to_string(float_format=lambda x: f"{x:.5g}", na_rep="")]
        return "\n".join([*parts, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        parts = [f"<p>{html.escape(self._head())}</p>"]
        for title, frame in self._tables():
            table = frame.to_html(float_format=lambda x: f"{x:.5g}", na_rep="")
            parts.append(f"<p>{html.escape(title)}</p>{table}")
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return "".join([*parts, f"<ul>{notes}</ul>"])
