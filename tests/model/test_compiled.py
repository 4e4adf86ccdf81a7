"""Predictions of pages with a closed form by machine code, held against Taylor arithmetic and higher precision."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from functools import cache

import mpmath
import pandas as pd
import pytest
import torch
from model.closed_pages import CASES, F64, Bolus, Case, Oral, Two, single
from torch import exp
from torch.autograd import forward_ad

import nlmegen as nl
from nlmegen.model.compiled import patients_of
from nlmegen.model.problem import Directions

pytest.importorskip("llvmlite")
names = pytest.mark.parametrize("case", CASES, ids=str)


@cache
def problem_of(case: Case) -> nl.Problem:
    problem = nl.Problem(case.page(), case.population()).hasten()
    assert problem.route.programs is not None, problem.route.reason
    return problem


def points(problem: nl.Problem, *draws: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameter vectors, one a draw, and random effects."""
    generator = torch.Generator().manual_seed(seed)
    free = problem.start + 0.2 * torch.randn(*draws, problem.P, generator=generator, dtype=F64)
    eta = 0.3 * torch.randn(*draws, problem.n_subjects, problem.q, generator=generator, dtype=F64)
    return free, eta


def close(ours: torch.Tensor, theirs: torch.Tensor, problem: nl.Problem, tolerance: float = 1e-10) -> bool:
    """Equal relative to the largest number of the subject."""
    seen = problem.observed
    scale = (theirs * seen).abs().amax(-1, keepdim=True)
    return bool(((ours - theirs).abs() * seen <= tolerance * scale + 1e-13).all())


@names
@pytest.mark.parametrize("draws", [(), (3,), (2, 2)], ids=["one", "three", "two by two"])
def test_values_and_derivatives_are_those_of_taylor_arithmetic(case: Case, draws: tuple[int, ...]) -> None:
    problem = problem_of(case)
    reference = problem.uncompiled()
    free, eta = points(problem, *draws)
    values = problem.values(free)
    for order in (0, 1, 2):
        ours = problem.predict(eta, values, order)
        theirs = reference.predict(eta, values, order)
        for name in ("f", "jac", "hess"):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert (a is None) == (b is None)
            if b is not None:
                assert a.shape == b.shape
                assert close(a, b, problem), f"{name} of order {order}"


@names
def test_derivatives_along_directions(case: Case) -> None:
    problem = problem_of(case)
    free, eta = points(problem, 3)
    generator = torch.Generator().manual_seed(2)
    along = torch.randn(2, 3, problem.n_subjects, problem.q, generator=generator, dtype=F64)
    values, directions = problem.values(free), Directions(along, {})
    ours = problem.predict(eta, values, 2, directions)
    theirs = problem.uncompiled().predict(eta, values, 2, directions)
    assert close(ours.jac, theirs.jac, problem)
    assert close(ours.hess, theirs.hess, problem)


@names
@pytest.mark.parametrize("order", [0, 1])
def test_reverse_mode(case: Case, order: int) -> None:
    problem = problem_of(case)
    free, eta = points(problem, 2)
    along = torch.eye(problem.q, dtype=F64)[:, None, None] + 0.1
    found = []
    for route in (problem, problem.uncompiled()):
        leaves = [free.clone().requires_grad_(), eta.clone().requires_grad_(), along.clone().requires_grad_()]
        prediction = route.predict(leaves[1], route.values(leaves[0]), order, Directions(leaves[2], {}))
        generator = torch.Generator().manual_seed(3)
        total = torch.zeros((), dtype=F64)
        for x in (prediction.f, prediction.jac)[: order + 1]:
            weight = torch.randn(x.shape, generator=generator, dtype=F64)
            total = total + (weight * x * problem.mask).sum()
        found.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-10 * float(theirs.abs().max() + 1))


