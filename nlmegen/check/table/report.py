"""A table explained in words and in one figure before anything is fitted."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nlmegen.check.table.covariates import odd_covariates
from nlmegen.check.table.doses import odd_doses
from nlmegen.check.table.repeats import repeated_doses
from nlmegen.check.table.times import odd_times
from nlmegen.check.table.values import odd_values
from nlmegen.check.table.view import Finding, View
from nlmegen.check.table.words import understood
from nlmegen.data.columns import DataWarning
from nlmegen.data.filling import Missing
from nlmegen.data.nonmem import Source, read_table
from nlmegen.data.population import Population, build
from nlmegen.data.records import read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What `check_table` found; `print(report)` shows it, `report.plot()` draws it.

    Attributes:
        understood: Sentences on what the table says.
        findings: What deserves a look, with the records it concerns; none of it stops a fit.
        population: The table as a Population.
    """

    understood: tuple[str, ...]
    findings: tuple[Finding, ...]
    population: Population
    view: View = field(repr=False)

    @property
    def odd(self) -> tuple[str, ...]:
        """What deserves a look, in sentences."""
        return tuple(finding.text for finding in self.findings)

    def __str__(self) -> str:
        parts = ["What was understood", *(f"  - {line}" for line in self.understood), "", "What looks odd"]
        return "\n".join([*parts, *(f"  - {line}" for line in self.odd or ("nothing",))])

    __repr__ = __str__

    def plot(self) -> Figure:
        """Draw it: see `nlmegen.plots.table.table`."""
        # The one stated exception to the direction of imports: a figure on request.
        from nlmegen.plots.table import table

        return table(self)


def check_table(
    path_or_df: Source,
    *,
    ignore: str | Sequence[str] | None = None,
    accept: str | Sequence[str] | None = None,
    rename: Mapping[str, str | None] | None = None,
    interpolation: str = "nonmem",
    missing: Missing | None = None,
    repeated_ids: str = "refuse",
    time_unit: str = "",
    amount_unit: str = "",
    dv_unit: str = "",
) -> CheckReport:
    """Explain a table: subjects, observations, doses by kind, covariates, endpoints, and what looks odd.

    What looks odd is said with its lines and what to do: subjects whose values or doses are about 10 or 1,000 times
    those of the others (at the same dose and time after it), single values far from both, doses without effect or
    after the last sample, doses given twice, values before the first dose, copies, gaps, many values at a limit,
    codes such as -99, constants, values below quantification amid measured ones, doses that may be per kg,
    covariates that no body has or that change once. Thresholds are robust: a table without slips gives none, or
    few.

    Args:
        path_or_df, ignore, accept, rename, interpolation, missing, repeated_ids, time_unit, amount_unit, dv_unit: As in
            `read_nonmem`.

    Raises:
        DataError: the table cannot be read; the message names row and column and the remedy.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"id": [1, 1], "time": [0, 2], "amt": [100, 0], "dv": [None, 7.5], "wt": [70, 70]})
        >>> print(check_table(frame))
        What was understood
          - 1 subject, 1 observation (1 a subject), times 2
          - dv 7.5
          - 1 bolus into the default compartment, amount 100
          - covariate wt 70, constant
        <BLANKLINE>
        What looks odd
          - nothing
    """
    table = read_table(
        path_or_df, ignore=ignore, accept=accept, rename=rename, missing=missing, repeated_ids=repeated_ids
    )
    with warnings.catch_warnings(action="ignore", category=DataWarning):  # they are part of the report
        population = build(table, interpolation, (time_unit, amount_unit, dv_unit))
    view = View(table, read_records(table), population)
    findings = [Finding(text) for text in population.warnings]
    for look in (odd_values, odd_doses, repeated_doses, odd_times, odd_covariates):
        findings += look(view)
    return CheckReport(tuple(understood(view)), tuple(findings), population, view)
