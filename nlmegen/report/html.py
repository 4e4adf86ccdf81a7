"""The report of a fit: one HTML file that needs nothing else, for a screen, a telephone or paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pandas as pd

from nlmegen.check.npde import uniformity
from nlmegen.check.residuals import residuals
from nlmegen.check.vpc import VPC
from nlmegen.check.vpc import vpc as predictive_check
from nlmegen.errors import FitError
from nlmegen.inference.identify import CORRELATED
from nlmegen.report import figures, words

if TYPE_CHECKING:
    from nlmegen.fit import Comparison, Fit


def report(fit: Fit, path: str | Path, **options: Any) -> Path:
    """Write the report of a fit into a file.

    Args:
        fit: A `Fit`.
        path: The file to write, over an older one.
        **options: As for `html`.

    Example:
        >>> nl.report(fit, "report.html", compare=nl.compare(fit, other))      # doctest: +SKIP
    """
    target = Path(path)
    target.write_text(html(fit, **options), encoding="utf-8")
    return target


def html(
    fit: Fit,
    compare: Comparison | None = None,
    vpc: VPC | None = None,
    predictions: pd.DataFrame | None = None,
    drawn: Mapping[str, figures.Shown] | None = None,
    command: str | None = None,
) -> str:
    """Return the report of a fit as one HTML document: figures inside, no script, nothing fetched.

    Args:
        fit: A `Fit`; one that failed is reported too, as such.
        compare: A comparison with other fits to show.
        vpc: A visual predictive check to show; one with 300 replicates is made unless given.
        predictions: The table of `residuals(fit)`, when it is at hand.
        drawn: The figures that `report.figures.draw` made, when they are at hand.
        command: The command that made the fit; one that repeats it in its folder unless given.
    """
    table, trouble = predictions, ""
    try:
        table = residuals(fit) if table is None else table
        vpc = predictive_check(fit, draws=300) if vpc is None else vpc
    except (FitError, RuntimeError) as error:
        trouble = str(error)
    drawn = figures.draw(fit, table, vpc) if drawn is None else drawn
    npde = table["npde"].dropna() if table is not None else pd.Series(dtype=float)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nlmegen.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = words.number
    environment.filters["percent"] = words.percent
    return environment.get_template("report.html.j2").render(
        fit=fit,
        summary=words.summary(fit),
        evaluated=words.evaluated(fit),
        concerns=words.concerns(fit),
        parameters=_parameters(fit),
        kind=_standard_errors(fit),
        correlation=_correlation(fit),
        ladder=words.ladder(fit),
        comparison=None if compare is None else _comparison(compare),
        drawn=drawn,
        trouble=trouble,
        npde=uniformity(npde.to_numpy()) if len(npde) > 2 else None,
        source=fit.model.source,
        command=command or words.command(fit),
        seed=getattr(fit.settings, "seed", None),
        versions=words.versions(),
    )


def _parameters(fit: Fit) -> list[dict[str, Any]]:
    """The parameter table with, for variances and covariances, the SD and correlation they stand for."""
    omega = fit.model.omega.numpy()
    place = {name: k for k, name in enumerate(fit.model.effect_names)}
    rows = []
    for name, row in fit.parameters.iterrows():
        also = ""
        if row["kind"] == "omega":
            etas = [place[part] for part in str(name).removeprefix("omega.").split(",")]
            if len(etas) == 1:
                also = f"SD {words.number(np.sqrt(row['estimate']), 3)}"
            else:
                scale = np.sqrt(omega[etas[0], etas[0]] * omega[etas[1], etas[1]])
                also = f"correlation {words.number(row['estimate'] / scale, 3)}"
        cells = {str(column): value for column, value in row.items()}
        rows.append({"name": str(name), "also": also, **cells})
    return rows


def _correlation(fit: Fit) -> dict[str, Any] | None:
    """The correlation matrix of the estimates below its diagonal; None without one, or of one parameter alone."""
    matrix = fit.correlation
    if matrix is None or len(matrix) < 2:
        return None
    values = matrix.to_numpy()
    names = [str(name) for name in matrix.index]
    return {
        "names": names[:-1],
        "rows": [
            (names[i], [(words.number(x, 2), abs(x) > CORRELATED) for x in values[i, :i]])
            for i in range(1, len(names))
        ],
    }


def _standard_errors(fit: Fit) -> str:
    """Where the standard errors come from, in words."""
    kind = fit.estimate.covariance_kind
    called = {"sandwich": "the sandwich R⁻¹SR⁻¹", "R": "the Hessian (R)", "S": "the scores (S)"}
    return called.get(kind, kind)


def _comparison(compared: Comparison) -> dict[str, Any]:
    """A comparison with a column for each fit: what a telephone shows without scrolling."""
    table = compared.table
    rows = []
    for column in table.columns:
        label = words.COMPARED.get(str(column), str(column).replace("_", " "))
        rows.append([label, *(_cell(value, str(column)) for value in table[column])])
    estimates = compared.parameters
    columns = [str(column) for column in estimates.columns]
    return {
        "detail": compared.detail,
        "fits": [str(name) for name in table.index],
        "notes": compared.notes,
        "rows": rows,
        "columns": columns,
        "parameters": [
            [str(name), *(words.number(value) for value in row)]
            for name, row in zip(estimates.index, estimates.to_numpy(), strict=True)
        ],
    }


def _cell(value: Any, column: str) -> str:
    """One entry of the comparison, as people read it."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return words.number(value, 3 if column in ("minus2ll_se", "delta", "paired_se", "seconds") else 7)
    return str(value)
