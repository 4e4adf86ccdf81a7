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
from nlmegen.inference.agq import AGQ, Laplace
from nlmegen.inference.classic import Classic
from nlmegen.inference.conditional import FOCEIObjective
from nlmegen.inference.foce import FO, FOCE, FOCEI

WANG_METHODS = {
    "fo": FO(evaluate=True),
    "foce": FOCE(evaluate=True),
    "focei": FOCEI(evaluate=True),
    "laplace": Laplace(evaluate=True),
    "quadrature": AGQ(nodes=41, evaluate=True),
}


def wang_table() -> None:
    """All five columns, by the methods and by `quadrature`: they differ from one another."""
    pages: dict[str, type[nl.Model]] = {"proportional": WangProportional, "additive": WangAdditive}
    for error, page in pages.items():
        for name, method in WANG_METHODS.items():
            wanted = NUMBERS["wang2007"][error][name]
            found = method.estimate(nl.Problem(page(), wang_data())).ofv
            close(found, wanted, 6e-4 / (1 + abs(wanted)))
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
    score = FOCEIObjective(problem)(problem.start[None], scores=True).gradient[0]
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
    by_differences(FOCEI(), type(nl.load_model("theophylline")), TheophyllineSd)


def foce_scores_by_differences() -> None:
    """The residual variance at eta = 0 moves with the parameters, and the modes with it."""
    by_differences(FOCE(), TheophyllineSd)


def fo_scores_by_differences() -> None:
    """No modes, but a covariance that moves with everything."""
    by_differences(FO(), TheophyllineSd)


def laplace_scores_by_differences() -> None:
    """Third derivatives of the model."""
    by_differences(Laplace(), TheophyllineSd)


def quadrature_scores_by_differences() -> None:
    """A coarse grid, whose own motion counts."""
    by_differences(AGQ(nodes=2), TheophyllineSd)


def by_differences(method: Classic, *pages: type[nl.Model]) -> None:
    """The scores of a method against differences of its objective, of fourth order."""
    data = nl.load_data("theophylline").select(torch.arange(4))
    for page in pages:
        problem = nl.Problem(page(), data)
        free = problem.start + 0.1 * torch.randn(
            problem.P, generator=torch.Generator().manual_seed(1), dtype=F64
        )
        objective = method.objective(problem)
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
    foce_scores_by_differences,
    fo_scores_by_differences,
    laplace_scores_by_differences,
    quadrature_scores_by_differences,
)
