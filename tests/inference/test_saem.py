"""SAEM as a whole: it ends at the maximum likelihood, says how far to trust it, and stops where it must."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from inference.pages import TheophyllineAdditive, WangAdditive, wang_data
from problems import F64, Straight, exact, exact_hessian, maximum_likelihood, straight_problem, straight_table
from torch.distributions import LogNormal, Normal

import nlmegen as nl
from nlmegen.errors import FitError, ModelError
from nlmegen.inference.saem import SAEM


class Separate(Straight):
    """`Straight` with independent random effects."""

    iiv = nl.Omega(b=0.5, s=0.1)


def same_slope_table(n: int = 40) -> pd.DataFrame:
    """Subjects that differ in their base alone."""
    table, generator = straight_table(n), np.random.default_rng(1)
    for _, rows in table.groupby("ID"):
        seen = rows.index[rows.EVID == 0]
        base, noise = 1.0 + 0.7 * generator.normal(), 0.4 * generator.normal(size=len(seen))
        table.loc[seen, "DV"] = base + 0.5 * table.loc[seen, "TIME"] + noise
    return table


@pytest.fixture(scope="module")
def straight() -> tuple[nl.Problem, torch.Tensor]:
    problem = straight_problem(n=40)
    return problem, maximum_likelihood(problem)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_linear_page_ends_at_its_maximum(straight, seed):
    problem, best = straight
    found = SAEM(seed=seed, covariance="R").estimate(problem)
    assert found.converged
    shortfall = 2.0 * (exact(problem, best).total - exact(problem, found.free).total)
    assert 0.0 <= shortfall < 0.04
    assert found.log_likelihood == pytest.approx(exact(problem, found.free).total, abs=1e-6)
    information = -exact_hessian(problem, found.free)
    torch.testing.assert_close(found.hessian_r, information, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.eta_mean, exact(problem, found.free).mean, rtol=0, atol=1e-6)


def test_theophylline_ends_at_the_optimum_that_quadrature_knows():
    problem = nl.Problem(TheophyllineAdditive(), nl.load_data("theophylline"))
    for seed in range(3):
        found = SAEM(seed=seed).estimate(problem)
        assert found.converged
        assert found.covariance is not None
        assert -2.0 * nl.quadrature(problem, problem.values(found.free), 9).total < 360.71


def test_a_far_start_ends_at_the_same_place():
    problem = nl.Problem(TheophyllineAdditive(), nl.load_data("theophylline"))
    far = problem.start + torch.tensor([1.5, -1.2, 2.0, -1.5, 0.7, 1.0, -1.5], dtype=F64)
    found = SAEM(seed=2, covariance=None).estimate(problem.starting(far))
    assert found.converged
    assert -2.0 * found.log_likelihood < 360.75


def test_thetas_without_random_effects_and_covariates_are_estimated():
    problem = nl.Problem(nl.load_model("phenobarbital"), nl.load_data("phenobarbital"))
    found = SAEM(seed=1, covariance=None, precision=0.02).estimate(problem)
    assert found.converged
    assert -2.0 * found.log_likelihood < 870.7745 + 0.15


def test_a_variance_of_zero_ends_in_a_verdict():
    problem = nl.Problem(Separate(), nl.read_nonmem(same_slope_table()))
    found = SAEM(seed=1, covariance="R").estimate(problem)
    assert found.converged
    assert any("omega.s is at its boundary 0" in note for note in found.notes)
    assert "at a boundary" in found.reason
    place = problem.names.index("omega.s")
    assert float(problem.omega(found.free)[1, 1]) < 1e-3
    assert math.isnan(float(found.covariance[place, place]))
    assert bool(found.covariance.diagonal().isfinite()[torch.arange(problem.P) != place].all())


def test_priors_make_it_a_map():
    class Informed(Separate):
        tvs = nl.Theta(0.5, prior=Normal(1.0, 0.05))
        iiv = nl.Omega(b=0.5, s=0.1, prior={"s": LogNormal(math.log(0.3), 0.2)})

    problem = nl.Problem(Informed(), nl.read_nonmem(straight_table(40)))
    found = SAEM(seed=3, covariance="R").estimate(problem)
    assert found.converged
    assert found.penalty == pytest.approx(float(problem.penalty(found.free)))
    free = found.free.clone().requires_grad_()
    objective = -2.0 * exact(problem, free).log_likelihood.sum() + problem.penalty(free)
    (gradient,) = torch.autograd.grad(objective, free)
    # twice the expected gain of one more Newton step
    assert float(0.25 * gradient @ torch.linalg.solve(found.hessian_r, gradient)) < 0.04
    assert 0.6 < float(problem.values(found.free).theta["tvs"]) < 1.0  # the data say .4 and the prior 1


def test_the_same_seed_gives_the_same_fit(straight):
    problem, _ = straight
    one, two, three = (
        SAEM(seed=s, covariance=None, precision=0.05).estimate(problem).free for s in (4, 4, 5)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_it_reports_keeps_a_history_and_can_be_interrupted(straight):
    problem, _ = straight
    heard = []

    def listen(progress):
        heard.append(progress)
        if len(heard) == 12:
            raise KeyboardInterrupt

    found = SAEM(seed=0).estimate(problem, listen)
    assert not found.converged
    assert "interrupted by the user" in found.reason
    assert found.covariance is None
    assert found.iterations == len(found.history) == 12
    assert [row["iteration"] for row in found.history] == list(range(1, 13))
    assert found.history[-1]["tvb"] == pytest.approx(float(found.free[0]))
    assert {"SAEM, exploration"} <= {progress.stage for progress in heard}


def test_too_few_iterations_are_not_convergence(straight):
    problem, _ = straight
    found = SAEM(max_iterations=7).estimate(problem)
    assert (found.converged, found.iterations) == (False, 7)
    assert "max_iterations" in found.reason
    assert any("did not converge" in note for note in found.notes)


def test_evaluate_only_describes_the_start():
    problem = straight_problem()
    found = SAEM(evaluate=True).estimate(problem)
    assert found.converged
    assert torch.equal(found.free, problem.start)
    assert found.log_likelihood == pytest.approx(exact(problem).total, abs=1e-8)
    assert found.covariance is None


def test_a_page_with_nothing_to_estimate_is_evaluated():
    problem = nl.Problem(WangAdditive(), wang_data())
    assert SAEM().estimate(problem).ofv == pytest.approx(-1.990, abs=1e-3)


def test_what_it_cannot_do_names_what_can():
    class Plain(nl.Model):
        base = nl.Theta(1.0)
        cp = nl.Additive(0.4)
        structure = nl.OneCompartment()

        def individual(self, theta, eta, cov):
            return dict(base=theta.base, cl=1.0, v=1.0)

        def observe(self, t, a, p):
            return dict(cp=p.base + 0.0 * t)

    class Learned(Straight):
        net = nl.Neural(inputs=1, hidden=(2,))

        def observe(self, t, a, p):
            return dict(cp=p.base + self.net(t) + p.slope * t)

    data = nl.read_nonmem(straight_table())
    with pytest.raises(FitError, match="no random effects.*FOCEI"):
        SAEM().estimate(nl.Problem(Plain(), data))
    with pytest.raises(ModelError, match="networks.*FOCEI.*ELBO"):
        SAEM().estimate(nl.Problem(Learned(), data))


@pytest.mark.parametrize(
    "wrong",
    [
        {"covariance": "Q"},
        {"chains": 1},
        {"seed": -1},
        {"burn_in": 0},
        {"max_iterations": 2.5},
        {"precision": 0.0},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(FitError, match=next(iter(wrong))):
        SAEM(**wrong)
