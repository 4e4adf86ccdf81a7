"""The numbers of a fit as they stand in its folder: fit.json and individuals.csv."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from nlmegen import __version__
from nlmegen.errors import Status
from nlmegen.model.levels import column
from nlmegen.model.pagetext import page_text

if TYPE_CHECKING:
    from nlmegen.fit import Fit

SCHEMA = 1
UNCERTAIN = (".se", ".rse", ".ci_lower", ".ci_upper", "condition_number")
"""Ends of the names of numbers that there are only with a covariance matrix of the estimates."""


def facts(fit: Fit) -> dict[str, Any]:
    """The content of fit.json, schema 1: full precision, null where a number is not finite (a note says so).

    `omega` is a covariance matrix, `sigma` holds standard deviations.
    """
    table, omega = fit.parameters, fit.model.omega
    text = page_text(fit.model)
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "nlmegen": __version__,
        "model": fit.model.name,
        "page_sha256": hashlib.sha256(text.encode()).hexdigest() if text else None,
        "data": {
            "n_subjects": fit.population.n_subjects,
            "n_observations": fit.population.n_observations,
            "sha256": fit.population.sha256,
        },
        "method": fit.method,
        "ofv": fit.ofv,
        "log_likelihood": fit.log_likelihood,
        "ofv_source": fit.ofv_source,
        "ofv_se": fit.ofv_se,
        "converged": fit.converged,
        "reason": fit.reason,
        "seconds": fit.seconds,
        "theta": {
            str(name): {
                **{key: _estimated(row, key) for key in ("estimate", "se", "rse", "ci_lower", "ci_upper")},
                "unit": str(row["unit"]),
                "fixed": bool(row["fixed"]),
            }
            for name, row in table[table["kind"] == "theta"].iterrows()
        },
        "omega": {
            "names": list(fit.model.effect_names),
            "covariance": omega.tolist(),
            # a covariance that the page does not declare is 0 and has no standard error
            "se": [
                [e if c != 0 else None for e, c in zip(*row, strict=True)]
                for row in zip(fit.omega_se.tolist(), omega.tolist(), strict=True)
            ],
        },
        "sigma": {
            str(name): {key: _estimated(row, key) for key in ("estimate", "se")}
            for name, row in table[table["kind"] == "sigma"].iterrows()
        },
        "shrinkage_eta": {name: float(value) for name, value in fit.shrinkage_eta.items()},
        "aic": fit.aic,
        "bic": fit.bic,
        "condition_number": fit.condition_number,
    }
    if fit.penalty:
        content["penalty"] = fit.penalty
    if fit.bounds is not None:
        content["elbo" if "elbo" in fit.bounds else "importance"] = dict(fit.bounds)
    missing: list[str] = []
    content = {key: _finite(value, key, missing) for key, value in content.items()}
    content["notes"] = [*fit.notes, *fit.identifiability]
    if fit.estimate.covariance is None:
        content["notes"].append("no standard errors were computed: they are null")
        missing = [name for name in missing if not name.endswith(UNCERTAIN)]
    if missing:
        content["notes"].append(f"null because not finite: {', '.join(missing)}")
    return content


def individuals(fit: Fit) -> pd.DataFrame:
    """One row a subject: id, modes, posterior means and SDs of the random effects (eta_NAME; kappa_NAME_2 of the second
    occasion, empty where a subject has none), individual parameters (of the first record), status.
    """
    columns: dict[str, Any] = {"id": list(fit.population.ids)}
    present = fit.problem.levels.present
    modes, means, sds = (
        torch.where(present, x, math.nan).numpy() for x in (fit.ebe, fit.eta_mean, fit.eta_sd)
    )
    names = [column(name) for name in fit.problem.eta_names]
    columns |= {name: modes[:, k] for k, name in enumerate(names)}
    for k, name in enumerate(names):
        columns[f"{name}_mean"], columns[f"{name}_sd"] = means[:, k], sds[:, k]
    with torch.no_grad():
        for name, value in fit.problem.individual(fit.ebe, fit.values).items():
            columns[name] = value.expand(len(fit.population), -1)[:, 0].numpy()
    columns["status"] = [Status(int(flag)).name for flag in fit.status]
    return pd.DataFrame(columns)


def _estimated(row: pd.Series[Any], key: str) -> float | None:
    """A number of the parameter table; what is fixed has no standard error."""
    return None if row["fixed"] and key != "estimate" else float(row[key])


def _finite(value: Any, where: str, missing: list[str]) -> Any:
    """`value` with null for every number that is not finite; their places are added to `missing`."""
    if isinstance(value, dict):
        return {key: _finite(inner, f"{where}.{key}", missing) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner, where, missing) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        if where not in missing:
            missing.append(where)
        return None
    return value