@names
def test_a_row_has_the_same_bits_in_any_company(case: Case) -> None:
    problem = problem_of(case)
    free, eta = points(problem, 3)
    values = problem.values(free)
    whole = problem.predict(eta, values, 2)
    order = torch.randperm(problem.n_subjects, generator=torch.Generator().manual_seed(4))
    permuted = problem.select(order).predict(eta[:, order], values, 2)
    alone = problem.select(order[:1]).predict(eta[1:2, order[:1]], problem.values(free[1:2]), 2)
    for name in ("f", "jac", "hess"):
        a = getattr(whole, name)
        assert torch.equal(getattr(permuted, name), a[..., order, :])
        assert torch.equal(getattr(alone, name), a[..., 1:2, order[:1], :])


def test_what_machine_code_cannot_differentiate_is_not_zero() -> None:
    """Forward mode runs in torch; reverse mode twice is an error."""
    problem = problem_of(CASES[1])
    free, eta = points(problem)
    values = problem.values(free)
    tangents = []
    for route in (problem, problem.uncompiled()):
        with forward_ad.dual_level():
            moving = forward_ad.make_dual(eta, torch.ones_like(eta))
            tangents.append(forward_ad.unpack_dual(route.predict(moving, values).f).tangent)
    assert torch.equal(*tangents)
    leaf = eta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.log_joint(leaf, values).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once by reverse mode"):
        torch.autograd.grad(gradient.sum(), leaf)


# -- where formulas turn delicate -------------------------------------------------------------------------------------
def bateman(ka: float, k: float, t: float) -> mpmath.mpf:
    """What a unit taken by mouth leaves in the central compartment, by quadrature in thirty digits."""
    return mpmath.quad(lambda s: ka * mpmath.exp(-ka * s) * mpmath.exp(-k * (t - s)), [0, t])


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-6, 1e-3, 0.049, 0.051, -1e-6, -0.3])
def test_absorption_as_fast_as_elimination(gap: float) -> None:
    """Values and derivatives at ka = k (1 + gap), where the quotient of Bateman is 0 / 0."""
    problem = nl.Problem(Oral(), single(3)).hasten()
    k = 0.11
    values = problem.values(problem.start)
    size = problem.cov_observation["wt"] / 70
    theta = dict(values.theta)
    cl = theta["tvcl"] * size**0.75
    heavy = torch.where(problem.cov_observation["sex"] > 0.5, 1.1 * size, size**0)
    v = theta["tvv"] * size * heavy
    # eta.cl and eta.v so that cl / v = k, eta.ka so that ka = k (1 + gap)
    shift = torch.log(k * v / cl) / (1 - 0.3)
    eta = torch.cat((torch.log(k * (1 + gap) / theta["tvka"]).expand_as(shift), shift, 0 * shift), -1)
    found = problem.predict(eta, values, 2)
    p = problem.individual(eta, values)
    theirs = problem.uncompiled().predict(eta, values, 2)
    assert close(found.f, theirs.f, problem, 1e-12)
    assert close(found.jac, theirs.jac, problem, 1e-10)
    assert close(found.hess, theirs.hess, problem, 1e-8)
    with mpmath.workdps(30):
        for n, t in ((0, 1), (1, 3), (2, 5)):
            mpf = mpmath.mpf
            at = mpf(float(problem.time[n, t]))
            volume, rate = mpf(float(p["v"][n, 0])), mpf(float(p["cl"][n, 0])) / mpf(float(p["v"][n, 0]))
            ka = mpf(float(p["ka"][n, 0]))
            dose = mpf(100 + 20 * (n + 1))

            def predicted(x: mpmath.mpf, ka=ka, rate=rate, at=at, size=dose / volume) -> mpmath.mpf:
                return size * bateman(ka * mpmath.exp(x), rate, at)

            expected = [mpmath.diff(predicted, 0, order, h=mpf(10) ** -8) for order in (0, 1, 2)]
            ours = [found.f[n, t], found.jac[0, n, t], found.hess[0, 0, n, t]]
            scale = float(found.f[n].abs().max())
            for number, exact, tolerance in zip(ours, expected, (1e-14, 1e-12, 1e-9), strict=True):
                assert abs(float(number) - float(exact)) < tolerance * scale


