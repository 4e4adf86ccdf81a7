"""A fit in plain words, and numbers as people read them."""

from __future__ import annotations

import dataclasses
import math
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch

from nlmegen import __version__
from nlmegen.inference.methods import stages

if TYPE_CHECKING:
    from nlmegen.fit import Fit

METHODS = {
    "elbo": (
        "importance-weighted variational inference",
        "An encoder (a neural network) reads each subject's record and proposes where its random effects lie; encoder"
        " and population parameters are trained together, and the likelihood is then computed by importance sampling.",
    ),
    "fo": (
        "FO, the first-order approximation",
        "The model is linearised at random effects of zero. It is the oldest and quickest method, and biased where"
        " random effects are large or the model bends.",
    ),
    "foce": (
        "FOCE, first-order conditional estimation",
        "The model is linearised about each subject's most probable random effects, the residual variance taken at"
        " random effects of zero; its likelihood is an approximation.",
    ),
    "focei": (
        "FOCEI, first-order conditional estimation with interaction",
        "The model is linearised about each subject's most probable random effects. It is the classic method of the"
        " field; its likelihood is an approximation.",
    ),
    "laplace": (
        "Laplace's approximation with the exact Hessian",
        "Each subject's integral is taken from the height and the curvature of its integrand at the top.",
    ),
    "agq": (
        "adaptive Gauss-Hermite quadrature",
        "Each subject's integral is a weighted sum over a grid that is laid about the most probable random effects;"
        " with enough nodes it is exact.",
    ),
    "saem": (
        "SAEM, stochastic approximation expectation maximisation",
        "Random effects are drawn by Markov chains, and the parameters follow a running average of what the draws"
        " imply; its end is the maximum likelihood (with priors, that of likelihood times prior).",
    ),
    "imp": (
        "importance sampling",
        "The likelihood is a weighted mean over draws from a thick-tailed proposal about each subject's mode, and is"
        " maximised on those draws; its end is the maximum likelihood (with priors, that of likelihood times prior).",
    ),
}
"""Method -> what it is called, and what it does."""

SOURCES = {
    "focei": "the FOCEI approximation",
    "quadrature": "adaptive Gauss-Hermite quadrature",
    "importance": "importance sampling",
    "laplace": "the Laplace approximation",
    "foce": "the FOCE approximation",
    "fo": "the FO approximation",
}
"""Where a likelihood comes from."""


COMPARED = {
    "p": "estimated parameters",
    "ofv": "its own OFV",
    "ofv_source": "by",
    "minus2ll": "−2 log L, one arbiter",
    "delta": "above the best",
    "minus2ll_se": "its numerical error",
    "paired_se": "error of that",
    "aic": "AIC",
    "bic": "BIC",
    "seconds": "seconds",
}
"""Rows of a comparison, in words."""


def number(value: Any, digits: int = 4) -> str:
    """Return a number with that many significant digits, an en dash where there is none.

    Example:
        >>> number(0.0046955), number(19365.196, 8), number(float("nan")), number(12000.0)
        ('0.004696', '19365.196', '–', '12000')
    """
    if value is None or not math.isfinite(float(value)):
        return "–"
    x = float(value)
    if x == 0:
        return "0"
    exponent = math.floor(math.log10(abs(x)))
    if exponent < -5 or exponent >= 9:
        return f"{x:.{digits - 1}e}"
    return f"{x:.{max(0, digits - 1 - exponent)}f}"


def percent(value: Any) -> str:
    """Return a fraction as a percentage, an en dash where there is none."""
    if value is None or not math.isfinite(float(value)):
        return "–"
    return f"{100 * float(value):.1f} %" if abs(value) < 0.1 else f"{100 * float(value):.0f} %"


