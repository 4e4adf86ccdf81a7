"""Laplace's approximation and adaptive quadrature: the grid, what stands in, what is refused, where it ends."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from curves import brute_force, simulated_problem
from inference.pages import Oral, Theophylline, oral_table
from inference.test_classic import differences
from torch import exp

import nlmegen as nl
from nlmegen.errors import FitError, ModelError, Status
from nlmegen.inference.agq import AGQ, Laplace
from nlmegen.inference.nodes import LaplaceObjective, QuadratureObjective

F64 = torch.float64


def theophylline(page: type[nl.Model] = Theophylline, subjects: int = 12) -> nl.Problem:
    return nl.Problem(page(), nl.load_data("theophylline").select(torch.arange(subjects)))


def test_one_node_is_laplace() -> None:
    problem = theophylline()
    free = problem.start + 0.1 * torch.randn(2, problem.P, dtype=F64)
    one, two = (
        QuadratureObjective(problem, 1)(free, scores=True),
        LaplaceObjective(problem)(free, scores=True),
    )
    for name in ("objective", "score", "eta", "cov", "mean"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert AGQ(nodes=1).estimate(problem).ofv == Laplace().estimate(problem).ofv


def test_laplace_by_hand() -> None:
    """2 l + log det H in eta, with the Hessian of -log_joint by autograd: no Taylor number, no whitening."""
    problem = theophylline(subjects=4).uncompiled()
    values = problem.values(problem.start)
    found = LaplaceObjective(problem)(problem.start[None])

    def minus(eta: torch.Tensor) -> torch.Tensor:
        return -problem.log_joint(eta, values)

    for i in range(4):

        def own(x: torch.Tensor, i: int = i) -> torch.Tensor:
            return minus(found.eta[0].index_copy(0, torch.tensor([i]), x[None]))[i]

        hessian = torch.autograd.functional.hessian(own, found.eta[0, i])
        wanted = 2 * own(found.eta[0, i]) + torch.logdet(hessian) - 3 * math.log(2 * math.pi)
        assert float(found.objective[0, i]) == pytest.approx(
            float(wanted) - 11 * math.log(2 * math.pi), abs=1e-9
        )
        assert torch.allclose(found.cov[0, i], torch.linalg.inv(hessian), rtol=1e-7)


@pytest.mark.parametrize("name", ["bolus", "oral"])
def test_quadrature_is_the_integral_and_its_moments(name: str) -> None:
    """Against the trapezoidal rule on a grid that knows no mode; two or three observations leave skewed posteriors."""
    problem = simulated_problem(name, 4)
    log_likelihood, mean, cov = (torch.from_numpy(x) for x in brute_force(name, 4))
    found = AGQ(nodes=15, evaluate=True).estimate(problem)
    assert found.log_likelihood == pytest.approx(float(log_likelihood.sum()), abs=2e-3)
    assert torch.allclose(found.eta_mean, mean, atol=3e-3)
    assert torch.allclose(found.eta_cov, cov, atol=3e-3)
    laplace = Laplace(evaluate=True).estimate(problem)
    assert abs(laplace.log_likelihood - float(log_likelihood.sum())) > 10 * abs(
        found.log_likelihood - float(log_likelihood.sum())
    )


def test_the_derivative_of_quadrature_is_that_of_the_integral() -> None:
    """With many nodes the score is the posterior mean of the joint score (Fisher's identity)."""
    problem = simulated_problem("bolus", 4).uncompiled()
    found = QuadratureObjective(problem, 21)(problem.start[None], scores=True)
    assert found.score is not None
    x = torch.linspace(-6, 6, 121, dtype=F64)
    white = torch.stack(torch.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 1, 2)
    free = problem.start.clone().requires_grad_()
    eta = (white @ problem.values(problem.start).factor.mT).expand(-1, 4, 2)
    joint = problem.log_joint(eta, problem.values(free))
    total = torch.logsumexp(joint, 0)
    for i in range(4):
        (score,) = torch.autograd.grad(total[i], free, retain_graph=True)
        assert torch.allclose(found.score[0, i], -2 * score, atol=1e-4, rtol=1e-4)


class Bimodal(nl.Model):
    """y = (m + eta)^2: two modes, and a Hessian that is indefinite between them."""

    m = nl.Theta(0.3)
    iiv = nl.Omega(a=1.0)
    cp = nl.Additive(1.0)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(a=theta.m + eta.a, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        return dict(cp=p.a * p.a + 0 * t)


def test_an_indefinite_hessian_has_a_rule_and_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search is stopped at its start, where the curvature is negative: K stands in for H, value and derivative."""
    rows = [(1, 0.0, 1.0, 0.0, 1), (1, 1.0, 0.0, 4.0, 0)]
    data = nl.read_nonmem(pd.DataFrame(rows, columns=["ID", "TIME", "AMT", "DV", "EVID"]))
    problem = nl.Problem(Bimodal(), data).uncompiled()
    where = -0.3 * torch.ones(1, 1, 1, dtype=F64)
    from nlmegen.inference import nodes

    search = nodes.find_modes
    monkeypatch.setattr(nodes, "find_modes", lambda *a, **k: search(*a, **k | {"max_iterations": 1}))
    for count in (1, 3):
        objective = QuadratureObjective(problem, count)
        found = objective(problem.start[None], where)
        assert found.indefinite.tolist() == [[True]]
        # at m + eta = 0 the slope of f is 0, and K = 1
        assert float(found.root[0, 0, 0, 0]) == pytest.approx(1.0)
        if count == 1:
            assert float(found.objective[0, 0]) == pytest.approx(16 + 0.09)
    monkeypatch.undo()
    settled = Laplace(evaluate=True).estimate(problem)
    assert Status.SECOND_MODE in Status(int(settled.status[0]))


def test_a_grid_too_large_is_refused_with_what_can_be_done() -> None:
    problem = theophylline()
    with pytest.raises(
        FitError, match=r"28\^3 nodes a subject, at most 20000 are allowed; use AGQ\(nodes=27\)"
    ):
        AGQ(nodes=28).estimate(problem)
    for nodes in (0, -1, 2.5, True):
        with pytest.raises(FitError, match="whole number of nodes"):
            AGQ(nodes=nodes)  # type: ignore[arg-type]


# -- differential equations -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("route", ["compiled", "expm"])
def test_the_stepped_page_is_the_closed_form(route: str) -> None:
    closed = theophylline(subjects=4)
    stepped = nl.Problem(closed.model.as_ode(nl.Solver(route=route)), closed.population)  # type: ignore[arg-type]
    for nodes in (1, 3):
        one, two = (QuadratureObjective(p, nodes)(p.start[None], scores=True) for p in (closed, stepped))
        assert torch.allclose(one.objective, two.objective, rtol=1e-6, atol=1e-5)
        assert one.score is not None
        assert two.score is not None
        assert torch.allclose(one.score, two.score, rtol=1e-5, atol=1e-4)


class Lagged(nl.Model):
    """Differential equations with a lag that has a random effect."""

    tvk = nl.Theta(0.2, lower=0)
    tvlag = nl.Theta(0.4, lower=0)
    iiv = nl.Omega(k=0.1, lag=0.1)
    cp = nl.Additive(0.5)
    solver = nl.Solver(route="compiled")

    def individual(self, theta, eta, cov):
        return dict(k=theta.tvk * exp(eta.k), ka=1.3, lag=theta.tvlag * exp(eta.lag))

    def dynamics(self, t, a, p):
        return dict(depot=-p.ka * a.depot, central=p.ka * a.depot - p.k * a.central)

    def dosing(self, p):
        return dict(depot=nl.Dose(lag=p.lag))

    def observe(self, t, a, p):
        return dict(cp=a.central / 10)


def test_without_third_derivatives_the_grid_is_laid_by_the_information() -> None:
    table = oral_table(3).assign(CMT=lambda x: 2 - x.EVID)
    problem = nl.Problem(Lagged(), nl.read_nonmem(table))
    objective = QuadratureObjective(problem, 5)
    free = problem.start + 0.05
    here = objective(free[None], scores=True)
    assert here.score is not None
    assert torch.allclose(here.score[0], differences(objective, free, here.eta, 2e-3), rtol=1e-5, atol=1e-4)
    found = AGQ(nodes=5, evaluate=True).estimate(problem)
    assert any("laid by the expected information" in note for note in found.notes)
    with pytest.raises(
        ModelError, match=r"third derivatives.*doses are modelled.*route=\"torch\".*AGQ\(nodes=3\)"
    ):
        Laplace().estimate(problem)


# -- where it ends --------------------------------------------------------------------------------------------------
def test_sparse_data_end_at_maximum_likelihood() -> None:
    """Three samples a subject: FOCEI ends elsewhere, quadrature where the gradient of the likelihood vanishes."""
    problem = nl.Problem(Oral(), nl.read_nonmem(oral_table(60, times=(1.0, 4.0, 24.0))))
    best = AGQ(nodes=7).estimate(problem)
    finer = QuadratureObjective(problem, 11)
    at = finer(best.free[None], best.ebe[None], scores=True)
    assert at.score is not None
    information = 0.25 * at.score[0].mT @ at.score[0]
    short = 0.25 * float(at.gradient[0] @ torch.linalg.solve(information, at.gradient[0]))
    assert short < 0.02, f"Newton would still gain {short:.3g} of -2 log L"
    focei = nl.FOCEI(covariance=None).estimate(problem)
    assert float(finer(focei.free[None]).total[0]) > float(at.total[0]) + 0.1


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_an_interruption_during_the_approach_keeps_it(call: int) -> None:
    problem = theophylline()
    seen = []

    def stop(report: object) -> None:
        seen.append(report)
        if len(seen) == call:
            raise KeyboardInterrupt

    found = AGQ().estimate(problem, stop)
    assert found.reason == "interrupted by the user"
    start = AGQ(evaluate=True).estimate(problem).ofv
    # the first report comes before the approach begins
    assert found.ofv <= start + 1e-6
    if call > 1:
        assert found.ofv < start - 40
        assert found.iterations > 0


def test_options_are_named() -> None:
    with pytest.raises(TypeError):
        AGQ(9)  # type: ignore[misc]
    with pytest.raises(FitError, match="expected True or False"):
        AGQ(evaluate=9)  # type: ignore[arg-type]


def test_scores_do_not_depend_on_who_asks() -> None:
    objective = QuadratureObjective(theophylline(subjects=3), 3)
    free = objective.problem.start[None]
    with torch.no_grad():
        asked = objective(free, scores=True).score
    torch.testing.assert_close(asked, objective(free, scores=True).score, rtol=0, atol=0)