@pytest.mark.parametrize("q", [1e-12, 1e-3, 0.05])
def test_modes_of_disposition_that_meet(q: float) -> None:
    """Rows whose modes meet are left to the matrix exponential; the others do not notice."""
    problem = nl.Problem(Two(), single(4)).hasten()
    free, eta = points(problem, 2)
    values = problem.values(free)
    meeting = values.theta["tvv2"] * 0 + torch.tensor([1.0, 0.0]).reshape(2, 1, 1)
    theta = dict(values.theta)
    theta["tvq"] = torch.where(meeting > 0, q * theta["tvq"], theta["tvq"])
    theta["tvv2"] = torch.where(meeting > 0, theta["tvq"] * theta["tvv"] / theta["tvcl"], theta["tvv2"])
    moved = replace(values, theta=theta)
    eta = eta * torch.tensor([0.0, 1.0]).reshape(2, 1, 1)
    ours = problem.predict(eta, moved, 2)
    theirs = problem.uncompiled().predict(eta, moved, 2)
    for name in ("f", "jac", "hess"):
        assert torch.isfinite(getattr(ours, name)).all()
        assert close(getattr(ours, name), getattr(theirs, name), problem, 1e-9)
    alone = problem.predict(
        eta[1:],
        nl.model.parameters.Values({k: x[1:] for k, x in theta.items()}, values.factor[1:], values.sigma),
        2,
    )
    assert torch.equal(alone.hess, ours.hess[:, :, 1:])


def test_parameters_that_are_not_positive_give_nan() -> None:
    problem = nl.Problem(Bolus(), single(4)).hasten()
    eta = torch.zeros(4, 2, dtype=F64)
    eta[2, 1] = -2.5
    f = problem.predict(eta, problem.values(problem.start)).f
    assert torch.isnan(f[2][problem.observed[2]]).all()
    assert torch.isfinite(f[[0, 1, 3]]).all()


# -- when ------------------------------------------------------------------------------------------------------------
class Sized(Bolus):
    """A covariate that varies in time."""

    def individual(self, theta, eta, cov):
        return dict(
            cl=theta.tvcl * exp(eta.cl) * cov.wt / 70, v=theta.tvv * (1 + 0.5 * eta.v), base=theta.shift
        )


def test_what_cannot_be_compiled_says_so_and_runs_in_torch() -> None:
    table = single(3).table
    table = table.assign(wt=table["wt"] + table["time"])
    population = nl.Population.from_table(pd.DataFrame(table), warn=False)
    problem = nl.Problem(Sized(), population).hasten()
    assert problem.route.programs is None
    assert "varies" in problem.route.reason
    eta = torch.zeros(3, 2, dtype=F64)
    assert torch.isfinite(problem.predict(eta, problem.values(problem.start), 2).f).all()


def test_nothing_is_compiled_before_a_method_asks() -> None:
    problem = nl.Problem(Bolus(), single(3))
    problem.predict(torch.zeros(3, 2, dtype=F64), problem.values(problem.start), 2)
    assert problem.route.programs is None
    part = problem.select(torch.tensor([0, 2]))
    problem.hasten()
    assert part.route.programs is not None


def test_a_copy_of_a_problem_reads_its_own_memory() -> None:
    problem = problem_of(CASES[3])
    free, eta = points(problem)
    values = problem.values(free)
    expected = problem.predict(eta, values, 1)
    for copied in (copy.deepcopy(problem.schedule), pickle.loads(pickle.dumps(problem.schedule))):
        other = copy.copy(problem)
        other.schedule = copied
        assert torch.equal(other.predict(eta, values, 1).jac, expected.jac)
    patients = pickle.loads(pickle.dumps(patients_of(problem)))
    assert patients.table != patients_of(problem).table
    assert problem.route.programs is not None
    out, _ = problem.route.programs.predict(patients, list(values.theta.values()), eta, None, 0)
    assert torch.equal(out[0], problem.predict(eta, values).f)
    assert pickle.loads(pickle.dumps(problem.route)).programs is None
