"""Conditional modes and FOCEI's scores by machine code, held against the searches and gradients of torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from inference.pages import Theophylline, WangProportional, wang_data
from model.closed_pages import CASES, F64, Case, Oral, Two, single
from model.test_compiled import points, problem_of

import nlmegen as nl
from nlmegen.inference.conditional import FOCEIObjective, FOCEObjective
from nlmegen.inference.ebe import Conditional, find_modes
from nlmegen.maths.newton import Minimum
from nlmegen.structure.kernel.language import integers

pytest.importorskip("llvmlite")
names = pytest.mark.parametrize("case", CASES, ids=str)


def searched(
    problem: nl.Problem, free: torch.Tensor, eta: torch.Tensor | None = None, **more: Any
) -> Minimum[Any]:
    conditional = Conditional.of(problem, problem.values(free))
    return find_modes(conditional, eta, **more)


def same_modes(ours: Minimum[Any], theirs: Minimum[Any], tolerance: float = 1e-8) -> None:
    """Equal where both have converged to the same minimum, and the same verdicts."""
    assert torch.equal(ours.converged, theirs.converged)
    assert torch.equal(ours.indefinite, theirs.indefinite)
    assert torch.allclose(ours.x, theirs.x, rtol=tolerance, atol=tolerance)
    a, b = ours.expansion, theirs.expansion
    for name in ("value", "hessian", "information"):
        scale = float(getattr(b, name).abs().max())
        assert torch.allclose(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-9 * scale), name
    identity = torch.eye(ours.x.shape[-1], dtype=F64)
    assert torch.allclose(a.information @ a.inverses[0], identity.expand_as(a.information), atol=1e-8)


@names
def test_modes_are_those_of_torch(case: Case) -> None:
    problem = problem_of(case)
    free, _ = points(problem, 3)
    ours, theirs = searched(problem, free), searched(problem.uncompiled(), free)
    same_modes(ours, theirs)
    assert bool(ours.converged.all())
    at = ours.expansion
    eta = at.eta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.uncompiled().log_joint(eta, problem.values(free)).sum(), eta)
    scale = torch.linalg.vector_norm(gradient, dim=-1) / (1 + at.value.abs())
    assert float(scale.max()) < 1e-5


@names
def test_the_residual_variance_may_be_held(case: Case) -> None:
    problem = problem_of(case)
    free, _ = points(problem, 2)
    values = problem.values(free)
    f = problem.predict(torch.zeros(2, problem.n_subjects, problem.q, dtype=F64), values).f
    held = problem.variance(f, values)[0].expand(f.shape)
    ours = find_modes(Conditional.of(problem, values, held), None)
    theirs = find_modes(Conditional.of(problem.uncompiled(), values, held), None)
    same_modes(ours, theirs)


@names
def test_scores_are_those_of_reverse_mode(case: Case) -> None:
    problem = problem_of(case)
    free, _ = points(problem, 2)
    for kind in (FOCEIObjective, FOCEObjective):
        ours = kind(problem)(free, scores=True)
        theirs = kind(problem.uncompiled())(free, scores=True)
        assert torch.allclose(ours.objective, theirs.objective, rtol=1e-10, atol=1e-9)
        scale = float(theirs.score.abs().max())
        assert torch.allclose(ours.score, theirs.score, rtol=1e-7, atol=1e-8 * scale)


def test_every_subject_has_its_own_bits() -> None:
    problem = problem_of(CASES[3])
    free, eta = points(problem, 3)
    whole = searched(problem, free, eta)
    order = torch.randperm(problem.n_subjects, generator=torch.Generator().manual_seed(4))
    permuted = searched(problem.select(order), free, eta[:, order])
    assert torch.equal(permuted.x, whole.x[:, order])
    alone = searched(problem.select(order[2:3]), free[1:2], eta[1:2, order[2:3]])
    assert torch.equal(alone.x[0, 0], whole.x[1, order[2]])
    assert torch.equal(alone.expansion.hessian[0, 0], whole.expansion.hessian[1, order[2]])


def test_indefinite_hessians_take_the_expected_information() -> None:
    """From far away, where the exact Hessian is indefinite, both searches take the same steps."""
    problem = nl.Problem(Theophylline(), nl.load_data("theophylline")).hasten()
    start = torch.tensor([2.0, -1.5, 1.0], dtype=F64).expand(1, 12, 3)
    free = problem.start[None]
    one = searched(problem, free, start, max_iterations=1)
    assert bool(one.indefinite.any())
    assert not bool(one.converged.any())
    for count in (1, 2, 4, 8):
        ours = searched(problem, free, start, max_iterations=count)
        theirs = searched(problem.uncompiled(), free, start, max_iterations=count, near=True)
        assert torch.allclose(ours.x, theirs.x, rtol=1e-9, atol=1e-9)
        assert torch.equal(ours.indefinite, theirs.indefinite)


def test_a_start_without_a_density_is_given_up_for_zero() -> None:
    problem = nl.Problem(WangProportional(), wang_data()).hasten()
    free = problem.start[None]
    found = searched(problem, free, torch.full((1, problem.n_subjects, 1), 400.0, dtype=F64))
    from_zero = searched(problem, free)
    assert torch.equal(found.x, from_zero.x)
    assert bool(found.converged.all())


def test_subjects_without_observations_stay_at_zero() -> None:
    table = single(4).table
    table = table[(table["id"] != 2) | (table["evid"] == 1)]
    problem = nl.Problem(Oral(), nl.Population.from_table(pd.DataFrame(table), warn=False)).hasten()
    assert problem.route.programs is not None, problem.route.reason
    found = searched(problem, problem.start[None])
    assert bool((found.x[0, 1] == 0).all())
    assert float(found.expansion.value[0, 1]) == 0.0


def test_rows_whose_modes_of_disposition_meet_are_searched_in_torch() -> None:
    problem = nl.Problem(Two(), single(4)).hasten()
    free = problem.start.repeat(2, 1)
    free[0, problem.names.index("tvq")] -= 20.0
    # v2 = q v / cl, so that k21 = k10, and next to no flow
    free[0, problem.names.index("tvv2")] = free[0, problem.names.index("tvq")] + math.log(25.0 / 3.0)
    ours, theirs = searched(problem, free), searched(problem.uncompiled(), free)
    assert ours.expansion.left[0].all()
    assert not ours.expansion.left[1].any()
    assert torch.allclose(ours.x, theirs.x, atol=1e-8)
    assert torch.equal(ours.x[1:], searched(problem, free[1:]).x)
    score = FOCEIObjective(problem)(free, scores=True).score
    reference = FOCEIObjective(problem.uncompiled())(free, scores=True).score
    assert torch.allclose(score, reference, rtol=1e-6, atol=1e-6)
    assert torch.equal(score[1:], FOCEIObjective(problem)(free[1:], scores=True).score)


def test_the_drivers_stay_inside_their_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source as Python, every index checked: the same numbers, but for roundings that LLVM contracts."""
    from nlmegen.structure.kernel import code  # which needs llvmlite

    asked = []

    def in_python(function: Callable[[Any], None], count: int, directory: Any) -> Callable[[int], None]:
        asked.append(function.__name__)
        return lambda words: function(integers(words, (count,)))

    case = CASES[3]
    problem = problem_of(case)
    free, eta = points(problem, 2)
    values = problem.values(free)
    expected = searched(problem, free, eta), problem.predict(eta, values, 1).jac
    leaf = eta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.predict(leaf, values, 1).f.sum(), leaf)
    monkeypatch.setattr(code, "program", in_python)
    found = searched(problem, free, eta)
    assert torch.allclose(found.x, expected[0].x, rtol=1e-12, atol=1e-12)
    assert torch.equal(problem.predict(eta, values, 1).jac, expected[1])
    leaf = eta.clone().requires_grad_()
    (again,) = torch.autograd.grad(problem.predict(leaf, values, 1).f.sum(), leaf)
    assert torch.equal(gradient, again)
    assert set(asked) == {"seek", "visit"}
