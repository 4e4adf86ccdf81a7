"""Rung 3 in brief: a few published numbers that depend on interaction, on curvature and on real records.

The tables themselves are in `tests/reference`; these are the cheap ones that mutants are tried on.
"""

from __future__ import annotations

import math

import torch
from inference.pages import TheophyllineSd, WangAdditive, WangProportional, wang_data
from ladder.comparisons import F64, close
from ladder.linear_gaussian import score_of
from reference.published import NUMBERS, at, minus2ll

import nlmegen as nl
from nlmegen.inference.objective import Objective


def wang_table() -> None:
    """FOCEI 39.458 / -2.059, Laplace 39.227 / -1.936, quadrature 39.355 / -1.990: they differ from one another."""
    pages = {"proportional": (WangProportional, 39.458), "additive": (WangAdditive, -2.059)}
    for error, (page, focei) in pages.items():
        found = nl.FOCEI(evaluate=True).estimate(nl.Problem(page(), wang_data())).ofv
        close(found, focei, 6e-4 / (1 + abs(focei)))
        for method, nodes in (("laplace", 1), ("quadrature", 41)):
            wanted = NUMBERS["wang2007"][error][method]
            close(
                minus2ll(page(), wang_data(), nodes) - 20 * math.log(2 * math.pi),
                wanted,
                6e-4 / (1 + abs(wanted)),
            )


def phenobarbital_at_nonmems_estimates() -> None:
    """The objective to 2e-5, without a search; quadrature to .002; the gradient vanishes to the printed digits."""
    numbers = NUMBERS["phenobarbital"]
    model, data = at(nl.load_model("phenobarbital"), numbers["nonmem"]), nl.load_data("phenobarbital")
    found = nl.fit(model, data, nl.FOCEI(evaluate=True, covariance="sandwich"))
    close(found.ofv, numbers["nonmem"]["ofv"], 3e-8)
    close(minus2ll(model, data), numbers["quadrature"]["at_nonmem_minus2ll"], 2e-6)
    problem = nl.Problem(model, data)
    score = Objective(problem)(problem.start[None], scores=True).gradient[0]
    assert float(score.abs().max()) < 0.05, score
    for name, value in numbers["nonmem"]["se"].items():
        close(float(found.parameters.loc[name, "se"]) / value, 1.0, 0.005)
    close(found.condition_number, numbers["nonmem"]["condition_number"], 0.01)


def theophylline_optimum() -> None:
    """-2 log L of the combined-error model at the quadrature optimum."""
    numbers = NUMBERS["theophylline"]["quadrature"]["combined"]
    model = at(nl.load_model("theophylline"), numbers)
    close(minus2ll(model, nl.load_data("theophylline"), 9), numbers["minus2ll"], 6e-6)


def focei_scores_by_differences() -> None:
    """Where interaction, curvature and the modes' own motion matter: the score against differences of the objective."""
    data = nl.load_data("theophylline").select(torch.arange(4))
    for page in (type(nl.load_model("theophylline")), TheophyllineSd):
        problem = nl.Problem(page(), data)
        free = problem.start + 0.1 * torch.randn(
            problem.P, generator=torch.Generator().manual_seed(1), dtype=F64
        )
        objective = Objective(problem)
        here = objective(free[None], scores=True)
        unit = 1e-3 * torch.eye(problem.P, dtype=F64)
        near, far = (
            (objective(free + k * unit).objective - objective(free - k * unit).objective) for k in (1, 2)
        )
        close(score_of(here)[0], ((8 * near - far) / 12e-3).T, 1e-5)


CHECKS = (
    wang_table,
    phenobarbital_at_nonmems_estimates,
    theophylline_optimum,
    focei_scores_by_differences,
)