def summary(fit: Fit) -> list[str]:
    """Return what was done and what came of it, a sentence each."""
    population = fit.population
    seen = population.mask.sum(-1)
    low, high = int(seen.min()), int(seen.max())
    each = f"{low}" if low == high else f"{low} to {high}"
    doses = f"{population.n_doses} doses" if population.n_doses != 1 else "one dose"
    methods = stages(fit.settings)
    called, does = METHODS[methods[-1].name]
    if len(methods) > 1:
        called += f", begun at the estimates of {' and '.join(method.name for method in methods[:-1])}"
    if not fit.model.effect_names:
        does = "The page has no random effects, so that this is its exact likelihood."
    done = "evaluated, not estimated," if evaluated(fit) else "fitted"
    sentences = [
        f"{population.n_subjects} subjects gave {population.n_observations} observations ({each} each) after {doses}.",
        f"The page “{fit.model.name}” was {done} by {called}. {does}",
    ]
    seconds = f"{fit.seconds:.1f} s" if fit.seconds >= 1 else f"{1000 * fit.seconds:.0f} ms"
    if evaluated(fit) and fit.converged:
        sentences.append(
            f"The numbers below are those of the values at which it was evaluated; this took {seconds}."
        )
    elif fit.converged:
        sentences.append(f"It converged after {fit.iterations} iterations in {seconds}: {fit.reason}.")
    else:
        sentences.append(
            f"It did not converge. It stopped after {fit.iterations} iterations ({seconds}): {fit.reason}."
            " The numbers below are the best so far and are not to be used as estimates."
        )
    error = f" ± {number(fit.ofv_se, 2)}" if fit.ofv_se else ""
    by = SOURCES.get(fit.ofv_source, fit.ofv_source)
    sentences.append(f"The objective function (OFV) is {number(fit.ofv, 8)}{error}, by {by}.")
    return sentences


def evaluated(fit: Fit) -> bool:
    """Whether nothing was estimated: the last method only evaluated the page at the values that it was given."""
    return bool(getattr(stages(fit.settings)[-1], "evaluate", False))


def concerns(fit: Fit) -> list[str]:
    """Return what deserves attention: the fit's notes, and what the data do not determine."""
    words = [text for text in fit.problems() if not text.startswith("not converged")]
    data = [f"data: {text}" for text in fit.population.warnings]
    words += [text for text in data if text not in words]
    if fit.bounds and fit.bounds.get("khat_max", 0.0) > 0.7:
        words.append(
            f"The largest k-hat is {number(fit.bounds['khat_max'], 2)} (above 0.7): for some subject the draws come"
            " from a poor proposal, and its share of the likelihood is uncertain."
        )
    return words


def ladder(fit: Fit) -> list[dict[str, Any]]:
    """Return the rungs ELBO <= IW-ELBO <= log L of a variational fit.

    Each has a place from 0 to 1 on a line that ends at the highest rung and is at least one log unit long, so that a
    tight bound looks tight.
    """
    if not fit.bounds or "elbo" not in fit.bounds:
        return []
    b = fit.bounds
    rungs: list[dict[str, Any]] = [
        {"name": "ELBO", "value": float(b["elbo"]), "words": "one draw of each subject: a lower bound"},
        {
            "name": f"IW-ELBO, {b['k']} draws",
            "value": float(b["iwelbo"]),
            "words": "importance-weighted: a tighter lower bound",
        },
        {
            "name": "log-likelihood",
            "value": float(b["importance_log_likelihood"]),
            "words": f"importance sampled, standard error {number(b['importance_se'], 2)}",
        },
    ]
    high = max(rung["value"] for rung in rungs)
    span = max(1.0, *(high - rung["value"] for rung in rungs))
    for rung in rungs:
        rung["span"] = span
        rung["place"] = 1 - (high - rung["value"]) / span
    return rungs


def command(fit: Fit) -> str:
    """Return the command that repeats the fit in its folder (which holds model.py and data.csv)."""
    words = ["nlmegen fit model.py data.csv", f"--method {fit.method}"]
    methods = stages(fit.settings)
    for method in methods:
        of = f"{method.name}." if len(methods) > 1 else ""
        for field in dataclasses.fields(method):
            value = getattr(method, field.name)
            if not field.init or value == field.default:
                continue
            if field.name in ("seed", "device") and not of:
                words.append(f"--{field.name} {value}")
            elif field.name == "evaluate" and not of:
                words.append("--evaluate")
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words.append(f"--set {of}{field.name}={text}")
    return " ".join([*words, "--out again"])


def versions() -> list[tuple[str, str]]:
    """Return what computed the numbers."""
    rows = [
        ("nlmegen", __version__),
        ("Python", platform.python_version()),
        ("torch", str(torch.__version__)),
    ]
    rows += [(name, metadata.version(name)) for name in ("numpy", "scipy", "pandas")]
    return [*rows, ("machine", f"{platform.system()} {platform.machine()}")]
