"""What is said of estimates, against the closed form of linear pages."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from inference.kinds import Events, Grades, table
from problems import (
    F64,
    Straight,
    curve_problem,
    exact,
    exact_hessian,
    exact_scores,
    linear_table,
    maximum_likelihood,
    straight_problem,
    straight_table,
)
from torch.distributions import Normal

import nlmegen as nl
from nlmegen.errors import Status
from nlmegen.inference.boundary import describe
from nlmegen.inference.conclusion import Drawn, conclude, light_weights
from nlmegen.inference.estimate import Estimate


def ended(problem: nl.Problem, free: torch.Tensor, **changes) -> Estimate:
    settings = dict(
        seed=3, covariance="sandwich", converged=True, reason="done", iterations=7, notes=["so"], history=[]
    )
    return conclude(problem, free, **(settings | changes))


@pytest.mark.parametrize("make", [straight_problem, curve_problem])
def test_a_linear_page_away_from_its_optimum(make) -> None:
    problem = make(12)
    free = problem.start + 0.1
    found, truth = ended(problem, free), exact(problem, free)
    assert found.log_likelihood == pytest.approx(truth.total, abs=1e-8)
    assert found.ofv == pytest.approx(problem.ofv(truth.total))
    assert (found.ofv_source, found.ofv_se) == ("quadrature", None)
    torch.testing.assert_close(found.eta_mean, truth.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.eta_cov, truth.covariance, rtol=0, atol=1e-7)
    torch.testing.assert_close(found.ebe, truth.mean, rtol=0, atol=1e-7)
    assert found.hessian_r is not None
    assert found.score_s is not None
    size = float(found.hessian_r.abs().max())
    torch.testing.assert_close(found.hessian_r, -exact_hessian(problem, free), rtol=1e-3, atol=1e-4 * size)
    scores = exact_scores(problem, free)
    torch.testing.assert_close(found.score_s, scores.mT @ scores, rtol=1e-6, atol=1e-6 * size)
    assert (found.converged, found.reason, found.iterations, found.notes[0]) == (True, "done", 7, "so")
    assert found.status.tolist() == [0] * 12


def test_standard_errors_at_the_maximum_are_those_of_the_closed_form() -> None:
    problem = straight_problem(30)
    free = maximum_likelihood(problem)
    inverse = torch.linalg.inv(-exact_hessian(problem, free))
    scores = exact_scores(problem, free)
    for kind, wanted in (("R", inverse), ("sandwich", inverse @ scores.mT @ scores @ inverse)):
        found = ended(problem, free, covariance=kind)
        assert found.covariance_kind == kind
        assert found.covariance is not None
        torch.testing.assert_close(found.covariance, wanted, rtol=5e-3, atol=5e-3 * float(wanted.abs().max()))


class Believed(Straight):
    """With a prior on a theta that moves on its natural scale."""

    tvs = nl.Theta(0.5, prior=Normal(0.8, 0.25))


def test_a_prior_is_in_r_alone() -> None:
    plain = straight_problem(12)
    problem = nl.Problem(Believed(), nl.read_nonmem(straight_table(12)))
    one, other = ended(problem, problem.start), ended(plain, plain.start)
    z = (0.5 - 0.8) / 0.25
    assert one.penalty == pytest.approx(z * z + 2 * math.log(0.25) + math.log(2 * math.pi))
    assert other.penalty == 0.0
    assert one.log_likelihood == other.log_likelihood
    bend = torch.zeros_like(other.hessian_r)
    bend[1, 1] = 1 / 0.25**2
    torch.testing.assert_close(one.hessian_r, other.hessian_r + bend, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(one.score_s, other.score_s)
    assert any("MAP" in note for note in one.notes)
    assert not any("MAP" in note for note in other.notes)


class Six(nl.Model):
    """Six random effects on a basis of six: too many for a grid."""

    level = nl.Theta(1.0)
    iiv = nl.Omega(a=0.3, b=0.2, c=0.2, d=0.1, e=0.1, f=0.1)
    cp = nl.Additive(0.4)
    structure = nl.OneCompartment()

    def individual(self, theta, eta, cov):
        return dict(a=theta.level + eta.a, b=eta.b, c=eta.c, d=eta.d, e=eta.e, f=eta.f, cl=1.0, v=1.0)

    def observe(self, t, a, p):
        waves = p.c * torch.cos(t) + p.d * torch.sin(t) + p.e * torch.cos(2 * t) + p.f * torch.sin(2 * t)
        return dict(cp=p.a + p.b * t + waves)


def test_many_random_effects_are_sampled() -> None:
    problem = nl.Problem(Six(), nl.read_nonmem(linear_table("Straight", 10)))
    values = problem.values(problem.start)
    still = torch.zeros(10, 6, dtype=F64)
    design = problem.predict(still, values, 1).jac.movedim(0, -1) * problem.mask[..., None]
    spread = design @ values.omega @ design.mT + 0.16 * torch.eye(design.shape[1], dtype=F64)
    off = (problem.y - 1.0) * problem.mask
    padded = (1 - problem.mask).sum(-1)
    density = torch.distributions.MultivariateNormal(torch.zeros_like(off), spread).log_prob(off)
    truth = density + 0.5 * padded * math.log(2 * math.pi * 0.16)
    found = ended(problem, problem.start, covariance="R")
    assert found.ofv_source == "importance"
    assert found.ofv_se is not None
    assert 0 < found.ofv_se < 0.5
    assert abs(-2 * found.log_likelihood + 2 * float(truth.sum())) < 4 * found.ofv_se
    gain = values.omega @ design.mT @ torch.linalg.inv(spread)
    torch.testing.assert_close(found.eta_mean, (gain @ off[..., None])[..., 0], rtol=0, atol=0.05)
    assert found.hessian_r is not None
    # of the level alone: sum over subjects of 1' V^-1 1
    ones = problem.mask.unsqueeze(-1)
    curvature = float((ones.mT @ torch.linalg.inv(spread) @ ones).sum())
    assert float(found.hessian_r[0, 0]) == pytest.approx(curvature, rel=0.05)


class Idle(Straight):
    """A random effect that hardly varies and a theta that does nothing."""

    iiv = nl.Omega(b=0.5, s=1e-14)
    nothing = nl.Theta(2.0, lower=0)

    def individual(self, theta, eta, cov):
        slope = theta.tvs + eta.s + 1e-14 * theta.nothing
        return dict(base=theta.tvb + eta.b, slope=slope, cl=1.0, v=1.0)


def idle_problem() -> nl.Problem:
    return nl.Problem(Idle(), nl.read_nonmem(straight_table(12)))


def test_flat_logarithms_are_named_before_standard_errors() -> None:
    problem = idle_problem()
    found = ended(problem, problem.start, covariance="R")
    assert found.covariance is not None
    lost = [name for name, x in zip(problem.names, found.covariance.diagonal().isnan(), strict=True) if x]
    assert lost == ["nothing", "omega.s"]
    assert any("omega.s is at its boundary 0" in note for note in found.notes)
    assert found.converged
    assert found.reason == (
        "done, with nothing, omega.s at a boundary, of which an error by Monte Carlo says nothing"
    )


def test_a_theta_that_ran_away_is_no_estimate() -> None:
    problem = idle_problem()
    free = problem.start.clone()
    free[problem.names.index("nothing")] += 5.0
    found = ended(problem, free)
    assert not found.converged
    assert "do not determine nothing, which ran away" in found.reason


def test_a_gap_above_which_nothing_was_seen_is_not_at_zero() -> None:
    frame = table(Events, 8)
    frame.loc[frame.EVID == 0, "DV"] = frame.DV.clip(0, 1)
    problem = nl.Problem(Grades(), nl.read_nonmem(frame))
    held = torch.tensor([name == "event.gap2" for name in problem.names])
    free = problem.start.clone()
    assert describe(problem, free, held)[0].startswith("the data say nothing about event.gap2 (now 1.5)")
    free[held] = -9.0
    assert describe(problem, free, held)[0].startswith("event.gap2 is at its boundary 0")


def test_without_convergence_there_are_no_standard_errors() -> None:
    problem = straight_problem()
    found = ended(problem, problem.start, converged=False, reason="stopped")
    assert found.covariance is None
    assert found.hessian_r is None
    assert (found.converged, found.reason) == (False, "stopped")
    assert any("did not converge" in note for note in found.notes)
    quiet = ended(problem, problem.start, covariance=None)
    assert quiet.covariance is None
    assert quiet.notes == ["so"]


def test_subjects_without_doses_or_observations_are_flagged() -> None:
    table = straight_table(6)
    table = table[~((table.ID == 2) & (table.EVID == 1)) & ~((table.ID == 4) & (table.EVID == 0))]
    with pytest.warns(match="without observations"), pytest.warns(match="without doses"):
        problem = nl.Problem(Straight(), nl.read_nonmem(pd.DataFrame(table)))
    found = ended(problem, problem.start, covariance=None)
    assert Status.NO_DOSES in Status(int(found.status[1]))
    assert Status.NO_OBSERVATIONS in Status(int(found.status[3]))


def test_samples_that_are_handed_over_are_reported() -> None:
    problem = straight_problem()
    drawn = Drawn.at(problem, problem.start, k=2000, seed=5)
    found = ended(problem, problem.start, covariance=None, drawn=drawn)
    assert found.ofv_source == "importance"
    assert found.log_likelihood == drawn.sampled.total
    assert found.ofv_se == pytest.approx(2 * drawn.sampled.total_se)
    assert abs(found.log_likelihood - exact(problem).total) < 4 * drawn.sampled.total_se


def test_light_weights_are_told() -> None:
    assert light_weights(torch.full((20,), 0.6, dtype=F64)) == ""
    assert "median 0.40" in light_weights(torch.full((20,), 0.4, dtype=F64))
    some = torch.full((20,), 0.9, dtype=F64)
    some[:4] = 0.1
    assert "10th percentile 0.10" in light_weights(some)
